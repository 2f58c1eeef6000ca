//! Short convolution over time, channel by channel, forward and backward.

use crate::activation::Activation;

/// What a convolution runs over.
#[derive(Debug, Clone, Copy)]
pub struct Conv<'a> {
    /// Rows.
    pub batch: usize,
    /// Tokens of a row.
    pub tokens: usize,
    /// Channels.
    pub channels: usize,
    /// Width of the window.
    pub taps: usize,
    /// `taps / 2` tokens lie before the current one; otherwise `taps - 1` do.
    pub centred: bool,
    /// `[C]`.
    pub bias: Option<&'a [f64]>,
    /// `[B,T]`: bit 0 marks the first token of a segment.
    pub flags: Option<&'a [u8]>,
    /// `[N+1]`: where the sequences of the only row begin, and the end. Without, each row is a sequence.
    pub starts: Option<&'a [i32]>,
    /// `[N,taps-1,C]`: inputs before the first token of each sequence, oldest first.
    pub state: Option<&'a [f64]>,
    /// Applied to the sum.
    pub activation: Activation,
}

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,T,C]`; NaN at tokens of no sequence.
    pub out: Vec<f64>,
    /// `[N,taps-1,C]`: the last inputs, oldest first, zero where a segment start hides them.
    pub state: Vec<f64>,
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[B,T,C]`; NaN at tokens of no sequence.
    pub dx: Vec<f64>,
    /// `[C,taps]`.
    pub dweight: Vec<f64>,
    /// `[C]`.
    pub dbias: Vec<f64>,
    /// `[N,taps-1,C]`.
    pub dstate: Vec<f64>,
}

/// One sequence: tokens `lo..hi` of all rows laid end to end, and its number.
struct Sequence {
    number: usize,
    lo: usize,
    hi: usize,
}

impl Conv<'_> {
    fn sequences(&self) -> Vec<Sequence> {
        let ends: Vec<usize> = match self.starts {
            Some(starts) => starts.iter().map(|s| *s as usize).collect(),
            None => (0..=self.batch).map(|b| b * self.tokens).collect(),
        };
        ends.windows(2).enumerate().map(|(number, w)| Sequence { number, lo: w[0], hi: w[1] }).collect()
    }

    /// Whether tokens `i` and `j` of a sequence, counted from its first, lie in one segment. The state, at negative ones, lies
    /// in the segment that goes on from it.
    fn together(&self, s: &Sequence, i: i64, j: i64) -> bool {
        let starts = |t: i64| self.flags.is_some_and(|f| f[s.lo + t as usize] & 1 == 1);
        !(i.min(j) + 1..=i.max(j)).any(|t| t >= 0 && starts(t))
    }

    /// The tap `j` of token `t` of a sequence meets this token of it; negative in the state.
    fn source(&self, s: &Sequence, t: usize, j: usize) -> Option<i64> {
        let before = if self.centred { self.taps / 2 } else { self.taps - 1 };
        let (source, len) = (t as i64 - before as i64 + j as i64, (s.hi - s.lo) as i64);
        let first = if self.centred { 0 } else { 1 - self.taps as i64 };
        ((first..len).contains(&source) && self.together(s, source, t as i64)).then_some(source)
    }

    /// Where that token is: in `x`, or in the state.
    fn at(&self, s: &Sequence, source: i64, c: usize) -> (bool, usize) {
        if source >= 0 {
            (true, (s.lo + source as usize) * self.channels + c)
        } else {
            let row = s.number as i64 * (self.taps as i64 - 1) + source + self.taps as i64 - 1;
            (false, row as usize * self.channels + c)
        }
    }

    fn input(&self, x: &[f64], (in_x, at): (bool, usize)) -> f64 {
        if in_x { x[at] } else { self.state.map_or(0.0, |state| state[at]) }
    }

    /// The sum before the activation.
    fn sum(&self, s: &Sequence, x: &[f64], weight: &[f64], t: usize, c: usize) -> f64 {
        let taps = (0..self.taps).filter_map(|j| {
            self.source(s, t, j).map(|source| weight[c * self.taps + j] * self.input(x, self.at(s, source, c)))
        });
        taps.sum::<f64>() + self.bias.map_or(0.0, |bias| bias[c])
    }

    /// Input that comes out as row `k` of the final state.
    fn last(&self, s: &Sequence, k: usize) -> Option<i64> {
        let (len, kept) = ((s.hi - s.lo) as i64, self.taps as i64 - 1);
        let source = len - kept + k as i64;
        self.together(s, source, len - 1).then_some(source)
    }
}

/// `out[t,c] = act(bias[c] + sum over j of weight[c,j] x[t - before + j, c])`: `x` is `[B,T,C]`, `weight` `[C,taps]`.
pub fn forward(conv: &Conv<'_>, x: &[f64], weight: &[f64]) -> Forward {
    let (channels, kept, sequences) = (conv.channels, conv.taps - 1, conv.sequences());
    let mut forward = Forward { out: vec![f64::NAN; x.len()], state: vec![0.0; sequences.len() * kept * channels] };
    for s in &sequences {
        for c in 0..channels {
            for t in 0..s.hi - s.lo {
                forward.out[(s.lo + t) * channels + c] = conv.activation.of(conv.sum(s, x, weight, t, c));
            }
            for k in 0..kept {
                if let Some(source) = conv.last(s, k) {
                    let at = (s.number * kept + k) * channels + c;
                    forward.state[at] = conv.input(x, conv.at(s, source, c));
                }
            }
        }
    }
    forward
}

/// The gradient by every input, from those by `out` and by the final state.
pub fn backward(conv: &Conv<'_>, x: &[f64], weight: &[f64], dout: &[f64], dstate_final: Option<&[f64]>) -> Backward {
    let (channels, kept, sequences) = (conv.channels, conv.taps - 1, conv.sequences());
    let mut gradient = Backward {
        dx: vec![f64::NAN; x.len()],
        dweight: vec![0.0; weight.len()],
        dbias: vec![0.0; channels],
        dstate: vec![0.0; sequences.len() * kept * channels],
    };
    for s in &sequences {
        gradient.dx[s.lo * channels..s.hi * channels].fill(0.0);
        for c in 0..channels {
            for t in 0..s.hi - s.lo {
                let sum = conv.sum(s, x, weight, t, c);
                let dsum = dout[(s.lo + t) * channels + c] * conv.activation.slope(sum);
                gradient.dbias[c] += dsum;
                for j in 0..conv.taps {
                    let Some(source) = conv.source(s, t, j) else { continue };
                    let (in_x, at) = conv.at(s, source, c);
                    gradient.dweight[c * conv.taps + j] += dsum * conv.input(x, (in_x, at));
                    let by = if in_x { &mut gradient.dx } else { &mut gradient.dstate };
                    by[at] += dsum * weight[c * conv.taps + j];
                }
            }
            for k in 0..kept {
                let (Some(dlast), Some(source)) = (dstate_final, conv.last(s, k)) else { continue };
                let (in_x, at) = conv.at(s, source, c);
                let by = if in_x { &mut gradient.dx } else { &mut gradient.dstate };
                by[at] += dlast[(s.number * kept + k) * channels + c];
            }
        }
    }
    gradient
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONV: Conv<'_> = Conv {
        batch: 1,
        tokens: 4,
        channels: 1,
        taps: 3,
        centred: false,
        bias: None,
        flags: None,
        starts: None,
        state: None,
        activation: Activation::None,
    };

    #[test]
    fn by_hand() {
        let weight = [100.0, 10.0, 1.0];
        let x = [1.0, 2.0, 3.0, 4.0];
        let plain = forward(&CONV, &x, &weight);
        assert_eq!(plain.out, [1.0, 12.0, 123.0, 234.0]);
        assert_eq!(plain.state, [3.0, 4.0]);
        let state = Conv { state: Some(&[8.0, 9.0]), ..CONV };
        assert_eq!(forward(&state, &x, &weight).out, [891.0, 912.0, 123.0, 234.0]);
        let flags = Conv { flags: Some(&[0, 0, 0, 1]), state: Some(&[8.0, 9.0]), ..CONV };
        let cut = forward(&flags, &x, &weight);
        assert_eq!(cut.out, [891.0, 912.0, 123.0, 4.0]);
        assert_eq!(cut.state, [0.0, 4.0]);
    }

    #[test]
    fn centred_by_hand() {
        let weight = [100.0, 10.0, 1.0];
        let x = [1.0, 2.0, 3.0, 4.0];
        let centred = Conv { centred: true, ..CONV };
        assert_eq!(forward(&centred, &x, &weight).out, [12.0, 123.0, 234.0, 340.0]);
        let flags = Conv { flags: Some(&[0, 0, 1, 0]), ..centred };
        assert_eq!(forward(&flags, &x, &weight).out, [12.0, 120.0, 34.0, 340.0]);
        let starts = Conv { starts: Some(&[0, 2, 2, 3]), ..centred };
        let out = forward(&starts, &x, &weight).out;
        assert_eq!(out[..3], [12.0, 120.0, 30.0]);
        assert!(out[3].is_nan(), "a token of no sequence");
    }

    #[test]
    fn pieces_give_the_whole() {
        let (x, weight) = ([1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 2.0]);
        let whole = forward(&CONV, &x, &weight);
        let first = forward(&Conv { tokens: 1, ..CONV }, &x[..1], &weight);
        let rest = forward(&Conv { tokens: 3, state: Some(&first.state), ..CONV }, &x[1..], &weight);
        assert_eq!([first.out, rest.out].concat(), whole.out);
        assert_eq!(rest.state, whole.state);
    }

    /// Whatever the gradient says must be the slope of a loss, by central differences.
    fn check(conv: &Conv<'_>) {
        let wave = |phase: f64, n: usize| -> Vec<f64> { (0..n).map(|i| (phase + 1.3 * i as f64).sin()).collect() };
        let (n, kept) = (conv.batch * conv.tokens * conv.channels, conv.taps - 1);
        let states = conv.sequences().len() * kept * conv.channels;
        let (x, weight, bias) = (wave(1.0, n), wave(2.0, conv.channels * conv.taps), wave(3.0, conv.channels));
        let (state, dout, dlast) = (wave(4.0, states), wave(5.0, n), wave(6.0, states));
        let loss = |inputs: &[Vec<f64>; 4]| {
            let [x, weight, bias, state] = inputs;
            let conv = Conv { bias: Some(bias), state: (!conv.centred).then_some(state), ..*conv };
            let forward = forward(&conv, x, weight);
            let out: f64 = forward.out.iter().zip(&dout).filter(|(o, _)| !o.is_nan()).map(|(o, d)| o * d).sum();
            let last: f64 = forward.state.iter().zip(&dlast).map(|(o, d)| o * d).sum();
            out + if conv.centred { 0.0 } else { last }
        };
        let inputs = [x, weight, bias, state];
        let [x, weight, bias, state] = &inputs;
        let with = Conv { bias: Some(bias), state: (!conv.centred).then_some(state), ..*conv };
        let gradient = backward(&with, x, weight, &dout, (!conv.centred).then_some(&dlast));
        let step = 1e-5;
        for (which, by) in [gradient.dx, gradient.dweight, gradient.dbias, gradient.dstate].iter().enumerate() {
            for i in 0..by.len() {
                let (mut up, mut down) = (inputs.clone(), inputs.clone());
                up[which][i] += step;
                down[which][i] -= step;
                let slope = (loss(&up) - loss(&down)) / (2.0 * step);
                let want = if by[i].is_nan() { 0.0 } else { by[i] };
                assert!((slope - want).abs() < 1e-8, "input {which}, element {i}: {slope} {want}");
            }
        }
    }

    #[test]
    fn gradient_by_differences() {
        let flags = [0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0];
        for (taps, centred) in [(2, false), (4, false), (3, true), (4, true), (7, true)] {
            for activation in Activation::ALL {
                // The kink of relu is no place for differences, but no sum comes that near to it.
                let base = Conv { batch: 2, tokens: 7, channels: 2, taps, centred, activation, ..CONV };
                check(&base);
                check(&Conv { flags: Some(&flags), ..base });
                check(&Conv { batch: 1, tokens: 14, starts: Some(&[0, 1, 1, 9, 13]), flags: Some(&flags), ..base });
            }
        }
    }
}
