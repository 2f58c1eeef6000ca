//! One reduction over time on the device beside the same in f64.

use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_linear::{
    Shape, Stride, Strides,
    time_reduce::{Inputs, Map, Options, Outputs, Plan, Policy, Workspace},
};
use lookback_reference::time_reduce as reference;
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{assert_close, gate},
    random::Random,
};

pub const MAPS: [Map; 6] = [Map::Identity, Map::EluPlusOne, Map::Relu, Map::Exp, Map::Softmax, Map::Taylor];

/// What to reduce.
#[derive(Debug, Clone)]
pub struct Case {
    pub map: Map,
    pub batch: usize,
    pub seq_len: usize,
    pub heads: usize,
    pub query_heads: usize,
    pub key_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub normalize: bool,
    /// Starts of packed sequences.
    pub starts: Option<Vec<i32>>,
    pub prefix: Option<Vec<i32>>,
    /// Elements between rows of `q`, `k`, `v` and `o`.
    pub gap: usize,
    pub policy: Policy,
}

impl Case {
    /// Segments of 64 tokens.
    pub fn new(map: Map, seq_len: usize, key_dim: usize, value_dim: usize) -> Self {
        Self {
            map,
            batch: 1,
            seq_len,
            heads: 2,
            query_heads: 2,
            key_heads: 2,
            key_dim,
            value_dim,
            normalize: map != Map::Softmax && map != Map::Identity,
            starts: None,
            prefix: None,
            gap: 0,
            policy: Policy { part_tokens: 64, apply_tokens: 64, lag: 1 },
        }
    }

    pub fn shape(&self) -> Shape {
        let stride = |heads: usize, width: usize| {
            let head = (width + self.gap) as i64;
            let token = heads as i64 * head + 2 * self.gap as i64;
            Some(Stride { batch: self.seq_len as i64 * token, token, head })
        };
        let strides = Strides {
            q: stride(self.query_heads, self.key_dim),
            k: stride(self.key_heads, self.key_dim),
            v: stride(self.heads, self.value_dim),
            g: None,
            o: stride(self.heads, self.value_dim),
        };
        Shape {
            query_heads: self.query_heads,
            key_heads: self.key_heads,
            packed: self.starts.as_ref().map(|s| s.len() - 1),
            strides,
            ..Shape::dense(self.batch, self.seq_len, self.heads, self.key_dim, self.value_dim)
        }
    }

    pub fn options(&self, dtype: DType) -> Options {
        let normalize = self.normalize.then_some(0.5);
        Options { scale: 0.5, normalize, policy: Some(self.policy), ..Options::new(dtype, self.map) }
    }

    pub fn plan(&self, dtype: DType) -> Plan {
        Plan::new(&self.shape(), &self.options(dtype), &device::info()).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    pub fn reference(&self) -> reference::Reduce<'_> {
        reference::Reduce {
            batch: self.batch,
            seq_len: self.seq_len,
            heads: self.heads,
            q_heads: self.query_heads,
            k_heads: self.key_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            map: match self.map {
                Map::Identity => reference::Map::Identity,
                Map::EluPlusOne => reference::Map::EluPlusOne,
                Map::Relu => reference::Map::Relu,
                Map::Exp => reference::Map::Exp,
                Map::Softmax => reference::Map::Softmax,
                Map::Taylor => reference::Map::Taylor,
            },
            scale: 0.5,
            normalize: self.normalize.then_some(0.5),
            cu_seqlens: self.starts.as_deref(),
            prefix_len: self.prefix.as_deref(),
        }
    }

    /// `[B,T,heads,width]` spread over the strides, with NaN between.
    pub fn spread(&self, values: &[f64], heads: usize, width: usize) -> Vec<f64> {
        let (head, token) = (width + self.gap, heads * (width + self.gap) + 2 * self.gap);
        let rows = self.batch * self.seq_len;
        let mut out = vec![f64::NAN; rows * token];
        for (i, row) in values.chunks_exact(width).enumerate() {
            out[i / heads * token + i % heads * head..][..width].copy_from_slice(row);
        }
        out
    }

    /// The other way; fails where something between was written.
    pub fn gather(&self, values: &[f64], heads: usize, width: usize) -> Vec<f64> {
        let (head, token) = (width + self.gap, heads * (width + self.gap) + 2 * self.gap);
        let rows = self.batch * self.seq_len * heads;
        let at = |i: usize| i / heads * token + i % heads * head;
        let mut between = values.to_vec();
        let mut out = Vec::with_capacity(rows * width);
        for i in 0..rows {
            out.extend_from_slice(&values[at(i)..][..width]);
            between[at(i)..][..width].fill(f64::NAN);
        }
        assert!(between.iter().all(|v| v.is_nan()), "{self:?}: a gap was written");
        out
    }
}

/// Inputs, rounded to the element type.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

impl Data {
    pub fn new<T: Element>(case: &Case) -> Self {
        let mut random = Random::new((case.seq_len * 1000 + case.key_dim + case.value_dim) as u64);
        let tokens = case.batch * case.seq_len;
        let q = random.normals::<T>(tokens * case.query_heads * case.key_dim);
        let k = random.normals::<T>(tokens * case.key_heads * case.key_dim);
        Self { q, k, v: random.normals::<T>(tokens * case.heads * case.value_dim) }
    }
}

/// Outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Out {
    pub o: Vec<f64>,
    pub den: Vec<f64>,
    pub kv: Vec<f64>,
    pub ksum: Vec<f64>,
}

/// Runs the case in that workspace.
pub fn forward_in<T: Element>(case: &Case, data: &Data, plan: &Plan, workspace: &mut Workspace) -> Out {
    let spread = |values: &[f64], heads: usize, width: usize| upload_as::<T>(&case.spread(values, heads, width));
    let q = spread(&data.q, case.query_heads, case.key_dim);
    let k = spread(&data.k, case.key_heads, case.key_dim);
    let v = spread(&data.v, case.heads, case.value_dim);
    let indices = |values: &Option<Vec<i32>>| values.as_ref().map(|v| upload(v));
    let (starts, prefix) = (indices(&case.starts), indices(&case.prefix));
    let (rows, n) = (case.batch * case.seq_len, case.shape().sequences() * case.heads);
    let features = case.map.features(case.key_dim);
    let mut o = Guarded::<T>::poisoned(case.spread(&vec![0.0; data.v.len()], case.heads, case.value_dim).len(), 0);
    let mut den = Guarded::<f32>::poisoned(rows * case.heads, 1);
    let mut kv = Guarded::<f32>::poisoned(n * features * case.value_dim, usize::from(case.gap % 2 == 1));
    let mut ksum = Guarded::<f32>::poisoned(n * features, 1);
    {
        let some = |s: &'_ Option<CudaSlice<i32>>| s.clone();
        let (starts, prefix) = (some(&starts), some(&prefix));
        let inputs = Inputs {
            q: Some(&q),
            k: &k,
            v: &v,
            cu_seqlens: starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
            prefix_len: prefix.as_ref().map(|s| s as &dyn DevicePtr<i32>),
        };
        let (mut o, mut den, mut kv, mut ksum) = (o.view_mut(), den.view_mut(), kv.view_mut(), ksum.view_mut());
        let outputs = Outputs {
            o: Some(&mut o),
            den: case.normalize.then_some(&mut den as &mut dyn DevicePtrMut<f32>),
            kv: Some(&mut kv),
            ksum: Some(&mut ksum),
        };
        plan.run(&device::stream(), &inputs, outputs, workspace).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    device::finish();
    let o = case.gather(&o.read(), case.heads, case.value_dim);
    let den = if case.normalize { den.read() } else { Vec::new() };
    Out { o, den, kv: kv.read(), ksum: ksum.read() }
}

/// Runs the case in a workspace of its own.
pub fn forward<T: Element>(case: &Case, data: &Data) -> Out {
    let plan = case.plan(T::DTYPE);
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).expect("memory");
    forward_in::<T>(case, data, &plan, &mut workspace)
}

/// Holds the case against the oracle.
pub fn check<T: Element>(case: &Case) {
    let data = Data::new::<T>(case);
    let got = forward::<T>(case, &data);
    let want = reference::forward(&case.reference(), &data.q, &data.k, &data.v);
    let what = |name: &str| format!("{name} of {} {case:?}", T::DTYPE);
    // Rows of at least 16 elements: in fewer, what 16-bit products round may be all that is left of a sum.
    let row = |width: usize| width * 16_usize.div_ceil(width);
    assert_close(&what("kv"), &got.kv, &want.kv, row(case.value_dim), gate(T::DTYPE));
    let finite = |v: &[f64]| v.iter().map(|v| if v.is_finite() { *v } else { -1e9 }).collect::<Vec<_>>();
    assert_close(
        &what("ksum"),
        &finite(&got.ksum),
        &finite(&want.ksum),
        case.map.features(case.key_dim),
        gate(T::DTYPE),
    );
    if case.normalize {
        assert_close(&what("den"), &got.den, &want.den, row(case.heads), gate(T::DTYPE));
    }
    assert_close(&what("o"), &got.o, &want.o, row(case.value_dim), gate(T::DTYPE));
}
