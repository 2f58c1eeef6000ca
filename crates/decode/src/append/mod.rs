//! New keys and values into a cache: in one launch they are turned by their positions, if that is wanted, rounded to 8 bits, if the cache
//! has them, and scattered to where [`Cache`] keeps them.
//!
//! Where a token belongs is said by a slot for each ([`Place::Slots`]: what [`Pages::slots`](crate::pages::Pages::slots) gives), or by the lengths and page
//! tables that decoding reads ([`Place::Requests`], [`Place::Packed`]), which can stay the same memory in a graph that is replayed.
//!
//! # Examples
//! One new token of each of four requests, into pages of 16 tokens, keys turned:
//! ```no_run
//! use lookback_decode::append::{Inputs, Options, Outputs, Plan, Rotary, Shape, Style};
//! use lookback_decode::{Cache, Lengths};
//! use lookback_device::DeviceInfo;
//! # use half::bf16;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! # let stream = context.default_stream();
//! # let zeros = |n: usize| stream.alloc_zeros::<bf16>(n);
//! # let words = |n: usize| stream.alloc_zeros::<i32>(n);
//! let shape = Shape::new(4, 1, 8, 128, Cache::Paged { pages: 1000, page_size: 16, table: 400 });
//! let options = Options { rotary: Some(Rotary::new(Style::Half, 128)), ..Options::new::<bf16>() };
//! let plan = Plan::new(&shape, &options, &DeviceInfo::of(&context)?)?;
//! let (mut k, mut v) = (zeros(1000 * 16 * 8 * 128)?, zeros(1000 * 16 * 8 * 128)?);
//! let mut status = stream.alloc_zeros::<u32>(1)?;
//!
//! // Each layer of a step; kv_len counts the new token.
//! let (k_new, v_new) = (zeros(4 * 8 * 128)?, zeros(4 * 8 * 128)?);
//! let (kv_len, kv_indptr, kv_indices) = (words(4)?, words(5)?, words(400)?);
//! let inputs = Inputs::requests(&k_new, &v_new, Lengths::paged(&kv_len, &kv_indptr, &kv_indices));
//! plan.run(&stream, &inputs, Outputs::Same { k: &mut k, v: &mut v }, Some(&mut status))?;
//! lookback_decode::append::masked(&stream, &mut status)?;
//! # Ok(())
//! # }
//! ```

mod run;
mod shape;
mod tensors;

pub use shape::{MAX_DIM, Options, Place, Rotary, Shape, Strides, Style};
pub use tensors::{Inputs, Outputs, Raw};

use crate::Cache;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Error, Result, driver, strided::Strided};
use lookback_kernels::{Kernel, find};
use shape::Tensors;
use std::sync::Arc;

const OP: &str = "kv_append";
/// Threads of a block.
const BLOCK: usize = 256;
/// Threads that may share a row.
const WARP: usize = 32;

/// Bits of the status word, the arguments that they blame, and what their entries must lie in. Those below 256 mean the same in decoding.
const MASKED: [(u32, &str, &str); 5] = [
    (1, "kv_len", "what their caches hold, and no less than the new tokens"),
    (2, "kv_indptr", "their table, in order"),
    (4, "cu_seqlens", "the new tokens, in order"),
    (16, "kv_indices", "the pages"),
    (256, "slot_map", "the slots of the cache, or be -1"),
];

/// A checked append.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    tensors: Tensors,
    wide: &'static Kernel,
    single: &'static Kernel,
    /// Elements of a wide access.
    elements: usize,
    sm_count: usize,
}

/// How a launch is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    lanes: usize,
    /// Heads that a block walks with the same angles.
    block_heads: usize,
}

impl Policy {
    /// A lane for each unit of a row, up to a warp; as many heads to a block as leave every multiprocessor enough threads.
    fn of(plan: &Plan, vec: usize) -> Self {
        let Shape { tokens, key_heads, head_dim, value_dim, .. } = plan.shape;
        let turned = plan.rotary_dim();
        let units = (turned / (2 * vec) + (head_dim - turned).div_ceil(2 * vec)).max(value_dim.div_ceil(2 * vec));
        let lanes = units.next_power_of_two().min(WARP);
        let threads = tokens.saturating_mul(2 * lanes).max(1);
        let parts = (plan.sm_count * 1024).div_ceil(threads);
        Self { lanes, block_heads: key_heads.div_ceil(parts).max(1) }
    }
}

impl Plan {
    /// Checks sizes, strides and types and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, `rotary_dim` above `head_dim`, a base below 1 or not finite; [`Error::Shape`] ← an odd
    /// `rotary_dim`, or tokens that are not `batch query_len`; [`Error::Layout`] ← a negative stride, or rows of the cache that overlap;
    /// [`Error::NoKernel`] ← a cache of f32; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        shape.check()?;
        options.check(shape.head_dim)?;
        let cache = if options.cache == crate::CacheType::Same { "same" } else { "e4m3" };
        let elements = if options.dtype == DType::F32 { 4 } else { 8 };
        let kernel = |vec: &str| {
            let variant = [("dtype", options.dtype.name()), ("cache", cache), ("vec", vec)];
            find(OP, &variant).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{OP} {variant:?}") })
        };
        let (wide, single) = (kernel(if elements == 8 { "8" } else { "4" })?, kernel("1")?);
        if !wide.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: wide.entry, need: wide.target.to_string(), got });
        }
        let tensors = Tensors::new(shape, options)?;
        let sm_count = device.sm_count.max(1) as usize;
        Ok(Self { shape: *shape, options: *options, tensors, wide, single, elements, sm_count })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, where every token has a place: rows in, rows out, and computed scales. Places and lengths
    /// are not counted.
    pub fn bytes_moved(&self) -> u64 {
        let Tensors { k_new, v_new, k, v, .. } = self.tensors;
        let rows = self.shape.tokens as u64 * self.shape.key_heads as u64;
        let written = rows * (k.width as u64 * k.size + v.width as u64 * v.size);
        let scales = if self.options.computes_scales() { 8 * rows } else { 0 };
        k_new.bytes() + v_new.bytes() + written + scales
    }

    /// Floating-point operations: three for each element that turns, and one that scales; angles and rounding are not counted.
    pub fn flops(&self) -> u64 {
        let rows = self.shape.tokens as u64 * self.shape.key_heads as u64;
        let scaled = if self.options.cache == crate::CacheType::Same { 0 } else { 1 };
        rows * (3 * self.rotary_dim() as u64 + scaled * (self.shape.head_dim + self.shape.value_dim) as u64)
    }

    fn rotary_dim(&self) -> usize {
        self.options.rotary.map_or(0, |r| r.rotary_dim)
    }

    /// `len` numbers of `size` bytes, or none.
    fn row(&self, wanted: bool, len: usize, size: usize) -> Strided {
        if wanted { Strided::dense([1; 3], len, size) } else { Strided::NONE }
    }

    fn by_request(&self) -> bool {
        self.shape.place != Place::Slots
    }

    fn slot_map(&self) -> Strided {
        self.row(!self.by_request(), self.shape.tokens, 8)
    }

    fn kv_len(&self) -> Strided {
        self.row(self.by_request(), self.shape.batch, 4)
    }

    fn cu_seqlens(&self) -> Strided {
        self.row(self.shape.place == Place::Packed, self.shape.batch + 1, 4)
    }

    fn kv_indptr(&self) -> Strided {
        let is_dense = matches!(self.shape.cache, Cache::Dense { .. });
        self.row(self.by_request() && !is_dense, self.shape.batch + 1, 4)
    }

    fn kv_indices(&self) -> Strided {
        match self.shape.cache {
            Cache::Paged { table, .. } if self.by_request() => self.row(true, table, 4),
            _ => Strided::NONE,
        }
    }

    fn positions(&self) -> Strided {
        self.row(self.options.rotary.is_some(), self.shape.tokens, 4)
    }
}

/// What launches met in places, lengths and tables since the word was zero, after waiting for the stream; zeroes it again. Not for a
/// capture.
///
/// # Errors
/// [`Error::Masked`] ← entries led outside: tokens that they named were left out, every other one was stored. The first of them is named.
/// [`Error::Driver`].
pub fn masked(stream: &Arc<CudaStream>, status: &mut CudaSlice<u32>) -> Result<()> {
    let words = stream.clone_dtoh(status).map_err(|e| driver(e, "status of kv_append"))?;
    let bits = words.first().copied().unwrap_or(0);
    if bits == 0 {
        return Ok(());
    }
    stream.memset_zeros(status).map_err(|e| driver(e, "status of kv_append"))?;
    let known = MASKED.into_iter().find(|(bit, ..)| bits & bit != 0);
    let (_, arg, within) = known.unwrap_or((0, "status", "bits that a launch writes"));
    Err(Error::Masked { op: OP, arg, within })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scales;

    #[test]
    fn a_launch_reaches_every_head_with_threads_for_every_multiprocessor() {
        let device = DeviceInfo {
            name: String::new(),
            compute_capability: (9, 0),
            sm_count: 132,
            shared_per_block_optin: 0,
            driver_version: 0,
            emulated: true,
        };
        for (tokens, heads) in [(1, 1), (1, 8), (64, 8), (8192, 8), (100_000, 128)] {
            for (dim, rotary_dim) in [(64, 64), (80, 32), (128, 0), (576, 64)] {
                let shape = Shape::new(tokens, 1, heads, dim, Cache::Dense { capacity: 16 });
                let rotary = Some(Rotary { rotary_dim, ..Rotary::new(Style::Half, dim) });
                let cache = crate::CacheType::E4m3(Scales::Token);
                let options = Options { rotary, cache, ..Options::new::<half::bf16>() };
                let plan = Plan::new(&shape, &options, &device).unwrap();
                for vec in [1, 8] {
                    let Policy { lanes, block_heads } = Policy::of(&plan, vec);
                    assert!(lanes.is_power_of_two() && lanes <= WARP);
                    assert!(lanes == WARP || lanes * 2 * vec >= dim, "a lane holds a unit, or the team is a warp");
                    let threads = 2 * tokens * lanes * heads.div_ceil(block_heads);
                    assert!((1..=heads).contains(&block_heads));
                    assert!(block_heads == 1 || threads >= 132 * 512, "{tokens} {heads} {dim}: {threads}");
                }
            }
        }
    }
}
