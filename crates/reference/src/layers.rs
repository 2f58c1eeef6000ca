//! Pieces that models are made of, over one sequence: dense rows of one token each.

/// `x W^T`, plus `bias`: `x` is `[rows,inputs]`, `weight` `[outputs,inputs]`.
pub fn project(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    let row = |x: &[f64]| {
        let out = |(at, w): (usize, &[f64])| dot(x, w) + bias.map_or(0.0, |bias| bias[at]);
        weight.chunks_exact(inputs).enumerate().map(out).collect::<Vec<f64>>()
    };
    x.chunks_exact(inputs).flat_map(row).collect()
}

/// Each group of `group` elements divided by the root of its mean square, times `weight`, which repeats along `x`.
pub fn rms_norm(x: &[f64], group: usize, weight: &[f64], eps: f64) -> Vec<f64> {
    let part = |x: &[f64]| {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / group as f64;
        x.iter().map(|x| x / (mean_square + eps).sqrt()).collect::<Vec<f64>>()
    };
    let normed = x.chunks_exact(group).flat_map(part);
    normed.enumerate().map(|(at, x)| x * weight[at % weight.len()]).collect()
}

/// Each row less its mean, divided by its deviation, times `weight`, plus `bias`.
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let width = weight.len();
    let norm = crate::residual_norm::Norm { width, weight: Some(weight), bias: Some(bias), eps, center: true };
    crate::residual_norm::forward(&norm, x)
}

/// Each channel's tokens weighed by its taps: tap j of token t stands on token `t - before + j`; tokens outside count as zero.
pub fn convolution(x: &[f64], taps: &[f64], bias: Option<&[f64]>, channels: usize, before: usize) -> Vec<f64> {
    let (tokens, count) = (x.len() / channels, taps.len() / channels);
    let mut y = vec![0.0; x.len()];
    for t in 0..tokens {
        for c in 0..channels {
            let mut sum = bias.map_or(0.0, |bias| bias[c]);
            for j in 0..count {
                if t + j >= before && t + j - before < tokens {
                    sum += taps[c * count + j] * x[(t + j - before) * channels + c];
                }
            }
            y[t * channels + c] = sum;
        }
    }
    y
}

/// Columns `from..from + count` of rows of `width`.
pub fn columns(x: &[f64], width: usize, from: usize, count: usize) -> Vec<f64> {
    x.chunks_exact(width).flat_map(|row| &row[from..from + count]).copied().collect()
}

/// `a b`, element by element.
pub fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// `a += b`.
pub fn add(a: &mut [f64], b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `x sigmoid(x)` of every element.
pub fn silu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x * sigmoid(*x)).collect()
}

/// `log(1 + e^x)`.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `W_down (silu(W_gate x) W_up x)`: the gated unit that follows a mixer. `gate` and `up` are `[inner,width]`, `down` `[width,inner]`.
pub fn gated_unit(x: &[f64], gate: &[f64], up: &[f64], down: &[f64], width: usize) -> Vec<f64> {
    let inner = product(&silu(&project(x, gate, None, width)), &project(x, up, None, width));
    project(&inner, down, None, down.len() / width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_and_norms_by_hand() {
        assert_eq!(project(&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], Some(&[0.0, 1.0]), 2), [11.0, 18.0]);
        assert_eq!(rms_norm(&[3.0, -3.0, 2.0, 2.0], 2, &[1.0, 2.0], 0.0), [1.0, -2.0, 1.0, 2.0]);
        assert_eq!(layer_norm(&[3.0, 7.0], &[1.0, 2.0], &[0.0, 5.0], 0.0), [-1.0, 7.0]);
    }

    #[test]
    fn convolutions_by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(convolution(&x, &[100.0, 10.0, 1.0], None, 1, 2), [1.0, 12.0, 123.0, 234.0]);
        assert_eq!(convolution(&x, &[100.0, 10.0, 1.0], Some(&[0.5]), 1, 1), [12.5, 123.5, 234.5, 340.5]);
        assert_eq!(convolution(&x, &[10.0, 1.0, 0.0, 1.0], None, 2, 1), [1.0, 2.0, 13.0, 4.0]);
    }

    #[test]
    fn softplus_far_out() {
        assert_eq!(softplus(800.0), 800.0);
        assert!((softplus(-50.0) / (-50.0_f64).exp() - 1.0).abs() < 1e-12);
    }
}
