//! Cases of appending to a cache, and the oracle's answer to them.

use lookback_decode::{
    Cache, CacheType, Scales, Stride,
    append::{Inputs, Options, Outputs, Place, Plan, Rotary, Shape, Strides, Style},
};
use lookback_device::{
    Element,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_reference::{
    e4m3,
    kv_append::{self, Append, Located, Stored, Turn},
    lean_decode, rotary,
};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{assert_close, gate},
    random::{Random, round},
};

/// Of codes that nobody stored.
const UNTOUCHED: u8 = 0xa5;

#[derive(Debug, Clone)]
pub struct Case {
    pub heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub cache: Cache,
    pub scales: Option<Scales>,
    /// Scales of the first head of keys and values, where they are given.
    pub given: [f64; 2],
    pub rotary: Option<Rotary>,
    /// Elements between rows of everything.
    pub gap: usize,
    /// Elements off the alignment of the caches.
    pub shift: usize,
    pub heads_first: bool,
    /// Slots of the new tokens; otherwise requests have lengths.
    pub slot_map: Option<Vec<i64>>,
    pub kv_len: Vec<i32>,
    pub cu_seqlens: Option<Vec<i32>>,
    /// New tokens; those of all requests together.
    pub tokens: usize,
    pub kv_indptr: Vec<i32>,
    pub kv_indices: Vec<i32>,
    pub positions: Option<Vec<i32>>,
}

/// What a launch left: caches by slots, untouched ones NaN or 0, and the status word.
#[derive(Debug, PartialEq)]
pub struct After {
    pub k: Stored,
    pub v: Stored,
    pub status: u32,
}

/// Pages of 4 for three requests that have 9, 0 and 6 tokens; 2 and 3 of them are new.
pub fn paged() -> Case {
    Case {
        heads: 3,
        head_dim: 64,
        value_dim: 64,
        cache: Cache::Paged { pages: 8, page_size: 4, table: 6 },
        scales: None,
        given: [0.011, 0.023],
        rotary: None,
        gap: 0,
        shift: 0,
        heads_first: false,
        slot_map: None,
        kv_len: vec![9, 0, 6],
        cu_seqlens: Some(vec![0, 2, 2, 5]),
        tokens: 5,
        kv_indptr: vec![0, 3, 3, 5],
        kv_indices: vec![6, 1, 4, 7, 0, 0],
        positions: None,
    }
}

/// The same requests with one page each, and two new tokens a request.
pub fn dense() -> Case {
    let cache = Cache::Dense { capacity: 9 };
    let none = vec![];
    let (kv_indptr, kv_indices) = (none.clone(), none);
    Case { cache, kv_len: vec![9, 2, 6], cu_seqlens: None, tokens: 6, kv_indptr, kv_indices, ..paged() }
}

/// The same in one run of places.
pub fn ragged() -> Case {
    Case { cache: Cache::Ragged { tokens: 17 }, kv_indptr: vec![0, 9, 9, 17], kv_indices: vec![], ..paged() }
}

/// Five tokens with slots, one of which is not stored.
pub fn slots() -> Case {
    Case { slot_map: Some(vec![31, 0, -1, 7, 12]), positions: Some(vec![4, 0, 9, 100_000, -3]), ..paged() }
}

pub fn turn(style: Style, rotary_dim: usize) -> Option<Rotary> {
    Some(Rotary { rotary_dim, theta_dim: rotary_dim.max(1), base: 500.0, ..Rotary::new(style, rotary_dim) })
}

impl Case {
    pub fn batch(&self) -> usize {
        self.kv_len.len()
    }

    /// Pages, and places of one.
    fn extents(&self) -> [usize; 2] {
        match self.cache {
            Cache::Dense { capacity } => [self.batch(), capacity],
            Cache::Ragged { tokens } => [1, tokens],
            Cache::Paged { pages, page_size, .. } => [pages, page_size],
        }
    }

    pub fn shape(&self) -> Shape {
        let place = match (&self.slot_map, &self.cu_seqlens) {
            (Some(_), _) => Place::Slots,
            (None, Some(_)) => Place::Packed,
            (None, None) => Place::Requests { query_len: self.tokens.checked_div(self.batch()).unwrap_or(1) },
        };
        let base = Shape::packed(self.tokens, self.batch(), self.heads, self.head_dim, self.cache);
        let base = Shape { place, value_dim: self.value_dim, ..base };
        let shape = if self.heads_first { base.heads_first() } else { base };
        if self.gap == 0 {
            return shape;
        }
        let [_, places] = self.extents();
        let gap = self.gap as i64;
        let of = |width: usize, places: usize| {
            let head = width as i64 + gap;
            let token = self.heads as i64 * head + gap;
            Some(Stride { batch: places as i64 * token + gap, token, head })
        };
        let strides = Strides {
            k_new: of(self.head_dim, self.tokens),
            v_new: of(self.value_dim, self.tokens),
            k: of(self.head_dim, places),
            v: of(self.value_dim, places),
            k_scale: of(1, places),
            v_scale: of(1, places),
        };
        Shape { strides, ..shape }
    }

    pub fn options<T: Element>(&self) -> Options {
        let cache = self.scales.map_or(CacheType::Same, CacheType::E4m3);
        Options { cache, rotary: self.rotary, ..Options::new::<T>() }
    }

    /// Where row (slot, head) of a cache begins.
    fn place(&self, stride: Option<Stride>, width: usize) -> Vec<usize> {
        let [pages, places] = self.extents();
        let Stride { batch, token, head } = stride.unwrap_or(Stride::dense(places, self.heads, width));
        let of = |slot: usize, h: usize| {
            let (page, place) = (slot / places, slot % places);
            (page as i64 * batch + place as i64 * token + h as i64 * head) as usize
        };
        (0..pages * places * self.heads).map(|i| of(i / self.heads, i % self.heads)).collect()
    }

    /// New rows by strides, NaN between.
    fn spread(&self, rows: &[f64], stride: Option<Stride>, width: usize) -> Vec<f64> {
        let Stride { token, head, .. } = stride.unwrap_or(Stride::dense(self.tokens, self.heads, width));
        let at = |i: usize| (i / self.heads) * token as usize + (i % self.heads) * head as usize;
        let n = self.tokens * self.heads;
        let mut out = vec![f64::NAN; if n == 0 { 0 } else { at(n - 1) + width }];
        (0..n).for_each(|i| out[at(i)..][..width].copy_from_slice(&rows[i * width..][..width]));
        out
    }

    pub fn oracle_case(&self) -> Append<'_> {
        let cache = match self.cache {
            Cache::Dense { capacity } => lean_decode::Cache::Dense { capacity },
            Cache::Ragged { .. } => lean_decode::Cache::Ragged { starts: &self.kv_indptr },
            Cache::Paged { page_size, .. } => {
                lean_decode::Cache::Paged { page_size, indptr: &self.kv_indptr, indices: &self.kv_indices }
            }
        };
        let place = match &self.slot_map {
            Some(slots) => kv_append::Place::Slots(slots),
            None => kv_append::Place::Requests { kv_len: &self.kv_len, cu_seqlens: self.cu_seqlens.as_deref(), cache },
        };
        let turn = self.rotary.map(|r| Turn {
            style: if r.style == Style::Half { rotary::Style::Half } else { rotary::Style::Interleaved },
            base: r.base,
            rotary_dim: r.rotary_dim,
            theta_dim: r.theta_dim,
        });
        let Case { heads, head_dim, value_dim, .. } = *self;
        let slots = self.extents().iter().product();
        Append { heads, head_dim, value_dim, slots, place, turn, positions: self.positions.as_deref() }
    }

    /// Given scales of each head.
    fn given(&self) -> [Vec<f64>; 2] {
        let of = |first: f64| (0..self.heads).map(|h| round::<f32>(first * (1.0 + 0.37 * h as f64))).collect();
        let [k, v]: [Vec<f64>; 2] = self.given.map(of);
        if self.scales == Some(Scales::Tensor) { [vec![k[0]; self.heads], vec![v[0]; self.heads]] } else { [k, v] }
    }

    pub fn new_rows<T: Element>(&self, seed: u64) -> [Vec<f64>; 2] {
        let mut random = Random::new(seed);
        [self.head_dim, self.value_dim].map(|width| random.normals::<T>(self.tokens * self.heads * width))
    }

    pub fn oracle(&self, [k, v]: &[Vec<f64>; 2]) -> (After, Vec<Located>) {
        let append = self.oracle_case();
        let located = append.locate(self.tokens);
        let given = self.given();
        let of = |rows: &[f64], given: &[f64], width: usize| {
            let scales = match self.scales {
                None => kv_append::Scales::None,
                Some(Scales::Token) => kv_append::Scales::Computed,
                Some(_) => kv_append::Scales::Given(given),
            };
            let mut stored = kv_append::append(rows, self.heads, append.slots, &located, scales);
            // With no token there is no width.
            stored.values.resize(append.slots * self.heads * width, f64::NAN);
            stored.codes.resize(append.slots * self.heads * width, 0);
            stored
        };
        let (k, v) = (of(&append.turned(k, &located), &given[0], self.head_dim), of(v, &given[1], self.value_dim));
        (After { k, v, status: located.iter().fold(0, |bits, l| bits | l.status) }, located)
    }
}

/// One cache on the device.
struct Pool<E> {
    buffer: Guarded<E>,
    at: Vec<usize>,
    width: usize,
    span: usize,
}

impl<E: lookback_device::cudarc::driver::DeviceRepr + Copy> Pool<E> {
    fn new(case: &Case, stride: Option<Stride>, width: usize, fill: E) -> Self {
        let at = case.place(stride, width);
        let span = at.iter().max().map_or(0, |last| last + width);
        Self { buffer: Guarded::filled(span, case.shift, fill), at, width, span }
    }

    /// Rows by (slot, head). What lies between them must be as it was.
    fn rows<V: Copy>(&self, all: &[V], is_untouched: impl Fn(V) -> bool) -> Vec<V> {
        assert_eq!(all.len(), self.span);
        let mut between = vec![true; all.len()];
        let mut out = Vec::new();
        for at in &self.at {
            between[*at..][..self.width].fill(false);
            out.extend_from_slice(&all[*at..][..self.width]);
        }
        assert!(all.iter().zip(between).all(|(v, between)| !between || is_untouched(*v)), "a gap was written");
        out
    }
}

impl<T: Element> Pool<T> {
    fn read(&self) -> Vec<f64> {
        self.rows(&self.buffer.read(), f64::is_nan)
    }
}

impl Pool<u8> {
    fn codes(&self) -> Vec<u8> {
        self.rows(&download_view(&self.buffer), |code| code == UNTOUCHED)
    }
}

fn download_view(buffer: &Guarded<u8>) -> Vec<u8> {
    let view = buffer.view();
    if view.is_empty() {
        return Vec::new();
    }
    device::stream().clone_dtoh(&view).unwrap_or_else(|e| panic!("{:?}", e.0))
}

/// Runs a case.
pub fn run<T: Element>(case: &Case, [k, v]: &[Vec<f64>; 2]) -> After {
    let (shape, options) = (case.shape(), case.options::<T>());
    let plan = Plan::new(&shape, &options, &device::info()).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let Strides { k_new, v_new, k: k_at, v: v_at, k_scale, v_scale } = shape.strides;
    let (dk, dv) = (case.head_dim, case.value_dim);
    let (k_in, v_in) = (upload_as::<T>(&case.spread(k, k_new, dk)), upload_as::<T>(&case.spread(v, v_new, dv)));
    let by_slot = case.slot_map.is_some();
    let slot_map = case.slot_map.as_ref().map(|s| upload(s));
    let words = |wanted: bool, v: &Vec<i32>| wanted.then(|| upload(v));
    let is_dense = matches!(case.cache, Cache::Dense { .. });
    let kv_len = words(!by_slot, &case.kv_len);
    let cu_seqlens = case.cu_seqlens.as_ref().and_then(|s| words(!by_slot, s));
    let kv_indptr = words(!by_slot && !is_dense, &case.kv_indptr);
    let kv_indices = words(!by_slot && matches!(case.cache, Cache::Paged { .. }), &case.kv_indices);
    let positions = case.positions.as_ref().and_then(|p| words(case.rotary.is_some(), p));
    fn given<E>(s: &Option<lookback_device::cudarc::driver::CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
        s.as_ref().map(|s| s as &dyn DevicePtr<E>)
    }
    let inputs = Inputs {
        k_new: &k_in,
        v_new: &v_in,
        slot_map: given(&slot_map),
        kv_len: given(&kv_len),
        cu_seqlens: given(&cu_seqlens),
        kv_indptr: given(&kv_indptr),
        kv_indices: given(&kv_indices),
        positions: given(&positions),
    };
    let mut status = Guarded::filled(1, 0, 0_u32);
    let nan = T::from_f64(f64::NAN);
    let slots: usize = case.extents().iter().product();
    let none = |width: usize| vec![f64::NAN; slots * case.heads * width];
    let run = |outputs: Outputs<'_, T>, status: &mut Guarded<u32>| {
        let mut word = status.view_mut();
        let status = Some(&mut word as &mut dyn DevicePtrMut<u32>);
        plan.run(&device::stream(), &inputs, outputs, status).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        device::finish();
    };
    let read_status = |status: &Guarded<u32>| {
        let word = device::stream().clone_dtoh(&status.view()).unwrap_or_else(|e| panic!("{:?}", e.0));
        word[0]
    };
    if case.scales.is_none() {
        let (mut k_pool, mut v_pool) = (Pool::new(case, k_at, dk, nan), Pool::new(case, v_at, dv, nan));
        let (mut k, mut v) = (k_pool.buffer.view_mut(), v_pool.buffer.view_mut());
        run(Outputs::Same { k: &mut k, v: &mut v }, &mut status);
        let of = |values: Vec<f64>| {
            let (codes, scales) = (vec![0; values.len()], none(1));
            Stored { values, codes, scales }
        };
        return After { k: of(k_pool.read()), v: of(v_pool.read()), status: read_status(&status) };
    }
    let (mut k_pool, mut v_pool) = (Pool::new(case, k_at, dk, UNTOUCHED), Pool::new(case, v_at, dv, UNTOUCHED));
    let (mut k_scales, mut v_scales) = (Pool::new(case, k_scale, 1, f32::NAN), Pool::new(case, v_scale, 1, f32::NAN));
    let [k_given, v_given] = case.given().map(|s| {
        let own = if case.scales == Some(Scales::Tensor) { 1 } else { s.len() };
        upload_as::<f32>(&s[..own.min(s.len())])
    });
    {
        let (mut k, mut v) = (k_pool.buffer.view_mut(), v_pool.buffer.view_mut());
        let (mut ks, mut vs) = (k_scales.buffer.view_mut(), v_scales.buffer.view_mut());
        let (k, v) = (&mut k, &mut v);
        let outputs = match case.scales {
            Some(Scales::Token) => Outputs::Computed { k, v, k_scale: &mut ks, v_scale: &mut vs },
            _ => Outputs::Given { k, v, k_scale: &k_given, v_scale: &v_given },
        };
        run(outputs, &mut status);
    }
    // Codes of slots without a token are 0 in the oracle; so they are here, once they are known to be untouched.
    let (_, located) = case.oracle(&[k.clone(), v.clone()]);
    let stored: Vec<usize> = located.iter().filter_map(|l| l.slot).collect();
    let of = |codes: Vec<u8>, scales: Vec<f64>, given: &[f64], width: usize| {
        let mut out = Stored { values: none(width), codes: vec![0; codes.len()], scales: none(1) };
        for (row, codes) in codes.chunks(width).enumerate() {
            if !stored.contains(&(row / case.heads)) {
                assert!(codes.iter().all(|c| *c == UNTOUCHED), "{case:?}: slot {} was written", row / case.heads);
                assert!(scales[row].is_nan(), "{case:?}: the scale of slot {} was written", row / case.heads);
                continue;
            }
            let computed = case.scales == Some(Scales::Token);
            assert!(computed || scales[row].is_nan(), "{case:?}: given scales were written");
            let scale = if computed { scales[row] } else { given[row % case.heads] };
            out.scales[row] = scale;
            out.codes[row * width..][..width].copy_from_slice(codes);
            for (i, code) in codes.iter().enumerate() {
                out.values[row * width + i] = e4m3::decode(*code) * scale;
            }
        }
        out
    };
    let given = case.given();
    let k = of(k_pool.codes(), k_scales.read(), &given[0], dk);
    let v = of(v_pool.codes(), v_scales.read(), &given[1], dv);
    After { k, v, status: read_status(&status) }
}

/// As the oracle: exactly, but for keys that turn.
pub fn check<T: Element>(case: &Case) {
    let rows = case.new_rows::<T>((case.head_dim + 7 * case.value_dim) as u64);
    check_rows::<T>(case, &rows);
}

/// The same for given rows.
pub fn check_rows<T: Element>(case: &Case, rows: &[Vec<f64>; 2]) {
    let (got, (want, _)) = (run::<T>(case, rows), case.oracle(rows));
    let what = format!("append {} {case:?}", T::DTYPE);
    assert_eq!(got.status, want.status, "{what}: status");
    same(&format!("{what} v"), &got.v, &want.v);
    if case.rotary.is_none() {
        return same(&format!("{what} k"), &got.k, &want.k);
    }
    if case.scales.is_none() {
        assert_close(&format!("{what} k"), &got.k.values, &want.k.values, case.head_dim, gate(T::DTYPE));
        return;
    }
    // Angles in f32 move what is rounded by less than a millionth of the row: a code may be its neighbour at a tie.
    let (append, located) = (case.oracle_case(), case.oracle(rows).1);
    let turned = append.turned(&rows[0], &located);
    for (t, slot) in located.iter().enumerate().filter_map(|(t, l)| l.slot.map(|slot| (t, slot))) {
        for h in 0..case.heads {
            let to = slot * case.heads + h;
            let row = &turned[(t * case.heads + h) * case.head_dim..][..case.head_dim];
            let (scale, wanted) = (got.k.scales[to], want.k.scales[to]);
            assert!((scale - wanted).abs() <= 2e-6 * wanted, "{what}: scale {scale}, the oracle has {wanted}");
            let largest = row.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            for (i, x) in row.iter().enumerate() {
                let code = got.k.codes[to * case.head_dim + i];
                let nudge = 2e-6 * largest;
                let (low, high) = (e4m3::encode((x - nudge) / scale), e4m3::encode((x + nudge) / scale));
                let value = e4m3::decode(code);
                let fits = e4m3::decode(low) <= value && value <= e4m3::decode(high);
                assert!(fits, "{what}: token {t} head {h} element {i}: {value} for {}", x / scale);
            }
        }
    }
}

fn same(what: &str, got: &Stored, want: &Stored) {
    let equal = |a: &f64, b: &f64| a == b || (a.is_nan() && b.is_nan());
    let differs = got.values.iter().zip(&want.values).position(|(a, b)| !equal(a, b));
    if let Some(i) = differs {
        panic!("{what}: element {i} is {}, the oracle has {}", got.values[i], want.values[i]);
    }
    assert_eq!(got.values.len(), want.values.len(), "{what}");
    assert_eq!(got.codes, want.codes, "{what}: codes");
    assert!(got.scales.iter().zip(&want.scales).all(|(a, b)| equal(a, &round::<f32>(*b))), "{what}: scales");
}
