//! Gate: `out = act(x) y`, element by element.

use crate::activation::Activation;

/// `act(x) y`.
pub fn forward(x: &[f64], y: &[f64], activation: Activation) -> Vec<f64> {
    x.iter().zip(y).map(|(&x, y)| activation.of(x) * y).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(forward(&[0.0, -1.0], &[4.0, 4.0], Activation::Sigmoid)[0], 2.0);
        assert_eq!(forward(&[2.0, -1.0], &[4.0, 4.0], Activation::Relu), [8.0, 0.0]);
    }
}
