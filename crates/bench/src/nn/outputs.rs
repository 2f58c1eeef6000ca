//! Where a model begins and ends: embeddings, pooled sequences, the next token, the loss.

use super::facts;
use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Element, Result};
use lookback_nn::{argmax, cross_entropy, embedding, pool};

/// The vocabulary is a Llama 3's, the pooled sequences are a BERT's.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let (vocabulary, tokens, width, requests, [sequences, length]) = match scale {
        Scale::Full => (128_256, 8192, 4096, 64, [128, 512]),
        Scale::Small => (1024, 128, 512, 8, [4, 64]),
    };
    vec![
        embedded(info, vocabulary, tokens, width),
        pooled(info, [sequences, length, 1024]),
        largest(info, requests, vocabulary),
        entropy(info, tokens / 2, vocabulary),
    ]
}

fn embedded(info: &DeviceInfo, vocabulary: usize, tokens: usize, width: usize) -> Case {
    let shape = embedding::Shape::dense(tokens, 1, vocabulary, width);
    let plan = embedding::Plan::new(&shape, &embedding::Options { dtype: bf16::DTYPE }, info);
    let maker = move |plan: embedding::Plan, memory: &mut Memory| -> Result<Launch> {
        let table = memory.normal::<bf16>("table", &[vocabulary, width])?;
        let mut sets = memory.sets(|memory| {
            // Every set its own rows of the table, far from each other: 48271 is a prime.
            let first = memory.set() * tokens;
            let id = |t| ((first + t) * 48_271 % vocabulary) as i32;
            let ids = memory.values("ids", &(0..tokens).map(id).collect::<Vec<_>>())?;
            Ok((ids, memory.output::<bf16>("out", &[tokens, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (ids, out) = &mut sets[set];
            plan.run(&stream, &table, ids, out, None)
        }))
    };
    let extents = [("tokens", tokens), ("vocabulary", vocabulary), ("width", width)];
    let facts = Facts::new("nn", "embedding", "", "bf16", &extents);
    Case::planned(facts, plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn pooled(info: &DeviceInfo, sizes: [usize; 3]) -> Case {
    let [sequences, tokens, width] = sizes;
    let options = pool::Options { dtype: bf16::DTYPE, pooling: pool::Pooling::Mean, normalize: true };
    let plan = pool::Plan::new(&pool::Shape::dense(sequences, tokens, width), &options, info);
    let maker = move |plan: pool::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            Ok((memory.normal::<bf16>("x", &sizes)?, memory.output::<f32>("out", &[sequences, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, out) = &mut sets[set];
            plan.run(&stream, x, pool::Inputs::default(), out)
        }))
    };
    let extents = [("sequences", sequences), ("tokens", tokens), ("width", width)];
    let facts = Facts::new("nn", "pool", "mean", "bf16", &extents);
    Case::planned(facts, plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn largest(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let options = argmax::Options { dtype: bf16::DTYPE };
    let plan = argmax::Plan::new(&argmax::Shape::dense(rows, width), &options, info);
    let maker = move |plan: argmax::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            Ok((memory.normal::<bf16>("x", &[rows, width])?, memory.output::<i32>("index", &[rows])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, index) = &mut sets[set];
            plan.run(&stream, x, index)
        }))
    };
    Case::planned(facts("argmax", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn entropy(info: &DeviceInfo, rows: usize, classes: usize) -> Case {
    let options = cross_entropy::Options { dtype: bf16::DTYPE, scale: 1.0 / rows as f32 };
    let plan = cross_entropy::Plan::new(&cross_entropy::Shape::dense(rows, classes), &options, info);
    let maker = move |plan: cross_entropy::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let logits = memory.normal::<bf16>("logits", &[rows, classes])?;
            let labels = memory
                .made::<i32>("labels", &[rows], |normal| ((normal.abs() * 1e4).fract() * classes as f64) as i32)?;
            let loss = memory.output::<f32>("loss", &[rows])?;
            Ok((logits, labels, loss, memory.output::<bf16>("dlogits", &[rows, classes])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (logits, labels, loss, dlogits) = &mut sets[set];
            let outputs = cross_entropy::Outputs { dlogits: Some(dlogits), ..Default::default() };
            plan.run(&stream, logits, labels, loss, outputs)
        }))
    };
    Case::planned(facts("cross_entropy", "", rows, classes), plan, |plan| [plan.bytes_moved(), 0], maker)
}
