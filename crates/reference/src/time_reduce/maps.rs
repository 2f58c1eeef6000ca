//! Feature maps and their derivatives.

/// Greatest `K` of [`Map::Taylor`].
pub const TAYLOR_DIM: usize = 16;

/// Features of keys and queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// `x`.
    Identity,
    /// `x + 1` above 0, else `e^x`.
    EluPlusOne,
    /// `max(x, 0)`, with derivative 0 at 0.
    Relu,
    /// `e^x`.
    Exp,
    /// Of keys, entry by entry, the softmax over the tokens that are summed; queries as they are.
    Softmax,
    /// `[1, y_a, y_a y_b c_ab for a <= b]` with `y = x K^(-1/4)`, `c = 1 / sqrt 2` where `a = b` and else 1, and `y = 0` from `K` to
    /// [`TAYLOR_DIM`]: the inner product of two tokens' features is `1 + s + s^2 / 2` with `s = x . x' / sqrt K`.
    Taylor,
}

impl Map {
    /// Features of `K` entries.
    pub fn features(self, key_dim: usize) -> usize {
        match self {
            Map::Taylor => 1 + TAYLOR_DIM + TAYLOR_DIM * (TAYLOR_DIM + 1) / 2,
            _ => key_dim,
        }
    }

    /// Features of one token; for [`Map::Softmax`] of a query.
    pub fn of(self, x: &[f64]) -> Vec<f64> {
        let each = |f: fn(f64) -> f64| x.iter().map(|x| f(*x)).collect();
        match self {
            Map::Identity | Map::Softmax => x.to_vec(),
            Map::EluPlusOne => each(|x| if x > 0.0 { x + 1.0 } else { x.exp() }),
            Map::Relu => each(|x| x.max(0.0)),
            Map::Exp => each(f64::exp),
            Map::Taylor => {
                let y = scaled(x);
                let mut features = vec![1.0];
                features.extend_from_slice(&y);
                for a in 0..TAYLOR_DIM {
                    for b in a..TAYLOR_DIM {
                        features.push(y[a] * y[b] * coefficient(a, b));
                    }
                }
                features
            }
        }
    }

    /// Adjoint of the token from that of its features.
    pub(super) fn adjoint(self, x: &[f64], d: &[f64]) -> Vec<f64> {
        let each = |f: fn(f64) -> f64| x.iter().zip(d).map(|(x, d)| f(*x) * d).collect();
        match self {
            Map::Identity | Map::Softmax => d.to_vec(),
            Map::EluPlusOne => each(|x| if x > 0.0 { 1.0 } else { x.exp() }),
            Map::Relu => each(|x| f64::from(x > 0.0)),
            Map::Exp => each(f64::exp),
            Map::Taylor => {
                let y = scaled(x);
                let mut dy: Vec<f64> = d[1..=TAYLOR_DIM].to_vec();
                let mut at = 1 + TAYLOR_DIM;
                for a in 0..TAYLOR_DIM {
                    for b in a..TAYLOR_DIM {
                        let d = d[at] * coefficient(a, b);
                        dy[a] += d * y[b];
                        dy[b] += d * y[a];
                        at += 1;
                    }
                }
                dy.iter().take(x.len()).map(|d| d * (x.len() as f64).powf(-0.25)).collect()
            }
        }
    }
}

fn scaled(x: &[f64]) -> Vec<f64> {
    let root = (x.len() as f64).powf(-0.25);
    (0..TAYLOR_DIM).map(|i| x.get(i).map_or(0.0, |x| x * root)).collect()
}

fn coefficient(a: usize, b: usize) -> f64 {
    if a == b { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 }
}
