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
    /// Gelu with the error function.
    GeluErf,
}

impl Activation {
    /// Every function.
    pub const ALL: [Activation; 6] = [
        Activation::None,
        Activation::Gelu,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::Relu,
        Activation::GeluErf,
    ];

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
            Activation::GeluErf => x * normal(x),
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
            Activation::GeluErf => normal(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt(),
        }
    }
}

/// The normal distribution's function, `(1 + erf(x / sqrt(2))) / 2`, relative to 1e-11 on both sides.
fn normal(x: f64) -> f64 {
    let z = x.abs() / 2.0_f64.sqrt();
    // Of one tail: (1 - erf(z)) / 2.
    let tail = if z < 3.0 {
        // erf(z) = 2 / sqrt(pi) e^(-z^2) (z + 2 z^3 / 3 + 4 z^5 / (3 5) + ..): no term is negative.
        let (mut term, mut sum) = (z, 0.0);
        for n in 0..80 {
            sum += term;
            term *= 2.0 * z * z / f64::from(2 * n + 3);
        }
        0.5 - sum * (-z * z).exp() / std::f64::consts::PI.sqrt()
    } else {
        // erfc(z) = e^(-z^2) / sqrt(pi) / (z + (1/2) / (z + (2/2) / (z + (3/2) / ..))).
        let fraction = (1..=80).rev().fold(z, |below, n| z + 0.5 * f64::from(n) / below);
        0.5 * (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    if x < 0.0 { tail } else { 1.0 - tail }
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
        close(Activation::GeluErf.of(1.0), 0.8413447460685429);
        close(Activation::GeluErf.of(-0.5), -0.15426876936299344);
        // Both ways of computing the tail, where they meet and far out.
        for (x, tail) in [(-4.2426, 1.10472518369536e-5), (-4.2427, 1.10423286925755e-5), (-10.0, 7.61985302416053e-24)]
        {
            assert!((Activation::GeluErf.of(x) / x / tail - 1.0).abs() < 1e-10, "{x}");
        }
        close(Activation::Silu.of(-2.0), -2.0 / (1.0 + 2_f64.exp()));
        close(Activation::Sigmoid.of(0.0), 0.5);
        assert_eq!(Activation::Sigmoid.of(f64::NEG_INFINITY), 0.0);
        assert!(Activation::Relu.of(f64::NAN).is_nan());
        assert!(Activation::Silu.of(f64::NEG_INFINITY).is_nan());
        assert!(Activation::GeluErf.of(f64::NEG_INFINITY).is_nan() && Activation::GeluErf.of(f64::NAN).is_nan());
        assert_eq!(Activation::GeluErf.of(f64::INFINITY), f64::INFINITY);
    }
}
