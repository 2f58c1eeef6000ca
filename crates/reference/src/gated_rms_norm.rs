//! Gated root-mean-square norm over groups of columns, forward and backward.

use crate::activation::Activation;

/// What the norm runs over.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Elements of a row.
    pub width: usize,
    /// Elements of a group; divides `width`.
    pub group: usize,
    /// `[width]`, 1 where absent.
    pub weight: Option<&'a [f64]>,
    /// Added to the mean of squares.
    pub eps: f64,
    /// The gate: silu or sigmoid of `z`.
    pub gate: Activation,
    /// `norm(y) w gate(z)`; otherwise `norm(y gate(z)) w`.
    pub norm_before_gate: bool,
}

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[rows,width]`.
    pub out: Vec<f64>,
    /// `[rows,groups]`.
    pub rstd: Vec<f64>,
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[rows,width]`.
    pub dy: Vec<f64>,
    /// `[rows,width]`.
    pub dz: Vec<f64>,
    /// `[width]`.
    pub dweight: Vec<f64>,
}

impl Norm<'_> {
    fn weight(&self, i: usize) -> f64 {
        self.weight.map_or(1.0, |w| w[i % self.width])
    }

    /// What is normed at each element: `y` or `y gate(z)`.
    fn normed(&self, y: &[f64], z: &[f64]) -> Vec<f64> {
        let gate = |z: f64| if self.norm_before_gate { 1.0 } else { self.gate.of(z) };
        y.iter().zip(z).map(|(y, z)| y * gate(*z)).collect()
    }

    fn rstd(&self, normed: &[f64]) -> Vec<f64> {
        let of = |group: &[f64]| 1.0 / (group.iter().map(|p| p * p).sum::<f64>() / self.group as f64 + self.eps).sqrt();
        normed.chunks_exact(self.group.max(1)).map(of).collect()
    }
}

/// Norms each group; `y` and `z` are `[rows,width]`.
pub fn forward(norm: &Norm<'_>, y: &[f64], z: &[f64]) -> Forward {
    let normed = norm.normed(y, z);
    let rstd = norm.rstd(&normed);
    let after = |i: usize| if norm.norm_before_gate { norm.gate.of(z[i]) } else { 1.0 };
    let out = (0..y.len()).map(|i| normed[i] * rstd[i / norm.group] * norm.weight(i) * after(i)).collect();
    Forward { out, rstd }
}

/// The gradient: with `x` the normed values times `rstd` and `g` the gradient by them, that by what is normed is
/// `rstd (g - x mean(g x))` over each group.
pub fn backward(norm: &Norm<'_>, y: &[f64], z: &[f64], dout: &[f64]) -> Backward {
    let normed = norm.normed(y, z);
    let rstd = norm.rstd(&normed);
    let mut gradient = Backward { dy: vec![0.0; y.len()], dz: vec![0.0; y.len()], dweight: vec![0.0; norm.width] };
    for (n, rstd) in rstd.iter().enumerate() {
        let columns = n * norm.group..(n + 1) * norm.group;
        let gate_after = |i: usize| if norm.norm_before_gate { norm.gate.of(z[i]) } else { 1.0 };
        let g = |i: usize| dout[i] * norm.weight(i) * gate_after(i);
        let mean = columns.clone().map(|i| g(i) * normed[i] * rstd).sum::<f64>() / norm.group as f64;
        for i in columns {
            let x = normed[i] * rstd;
            let dnormed = rstd * (g(i) - x * mean);
            gradient.dweight[i % norm.width] += dout[i] * x * gate_after(i);
            let slope = norm.gate.slope(z[i]);
            if norm.norm_before_gate {
                gradient.dy[i] = dnormed;
                gradient.dz[i] = dout[i] * x * norm.weight(i) * slope;
            } else {
                gradient.dy[i] = dnormed * norm.gate.of(z[i]);
                gradient.dz[i] = dnormed * y[i] * slope;
            }
        }
    }
    gradient
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let norm = Norm {
            width: 4,
            group: 2,
            weight: Some(&[1.0, 2.0, 3.0, 4.0]),
            eps: 0.0,
            gate: Activation::Sigmoid,
            norm_before_gate: true,
        };
        // Sigmoid of 0 is a half: the mean does not see it before the gate, and cancels it after.
        let (y, z) = ([3.0, 4.0, 1.0, 1.0], [0.0; 4]);
        let r = 1.0 / 12.5_f64.sqrt();
        let before = forward(&norm, &y, &z);
        assert_eq!(before.rstd, [r, 1.0]);
        let close =
            |a: &[f64], b: [f64; 4]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14), "{a:?} {b:?}");
        close(&before.out, [1.5 * r, 4.0 * r, 1.5, 2.0]);
        let after = forward(&Norm { norm_before_gate: false, ..norm }, &y, &z);
        close(&after.out, [3.0 * r, 8.0 * r, 3.0, 4.0]);
    }

    #[test]
    fn gradient_by_differences() {
        let wave = |phase: f64, n: usize| -> Vec<f64> { (0..n).map(|i| (phase + 1.3 * i as f64).sin()).collect() };
        let (rows, width) = (3, 6);
        let inputs = [wave(1.0, rows * width), wave(2.0, rows * width), wave(3.0, width)];
        let dout = wave(4.0, rows * width);
        for (group, gate) in [(6, Activation::Silu), (3, Activation::Silu), (2, Activation::Sigmoid)] {
            for norm_before_gate in [true, false] {
                let norm = Norm { width, group, weight: None, eps: 1e-3, gate, norm_before_gate };
                let loss = |inputs: &[Vec<f64>; 3]| -> f64 {
                    let norm = Norm { weight: Some(&inputs[2]), ..norm };
                    forward(&norm, &inputs[0], &inputs[1]).out.iter().zip(&dout).map(|(o, d)| o * d).sum()
                };
                let found = backward(&Norm { weight: Some(&inputs[2]), ..norm }, &inputs[0], &inputs[1], &dout);
                let step = 1e-6;
                for (which, by) in [found.dy, found.dz, found.dweight].iter().enumerate() {
                    for i in 0..by.len() {
                        let (mut up, mut down) = (inputs.clone(), inputs.clone());
                        up[which][i] += step;
                        down[which][i] -= step;
                        let slope = (loss(&up) - loss(&down)) / (2.0 * step);
                        assert!((slope - by[i]).abs() < 1e-7, "input {which}, element {i}: {slope} {}", by[i]);
                    }
                }
            }
        }
    }
}
