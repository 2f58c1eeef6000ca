//! Where each weight lies in one flat vector, and what it is first set to.

use crate::real::Real;
use lookback_model::phonebook::{KINDS, TABLE_ROWS};
use rand::RngExt;
use rand_pcg::Pcg64;
use std::ops::Range;

/// Taps of the causal convolution.
pub const TAPS: usize = 4;
/// Classes of the head: the ten digits.
pub const CLASSES: usize = 10;

/// The sizes of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual stream.
    pub width: usize,
    /// State channels of a block.
    pub state: usize,
    /// For each block: do the channels of its second half run backwards in the prefix?
    pub reversed: Vec<bool>,
}

/// One named tensor of the flat vector.
pub struct Tensor {
    /// Name in the weights file.
    pub name: String,
    /// Shape in the weights file.
    pub shape: Vec<usize>,
    /// Place in the flat vector.
    pub range: Range<usize>,
}

/// Weights of one block.
pub struct BlockRanges {
    /// [width]
    pub norm: Range<usize>,
    /// [width, TAPS], tap TAPS - 1 on the current token
    pub conv: Range<usize>,
    /// [4 state, width], rows i, z, o, f
    pub in_weight: Range<usize>,
    /// [4 state]; the z quarter stays zero
    pub in_bias: Range<usize>,
    /// [width, state]
    pub out_weight: Range<usize>,
}

/// The flat vector's map.
pub struct Layout {
    /// Every tensor, in order.
    pub tensors: Vec<Tensor>,
    /// Kinds and hashed tables as one table [TABLE_ROWS, width].
    pub table: Range<usize>,
    /// The blocks.
    pub blocks: Vec<BlockRanges>,
    /// Final normaliser [width].
    pub norm: Range<usize>,
    /// Head [CLASSES, width].
    pub head: Range<usize>,
}

impl Layout {
    /// Maps a model.
    pub fn new(shape: &Shape) -> Self {
        let (width, state) = (shape.width, shape.state);
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            let start = tensors.last().map_or(0, |last| last.range.end);
            let range = start..start + shape.iter().product::<usize>();
            tensors.push(Tensor { name, shape: shape.to_vec(), range: range.clone() });
            range
        };
        let kinds = add("embed.weight".into(), &[KINDS, width]);
        let names = add("embed.names.weight".into(), &[TABLE_ROWS - KINDS, width]);
        let blocks = (0..shape.reversed.len())
            .map(|block| {
                let mut add = |name: &str, shape: &[usize]| add(format!("blocks.{block}.{name}"), shape);
                BlockRanges {
                    norm: add("norm.weight", &[width]),
                    conv: add("conv.weight", &[width, TAPS]),
                    in_weight: add("in_proj.weight", &[4 * state, width]),
                    in_bias: add("in_proj.bias", &[4 * state]),
                    out_weight: add("out_proj.weight", &[width, state]),
                }
            })
            .collect();
        let norm = add("norm.weight".into(), &[width]);
        let head = add("head.weight".into(), &[CLASSES, width]);
        Self { tensors, table: kinds.start..names.end, blocks, norm, head }
    }

    /// Weights in all.
    pub fn len(&self) -> usize {
        self.head.end
    }

    /// First weights. Forget biases start at -2..6 along each half of the state, so that memories of all lengths,
    /// from a token to the whole row, are there from the first step.
    pub fn first_weights<R: Real>(&self, shape: &Shape, rng: &mut Pcg64) -> Vec<R> {
        let (width, state) = (shape.width, shape.state);
        let mut weights = vec![R::ZERO; self.len()];
        let mut fill = |range: Range<usize>, scale: f64| {
            for weight in &mut weights[range] {
                *weight = R::of(normal(rng) * scale);
            }
        };
        let by_width = (width as f64).powf(-0.5);
        let kinds_end = self.table.start + KINDS * width;
        fill(self.table.start..kinds_end, 1.0);
        fill(kinds_end..self.table.end, 0.5);
        for block in &self.blocks {
            let quarter = state * width;
            let forget_start = block.in_weight.start + 3 * quarter;
            fill(block.conv.clone(), 0.5);
            fill(block.in_weight.start..forget_start, by_width);
            fill(forget_start..block.in_weight.end, by_width * 0.3);
            fill(block.out_weight.clone(), (state as f64).powf(-0.5) * 0.5);
        }
        fill(self.head.clone(), by_width);
        for block in &self.blocks {
            weights[block.norm.clone()].fill(R::ONE);
            let half = state / 2;
            for channel in 0..state {
                let along = (channel % half) as f64 / (half - 1).max(1) as f64;
                weights[block.in_bias.start + 3 * state + channel] = R::of(-2.0 + 8.0 * along);
            }
        }
        weights[self.norm.clone()].fill(R::ONE);
        weights
    }
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
