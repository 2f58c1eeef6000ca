//! Plans of backward passes.

use super::policy::{self, KeyTile};
use crate::{
    DType, DeviceInfo, Error, Options, Result, Shape, Stride,
    plan::{Layout, check_options, pairs},
    strided::{self, MAX_EXTENT, Strided},
};
use lookback_kernels::Kernel;

/// Name of the operation in errors.
pub(super) const OP: &str = "attention_backward";
/// Greatest extent of the grid's y.
const MAX_GRID: usize = 65_535;
/// Parts of a workspace begin at multiples of it.
const PART: u64 = 256;

/// What happens to the gradients of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gradient {
    /// Written in the type of the inputs.
    #[default]
    Same,
    /// Written as f32.
    F32,
    /// Added to what is there, in f32: gradients of blocks of keys, and of queries, add up.
    Accumulate,
}

impl Gradient {
    /// The type of the gradients.
    pub fn dtype(self, inputs: DType) -> DType {
        if self == Gradient::Same { inputs } else { DType::F32 }
    }

    /// As the kernels' argument `out`.
    pub(super) fn code(self) -> u32 {
        match self {
            Gradient::Same => 0,
            Gradient::F32 => 1,
            Gradient::Accumulate => 2,
        }
    }
}

/// Steps of the tensors that the forward pass does not have; `None`: without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackwardStrides {
    /// Of `d_o`.
    pub d_o: Option<Stride>,
    /// Of `dq`.
    pub dq: Option<Stride>,
    /// Of `dk`.
    pub dk: Option<Stride>,
    /// Of `dv`.
    pub dv: Option<Stride>,
}

/// Switches of a backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackwardOptions {
    /// Those of the forward pass; `output` says the type of `o` that is read here.
    pub attention: Options,
    /// Whether `dq` is summed in a fixed order, by a second kernel that computes the weights again. Without, blocks of keys add to it
    /// in f32 as they finish: 5 products instead of 7, results that differ in the last bits from run to run.
    pub deterministic: bool,
    /// What happens to `dq`, `dk`, `dv`.
    pub gradient: Gradient,
    /// Steps of tensors.
    pub strides: BackwardStrides,
}

impl BackwardOptions {
    /// Deterministic, gradients in the type of the inputs and without gaps.
    pub fn new(attention: Options) -> Self {
        Self { attention, deterministic: true, gradient: Gradient::Same, strides: BackwardStrides::default() }
    }
}

/// The tensors of a backward pass, with their strides.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackwardLayout {
    /// Those of the forward pass.
    pub forward: Layout,
    pub d_o: Strided,
    pub dq: Strided,
    pub dk: Strided,
    pub dv: Strided,
    /// `[B,H,Tq,2]` f32.
    pub terms: Strided,
    /// Sums of `dq` without gaps, in f32; empty where blocks add to the caller's.
    pub sums: Strided,
}

/// The kernels of a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    pub prepare: &'static Kernel,
    /// Gradients of keys and values, in one launch or one each. The first adds to `dq` if the plan is not deterministic.
    pub keys: [Option<&'static Kernel>; 2],
    /// The same without `dq`, for who does not want it.
    pub keys_alone: [Option<&'static Kernel>; 2],
    pub queries: &'static Kernel,
    pub finish: &'static Kernel,
    pub sink: &'static Kernel,
}

/// A checked backward pass.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    pub(super) shape: Shape,
    pub(super) options: BackwardOptions,
    pub(super) layout: BackwardLayout,
    /// Tile of the launches that add to `dq`, or of all, and of those that do not.
    pub(super) tiles: [KeyTile; 2],
    /// Queries of a block of the kernel of `dq`.
    pub(super) query_rows: usize,
    pub(super) kernels: Kernels,
}

impl BackwardLayout {
    fn new(shape: &Shape, options: &BackwardOptions) -> Result<Self> {
        let forward = Layout::new(OP, shape, &options.attention)?;
        let Shape { batch, query_len, key_len, heads, key_heads, head_dim, value_dim, .. } = *shape;
        let dtype = options.attention.dtype;
        let rows = |tokens: usize, heads: usize, width: usize, dtype: DType, stride: Option<Stride>| match stride {
            Some(s) => Strided::new([batch, tokens, heads], [s.batch, s.token, s.head], width, dtype.size()),
            None => Strided::dense([batch, tokens, heads], width, dtype.size()),
        };
        let (strides, out) = (options.strides, options.gradient.dtype(dtype));
        let adds_elsewhere = !options.deterministic && options.gradient != Gradient::Accumulate;
        let layout = Self {
            forward,
            d_o: rows(query_len, heads, value_dim, dtype, strides.d_o),
            dq: rows(query_len, heads, head_dim, out, strides.dq),
            dk: rows(key_len, key_heads, head_dim, out, strides.dk),
            dv: rows(key_len, key_heads, value_dim, out, strides.dv),
            terms: Strided::dense([batch, heads, query_len], 2, 4),
            sums: Strided::dense([batch, query_len, heads], if adds_elsewhere { head_dim } else { 0 }, 4),
        };
        layout.d_o.readable(OP, "d_o")?;
        for (arg, tensor) in [("dq", layout.dq), ("dk", layout.dk), ("dv", layout.dv)] {
            tensor.writable(OP, arg)?;
        }
        for (arg, tensor) in [("d_o", layout.d_o), ("dq", layout.dq), ("dk", layout.dk), ("dv", layout.dv)] {
            if tensor.elements() > 0 && !tensor.steps_by(8) {
                let need = "strides that are multiples of 8 elements";
                return Err(Error::Layout { op: OP, arg, need, stride: tensor.strides.to_vec() });
            }
        }
        Ok(layout)
    }
}

impl BackwardPlan {
    /// Checks sizes, strides and options, and finds the kernels.
    ///
    /// # Errors
    /// Those of [`Plan::new`](crate::Plan::new), and [`Error::Layout`] ← a stride of `d_o` or a gradient that is negative or no multiple
    /// of 8 elements, or gradients whose rows overlap.
    pub fn new(shape: &Shape, options: &BackwardOptions, device: &DeviceInfo) -> Result<Self> {
        let layout = BackwardLayout::new(shape, options)?;
        check_options(OP, &options.attention)?;
        let Shape { head_dim, value_dim, .. } = *shape;
        let dtype = options.attention.dtype.name();
        let none = || Error::NoKernel { op: OP, request: format!("{dtype} heads of {head_dim} and {value_dim}") };
        let adds = !options.deterministic;
        let (with_dq, alone) = (policy::tile(head_dim, value_dim, adds), policy::tile(head_dim, value_dim, false));
        let (with_dq, alone) = with_dq.zip(alone).ok_or_else(none)?;
        let find = |name: &str, variant: &[(&str, &str)]| lookback_kernels::find(name, variant).ok_or_else(none);
        let (kt, vt) = (alone.keys.to_string(), alone.values.to_string());
        let keys = |dq: &str| -> Result<[Option<&'static Kernel>; 2]> {
            let part = |part: &str, dq: &str| {
                let variant = [("dtype", dtype), ("kt", &kt), ("vt", &vt), ("part", part), ("dq", dq)];
                find("attention_bwd_keys", &variant)
            };
            if alone.is_split {
                Ok([Some(part("keys", dq)?), Some(part("values", "no")?)])
            } else {
                Ok([Some(part("both", dq)?), None])
            }
        };
        let kernels = Kernels {
            prepare: {
                let out = if options.attention.output == crate::Output::Same { "same" } else { "f32" };
                find("attention_bwd_prepare", &[("dtype", dtype), ("out", out)])?
            },
            keys: keys(if adds { "yes" } else { "no" })?,
            keys_alone: keys("no")?,
            queries: find("attention_bwd_queries", &[("dtype", dtype), ("kt", &kt), ("vt", &vt)])?,
            finish: find("attention_bwd_finish", &[("dtype", options.gradient.dtype(options.attention.dtype).name())])?,
            sink: find("attention_bwd_sink", &[])?,
        };
        if !kernels.prepare.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: kernels.prepare.entry, need: kernels.prepare.target.to_string(), got });
        }
        let plan = Self {
            shape: *shape,
            options: *options,
            layout,
            tiles: [with_dq, alone],
            query_rows: policy::query_rows(alone),
            kernels,
        };
        let blocks = shape.slots(plan.query_rows).saturating_mul(shape.heads);
        strided::range(OP, "blocks", blocks, 0, MAX_EXTENT)?;
        let blocks = plan.key_slots(with_dq.tile).max(plan.key_slots(alone.tile));
        strided::range(OP, "blocks", blocks, 0, MAX_EXTENT)?;
        strided::range(OP, "heads", shape.heads, 0, MAX_GRID)?;
        // Pieces of the last kernel's blocks.
        let pieces = usize::try_from(layout.dq.elements() / 2048).unwrap_or(usize::MAX);
        strided::range(OP, "blocks", pieces, 0, MAX_EXTENT)?;
        Ok(plan)
    }

    /// Blocks along the keys.
    pub(super) fn key_slots(&self, tile: usize) -> usize {
        let tiles = self.shape.key_len.div_ceil(tile);
        match self.shape.packed {
            Some(sequences) => tiles.saturating_add(sequences),
            None => tiles.saturating_mul(self.shape.batch),
        }
    }

    /// Elements that [`prepare`](Self::prepare) writes: `[B,H,Tq,2]`.
    pub fn terms_len(&self) -> usize {
        usize::try_from(self.layout.terms.elements()).unwrap_or(usize::MAX)
    }

    /// Bytes of [`terms_len`](Self::terms_len) elements in a workspace.
    pub(super) fn terms_bytes(&self) -> u64 {
        self.layout.terms.bytes().next_multiple_of(PART)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: two numbers a query and head, and the sums of `dq` if it is not
    /// deterministic and does not add to f32.
    pub fn workspace_bytes(&self) -> u64 {
        self.terms_bytes().saturating_add(self.layout.sums.bytes())
    }

    /// Bytes that must cross the memory bus at least: inputs, `o` and `d_o` once, `lse`, and gradients once or, if they are added to,
    /// twice.
    pub fn bytes_moved(&self) -> u64 {
        let BackwardLayout { forward: Layout { q, k, v, o, lse, .. }, d_o, dq, dk, dv, .. } = &self.layout;
        let times = if self.options.gradient == Gradient::Accumulate { 2 } else { 1 };
        let sum = |tensors: &[&Strided]| tensors.iter().map(|t| t.bytes()).fold(0, u64::saturating_add);
        sum(&[q, k, v, o, lse, d_o]).saturating_add(sum(&[dq, dk, dv]).saturating_mul(times))
    }

    /// Floating-point operations of the five products, `2 (3 D + 2 Dv)` a head for every key that a query sees, counted as
    /// [`Plan::flops`](crate::Plan::flops) does. The deterministic `dq` and heads wider than 128 compute weights again: that is not
    /// counted.
    pub fn flops(&self) -> u64 {
        let Shape { batch, query_len, key_len, heads, head_dim, value_dim, .. } = self.shape;
        let parts = self.shape.packed.unwrap_or(1).max(1);
        let pairs = pairs((query_len / parts) as i128, (key_len / parts) as i128, &self.options.attention);
        let of_pair = 2 * (3 * head_dim + 2 * value_dim) as i128 * (heads as i128) * (batch * parts) as i128;
        u64::try_from(pairs.saturating_mul(of_pair)).unwrap_or(u64::MAX)
    }
}
