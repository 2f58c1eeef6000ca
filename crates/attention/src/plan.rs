//! Plans: shapes and options checked, tensors laid out.

use crate::{
    DType, DeviceInfo, Error, Options, Output, Result, Shape, Stride,
    policy::{self, Tile},
    strided::{self, MAX_EXTENT, Strided},
};
use lookback_kernels::Kernel;

/// Greatest number of heads.
const MAX_HEADS: usize = 65_535;
/// Greatest number of queries and of keys: positions and reaches are added in 32 bits.
pub const MAX_LEN: usize = (1 << 29) - 1;
/// Greatest distance of a first query from the first key.
const MAX_OFFSET: i64 = 1 << 29;
/// Greatest extent of keys and of values.
pub const MAX_DIM: usize = 256;
/// Logits are made of `1 - 2 / (1 + e^(2 x / cap))`, which is known to 2^-23: that much of a greater cap is no small part of a logit.
pub const MAX_SOFTCAP: f32 = 1024.0;
/// What is divided by a smaller one leaves f32.
pub const MIN_SOFTCAP: f32 = 1e-30;
/// Entries of a row that are moved at once.
const STEP: usize = 8;

/// The tensors of a shape, with their strides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub q: Strided,
    pub k: Strided,
    pub v: Strided,
    /// In the type of the output.
    pub o: Strided,
    /// `[B,Tq,H]` f32.
    pub lse: Strided,
    /// `[N+1]` i32.
    pub cu_seqlens: Strided,
    /// `[N]` i32.
    pub prefix_len: Strided,
    /// `[B,Tq,4]` i32.
    pub intervals: Strided,
    /// `[B,W]` u32.
    pub key_bits: Strided,
    /// `[slots+1]` i32.
    pub tile_starts: Strided,
    /// `[H]` f32: slopes, and logits without a value.
    pub heads: Strided,
}

impl Layout {
    /// Checks sizes, strides and element types.
    ///
    /// # Errors
    /// [`Error::NoKernel`] ← f32 elements; [`Error::Range`] ← an extent too large; [`Error::Shape`] ← `key_heads` that do not divide
    /// `heads`, dimensions that are no multiples of 8; [`Error::Layout`] ← a negative stride, one of `q`, `k`, `v` or `o` that is no
    /// multiple of 8 elements, or rows of `o` that overlap.
    pub fn new(op: &'static str, shape: &Shape, options: &Options) -> Result<Self> {
        let Shape { batch, query_len, key_len, heads, key_heads, head_dim, value_dim, packed, strides } = *shape;
        if options.dtype == DType::F32 {
            return Err(Error::NoKernel { op, request: "f32 inputs: there are f16 and bf16".into() });
        }
        strided::range(op, "batch", batch, 0, MAX_EXTENT)?;
        strided::range(op, "query_len", query_len, 0, MAX_LEN)?;
        strided::range(op, "key_len", key_len, 0, MAX_LEN)?;
        strided::range(op, "heads", heads, 0, MAX_HEADS)?;
        if let Some(sequences) = packed {
            strided::range(op, "packed", sequences, 1, MAX_EXTENT)?;
            strided::range(op, "batch", batch, 1, 1)?;
        }
        if heads > 0 && (key_heads == 0 || !heads.is_multiple_of(key_heads)) {
            let want = format!("a divisor of heads = {heads}");
            return Err(Error::Shape { op, arg: "key_heads", want, got: vec![key_heads as u64] });
        }
        for (arg, dim) in [("head_dim", head_dim), ("value_dim", value_dim)] {
            strided::range(op, arg, dim, STEP, MAX_DIM)?;
            if !dim.is_multiple_of(STEP) {
                return Err(Error::Shape { op, arg, want: format!("a multiple of {STEP}"), got: vec![dim as u64] });
            }
        }
        let rows = |tokens: usize, heads: usize, width: usize, dtype: DType, stride: Option<Stride>| match stride {
            Some(s) => Strided::new([batch, tokens, heads], [s.batch, s.token, s.head], width, dtype.size()),
            None => Strided::dense([batch, tokens, heads], width, dtype.size()),
        };
        let dtype = options.dtype;
        let n = shape.sequences();
        let list = |extent: usize| Strided::dense([1, 1, 1], extent, 4);
        let layout = Self {
            q: rows(query_len, heads, head_dim, dtype, strides.q),
            k: rows(key_len, key_heads, head_dim, dtype, strides.k),
            v: rows(key_len, key_heads, value_dim, dtype, strides.v),
            o: rows(query_len, heads, value_dim, options.output.dtype(dtype), strides.o),
            lse: Strided::dense([1, batch, query_len], heads, 4),
            cu_seqlens: list(n + 1),
            prefix_len: list(n),
            intervals: Strided::dense([1, batch, query_len], 4, 4),
            key_bits: Strided::dense([1, 1, batch], shape.key_words(), 4),
            tile_starts: list(shape.slots(Shape::SLOT_QUERIES).saturating_add(1)),
            heads: list(heads),
        };
        for (arg, tensor) in [("q", layout.q), ("k", layout.k), ("v", layout.v)] {
            tensor.readable(op, arg)?;
        }
        layout.o.writable(op, "o")?;
        layout.lse.writable(op, "lse")?;
        for (arg, tensor) in [("q", layout.q), ("k", layout.k), ("v", layout.v), ("o", layout.o)] {
            if tensor.elements() > 0 && !tensor.steps_by(STEP) {
                let need = "strides that are multiples of 8 elements";
                return Err(Error::Layout { op, arg, need, stride: tensor.strides.to_vec() });
            }
        }
        Ok(layout)
    }
}

/// Checks the numbers of the options.
///
/// # Errors
/// [`Error::NoKernel`] ← a scale that is not finite, a softcap that is not finite and above 0; [`Error::Range`] ← an offset farther than
/// sequences are long.
pub(crate) fn check_options(op: &'static str, options: &Options) -> Result<()> {
    let Options { scale, softcap, offset, .. } = *options;
    if !scale.is_finite() {
        return Err(Error::NoKernel { op, request: format!("scale {scale}: it must be finite") });
    }
    if let Some(cap) = softcap
        && !(MIN_SOFTCAP..=MAX_SOFTCAP).contains(&cap)
    {
        let request = format!("softcap {cap}: it must be from {MIN_SOFTCAP} to {MAX_SOFTCAP}");
        return Err(Error::NoKernel { op, request });
    }
    if let Some(got) = offset.map(i64::from)
        && !(-MAX_OFFSET..=MAX_OFFSET).contains(&got)
    {
        return Err(Error::Range { op, arg: "offset", at: None, lo: -MAX_OFFSET, hi: MAX_OFFSET, got });
    }
    Ok(())
}

/// A checked forward pass.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) shape: Shape,
    pub(crate) options: Options,
    pub(crate) layout: Layout,
    pub(crate) tile: Tile,
    pub(crate) kernel: &'static Kernel,
}

impl Plan {
    pub(crate) const OP: &str = "attention";

    /// Checks sizes, strides and options, and finds the kernel.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, a head above [`MAX_DIM`], a sequence above [`MAX_LEN`], an offset farther than that, or
    /// packed sequences in several rows; [`Error::Shape`] ← `key_heads` that do not divide `heads`, heads that are no multiples of 8;
    /// [`Error::Layout`] ← a stride that is negative or no multiple of 8 elements, or rows of `o` that overlap; [`Error::NoKernel`] ←
    /// f32 inputs, a scale that is not finite, a softcap that is not above 0; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let op = Self::OP;
        let layout = Layout::new(op, shape, options)?;
        check_options(op, options)?;
        let Shape { head_dim, value_dim, .. } = *shape;
        let none = || Error::NoKernel { op, request: format!("{} heads of {head_dim} and {value_dim}", options.dtype) };
        let tile = policy::tile(head_dim, value_dim).ok_or_else(none)?;
        let (kt, vt) = (tile.keys.to_string(), tile.values.to_string());
        let variant = [("dtype", options.dtype.name()), ("kt", &kt), ("vt", &vt)];
        let kernel = lookback_kernels::find("attention_fwd", &variant).ok_or_else(none)?;
        if !kernel.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: kernel.entry, need: kernel.target.to_string(), got });
        }
        if kernel.dynamic_smem > device.shared_per_block_optin {
            let request = format!("{} bytes of shared memory a block: this device has fewer", kernel.dynamic_smem);
            return Err(Error::NoKernel { op, request });
        }
        strided::range(op, "blocks", shape.slots(tile.rows).saturating_mul(shape.heads), 0, MAX_EXTENT)?;
        Ok(Self { shape: *shape, options: *options, layout, tile, kernel })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least: `q`, `k`, `v` and `o` once, and `lse`; the state that is merged with as well.
    pub fn bytes_moved(&self) -> u64 {
        let Layout { q, k, v, o, lse, .. } = self.layout;
        let out = o.bytes().saturating_add(lse.bytes());
        let merged = if self.options.output == Output::Merge { out } else { 0 };
        [q, k, v].iter().map(Strided::bytes).fold(out, u64::saturating_add).saturating_add(merged)
    }

    /// Floating-point operations of the two products, `2 (D + Dv)` a head for every key that a query sees.
    ///
    /// Counted from shape and options alone: bitmaps and tile lists hide nothing, [`Mask::Prefix`](crate::Mask::Prefix) counts as causal,
    /// [`Mask::Intervals`](crate::Mask::Intervals) as full, and packed sequences as if they were equally long.
    pub fn flops(&self) -> u64 {
        let Shape { batch, query_len, key_len, heads, head_dim, value_dim, .. } = self.shape;
        let parts = self.shape.packed.unwrap_or(1).max(1);
        let pairs = pairs((query_len / parts) as i128, (key_len / parts) as i128, &self.options);
        let of_pair = 2 * (head_dim + value_dim) as i128 * (heads as i128) * (batch * parts) as i128;
        u64::try_from(pairs.saturating_mul(of_pair)).unwrap_or(u64::MAX)
    }
}

/// Pairs of a query and a key that it sees, for `m` queries and `n` keys.
pub(crate) fn pairs(m: i128, n: i128, options: &Options) -> i128 {
    let reach = options.mask.reach();
    let (left, right, first) = (i128::from(reach.left), i128::from(reach.right), i128::from(reach.first).min(n));
    let offset = options.offset.map_or(n - m, i128::from);
    // The sum over all queries of their position, moved by `by` and clipped to `0..=top`.
    let clipped = |by: i128, top: i128| {
        let up_to = |p: i128| {
            let inside = p.clamp(0, top);
            inside * (inside + 1) / 2 + (p - top).max(0) * top
        };
        up_to(offset + by + m - 1) - up_to(offset + by - 1)
    };
    if m <= 0 || n <= 0 { 0 } else { clipped(right + 1, n) - clipped(-left, n) + clipped(-left, first) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mask;
    use lookback_kernels::KERNELS;

    fn device() -> DeviceInfo {
        DeviceInfo {
            name: "test".into(),
            compute_capability: (9, 0),
            sm_count: 132,
            shared_per_block_optin: 232_448,
            driver_version: 13_000,
            emulated: true,
        }
    }

    fn options(dtype: DType) -> Options {
        Options { dtype, scale: 1.0, softcap: None, mask: Mask::Full, offset: None, output: Output::Same }
    }

    #[test]
    fn every_variant_of_the_kernel_is_some_plans() {
        let mut taken = Vec::new();
        for dtype in [DType::F16, DType::Bf16] {
            for head_dim in (8..=MAX_DIM).step_by(8) {
                for value_dim in (8..=MAX_DIM).step_by(8) {
                    let shape = Shape { value_dim, ..Shape::dense(1, 100, 100, 2, head_dim) };
                    let plan = Plan::new(&shape, &options(dtype), &device()).expect("every dimension has a tile");
                    if taken.contains(&plan.kernel.entry) {
                        continue;
                    }
                    taken.push(plan.kernel.entry);
                    // The contract's grid is made of tiles of so many rows.
                    let rows = format!("ceil(query_len/{})", plan.tile.rows);
                    let launch = plan.kernel.contract("launch").expect("a launch line");
                    assert!(launch.contains(&rows), "{}: {launch}", plan.kernel.entry);
                }
            }
        }
        for kernel in KERNELS.iter().filter(|kernel| kernel.name == "attention_fwd") {
            assert!(taken.contains(&kernel.entry), "{} is never taken", kernel.entry);
        }
    }

    #[test]
    fn a_device_with_too_little_shared_memory_is_refused() {
        let shape = Shape::dense(1, 10, 10, 1, 256);
        let small = DeviceInfo { shared_per_block_optin: 49_152, ..device() };
        let got = Plan::new(&shape, &options(DType::F16), &small);
        assert!(matches!(&got, Err(Error::NoKernel { request, .. }) if request.contains("shared memory")), "{got:?}");
    }

    /// Pairs counted one by one.
    fn counted(m: i128, n: i128, options: &Options) -> i128 {
        let reach = options.mask.reach();
        let (left, right, first) = (i128::from(reach.left), i128::from(reach.right), i128::from(reach.first));
        let offset = options.offset.map_or(n - m, i128::from);
        let sees = |p: i128, j: i128| (p - left..=p + right).contains(&j) || j < first.min(p - left);
        (0..m).map(|i| (0..n).filter(|j| sees(i + offset, *j)).count() as i128).sum()
    }

    #[test]
    fn pairs_are_those_that_the_mask_says() {
        let window = |left, right, sink_tokens| Mask::Window { left, right, sink_tokens };
        let masks = [
            Mask::Full,
            Mask::Causal,
            Mask::AntiCausal,
            window(Some(3), Some(2), 0),
            window(Some(5), Some(0), 4),
            window(None, Some(4), 9),
            window(Some(0), None, 2),
        ];
        for mask in masks {
            for (m, n) in [(1, 1), (7, 20), (20, 7), (13, 13), (0, 5), (5, 0)] {
                for offset in [None, Some(-9), Some(0), Some(4), Some(50)] {
                    let options = Options { mask, offset, ..options(DType::F16) };
                    assert_eq!(pairs(m, n, &options), counted(m, n, &options), "{mask:?} {m} {n} {offset:?}");
                }
            }
        }
    }

    #[test]
    fn plan_counts_what_moves() {
        let shape = Shape { key_heads: 2, value_dim: 32, ..Shape::dense(3, 10, 20, 4, 64) };
        let plan = |output| Plan::new(&shape, &Options { output, ..options(DType::F16) }, &device()).expect("good");
        let (q, kv, o, lse) = (30 * 4 * 64, 60 * 2 * (64 + 32), 30 * 4 * 32, 30 * 4 * 4);
        assert_eq!(plan(Output::Same).bytes_moved(), 2 * (q + kv + o) + lse);
        assert_eq!(plan(Output::F32).bytes_moved(), 2 * (q + kv) + 4 * o + lse);
        assert_eq!(plan(Output::Merge).bytes_moved(), 2 * (q + kv) + 2 * (4 * o + lse));
        assert_eq!(plan(Output::Same).flops(), 3 * 4 * 10 * 20 * 2 * (64 + 32));
        let packed = Shape::packed(4, 40, 80, 2, 64);
        let plan = Plan::new(&packed, &options(DType::F16), &device()).expect("good");
        assert_eq!(plan.flops(), 4 * 2 * 10 * 20 * 2 * 128, "as if equally long");
    }
}
