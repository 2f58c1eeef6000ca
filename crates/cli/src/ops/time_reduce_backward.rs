//! `time_reduce_backward`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{TensorSpec, optional, required},
    time_reduce::{self, CU_SEQLENS, K, MAP, NORMALIZE, PREFIX_LEN, SCALE, SIZES, V},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_linear::time_reduce::{
    BackwardInputs, BackwardOutputs, BackwardPlan, Inputs as ForwardInputs, Map, Outputs, Plan, Workspace,
};
use lookback_reference::time_reduce as reference;

const Q: TensorSpec = required("q", "T", "[B,T,Q,K]", "queries; H is a multiple of Q");

/// Gradients of `time_reduce`.
pub static TIME_REDUCE_BACKWARD: Operation = Operation {
    name: "time_reduce_backward",
    about: "gradients of time_reduce; the forward pass runs first",
    inputs: &[
        Q,
        K,
        V,
        CU_SEQLENS,
        PREFIX_LEN,
        required("do", "T", "[B,T,H,V]", "adjoint of o"),
        optional("dkv", "f32", "[N,H,F,V]", "adjoint of kv"),
        optional("dksum", "f32", "[N,H,F]", "adjoint of ksum; not with map=softmax"),
    ],
    attributes: &[MAP, SCALE, NORMALIZE],
    outputs: &[
        required("dq", "T", "[B,T,Q,K]", ""),
        required("dk", "T", "[B,T,G,K]", "0 after a prefix"),
        required("dv", "T", "[B,T,H,V]", "0 after a prefix"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
    slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = time_reduce::settings(inputs)?;
    let features = options.map.features(shape.key_dim);
    let states = [shape.sequences(), shape.heads, features];
    for name in ["dkv", "dksum"] {
        if let Some(adjoint) = inputs.optional(name)
            && adjoint.shape[..3] != states
        {
            return Err(inputs.wrong(name, format!("must begin with {states:?}, got {:?}", adjoint.shape)));
        }
    }
    let elements = |name: &str| session.upload(&inputs.tensor(name)?.as_elements::<T>());
    let singles = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
    let indices = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
    let (q, k, v, d_o) = (elements("q")?, elements("k")?, elements("v")?, elements("do")?);
    let (starts, prefix) = (indices("cu_seqlens")?, indices("prefix_len")?);
    let (d_kv, d_ksum) = (singles("dkv")?, singles("dksum")?);
    let rows = shape.batch * shape.seq_len;
    let mut o = session.zeros::<T>(rows * shape.heads * shape.value_dim)?;
    let mut den = options.normalize.map(|_| session.zeros::<f32>(rows * shape.heads)).transpose()?;
    let mut kv = session.zeros::<f32>(states.iter().product::<usize>() * shape.value_dim)?;
    let mut ksum = session.zeros::<f32>(states.iter().product())?;

    let forward = Plan::new(&shape, &options, &session.info)?;
    let backward = BackwardPlan::new(&shape, &options, &session.info)?;
    let bytes = forward.workspace_bytes().max(backward.workspace_bytes());
    let mut workspace = Workspace::new(&session.stream, bytes)?;
    let tensors = ForwardInputs { q: Some(&q), k: &k, v: &v, cu_seqlens: some(&starts), prefix_len: some(&prefix) };
    let outputs = Outputs {
        o: Some(&mut o),
        den: den.as_mut().map(|d| d as &mut dyn DevicePtrMut<f32>),
        kv: Some(&mut kv),
        ksum: Some(&mut ksum),
    };
    forward.run(&session.stream, &tensors, outputs, &mut workspace)?;

    let mut dq = session.zeros::<T>(q.len())?;
    let mut dk = session.zeros::<T>(k.len())?;
    let mut dv = session.zeros::<T>(v.len())?;
    let normalizes = options.normalize.is_some();
    let saved = BackwardInputs {
        q: &q,
        k: &k,
        v: &v,
        cu_seqlens: some(&starts),
        prefix_len: some(&prefix),
        kv: &kv,
        ksum: (normalizes || options.map == Map::Softmax).then_some(&ksum as &dyn DevicePtr<f32>),
        o: normalizes.then_some(&o as &dyn DevicePtr<T>),
        den: some(&den),
        d_o: &d_o,
        d_kv: some(&d_kv),
        d_ksum: some(&d_ksum),
    };
    let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    backward.run(&session.stream, &saved, outputs, &mut workspace)?;
    let gradient = |name: &str, slice: &CudaSlice<T>| -> Result<(String, Tensor)> {
        let like = inputs.tensor(name)?;
        Ok((format!("d{name}"), Tensor::elements(&like.shape, &session.download::<T>(slice)?)))
    };
    Ok(Tensors::from([gradient("q", &dq)?, gradient("k", &dk)?, gradient("v", &dv)?]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let tensors = ["q", "k", "v", "do"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
    let [q, k, v, d_o] = tensors;
    let (q, k, v, d_o) = (q?, k?, v?, d_o?);
    let [d_kv, d_ksum] = ["dkv", "dksum"].map(|name| inputs.values(name));
    let adjoint = reference::Adjoint { o: &d_o, kv: d_kv.as_deref(), ksum: d_ksum.as_deref() };
    let gradients = time_reduce::with_reference(inputs, |p| {
        let out = reference::forward(p, &q, &k, &v);
        reference::backward(p, &q, &k, &v, &out, &adjoint)
    })?;
    Ok(Values::from([("dq".into(), gradients.q), ("dk".into(), gradients.k), ("dv".into(), gradients.v)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    SIZES
        .iter()
        .map(|size| {
            let &(b, t, [h, ..], k, v, map, _, packed) = size;
            let mut case = time_reduce::case(dtype, size);
            let floats =
                |dtype, phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
            case.tensors.insert("do".into(), floats(dtype, 4.0, &[b, t, h, v]));
            if map == "elu" {
                let n = if packed { 3 } else { b };
                case.tensors.insert("dkv".into(), floats(DType::F32, 5.0, &[n, h, k, v]));
                case.tensors.insert("dksum".into(), floats(DType::F32, 6.0, &[n, h, k]));
            }
            case
        })
        .collect()
}
