//! Gated scan, the oracle: `h[t] = a[t] h[t-1] + b[t]`, one loop per channel.
//!
//! A tensor is a flat slice of shape `[B,T,D]`, a state one of `[N,D]`, where `N` is the number of sequences: the batch,
//! or the packed sequences that `cu_seqlens` cuts out of one row. Channels below `split` run forward in time, the others
//! in reverse. A *cut* is a flag: the token starts from nothing, and its decay is not used.

/// What a scan runs over, apart from the gates.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// Rows.
    pub batch: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Channels of a token.
    pub channels: usize,
    /// Channels below run forward in time, the others in reverse.
    pub split: usize,
    /// `[B,T]`: bit 0 cuts the carry into a forward channel at this token, bit 1 into a reverse channel.
    pub flags: Option<&'a [u8]>,
    /// `[N+1]` starts of packed sequences in the only row; tokens after the last form a sequence without a state.
    pub cu_seqlens: Option<&'a [i32]>,
    /// `[N,D]` states before the first token of each sequence; zero without.
    pub initial: Option<&'a [f64]>,
}

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,T,D]` states.
    pub h: Vec<f64>,
    /// `[N,D]` states after the last token of each sequence.
    pub last: Vec<f64>,
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[B,T,D]`, zero where the carry is cut.
    pub da: Vec<f64>,
    /// `[B,T,D]`.
    pub db: Vec<f64>,
    /// `[N,D]` adjoint of the initial state.
    pub d_initial: Vec<f64>,
}

/// Tokens of one row that share a carry, before flags.
pub(crate) struct Sequence {
    /// Row of the state tensors, if it has one.
    pub(crate) state: Option<usize>,
    pub(crate) row: usize,
    tokens: std::ops::Range<usize>,
}

impl Scan<'_> {
    /// Number of states: packed sequences, or rows.
    pub fn states(&self) -> usize {
        self.cu_seqlens.map_or(self.batch, |cu| cu.len().saturating_sub(1))
    }

    pub(crate) fn sequences(&self) -> Vec<Sequence> {
        let Some(cu) = self.cu_seqlens else {
            let row = |row| Sequence { state: Some(row), row, tokens: 0..self.seq_len };
            return (0..self.batch).map(row).collect();
        };
        let packed = cu.windows(2).enumerate().map(|(n, w)| Sequence {
            state: Some(n),
            row: 0,
            tokens: w[0] as usize..w[1] as usize,
        });
        let rest = cu.last().map_or(0, |end| *end as usize)..self.seq_len;
        packed.chain([Sequence { state: None, row: 0, tokens: rest }]).collect()
    }

    fn reverse(&self, channel: usize) -> bool {
        channel >= self.split
    }

    pub(crate) fn is_cut(&self, row: usize, t: usize, channel: usize) -> bool {
        let bit = u8::from(self.reverse(channel));
        self.flags.is_some_and(|flags| flags[row * self.seq_len + t] >> bit & 1 == 1)
    }

    /// Tokens in the order in which the state passes through them.
    pub(crate) fn order(&self, sequence: &Sequence, channel: usize) -> Vec<usize> {
        let tokens = sequence.tokens.clone();
        if self.reverse(channel) { tokens.rev().collect() } else { tokens.collect() }
    }

    pub(crate) fn at(&self, row: usize, t: usize, channel: usize) -> usize {
        (row * self.seq_len + t) * self.channels + channel
    }

    fn initial(&self, state: Option<usize>, channel: usize) -> f64 {
        match (self.initial, state) {
            (Some(initial), Some(n)) => initial[n * self.channels + channel],
            _ => 0.0,
        }
    }

    /// `[B,T,D]`: whether the state starts from nothing here, by a flag or at a sequence start without an initial state.
    pub fn resets(&self) -> Vec<bool> {
        let mut resets = vec![false; self.batch * self.seq_len * self.channels];
        for sequence in self.sequences() {
            for d in 0..self.channels {
                let fresh = self.initial.is_none() || sequence.state.is_none();
                for (step, t) in self.order(&sequence, d).into_iter().enumerate() {
                    resets[self.at(sequence.row, t, d)] = self.is_cut(sequence.row, t, d) || (step == 0 && fresh);
                }
            }
        }
        resets
    }
}

/// `h[t] = a[t] h[t-1] + b[t]` with `a[t] = 0` where the carry is cut.
pub fn forward(scan: &Scan, a: &[f64], b: &[f64]) -> Forward {
    let mut h = vec![0.0; b.len()];
    let mut last = vec![0.0; scan.states() * scan.channels];
    for sequence in scan.sequences() {
        for d in 0..scan.channels {
            let mut state = scan.initial(sequence.state, d);
            for t in scan.order(&sequence, d) {
                let i = scan.at(sequence.row, t, d);
                state = if scan.is_cut(sequence.row, t, d) { b[i] } else { a[i] * state + b[i] };
                h[i] = state;
            }
            if let Some(n) = sequence.state {
                last[n * scan.channels + d] = state;
            }
        }
    }
    Forward { h, last }
}

/// Adjoint of [`forward`]: walks every sequence against its direction with `c`, the adjoint of the state.
pub fn backward(scan: &Scan, a: &[f64], h: &[f64], dh: &[f64], d_last: Option<&[f64]>) -> Backward {
    let mut da = vec![0.0; dh.len()];
    let mut db = vec![0.0; dh.len()];
    let mut d_initial = vec![0.0; scan.states() * scan.channels];
    for sequence in scan.sequences() {
        for d in 0..scan.channels {
            let order = scan.order(&sequence, d);
            let mut c = match (d_last, sequence.state) {
                (Some(d_last), Some(n)) => d_last[n * scan.channels + d],
                _ => 0.0,
            };
            for step in (0..order.len()).rev() {
                let i = scan.at(sequence.row, order[step], d);
                c += dh[i];
                db[i] = c;
                if scan.is_cut(sequence.row, order[step], d) {
                    c = 0.0;
                    continue;
                }
                let before = match step {
                    0 => scan.initial(sequence.state, d),
                    _ => h[scan.at(sequence.row, order[step - 1], d)],
                };
                da[i] = c * before;
                c *= a[i];
            }
            if let Some(n) = sequence.state {
                d_initial[n * scan.channels + d] = c;
            }
        }
    }
    Backward { da, db, d_initial }
}

/// `[D]` repeated for every token.
pub fn per_channel(tokens: usize, values: &[f64]) -> Vec<f64> {
    std::iter::repeat_n(values, tokens).flatten().copied().collect()
}

/// Sums `[B,T,D]` over tokens to `[D]`.
pub fn sum_tokens(channels: usize, values: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; channels];
    for (i, v) in values.iter().enumerate() {
        sum[i % channels] += v;
    }
    sum
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Added below the root of the normalised gated SSM, so that its slope stays finite at a = 1.
pub const NORMALIZE_EPSILON: f64 = 1e-6;

/// Gates of the gated SSM: `a = σ(f)`, `b = σ(i) z`, times `√(1 - a² + ε)` if normalised.
pub fn gated_ssm(f: &[f64], i: &[f64], z: &[f64], normalize: bool) -> (Vec<f64>, Vec<f64>) {
    let gate = |n: usize| {
        let a = sigmoid(f[n]);
        let scale = if normalize { (1.0 - a * a + NORMALIZE_EPSILON).sqrt() } else { 1.0 };
        (a, sigmoid(i[n]) * z[n] * scale)
    };
    (0..f.len()).map(gate).unzip()
}

/// Adjoint of [`gated_ssm`]: `(df, di, dz)`.
pub fn gated_ssm_backward(
    (f, i, z): (&[f64], &[f64], &[f64]),
    normalize: bool,
    da: &[f64],
    db: &[f64],
) -> [Vec<f64>; 3] {
    let mut out = [vec![0.0; f.len()], vec![0.0; f.len()], vec![0.0; f.len()]];
    for n in 0..f.len() {
        let (a, gate) = (sigmoid(f[n]), sigmoid(i[n]));
        let scale = if normalize { (1.0 - a * a + NORMALIZE_EPSILON).sqrt() } else { 1.0 };
        let through_scale = if normalize { db[n] * gate * z[n] * (-a / scale) } else { 0.0 };
        out[0][n] = (da[n] + through_scale) * a * (1.0 - a);
        out[1][n] = db[n] * z[n] * scale * gate * (1.0 - gate);
        out[2][n] = db[n] * gate * scale;
    }
    out
}

/// The exponent of the RG-LRU decay: `log a = -C σ(r) softplus(Λ)`.
pub const RG_LRU_C: f64 = 8.0;

/// Largest slope of the RG-LRU square root in the backward pass.
pub const RG_LRU_MAX_SLOPE: f64 = 1000.0;

/// Gates of the RG-LRU: `log a = -8 σ(r) softplus(Λ)`, `b = √(1 - a²) σ(i) x`.
///
/// Where the state starts from nothing the root is replaced by 1 if `unit_at_reset`.
pub fn rg_lru(
    scan: &Scan,
    (r, i, x): (&[f64], &[f64], &[f64]),
    lambda: &[f64],
    unit_at_reset: bool,
) -> (Vec<f64>, Vec<f64>) {
    let resets = scan.resets();
    let gate = |n: usize| {
        let log_a = -RG_LRU_C * sigmoid(r[n]) * softplus(lambda[n % scan.channels]);
        let scale = if unit_at_reset && resets[n] { 1.0 } else { (-(2.0 * log_a).exp_m1()).sqrt() };
        (log_a.exp(), scale * sigmoid(i[n]) * x[n])
    };
    (0..r.len()).map(gate).unzip()
}

/// Adjoint of [`rg_lru`]: `(dr, di, dx)` and `dΛ [D]`. The slope of the square root is clipped at [`RG_LRU_MAX_SLOPE`].
pub fn rg_lru_backward(
    scan: &Scan,
    (r, i, x): (&[f64], &[f64], &[f64]),
    lambda: &[f64],
    unit_at_reset: bool,
    da: &[f64],
    db: &[f64],
) -> ([Vec<f64>; 3], Vec<f64>) {
    let resets = scan.resets();
    let mut out = [vec![0.0; r.len()], vec![0.0; r.len()], vec![0.0; r.len()]];
    let mut d_lambda = vec![0.0; scan.channels];
    for n in 0..r.len() {
        let d = n % scan.channels;
        let (gate_r, gate_i) = (sigmoid(r[n]), sigmoid(i[n]));
        let log_a = -RG_LRU_C * gate_r * softplus(lambda[d]);
        let square = -(2.0 * log_a).exp_m1();
        let unit = unit_at_reset && resets[n];
        let scale = if unit { 1.0 } else { square.sqrt() };
        let slope = if unit { 0.0 } else { (0.5 / square.sqrt()).min(RG_LRU_MAX_SLOPE) };
        let a = log_a.exp();
        let d_log_a = da[n] * a - db[n] * gate_i * x[n] * 2.0 * a * a * slope;
        out[0][n] = -RG_LRU_C * softplus(lambda[d]) * d_log_a * gate_r * (1.0 - gate_r);
        out[1][n] = db[n] * scale * x[n] * gate_i * (1.0 - gate_i);
        out[2][n] = db[n] * scale * gate_i;
        d_lambda[d] -= RG_LRU_C * gate_r * sigmoid(lambda[d]) * d_log_a;
    }
    (out, d_lambda)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(phase: f64, n: usize) -> Vec<f64> {
        (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
    }

    /// Sum, sum of absolute values, last element, as the golden table lists them.
    fn check(name: &str, values: &[f64], [sum, abs, last]: [f64; 3]) {
        let got = [values.iter().sum(), values.iter().map(|v| v.abs()).sum(), values[values.len() - 1]];
        for (got, want) in got.into_iter().zip([sum, abs, last]) {
            assert!((got - want).abs() < 1e-8, "{name}: {got} is not {want}");
        }
    }

    const FLAGS: [u8; 7] = [0, 0, 0, 2, 1, 0, 2];

    fn golden_scan<'a>(split: usize, h0: &'a [f64]) -> Scan<'a> {
        let flags = Some(FLAGS.as_slice());
        Scan { batch: 1, seq_len: 7, channels: 2, split, flags, cu_seqlens: None, initial: Some(h0) }
    }

    #[test]
    fn forward_and_backward_match_the_golden_vectors() {
        let a: Vec<f64> = golden(1.0, 14).iter().map(|v| sigmoid(v + 1.0)).collect();
        let (b, dh, h0) = (golden(2.0, 14), golden(3.0, 14), golden(4.0, 2));
        let scan = golden_scan(2, &h0);
        let h = forward(&scan, &a, &b).h;
        check("fwd h", &h, [-5.622692749, 10.031383506, -1.366932025]);
        let grads = backward(&scan, &a, &h, &dh, None);
        check("fwd da", &grads.da, [-5.031197717, 6.498480874, 0.136525892]);
        check("fwd db", &grads.db, [-0.160787819, 9.588181713, -0.165604175]);
        check("fwd dh0", &grads.d_initial, [-0.458780160, 0.458780160, -0.417964154]);
        let scan = golden_scan(0, &h0);
        let h = forward(&scan, &a, &b).h;
        check("rev h", &h, [-6.827040501, 10.479408261, -0.919328526]);
        let grads = backward(&scan, &a, &h, &dh, None);
        check("rev da", &grads.da, [2.557370537, 5.755488146, 0.0]);
        check("rev db", &grads.db, [-4.767257206, 10.497691721, -1.455405585]);
        check("rev dh0", &grads.d_initial, [0.0, 0.0, 0.0]);
    }

    #[test]
    fn rg_lru_matches_the_golden_vector() {
        let scan = Scan { batch: 1, seq_len: 6, channels: 2, split: 2, flags: None, cu_seqlens: None, initial: None };
        let (x, r, i, lambda) = (golden(1.0, 12), golden(2.0, 12), golden(3.0, 12), golden(4.0, 2));
        let (a, b) = rg_lru(&scan, (&r, &i, &x), &lambda, true);
        check("rg_lru h", &forward(&scan, &a, &b).h, [-0.205096192, 3.371238035, 0.086338542]);
    }

    #[test]
    fn packed_sequences_equal_a_loop_over_sequences() {
        let (t, d) = (11, 3);
        let (a, b) = (golden(1.0, t * d), golden(2.0, t * d));
        let (h0, dh, d_last) = (golden(3.0, 5 * d), golden(4.0, t * d), golden(5.0, 5 * d));
        let cu = [0, 0, 4, 4, 9, 9];
        let packed = Scan {
            batch: 1,
            seq_len: t,
            channels: d,
            split: 2,
            flags: None,
            cu_seqlens: Some(&cu),
            initial: Some(&h0),
        };
        let all = forward(&packed, &a, &b);
        let grads = backward(&packed, &a, &all.h, &dh, Some(&d_last));
        for n in 0..5 {
            let (from, to) = (cu[n] as usize * d, cu[n + 1] as usize * d);
            let state = n * d..(n + 1) * d;
            let seq_len = (to - from) / d;
            let one = Scan { seq_len, cu_seqlens: None, initial: Some(&h0[state.clone()]), ..packed };
            let alone = forward(&one, &a[from..to], &b[from..to]);
            assert_eq!(alone.h, all.h[from..to], "sequence {n}");
            assert_eq!(alone.last, all.last[state.clone()], "sequence {n}");
            let alone = backward(&one, &a[from..to], &alone.h, &dh[from..to], Some(&d_last[state.clone()]));
            assert_eq!(alone.da, grads.da[from..to], "sequence {n}");
            assert_eq!(alone.d_initial, grads.d_initial[state], "sequence {n}");
        }
    }

    #[test]
    fn reverse_equals_flip_forward_flip() {
        let (t, d) = (7, 2);
        let flip = |v: &[f64]| v.chunks(d).rev().flatten().copied().collect::<Vec<_>>();
        let (a, b, h0) = (golden(1.0, t * d), golden(2.0, t * d), golden(3.0, d));
        let reverse = forward(&golden_scan(0, &h0), &a, &b);
        let flags: Vec<u8> = FLAGS.iter().rev().map(|f| f >> 1).collect();
        let flipped = forward(&Scan { flags: Some(&flags), ..golden_scan(2, &h0) }, &flip(&a), &flip(&b));
        assert_eq!(reverse.h, flip(&flipped.h));
        assert_eq!(reverse.last, flipped.last);
    }

    /// Central differences of a weighted sum of `h` against what a backward pass says, for every input.
    fn check_gradient(name: &str, input: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
        const STEP: f64 = 1e-6;
        for n in 0..input.len() {
            let mut moved = input.to_vec();
            moved[n] = input[n] + STEP;
            let up = loss(&moved);
            moved[n] = input[n] - STEP;
            let slope = (up - loss(&moved)) / (2.0 * STEP);
            assert!((slope - gradient[n]).abs() < 1e-7, "{name}[{n}]: {} is not {slope}", gradient[n]);
        }
    }

    fn dot(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn backward_agrees_with_central_differences() {
        let (h0, dh, d_last) = (golden(4.0, 2), golden(3.0, 14), golden(7.0, 2));
        let (a, b) = (golden(1.0, 14), golden(2.0, 14));
        let loss = |scan: &Scan, a: &[f64], b: &[f64]| {
            let out = forward(scan, a, b);
            dot(&out.h, &dh) + dot(&out.last, &d_last)
        };
        let scan = golden_scan(1, &h0);
        let h = forward(&scan, &a, &b).h;
        let grads = backward(&scan, &a, &h, &dh, Some(&d_last));
        check_gradient("a", &a, &grads.da, |a| loss(&scan, a, &b));
        check_gradient("b", &b, &grads.db, |b| loss(&scan, &a, b));
        check_gradient("h0", &h0, &grads.d_initial, |h0| loss(&golden_scan(1, h0), &a, &b));
    }

    #[test]
    fn producers_agree_with_central_differences() {
        let h0 = golden(4.0, 2);
        let scan = golden_scan(1, &h0);
        let (f, i, z, dh) = (golden(1.0, 14), golden(2.0, 14), golden(3.0, 14), golden(5.0, 14));
        for normalize in [false, true] {
            let loss = |f: &[f64], i: &[f64], z: &[f64]| {
                let (a, b) = gated_ssm(f, i, z, normalize);
                dot(&forward(&scan, &a, &b).h, &dh)
            };
            let (a, b) = gated_ssm(&f, &i, &z, normalize);
            let grads = backward(&scan, &a, &forward(&scan, &a, &b).h, &dh, None);
            let [df, di, dz] = gated_ssm_backward((&f, &i, &z), normalize, &grads.da, &grads.db);
            check_gradient("f", &f, &df, |f| loss(f, &i, &z));
            check_gradient("i", &i, &di, |i| loss(&f, i, &z));
            check_gradient("z", &z, &dz, |z| loss(&f, &i, z));
        }
        let lambda = golden(6.0, 2);
        for unit in [false, true] {
            let loss = |r: &[f64], lambda: &[f64]| {
                let (a, b) = rg_lru(&scan, (r, &i, &z), lambda, unit);
                dot(&forward(&scan, &a, &b).h, &dh)
            };
            let (a, b) = rg_lru(&scan, (&f, &i, &z), &lambda, unit);
            let grads = backward(&scan, &a, &forward(&scan, &a, &b).h, &dh, None);
            let ([dr, di, dx], d_lambda) = rg_lru_backward(&scan, (&f, &i, &z), &lambda, unit, &grads.da, &grads.db);
            check_gradient("r", &f, &dr, |r| loss(r, &lambda));
            check_gradient("lambda", &lambda, &d_lambda, |lambda| loss(&f, lambda));
            let with = |i: &[f64], x: &[f64]| {
                let (a, b) = rg_lru(&scan, (&f, i, x), &lambda, unit);
                dot(&forward(&scan, &a, &b).h, &dh)
            };
            check_gradient("i", &i, &di, |i| with(i, &z));
            check_gradient("x", &z, &dx, |x| with(&i, x));
        }
    }
}
