//! Steps and log decays from a projection: a softplus between bounds, and its product with a rate.

use crate::layers::softplus;

/// What a column's gate is made with.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a> {
    /// `[width]`, added to `x`; absent means 0.
    pub bias: Option<&'a [f64]>,
    /// `[width]`: `g` is `rate` times the step.
    pub rate: &'a [f64],
    /// 1, or -1 for `-log sigmoid`.
    pub sign: f64,
    /// Bounds of the step.
    pub bounds: (f64, f64),
}

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[rows,width]`: `clamp(softplus(sign (x + bias)))`.
    pub step: Vec<f64>,
    /// `[rows,width]`: `rate step`.
    pub g: Vec<f64>,
}

/// Both outputs of every row of `x`, `[rows,width]`.
pub fn forward(gate: &Gate<'_>, x: &[f64]) -> Forward {
    let width = gate.rate.len();
    let step = |(at, x): (usize, &f64)| {
        let shifted = gate.sign * (x + gate.bias.map_or(0.0, |bias| bias[at % width]));
        softplus(shifted).max(gate.bounds.0).min(gate.bounds.1)
    };
    let step: Vec<f64> = x.iter().enumerate().map(step).collect();
    let g = step.iter().enumerate().map(|(at, step)| gate.rate[at % width] * step).collect();
    Forward { step, g }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let gate = Gate { bias: Some(&[0.0, 1.0]), rate: &[-1.0, -2.0], sign: 1.0, bounds: (0.0, 1.0) };
        let made = forward(&gate, &[0.0, -1.0, 5.0, 9.0]);
        let half = 2_f64.ln();
        assert_eq!(made.step, [half, half, 1.0, 1.0]);
        assert_eq!(made.g, [-half, -2.0 * half, -1.0, -2.0]);
    }
}
