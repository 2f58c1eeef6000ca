//! Root-mean-square norm over rows.

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[rows,width]`: `x rstd weight`.
    pub out: Vec<f64>,
    /// `[rows]`: `1 / sqrt(mean(x^2) + eps)`.
    pub rstd: Vec<f64>,
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[rows,width]`.
    pub dx: Vec<f64>,
    /// `[width]`.
    pub dweight: Vec<f64>,
}

/// Normalises each row of `width` elements; `weight` is 1 where absent.
pub fn forward(x: &[f64], width: usize, weight: Option<&[f64]>, eps: f64) -> Forward {
    let mut forward = Forward { out: Vec::with_capacity(x.len()), rstd: Vec::new() };
    for row in x.chunks_exact(width.max(1)) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let rstd = 1.0 / (mean + eps).sqrt();
        forward.rstd.push(rstd);
        forward.out.extend(row.iter().enumerate().map(|(d, x)| x * rstd * weight.map_or(1.0, |w| w[d])));
    }
    forward
}

/// The gradient: with `y = x rstd` and `g = dout weight`, `dx = rstd (g - y mean(g y))` and `dweight = sum over rows of dout y`.
pub fn backward(x: &[f64], width: usize, weight: Option<&[f64]>, eps: f64, dout: &[f64]) -> Backward {
    let mut backward = Backward { dx: Vec::with_capacity(x.len()), dweight: vec![0.0; width] };
    for (row, dout) in x.chunks_exact(width.max(1)).zip(dout.chunks_exact(width.max(1))) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let rstd = 1.0 / (mean + eps).sqrt();
        let g: Vec<f64> = (0..width).map(|d| dout[d] * weight.map_or(1.0, |w| w[d])).collect();
        let mean_gy = (0..width).map(|d| g[d] * row[d] * rstd).sum::<f64>() / width as f64;
        for d in 0..width {
            backward.dx.push(rstd * (g[d] - row[d] * rstd * mean_gy));
            backward.dweight[d] += dout[d] * row[d] * rstd;
        }
    }
    backward
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let norm = forward(&[3.0, 4.0], 2, Some(&[1.0, 2.0]), 0.0);
        let rstd = 1.0 / 12.5_f64.sqrt();
        assert_eq!(norm.rstd, [rstd]);
        assert_eq!(norm.out, [3.0 * rstd, 8.0 * rstd]);
    }

    #[test]
    fn gradient_by_differences() {
        let (x, weight, dout) = ([0.3, -1.2, 0.7, 2.0, 0.1, -0.4], [1.5, -0.5, 0.8], [1.0, 2.0, -1.0, 0.5, 0.3, 0.9]);
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            forward(x, 3, Some(w), 1e-3).out.iter().zip(dout).map(|(o, d)| o * d).sum()
        };
        let gradient = backward(&x, 3, Some(&weight), 1e-3, &dout);
        let step = 1e-6;
        for i in 0..x.len() {
            let (mut up, mut down) = (x, x);
            up[i] += step;
            down[i] -= step;
            let slope = (loss(&up, &weight) - loss(&down, &weight)) / (2.0 * step);
            assert!((slope - gradient.dx[i]).abs() < 1e-8);
        }
        for d in 0..3 {
            let (mut up, mut down) = (weight, weight);
            up[d] += step;
            down[d] -= step;
            let slope = (loss(&x, &up) - loss(&x, &down)) / (2.0 * step);
            assert!((slope - gradient.dweight[d]).abs() < 1e-8);
        }
    }
}
