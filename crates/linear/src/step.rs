//! One token of decoding: every state changes in place and is read by its query, in one launch.
//!
//! Shape and options are those of the whole sequence's operation, with one token.

use crate::{
    Decay, Features, Mode, Options, Read, Shape, Stride, memory,
    strided::{self, MAX_EXTENT, Placed, Strided},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DeviceInfo, Element, Error, Result, launch};
use lookback_kernels::{Kernel, args::LinearAttentionStep, find};

const OP: &str = "linear_attention_step";
/// Greatest extent of the grid's y and z.
const MAX_GRID: usize = 65_535;
/// Greatest key dimension: a block keeps all rows of `q`, `k` and the decays.
pub const MAX_KEY_DIM: usize = 256;

/// What a launch reads.
pub struct Inputs<'a, T> {
    /// `[B, query_heads, K]`.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B, key_heads, K]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B, H, V]`.
    pub v: &'a dyn DevicePtr<T>,
    /// Log-decays, at most 0, as [`Options::decay`] says: `[H]`, `[B, H]` or `[B, H, K]`.
    pub g: Option<&'a dyn DevicePtr<f32>>,
    /// Bonus, `[H, K]`, with [`Read::ExclusiveBonus`]; absent means 0.
    pub bonus: Option<&'a dyn DevicePtr<f32>>,
}

/// What a launch writes.
pub struct Outputs<'a, T> {
    /// `[B, H, K, V]`, read and written.
    pub state: &'a mut dyn DevicePtrMut<f32>,
    /// `[B, H, K]`, read and written, with [`Options::normalize`].
    pub z: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[B, H, V]`.
    pub o: &'a mut dyn DevicePtrMut<T>,
    /// `[B, H]`: what `o` was divided by, with [`Options::normalize`].
    pub den: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Addresses of [`Inputs`] and [`Outputs`], for [`Plan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raw {
    /// See [`Inputs::q`].
    pub q: CUdeviceptr,
    /// See [`Inputs::k`].
    pub k: CUdeviceptr,
    /// See [`Inputs::v`].
    pub v: CUdeviceptr,
    /// See [`Inputs::g`].
    pub g: CUdeviceptr,
    /// See [`Inputs::bonus`].
    pub bonus: CUdeviceptr,
    /// See [`Outputs::state`].
    pub state: CUdeviceptr,
    /// See [`Outputs::z`].
    pub z: CUdeviceptr,
    /// See [`Outputs::o`].
    pub o: CUdeviceptr,
    /// See [`Outputs::den`].
    pub den: CUdeviceptr,
}

/// A checked step.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    /// Multiprocessors to keep busy.
    sm_count: usize,
    wide: &'static Kernel,
    single: &'static Kernel,
}

/// How a state is cut up among blocks and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    /// 2^lane_bits threads share a row.
    lane_bits: u32,
    /// Columns of a block.
    block_columns: usize,
}

impl Policy {
    /// 256 bytes of a row for a block, or 128 where that leaves multiprocessors idle. With a normaliser one block has all columns,
    /// because `z` changes in place.
    fn of(plan: &Plan, vec: usize) -> Self {
        let Shape { batch, heads, value_dim, .. } = plan.shape;
        let lanes = value_dim.div_ceil(vec).next_power_of_two();
        let blocks = |lanes: usize| batch * heads * value_dim.div_ceil(lanes * vec);
        let widest = if vec == 4 { 16 } else { 32 };
        let few = blocks(widest) < 4 * plan.sm_count;
        let lanes = match plan.options.normalize {
            Some(_) => lanes.min(32),
            None => lanes.min(if few { widest / 2 } else { widest }),
        };
        let block_columns = if plan.options.normalize.is_some() { value_dim } else { lanes * vec };
        Self { lane_bits: lanes.trailing_zeros(), block_columns }
    }
}

impl Plan {
    /// Checks sizes and strides and finds the kernels. The shape is that of one token: `seq_len` is 1.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, or `seq_len` not 1; [`Error::Shape`] ← a number of heads that does not divide `heads`;
    /// [`Error::Layout`] ← a negative stride, or rows of `o` that overlap; [`Error::NoKernel`] ← features, packed sequences, a mode that needs
    /// later tokens, or shifted reads, which need the token before; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        strided::range(OP, "batch", shape.batch, 0, MAX_GRID)?;
        strided::range(OP, "seq_len", shape.seq_len, 1, 1)?;
        strided::range(OP, "heads", shape.heads, 0, MAX_GRID)?;
        strided::range(OP, "key_dim", shape.key_dim, 1, MAX_KEY_DIM)?;
        strided::range(OP, "value_dim", shape.value_dim, 1, MAX_EXTENT)?;
        for (arg, heads) in [("query_heads", shape.query_heads), ("key_heads", shape.key_heads)] {
            strided::range(OP, arg, heads, usize::from(shape.heads > 0), shape.heads)?;
            if heads > 0 && !shape.heads.is_multiple_of(heads) {
                let want = format!("a divisor of the {} heads", shape.heads);
                return Err(Error::Shape { op: OP, arg, want, got: vec![heads as u64] });
            }
        }
        let later = !matches!(options.mode, Mode::Causal | Mode::PrefixState);
        for (refused, request) in [
            (options.features != Features::Identity, "Taylor features: give q and k with theirs".to_string()),
            (shape.packed.is_some(), "packed sequences: give each a row of the batch".to_string()),
            (later, format!("mode {:?}: a step is causal", options.mode)),
            (options.read == Read::Shifted, "shifted reads: give the query of the token before".to_string()),
        ] {
            if refused {
                return Err(Error::NoKernel { op: OP, request });
            }
        }
        let kernel = |vec: &str| {
            let variant = [("dtype", options.dtype.name()), ("vec", vec)];
            find(OP, &variant).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{OP} {variant:?}") })
        };
        let (wide, single) = (kernel("4")?, kernel("1")?);
        if !wide.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: wide.entry, need: wide.target.to_string(), got });
        }
        let plan = Self { shape: *shape, options: *options, sm_count: device.sm_count as usize, wide, single };
        for (arg, tensor) in [("q", plan.q()), ("k", plan.k()), ("v", plan.v()), ("g", plan.g())] {
            tensor.readable(OP, arg)?;
        }
        plan.o().writable(OP, "o")?;
        plan.state().writable(OP, "state")?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least: states in and out, and a token's vectors.
    pub fn bytes_moved(&self) -> u64 {
        let vectors = [self.q(), self.k(), self.v(), self.o(), self.g(), self.bonus()];
        let normaliser = if self.options.normalize.is_some() { 2 * self.z().bytes() + self.den().bytes() } else { 0 };
        2 * self.state().bytes() + vectors.iter().map(Strided::bytes).sum::<u64>() + normaliser
    }

    /// Floating-point operations: decay, product and sum, and the read-out, of every element of the states.
    pub fn flops(&self) -> u64 {
        5 * self.state().elements()
    }

    fn tensor(&self, heads: usize, stride: Option<Stride>, width: usize, size: usize) -> Strided {
        let Stride { batch, token, head } = stride.unwrap_or(Stride::dense(1, heads, width));
        Strided::new([self.shape.batch, 1, heads], [batch, token, head], width, size)
    }

    fn q(&self) -> Strided {
        let Shape { query_heads, key_dim, strides, .. } = self.shape;
        self.tensor(query_heads, strides.q, key_dim, self.options.dtype.size())
    }

    fn k(&self) -> Strided {
        let Shape { key_heads, key_dim, strides, .. } = self.shape;
        self.tensor(key_heads, strides.k, key_dim, self.options.dtype.size())
    }

    fn v(&self) -> Strided {
        let Shape { heads, value_dim, strides, .. } = self.shape;
        self.tensor(heads, strides.v, value_dim, self.options.dtype.size())
    }

    fn o(&self) -> Strided {
        let Shape { heads, value_dim, strides, .. } = self.shape;
        self.tensor(heads, strides.o, value_dim, self.options.dtype.size())
    }

    fn state(&self) -> Strided {
        let Shape { batch, heads, key_dim, value_dim, .. } = self.shape;
        Strided::dense([batch, 1, heads], key_dim.saturating_mul(value_dim), 4)
    }

    fn g(&self) -> Strided {
        let Shape { heads, key_dim, strides, .. } = self.shape;
        match self.options.decay {
            Decay::None => Strided::NONE,
            Decay::Head => Strided::dense([1, 1, heads], 1, 4),
            Decay::Scalar => self.tensor(heads, strides.g, 1, 4),
            Decay::Vector => self.tensor(heads, strides.g, key_dim, 4),
        }
    }

    fn bonus(&self) -> Strided {
        match self.options.read {
            Read::ExclusiveBonus => Strided::dense([1, 1, self.shape.heads], self.shape.key_dim, 4),
            _ => Strided::NONE,
        }
    }

    fn z(&self) -> Strided {
        Strided::dense([self.shape.batch, 1, self.shape.heads], self.shape.key_dim, 4)
    }

    fn den(&self) -> Strided {
        Strided::dense([self.shape.batch, 1, self.shape.heads], 1, 4)
    }

    /// `S = diag(e^g) S + k v^T`, `o = scale S^T q`; or the read first, with the bonus, as [`Read`] says.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say; the state and `z` are dense. `q`, `k`, `v` and `o` have the plan's type.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short, or absent where the options want it, or
    /// given where they do not; [`Error::Alias`] ← something written overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// State, decays and sums in `f32`; `o` is rounded once. `e^g` is right to the last place near 1, so that a state decoded token by
    /// token stays with one that was scanned.
    ///
    /// # Determinism
    /// Bitwise.
    ///
    /// # Cost
    /// One launch; the state crosses the bus once each way, 16 bytes a thread where `V`, addresses and strides allow it.
    pub fn run<T: Element>(&self, stream: &CudaStream, inputs: &Inputs<'_, T>, outputs: Outputs<'_, T>) -> Result<()> {
        strided::dtype(OP, "q", self.options.dtype, T::DTYPE)?;
        strided::length(OP, "q", &self.q(), inputs.q.len())?;
        strided::length(OP, "k", &self.k(), inputs.k.len())?;
        strided::length(OP, "v", &self.v(), inputs.v.len())?;
        inputs.g.map_or(Ok(()), |g| strided::length(OP, "g", &self.g(), g.len()))?;
        inputs.bonus.map_or(Ok(()), |u| strided::length(OP, "bonus", &self.bonus(), u.len()))?;
        strided::length(OP, "state", &self.state(), outputs.state.len())?;
        outputs.z.as_ref().map_or(Ok(()), |z| strided::length(OP, "z", &self.z(), z.len()))?;
        strided::length(OP, "o", &self.o(), outputs.o.len())?;
        outputs.den.as_ref().map_or(Ok(()), |d| strided::length(OP, "den", &self.den(), d.len()))?;
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (g, _g) = memory::input(inputs.g, stream);
        let (bonus, _bonus) = memory::input(inputs.bonus, stream);
        let (state, _state) = memory::output(Some(outputs.state), stream);
        let (z, _z) = memory::output(outputs.z, stream);
        let (o, _o) = memory::output(Some(outputs.o), stream);
        let (den, _den) = memory::output(outputs.den, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, &Raw { q, k, v, g, bonus, state, z, o, den }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or readable and writable (the others) over the plan's shape until the
    ///   launch has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads what is written.
    pub unsafe fn run_raw(&self, stream: &CudaStream, raw: &Raw) -> Result<()> {
        let Shape { batch, heads, query_heads, key_heads, key_dim, value_dim, .. } = self.shape;
        let options = self.options;
        let normalizes = options.normalize.is_some();
        strided::given(OP, "g", options.decay != Decay::None, raw.g != 0)?;
        strided::given(OP, "z", normalizes, raw.z != 0)?;
        if !normalizes {
            strided::given(OP, "den", false, raw.den != 0)?;
        }
        if options.read == Read::Inclusive {
            strided::given(OP, "bonus", false, raw.bonus != 0)?;
        }
        let (q, k, v, g, bonus) = (self.q(), self.k(), self.v(), self.g(), self.bonus());
        let (state, z, o, den) = (self.state(), self.z(), self.o(), self.den());
        let inputs: [Placed<'_>; 5] =
            [("q", raw.q, &q), ("k", raw.k, &k), ("v", raw.v, &v), ("g", raw.g, &g), ("bonus", raw.bonus, &bonus)];
        let outputs: [Placed<'_>; 4] =
            [("state", raw.state, &state), ("z", raw.z, &z), ("o", raw.o, &o), ("den", raw.den, &den)];
        for (i, placed) in inputs.into_iter().enumerate() {
            strided::address(OP, placed, i > 2)?;
        }
        for (i, placed) in outputs.into_iter().enumerate() {
            strided::address(OP, placed, i % 2 == 1)?;
        }
        strided::all_disjoint(OP, &outputs, &inputs)?;
        if batch == 0 || heads == 0 {
            return Ok(());
        }
        let whole = value_dim.is_multiple_of(4) && state.steps_by(4) && v.steps_by(4);
        let fits = whole && raw.state.is_multiple_of(16) && raw.v.is_multiple_of(4 * v.size);
        let (kernel, vec) = if fits { (self.wide, 4) } else { (self.single, 1) };
        let Policy { lane_bits, block_columns } = Policy::of(self, vec);
        let args = LinearAttentionStep {
            p_q: raw.q,
            p_k: raw.k,
            p_v: raw.v,
            p_g: raw.g,
            p_u: raw.bonus,
            p_state: raw.state,
            p_z: raw.z,
            p_o: raw.o,
            p_den: raw.den,
            q_stride_batch: q.strides[0],
            q_stride_head: q.strides[2],
            k_stride_batch: k.strides[0],
            k_stride_head: k.strides[2],
            v_stride_batch: v.strides[0],
            v_stride_head: v.strides[2],
            g_stride_batch: if options.decay == Decay::Head { 0 } else { g.strides[0] },
            g_stride_head: g.strides[2],
            state_stride_batch: state.strides[0],
            state_stride_head: state.strides[2],
            o_stride_batch: o.strides[0],
            o_stride_head: o.strides[2],
            heads: heads as u32,
            q_group: (heads / query_heads) as u32,
            k_group: (heads / key_heads) as u32,
            key_dim: key_dim as u32,
            value_dim: value_dim as u32,
            block_columns: block_columns as u32,
            lane_bits,
            g_is_vector: u32::from(options.decay == Decay::Vector),
            exclusive: u32::from(options.read == Read::ExclusiveBonus),
            scale: options.scale,
            eps: options.normalize.unwrap_or(0.0),
            ..bytemuck::Zeroable::zeroed()
        };
        let tiles = value_dim.div_ceil(block_columns) as u32;
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [tiles, heads as u32, batch as u32], &args) }
    }
}
