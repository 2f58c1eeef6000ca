//! Pointwise functions.

/// A pointwise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// Gelu in its tanh form.
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `max(x, 0)`, NaN kept.
    Relu,
}

impl Activation {
    /// The value at `x`.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Activation::None => x,
            Activation::Gelu => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::Silu => x * sigmoid(x),
            Activation::Sigmoid => sigmoid(x),
            Activation::Relu if x < 0.0 => 0.0,
            Activation::Relu => x,
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(Activation::Gelu.of(1.0), 0.841191990608307);
        close(Activation::Silu.of(-2.0), -2.0 / (1.0 + 2_f64.exp()));
        close(Activation::Sigmoid.of(0.0), 0.5);
        assert_eq!(Activation::Sigmoid.of(f64::NEG_INFINITY), 0.0);
        assert!(Activation::Relu.of(f64::NAN).is_nan());
        assert!(Activation::Silu.of(f64::NEG_INFINITY).is_nan());
    }
}
