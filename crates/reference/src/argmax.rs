//! Argmax over rows.

/// The first column of each row of `width` elements that holds its greatest element. NaN is greater than everything else.
pub fn forward(x: &[f64], width: usize) -> Vec<usize> {
    x.chunks_exact(width.max(1))
        .map(|row| {
            let mut best = 0;
            for (d, x) in row.iter().enumerate() {
                if !row[best].is_nan() && (x.is_nan() || *x > row[best]) {
                    best = d;
                }
            }
            best
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let nan = f64::NAN;
        assert_eq!(forward(&[1.0, 3.0, 3.0, -1.0, -1.0, -2.0, nan, 9.0, nan, -0.0, 0.0, -1.0], 3), [1, 0, 0, 0]);
        assert_eq!(forward(&[f64::NEG_INFINITY; 4], 2), [0, 0]);
    }
}
