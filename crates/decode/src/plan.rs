//! Plans: shapes and options checked, work cut, memory counted.

use crate::{
    Cache, CacheType, DeviceInfo, Error, Options, Policy, Result, Scales, Shape, Stride,
    memory::workspace_bytes,
    strided::{self, MAX_EXTENT, Strided},
};
use lookback_kernels::{Kernel, find};

pub(crate) const OP: &str = "lean_decode";
/// Greatest number of keys of a request: tile numbers of a thousand rows are summed in 32 bits.
pub const MAX_KEYS: usize = (1 << 28) - 64;
/// Logits are made of `1 - 2 / (1 + e^(2 x / cap))`, which is known to 2^-23: that much of a greater cap is no small part of a logit.
pub const MAX_SOFTCAP: f32 = 1024.0;
/// What is divided by a smaller one leaves f32.
pub const MIN_SOFTCAP: f32 = 1e-30;
/// Keys of a tile.
pub const TILE: usize = 64;

/// Bytes of a schedule's parts: `kernels/tile/lean_schedule.ptx`.
const HEADER: u64 = 64;
const ROW: u64 = 16;
const REQUEST: u64 = 16;
const START: u64 = 8;

/// Everything that a schedule depends on: a plan runs only with schedules of its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub batch: usize,
    pub query_len: usize,
    pub packed: Option<usize>,
    pub key_heads: usize,
    pub group: usize,
    pub cache: Cache,
    /// Keys that a request may have.
    pub capacity: usize,
    /// Entries of a list, where there are lists.
    pub list: Option<usize>,
    pub left: Option<u32>,
    pub sink_tokens: u32,
    pub rows: usize,
    pub slots: u32,
    pub min_tiles: u32,
}

/// The tensors of a shape, with their strides; those that the options do not have are [`Strided::NONE`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub q: Strided,
    pub k: Strided,
    pub v: Strided,
    pub k_scale: Strided,
    pub v_scale: Strided,
    pub o: Strided,
    pub lse: Strided,
    /// `[B, query_len, H]` rows of columns, wherever the head's step is.
    pub logits: Strided,
    pub kv_len: Strided,
    pub cu_seqlens_q: Strided,
    pub kv_indptr: Strided,
    pub kv_indices: Strided,
    pub list: Strided,
    pub list_len: Strided,
    pub heads: Strided,
}

impl Layout {
    fn new(shape: &Shape, options: &Options) -> Self {
        let Shape { batch, query_len, packed, heads, key_heads, head_dim, value_dim, cache, strides } = *shape;
        let size = options.dtype.size();
        let (rows, tokens) = packed.map_or((batch, query_len), |tokens| (1, tokens));
        let of = |extents: [usize; 3], stride: Option<Stride>, width: usize, size: usize| match stride {
            Some(Stride { batch, token, head }) => Strided::new(extents, [batch, token, head], width, size),
            None => Strided::dense(extents, width, size),
        };
        let [pages, places] = cache.extents(batch);
        let slots = [pages, places, key_heads];
        let (cache_size, scales) = match options.cache {
            CacheType::Same => (size, None),
            CacheType::E4m3(scales) => (1, Some(scales)),
        };
        let scale = |stride| match scales {
            None => Strided::NONE,
            Some(Scales::Tensor) => Strided::dense([1, 1, 1], 1, 4),
            Some(Scales::Head) => Strided::dense([1, 1, key_heads], 1, 4),
            Some(Scales::Token) => of(slots, stride, 1, 4),
        };
        let numbers = |count: usize| Strided::dense([1, 1, 1], count, 4);
        let tables = |wanted: bool, count: usize| if wanted { numbers(count) } else { Strided::NONE };
        let columns = options.logits.unwrap_or(0);
        let (is_dense, table) = match cache {
            Cache::Dense { .. } => (true, None),
            Cache::Ragged { .. } => (false, None),
            Cache::Paged { table, .. } => (false, Some(table)),
        };
        Self {
            q: of([rows, tokens, heads], strides.q, head_dim, size),
            k: of(slots, strides.k, head_dim, cache_size),
            v: of(slots, strides.v, value_dim, cache_size),
            k_scale: scale(strides.k_scale),
            v_scale: scale(strides.v_scale),
            o: of([rows, tokens, heads], strides.o, value_dim, options.output.dtype(options.dtype).size()),
            lse: Strided::dense([rows, tokens, heads], 1, 4),
            logits: match packed {
                Some(tokens) => Strided::dense([1, tokens, heads], columns, 4),
                None => {
                    let step = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
                    let head = query_len.saturating_mul(columns);
                    let strides = [step(head.saturating_mul(heads)), step(columns), step(head)];
                    Strided::new([batch, query_len, heads], strides, columns, 4)
                }
            },
            kv_len: numbers(batch),
            cu_seqlens_q: tables(packed.is_some(), batch + 1),
            kv_indptr: tables(!is_dense, batch + 1),
            kv_indices: tables(table.is_some(), table.unwrap_or(0)),
            list: options.list.map_or(Strided::NONE, |entries| Strided::dense([1, batch, key_heads], entries, 4)),
            list_len: options.list.map_or(Strided::NONE, |_| Strided::dense([1, batch, key_heads], 1, 4)),
            heads: numbers(heads),
        }
    }

    /// # Errors
    /// [`Error::Layout`].
    fn check(&self, shape: &Shape) -> Result<()> {
        let pieces = 16 / self.k.size as usize;
        for (arg, width, of) in [
            ("head_dim", shape.head_dim, pieces),
            ("head_dim", shape.head_dim, 8),
            ("value_dim", shape.value_dim, pieces),
            ("value_dim", shape.value_dim, 8),
        ] {
            if !width.is_multiple_of(of) {
                let want = format!("a multiple of {of} with this cache");
                return Err(Error::Shape { op: OP, arg, want, got: vec![width as u64] });
            }
        }
        for (arg, tensor, of, need) in [
            ("q", &self.q, 4, "strides that are multiples of 4"),
            ("k", &self.k, pieces, "strides that are multiples of 16 bytes"),
            ("v", &self.v, pieces, "strides that are multiples of 16 bytes"),
            ("k_scale", &self.k_scale, 1, ""),
            ("v_scale", &self.v_scale, 1, ""),
            ("list", &self.list, 1, ""),
        ] {
            tensor.readable(OP, arg)?;
            if !tensor.steps_by(of) {
                return Err(Error::Layout { op: OP, arg, need, stride: tensor.strides.to_vec() });
            }
        }
        for (arg, tensor) in [("o", &self.o), ("lse", &self.lse), ("logits", &self.logits)] {
            tensor.writable(OP, arg)?;
        }
        if !self.o.steps_by(4) {
            let need = "strides that are multiples of 4";
            return Err(Error::Layout { op: OP, arg: "o", need, stride: self.o.strides.to_vec() });
        }
        Ok(())
    }
}

/// A checked decode step, for any lengths.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) shape: Shape,
    pub(crate) options: Options,
    pub(crate) layout: Layout,
    pub(crate) policy: Policy,
    pub(crate) kernel: &'static Kernel,
    pub(crate) planner: &'static Kernel,
    /// Tiles of query rows of the longest request.
    pub(crate) row_tiles: usize,
}

impl Plan {
    /// Checks sizes, strides and options, cuts the work and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, a scale or cap that is not a number, or tuning that no launch can have;
    /// [`Error::Shape`] ← `key_heads` that does not divide `heads`, or channels that are not whole pieces of 16 bytes; [`Error::Layout`] ←
    /// strides that kernels cannot read, or rows of `o` that overlap; [`Error::NoKernel`] ← f32, more than 256 channels;
    /// [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check_sizes(shape, options)?;
        let layout = Layout::new(shape, options);
        layout.check(shape)?;
        let (policy, kernel) = Policy::of(OP, shape, options, device)?;
        let none = || Error::NoKernel { op: OP, request: "lean_plan".into() };
        let planner = find("lean_plan", &[]).ok_or_else(none)?;
        for kernel in [kernel, planner] {
            if !kernel.target.runs_on(device.compute_capability) {
                let got = device.compute_capability;
                return Err(Error::Arch { kernel: kernel.entry, need: kernel.target.to_string(), got });
            }
            if kernel.dynamic_smem > device.shared_per_block_optin {
                return Err(Error::NoKernel { op: OP, request: "shared memory of this device".into() });
            }
        }
        let row_tiles = shape.query_len.saturating_mul(shape.group()).div_ceil(policy.rows);
        let plan = Self { shape: *shape, options: *options, layout, policy, kernel, planner, row_tiles };
        strided::range(OP, "output tiles", plan.rows(), 0, MAX_EXTENT)?;
        Ok(plan)
    }

    /// How the work is cut.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Output tiles, with work or without: requests, tiles of query rows, key heads.
    pub(crate) fn rows(&self) -> usize {
        self.shape.batch.saturating_mul(self.row_tiles).saturating_mul(self.shape.key_heads)
    }

    /// Whether there is any output at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows() == 0 || self.shape.packed == Some(0)
    }

    /// Keys that a request can have at most: more are cut off and reported.
    pub(crate) fn capacity(&self) -> usize {
        let columns = match (self.options.list, self.options.logits) {
            (None, Some(columns)) => columns,
            _ => MAX_KEYS,
        };
        self.shape.cache.capacity().min(columns).min(MAX_KEYS)
    }

    pub(crate) fn key(&self) -> Key {
        let Shape { batch, query_len, packed, key_heads, cache, .. } = self.shape;
        let Policy { rows, slots, min_tiles, .. } = self.policy;
        let Options { list, left, sink_tokens, .. } = self.options;
        let (group, capacity) = (self.shape.group(), self.capacity());
        Key {
            batch,
            query_len,
            packed,
            key_heads,
            group,
            cache,
            capacity,
            list,
            left,
            sink_tokens,
            rows,
            slots,
            min_tiles,
        }
    }

    /// Bytes of a [`Schedule`](crate::Schedule): whatever the lengths, and the same for all layers.
    pub fn schedule_bytes(&self) -> u64 {
        let (rows, batch) = (self.rows() as u64, self.shape.batch as u64);
        HEADER + ROW * (rows + 1) + REQUEST * batch + START * u64::from(self.policy.slots)
    }

    /// Bytes of a [`Workspace`](crate::Workspace): whatever the lengths.
    pub fn workspace_bytes(&self) -> u64 {
        let Policy { rows, dim, slots, .. } = self.policy;
        workspace_bytes(4 * self.rows() as u64, 2 * u64::from(slots) * 4 * (rows * (dim + 2)) as u64)
    }

    /// Keys that a request of `len` keys with all its queries reads, in a head.
    fn keys_read(&self, len: usize) -> u64 {
        let seen = match (self.options.list, self.options.left) {
            (Some(entries), _) => len.min(entries),
            (None, None) => len,
            (None, Some(left)) => {
                let window = (left as usize).saturating_add(self.shape.query_len);
                len.min(window.saturating_add(self.options.sink_tokens as usize))
            }
        };
        seen.min(self.capacity()) as u64
    }

    fn all_keys_read(&self, lengths: &[usize]) -> u64 {
        lengths.iter().map(|len| self.keys_read(*len)).fold(0, u64::saturating_add)
    }

    /// Bytes that must cross the memory bus at least when requests have these lengths: visible keys and values with their scales,
    /// queries, outputs. Lists are taken as full.
    pub fn bytes_moved(&self, lengths: &[usize]) -> u64 {
        let Shape { key_heads, head_dim, value_dim, .. } = self.shape;
        let layout = &self.layout;
        let scales = if self.options.cache == CacheType::E4m3(Scales::Token) { 8 } else { 0 };
        let listed = if self.options.list.is_some() { 4 } else { 0 };
        let key = layout.k.size * (head_dim + value_dim) as u64 + scales + listed;
        let keys = self.all_keys_read(lengths);
        let queries = (self.shape.query_len as u64).saturating_mul(self.shape.heads as u64);
        let logits = if self.options.logits.is_some() { 4_u64.saturating_mul(keys).saturating_mul(queries) } else { 0 };
        let vectors = [&layout.q, &layout.o, &layout.lse].map(Strided::bytes);
        let cache = keys.saturating_mul(key_heads as u64).saturating_mul(key);
        vectors.into_iter().fold(cache.saturating_add(logits), u64::saturating_add)
    }

    /// Floating-point operations of the two products when requests have these lengths.
    pub fn flops(&self, lengths: &[usize]) -> u64 {
        let Shape { query_len, heads, head_dim, value_dim, .. } = self.shape;
        let pairs = self.all_keys_read(lengths).saturating_mul(query_len as u64).saturating_mul(heads as u64);
        pairs.saturating_mul(2 * (head_dim + value_dim) as u64)
    }
}

/// Extents and numbers.
fn check_sizes(shape: &Shape, options: &Options) -> Result<()> {
    let Shape { batch, query_len, packed, heads, key_heads, head_dim, value_dim, cache, .. } = *shape;
    strided::range(OP, "batch", batch, 0, MAX_EXTENT)?;
    strided::range(OP, "query_len", query_len, 0, MAX_EXTENT)?;
    strided::range(OP, "tokens", packed.unwrap_or(0), 0, MAX_EXTENT)?;
    strided::range(OP, "heads", heads, 0, MAX_EXTENT)?;
    strided::range(OP, "head_dim", head_dim, 1, MAX_EXTENT)?;
    strided::range(OP, "value_dim", value_dim, 1, MAX_EXTENT)?;
    if heads > 0 && (key_heads == 0 || !heads.is_multiple_of(key_heads)) {
        let want = format!("a divisor of heads = {heads}");
        return Err(Error::Shape { op: OP, arg: "key_heads", want, got: vec![key_heads as u64] });
    }
    strided::range(OP, "query rows", query_len.saturating_mul(shape.group()), 0, MAX_EXTENT)?;
    match cache {
        Cache::Dense { capacity } => strided::range(OP, "capacity", capacity, 0, MAX_KEYS)?,
        Cache::Ragged { tokens } => strided::range(OP, "tokens", tokens, 0, MAX_EXTENT)?,
        Cache::Paged { pages, page_size, table } => {
            strided::range(OP, "pages", pages, 0, MAX_EXTENT)?;
            strided::range(OP, "page_size", page_size, 1, MAX_KEYS)?;
            strided::range(OP, "table", table, 0, MAX_EXTENT)?;
        }
    }
    strided::range(OP, "list", options.list.unwrap_or(0), 0, MAX_KEYS)?;
    strided::range(OP, "logits", options.logits.unwrap_or(1), 1, MAX_EXTENT)?;
    if let (Some(entries), Some(columns)) = (options.list, options.logits) {
        strided::range(OP, "logits", columns, entries, MAX_EXTENT)?;
    }
    let number = |arg, ok: bool, got: f32| match ok {
        true => Ok(()),
        false => Err(Error::Range { op: OP, arg, at: None, lo: 0, hi: i64::MAX, got: got as i64 }),
    };
    number("scale", options.scale.is_finite(), options.scale)?;
    let cap = options.softcap.unwrap_or(1.0);
    if !(MIN_SOFTCAP..=MAX_SOFTCAP).contains(&cap) {
        return Err(Error::Range { op: OP, arg: "softcap", at: None, lo: 0, hi: MAX_SOFTCAP as i64, got: cap as i64 });
    }
    Ok(())
}
