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
    /// Every function.
    pub const ALL: [Activation; 5] =
        [Activation::None, Activation::Gelu, Activation::Silu, Activation::Sigmoid, Activation::Relu];

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

    /// The derivative at `x`; relu has 0 at 0.
    pub fn slope(self, x: f64) -> f64 {
        let s = sigmoid(x);
        match self {
            Activation::None => 1.0,
            Activation::Gelu => {
                // Gelu is x sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3).
                let factor = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let s = sigmoid(factor * (x + 0.044715 * x.powi(3)));
                s + x * s * (1.0 - s) * factor * (1.0 + 3.0 * 0.044715 * x * x)
            }
            Activation::Silu => s * (1.0 + x * (1.0 - s)),
            Activation::Sigmoid => s * (1.0 - s),
            Activation::Relu if x.is_nan() => x,
            Activation::Relu if x > 0.0 => 1.0,
            Activation::Relu => 0.0,
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
    fn slopes_by_differences() {
        for activation in Activation::ALL {
            for x in [-7.3, -1.1, -0.2, 0.4, 2.9, 11.0] {
                let step = 1e-6;
                let slope = (activation.of(x + step) - activation.of(x - step)) / (2.0 * step);
                assert!((slope - activation.slope(x)).abs() < 1e-8, "{activation:?} at {x}");
            }
        }
    }

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
