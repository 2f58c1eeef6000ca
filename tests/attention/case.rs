//! One attention on the device beside the same one in f64.

use cudarc::driver::{CudaSlice, DevicePtr};
use half::{bf16, f16};
use lookback_attention::{Inputs, Mask, Options, Output, Outputs, Plan, Shape, Tiles};
use lookback_device::{DType, Element};
use lookback_reference::attention::{self as reference, Attention, FAR};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{assert_close, gate},
    random::Random,
};

/// Greatest error of `lse`, for `lse` below 30.
const LSE: f64 = 1e-4;

/// What to compute.
#[derive(Debug, Clone)]
pub struct Case {
    pub dtype: DType,
    pub batch: usize,
    pub query_len: usize,
    pub key_len: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub mask: Mask,
    pub offset: Option<i32>,
    pub output: Output,
    /// Starts of packed sequences of queries and of keys, and their ends.
    pub starts: Option<[Vec<i32>; 2]>,
    /// Keys of each prefix, with [`Mask::Prefix`].
    pub prefix: Vec<i32>,
    /// Four numbers a row, with [`Mask::Intervals`].
    pub intervals: Vec<i32>,
    /// A byte a key.
    pub key_mask: Option<Vec<u8>>,
    /// Starts and entries of the list of tiles.
    pub tiles: Option<[Vec<i32>; 2]>,
    /// With slopes.
    pub alibi: bool,
    /// With a logit that has no value.
    pub sink: bool,
    pub seed: u64,
}

impl Case {
    /// Every key seen, two heads of `dim` with their own keys.
    pub fn new(dtype: DType, batch: usize, query_len: usize, key_len: usize, dim: usize) -> Self {
        Self {
            dtype,
            batch,
            query_len,
            key_len,
            heads: 2,
            key_heads: 2,
            head_dim: dim,
            value_dim: dim,
            scale: 1.0 / (dim as f32).sqrt(),
            softcap: None,
            mask: Mask::Full,
            offset: None,
            output: Output::Same,
            starts: None,
            prefix: Vec::new(),
            intervals: Vec::new(),
            key_mask: None,
            tiles: None,
            alibi: false,
            sink: false,
            seed: 1,
        }
    }

    /// Packed sequences of these numbers of queries and keys.
    pub fn packed(dtype: DType, lengths: &[[usize; 2]], dim: usize) -> Self {
        let starts = [0, 1].map(|i| {
            let sums = lengths.iter().scan(0, |sum, length| {
                *sum += length[i] as i32;
                Some(*sum)
            });
            std::iter::once(0).chain(sums).collect::<Vec<i32>>()
        });
        let [queries, keys] = [0, 1].map(|i| lengths.iter().map(|length| length[i]).sum());
        Self { starts: Some(starts), ..Self::new(dtype, 1, queries, keys, dim) }
    }

    pub fn shape(&self) -> Shape {
        let Self { batch, query_len, key_len, heads, key_heads, head_dim, value_dim, .. } = *self;
        let packed = self.starts.as_ref().map(|[starts, _]| starts.len() - 1);
        Shape { key_heads, value_dim, packed, ..Shape::dense(batch, query_len, key_len, heads, head_dim) }
    }

    pub fn options(&self) -> Options {
        let Self { dtype, scale, softcap, mask, offset, output, .. } = *self;
        Options { dtype, scale, softcap, mask, offset, output }
    }

    pub fn plan(&self) -> Plan {
        Plan::new(&self.shape(), &self.options(), &device::info()).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    /// Query rows of all heads.
    pub fn rows(&self) -> usize {
        self.batch * self.query_len * self.heads
    }

    /// Runs on the device and holds everything against the oracle.
    pub fn check(&self) {
        match self.dtype {
            DType::F16 => self.check_data::<f16>(&Data::new::<f16>(self)),
            _ => self.check_data::<bf16>(&Data::new::<bf16>(self)),
        }
    }

    /// The same with inputs of the caller's.
    pub fn check_data<T: Element>(&self, data: &Data) {
        self.compare(&run::<T>(self, data), &data.oracle(self));
    }

    /// Both outputs against the oracle's. `lse` is compared as a number, since it may be any of both signs.
    pub fn compare(&self, got: &Computed, want: &Computed) {
        assert_close(&format!("o of {self:?}"), &got.o, &want.o, self.value_dim, gate(self.dtype));
        assert_eq!(got.lse.len(), want.lse.len());
        for (i, (got, want)) in got.lse.iter().zip(&want.lse).enumerate() {
            let near = got == want || (got - want).abs() <= LSE * (want.abs() / 30.0).max(1.0);
            assert!(near || (got.is_nan() && want.is_nan()), "lse[{i}] is {got}, not {want}, of {self:?}");
        }
        // What a row without keys is, it is exactly.
        for (row, lse) in want.lse.iter().enumerate().filter(|(_, lse)| **lse == f64::NEG_INFINITY) {
            let o = &got.o[row * self.value_dim..][..self.value_dim];
            assert!(got.lse[row] == *lse && o.iter().all(|o| o.to_bits() == 0), "row {row} of {self:?}: {o:?}");
        }
    }

    /// Words of the bitmap of the mask of keys.
    fn key_bits(&self) -> Option<Vec<u32>> {
        let word = |seen: &[u8]| seen.iter().rev().fold(0, |word, seen| word << 1 | u32::from(*seen != 0));
        let rows = self.key_mask.as_ref()?.chunks(self.key_len.max(1));
        Some(rows.flat_map(|row| row.chunks(32).map(word)).collect())
    }
}

/// Outputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Computed {
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
}

impl Computed {
    /// Equal to the last bit, NaN included.
    pub fn bits(&self) -> [Vec<u64>; 2] {
        [&self.o, &self.lse].map(|values| values.iter().map(|v| v.to_bits()).collect())
    }
}

/// Inputs, rounded to the element type.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub slopes: Option<Vec<f64>>,
    pub sink: Option<Vec<f64>>,
    /// State of other keys, with [`Output::Merge`].
    pub state: Option<Computed>,
}

impl Data {
    pub fn new<T: Element>(case: &Case) -> Self {
        let Case { batch, query_len, key_len, heads, key_heads, head_dim, value_dim, .. } = *case;
        let mut random = Random::new(case.seed);
        Self {
            q: random.normals::<T>(batch * query_len * heads * head_dim),
            k: random.normals::<T>(batch * key_len * key_heads * head_dim),
            v: random.normals::<T>(batch * key_len * key_heads * value_dim),
            slopes: case.alibi.then(|| random.uniforms::<f32>(heads, 0.01, 0.5)),
            sink: case.sink.then(|| random.normals::<f32>(heads)),
            state: None,
        }
    }

    /// The same for the reference.
    pub fn attention<'a>(&'a self, case: &'a Case) -> Attention<'a> {
        let far = |far: Option<u32>| far.map_or(FAR, i64::from);
        let mask = match case.mask {
            Mask::Full | Mask::Intervals => reference::Mask::FULL,
            Mask::Causal | Mask::Prefix => reference::Mask::CAUSAL,
            Mask::AntiCausal => reference::Mask::ANTI_CAUSAL,
            Mask::Window { left, right, sink_tokens } => {
                reference::Mask::window(far(left), far(right), i64::from(sink_tokens))
            }
        };
        Attention {
            batch: case.batch,
            query_len: case.query_len,
            key_len: case.key_len,
            heads: case.heads,
            key_heads: case.key_heads,
            head_dim: case.head_dim,
            value_dim: case.value_dim,
            scale: f64::from(case.scale),
            softcap: case.softcap.map(f64::from),
            alibi_slopes: self.slopes.as_deref(),
            sink: self.sink.as_deref(),
            mask: reference::Mask {
                offset: case.offset.map(i64::from),
                prefix_len: (case.mask == Mask::Prefix).then_some(case.prefix.as_slice()),
                intervals: (case.mask == Mask::Intervals).then_some(case.intervals.as_slice()),
                key_mask: case.key_mask.as_deref(),
                tiles: case.tiles.as_ref().map(|[starts, keys]| reference::TileList { starts, keys }),
                ..mask
            },
            cu_seqlens_q: case.starts.as_ref().map(|s| s[0].as_slice()),
            cu_seqlens_k: case.starts.as_ref().map(|s| s[1].as_slice()),
        }
    }

    /// Inputs of the reference.
    pub fn inputs(&self) -> reference::Inputs<'_> {
        reference::Inputs { q: &self.q, k: &self.k, v: &self.v }
    }

    pub fn oracle(&self, case: &Case) -> Computed {
        let out = reference::forward(&self.attention(case), &self.inputs());
        let Some(state) = &self.state else { return Computed { o: out.o, lse: out.lse } };
        let mut merged = Computed::default();
        let width = case.value_dim;
        for row in 0..case.rows() {
            let of = |o: &[f64], lse: &[f64]| reference::state::State {
                o: o[row * width..][..width].to_vec(),
                lse: lse[row],
            };
            let both = reference::state::merge_pair(&of(&state.o, &state.lse), &of(&out.o, &out.lse));
            merged.o.extend(both.o);
            merged.lse.push(both.lse);
        }
        merged
    }
}

/// The device's copies of the inputs.
pub struct Uploaded<T> {
    pub q: CudaSlice<T>,
    pub k: CudaSlice<T>,
    pub v: CudaSlice<T>,
    starts: Option<[CudaSlice<i32>; 2]>,
    prefix: Option<CudaSlice<i32>>,
    intervals: Option<CudaSlice<i32>>,
    key_bits: Option<CudaSlice<u32>>,
    tiles: Option<[CudaSlice<i32>; 2]>,
    slopes: Option<CudaSlice<f32>>,
    sink: Option<CudaSlice<f32>>,
}

pub fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
    slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
}

impl<T: Element> Uploaded<T> {
    pub fn new(case: &Case, data: &Data) -> Self {
        let pair = |lists: &Option<[Vec<i32>; 2]>| lists.as_ref().map(|[a, b]| [upload(a), upload(b)]);
        let floats = |values: &Option<Vec<f64>>| values.as_ref().map(|v| upload_as::<f32>(v));
        Self {
            q: upload_as::<T>(&data.q),
            k: upload_as::<T>(&data.k),
            v: upload_as::<T>(&data.v),
            starts: pair(&case.starts),
            prefix: (case.mask == Mask::Prefix).then(|| upload(&case.prefix)),
            intervals: (case.mask == Mask::Intervals).then(|| upload(&case.intervals)),
            key_bits: case.key_bits().map(|bits| upload(&bits)),
            tiles: pair(&case.tiles),
            slopes: floats(&data.slopes),
            sink: floats(&data.sink),
        }
    }

    /// The inputs as an operation takes them.
    pub fn inputs(&self) -> Inputs<'_, T> {
        let start = |i: usize| self.starts.as_ref().map(|s| &s[i] as &dyn DevicePtr<i32>);
        Inputs {
            cu_seqlens_q: start(0),
            cu_seqlens_k: start(1),
            prefix_len: some(&self.prefix),
            intervals: some(&self.intervals),
            key_bits: some(&self.key_bits),
            tiles: self.tiles.as_ref().map(|[starts, keys]| Tiles { starts, keys }),
            alibi_slopes: some(&self.slopes),
            sink: some(&self.sink),
            ..Inputs::of(&self.q, &self.k, &self.v)
        }
    }
}

/// Runs on the device, into poisoned and guarded memory.
pub fn run<T: Element>(case: &Case, data: &Data) -> Computed {
    let on = Uploaded::<T>::new(case, data);
    match case.output {
        Output::Same => run_inputs::<T, T>(case, data, &case.plan(), &on.inputs()),
        Output::F32 | Output::Merge => run_inputs::<T, f32>(case, data, &case.plan(), &on.inputs()),
    }
}

/// The same with a plan and inputs of the caller's; the output is without gaps, and begins as the state, if there is one.
pub fn run_inputs<T: Element, O: Element>(case: &Case, data: &Data, plan: &Plan, inputs: &Inputs<'_, T>) -> Computed {
    let mut o = Guarded::<O>::poisoned(case.rows() * case.value_dim, 0);
    let mut lse = Guarded::<f32>::poisoned(case.rows(), 0);
    {
        let stream = device::stream();
        let (mut o, mut lse) = (o.view_mut(), lse.view_mut());
        if let Some(state) = &data.state {
            let elements: Vec<O> = state.o.iter().map(|v| O::from_f64(*v)).collect();
            stream.memcpy_htod(&elements, &mut o).expect("copy");
            let floats: Vec<f32> = state.lse.iter().map(|v| *v as f32).collect();
            stream.memcpy_htod(&floats, &mut lse).expect("copy");
        }
        let done = plan.run(&stream, inputs, Outputs::with_lse(&mut o, &mut lse));
        done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    Computed { o: o.read(), lse: lse.read() }
}
