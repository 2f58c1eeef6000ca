//! A scalar for each row and head times that head's part of the row.

/// `out[r,h,d] = (scale[r,h] + bias[h]) x[r,h,d] + old[r,h,d]`: `x` and `old` are `[rows,heads,dim]`, `scale` `[rows,heads]`, `bias`
/// `[heads]`; what is absent is 0.
pub fn forward(
    x: &[f64],
    heads: usize,
    dim: usize,
    scale: Option<&[f64]>,
    bias: Option<&[f64]>,
    old: Option<&[f64]>,
) -> Vec<f64> {
    let out = |(at, x): (usize, &f64)| {
        let head = at / dim;
        let factor = scale.map_or(0.0, |scale| scale[head]) + bias.map_or(0.0, |bias| bias[head % heads]);
        factor * x + old.map_or(0.0, |old| old[at])
    };
    x.iter().enumerate().map(out).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let scaled = forward(&x, 2, 2, Some(&[1.0, 10.0, 0.0, 2.0]), Some(&[0.0, 1.0]), None);
        assert_eq!(scaled, [1.0, 2.0, 33.0, 44.0, 0.0, 0.0, 21.0, 24.0]);
        assert_eq!(forward(&x[..2], 1, 2, None, Some(&[2.0]), Some(&[5.0, 6.0])), [7.0, 10.0]);
    }
}
