//! Cross-entropy of logits against labels.

/// The label of a row that does not count.
pub const IGNORED: i32 = -100;

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[rows]`: 0 for an ignored row.
    pub loss: Vec<f64>,
    /// `[rows]`: log of the sum of exponentials.
    pub lse: Vec<f64>,
    /// `[rows,classes]`: `scale (softmax - onehot)`, 0 in an ignored row.
    pub dlogits: Vec<f64>,
}

/// `loss[r] = lse[r] - x[r,label[r]]` and its gradient times `scale`. A label that is no class makes the row ignored.
pub fn forward(logits: &[f64], classes: usize, labels: &[i32], scale: f64) -> Forward {
    let mut forward = Forward { loss: Vec::new(), lse: Vec::new(), dlogits: Vec::new() };
    for (row, label) in logits.chunks_exact(classes).zip(labels) {
        let max = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(*x));
        let base = if max == f64::NEG_INFINITY { 0.0 } else { max };
        let sum: f64 = row.iter().map(|x| (x - base).exp()).sum();
        let lse = base + sum.ln();
        forward.lse.push(lse);
        match usize::try_from(*label).ok().filter(|label| *label < classes) {
            None => {
                forward.loss.push(0.0);
                forward.dlogits.extend(row.iter().map(|_| 0.0));
            }
            Some(label) => {
                forward.loss.push(lse - row[label]);
                let gradient = |(c, x): (usize, &f64)| scale * ((x - lse).exp() - f64::from(u8::from(c == label)));
                forward.dlogits.extend(row.iter().enumerate().map(gradient));
            }
        }
    }
    forward
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let out = forward(&[0.0, 0.0, 5.0, 7.0], 2, &[1, IGNORED], 2.0);
        assert_eq!(out.loss, [2_f64.ln(), 0.0]);
        assert_eq!(out.dlogits, [1.0, -1.0, 0.0, 0.0]);
    }

    #[test]
    fn gradient_by_differences() {
        let (x, label, step) = ([0.3, -1.0, 2.0, 0.7], [2], 1e-6);
        let gradient = forward(&x, 4, &label, 1.0).dlogits;
        for i in 0..4 {
            let (mut up, mut down) = (x, x);
            up[i] += step;
            down[i] -= step;
            let slope = (forward(&up, 4, &label, 1.0).loss[0] - forward(&down, 4, &label, 1.0).loss[0]) / (2.0 * step);
            assert!((slope - gradient[i]).abs() < 1e-8);
        }
    }
}
