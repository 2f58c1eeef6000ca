//! A residual sum and its norm: root-mean-square or layer norm.

/// What a row is normed with.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Elements of a row.
    pub width: usize,
    /// `[width]`; absent means 1.
    pub weight: Option<&'a [f64]>,
    /// `[width]`; absent means 0.
    pub bias: Option<&'a [f64]>,
    /// Added to the mean of squares.
    pub eps: f64,
    /// Whether the mean is subtracted first.
    pub center: bool,
}

/// `(s - mean(s)) / sqrt(mean((s - mean(s))^2) + eps) weight + bias` of every row of `s`; the mean counts as 0 without `center`.
pub fn forward(norm: &Norm<'_>, s: &[f64]) -> Vec<f64> {
    let width = norm.width as f64;
    let row = |row: &[f64]| {
        let mean = if norm.center { row.iter().sum::<f64>() / width } else { 0.0 };
        let variance = row.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / width;
        let rstd = 1.0 / (variance + norm.eps).sqrt();
        let out = |(d, s): (usize, &f64)| {
            (s - mean) * rstd * norm.weight.map_or(1.0, |w| w[d]) + norm.bias.map_or(0.0, |b| b[d])
        };
        row.iter().enumerate().map(out).collect::<Vec<f64>>()
    };
    s.chunks_exact(norm.width.max(1)).flat_map(row).collect()
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[rows,width]`.
    pub ds: Vec<f64>,
    /// `[width]`.
    pub dweight: Vec<f64>,
    /// `[width]`.
    pub dbias: Vec<f64>,
}

/// The gradient, given that of the normed rows: with `y = (s - mean(s)) rstd` and `g = dout weight`, `ds = rstd (g - mean(g) - y mean(g y))`,
/// without `mean(g)` where nothing is centred.
pub fn backward(norm: &Norm<'_>, s: &[f64], dout: &[f64]) -> Backward {
    let width = norm.width;
    let mean_of = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / width as f64;
    let mut backward = Backward { ds: Vec::with_capacity(s.len()), dweight: vec![0.0; width], dbias: vec![0.0; width] };
    for (s, dout) in s.chunks_exact(width.max(1)).zip(dout.chunks_exact(width.max(1))) {
        let mean = if norm.center { mean_of(&mut s.iter().copied()) } else { 0.0 };
        let rstd = 1.0 / (mean_of(&mut s.iter().map(|s| (s - mean) * (s - mean))) + norm.eps).sqrt();
        let y: Vec<f64> = s.iter().map(|s| (s - mean) * rstd).collect();
        let g: Vec<f64> = (0..width).map(|d| dout[d] * norm.weight.map_or(1.0, |w| w[d])).collect();
        let mean_g = if norm.center { mean_of(&mut g.iter().copied()) } else { 0.0 };
        let mean_gy = mean_of(&mut g.iter().zip(&y).map(|(g, y)| g * y));
        for d in 0..width {
            backward.ds.push(rstd * (g[d] - mean_g - y[d] * mean_gy));
            backward.dweight[d] += dout[d] * y[d];
            backward.dbias[d] += dout[d];
        }
    }
    backward
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_by_differences() {
        let (s, dout) = ([0.3, -1.2, 0.7, 2.0, 0.1, -0.4], [1.0, 2.0, -1.0, 0.5, 0.3, 0.9]);
        let (weight, bias) = ([1.5, -0.5, 0.8], [0.1, 0.2, -0.3]);
        for center in [false, true] {
            let loss = |s: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
                let norm = Norm { width: 3, weight: Some(weight), bias: Some(bias), eps: 1e-3, center };
                forward(&norm, s).iter().zip(dout).map(|(o, d)| o * d).sum()
            };
            let norm = Norm { width: 3, weight: Some(&weight), bias: Some(&bias), eps: 1e-3, center };
            let gradient = backward(&norm, &s, &dout);
            let slope = |values: &[f64], at: usize, loss: &dyn Fn(&[f64]) -> f64| {
                let (mut up, mut down) = (values.to_vec(), values.to_vec());
                up[at] += 1e-6;
                down[at] -= 1e-6;
                (loss(&up) - loss(&down)) / 2e-6
            };
            for at in 0..6 {
                assert!((slope(&s, at, &|s| loss(s, &weight, &bias)) - gradient.ds[at]).abs() < 1e-8);
            }
            for at in 0..3 {
                assert!((slope(&weight, at, &|w| loss(&s, w, &bias)) - gradient.dweight[at]).abs() < 1e-8);
                assert!((slope(&bias, at, &|b| loss(&s, &weight, b)) - gradient.dbias[at]).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn by_hand() {
        let norm = Norm { width: 2, weight: Some(&[1.0, 2.0]), bias: Some(&[0.0, 5.0]), eps: 0.0, center: true };
        assert_eq!(forward(&norm, &[3.0, 7.0]), [-1.0, 7.0]);
        let plain = Norm { weight: None, bias: None, center: false, ..norm };
        assert_eq!(forward(&plain, &[3.0, -21.0]), [0.2, -1.4]);
    }
}
