//! The network and its gradient, written out by hand.
//!
//! Rows are taken a few at a time, so that all a pass remembers for its gradient stays in the cache.

use crate::block::{BlockMemory, Rows};
use crate::layout::{CLASSES, Layout, Shape};
use crate::real::{Matrix, Real};
use crate::task::Batch;
use lookback_model::phonebook::{DIGITS, Token};

/// Added to mean squares before the root.
pub const EPS: f64 = 1e-6;

/// What a pass over some rows measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Sum of the cross entropies of all digits.
    pub loss: f64,
    /// Digits that were the most likely one.
    pub digits: usize,
    /// Rows whose digits all were.
    pub exact: usize,
    /// Rows.
    pub rows: usize,
}

impl Score {
    /// Adds another pass.
    pub fn add(&mut self, other: &Score) {
        self.loss += other.loss;
        self.digits += other.digits;
        self.exact += other.exact;
        self.rows += other.rows;
    }

    /// Mean cross entropy of a digit.
    pub fn mean_loss(&self) -> f64 {
        self.loss / (self.rows * DIGITS).max(1) as f64
    }

    /// Share of digits that were right.
    pub fn digit_share(&self) -> f64 {
        self.digits as f64 / (self.rows * DIGITS).max(1) as f64
    }

    /// Share of rows that were right in every digit.
    pub fn exact_share(&self) -> f64 {
        self.exact as f64 / self.rows.max(1) as f64
    }
}

/// A model, and the memory of one pass.
pub struct Network<R> {
    shape: Shape,
    layout: Layout,
    rows_at_once: usize,
    blocks: Vec<BlockMemory<R>>,
    residual: Vec<R>,
    residual_grad: Vec<R>,
}

impl<R: Real> Network<R> {
    /// A network that takes `rows_at_once` rows together.
    pub fn new(shape: Shape, rows_at_once: usize) -> Self {
        let layout = Layout::new(&shape);
        let blocks = shape.reversed.iter().map(|_| BlockMemory::default()).collect();
        Self { shape, layout, rows_at_once, blocks, residual: Vec::new(), residual_grad: Vec::new() }
    }

    /// Where the weights lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Scores a batch.
    pub fn score(&mut self, weights: &[R], batch: &Batch) -> Score {
        self.pass(weights, batch, None)
    }

    /// Scores a batch and adds the gradient of its mean loss.
    pub fn score_and_gradient(&mut self, weights: &[R], batch: &Batch, grad: &mut [R]) -> Score {
        self.pass(weights, batch, Some(grad))
    }

    /// The logits of the answer positions, [rows, DIGITS, CLASSES].
    #[cfg(test)]
    pub fn logits(&mut self, weights: &[R], batch: &Batch) -> Vec<R> {
        let mut logits = Vec::with_capacity(batch.rows * DIGITS * CLASSES);
        for first in (0..batch.rows).step_by(self.rows_at_once) {
            let rows = self.rows_of(batch, first);
            self.forward(weights, batch, first, &rows);
            for position in answer_positions(&rows) {
                logits.extend(self.head(weights, position).logits);
            }
        }
        logits
    }

    fn pass(&mut self, weights: &[R], batch: &Batch, mut grad: Option<&mut [R]>) -> Score {
        let scale = R::of(1.0 / (batch.rows * DIGITS) as f64);
        let mut score = Score { rows: batch.rows, ..Score::default() };
        for first in (0..batch.rows).step_by(self.rows_at_once) {
            let rows = self.rows_of(batch, first);
            self.forward(weights, batch, first, &rows);
            self.residual_grad.clear();
            self.residual_grad.resize(rows.tokens() * self.shape.width, R::ZERO);
            let answers = &batch.answers[first..first + rows.count];
            let mut right_in_row = 0;
            for (index, position) in answer_positions(&rows).enumerate() {
                let answer = usize::from(answers[index / DIGITS][index % DIGITS]);
                let head = self.head(weights, position);
                let (loss, best, logit_grad) = cross_entropy(&head.logits, answer);
                score.loss += loss;
                right_in_row = if index % DIGITS == 0 { 0 } else { right_in_row } + usize::from(best == answer);
                score.digits += usize::from(best == answer);
                score.exact += usize::from(right_in_row == DIGITS && index % DIGITS == DIGITS - 1);
                if let Some(grad) = grad.as_deref_mut() {
                    self.head_backward(weights, position, &head, &logit_grad.map(|g| g * scale), grad);
                }
            }
            if let Some(grad) = grad.as_deref_mut() {
                self.backward(weights, batch, first, &rows, grad);
            }
        }
        score
    }

    fn rows_of(&self, batch: &Batch, first: usize) -> Rows {
        let count = self.rows_at_once.min(batch.rows - first);
        Rows { count, len: batch.row_len, prefix: batch.prefix_len }
    }

    fn forward(&mut self, weights: &[R], batch: &Batch, first: usize, rows: &Rows) {
        let width = self.shape.width;
        self.residual.clear();
        self.residual.resize(rows.tokens() * width, R::ZERO);
        let table = &weights[self.layout.table.clone()];
        for (token, out) in tokens_of(batch, first, rows).iter().zip(self.residual.chunks_exact_mut(width)) {
            for row in table_rows(token) {
                add_to(out, &table[row * width..][..width]);
            }
        }
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let ranges = &self.layout.blocks[index];
            block.forward(&self.shape, self.shape.reversed[index], weights, ranges, rows, &mut self.residual);
        }
    }

    fn backward(&mut self, weights: &[R], batch: &Batch, first: usize, rows: &Rows, grad: &mut [R]) {
        let width = self.shape.width;
        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            let ranges = &self.layout.blocks[index];
            let reversed = self.shape.reversed[index];
            block.backward(&self.shape, reversed, weights, ranges, rows, &mut self.residual_grad, grad);
        }
        let table = &mut grad[self.layout.table.clone()];
        for (token, change) in tokens_of(batch, first, rows).iter().zip(self.residual_grad.chunks_exact(width)) {
            for row in table_rows(token) {
                add_to(&mut table[row * width..][..width], change);
            }
        }
    }

    /// rms_norm and the head, at one position.
    fn head(&self, weights: &[R], position: usize) -> Head<R> {
        let width = self.shape.width;
        let r = &self.residual[position * width..][..width];
        let inverse_rms = inverse_rms(r);
        let gain = &weights[self.layout.norm.clone()];
        let normed: Vec<R> = r.iter().zip(gain).map(|(&r, &g)| r * inverse_rms * g).collect();
        let head = &weights[self.layout.head.clone()];
        let logits = std::array::from_fn(|class| dot(&head[class * width..][..width], &normed));
        Head { inverse_rms, normed, logits }
    }

    fn head_backward(
        &mut self,
        weights: &[R],
        position: usize,
        head: &Head<R>,
        logit_grad: &[R; CLASSES],
        grad: &mut [R],
    ) {
        let width = self.shape.width;
        let mut normed_grad = vec![R::ZERO; width];
        for (class, &change) in logit_grad.iter().enumerate() {
            let start = self.layout.head.start + class * width;
            for channel in 0..width {
                normed_grad[channel] += change * weights[start + channel];
                grad[start + channel] += change * head.normed[channel];
            }
        }
        let r = &self.residual[position * width..][..width];
        let out = &mut self.residual_grad[position * width..][..width];
        let gain = &weights[self.layout.norm.clone()];
        rms_norm_backward(r, gain, head.inverse_rms, &normed_grad, out, &mut grad[self.layout.norm.clone()]);
    }
}

struct Head<R> {
    inverse_rms: R,
    normed: Vec<R>,
    logits: [R; CLASSES],
}

/// Positions, among the tokens of all rows, whose logits are the answer's digits.
fn answer_positions(rows: &Rows) -> impl Iterator<Item = usize> + use<> {
    let (len, prefix) = (rows.len, rows.prefix);
    (0..rows.count).flat_map(move |row| (0..DIGITS).map(move |digit| row * len + prefix + digit))
}

fn tokens_of<'a>(batch: &'a Batch, first: usize, rows: &Rows) -> &'a [Token] {
    &batch.tokens[first * rows.len..][..rows.tokens()]
}

fn table_rows(token: &Token) -> impl Iterator<Item = usize> + '_ {
    token.iter().filter_map(|&id| usize::try_from(id).ok())
}

/// Loss, most likely class, and gradient of one softmax.
fn cross_entropy<R: Real>(logits: &[R; CLASSES], answer: usize) -> (f64, usize, [R; CLASSES]) {
    let logits = logits.map(Real::to_f64);
    let best = (0..CLASSES).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
    let weights = logits.map(|logit| (logit - logits[best]).exp());
    let sum: f64 = weights.iter().sum();
    let loss = sum.ln() + logits[best] - logits[answer];
    (loss, best, std::array::from_fn(|class| R::of(weights[class] / sum - f64::from(u8::from(class == answer)))))
}

/// 1 / sqrt(mean square + eps).
pub fn inverse_rms<R: Real>(x: &[R]) -> R {
    R::ONE / (dot(x, x) * R::of(1.0 / x.len() as f64) + R::of(EPS)).sqrt()
}

/// Adds the gradient of y = x inverse_rms gain to that of x and of gain.
pub fn rms_norm_backward<R: Real>(x: &[R], gain: &[R], inverse_rms: R, dy: &[R], dx: &mut [R], dgain: &mut [R]) {
    let n = x.len();
    let (gain, dy, dx, dgain) = (&gain[..n], &dy[..n], &mut dx[..n], &mut dgain[..n]);
    let mut along = R::ZERO;
    for c in 0..n {
        along += dy[c] * gain[c] * x[c];
        dgain[c] += dy[c] * x[c] * inverse_rms;
    }
    let pull = along * inverse_rms * inverse_rms * R::of(1.0 / n as f64);
    for c in 0..n {
        dx[c] += inverse_rms * (dy[c] * gain[c] - x[c] * pull);
    }
}

/// Sum of products, in sixteen partial sums so that it vectorises.
fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut partial = [R::ZERO; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for (sum, (&a, &b)) in partial.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    partial.iter().fold(R::ZERO, |sum, &part| sum + part)
}

fn add_to<R: Real>(sum: &mut [R], terms: &[R]) {
    for (sum, &term) in sum.iter_mut().zip(terms) {
        *sum += term;
    }
}

/// y = x w^T, of which `block` makes its projections: x rows of `k`, w rows of `k`, y rows of `n`.
pub fn project<R: Real>(x: &[R], w: &[R], k: usize, n: usize, y: &mut [R]) {
    R::gemm([x.len() / k, k, n], Matrix::rows(x, k), Matrix::transposed(w, k), R::ZERO, y);
}

/// dx = dy w, of the projection y = x w^T.
pub fn project_backward_input<R: Real>(dy: &[R], w: &[R], k: usize, n: usize, dx: &mut [R]) {
    R::gemm([dy.len() / n, n, k], Matrix::rows(dy, n), Matrix::rows(w, k), R::ZERO, dx);
}

/// dw += dy^T x, of the projection y = x w^T.
pub fn project_backward_weight<R: Real>(dy: &[R], x: &[R], k: usize, n: usize, dw: &mut [R]) {
    R::gemm([n, dy.len() / n, k], Matrix::transposed(dy, n), Matrix::rows(x, k), R::ONE, dw);
}
