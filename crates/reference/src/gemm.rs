//! Matrix product: `C[i,j] = act(bias[j] + sum over l of A[i,l] op(B)[l,j])`.

use crate::activation::Activation;

/// Sizes, and how `B` lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `C`.
    pub n: usize,
    /// Columns of `A`.
    pub k: usize,
    /// Whether `B` is `[n,k]`, and not `[k,n]`.
    pub transposed: bool,
}

/// `C`, `[m,n]` row-major. `bias` has `n` elements.
pub fn forward(shape: &Shape, a: &[f64], b: &[f64], bias: Option<&[f64]>, activation: Activation) -> Vec<f64> {
    let Shape { m, n, k, transposed } = *shape;
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let right = |l: usize| if transposed { b[j * k + l] } else { b[l * n + j] };
            let sum: f64 = (0..k).map(|l| a[i * k + l] * right(l)).sum();
            c.push(activation.of(sum + bias.map_or(0.0, |bias| bias[j])));
        }
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_by_hand() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let plain = Shape { m: 2, n: 2, k: 3, transposed: false };
        let c = forward(&plain, &a, &[1.0, 0.0, 0.0, 1.0, 1.0, -1.0], Some(&[0.5, 0.0]), Activation::None);
        assert_eq!(c, [4.5, -1.0, 10.5, -1.0]);
        let linear = Shape { transposed: true, ..plain };
        assert_eq!(
            forward(&linear, &a, &[1.0, 0.0, 1.0, 0.0, 1.0, -1.0], None, Activation::Relu),
            [4.0, 0.0, 10.0, 0.0]
        );
    }
}
