//! Pooling: the tokens of a sequence to one row.

/// What is pooled, and how.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// Elements of a row.
    pub width: usize,
    /// Where each sequence begins among the rows, and after the last where it ends.
    pub starts: &'a [usize],
    /// Whether each row counts; absent means that all do.
    pub mask: Option<&'a [bool]>,
    /// Rows of a sequence that are looked at: 1 for the first alone.
    pub limit: usize,
    /// Whether the result is divided by its Euclidean norm, or by 1e-12 where that is greater.
    pub normalize: bool,
}

/// `[sequences,width]`: the mean of the rows of `x` that count, zeros without any.
pub fn forward(pool: &Pool<'_>, x: &[f64]) -> Vec<f64> {
    let sequence = |bounds: &[usize]| {
        let rows = (bounds[0]..bounds[1]).take(pool.limit).filter(|row| pool.mask.is_none_or(|mask| mask[*row]));
        let mut mean = vec![0.0; pool.width];
        let mut count = 0.0;
        for row in rows {
            count += 1.0;
            crate::layers::add(&mut mean, &x[row * pool.width..][..pool.width]);
        }
        mean.iter_mut().for_each(|mean| *mean /= f64::max(count, 1.0));
        if pool.normalize {
            let norm = mean.iter().map(|mean| mean * mean).sum::<f64>().sqrt();
            let divisor = if norm < 1e-12 { 1e-12 } else { norm };
            mean.iter_mut().for_each(|mean| *mean /= divisor);
        }
        mean
    };
    pool.starts.windows(2).flat_map(sequence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let x = [1.0, 2.0, 5.0, 6.0, 9.0, -4.0];
        let pool = Pool { width: 2, starts: &[0, 2, 2, 3], mask: None, limit: 9, normalize: false };
        assert_eq!(forward(&pool, &x), [3.0, 4.0, 0.0, 0.0, 9.0, -4.0]);
        assert_eq!(forward(&Pool { limit: 1, ..pool }, &x), [1.0, 2.0, 0.0, 0.0, 9.0, -4.0]);
        assert_eq!(forward(&Pool { mask: Some(&[false, true, false]), ..pool }, &x), [5.0, 6.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(forward(&Pool { starts: &[0, 2], normalize: true, ..pool }, &x), [0.6, 0.8]);
    }
}
