//! A walk with every option of the kernels' argument list: its data, its f64 oracle and its launches.

use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use lookback_device::{Element, launch};
use lookback_kernels::{
    args::{LinearAttentionChain, LinearAttentionChainVector, LinearAttentionStatePass},
    find,
};
use lookback_reference::time_reduce::Map;
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{Errors, Gate, assert_close, gate},
    random::Random,
};

/// What decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    None,
    /// One log-decay a head, for all tokens.
    Head,
    /// One a token.
    Token,
    /// One for every key of a token.
    Key,
    /// One for every value of a token.
    Value,
}

impl Decay {
    /// Decays of a token and head.
    pub fn width(self, case: &Case) -> usize {
        match self {
            Self::Key => case.key_dim,
            Self::Value => case.value_dim,
            _ => 1,
        }
    }
}

/// One launch, or three with segments.
#[derive(Debug, Clone)]
pub struct Case {
    pub batch: usize,
    pub seq_len: usize,
    pub heads: usize,
    pub key_dim: usize,
    /// Keys and queries are expanded to Taylor features, of which states have 153.
    pub taylor: bool,
    pub value_dim: usize,
    pub kt: usize,
    pub bv: usize,
    /// Heads that share a row of q, k and v.
    pub groups: [usize; 3],
    /// Lengths of packed sequences; empty: each row is one.
    pub lengths: Vec<usize>,
    pub decay: Decay,
    pub g_low: f64,
    pub order: u32,
    pub late_cut: bool,
    pub shift: bool,
    pub reverse: bool,
    pub split: usize,
    /// Tokens with a flag of bit 0 and with one of bit 1.
    pub flags: [Vec<usize>; 2],
    /// Length of the prefix of each sequence; empty: none.
    pub prefix: Vec<i32>,
    pub state: bool,
    pub transposed: bool,
    pub normalize: bool,
    /// Queries and keys above zero, as with a normaliser: scores are no small differences of large terms.
    pub positive: bool,
    pub bonus: bool,
    pub out_f32: bool,
    /// Factors are multiplied as two of 16 bits; with `out_f32`.
    pub exact: bool,
    pub accumulate: bool,
    pub segment_tokens: usize,
    pub padding: usize,
    pub scale: f32,
    /// On the kernel that walks token by token; `kt` is its tile, `bv` has no meaning.
    pub token_by_token: bool,
    /// A launch walks twice, and the second walk overwrites what the first has written.
    pub twice: bool,
}

impl Case {
    pub fn new(seq_len: usize, heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self {
            batch: 1,
            seq_len,
            heads,
            key_dim,
            taylor: false,
            value_dim,
            kt: key_dim.next_power_of_two().max(32),
            bv: if value_dim > 64 { 128 } else { 64 },
            groups: [1; 3],
            lengths: Vec::new(),
            decay: Decay::Token,
            g_low: -0.3,
            order: 0,
            late_cut: false,
            shift: false,
            reverse: false,
            split: heads,
            flags: [Vec::new(), Vec::new()],
            prefix: Vec::new(),
            state: true,
            transposed: false,
            normalize: false,
            positive: false,
            bonus: false,
            out_f32: false,
            exact: false,
            accumulate: false,
            segment_tokens: 0,
            padding: 0,
            scale: (key_dim as f32).sqrt().recip(),
            token_by_token: false,
            twice: false,
        }
    }

    /// Keys of a state.
    pub fn keys(&self) -> usize {
        if self.taylor { Map::Taylor.features(self.key_dim) } else { self.key_dim }
    }

    /// Rows and limits of the sequences.
    pub fn sequences(&self) -> Vec<(usize, usize, usize)> {
        if self.lengths.is_empty() {
            return (0..self.batch).map(|b| (b, 0, self.seq_len)).collect();
        }
        let mut at = 0;
        self.lengths
            .iter()
            .map(|length| {
                (0, at, {
                    at += length;
                    at
                })
            })
            .collect()
    }
}

/// Tensors, already rounded: q, k, v `[B,T,heads / group,..]`, the rest dense.
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub g: Vec<f64>,
    pub u: Vec<f64>,
    pub h0: Vec<f64>,
    pub z0: Vec<f64>,
    pub old: Vec<f64>,
}

/// What a walk makes; `h` is `[N,H,K,V]`.
pub struct Output {
    pub o: Vec<f64>,
    pub den: Vec<f64>,
    pub h: Vec<f64>,
    pub z: Vec<f64>,
}

const EPS: f32 = 0.25;

impl Data {
    pub fn new<T: Element>(case: &Case, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (rows, heads, n) = (case.batch * case.seq_len, case.heads, case.sequences().len());
        let mut rows_of = |group: usize, dim: usize, positive: bool| {
            let len = rows * heads / group * dim;
            if positive { random.uniforms::<T>(len, 0.0, 1.0) } else { random.normals::<T>(len) }
        };
        let positive = case.normalize || case.positive;
        let q = rows_of(case.groups[0], case.key_dim, positive);
        let k = rows_of(case.groups[1], case.key_dim, positive);
        let v = rows_of(case.groups[2], case.value_dim, false);
        let z_low = if case.normalize { 0.0 } else { -1.0 };
        Self {
            q,
            k,
            v,
            g: random.uniforms::<f32>(rows * heads * case.decay.width(case), case.g_low, 0.0),
            u: random.normals::<f32>(heads * case.key_dim),
            h0: random.normals::<f32>(n * heads * case.keys() * case.value_dim),
            z0: random.uniforms::<f32>(n * heads * case.keys(), z_low, 1.0),
            old: random.normals::<T>(rows * heads * case.value_dim),
        }
    }
}

/// The walk in f64, token by token.
pub fn walk(case: &Case, data: &Data) -> Output {
    let (kd, vd, heads) = (case.keys(), case.value_dim, case.heads);
    let sequences = case.sequences();
    let mut out = Output {
        o: if case.accumulate { data.old.clone() } else { vec![0.0; case.batch * case.seq_len * heads * vd] },
        den: vec![0.0; case.batch * case.seq_len * heads],
        h: vec![0.0; sequences.len() * heads * kd * vd],
        z: vec![0.0; sequences.len() * heads * kd],
    };
    for (n, (b, low, high)) in sequences.into_iter().enumerate() {
        for head in 0..heads {
            let reverse = case.reverse ^ (head >= case.split);
            let flagged = &case.flags[usize::from(head >= case.split)];
            let slot = n * heads + head;
            let mut s = if case.state { data.h0[slot * kd * vd..][..kd * vd].to_vec() } else { vec![0.0; kd * vd] };
            let mut z = if case.state { data.z0[slot * kd..][..kd].to_vec() } else { vec![0.0; kd] };
            let tokens: Vec<usize> = if reverse { (low..high).rev().collect() } else { (low..high).collect() };
            for (i, &t) in tokens.iter().enumerate() {
                let row = b * case.seq_len + t;
                let of = |tensor: &'_ [f64], group: usize, dim: usize| {
                    tensor[(row * (heads / group) + head / group) * dim..][..dim].to_vec()
                };
                let (q, k, v) = (
                    of(&data.q, case.groups[0], case.key_dim),
                    of(&data.k, case.groups[1], case.key_dim),
                    of(&data.v, case.groups[2], vd),
                );
                let map = |x: Vec<f64>| if case.taylor { Map::Taylor.of(&x) } else { x };
                let (q, k) = (map(q), map(k));
                let width = case.decay.width(case);
                let g = |i: usize, j: usize| match case.decay {
                    Decay::None => 0.0,
                    Decay::Head => data.g[head],
                    Decay::Token => data.g[row * heads + head],
                    Decay::Key => data.g[(row * heads + head) * width + i],
                    Decay::Value => data.g[(row * heads + head) * width + j],
                };
                let cut = flagged.contains(&row);
                let is_key = case.prefix.is_empty() || t - low >= case.prefix[n] as usize;
                let clear = |s: &mut Vec<f64>, z: &mut Vec<f64>| {
                    s.fill(0.0);
                    z.fill(0.0);
                };
                let decay = |s: &mut Vec<f64>, z: &mut Vec<f64>| {
                    for i in 0..kd {
                        z[i] *= g(i, 0).exp();
                        s[i * vd..][..vd].iter_mut().enumerate().for_each(|(j, s)| *s *= g(i, j).exp());
                    }
                };
                let add = |s: &mut Vec<f64>, z: &mut Vec<f64>| {
                    for i in (0..kd).filter(|_| is_key) {
                        z[i] += k[i];
                        s[i * vd..][..vd].iter_mut().zip(&v).for_each(|(s, v)| *s += k[i] * v);
                    }
                };
                if cut && !case.late_cut {
                    clear(&mut s, &mut z);
                }
                if case.order == 0 {
                    decay(&mut s, &mut z);
                }
                if case.order < 2 {
                    add(&mut s, &mut z);
                }
                let bonus: f64 =
                    if case.bonus { (0..kd).map(|i| q[i] * data.u[head * kd + i] * k[i]).sum() } else { 0.0 };
                let read = |s: &[f64], j: usize| (0..kd).map(|i| q[i] * s[i * vd + j]).sum::<f64>();
                let own = |v: &f64| if case.bonus { bonus * v } else { 0.0 };
                let scale = f64::from(case.scale);
                let den = scale * ((0..kd).map(|i| q[i] * z[i]).sum::<f64>() + bonus) + f64::from(EPS);
                let den = if case.normalize { den } else { 1.0 };
                let next = tokens.get(i + 1).map(|t| b * case.seq_len + t);
                let to = if case.shift {
                    let is_cut = |next: &usize| if case.late_cut { cut } else { flagged.contains(next) };
                    next.filter(|next| !is_cut(next))
                } else {
                    Some(row)
                };
                if let Some(to) = to {
                    for (j, v) in v.iter().enumerate() {
                        out.o[(to * heads + head) * vd + j] += scale * (read(&s, j) + own(v)) / den;
                    }
                    out.den[to * heads + head] = den;
                }
                if case.order == 2 {
                    decay(&mut s, &mut z);
                    add(&mut s, &mut z);
                }
                if case.order == 1 {
                    decay(&mut s, &mut z);
                }
                if cut && case.late_cut {
                    clear(&mut s, &mut z);
                }
            }
            out.h[slot * kd * vd..][..kd * vd].copy_from_slice(&s);
            out.z[slot * kd..][..kd].copy_from_slice(&z);
        }
    }
    out
}

/// Rows on the device with NaN between them.
fn rows<T: Element>(values: &[f64], width: usize, padding: usize) -> CudaSlice<T> {
    let padded: Vec<f64> =
        values.chunks(width).flat_map(|row| row.iter().copied().chain((0..padding).map(|_| f64::NAN))).collect();
    upload_as::<T>(&padded)
}

/// Exchanges the last two axes of `[.., rows, columns]`.
fn exchange(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    for state in values.chunks(rows * columns) {
        out.extend((0..columns).flat_map(|c| (0..rows).map(move |r| state[r * columns + c])));
    }
    out
}

struct Launches {
    args: LinearAttentionChain,
    tiles: u32,
    sequences: u32,
}

/// Runs the case on the device.
pub fn run<T: Element>(case: &Case, data: &Data) -> Output {
    let stream = device::stream();
    let (kd, vd, heads, pad) = (case.keys(), case.value_dim, case.heads, case.padding);
    let widths = [
        heads / case.groups[0] * case.key_dim,
        heads / case.groups[1] * case.key_dim,
        heads / case.groups[2] * vd,
        heads * vd,
    ];
    let (q, k, v) =
        (rows::<T>(&data.q, widths[0], pad), rows::<T>(&data.k, widths[1], pad), rows::<T>(&data.v, widths[2], pad));
    let (g, u, z0) = (upload_as::<f32>(&data.g), upload_as::<f32>(&data.u), upload_as::<f32>(&data.z0));
    let h0 = upload_as::<f32>(&if case.transposed { exchange(&data.h0, kd, vd) } else { data.h0.clone() });
    let mut bits = vec![0_u8; case.batch * case.seq_len];
    for (bit, tokens) in case.flags.iter().enumerate() {
        tokens.iter().for_each(|t| bits[*t] |= 1 << bit);
    }
    let has_flags = bits.iter().any(|b| *b != 0);
    let flags = upload(&bits);
    let sequences = case.sequences();
    let cu: Vec<i32> = std::iter::once(0).chain(sequences.iter().map(|s| s.2 as i32)).collect();
    let (cu, prefix) = (upload(&cu), upload(&case.prefix));
    let n = sequences.len();
    let longest = sequences.iter().map(|s| s.2 - s.1).max().unwrap_or(0);
    let total = case.batch * case.seq_len;
    let segment = case.segment_tokens;
    let slots = if segment == 0 { 0 } else { total.div_ceil(segment) + n };

    let (mut narrow, mut wide) =
        (Guarded::<T>::poisoned(total * widths[3], 0), Guarded::<f32>::poisoned(total * widths[3], 0));
    if case.accumulate {
        narrow = filled(&data.old);
        wide = filled(&data.old);
    }
    let mut den = Guarded::<f32>::poisoned(total * heads, 0);
    let mut h = Guarded::<f32>::poisoned(n * heads * kd * vd, 0);
    let mut z = Guarded::<f32>::poisoned(n * heads * kd, 0);
    let mut slot_h = upload(&vec![f32::NAN; slots * heads * kd * vd]);
    let mut slot_z = upload(&vec![f32::NAN; slots * heads * kd]);
    let mut carry = upload(&vec![f32::NAN; slots * heads * case.decay.width(case)]);
    {
        let (q, _q) = q.device_ptr(&stream);
        let (k, _k) = k.device_ptr(&stream);
        let (v, _v) = v.device_ptr(&stream);
        let (g, _g) = g.device_ptr(&stream);
        let (u, _u) = u.device_ptr(&stream);
        let (z0, _z0) = z0.device_ptr(&stream);
        let (h0, _h0) = h0.device_ptr(&stream);
        let (flags, _flags) = flags.device_ptr(&stream);
        let (cu, _cu) = cu.device_ptr(&stream);
        let (prefix, _prefix) = prefix.device_ptr(&stream);
        let mut views = (narrow.view_mut(), wide.view_mut(), den.view_mut(), h.view_mut(), z.view_mut());
        let (o, _o) = if case.out_f32 { views.1.device_ptr_mut(&stream) } else { views.0.device_ptr_mut(&stream) };
        let (den, _den) = views.2.device_ptr_mut(&stream);
        let (h, _h) = views.3.device_ptr_mut(&stream);
        let (z, _z) = views.4.device_ptr_mut(&stream);
        let (slot_h, _slot_h) = slot_h.device_ptr_mut(&stream);
        let (slot_z, _slot_z) = slot_z.device_ptr_mut(&stream);
        let (carry, _carry) = carry.device_ptr_mut(&stream);
        let some = |is: bool, at: u64| if is { at } else { 0 };
        let [sk, sv] = if case.transposed { [1, kd] } else { [vd, 1] };
        let row = |width: usize| (width + pad) as i64;
        let width = case.decay.width(case);
        let per_token = if matches!(case.decay, Decay::None | Decay::Head) { 0 } else { width as i64 };
        let args = LinearAttentionChain {
            p_q: q,
            p_k: k,
            p_v: v,
            p_g: some(case.decay != Decay::None, g),
            p_u: some(case.bonus, u),
            p_flags: some(has_flags, flags),
            p_cu_seqlens: some(!case.lengths.is_empty(), cu),
            p_prefix_len: some(!case.prefix.is_empty(), prefix),
            p_h0: some(case.state, h0),
            p_z0: some(case.state, z0),
            p_o: o,
            p_h_final: h,
            p_z_final: some(case.normalize, z),
            p_den: some(case.normalize, den),
            q_stride_batch: row(widths[0]) * case.seq_len as i64,
            q_stride_token: row(widths[0]),
            q_stride_head: case.key_dim as i64,
            k_stride_batch: row(widths[1]) * case.seq_len as i64,
            k_stride_token: row(widths[1]),
            k_stride_head: case.key_dim as i64,
            v_stride_batch: row(widths[2]) * case.seq_len as i64,
            v_stride_token: row(widths[2]),
            v_stride_head: vd as i64,
            g_stride_batch: per_token * (case.seq_len * heads) as i64,
            g_stride_token: per_token * heads as i64,
            g_stride_head: width as i64,
            o_stride_batch: (case.seq_len * widths[3]) as i64,
            o_stride_token: widths[3] as i64,
            o_stride_head: vd as i64,
            flags_stride_batch: case.seq_len as i64,
            h0_stride_seq: (heads * kd * vd) as i64,
            h0_stride_head: (kd * vd) as i64,
            h0_stride_key: sk as i64,
            h0_stride_value: sv as i64,
            hf_stride_seq: (heads * kd * vd) as i64,
            hf_stride_head: (kd * vd) as i64,
            hf_stride_key: sk as i64,
            hf_stride_value: sv as i64,
            q_group: case.groups[0] as u32,
            k_group: case.groups[1] as u32,
            v_group: case.groups[2] as u32,
            seq_len: case.seq_len as u32,
            sequences: n as u32,
            heads: heads as u32,
            key_dim: case.key_dim as u32,
            value_dim: vd as u32,
            split: case.split as u32,
            segment_tokens: segment as u32,
            segments: if segment == 0 { 1 } else { longest.div_ceil(segment).max(1) as u32 },
            flag_mask: 1,
            flag_mask_reverse: 2,
            reverse: u32::from(case.reverse),
            order: case.order,
            late_cut: u32::from(case.late_cut),
            shift: u32::from(case.shift),
            out_f32: u32::from(case.out_f32),
            accumulate: u32::from(case.accumulate),
            normalize: u32::from(case.normalize),
            scale: case.scale,
            eps: EPS,
            ..Zeroable::zeroed()
        };
        let launches = Launches { args, tiles: vd.div_ceil(case.bv) as u32, sequences: n as u32 };
        if segment == 0 {
            launches.chain::<T>(case, "whole", &args);
        } else {
            launches.segmented::<T>(case, [slot_h, slot_z, carry]);
        }
    }
    device::finish();
    let states = h.read();
    Output {
        o: if case.out_f32 { wide.read() } else { narrow.read() },
        den: if case.normalize { den.read() } else { vec![1.0; total * heads] },
        h: if case.transposed { exchange(&states, vd, kd) } else { states },
        z: z.read(),
    }
}

fn filled<T: Element>(values: &[f64]) -> Guarded<T> {
    let mut guarded = Guarded::<T>::poisoned(values.len(), 0);
    let host: Vec<T> = values.iter().map(|v| T::from_f64(*v)).collect();
    device::stream().memcpy_htod(&host, &mut guarded.view_mut()).unwrap_or_else(|e| panic!("upload: {:?}", e.0));
    guarded
}

impl Launches {
    fn chain<T: Element>(&self, case: &Case, part: &str, args: &LinearAttentionChain) {
        if case.token_by_token {
            return super::recurrent::launch_walk::<T>(case, args, self.sequences);
        }
        let norm = if case.normalize { "yes" } else { "no" };
        let exact = if case.exact { "yes" } else { "no" };
        let (kt, bv) = (case.kt.to_string(), case.bv.to_string());
        let variant =
            [("dtype", T::DTYPE.name()), ("kt", &*kt), ("bv", &*bv), ("norm", norm), ("exact", exact), ("part", part)];
        let grid = [self.tiles * args.segments * self.sequences, args.heads, 1];
        let side = match case.decay {
            Decay::Key => Some("key"),
            Decay::Value => Some("value"),
            _ => None,
        };
        let stream = device::stream();
        // SAFETY: all buffers have the extents that the kernel's contract names, and are held until the launch is queued.
        let launched = unsafe {
            match side {
                None => {
                    let kernel = find("linear_attention_chain", &variant).expect("every variant is built");
                    launch(&stream, kernel, grid, &[*args, if case.twice { *args } else { Zeroable::zeroed() }])
                }
                Some(side) => {
                    let variant: Vec<_> = variant.into_iter().chain([("side", side)]).collect();
                    let kernel = find("linear_attention_chain_vector", &variant).expect("every variant is built");
                    let args = bytemuck::cast::<_, LinearAttentionChainVector>(*args);
                    launch(&stream, kernel, grid, &[args, if case.twice { args } else { Zeroable::zeroed() }])
                }
            }
        };
        launched.unwrap_or_else(|e| panic!("{e}"));
    }

    /// Contributions of the segments, the states that they start from, and the walk of each from there.
    fn segmented<T: Element>(&self, case: &Case, [slot_h, slot_z, carry]: [u64; 3]) {
        let (kd, vd, heads) = (case.key_dim as i64, case.value_dim as i64, case.heads as i64);
        let mut state = self.args;
        state.p_h_final = slot_h;
        state.p_z_final = if case.normalize { slot_z } else { 0 };
        state.p_carry = carry;
        (state.hf_stride_seq, state.hf_stride_head, state.hf_stride_key, state.hf_stride_value) =
            (heads * kd * vd, kd * vd, vd, 1);
        self.chain::<T>(case, "state", &state);

        let whole = &self.args;
        let decay = match case.decay {
            Decay::Key => "key",
            Decay::Value => "value",
            _ => "scalar",
        };
        let args = LinearAttentionStatePass {
            p_slots: slot_h,
            p_z_slots: if case.normalize { slot_z } else { 0 },
            p_carry: carry,
            p_cu_seqlens: whole.p_cu_seqlens,
            p_h0: whole.p_h0,
            p_z0: whole.p_z0,
            p_h_final: whole.p_h_final,
            p_z_final: whole.p_z_final,
            h0_stride_seq: whole.h0_stride_seq,
            h0_stride_head: whole.h0_stride_head,
            h0_stride_key: whole.h0_stride_key,
            h0_stride_value: whole.h0_stride_value,
            hf_stride_seq: whole.hf_stride_seq,
            hf_stride_head: whole.hf_stride_head,
            hf_stride_key: whole.hf_stride_key,
            hf_stride_value: whole.hf_stride_value,
            seq_len: whole.seq_len,
            heads: whole.heads,
            key_dim: whole.key_dim,
            value_dim: whole.value_dim,
            segment_tokens: whole.segment_tokens,
            ..Zeroable::zeroed()
        };
        let kernel = find("linear_attention_state_pass", &[("decay", decay)]).expect("every variant is built");
        let blocks = ((kd * vd + if case.normalize { kd } else { 0 }) as u32).div_ceil(kernel.block[0]);
        // SAFETY: as above; slots are those that the launch before wrote.
        unsafe { launch(&device::stream(), kernel, [blocks * self.sequences, whole.heads, 1], &args) }
            .unwrap_or_else(|e| panic!("{e}"));

        let mut last = self.args;
        (last.p_h0, last.p_z0, last.p_h_final, last.p_z_final) =
            (slot_h, if case.normalize { slot_z } else { 0 }, 0, 0);
        (last.h0_stride_seq, last.h0_stride_head, last.h0_stride_key, last.h0_stride_value) =
            (heads * kd * vd, kd * vd, vd, 1);
        self.chain::<T>(case, "whole", &last);
    }
}

/// Runs the case and compares everything with the oracle; the errors of `o`.
pub fn check<T: Element>(what: &str, case: &Case) -> Errors {
    compare::<T>(what, case, &Data::new::<T>(case, case.seq_len as u64 + 1))
}

/// The same for these tensors.
pub fn compare<T: Element>(what: &str, case: &Case, data: &Data) -> Errors {
    let what = format!("{what}, {}: {case:?}", T::DTYPE);
    let (out, want) = (run::<T>(case, data), walk(case, data));
    let gate = if case.exact { Gate { rel: 2e-5, row: 1e-4, inf: 1e-4 } } else { gate(T::DTYPE) };
    assert_close(&format!("state of {what}"), &out.h, &want.h, case.keys() * case.value_dim, gate);
    if case.normalize {
        assert_close(&format!("den of {what}"), &out.den, &want.den, case.heads, gate);
        assert_close(&format!("z of {what}"), &out.z, &want.z, case.keys(), gate);
    }
    assert_close(&what, &out.o, &want.o, case.value_dim, gate)
}
