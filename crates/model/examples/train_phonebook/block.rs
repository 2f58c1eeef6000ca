//! One Gated SSM block, forward and backward.
//!
//! ```text
//! xn = conv(rms_norm(r))    i, z, o, f = in_proj(xn)    i, f = sigmoid    o = gelu
//! u = i z sqrt(1 - f^2 + eps)    h[t] = f[t] h[t-1] + u[t], or, for reversed channels, h[t] = f[t] h[t+1] + u[t]
//! r += out_proj(o h)
//! ```

use crate::layout::{BlockRanges, Shape, TAPS};
use crate::network::{EPS, inverse_rms, project, project_backward_input, project_backward_weight, rms_norm_backward};
use crate::real::Real;
use std::ops::Range;

/// Some rows of equal length.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Rows.
    pub count: usize,
    /// Tokens of a row.
    pub len: usize,
    /// Tokens of the prefix.
    pub prefix: usize,
}

impl Rows {
    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.count * self.len
    }

    /// Is the reversed channels' carry from the next token into this one cut? The token is counted within its row.
    fn reverse_cut(&self, token: usize) -> bool {
        token >= self.prefix || token == self.len - 1
    }
}

/// What a block remembers of its forward pass, and scratch for the backward pass.
#[derive(Default)]
pub struct BlockMemory<R> {
    residual: Vec<R>,
    inverse_rms: Vec<R>,
    normed: Vec<R>,
    convolved: Vec<R>,
    /// Rows of i, z, gelu(o), f.
    gates: Vec<R>,
    gelu_slope: Vec<R>,
    /// sqrt(1 - f^2 + eps)
    input_scale: Vec<R>,
    hidden: Vec<R>,
    gated: Vec<R>,
    gates_grad: Vec<R>,
    hidden_grad: Vec<R>,
    width_scratch: Vec<R>,
    normed_grad: Vec<R>,
}

impl<R: Real> BlockMemory<R> {
    fn reserve(&mut self, shape: &Shape, tokens: usize) {
        let sized = |buffer: &mut Vec<R>, channels: usize| buffer.resize(tokens * channels, R::ZERO);
        sized(&mut self.residual, shape.width);
        sized(&mut self.inverse_rms, 1);
        sized(&mut self.normed, shape.width);
        sized(&mut self.convolved, shape.width);
        sized(&mut self.width_scratch, shape.width);
        sized(&mut self.normed_grad, shape.width);
        sized(&mut self.gates, 4 * shape.state);
        sized(&mut self.gates_grad, 4 * shape.state);
        sized(&mut self.gelu_slope, shape.state);
        sized(&mut self.input_scale, shape.state);
        sized(&mut self.hidden, shape.state);
        sized(&mut self.hidden_grad, shape.state);
        sized(&mut self.gated, shape.state);
    }

    /// Adds the block's output to the residual.
    pub fn forward(
        &mut self,
        shape: &Shape,
        reversed: bool,
        weights: &[R],
        ranges: &BlockRanges,
        rows: &Rows,
        residual: &mut [R],
    ) {
        let (width, state) = (shape.width, shape.state);
        self.reserve(shape, rows.tokens());
        self.residual.copy_from_slice(residual);
        let gain = &weights[ranges.norm.clone()];
        for (token, normed) in self.normed.chunks_exact_mut(width).enumerate() {
            let r = &residual[token * width..][..width];
            let inverse = inverse_rms(r);
            self.inverse_rms[token] = inverse;
            for c in 0..width {
                normed[c] = r[c] * inverse * gain[c];
            }
        }
        let taps = taps_by_age(&weights[ranges.conv.clone()], width);
        convolve(&self.normed, &taps, width, rows, &mut self.convolved);
        project(&self.convolved, &weights[ranges.in_weight.clone()], width, 4 * state, &mut self.gates);
        self.activate(&weights[ranges.in_bias.clone()], state);
        for row in 0..rows.count {
            self.scan(row, rows, state, forward_channels(state, reversed));
        }
        for (token, gated) in self.gated.chunks_exact_mut(state).enumerate() {
            let open = &self.gates[token * 4 * state + 2 * state..][..state];
            let hidden = &self.hidden[token * state..][..state];
            for c in 0..state {
                gated[c] = open[c] * hidden[c];
            }
        }
        project(&self.gated, &weights[ranges.out_weight.clone()], state, width, &mut self.width_scratch);
        for (r, &out) in residual.iter_mut().zip(&self.width_scratch) {
            *r += out;
        }
    }

    fn activate(&mut self, bias: &[R], state: usize) {
        let (bi, rest) = bias.split_at(state);
        let (bz, rest) = rest.split_at(state);
        let (bo, bf) = rest.split_at(state);
        let slopes = self.gelu_slope.chunks_exact_mut(state);
        let scales = self.input_scale.chunks_exact_mut(state);
        for ((gates, slope), scale) in self.gates.chunks_exact_mut(4 * state).zip(slopes).zip(scales) {
            let (i, rest) = gates.split_at_mut(state);
            let (z, rest) = rest.split_at_mut(state);
            let (o, f) = rest.split_at_mut(state);
            for c in 0..state {
                i[c] = (i[c] + bi[c]).sigmoid();
                z[c] += bz[c];
            }
            for c in 0..state {
                (o[c], slope[c]) = gelu_and_slope(o[c] + bo[c]);
            }
            for c in 0..state {
                f[c] = (f[c] + bf[c]).sigmoid();
                scale[c] = (R::ONE - f[c] * f[c] + R::of(EPS)).sqrt();
            }
        }
    }

    /// The recurrence over one row: channels below `split` forward, the others backwards.
    fn scan(&mut self, row: usize, rows: &Rows, state: usize, split: usize) {
        let first = row * rows.len;
        for token in 0..rows.len {
            let previous = (token > 0).then(|| token - 1);
            self.scan_token(first, token, previous, state, 0..split);
        }
        for token in (0..rows.len).rev() {
            let next = (!rows.reverse_cut(token)).then_some(token + 1);
            self.scan_token(first, token, next, state, split..state);
        }
    }

    fn scan_token(&mut self, first: usize, token: usize, from: Option<usize>, state: usize, channels: Range<usize>) {
        let n = channels.len();
        let at = (first + token) * state + channels.start;
        let gates = &self.gates[(first + token) * 4 * state..][..4 * state];
        let [i, z, f] = [0, 1, 3].map(|part| &gates[part * state + channels.start..][..n]);
        let scale = &self.input_scale[at..][..n];
        match from {
            None => {
                let h = &mut self.hidden[at..][..n];
                for c in 0..n {
                    h[c] = i[c] * z[c] * scale[c];
                }
            }
            Some(from) => {
                let from_at = (first + from) * state + channels.start;
                let (h, carried) = two_parts(&mut self.hidden, at, from_at, n);
                for c in 0..n {
                    h[c] = f[c] * carried[c] + i[c] * z[c] * scale[c];
                }
            }
        }
    }

    /// Turns the gradient of the block's output into that of its input, in place, and adds that of the weights.
    #[expect(clippy::too_many_arguments, reason = "the weights, their places and both gradients belong to one pass")]
    pub fn backward(
        &mut self,
        shape: &Shape,
        reversed: bool,
        weights: &[R],
        ranges: &BlockRanges,
        rows: &Rows,
        residual_grad: &mut [R],
        grad: &mut [R],
    ) {
        let (width, state) = (shape.width, shape.state);
        project_backward_weight(residual_grad, &self.gated, state, width, &mut grad[ranges.out_weight.clone()]);
        let out_weight = &weights[ranges.out_weight.clone()];
        project_backward_input(residual_grad, out_weight, state, width, &mut self.hidden_grad);
        self.output_gate_backward(state);
        for row in 0..rows.count {
            self.scan_backward(row, rows, state, forward_channels(state, reversed));
        }
        self.input_gates_backward(state);
        let bias_grad = &mut grad[ranges.in_bias.clone()];
        for gates_grad in self.gates_grad.chunks_exact(4 * state) {
            for part in [0, 2, 3] {
                let (sum, terms) = (&mut bias_grad[part * state..][..state], &gates_grad[part * state..][..state]);
                for c in 0..state {
                    sum[c] += terms[c];
                }
            }
        }
        let in_weight = ranges.in_weight.clone();
        project_backward_weight(&self.gates_grad, &self.convolved, width, 4 * state, &mut grad[in_weight.clone()]);
        project_backward_input(&self.gates_grad, &weights[in_weight], width, 4 * state, &mut self.width_scratch);
        self.convolution_backward(width, rows, &weights[ranges.conv.clone()], &mut grad[ranges.conv.clone()]);
        let gain = &weights[ranges.norm.clone()];
        let gain_grad = &mut grad[ranges.norm.clone()];
        for token in 0..rows.tokens() {
            let x = &self.residual[token * width..][..width];
            let dy = &self.normed_grad[token * width..][..width];
            let dx = &mut residual_grad[token * width..][..width];
            rms_norm_backward(x, gain, self.inverse_rms[token], dy, dx, gain_grad);
        }
    }

    /// From d(o h), held in `hidden_grad`, to the gradients of o before gelu and of h.
    fn output_gate_backward(&mut self, state: usize) {
        for (token, hidden_grad) in self.hidden_grad.chunks_exact_mut(state).enumerate() {
            let open = &self.gates[token * 4 * state + 2 * state..][..state];
            let open_grad = &mut self.gates_grad[token * 4 * state + 2 * state..][..state];
            let hidden = &self.hidden[token * state..][..state];
            let slope = &self.gelu_slope[token * state..][..state];
            for c in 0..state {
                open_grad[c] = hidden_grad[c] * hidden[c] * slope[c];
                hidden_grad[c] *= open[c];
            }
        }
    }

    /// The recurrence's adjoint over one row: each token's share of the next one's is passed on as the walk goes, so
    /// that `hidden_grad` ends as du, and the gradient of f through the decay is left in the place of f.
    fn scan_backward(&mut self, row: usize, rows: &Rows, state: usize, split: usize) {
        let first = row * rows.len;
        for token in (0..rows.len).rev() {
            let previous = (token > 0).then(|| token - 1);
            self.scan_token_backward(first, token, previous, state, 0..split);
        }
        for token in 0..rows.len {
            let next = (!rows.reverse_cut(token)).then_some(token + 1);
            self.scan_token_backward(first, token, next, state, split..state);
        }
    }

    fn scan_token_backward(
        &mut self,
        first: usize,
        token: usize,
        from: Option<usize>,
        state: usize,
        channels: Range<usize>,
    ) {
        let n = channels.len();
        let at = (first + token) * state + channels.start;
        let forget = (first + token) * 4 * state + 3 * state + channels.start;
        let forget_grad = &mut self.gates_grad[forget..][..n];
        match from {
            None => forget_grad.fill(R::ZERO),
            Some(from) => {
                let from_at = (first + from) * state + channels.start;
                let f = &self.gates[forget..][..n];
                let carried = &self.hidden[from_at..][..n];
                let (carried_grad, own_grad) = two_parts(&mut self.hidden_grad, from_at, at, n);
                for c in 0..n {
                    forget_grad[c] = own_grad[c] * carried[c];
                    carried_grad[c] += own_grad[c] * f[c];
                }
            }
        }
    }

    /// From du, held in `hidden_grad`, to the gradients of i, z and f before their sigmoids.
    fn input_gates_backward(&mut self, state: usize) {
        for (token, gates_grad) in self.gates_grad.chunks_exact_mut(4 * state).enumerate() {
            let gates = &self.gates[token * 4 * state..][..4 * state];
            let [i, z, f] = [0, 1, 3].map(|part| &gates[part * state..][..state]);
            let (di, rest) = gates_grad.split_at_mut(state);
            let (dz, rest) = rest.split_at_mut(state);
            let df = &mut rest[state..][..state];
            let du = &self.hidden_grad[token * state..][..state];
            let scale = &self.input_scale[token * state..][..state];
            for c in 0..state {
                let through_scale = du[c] * i[c] * z[c];
                di[c] = du[c] * z[c] * scale[c] * i[c] * (R::ONE - i[c]);
                dz[c] = du[c] * i[c] * scale[c];
                df[c] = (df[c] - through_scale * f[c] / scale[c]) * f[c] * (R::ONE - f[c]);
            }
        }
    }

    /// From the gradient of the convolution's output, held in `width_scratch`, to those of its input and its taps.
    fn convolution_backward(&mut self, width: usize, rows: &Rows, taps: &[R], taps_grad: &mut [R]) {
        let taps = taps_by_age(taps, width);
        self.normed_grad.fill(R::ZERO);
        let mut by_age = vec![R::ZERO; TAPS * width];
        for row in 0..rows.count {
            for token in 0..rows.len {
                let at = (row * rows.len + token) * width;
                let dy = &self.width_scratch[at..][..width];
                for age in 0..TAPS.min(token + 1) {
                    let tap = &taps[age * width..][..width];
                    let tap_grad = &mut by_age[age * width..][..width];
                    let x = &self.normed[at - age * width..][..width];
                    let dx = &mut self.normed_grad[at - age * width..][..width];
                    for c in 0..width {
                        tap_grad[c] += dy[c] * x[c];
                        dx[c] += dy[c] * tap[c];
                    }
                }
            }
        }
        for c in 0..width {
            for age in 0..TAPS {
                taps_grad[c * TAPS + TAPS - 1 - age] += by_age[age * width + c];
            }
        }
    }
}

fn forward_channels(state: usize, reversed: bool) -> usize {
    if reversed { state / 2 } else { state }
}

/// The taps with the one for the current token first: [TAPS, width].
fn taps_by_age<R: Real>(taps: &[R], width: usize) -> Vec<R> {
    (0..TAPS * width).map(|at| taps[(at % width) * TAPS + TAPS - 1 - at / width]).collect()
}

fn convolve<R: Real>(x: &[R], taps: &[R], width: usize, rows: &Rows, y: &mut [R]) {
    for (at, y) in y.chunks_exact_mut(width).enumerate() {
        y.fill(R::ZERO);
        for age in 0..TAPS.min(at % rows.len + 1) {
            let (x, tap) = (&x[(at - age) * width..][..width], &taps[age * width..][..width]);
            for c in 0..width {
                y[c] += x[c] * tap[c];
            }
        }
    }
}

/// gelu in its tanh form, x sigmoid(2 p) with p = sqrt(2 / pi) (x + 0.044715 x^3), and its derivative.
fn gelu_and_slope<R: Real>(x: R) -> (R, R) {
    let twice_root = R::of(2.0 * (2.0 / std::f64::consts::PI).sqrt());
    let cubic = R::of(0.044_715);
    let square = x * x;
    let s = (twice_root * x * (R::ONE + cubic * square)).sigmoid();
    let inner_slope = twice_root * (R::ONE + R::of(3.0) * cubic * square);
    (x * s, s + x * s * (R::ONE - s) * inner_slope)
}

/// Two stretches of one buffer that do not overlap.
fn two_parts<R>(buffer: &mut [R], write: usize, read: usize, n: usize) -> (&mut [R], &mut [R]) {
    if write < read {
        let (low, high) = buffer.split_at_mut(read);
        (&mut low[write..][..n], &mut high[..n])
    } else {
        let (low, high) = buffer.split_at_mut(write);
        (&mut high[..n], &mut low[read..][..n])
    }
}
