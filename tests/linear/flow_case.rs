//! One Flow-Attention on the device beside the same in f64.

use lookback_device::{DType, Element};
use lookback_linear::{
    Stride,
    flow::{BackwardOutputs, BackwardPlan, Inputs, Options, Plan, Shape, Strides},
};
use lookback_reference::flow_attention::{self as reference, Backward, Flow};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

/// Gradients of 16-bit tensors; those of f32 are held to the gate of the forward pass.
pub const HALF_GRADIENTS: Gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };

#[derive(Debug, Clone)]
pub struct Case {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub causal: bool,
    pub clamp: Option<f32>,
    pub extra_eps: f32,
    pub mapped: bool,
    /// Starts of packed queries and keys.
    pub starts: Option<(Vec<i32>, Vec<i32>)>,
    /// Elements between the rows of heads, of every tensor.
    pub gap: usize,
}

impl Case {
    pub fn causal(batch: usize, seq_len: usize, heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self {
            batch,
            queries: seq_len,
            keys: seq_len,
            heads,
            key_dim,
            value_dim,
            causal: true,
            clamp: Some(10.0),
            extra_eps: 0.0,
            mapped: false,
            starts: None,
            gap: 0,
        }
    }

    pub fn normal(batch: usize, queries: usize, keys: usize, heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self { causal: false, keys, ..Self::causal(batch, queries, heads, key_dim, value_dim) }
    }

    fn stride(&self, tokens: usize, width: usize) -> Option<Stride> {
        (self.gap > 0).then(|| Stride::dense(tokens, self.heads, width + self.gap))
    }

    pub fn shape(&self) -> Shape {
        let Self { batch, queries, keys, heads, key_dim, value_dim, causal, .. } = *self;
        let (q, k) = (self.stride(queries, key_dim), self.stride(keys, key_dim));
        let (v, out) = (self.stride(keys, value_dim), self.stride(queries, value_dim));
        Shape {
            causal,
            packed: self.starts.as_ref().map(|(starts, _)| starts.len() - 1),
            strides: Strides { q, k, v, out, dq: q, dk: k, dv: v },
            ..Shape::normal(batch, [queries, keys], heads, key_dim, value_dim)
        }
    }

    pub fn options<T: Element>(&self) -> Options {
        Options { clamp: self.clamp, extra_eps: self.extra_eps, mapped: self.mapped, ..Options::new::<T>() }
    }

    pub fn flow(&self) -> Flow<'_> {
        Flow {
            batch: self.batch,
            heads: self.heads,
            queries: self.queries,
            keys: self.keys,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            causal: self.causal,
            clamp: self.clamp.map(f64::from),
            extra_eps: f64::from(self.extra_eps),
            mapped: self.mapped,
            cu_seqlens: self.starts.as_ref().map(|(q, _)| q.as_slice()),
            cu_seqlens_k: self.starts.as_ref().filter(|_| !self.causal).map(|(_, k)| k.as_slice()),
        }
    }

    /// A tensor's rows with NaN between them.
    fn spread(&self, dense: &[f64], width: usize) -> Vec<f64> {
        let gap = vec![f64::NAN; self.gap];
        dense.chunks(width).flat_map(|row| row.iter().chain(&gap)).copied().collect()
    }

    fn close(&self, spread: &[f64], width: usize) -> Vec<f64> {
        let rows = spread.chunks(width + self.gap);
        rows.flat_map(|row| {
            assert!(row[width..].iter().all(|v| v.is_nan()), "a gap was written");
            row[..width].to_vec()
        })
        .collect()
    }

    pub fn check<T: Element>(&self) {
        self.check_data::<T>(&Data::new::<T>(self));
    }

    pub fn check_data<T: Element>(&self, data: &Data) {
        let what = |name: &str| format!("{name}, {} of {self:?}", T::DTYPE);
        let want = reference::forward(&self.flow(), &data.q, &data.k, &data.v);
        let got = forward::<T>(self, data);
        assert_close(&what("out"), &got, &want, self.value_dim, gate(T::DTYPE));
        let want = reference::backward(&self.flow(), &data.q, &data.k, &data.v, &data.d_out);
        let got = backward::<T>(self, data);
        let gate = if T::DTYPE == DType::F32 { Gate::F32 } else { HALF_GRADIENTS };
        for (name, got, want, width) in [
            ("dq", &got.dq, &want.dq, self.key_dim),
            ("dk", &got.dk, &want.dk, self.key_dim),
            ("dv", &got.dv, &want.dv, self.value_dim),
        ] {
            assert_close(&what(name), got, want, width, gate);
        }
    }
}

#[derive(Clone)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub d_out: Vec<f64>,
}

impl Data {
    pub fn new<T: Element>(case: &Case) -> Self {
        let mut random = Random::new((case.queries * 1000 + case.keys * 10 + case.key_dim) as u64);
        let rows = |tokens: usize, width: usize| case.batch * tokens * case.heads * width;
        let mut features = |n: usize| match case.mapped {
            true => random.uniforms::<T>(n, 0.05, 1.5),
            false => random.normals::<T>(n),
        };
        let (q, k) = (features(rows(case.queries, case.key_dim)), features(rows(case.keys, case.key_dim)));
        let v = random.normals::<T>(rows(case.keys, case.value_dim));
        let d_out = random.normals::<T>(rows(case.queries, case.value_dim));
        Self { q, k, v, d_out }
    }
}

fn with_inputs<T: Element, R>(case: &Case, data: &Data, with: impl FnOnce(Inputs<'_, T>) -> R) -> R {
    let q = upload_as::<T>(&case.spread(&data.q, case.key_dim));
    let k = upload_as::<T>(&case.spread(&data.k, case.key_dim));
    let v = upload_as::<T>(&case.spread(&data.v, case.value_dim));
    let starts = case.starts.as_ref().map(|(starts, keys)| (upload(starts), upload(keys)));
    let mut inputs = Inputs::of(&q, &k, &v);
    if let Some((starts, keys)) = &starts {
        inputs.cu_seqlens = Some(starts);
        if !case.causal {
            inputs.cu_seqlens_k = Some(keys);
        }
    }
    with(inputs)
}

fn output<T: Element>(case: &Case, tokens: usize, width: usize) -> Guarded<T> {
    Guarded::poisoned(case.batch * tokens * case.heads * (width + case.gap), 8)
}

pub fn forward<T: Element>(case: &Case, data: &Data) -> Vec<f64> {
    let plan = Plan::new(&case.shape(), &case.options::<T>(), &device::info());
    let plan = plan.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let mut out = output::<T>(case, case.queries, case.value_dim);
    let mut workspace = Guarded::<u8>::filled(plan.workspace_bytes() as usize, 0, 0xff);
    with_inputs::<T, _>(case, data, |inputs| {
        let done = plan.run(&device::stream(), &inputs, &mut out.view_mut(), &mut workspace.view_mut());
        done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    });
    device::finish();
    case.close(&out.read(), case.value_dim)
}

pub fn backward<T: Element>(case: &Case, data: &Data) -> Backward {
    let plan = BackwardPlan::new(&case.shape(), &case.options::<T>(), &device::info());
    let plan = plan.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let (mut dq, mut dk) = (output::<T>(case, case.queries, case.key_dim), output::<T>(case, case.keys, case.key_dim));
    let mut dv = output::<T>(case, case.keys, case.value_dim);
    let d_out = upload_as::<T>(&case.spread(&data.d_out, case.value_dim));
    let mut workspace = Guarded::<u8>::filled(plan.workspace_bytes() as usize, 0, 0xff);
    with_inputs::<T, _>(case, data, |inputs| {
        let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let done = plan.run(&device::stream(), &inputs, &d_out, outputs, &mut workspace.view_mut());
        done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    });
    device::finish();
    Backward {
        dq: case.close(&dq.read(), case.key_dim),
        dk: case.close(&dk.read(), case.key_dim),
        dv: case.close(&dv.read(), case.value_dim),
    }
}
