//! The hand-written gradient against central differences, in f64.

use crate::layout::Shape;
use crate::network::Network;
use crate::task::{Batch, Purpose, stream};
use rand::RngExt;

fn check(reversed: Vec<bool>) {
    let shape = Shape { width: 6, state: 8, reversed };
    let mut network = Network::<f64>::new(shape.clone(), 2);
    let mut rng = stream(7, Purpose::Weights, 0);
    let mut weights: Vec<f64> = network.layout().first_weights(&shape, &mut rng);
    for weight in &mut weights {
        *weight += 0.1 * (rng.random::<f64>() - 0.5);
    }
    let batch = Batch::random(&mut rng, 3, 2);
    let mut grad = vec![0.0; weights.len()];
    network.score_and_gradient(&weights, &batch, &mut grad);
    let mean_loss = |network: &mut Network<f64>, weights: &[f64]| network.score(weights, &batch).mean_loss();
    let tensors: Vec<_> = network.layout().tensors.iter().map(|t| (t.name.clone(), t.range.clone())).collect();
    for (name, range) in tensors {
        // The bias of z is not trained: its gradient is left zero.
        let untrained =
            name.ends_with("in_proj.bias").then(|| range.start + shape.state..range.start + 2 * shape.state);
        let scale = grad[range.clone()].iter().fold(0.0_f64, |most, g| most.max(g.abs()));
        let stride = (range.len() / 40).max(1);
        for at in range.step_by(stride).filter(|at| !untrained.as_ref().is_some_and(|range| range.contains(at))) {
            let (kept, step) = (weights[at], 1e-5);
            weights[at] = kept + step;
            let above = mean_loss(&mut network, &weights);
            weights[at] = kept - step;
            let below = mean_loss(&mut network, &weights);
            weights[at] = kept;
            let difference = (above - below) / (2.0 * step);
            let error = (difference - grad[at]).abs();
            assert!(error < 1e-7 * scale + 1e-9, "{name}[{at}]: {} against {difference}", grad[at]);
        }
    }
}

#[test]
fn both_ways() {
    check(vec![true, false, true]);
}

#[test]
fn forward_only() {
    check(vec![false, false]);
}
