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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let norm = Norm { width: 2, weight: Some(&[1.0, 2.0]), bias: Some(&[0.0, 5.0]), eps: 0.0, center: true };
        assert_eq!(forward(&norm, &[3.0, 7.0]), [-1.0, 7.0]);
        let plain = Norm { weight: None, bias: None, center: false, ..norm };
        assert_eq!(forward(&plain, &[3.0, -21.0]), [0.2, -1.4]);
    }
}
