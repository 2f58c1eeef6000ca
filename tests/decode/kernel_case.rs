//! Launches of `lean_decode` by hand, with a schedule made on the host, and what its oracle says of them.

use super::layout::{self, Row};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_device::{DType, Element, launch};
use lookback_kernels::{Kernel, args::LeanDecode, find};
use lookback_reference::{
    e4m3,
    lean_decode::{
        Attention, Cache, Inputs, List, Output, forward,
        schedule::{Cut, Schedule, Tiles},
    },
};
use lookback_suite::{
    buffer::{Guarded, download, upload},
    device,
    measure::{Gate, assert_close, errors},
    random::{Random, round},
};

/// Where keys lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// So many slots a request.
    Dense(usize),
    Ragged,
    /// Pages of so many keys, dealt at random.
    Paged(usize),
}

/// Factors of an e4m3 cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factors {
    None,
    /// One for all.
    Tensor,
    /// One a key and head.
    Token,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub e4m3: bool,
    pub factors: Factors,
    pub dim: usize,
    pub rows: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub heads: usize,
    pub key_heads: usize,
    /// Queries of each request, or the most of them when packed.
    pub query_len: usize,
    /// Packed queries: how many each request has.
    pub packed: Option<Vec<usize>>,
    pub kv_len: Vec<i32>,
    pub place: Place,
    /// Heads outside of places.
    pub hnd: bool,
    /// Something lies between rows.
    pub spaced: bool,
    pub left: Option<u32>,
    pub first: u32,
    pub softcap: Option<f64>,
    pub alibi: bool,
    pub sink: bool,
    /// Entries of each list, of a stride of the greatest.
    pub lists: Option<Vec<i32>>,
    pub logits: bool,
    pub out_f32: bool,
    pub slots: usize,
    pub min_tiles: u64,
}

impl Case {
    /// Dense, 16 bits, 16 rows.
    pub fn new(dim: usize, kv_len: &[i32], heads: usize, key_heads: usize) -> Self {
        let capacity = kv_len.iter().max().map_or(1, |n| (*n).max(1) as usize + 3);
        Self {
            e4m3: false,
            factors: Factors::None,
            dim,
            rows: 16,
            head_dim: dim,
            value_dim: dim,
            heads,
            key_heads,
            query_len: 1,
            packed: None,
            kv_len: kv_len.to_vec(),
            place: Place::Dense(capacity),
            hnd: false,
            spaced: true,
            left: None,
            first: 0,
            softcap: None,
            alibi: false,
            sink: false,
            lists: None,
            logits: false,
            out_f32: false,
            slots: 5,
            min_tiles: 1,
        }
    }

    pub fn batch(&self) -> usize {
        self.kv_len.len()
    }

    pub fn group(&self) -> usize {
        self.heads / self.key_heads
    }

    pub fn m_tiles(&self) -> usize {
        (self.query_len * self.group()).div_ceil(self.rows)
    }

    fn list_stride(&self) -> usize {
        self.lists.as_ref().map_or(0, |lens| lens.iter().copied().max().unwrap_or(0).max(1) as usize)
    }

    /// Columns of the logits, if they are wanted.
    pub fn logits_stride(&self) -> usize {
        let most = if self.lists.is_some() {
            self.list_stride()
        } else {
            self.kv_len.iter().copied().max().unwrap_or(0).max(1) as usize
        };
        if self.logits { most } else { 0 }
    }

    fn cut(&self) -> Cut {
        Cut { rows: self.rows, tile: 64, slots: self.slots as u64, min_tiles: self.min_tiles }
    }
}

/// Everything that a case reads. Keys and values are what the kernel should see: with their factors.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub k_codes: Vec<u8>,
    pub v_codes: Vec<u8>,
    pub k_scale: Vec<f64>,
    pub v_scale: Vec<f64>,
    pub cu_seqlens_q: Vec<i32>,
    /// Starts of ragged caches or of page tables.
    pub starts: Vec<i32>,
    pub indices: Vec<i32>,
    pub pages: usize,
    /// Places of a page.
    pub places: usize,
    pub slopes: Vec<f64>,
    pub sink: Vec<f64>,
    pub positions: Vec<i32>,
    pub scale: f64,
}

impl Data {
    pub fn new<T: Element>(case: &Case, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (batch, kv) = (case.batch(), case.key_heads);
        let queries = case.packed.clone().unwrap_or_else(|| vec![case.query_len; batch]);
        let mut cu_seqlens_q = vec![0];
        queries.iter().for_each(|n| cu_seqlens_q.push(cu_seqlens_q[cu_seqlens_q.len() - 1] + *n as i32));
        let tokens: usize = queries.iter().sum();
        let lengths: Vec<usize> = case.kv_len.iter().map(|n| (*n).max(0) as usize).collect();
        let (mut starts, mut indices) = (vec![0], Vec::new());
        let (pages, places) = match case.place {
            Place::Dense(capacity) => (batch, capacity),
            Place::Ragged => {
                // Sequences have room that they do not use.
                lengths.iter().for_each(|n| starts.push(starts[starts.len() - 1] + *n as i32 + 2));
                (1, starts[batch] as usize)
            }
            Place::Paged(size) => {
                let total: usize = lengths.iter().map(|n| n.div_ceil(size)).sum();
                let mut free: Vec<i32> = (0..total as i32 + 2).collect();
                for n in &lengths {
                    for _ in 0..n.div_ceil(size) {
                        let at = random.below(free.len());
                        indices.push(free.swap_remove(at));
                    }
                    starts.push(indices.len() as i32);
                }
                (total + 2, size)
            }
        };
        let positions = case.lists.as_ref().map_or_else(Vec::new, |_| {
            let stride = case.list_stride();
            let entry = |random: &mut Random, b: usize| match random.below(9) {
                0 => -1,
                _ => random.below(lengths[b].max(1)) as i32,
            };
            (0..batch * kv * stride).map(|at| entry(&mut random, at / (kv * stride))).collect()
        });
        let slots = pages * places;
        let mut data = Self {
            q: random.normals::<T>(tokens * case.heads * case.head_dim),
            k: vec![],
            v: vec![],
            k_codes: vec![],
            v_codes: vec![],
            k_scale: vec![],
            v_scale: vec![],
            cu_seqlens_q,
            starts,
            indices,
            pages,
            places,
            slopes: (0..case.heads).map(|h| round::<f32>(0.3 / (h + 1) as f64)).collect(),
            sink: (0..case.heads).map(|h| round::<f32>(h as f64 - 1.5)).collect(),
            positions,
            scale: f64::from(1.3 / (case.head_dim as f32).sqrt()),
        };
        let tensor = |random: &mut Random, dim: usize| {
            let raw: Vec<f64> = (0..slots * kv * dim).map(|_| random.normal()).collect();
            if !case.e4m3 {
                return (raw.iter().map(|v| round::<T>(*v)).collect::<Vec<f64>>(), vec![], vec![]);
            }
            let scales: Vec<f64> = match case.factors {
                Factors::None => vec![1.0; slots * kv],
                Factors::Tensor => vec![round::<f32>(0.031); slots * kv],
                Factors::Token => (0..slots * kv).map(|_| round::<f32>(random.uniform(0.002, 0.2))).collect(),
            };
            let codes: Vec<u8> = raw.iter().enumerate().map(|(at, v)| e4m3::encode(*v / scales[at / dim])).collect();
            let values = codes.iter().enumerate().map(|(at, code)| e4m3::decode(*code) * scales[at / dim]).collect();
            (values, codes, scales)
        };
        (data.k, data.k_codes, data.k_scale) = tensor(&mut random, case.head_dim);
        (data.v, data.v_codes, data.v_scale) = tensor(&mut random, case.value_dim);
        data.poison(case);
        data
    }

    /// What no query of a request sees is NaN, or as great as a code may be.
    fn poison(&mut self, case: &Case) {
        let seen = self.seen(case);
        let (kd, vd) = (case.head_dim, case.value_dim);
        for (at, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
            self.k[at * kd..][..kd].fill(f64::NAN);
            self.v[at * vd..][..vd].fill(f64::NAN);
            if case.e4m3 {
                self.k_codes[at * kd..][..kd].fill(0x7e);
                self.v_codes[at * vd..][..vd].fill(0x7e);
                self.k_scale[at] = f64::NAN;
                self.v_scale[at] = f64::NAN;
            }
        }
    }

    /// For each slot and key head, whether a query sees it.
    pub fn seen(&self, case: &Case) -> Vec<bool> {
        let (x, slots, kv) = (self.attention(case), self.pages * self.places, case.key_heads);
        let tokens = self.cu_seqlens_q[case.batch()] as usize;
        let mut seen = vec![false; slots * kv];
        for b in 0..case.batch() {
            let (n, queries) = (x.keys(b, slots), x.queries(b, tokens).len());
            for h in 0..kv {
                let keys: Vec<i64> = match (&case.lists, case.list_stride()) {
                    (None, _) => (0..n as i64).collect(),
                    (Some(lens), stride) => {
                        let row = b * kv + h;
                        self.positions[row * stride..][..lens[row].clamp(0, stride as i32) as usize]
                            .iter()
                            .map(|j| i64::from(*j))
                            .collect()
                    }
                };
                for j in keys {
                    if (0..queries).any(|i| x.sees(i as i64 + n as i64 - queries as i64, n, j))
                        && let Some(slot) = x.cache.slot(b, j as usize, slots)
                    {
                        seen[slot * kv + h] = true;
                    }
                }
            }
        }
        seen
    }

    /// The oracle's view.
    pub fn attention<'a>(&'a self, case: &'a Case) -> Attention<'a> {
        let cache = match case.place {
            Place::Dense(capacity) => Cache::Dense { capacity },
            Place::Ragged => Cache::Ragged { starts: &self.starts },
            Place::Paged(page_size) => Cache::Paged { page_size, indptr: &self.starts, indices: &self.indices },
        };
        Attention {
            batch: case.batch(),
            query_len: case.query_len,
            heads: case.heads,
            key_heads: case.key_heads,
            head_dim: case.head_dim,
            value_dim: case.value_dim,
            cu_seqlens_q: case.packed.is_some().then_some(&self.cu_seqlens_q[..]),
            kv_len: &case.kv_len,
            cache,
            scale: self.scale,
            softcap: case.softcap,
            left: case.left,
            sink_tokens: case.first,
            list: case.lists.as_ref().map(|len| List { positions: &self.positions, len, stride: case.list_stride() }),
            alibi_slopes: case.alibi.then_some(&self.slopes[..]),
            sink: case.sink.then_some(&self.sink[..]),
            logits_stride: case.logits_stride(),
        }
    }

    pub fn want(&self, case: &Case) -> Output {
        forward(&self.attention(case), &Inputs { q: &self.q, k: &self.k, v: &self.v })
    }

    /// The schedule, and its words.
    pub fn schedule(&self, case: &Case) -> (Schedule, Vec<u32>) {
        let (x, cut, slots) = (self.attention(case), case.cut(), self.pages * self.places);
        let tokens = self.cu_seqlens_q[case.batch()] as usize;
        let schedule = Schedule::of(&x, &cut, tokens, slots);
        let (mut rows, mut requests) = (Vec::new(), Vec::new());
        for b in 0..case.batch() {
            let n = x.keys(b, slots);
            for m_tile in 0..case.m_tiles() {
                for h in 0..case.key_heads {
                    let tiles = Tiles::of(&x, &cut, b, m_tile, h, tokens, slots);
                    let listed = case
                        .lists
                        .as_ref()
                        .map(|lens| lens[b * case.key_heads + h].clamp(0, case.list_stride() as i32) as u32);
                    let head_tiles = tiles.sink.end as u32;
                    rows.push(Row {
                        keys: listed.unwrap_or(n as u32),
                        head_tiles,
                        skip: tiles.window.start as u32 - head_tiles,
                    });
                }
            }
            let queries = x.queries(b, tokens);
            let query = if case.packed.is_some() { queries.start as u32 } else { 0 };
            let start = if matches!(case.place, Place::Dense(_)) { 0 } else { self.starts[b] as u32 };
            requests.push([n as u32, query, queries.len() as u32, start]);
        }
        let words = layout::words(&schedule, &rows, &requests, case.slots);
        (schedule, words)
    }

    /// `[page, place, head, columns]` as the case wants it in memory, in rows of `pitch`.
    pub fn place<V: Copy>(&self, case: &Case, values: &[V], columns: usize, pitch: usize, fill: V) -> Vec<V> {
        let kv = case.key_heads;
        let mut placed = vec![fill; self.pages * self.places * kv * pitch];
        let [page, place, head] = strides(case, self.places, pitch).map(|s| s as usize);
        for (at, row) in values.chunks_exact(columns).enumerate() {
            let (slot, h) = (at / kv, at % kv);
            placed[slot / self.places * page + slot % self.places * place + h * head..][..columns].copy_from_slice(row);
        }
        placed
    }
}

/// Strides of page, place and head for rows of `pitch`.
pub fn strides(case: &Case, places: usize, pitch: usize) -> [i64; 3] {
    let kv = case.key_heads;
    let inner = if case.hnd { [pitch, places * pitch] } else { [kv * pitch, pitch] };
    [places * kv * pitch, inner[0], inner[1]].map(|s| s as i64)
}

/// Elements from row to row of a tensor with so many columns: there is something behind each.
pub fn pitch(case: &Case, columns: usize) -> usize {
    columns
        + if !case.spaced {
            0
        } else if case.e4m3 {
            16
        } else {
            8
        }
}

pub fn kernel(case: &Case, dtype: DType) -> &'static Kernel {
    let (dim, rows) = (case.dim.to_string(), case.rows.to_string());
    let cache = if case.e4m3 { "e4m3" } else { "same" };
    let variant = [("dtype", dtype.name()), ("cache", cache), ("dim", dim.as_str()), ("rows", rows.as_str())];
    find("lean_decode", &variant).expect("every variant is built")
}

/// Everything but pointers.
pub fn sizes(case: &Case, data: &Data) -> LeanDecode {
    let (h, kd, vd) = (case.heads as i64, case.head_dim as i64, case.value_dim as i64);
    let queries = if case.packed.is_some() { 0 } else { case.query_len as i64 };
    let logits = case.logits_stride() as i64;
    let [kp, kt, kh] = strides(case, data.places, pitch(case, case.head_dim));
    let [vp, vt, vh] = strides(case, data.places, pitch(case, case.value_dim));
    let [sp, st, sh] = if case.factors == Factors::Token { strides(case, data.places, 1) } else { [0; 3] };
    let page_size = match case.place {
        Place::Ragged => i32::MAX as u32,
        _ => data.places as u32,
    };
    let shift = 31 + page_size.next_power_of_two().trailing_zeros();
    LeanDecode {
        q_stride_batch: queries * h * kd,
        q_stride_token: h * kd,
        q_stride_head: kd,
        o_stride_batch: queries * h * vd,
        o_stride_token: h * vd,
        o_stride_head: vd,
        lse_stride_batch: queries * h,
        lse_stride_token: h,
        lse_stride_head: 1,
        logits_stride_batch: if queries > 0 { h * queries * logits } else { 0 },
        logits_stride_token: if queries > 0 { logits } else { h * logits },
        logits_stride_head: if queries > 0 { queries * logits } else { logits },
        k_stride_page: kp,
        k_stride_place: kt,
        k_stride_head: kh,
        v_stride_page: vp,
        v_stride_place: vt,
        v_stride_head: vh,
        k_scale_stride_page: sp,
        k_scale_stride_place: st,
        k_scale_stride_head: sh,
        v_scale_stride_page: sp,
        v_scale_stride_place: st,
        v_scale_stride_head: sh,
        list_stride_batch: (case.key_heads * case.list_stride()) as i64,
        list_stride_head: case.list_stride() as i64,
        requests: case.batch() as u32,
        m_tiles: case.m_tiles() as u32,
        key_heads: case.key_heads as u32,
        group: case.group() as u32,
        head_dim: case.head_dim as u32,
        value_dim: case.value_dim as u32,
        dense: u32::from(matches!(case.place, Place::Dense(_))),
        num_pages: data.pages as u32,
        num_indices: data.indices.len() as u32,
        places: data.places as u32,
        page_size,
        page_magic: (1_u64 << shift).div_ceil(u64::from(page_size)) as u32,
        page_shift: shift,
        out_f32: u32::from(case.out_f32),
        left: case.left.map_or(1 << 30, |left| left as i32),
        first: case.first,
        scale: data.scale as f32,
        softcap: case.softcap.unwrap_or(0.0) as f32,
        ..Zeroable::zeroed()
    }
}

/// What a launch left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Out {
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    pub logits: Vec<f64>,
    pub status: u32,
}

/// What logits hold that nobody wrote.
pub const UNTOUCHED: f32 = 12345.0;

/// Runs a case; counters must come back as zeros.
pub fn run<T: Element>(case: &Case, data: &Data) -> Out {
    run_with::<T>(case, data, |_| ())
}

/// Arguments of a case with everything that it reads, each where `place` puts it.
pub fn inputs<T: Element>(case: &Case, data: &Data, mut place: impl FnMut(Vec<u8>) -> u64) -> LeanDecode {
    fn bytes<V: bytemuck::Pod>(values: &[V]) -> Vec<u8> {
        bytemuck::cast_slice(values).to_vec()
    }
    fn elements<V: Element>(values: &[f64]) -> Vec<u8> {
        bytes(&values.iter().map(|v| V::from_f64(*v)).collect::<Vec<V>>())
    }
    let mut args = sizes(case, data);
    args.p_q = place(elements::<T>(&data.q));
    args.p_schedule = place(bytes(&data.schedule(case).1));
    let tensors = [(&data.k, &data.k_codes, case.head_dim), (&data.v, &data.v_codes, case.value_dim)];
    [args.p_k, args.p_v] = tensors.map(|(values, codes, columns)| {
        let pitch = pitch(case, columns);
        place(if case.e4m3 {
            data.place(case, codes, columns, pitch, 0x7e)
        } else {
            elements::<T>(&data.place(case, values, columns, pitch, f64::NAN))
        })
    });
    [args.p_k_scale, args.p_v_scale] = [&data.k_scale, &data.v_scale].map(|scales| match case.factors {
        Factors::None => 0,
        Factors::Tensor => place(bytes(&[0.031_f32])),
        Factors::Token => place(elements::<f32>(&data.place(case, scales, 1, 1, f64::NAN))),
    });
    if matches!(case.place, Place::Paged(_)) {
        args.p_kv_indices = place(bytes(if data.indices.is_empty() { &[0] } else { &data.indices }));
    }
    if case.lists.is_some() {
        args.p_list = place(bytes(&data.positions));
    }
    if case.alibi {
        args.p_alibi_slopes = place(elements::<f32>(&data.slopes));
    }
    if case.sink {
        args.p_sink = place(elements::<f32>(&data.sink));
    }
    args.p_partials = place(bytes(&vec![f32::NAN; 2 * case.slots * case.rows * (case.dim + 2)]));
    args
}

/// Rows of the schedule.
pub fn rows(case: &Case) -> usize {
    case.batch() * case.m_tiles() * case.key_heads
}

/// The same, with other arguments than a host would give.
pub fn run_with<T: Element>(case: &Case, data: &Data, change: impl Fn(&mut LeanDecode)) -> Out {
    let stream = device::stream();
    let tokens = data.cu_seqlens_q[case.batch()] as usize;
    let mut held: Vec<CudaSlice<u8>> = Vec::new();
    let mut args = inputs::<T>(case, data, |bytes| {
        held.push(upload(&bytes));
        held[held.len() - 1].device_ptr(&stream).0
    });
    let (counters, status) = (upload(&vec![0_u32; rows(case)]), upload(&[0_u32]));
    let mut o = Guarded::<T>::poisoned(tokens * case.heads * case.value_dim, 8);
    let mut wide = Guarded::<f32>::poisoned(tokens * case.heads * case.value_dim, 8);
    let mut lse = Guarded::<f32>::poisoned(tokens * case.heads, 1);
    let mut logits = Guarded::<f32>::filled(tokens * case.heads * case.logits_stride(), 1, UNTOUCHED);
    {
        let ((counters, _counters), (status, _status)) = (counters.device_ptr(&stream), status.device_ptr(&stream));
        let (mut o, mut wide) = (o.view_mut(), wide.view_mut());
        let (mut lse, mut logits) = (lse.view_mut(), logits.view_mut());
        args.p_o = if case.out_f32 { wide.device_ptr_mut(&stream).0 } else { o.device_ptr_mut(&stream).0 };
        args.p_lse = lse.device_ptr_mut(&stream).0;
        args.p_logits = if case.logits { logits.device_ptr_mut(&stream).0 } else { 0 };
        (args.p_counters, args.p_status) = (counters, status);
        change(&mut args);
        // SAFETY: all buffers have the extents that the kernel's contract names, and live until their contents are read back.
        unsafe { launch(&stream, kernel(case, T::DTYPE), [case.slots as u32, 1, 1], &args) }
            .unwrap_or_else(|e| panic!("{case:?}: {e}"));
        device::finish();
    }
    assert!(download(&counters).iter().all(|count| *count == 0), "{case:?}: a counter is left");
    let o = if case.out_f32 { wide.read() } else { o.read() };
    Out { o, lse: lse.read(), logits: logits.read(), status: download(&status)[0] }
}

/// The gate of an element type.
pub fn gate<T: Element>() -> Gate {
    lookback_suite::measure::gate(T::DTYPE)
}

/// What is wrong with a result, if anything.
pub fn wrong<T: Element>(case: &Case, data: &Data, out: &Out) -> Option<String> {
    let want = data.want(case);
    match errors(&out.o, &want.o, case.value_dim) {
        Ok(e) if e.within(gate::<T>()) => {}
        e => return Some(format!("o: {e:?}")),
    }
    for (at, (got, want)) in out.lse.iter().zip(&want.lse).enumerate() {
        if !((got - want).abs() <= 1e-4 || got == want) {
            return Some(format!("lse {at}: {got}, the oracle has {want}"));
        }
    }
    for (at, (got, want)) in out.logits.iter().zip(&logits(case, data, &want)).enumerate() {
        let is_unseen = *want == f64::NEG_INFINITY && (*got == *want || *got == f64::from(UNTOUCHED));
        if !((got - want).abs() <= 2e-4 || is_unseen) {
            return Some(format!("logit {at}: {got}, the oracle has {want}"));
        }
    }
    None
}

/// The oracle's logits in the order of the kernel's: by tokens where queries are packed.
fn logits(case: &Case, data: &Data, want: &Output) -> Vec<f64> {
    let (heads, stride) = (case.heads, case.logits_stride());
    if case.packed.is_none() || stride == 0 {
        return want.logits.clone();
    }
    let mut packed = Vec::new();
    for b in 0..case.batch() {
        for i in 0..(data.cu_seqlens_q[b + 1] - data.cu_seqlens_q[b]) as usize {
            for h in 0..heads {
                packed.extend(&want.logits[((b * heads + h) * case.query_len + i) * stride..][..stride]);
            }
        }
    }
    packed
}

/// Runs a case against its oracle; the status must be `status`.
pub fn check_status<T: Element>(case: &Case, data: &Data, status: u32) -> Out {
    let out = run::<T>(case, data);
    if let Some(wrong) = wrong::<T>(case, data, &out) {
        let want = data.want(case);
        assert_close(&format!("{wrong}: {case:?}"), &out.o, &want.o, case.value_dim, gate::<T>());
        panic!("{wrong}: {case:?}");
    }
    assert_eq!(out.status, status, "{case:?}: status");
    out
}

/// Runs a case on fresh data in both types.
pub fn check(case: &Case) {
    check_status::<bf16>(case, &Data::new::<bf16>(case, 11), 0);
    check_status::<f16>(case, &Data::new::<f16>(case, 12), 0);
}
