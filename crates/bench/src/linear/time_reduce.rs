//! Linear attention over all tokens at once.

use super::facts;
use crate::{Case, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{
    DType, DeviceInfo, Result,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_linear::{
    Shape,
    time_reduce::{BackwardInputs, BackwardOutputs, BackwardPlan, Inputs, Map, Options, Outputs, Plan, Workspace},
};

/// Many heads and few, with and without features.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    // Rows, tokens, heads, entries of keys and values.
    let (plain, features, based) = match scale {
        Scale::Full => (
            vec![[4, 4096, 64, 128], [1, 16_384, 16, 64], [32, 1024, 16, 64], [1, 65_536, 8, 128]],
            [4, 4096, 64, 128],
            [4, 4096, 16, 16],
        ),
        Scale::Small => (vec![[1, 512, 2, 128], [2, 256, 2, 64]], [1, 256, 2, 128], [1, 128, 2, 16]),
    };
    let shape = |[b, t, h, k]: [usize; 4]| Shape::dense(b, t, h, k, k.max(64));
    let normalized = |map| Options { normalize: Some(1e-6), ..Options::new(DType::Bf16, map) };
    let options = |map| Options::new(DType::Bf16, map);
    let mut cases: Vec<_> =
        plain.into_iter().map(|sizes| forward(info, &shape(sizes), &options(Map::Identity), "")).collect();
    let (features, based) = (shape(features), shape(based));
    cases.extend([
        forward(info, &features, &normalized(Map::EluPlusOne), "elu, normalized"),
        forward(info, &features, &options(Map::Softmax), "softmax"),
        forward(info, &based, &normalized(Map::Taylor), "taylor, normalized"),
        backward(info, &features, &options(Map::Identity), ""),
        backward(info, &features, &normalized(Map::EluPlusOne), "elu, normalized"),
        backward(info, &based, &options(Map::Taylor), "taylor"),
    ]);
    cases
}

/// Bytes of rows of so many entries a head, in bf16.
fn bytes(shape: &Shape, entries: usize) -> u64 {
    2 * [shape.batch, shape.seq_len, shape.heads, entries].iter().product::<usize>() as u64
}

fn forward(info: &DeviceInfo, shape: &Shape, options: &Options, what: &str) -> Case {
    let (shape, options) = (*shape, *options);
    let plan = Plan::new(&shape, &options, info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let rows = |width| [shape.batch, shape.seq_len, shape.heads, width];
        let mut sets = memory.sets(|memory| {
            let [q, k] = ["q", "k"].map(|name| memory.normal::<bf16>(name, &rows(shape.key_dim)));
            let v = memory.normal::<bf16>("v", &rows(shape.value_dim))?;
            Ok((q?, k?, v, memory.output::<bf16>("o", &rows(shape.value_dim))?))
        })?;
        let stream = memory.stream();
        let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
        Ok(Box::new(move |set| {
            let (q, k, v, o) = &mut sets[set];
            let inputs = Inputs { q: Some(q), k, v, cu_seqlens: None, prefix_len: None };
            plan.run(&stream, &inputs, Outputs { o: Some(o), den: None, kv: None, ksum: None }, &mut workspace)
        }))
    };
    let work = |plan: &Plan| [plan.bytes_moved(), plan.flops()];
    Case::planned(facts("time_reduce", what, "bf16", &shape), plan, work, maker)
}

fn backward(info: &DeviceInfo, shape: &Shape, options: &Options, what: &str) -> Case {
    let (shape, options) = (*shape, *options);
    let plans =
        Plan::new(&shape, &options, info).and_then(|forward| Ok((forward, BackwardPlan::new(&shape, &options, info)?)));
    let normalizes = options.normalize.is_some();
    let features = options.map.features(shape.key_dim);
    let maker = move |(forward, plan): (Plan, BackwardPlan), memory: &mut Memory| -> Result<Launch> {
        let Shape { batch, seq_len, heads, key_dim, value_dim, .. } = shape;
        let rows = |width| [batch, seq_len, heads, width];
        let stream = memory.stream();
        let mut workspace = Workspace::new(&stream, plan.workspace_bytes().max(forward.workspace_bytes()))?;
        let mut sets = memory.sets(|memory| {
            let [q, k] = ["q", "k"].map(|name| memory.normal::<bf16>(name, &rows(key_dim)));
            let (q, k, v) = (q?, k?, memory.normal::<bf16>("v", &rows(value_dim))?);
            let d_o = memory.normal::<bf16>("do", &rows(value_dim))?;
            let mut o = memory.saved::<bf16>("o", &rows(value_dim))?;
            let mut den = memory.saved::<f32>("den", &rows(1)[..3])?;
            let mut kv = memory.saved::<f32>("kv", &[batch, heads, features, value_dim])?;
            let mut ksum = memory.saved::<f32>("ksum", &[batch, heads, features])?;
            let inputs = Inputs { q: Some(&q), k: &k, v: &v, cu_seqlens: None, prefix_len: None };
            let divisor = normalizes.then_some(&mut den as &mut dyn DevicePtrMut<f32>);
            let outputs = Outputs { o: Some(&mut o), den: divisor, kv: Some(&mut kv), ksum: Some(&mut ksum) };
            forward.run(&stream, &inputs, outputs, &mut workspace)?;
            let [dq, dk] = ["dq", "dk"].map(|name| memory.output::<bf16>(name, &rows(key_dim)));
            let gradients = (dq?, dk?, memory.output::<bf16>("dv", &rows(value_dim))?);
            Ok(((q, k, v, d_o), (o, den, kv, ksum), gradients))
        })?;
        Ok(Box::new(move |set| {
            let ((q, k, v, d_o), (o, den, kv, ksum), (dq, dk, dv)) = &mut sets[set];
            let inputs = BackwardInputs {
                q,
                k,
                v,
                cu_seqlens: None,
                prefix_len: None,
                kv,
                ksum: (normalizes || options.map == Map::Softmax).then_some(ksum as &dyn DevicePtr<f32>),
                o: normalizes.then_some(o as &dyn DevicePtr<bf16>),
                den: normalizes.then_some(den as &dyn DevicePtr<f32>),
                d_o,
                d_kv: None,
                d_ksum: None,
            };
            plan.run(&stream, &inputs, BackwardOutputs { dq, dk, dv }, &mut workspace)
        }))
    };
    let work = move |(_, plan): &(Plan, BackwardPlan)| {
        // Keys, queries and their gradients, values, theirs and the adjoint; the output where it was divided.
        let values = if normalizes { 4 } else { 3 };
        [bytes(&shape, 4 * shape.key_dim + values * shape.value_dim), plan.flops()]
    };
    Case::planned(facts("time_reduce_backward", what, "bf16", &shape), plans, work, maker)
}
