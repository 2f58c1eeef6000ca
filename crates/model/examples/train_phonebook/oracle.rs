//! The network that is trained against the reference model in f64, weight for weight.

use crate::layout::{Layout, Shape};
use crate::network::{EPS, Network};
use crate::real::Real;
use crate::task::{Batch, Purpose, stream};
use lookback_model::flags::{self, Segment};
use lookback_model::phonebook::DIGITS;
use lookback_reference::gated_ssm::{Block, Model};
use std::ops::Range;

fn reference<R: Real>(shape: &Shape, layout: &Layout, weights: &[R]) -> Model {
    let take = |range: &Range<usize>| weights[range.clone()].iter().map(|weight| weight.to_f64()).collect::<Vec<_>>();
    let blocks = layout.blocks.iter().zip(&shape.reversed).map(|(block, &half_reversed)| Block {
        half_reversed,
        norm: take(&block.norm),
        conv: take(&block.conv),
        in_weight: take(&block.in_weight),
        in_bias: take(&block.in_bias),
        out_weight: take(&block.out_weight),
    });
    Model {
        width: shape.width,
        state: shape.state,
        eps: EPS,
        table: take(&layout.table),
        blocks: blocks.collect(),
        norm: take(&layout.norm),
        head: take(&layout.head),
    }
}

/// Largest difference of any logit of the answers.
fn largest_difference<R: Real>(reversed: [bool; 3]) -> f64 {
    let shape = Shape { width: 16, state: 24, reversed: reversed.to_vec() };
    let mut network = Network::<R>::new(shape.clone(), 2);
    let mut rng = stream(3, Purpose::Weights, 0);
    let weights = network.layout().first_weights(&shape, &mut rng);
    let batch = Batch::random(&mut rng, 3, 3);
    let model = reference(&shape, network.layout(), &weights);
    let segments = vec![Segment { len: batch.row_len, prefix_len: batch.prefix_len }; batch.rows];
    let ids = |token: &[i32; 5]| token.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
    let tokens: Vec<Vec<usize>> = batch.tokens.iter().map(ids).collect();
    let wanted = model.logits(&tokens, &flags::build(&segments, false));
    let classes = wanted.len() / tokens.len();
    let answers = wanted.chunks_exact(batch.row_len * classes).flat_map(|row| &row[batch.prefix_len * classes..]);
    let logits = network.logits(&weights, &batch);
    assert_eq!(logits.len(), batch.rows * DIGITS * classes);
    logits.iter().zip(answers).map(|(got, want)| (got.to_f64() - want).abs()).fold(0.0, f64::max)
}

#[test]
fn both_ways() {
    assert!(largest_difference::<f64>([true, false, true]) < 1e-12);
    assert!(largest_difference::<f32>([true, false, true]) < 1e-4);
}

#[test]
fn forward_only() {
    assert!(largest_difference::<f64>([false; 3]) < 1e-12);
    assert!(largest_difference::<f32>([false; 3]) < 1e-4);
}
