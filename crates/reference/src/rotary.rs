//! Rotary positions and their cosine form, on a line or a grid, forward and backward.

/// Which elements an angle turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `i` and `i + r/2`.
    Half,
    /// `2i` and `2i + 1`.
    Interleaved,
    /// `x` becomes `[x cos, x sin]`.
    Cosine,
}

/// What is turned, and how far.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Rows.
    pub batch: usize,
    /// Tokens of a row.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Which elements turn together.
    pub style: Style,
    /// Angle `i` is `position base^(-2 i / theta_dim)`.
    pub base: f64,
    /// The first so many elements turn.
    pub rotary_dim: usize,
    /// See `base`.
    pub theta_dim: usize,
    /// Extents of a grid, the slowest axis first; empty: positions on a line.
    pub extents: &'a [usize],
    /// Tokens before the grid.
    pub prefix: usize,
    /// `[B,T]`.
    pub positions: Option<&'a [i32]>,
    /// `[N+1]`: where the sequences of the only row begin, and the end. Without, each row is a sequence.
    pub starts: Option<&'a [i32]>,
    /// Position of a sequence's first token, where positions are not given.
    pub offset: i32,
    /// Angles of position 1 on an axis, instead of the powers of `base`.
    pub frequencies: Option<&'a [f64]>,
}

impl Rotary<'_> {
    fn position(&self, b: usize, t: usize) -> i64 {
        if let Some(positions) = self.positions {
            return i64::from(positions[b * self.tokens + t]);
        }
        let start = self.starts.and_then(|s| s.iter().rev().find(|s| **s as usize <= t)).map_or(0, |s| *s as usize);
        (t - start) as i64 + i64::from(self.offset)
    }

    /// Angles of a row: `r/2`, or `d` of the cosine form.
    fn turned(&self) -> usize {
        if self.style == Style::Cosine { self.rotary_dim } else { self.rotary_dim / 2 }
    }

    /// Angle `i` of a token.
    fn angle(&self, position: i64, i: usize) -> f64 {
        let power = |i: usize| self.base.powf(-2.0 * i as f64 / self.theta_dim as f64);
        let theta = |i: usize| self.frequencies.map_or_else(|| power(i), |frequencies| frequencies[i]);
        if self.extents.is_empty() {
            return position as f64 * theta(i);
        }
        let index = position - self.prefix as i64;
        if index < 0 {
            return 0.0;
        }
        let each = self.turned().div_ceil(self.extents.len());
        let (axis, i) = (i / each, i % each);
        // Row-major: what the later axes leave, and of that what the earlier ones leave.
        let mut rest = index as u64;
        for later in (axis + 1..self.extents.len()).rev() {
            rest /= self.extents[later] as u64;
        }
        let at = if axis == 0 { rest } else { rest % self.extents[axis] as u64 };
        at as f64 * theta(i)
    }

    /// Each row as a linear map: calls with elements of the result and of `x`, and the factor between.
    fn each(&self, mut with: impl FnMut(usize, usize, f64)) {
        let (d, turned) = (self.head_dim, self.turned());
        let wide = if self.style == Style::Cosine { 2 * d } else { d };
        for b in 0..self.batch {
            for t in 0..self.tokens {
                let position = self.position(b, t);
                for h in 0..self.heads {
                    let row = (b * self.tokens + t) * self.heads + h;
                    let mut entry = |out: usize, x: usize, factor: f64| with(row * wide + out, row * d + x, factor);
                    for i in 0..turned {
                        let (sin, cos) = self.angle(position, i).sin_cos();
                        let (first, second) = match self.style {
                            Style::Half => (i, i + turned),
                            Style::Interleaved => (2 * i, 2 * i + 1),
                            Style::Cosine => {
                                entry(i, i, cos);
                                entry(d + i, i, sin);
                                continue;
                            }
                        };
                        entry(first, first, cos);
                        entry(first, second, -sin);
                        entry(second, second, cos);
                        entry(second, first, sin);
                    }
                    (self.rotary_dim..d).for_each(|i| entry(i, i, 1.0));
                }
            }
        }
    }
}

/// `[B,T,H,D]` turned; twice as wide in the cosine form.
pub fn forward(rotary: &Rotary<'_>, x: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; if rotary.style == Style::Cosine { 2 * x.len() } else { x.len() }];
    rotary.each(|to, from, factor| out[to] += factor * x[from]);
    out
}

/// The gradient by `x`: the same maps the other way.
pub fn backward(rotary: &Rotary<'_>, dout: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; if rotary.style == Style::Cosine { dout.len() / 2 } else { dout.len() }];
    rotary.each(|from, to, factor| dx[to] += factor * dout[from]);
    dx
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROTARY: Rotary<'_> = Rotary {
        batch: 1,
        tokens: 3,
        heads: 1,
        head_dim: 4,
        style: Style::Half,
        base: 100.0,
        rotary_dim: 4,
        theta_dim: 4,
        extents: &[],
        prefix: 0,
        positions: None,
        starts: None,
        offset: 0,
        frequencies: None,
    };

    fn close(a: &[f64], b: &[f64]) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
    }

    #[test]
    fn by_hand() {
        // Frequencies 1 and 1/10; token 2.
        let x = [1.0, 0.0, 0.0, 2.0];
        let all = [x, x, x].concat();
        let (s, c, s10, c10) = (2_f64.sin(), 2_f64.cos(), 0.2_f64.sin(), 0.2_f64.cos());
        close(&forward(&ROTARY, &all)[8..], &[c, -2.0 * s10, s, 2.0 * c10]);
        let interleaved = Rotary { style: Style::Interleaved, ..ROTARY };
        close(&forward(&interleaved, &all)[8..], &[c, s, -2.0 * s10, 2.0 * c10]);
        let partly = Rotary { rotary_dim: 2, ..ROTARY };
        close(&forward(&partly, &all)[8..], &[c, s, 0.0, 2.0]);
        let cosine = Rotary { style: Style::Cosine, head_dim: 2, rotary_dim: 2, ..ROTARY };
        close(&forward(&cosine, &[0.0, 0.0, 0.0, 0.0, 1.0, 3.0])[8..], &[c, 3.0 * c10, s, 3.0 * s10]);
        let cut = Rotary { starts: Some(&[0, 2, 3]), offset: 7, ..ROTARY };
        let given = Rotary { frequencies: Some(&[0.5, 0.0]), ..ROTARY };
        close(&forward(&given, &all)[8..], &[1_f64.cos(), 0.0, 1_f64.sin(), 2.0]);
        close(&forward(&cut, &all)[8..], &forward(&Rotary { positions: Some(&[0, 0, 7]), ..ROTARY }, &all)[8..]);
    }

    #[test]
    fn a_grid_counts_row_by_row_after_its_prefix() {
        // Angles: two of axis 0, two of axis 1, with the same frequencies. Token 6 is cell 5 of 2 x 3: row 1, column 2.
        let grid = Rotary { style: Style::Cosine, tokens: 7, theta_dim: 4, extents: &[2, 3], prefix: 1, ..ROTARY };
        let out = forward(&grid, &[1.0; 28]);
        close(&out[..8], &[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        close(&out[48..52], &[1_f64.cos(), 0.1_f64.cos(), 2_f64.cos(), 0.2_f64.cos()]);
    }

    #[test]
    fn products_see_only_the_distance() {
        let wave = |phase: f64| -> Vec<f64> { (0..4).map(|i| (phase + 1.3 * f64::from(i)).sin()).collect() };
        for style in [Style::Half, Style::Interleaved, Style::Cosine] {
            let product = |p: i32, q: i32| -> f64 {
                let turn =
                    |x: &[f64], at: i32| forward(&Rotary { tokens: 1, style, positions: Some(&[at]), ..ROTARY }, x);
                turn(&wave(1.0), p).iter().zip(turn(&wave(2.0), q)).map(|(a, b)| a * b).sum()
            };
            assert!((product(3, 1) - product(103, 101)).abs() < 1e-12, "{style:?}");
        }
    }

    #[test]
    fn gradient_by_differences() {
        let wave = |phase: f64, n: usize| -> Vec<f64> { (0..n).map(|i| (phase + 1.3 * i as f64).sin()).collect() };
        for (style, rotary_dim) in [(Style::Half, 4), (Style::Interleaved, 2), (Style::Cosine, 4)] {
            let rotary = Rotary { style, rotary_dim, heads: 2, batch: 2, ..ROTARY };
            let x = wave(1.0, 48);
            let out = forward(&rotary, &x);
            let dout = wave(2.0, out.len());
            let dx = backward(&rotary, &dout);
            let loss = |x: &[f64]| -> f64 { forward(&rotary, x).iter().zip(&dout).map(|(o, d)| o * d).sum() };
            for i in 0..x.len() {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-4;
                down[i] -= 1e-4;
                assert!(((loss(&up) - loss(&down)) / 2e-4 - dx[i]).abs() < 1e-9);
            }
        }
    }
}
