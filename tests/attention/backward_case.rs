//! The backward of attention with every option: its data, its f64 oracle and its launches by a plan.

use super::forward_case::{ALL, Case, Data, Layout};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_attention::RawInputs;
use lookback_attention::{
    Mask, Options, Output, Shape, Stride, Strides,
    backward::{BackwardOptions, BackwardPlan, BackwardStrides, Gradient, RawBackward},
};
use lookback_device::{DType, Element};
use lookback_reference::attention::{Adjoint, Inputs, backward, delta};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{Errors, Gate, assert_close},
    random::{Random, round},
};

/// One backward pass of a case of the forward.
#[derive(Debug, Clone)]
pub struct Backward {
    pub case: Case,
    pub deterministic: bool,
    pub gradient: Gradient,
    /// `lse` is an output with a gradient.
    pub d_lse: bool,
    /// `o` is given in f32.
    pub wide_o: bool,
}

impl From<Case> for Backward {
    fn from(case: Case) -> Self {
        Self { case, deterministic: true, gradient: Gradient::Same, d_lse: false, wide_o: false }
    }
}

/// Tensors besides those of the forward, rounded.
#[derive(Debug, Clone)]
pub struct Given {
    pub data: Data,
    pub d_o: Vec<f64>,
    pub d_lse: Vec<f64>,
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    /// What is in dq, dk, dv, dsink before gradients are added.
    pub old: [Vec<f64>; 4],
}

/// Rows without gaps.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
    pub d_sink: Vec<f64>,
}

impl Given {
    pub fn new<T: Element>(backward: &Backward, seed: u64) -> Self {
        let case = &backward.case;
        let data = Data::new::<T>(case, seed);
        let forward = case.forward(&data);
        let mut random = Random::new(seed + 1000);
        let d_o = random.normals::<T>(forward.o.len());
        let d_lse = random.normals::<f32>(forward.lse.len());
        let old = [data.q.len(), data.k.len(), data.v.len(), case.heads].map(|n| random.normals::<f32>(n));
        let o = forward.o.iter().map(|o| if backward.wide_o { round::<f32>(*o) } else { round::<T>(*o) }).collect();
        let lse = forward.lse.iter().map(|lse| round::<f32>(*lse)).collect();
        Self { data, d_o, d_lse, o, lse, old }
    }

    /// By the oracle.
    pub fn want(&self, backward_case: &Backward) -> Gradients {
        let case = &backward_case.case;
        let d_lse = backward_case.d_lse.then_some(self.d_lse.as_slice());
        let delta = delta(&self.o, &self.d_o, d_lse, case.value_dim);
        let inputs = Inputs { q: &self.data.q, k: &self.data.k, v: &self.data.v };
        let adjoint = Adjoint { d_o: &self.d_o, lse: &self.lse, delta: &delta };
        let out = backward(&case.attention(&self.data), &inputs, &adjoint);
        let mut found = [out.dq, out.dk, out.dv, out.dsink];
        if backward_case.gradient == Gradient::Accumulate {
            found.iter_mut().zip(&self.old).for_each(|(new, old)| new.iter_mut().zip(old).for_each(|(n, o)| *n += o));
        }
        let [dq, dk, dv, d_sink] = found;
        Gradients { dq, dk, dv, d_sink }
    }
}

impl Backward {
    pub fn shape(&self, layout: &Layout) -> Shape {
        let (case, a) = (&self.case, &layout.args);
        let stride = |batch, token, head| Some(Stride { batch, token, head });
        Shape {
            batch: case.batch,
            query_len: case.query_len,
            key_len: case.key_len,
            heads: case.heads,
            key_heads: case.key_heads(),
            head_dim: case.head_dim,
            value_dim: case.value_dim,
            packed: (!case.cu_q.is_empty()).then(|| case.sequences()),
            strides: Strides {
                q: stride(a.q_stride_batch, a.q_stride_token, a.q_stride_head),
                k: stride(a.k_stride_batch, a.k_stride_token, a.k_stride_head),
                v: stride(a.v_stride_batch, a.v_stride_token, a.v_stride_head),
                o: stride(a.o_stride_batch, a.o_stride_token, a.o_stride_head),
            },
        }
    }

    pub fn options<T: Element>(&self, shape: &Shape) -> BackwardOptions {
        let case = &self.case;
        let far = |reach: i32| (reach != ALL).then(|| u32::try_from(reach).expect("a window reaches forwards"));
        let mask = match (case.left, case.right, case.first) {
            _ if !case.intervals.is_empty() => Mask::Intervals,
            _ if !case.prefix.is_empty() => Mask::Prefix,
            (ALL, ALL, 0) => Mask::Full,
            (ALL, 0, 0) => Mask::Causal,
            (-1, ALL, 0) => Mask::AntiCausal,
            (left, right, sink_tokens) => Mask::Window { left: far(left), right: far(right), sink_tokens },
        };
        let strides = shape.strides;
        BackwardOptions {
            deterministic: self.deterministic,
            gradient: self.gradient,
            strides: BackwardStrides { d_o: strides.o, dq: strides.q, dk: strides.k, dv: strides.v },
            ..BackwardOptions::new(Options {
                scale: case.scale(),
                softcap: (case.softcap != 0.0).then_some(case.softcap),
                mask,
                offset: case.offset,
                output: if self.wide_o { Output::F32 } else { Output::Same },
                ..Options::new::<T>(shape)
            })
        }
    }
}

/// Rows `[B,len,heads,width]` as they lie in memory by the strides, with `fill` between them.
fn lay<E: Element>(x: &[f64], extents: [usize; 3], stride: Option<Stride>, width: usize, fill: f64) -> Vec<E> {
    let [batch, len, heads] = extents;
    let s = stride.expect("strides are explicit");
    let mut out = vec![E::from_f64(fill); batch * s.batch as usize];
    for (row, values) in x.chunks(width).enumerate() {
        let (b, t, h) = (row / (len * heads), row / heads % len, row % heads);
        let at = b * s.batch as usize + t * s.token as usize + h * s.head as usize;
        out[at..].iter_mut().zip(values).for_each(|(out, x)| *out = E::from_f64(*x));
    }
    out
}

/// The rows, and that nothing lies between them that was not there.
fn unlay(x: &[f64], extents: [usize; 3], stride: Option<Stride>, width: usize, what: &str) -> Vec<f64> {
    let ([batch, len, heads], s) = (extents, stride.expect("strides are explicit"));
    let (mut left, mut rows) = (x.to_vec(), Vec::new());
    for b in 0..batch {
        for t in 0..len {
            for h in 0..heads {
                let at = b * s.batch as usize + t * s.token as usize + h * s.head as usize;
                rows.extend_from_slice(&left[at..at + width]);
                left[at..at + width].fill(f64::NAN);
            }
        }
    }
    assert!(left.iter().all(|x| x.is_nan()), "{what}: written between rows");
    rows
}

/// Runs the case on the device.
pub fn run<T: Element>(backward: &Backward, given: &Given) -> Gradients {
    if backward.gradient == Gradient::Same {
        launch::<T, T>(backward, given)
    } else {
        launch::<T, f32>(backward, given)
    }
}

fn launch<T: Element, G: Element>(backward: &Backward, given: &Given) -> Gradients {
    let (case, stream) = (&backward.case, device::stream());
    let layout = Layout::new::<T>(case, &given.data);
    let shape = backward.shape(&layout);
    let plan = BackwardPlan::new(&shape, &backward.options::<T>(&shape), &device::info())
        .unwrap_or_else(|e| panic!("{e}: {case:?}"));
    let inputs: Vec<CudaSlice<u8>> = layout.inputs.iter().map(|bytes| upload(bytes)).collect();
    let (queries, keys) = ([case.batch, case.query_len, case.heads], [case.batch, case.key_len, case.key_heads()]);
    let strides = shape.strides;
    let d_o = upload(&lay::<T>(&given.d_o, queries, strides.o, case.value_dim, f64::NAN));
    let (narrow, wide) = (
        upload(&lay::<T>(&given.o, queries, strides.o, case.value_dim, f64::NAN)),
        upload(&lay::<f32>(&given.o, queries, strides.o, case.value_dim, f64::NAN)),
    );
    let lse = upload_as::<f32>(&given.lse);
    let d_lse = upload_as::<f32>(&given.d_lse);
    let adds = backward.gradient == Gradient::Accumulate;
    let tensors = [
        (queries, strides.q, case.head_dim, "dq"),
        (keys, strides.k, case.head_dim, "dk"),
        (keys, strides.v, case.value_dim, "dv"),
    ];
    let mut out: Vec<Guarded<G>> = Vec::new();
    for ((extents, stride, width, _), old) in tensors.iter().zip(&given.old) {
        let host = lay::<G>(if adds { old } else { &[] }, *extents, *stride, *width, f64::NAN);
        let mut guarded = Guarded::<G>::poisoned(host.len(), 0);
        if !host.is_empty() {
            stream.memcpy_htod(&host, &mut guarded.view_mut()).expect("upload");
        }
        out.push(guarded);
    }
    let mut d_sink = Guarded::<f32>::poisoned(if case.sink { case.heads } else { 0 }, 1);
    if adds && case.sink {
        let old: Vec<f32> = given.old[3].iter().map(|x| *x as f32).collect();
        stream.memcpy_htod(&old, &mut d_sink.view_mut()).expect("upload");
    }
    let words = plan.workspace_bytes().div_ceil(4) as usize;
    let mut workspace = Guarded::<f32>::poisoned(words, 0);
    {
        let held: Vec<_> = inputs.iter().map(|slice| slice.device_ptr(&stream)).collect();
        let at = |i: usize| if layout.inputs[i].is_empty() { 0 } else { held[i].0 };
        let mut views: Vec<_> = out.iter_mut().map(Guarded::view_mut).collect();
        let out: Vec<_> = views.iter_mut().map(|view| view.device_ptr_mut(&stream)).collect();
        let (mut sink_view, mut work_view) = (d_sink.view_mut(), workspace.view_mut());
        let (d_o, _d_o) = d_o.device_ptr(&stream);
        let (o, _o) = if backward.wide_o { wide.device_ptr(&stream) } else { narrow.device_ptr(&stream) };
        let (lse, _lse) = lse.device_ptr(&stream);
        let (d_lse, _d_lse) = d_lse.device_ptr(&stream);
        let (sink, _sink) = sink_view.device_ptr_mut(&stream);
        let (workspace, _workspace) = work_view.device_ptr_mut(&stream);
        let raw = RawBackward {
            inputs: RawInputs {
                q: at(0),
                k: at(1),
                v: at(2),
                cu_seqlens_q: at(3),
                cu_seqlens_k: at(4),
                prefix_len: at(5),
                intervals: at(6),
                key_bits: at(7),
                tile_starts: at(8),
                tile_keys: at(9),
                tile_count: layout.args.tile_entries,
                alibi_slopes: at(10),
                sink: at(11),
            },
            d_o,
            o,
            lse,
            d_lse: if backward.d_lse { d_lse } else { 0 },
            prepared: 0,
            dq: out[0].0,
            dk: out[1].0,
            dv: out[2].0,
            d_sink: if case.sink { sink } else { 0 },
            workspace,
            workspace_bytes: plan.workspace_bytes(),
        };
        // SAFETY: the buffers hold what the plan reads and writes, and outlive the launches.
        unsafe { plan.run_raw(&stream, &raw) }.unwrap_or_else(|e| panic!("{e}: {case:?}"));
    }
    device::finish();
    workspace.read();
    let rows: Vec<Vec<f64>> = tensors
        .iter()
        .zip(&out)
        .map(|((extents, stride, width, name), out)| unlay(&out.read(), *extents, *stride, *width, name))
        .collect();
    let [dq, dk, dv] = rows.try_into().expect("three gradients");
    Gradients { dq, dk, dv, d_sink: d_sink.read() }
}

/// By the contract: factors of 16 bits, sums in f32.
pub fn gate(dtype: DType) -> Gate {
    match dtype {
        DType::F16 => Gate::F16,
        _ => Gate::BF16,
    }
}

/// Compares with what is wanted by the gates of the contract.
pub fn compare<T: Element>(backward: &Backward, out: &Gradients, want: &Gradients) -> [Errors; 3] {
    let (case, gate) = (&backward.case, gate(T::DTYPE));
    let what = |name: &str| format!("{} {name} {backward:?}", T::DTYPE.name());
    let errors = [
        assert_close(&what("dq"), &out.dq, &want.dq, case.head_dim, gate),
        assert_close(&what("dk"), &out.dk, &want.dk, case.head_dim, gate),
        assert_close(&what("dv"), &out.dv, &want.dv, case.value_dim, gate),
    ];
    if case.sink {
        assert_close(&what("d_sink"), &out.d_sink, &want.d_sink, case.heads, Gate { rel: 1e-4, row: 1e-4, inf: 1e-4 });
    }
    errors
}

/// Runs the case and compares it with the oracle.
pub fn check<T: Element>(backward: impl Into<Backward>, seed: u64) -> [Errors; 3] {
    let backward = backward.into();
    let given = Given::new::<T>(&backward, seed);
    compare::<T>(&backward, &run::<T>(&backward, &given), &given.want(&backward))
}

/// In both types.
pub fn check_both(backward: impl Into<Backward>, seed: u64) {
    let backward = backward.into();
    check::<bf16>(backward.clone(), seed);
    check::<f16>(backward, seed + 1);
}
