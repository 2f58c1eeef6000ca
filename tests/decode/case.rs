//! One decode step on the device beside the same one in f64.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_decode::{
    Cache, CacheType, Inputs, KeyValues, Lengths, Options, Output, Outputs, Plan, Result, Scales, Schedule, Shape,
    Tuning, Workspace,
};
use lookback_device::{DType, Element};
use lookback_reference::{
    e4m3,
    lean_decode::{self as reference, Attention},
};
use lookback_suite::{
    buffer::{Guarded, download, upload, upload_as},
    device,
    measure::{assert_close, gate},
    random::{Random, round},
};

/// Where keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With this much room a request.
    Dense(usize),
    Ragged,
    /// Of this many tokens.
    Paged(usize),
}

/// What to compute.
#[derive(Debug, Clone)]
pub struct Case {
    pub dtype: DType,
    pub kind: Kind,
    pub heads_first: bool,
    pub cache: CacheType,
    /// Keys of each request.
    pub keys: Vec<usize>,
    /// Queries of each request; all of them, or of each when packed.
    pub query_len: usize,
    pub packed: Option<Vec<usize>>,
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub left: Option<u32>,
    pub sink_tokens: u32,
    /// Entries of each list.
    pub list: Option<usize>,
    pub logits: Option<usize>,
    pub alibi: bool,
    pub sink: bool,
    pub tuning: Tuning,
    pub seed: u64,
}

impl Case {
    /// bf16, one query, 4 heads on 2, 64 channels, dense.
    pub fn new(keys: &[usize]) -> Self {
        Self {
            dtype: DType::Bf16,
            kind: Kind::Dense(keys.iter().copied().max().unwrap_or(0) + 3),
            heads_first: false,
            cache: CacheType::Same,
            keys: keys.to_vec(),
            query_len: 1,
            packed: None,
            heads: 4,
            key_heads: 2,
            head_dim: 64,
            value_dim: 64,
            scale: 0.125,
            softcap: None,
            left: None,
            sink_tokens: 0,
            list: None,
            logits: None,
            alibi: false,
            sink: false,
            tuning: Tuning::default(),
            seed: 1,
        }
    }

    pub fn slots(self, slots: u32) -> Self {
        Self { tuning: Tuning { slots: Some(slots), ..self.tuning }, ..self }
    }

    pub fn min_tiles(self, tiles: u32) -> Self {
        Self { tuning: Tuning { min_tiles: Some(tiles), ..self.tuning }, ..self }
    }

    pub fn tokens(&self) -> usize {
        self.packed.as_ref().map_or(self.keys.len() * self.query_len, |queries| queries.iter().sum())
    }

    pub fn shape(&self, tables: &Tables) -> Shape {
        let shape = Shape::new(self.keys.len(), self.heads, self.key_heads, self.head_dim, tables.cache);
        let packed = self.packed.as_ref().map(|_| self.tokens());
        let shape = Shape { query_len: self.query_len, packed, value_dim: self.value_dim, ..shape };
        if self.heads_first { shape.heads_first() } else { shape }
    }

    pub fn options(&self) -> Options {
        Options {
            dtype: self.dtype,
            cache: self.cache,
            output: Output::Same,
            scale: self.scale,
            softcap: self.softcap,
            left: self.left,
            sink_tokens: self.sink_tokens,
            list: self.list,
            logits: self.logits,
            tuning: self.tuning,
        }
    }

    pub fn plan(&self, tables: &Tables) -> Plan {
        Plan::new(&self.shape(tables), &self.options(), &device::info()).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    /// Runs on the device and holds everything against the oracle.
    pub fn check(&self) {
        let tables = Tables::new(self);
        match self.dtype {
            DType::F16 => self.check_data::<f16>(&tables, &Data::new::<f16>(self, &tables)),
            _ => self.check_data::<bf16>(&tables, &Data::new::<bf16>(self, &tables)),
        }
    }

    /// The same with tables and tensors of the caller's.
    pub fn check_data<T: Element>(&self, tables: &Tables, data: &Data) {
        let got = On::<T>::new(self, tables, data).run();
        got.status.as_ref().unwrap_or_else(|e| panic!("{self:?}: {e}"));
        self.compare(&got, &data.oracle(self, tables));
    }

    /// Every output against the oracle's.
    pub fn compare(&self, got: &Computed, want: &reference::Output) {
        assert_close(&format!("o of {self:?}"), &got.o, &want.o, self.value_dim, gate(self.dtype));
        for (at, (got, want)) in got.lse.iter().zip(&want.lse).enumerate() {
            assert!(got == want || (got - want).abs() <= 1e-4, "lse[{at}] = {got}, not {want}: {self:?}");
        }
        let Some(columns) = self.logits else { return };
        // The oracle's logits are [B, H, query_len, columns], and so are the device's unless queries are packed.
        let packed = self.packed.as_ref().map(|queries| starts(queries.iter().copied()));
        for (row, want) in want.logits.chunks_exact(columns).enumerate() {
            let (b, h, i) =
                (row / self.query_len / self.heads, row / self.query_len % self.heads, row % self.query_len);
            let row = match (&packed, &self.packed) {
                (Some(starts), Some(queries)) if i < queries[b] => (starts[b] as usize + i) * self.heads + h,
                (Some(_), _) => continue,
                _ => row,
            };
            for (at, (got, want)) in got.logits[row * columns..][..columns].iter().zip(want).enumerate() {
                // Tiles that nobody sees keep their poison.
                let is_close = if want.is_finite() { (got - want).abs() <= 1e-4 } else { got == want || got.is_nan() };
                assert!(is_close, "logit {at} of request {b}, head {h}, query {i} is {got}, not {want}: {self:?}");
            }
        }
    }
}

/// Lengths and tables of a case.
#[derive(Debug, Clone)]
pub struct Tables {
    pub cache: Cache,
    pub kv_len: Vec<i32>,
    pub cu_seqlens_q: Option<Vec<i32>>,
    pub kv_indptr: Option<Vec<i32>>,
    pub kv_indices: Option<Vec<i32>>,
    /// Positions, and how many.
    pub list: Option<(Vec<i32>, Vec<i32>)>,
}

fn starts(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let mut starts = vec![0];
    for length in lengths {
        starts.push(starts[starts.len() - 1] + length as i32);
    }
    starts
}

impl Tables {
    /// Pages in random order among others that nobody has; lists that leave out every third key and name a few that are not there.
    pub fn new(case: &Case) -> Self {
        let mut random = Random::new(case.seed + 77);
        let (mut kv_indptr, mut kv_indices) = (None, None);
        let cache = match case.kind {
            Kind::Dense(capacity) => Cache::Dense { capacity },
            Kind::Ragged => {
                // A little more room than keys.
                let rooms = starts(case.keys.iter().map(|n| n + 2));
                let tokens = rooms[case.keys.len()] as usize + 1;
                kv_indptr = Some(rooms);
                Cache::Ragged { tokens }
            }
            Kind::Paged(page_size) => {
                let counts = case.keys.iter().map(|n| n.div_ceil(page_size));
                let used: usize = counts.clone().sum();
                let pages = used + 3;
                let mut order: Vec<i32> = (0..pages as i32).collect();
                for at in 0..pages {
                    order.swap(at, at + random.below(pages - at));
                }
                kv_indptr = Some(starts(counts));
                kv_indices = Some(order[..used].to_vec());
                Cache::Paged { pages, page_size, table: used }
            }
        };
        let list = case.list.map(|entries| {
            let rows = case.keys.len() * case.key_heads;
            let (mut positions, mut len) = (Vec::new(), Vec::new());
            for row in 0..rows {
                let keys = case.keys[row / case.key_heads];
                let mut named: Vec<i32> = (0..keys as i32).filter(|j| (j + row as i32) % 3 != 0).collect();
                for at in 0..named.len() {
                    let left = named.len() - at;
                    named.swap(at, at + random.below(left));
                }
                named.insert(named.len() / 2, -1);
                named.truncate(entries);
                len.push(named.len() as i32);
                named.resize(entries, i32::MIN);
                positions.extend(named);
            }
            (positions, len)
        });
        Self {
            cache,
            kv_len: case.keys.iter().map(|n| *n as i32).collect(),
            cu_seqlens_q: case.packed.as_ref().map(|queries| starts(queries.iter().copied())),
            kv_indptr,
            kv_indices,
            list,
        }
    }

    /// Token slots of the cache.
    pub fn slots(&self) -> usize {
        match self.cache {
            Cache::Dense { capacity } => self.kv_len.len() * capacity,
            Cache::Ragged { tokens } => tokens,
            Cache::Paged { pages, page_size, .. } => pages * page_size,
        }
    }

    pub fn reference<'a>(&'a self, case: &'a Case) -> Attention<'a> {
        let indptr = self.kv_indptr.as_deref().unwrap_or(&[]);
        Attention {
            batch: case.keys.len(),
            query_len: case.query_len,
            heads: case.heads,
            key_heads: case.key_heads,
            head_dim: case.head_dim,
            value_dim: case.value_dim,
            cu_seqlens_q: self.cu_seqlens_q.as_deref(),
            kv_len: &self.kv_len,
            cache: match self.cache {
                Cache::Dense { capacity } => reference::Cache::Dense { capacity },
                Cache::Ragged { .. } => reference::Cache::Ragged { starts: indptr },
                Cache::Paged { page_size, .. } => {
                    reference::Cache::Paged { page_size, indptr, indices: self.kv_indices.as_deref().unwrap_or(&[]) }
                }
            },
            scale: f64::from(case.scale),
            softcap: case.softcap.map(f64::from),
            left: case.left,
            sink_tokens: case.sink_tokens,
            list: self.list.as_ref().map(|(positions, len)| reference::List {
                positions,
                len,
                stride: case.list.unwrap_or(0),
            }),
            alibi_slopes: None,
            sink: None,
            logits_stride: case.logits.unwrap_or(0),
        }
    }
}

/// Tensors, rounded to their types; slots that no request has are NaN.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Vec<f64>,
    /// `[slots, Hk, D]`.
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    /// `[slots, Hk]`, 1 without; what is shared is repeated.
    pub k_scale: Vec<f64>,
    pub v_scale: Vec<f64>,
    pub alibi_slopes: Option<Vec<f64>>,
    pub sink: Option<Vec<f64>>,
}

impl Data {
    pub fn new<T: Element>(case: &Case, tables: &Tables) -> Self {
        let mut random = Random::new(case.seed);
        let (slots, heads) = (tables.slots(), case.key_heads);
        let attention = tables.reference(case);
        let mut used = vec![false; slots];
        for (b, keys) in case.keys.iter().enumerate() {
            for slot in (0..*keys).filter_map(|j| attention.cache.slot(b, j, slots)) {
                used[slot] = true;
            }
        }
        let scales = |random: &mut Random| -> Vec<f64> {
            let of_heads: Vec<f64> = (0..heads).map(|_| round::<f32>(random.uniform(0.01, 0.03))).collect();
            let of = |slot: usize, h: usize, random: &mut Random| match case.cache {
                CacheType::Same => 1.0,
                CacheType::E4m3(Scales::Tensor) => of_heads[0],
                CacheType::E4m3(Scales::Head) => of_heads[h],
                CacheType::E4m3(Scales::Token) if used[slot] => round::<f32>(random.uniform(0.01, 0.03)),
                CacheType::E4m3(Scales::Token) => f64::NAN,
            };
            (0..slots * heads).map(|i| of(i / heads, i % heads, random)).collect()
        };
        let (k_scale, v_scale) = (scales(&mut random), scales(&mut random));
        let mut cache = |width: usize, scale: &[f64]| -> Vec<f64> {
            let mut values = vec![f64::NAN; slots * heads * width];
            for (row, values) in values.chunks_exact_mut(width.max(1)).enumerate().filter(|(row, _)| used[row / heads])
            {
                for value in values {
                    let x = random.normal();
                    *value = match case.cache {
                        CacheType::Same => round::<T>(x),
                        CacheType::E4m3(_) => e4m3::decode(e4m3::encode(x / scale[row])) * scale[row],
                    };
                }
            }
            values
        };
        let (k, v) = (cache(case.head_dim, &k_scale), cache(case.value_dim, &v_scale));
        let slopes = |random: &mut Random| (0..case.heads).map(|_| round::<f32>(random.uniform(0.0, 0.1))).collect();
        Self {
            q: random.normals::<T>(case.tokens() * case.heads * case.head_dim),
            k,
            v,
            k_scale,
            v_scale,
            alibi_slopes: case.alibi.then(|| slopes(&mut random)),
            sink: case.sink.then(|| random.normals::<f32>(case.heads)),
        }
    }

    pub fn oracle(&self, case: &Case, tables: &Tables) -> reference::Output {
        let x = Attention {
            alibi_slopes: self.alibi_slopes.as_deref(),
            sink: self.sink.as_deref(),
            ..tables.reference(case)
        };
        reference::forward(&x, &reference::Inputs { q: &self.q, k: &self.k, v: &self.v })
    }
}

/// Outputs and what is left behind.
#[derive(Debug)]
pub struct Computed {
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    pub logits: Vec<f64>,
    pub status: Result<()>,
}

/// A case in device memory.
pub struct On<T> {
    pub case: Case,
    pub plan: Plan,
    pub schedule: Schedule,
    pub workspace: Workspace,
    pub q: CudaSlice<T>,
    same: Option<(CudaSlice<T>, CudaSlice<T>)>,
    codes: Option<(CudaSlice<u8>, CudaSlice<u8>)>,
    scales: (CudaSlice<f32>, CudaSlice<f32>),
    kv_len: CudaSlice<i32>,
    cu_seqlens_q: Option<CudaSlice<i32>>,
    kv_indptr: Option<CudaSlice<i32>>,
    kv_indices: Option<CudaSlice<i32>>,
    list: Option<(CudaSlice<i32>, CudaSlice<i32>)>,
    alibi_slopes: Option<CudaSlice<f32>>,
    sink: Option<CudaSlice<f32>>,
    logits: usize,
}

/// `[pages, places, Hk, width]` as `[pages, Hk, places, width]`.
fn turned<V: Copy>(values: &[V], places: usize, heads: usize, width: usize) -> Vec<V> {
    let mut out = Vec::with_capacity(values.len());
    for page in values.chunks_exact((places * heads * width).max(1)) {
        for h in 0..heads {
            for place in 0..places {
                out.extend_from_slice(&page[(place * heads + h) * width..][..width]);
            }
        }
    }
    out
}

impl<T: Element> On<T> {
    pub fn new(case: &Case, tables: &Tables, data: &Data) -> Self {
        let plan = case.plan(tables);
        let stream = device::stream();
        let places = match tables.cache {
            Cache::Dense { capacity } => capacity,
            Cache::Ragged { tokens } => tokens,
            Cache::Paged { page_size, .. } => page_size,
        };
        let laid = |values: &[f64], width: usize| match case.heads_first {
            true => turned(values, places, case.key_heads, width),
            false => values.to_vec(),
        };
        let codes = |values: &[f64], scale: &[f64], width: usize| -> Vec<u8> {
            let code = |(i, v): (usize, &f64)| e4m3::encode(v / scale[i / width]);
            let codes: Vec<u8> = values.iter().enumerate().map(code).collect();
            if case.heads_first { turned(&codes, places, case.key_heads, width) } else { codes }
        };
        let scale = |scale: &[f64]| match case.cache {
            CacheType::Same => upload_as::<f32>(&[]),
            CacheType::E4m3(Scales::Tensor) => upload_as::<f32>(&scale[..1]),
            CacheType::E4m3(Scales::Head) => upload_as::<f32>(&scale[..case.key_heads]),
            CacheType::E4m3(Scales::Token) => upload_as::<f32>(&laid(scale, 1)),
        };
        let (dim, value_dim) = (case.head_dim, case.value_dim);
        let is_same = case.cache == CacheType::Same;
        Self {
            schedule: Schedule::new(&stream, plan.schedule_bytes()).expect("memory"),
            workspace: Workspace::new(&stream, plan.workspace_bytes()).expect("memory"),
            q: upload_as::<T>(&data.q),
            same: is_same.then(|| (upload_as::<T>(&laid(&data.k, dim)), upload_as::<T>(&laid(&data.v, value_dim)))),
            codes: (!is_same).then(|| {
                let (k, v) = (codes(&data.k, &data.k_scale, dim), codes(&data.v, &data.v_scale, value_dim));
                (upload(&k), upload(&v))
            }),
            scales: (scale(&data.k_scale), scale(&data.v_scale)),
            kv_len: upload(&tables.kv_len),
            cu_seqlens_q: tables.cu_seqlens_q.as_ref().map(|t| upload(t)),
            kv_indptr: tables.kv_indptr.as_ref().map(|t| upload(t)),
            kv_indices: tables.kv_indices.as_ref().map(|t| upload(t)),
            list: tables.list.as_ref().map(|(list, len)| (upload(list), upload(len))),
            alibi_slopes: data.alibi_slopes.as_ref().map(|s| upload_as::<f32>(s)),
            sink: data.sink.as_ref().map(|s| upload_as::<f32>(s)),
            logits: case.logits.unwrap_or(0) * case.heads * case.tokens(),
            case: case.clone(),
            plan,
        }
    }

    pub fn lengths(&self) -> Lengths<'_> {
        fn some(slice: &Option<CudaSlice<i32>>) -> Option<&dyn DevicePtr<i32>> {
            slice.as_ref().map(|s| s as &dyn DevicePtr<i32>)
        }
        Lengths {
            kv_len: &self.kv_len,
            cu_seqlens_q: some(&self.cu_seqlens_q),
            kv_indptr: some(&self.kv_indptr),
            kv_indices: some(&self.kv_indices),
            list: self.list.as_ref().map(|(list, _)| list as &dyn DevicePtr<i32>),
            list_len: self.list.as_ref().map(|(_, len)| len as &dyn DevicePtr<i32>),
        }
    }

    pub fn inputs(&self) -> Inputs<'_, T> {
        let cache = match (&self.same, &self.codes) {
            (Some((k, v)), _) => KeyValues::Same { k, v },
            (None, Some((k, v))) => KeyValues::E4m3 { k, v, k_scale: &self.scales.0, v_scale: &self.scales.1 },
            (None, None) => panic!("no cache"),
        };
        Inputs {
            q: &self.q,
            cache,
            lengths: self.lengths(),
            alibi_slopes: self.alibi_slopes.as_ref().map(|s| s as &dyn DevicePtr<f32>),
            sink: self.sink.as_ref().map(|s| s as &dyn DevicePtr<f32>),
        }
    }

    /// The schedule alone, as words.
    pub fn schedule(&mut self) -> Vec<u32> {
        let mut schedule = std::mem::replace(&mut self.schedule, Schedule::new(&device::stream(), 0).expect("memory"));
        self.plan.schedule(&device::stream(), &self.lengths(), &mut schedule).unwrap_or_else(|e| panic!("{e}"));
        device::finish();
        self.schedule = schedule;
        let bytes = download(self.schedule.slice());
        bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Schedule and attention into poisoned memory; counters must be zero afterwards.
    pub fn run(&mut self) -> Computed {
        self.schedule();
        self.attend()
    }

    /// Attention with the schedule that there is.
    pub fn attend(&mut self) -> Computed {
        let stream = device::stream();
        let case = self.case.clone();
        let rows = case.tokens() * case.heads;
        let mut o = Guarded::<T>::poisoned(rows * case.value_dim, 0);
        let mut lse = Guarded::<f32>::poisoned(rows, 1);
        let mut logits = Guarded::<f32>::poisoned(self.logits, 1);
        let mut workspace = Workspace::new(&stream, 0).expect("memory");
        std::mem::swap(&mut workspace, &mut self.workspace);
        {
            let (mut o, mut lse, mut logits) = (o.view_mut(), lse.view_mut(), logits.view_mut());
            let outputs = Outputs {
                o: &mut o,
                lse: Some(&mut lse),
                logits: case.logits.map(|_| &mut logits as &mut dyn DevicePtrMut<f32>),
            };
            let done = self.plan.run(&stream, &self.inputs(), outputs, &self.schedule, &mut workspace);
            done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
        }
        device::finish();
        let bytes = download(workspace.slice());
        assert!(bytes[..bytes.len() / 16 / 256 * 256].iter().all(|b| *b == 0), "counters are left at zero: {case:?}");
        self.workspace = workspace;
        let status = self.plan.status(&stream, &mut self.schedule);
        Computed { o: o.read(), lse: lse.read(), logits: logits.read(), status }
    }
}
