//! AdamW, with the gradient clipped to a norm of one, and the learning rate's rise and fall.

const MEAN_KEPT: f32 = 0.9;
const SQUARE_KEPT: f32 = 0.999;
const EPS: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.01;
const LARGEST_NORM: f64 = 1.0;
const WARM_UP_STEPS: u64 = 200;
const LAST_SHARE: f64 = 1.0 / 30.0;

/// Running moments of every weight's gradient.
pub struct AdamW {
    /// Steps taken.
    pub step: u64,
    /// Running mean of the gradient.
    pub mean: Vec<f32>,
    /// Running mean of its square.
    pub square: Vec<f32>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(weights: usize) -> Self {
        Self { step: 0, mean: vec![0.0; weights], square: vec![0.0; weights] }
    }

    /// Takes one step down a gradient.
    pub fn update(&mut self, weights: &mut [f32], grad: &[f32], rate: f64) {
        self.step += 1;
        let norm = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let clip = (LARGEST_NORM / norm).min(1.0) as f32;
        let mean_share = 1.0 - f64::from(MEAN_KEPT).powf(self.step as f64);
        let square_share = 1.0 - f64::from(SQUARE_KEPT).powf(self.step as f64);
        let mean_rate = (rate / mean_share) as f32;
        let square_scale = (1.0 / square_share) as f32;
        let kept = 1.0 - rate as f32 * WEIGHT_DECAY;
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((weight, &g), (mean, square)) in weights.iter_mut().zip(grad).zip(moments) {
            let g = g * clip;
            *mean = MEAN_KEPT * *mean + (1.0 - MEAN_KEPT) * g;
            *square = SQUARE_KEPT * *square + (1.0 - SQUARE_KEPT) * g * g;
            *weight = kept * *weight - mean_rate * *mean / ((*square * square_scale).sqrt() + EPS);
        }
    }
}

/// The learning rate of a step: up to `peak` in a straight line, then down along a cosine.
pub fn learning_rate(peak: f64, step: u64, steps: u64) -> f64 {
    if step < WARM_UP_STEPS {
        return peak * (step + 1) as f64 / WARM_UP_STEPS as f64;
    }
    let along = (step - WARM_UP_STEPS) as f64 / (steps.saturating_sub(WARM_UP_STEPS)).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * along.min(1.0)).cos());
    peak * (LAST_SHARE + (1.0 - LAST_SHARE) * cosine)
}
