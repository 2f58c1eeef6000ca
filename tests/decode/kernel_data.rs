//! Cases of the decode kernel, and what they read: caches laid out in every way, with NaN wherever no query looks.

use super::layout::{self, Row};
use lookback_device::Element;
use lookback_reference::{
    e4m3,
    lean_decode::{
        Attention, Cache, Inputs, List, Output, forward,
        schedule::{Cut, Schedule, Tiles},
    },
};
use lookback_suite::random::{Random, round};

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

    pub fn list_stride(&self) -> usize {
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
