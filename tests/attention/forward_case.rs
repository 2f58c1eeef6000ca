//! Attention with every option of the forward kernel's argument list: its data, its f64 oracle and its launches.

use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use lookback_device::{Element, launch};
use lookback_kernels::{Kernel, args::AttentionFwd, find};
use lookback_reference::attention::{Attention, FAR, Forward, Inputs, Mask, TileList, forward};
use lookback_suite::{
    buffer::{Guarded, upload},
    device,
    measure::{Errors, assert_close, gate},
    random::Random,
};

/// What becomes of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    Same,
    F32,
    Merge,
}

/// One launch. Sequences are packed where there are starts.
#[derive(Debug, Clone)]
pub struct Case {
    pub batch: usize,
    pub query_len: usize,
    pub key_len: usize,
    pub heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub kt: usize,
    pub vt: usize,
    pub cu_q: Vec<i32>,
    pub cu_k: Vec<i32>,
    pub left: i32,
    pub right: i32,
    pub first: u32,
    pub offset: Option<i32>,
    pub prefix: Vec<i32>,
    pub intervals: Vec<i32>,
    /// `[B,Tk]`.
    pub key_mask: Vec<u8>,
    /// Starts and tiles.
    pub tiles: Option<(Vec<i32>, Vec<i32>)>,
    pub slopes: bool,
    pub sink: bool,
    /// Negative: of the opposite sign; times `1 / sqrt(head_dim)`.
    pub scale: f32,
    pub softcap: f32,
    pub out: Out,
    /// Whether lse is asked for.
    pub with_lse: bool,
    /// Channels and tokens of NaN behind those of the inputs, and as many that are not written behind those of the output.
    pub padding: bool,
}

/// Farther than any key.
pub const ALL: i32 = FAR as i32;

impl Case {
    pub fn new(query_len: usize, key_len: usize, heads: usize, head_dim: usize, value_dim: usize) -> Self {
        let tile = |dim: usize| [32, 64, 96, 128, 192, 256].into_iter().find(|t| *t >= dim).unwrap_or(256);
        let (kt, vt) = (tile(head_dim), tile(value_dim));
        let square = kt.max(vt);
        let (kt, vt) = if (kt, vt) == (192, 128) { (kt, vt) } else { (square, square) };
        Self {
            batch: 1,
            query_len,
            key_len,
            heads,
            group: 1,
            head_dim,
            value_dim,
            kt,
            vt,
            cu_q: Vec::new(),
            cu_k: Vec::new(),
            left: ALL,
            right: ALL,
            first: 0,
            offset: None,
            prefix: Vec::new(),
            intervals: Vec::new(),
            key_mask: Vec::new(),
            tiles: None,
            slopes: false,
            sink: false,
            scale: 1.0,
            softcap: 0.0,
            out: Out::Same,
            with_lse: true,
            padding: true,
        }
    }

    pub fn causal(query_len: usize, key_len: usize, heads: usize, head_dim: usize, value_dim: usize) -> Self {
        Self { right: 0, ..Self::new(query_len, key_len, heads, head_dim, value_dim) }
    }

    /// Both kinds of packed sequences.
    pub fn packed(mut self, lengths_q: &[usize], lengths_k: &[usize]) -> Self {
        let starts = |lengths: &[usize]| -> Vec<i32> {
            let mut at = 0;
            std::iter::once(0)
                .chain(lengths.iter().map(|n| {
                    at += *n as i32;
                    at
                }))
                .collect()
        };
        (self.cu_q, self.cu_k) = (starts(lengths_q), starts(lengths_k));
        (self.query_len, self.key_len) = (lengths_q.iter().sum(), lengths_k.iter().sum());
        self
    }

    pub fn sequences(&self) -> usize {
        let cu = if self.cu_q.is_empty() { &self.cu_k } else { &self.cu_q };
        if cu.is_empty() { self.batch } else { cu.len() - 1 }
    }

    pub fn key_heads(&self) -> usize {
        self.heads / self.group
    }

    /// Query rows of a block and keys of a tile.
    pub fn tile(&self) -> [usize; 2] {
        [if self.vt <= 128 { 128 } else { 64 }, if self.kt <= 128 { 64 } else { 32 }]
    }

    pub fn grid(&self) -> [u32; 3] {
        let rows = self.tile()[0];
        let slots = if self.cu_q.is_empty() {
            self.sequences() * self.query_len.div_ceil(rows)
        } else {
            self.query_len / rows + self.sequences()
        };
        [(slots * self.heads) as u32, 1, 1]
    }

    pub fn kernel<T: Element>(&self) -> &'static Kernel {
        let (kt, vt) = (self.kt.to_string(), self.vt.to_string());
        let variant = [("dtype", T::DTYPE.name()), ("kt", &kt), ("vt", &vt)];
        find("attention_fwd", &variant).unwrap_or_else(|| panic!("{variant:?}"))
    }

    pub fn scale(&self) -> f32 {
        self.scale / (self.head_dim as f32).sqrt()
    }

    /// The oracle's view of it.
    pub fn attention<'a>(&'a self, data: &'a Data) -> Attention<'a> {
        fn some<T>(x: &[T]) -> Option<&[T]> {
            (!x.is_empty()).then_some(x)
        }
        Attention {
            batch: self.batch,
            query_len: self.query_len,
            key_len: self.key_len,
            heads: self.heads,
            key_heads: self.key_heads(),
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            scale: f64::from(self.scale()),
            softcap: (self.softcap != 0.0).then_some(f64::from(self.softcap)),
            alibi_slopes: self.slopes.then_some(&data.slopes),
            sink: self.sink.then_some(&data.sink),
            mask: Mask {
                left: i64::from(self.left),
                right: i64::from(self.right),
                first: i64::from(self.first),
                offset: self.offset.map(i64::from),
                prefix_len: some(&self.prefix),
                intervals: some(&self.intervals),
                key_mask: some(&self.key_mask),
                tiles: self.tiles.as_ref().map(|(starts, keys)| TileList { starts, keys }),
            },
            cu_seqlens_q: some(&self.cu_q),
            cu_seqlens_k: some(&self.cu_k),
        }
    }

    /// What the oracle makes of it.
    pub fn forward(&self, data: &Data) -> Forward {
        forward(&self.attention(data), &Inputs { q: &data.q, k: &data.k, v: &data.v })
    }
}

/// Dense tensors, already rounded, and what is in the output before a merge.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub slopes: Vec<f64>,
    pub sink: Vec<f64>,
    pub old: Forward,
}

impl Data {
    pub fn new<T: Element>(case: &Case, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (queries, keys) = (case.batch * case.query_len * case.heads, case.batch * case.key_len * case.key_heads());
        Self {
            q: random.normals::<T>(queries * case.head_dim),
            k: random.normals::<T>(keys * case.head_dim),
            v: random.normals::<T>(keys * case.value_dim),
            slopes: random.uniforms::<f32>(case.heads, 0.01, 0.3),
            sink: random.uniforms::<f32>(case.heads, -2.0, 3.0),
            old: Forward {
                o: random.normals::<f32>(queries * case.value_dim),
                lse: random.uniforms::<f32>(queries, -1.0, 6.0),
            },
        }
    }
}

/// The bytes of every input in the order of the argument list, and arguments without addresses.
pub struct Layout {
    pub inputs: [Vec<u8>; 12],
    pub args: AttentionFwd,
    /// Elements of o and of lse as they lie in memory.
    pub outputs: [usize; 2],
}

/// Channels behind a row's.
const GAP: usize = 8;

impl Layout {
    pub fn new<T: Element>(case: &Case, data: &Data) -> Self {
        let (channels, tokens) = if case.padding { (GAP, 3) } else { (0, 0) };
        let lay = |x: &[f64], len: usize, heads: usize, dim: usize| -> Vec<u8> {
            let mut out = vec![T::from_f64(f64::NAN); case.batch * (len + tokens) * heads * (dim + channels)];
            for (row, values) in x.chunks(dim).enumerate() {
                let at = (row / (len * heads) * (len + tokens) * heads + row % (len * heads)) * (dim + channels);
                out[at..at + dim].iter_mut().zip(values).for_each(|(out, x)| *out = T::from_f64(*x));
            }
            bytemuck::cast_slice(&out).to_vec()
        };
        let strides = |len: usize, heads: usize, dim: usize| {
            let head = dim + channels;
            [(len + tokens) * heads * head, heads * head, head].map(|s| s as i64)
        };
        let words = case.key_len.div_ceil(32);
        let mut bits = vec![0_u32; if case.key_mask.is_empty() { 0 } else { case.batch * words }];
        for (at, _) in case.key_mask.iter().enumerate().filter(|(_, seen)| **seen != 0) {
            bits[at / case.key_len * words + at % case.key_len / 32] |= 1 << (at % case.key_len % 32);
        }
        let floats = |x: &[f64], is: bool| -> Vec<u8> {
            let x: Vec<f32> = x.iter().filter(|_| is).map(|x| *x as f32).collect();
            bytemuck::cast_slice(&x).to_vec()
        };
        let ints = |x: &[i32]| bytemuck::cast_slice(x).to_vec();
        let (starts, keys) = case.tiles.clone().unwrap_or_default();
        let (heads, key_heads) = (case.heads, case.key_heads());
        let [q, k, v, o] = [
            strides(case.query_len, heads, case.head_dim),
            strides(case.key_len, key_heads, case.head_dim),
            strides(case.key_len, key_heads, case.value_dim),
            strides(case.query_len, heads, case.value_dim),
        ];
        let args = AttentionFwd {
            q_stride_batch: q[0],
            q_stride_token: q[1],
            q_stride_head: q[2],
            k_stride_batch: k[0],
            k_stride_token: k[1],
            k_stride_head: k[2],
            v_stride_batch: v[0],
            v_stride_token: v[1],
            v_stride_head: v[2],
            o_stride_batch: o[0],
            o_stride_token: o[1],
            o_stride_head: o[2],
            query_len: case.query_len as u32,
            key_len: case.key_len as u32,
            sequences: case.sequences() as u32,
            heads: heads as u32,
            group: case.group as u32,
            head_dim: case.head_dim as u32,
            value_dim: case.value_dim as u32,
            key_words: words as u32,
            tile_entries: keys.len() as u32,
            offset: case.offset.unwrap_or(i32::MIN),
            has_offset: u32::from(case.offset.is_some()),
            left: case.left,
            right: case.right,
            first: case.first,
            out_f32: u32::from(case.out == Out::F32),
            merge: u32::from(case.out == Out::Merge),
            scale: case.scale(),
            softcap: case.softcap,
            ..Zeroable::zeroed()
        };
        Self {
            inputs: [
                lay(&data.q, case.query_len, heads, case.head_dim),
                lay(&data.k, case.key_len, key_heads, case.head_dim),
                lay(&data.v, case.key_len, key_heads, case.value_dim),
                ints(&case.cu_q),
                ints(&case.cu_k),
                ints(&case.prefix),
                ints(&case.intervals),
                bytemuck::cast_slice(&bits).to_vec(),
                ints(&starts),
                ints(&keys),
                floats(&data.slopes, case.slopes),
                floats(&data.sink, case.sink),
            ],
            args,
            outputs: [o[0] as usize * case.batch, case.batch * case.query_len * heads],
        }
    }

    /// With addresses; that of an empty input is 0.
    pub fn at(&self, inputs: [u64; 12], o: u64, lse: u64) -> AttentionFwd {
        let [p_q, p_k, p_v, cu_q, cu_k, prefix, intervals, bits, starts, keys, slopes, sink] =
            std::array::from_fn(|i| if self.inputs[i].is_empty() { 0 } else { inputs[i] });
        AttentionFwd {
            p_q,
            p_k,
            p_v,
            p_o: o,
            p_lse: lse,
            p_cu_seqlens_q: cu_q,
            p_cu_seqlens_k: cu_k,
            p_prefix_len: prefix,
            p_intervals: intervals,
            p_key_bits: bits,
            p_tile_starts: starts,
            p_tile_keys: keys,
            p_alibi_slopes: slopes,
            p_sink: sink,
            ..self.args
        }
    }

    /// The output's rows, without what lies between them; `None` when something there was written.
    pub fn rows(&self, case: &Case, o: &[f64]) -> Option<Vec<f64>> {
        let mut left = o.to_vec();
        let mut rows = Vec::with_capacity(o.len());
        for row in 0..case.batch * case.query_len * case.heads {
            let at = self.place(case, row);
            rows.extend_from_slice(&o[at..at + case.value_dim]);
            left[at..at + case.value_dim].fill(f64::NAN);
        }
        left.iter().all(|x| x.is_nan()).then_some(rows)
    }

    /// Where row `row` of `[B,Tq,heads]` begins in the output.
    fn place(&self, case: &Case, row: usize) -> usize {
        let [batch, token, head] =
            [self.args.o_stride_batch, self.args.o_stride_token, self.args.o_stride_head].map(|s| s as usize);
        let tokens = row / case.heads;
        tokens / case.query_len * batch + tokens % case.query_len * token + row % case.heads * head
    }

    /// What is in the outputs before the launch: NaN, or what is merged with.
    pub fn before(&self, case: &Case, data: &Data) -> [Vec<f64>; 2] {
        let [mut o, mut lse] = self.outputs.map(|len| vec![f64::NAN; len]);
        if case.out == Out::Merge {
            for (row, values) in data.old.o.chunks(case.value_dim).enumerate() {
                o[self.place(case, row)..][..case.value_dim].copy_from_slice(values);
            }
            lse.copy_from_slice(&data.old.lse);
        }
        [o, lse]
    }
}

/// Runs the case on the device.
pub fn run<T: Element>(case: &Case, data: &Data) -> Forward {
    let stream = device::stream();
    let layout = Layout::new::<T>(case, data);
    let inputs: Vec<CudaSlice<u8>> = layout.inputs.iter().map(|bytes| upload(bytes)).collect();
    let [o_len, lse_len] = layout.outputs;
    let (mut narrow, mut wide) = (Guarded::<T>::poisoned(o_len, 0), Guarded::<f32>::poisoned(o_len, 0));
    let mut lse = Guarded::<f32>::poisoned(lse_len, 3);
    if case.out == Out::Merge {
        let [o, old] = layout.before(case, data).map(|x| x.iter().map(|x| *x as f32).collect::<Vec<_>>());
        stream.memcpy_htod(&o, &mut wide.view_mut()).expect("upload");
        stream.memcpy_htod(&old, &mut lse.view_mut()).expect("upload");
    }
    {
        let held: Vec<_> = inputs.iter().map(|slice| slice.device_ptr(&stream)).collect();
        let at = std::array::from_fn(|i| held[i].0);
        let (mut narrow, mut wide, mut lse) = (narrow.view_mut(), wide.view_mut(), lse.view_mut());
        let (o, _o) = if case.out == Out::Same { narrow.device_ptr_mut(&stream) } else { wide.device_ptr_mut(&stream) };
        let (lse, _lse) = lse.device_ptr_mut(&stream);
        let args = layout.at(at, o, if case.with_lse { lse } else { 0 });
        // SAFETY: the buffers hold what the contract reads and writes, and outlive the launch.
        unsafe { launch(&stream, case.kernel::<T>(), case.grid(), &args) }.unwrap_or_else(|e| panic!("{e}"));
    }
    device::finish();
    let o = if case.out == Out::Same { narrow.read() } else { wide.read() };
    let o = layout.rows(case, &o).unwrap_or_else(|| panic!("written between rows: {case:?}"));
    Forward { o, lse: lse.read() }
}

/// Compares with what is wanted by the gates of the contract; rows that see nothing are exact.
pub fn compare<T: Element>(case: &Case, out: &Forward, want: &Forward) -> Errors {
    let what = format!("{} {case:?}", T::DTYPE.name());
    let errors = assert_close(&what, &out.o, &want.o, case.value_dim, gate(T::DTYPE));
    for (row, (lse, want)) in out.lse.iter().zip(&want.lse).enumerate() {
        let close =
            if want.is_finite() { (lse - want).abs() <= 1e-4 * (want.abs() / 30.0).max(1.0) } else { lse == want };
        assert!(close, "{what}: lse of row {row} is {lse}, the oracle has {want}");
        if *want == f64::NEG_INFINITY {
            let o = &out.o[row * case.value_dim..][..case.value_dim];
            assert!(o.iter().all(|o| *o == 0.0), "{what}: row {row} sees nothing, and is {o:?}");
        }
    }
    errors
}

/// Runs the case and compares it with the oracle.
pub fn check<T: Element>(case: &Case, seed: u64) -> Errors {
    let data = Data::new::<T>(case, seed);
    compare::<T>(case, &run::<T>(case, &data), &case.forward(&data))
}

/// What is there, merged with what the case makes: where one is empty, the other.
pub fn merged(case: &Case, data: &Data) -> Forward {
    let block = case.forward(data);
    let mut want = data.old.clone();
    for row in 0..want.lse.len() {
        let (a, b) = (want.lse[row], block.lse[row]);
        let o = &mut want.o[row * case.value_dim..][..case.value_dim];
        let new = &block.o[row * case.value_dim..][..case.value_dim];
        match (a == f64::NEG_INFINITY, b == f64::NEG_INFINITY) {
            (true, _) => o.copy_from_slice(new),
            (_, true) => {}
            _ => o.iter_mut().zip(new).for_each(|(o, n)| *o -= (*o - n) / (1.0 + (a - b).exp())),
        }
        want.lse[row] = if a == f64::NEG_INFINITY { b } else { a + (b - a).exp().ln_1p() };
    }
    want
}
