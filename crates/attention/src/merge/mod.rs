//! Merging of states: partial results of attention over disjoint sets of keys, `(o, lse)` for each query and head, become that of their
//! union, `lse = ln sum e^lse[s]` and `o = sum e^(lse[s] - lse) o[s]`.
//!
//! Rings, splits of a long cache, and attention over shared prefixes end in it. States may stand side by side, `[states, batch, tokens,
//! heads, value_dim]`, or in any number for each token one after the other; a running state may take them in in place, all tokens or
//! a range of them; a sink, a logit without a value, may join. The state of no keys is `o = 0`, `lse = -inf`, and changes nothing.

mod shape;

pub use shape::{Options, Shape, StateStride, Strides};

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DType, DeviceInfo, Element, Error, Result, launch, memory,
    strided::{self, Placed, Strided},
};
use lookback_kernels::{Kernel, args::MergeStates, find};
use shape::{Output, States, fits};
use std::sync::Arc;

const OP: &str = "merge_states";
/// Threads of a block.
const BLOCK: usize = 256;
/// Threads that may share a row.
const WARP: usize = 32;

/// What a launch reads.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    /// `[states, batch, tokens, heads, value_dim]`, or `[states, heads, value_dim]` with [`Shape::ragged`].
    pub o: &'a dyn DevicePtr<T>,
    /// The same without the last dimension; natural logarithms, `-inf` for a state of no keys, whose `o` is not looked at.
    pub lse: &'a dyn DevicePtr<f32>,
    /// `[tokens + 1]` with [`Shape::ragged`]: token `t` has the states `starts[t]..starts[t + 1]`.
    pub starts: Option<&'a dyn DevicePtr<i32>>,
    /// `[heads]`: the logit of one more key, which has no value. Give it once only where states are merged in several launches.
    pub sink: Option<&'a dyn DevicePtr<f32>>,
}

/// What a launch writes.
pub struct Outputs<'a, U> {
    /// `[batch, out_tokens, heads, value_dim]`; read as well with [`Options::accumulate`].
    pub out: &'a mut dyn DevicePtrMut<U>,
    /// `[batch, out_tokens, heads]`, likewise; needed with [`Options::accumulate`].
    pub lse: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Addresses of [`Inputs`] and [`Outputs`], for [`Plan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raw {
    /// See [`Inputs::o`].
    pub o: CUdeviceptr,
    /// See [`Inputs::lse`].
    pub lse: CUdeviceptr,
    /// See [`Inputs::starts`].
    pub starts: CUdeviceptr,
    /// See [`Inputs::sink`].
    pub sink: CUdeviceptr,
    /// See [`Outputs::out`].
    pub out: CUdeviceptr,
    /// See [`Outputs::lse`].
    pub lse_out: CUdeviceptr,
}

/// A checked merge.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    o: States,
    lse: States,
    out: Output,
    lse_out: Output,
    wide: &'static Kernel,
    single: &'static Kernel,
    /// Elements of a wide access.
    elements: usize,
}

impl Plan {
    /// Checks sizes, strides and types and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, ragged states with a batch, or tokens that are not in `out`; [`Error::Layout`] ← a
    /// negative stride, or rows of an output that overlap; [`Error::Dtype`] ← two 16-bit types, or a running state of 16 bits;
    /// [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        shape.check()?;
        options.check()?;
        let elements = if options.dtype == DType::F32 || options.out == DType::F32 { 4 } else { 8 };
        let kernel = |vec: &str| {
            let variant = [("dtype", options.dtype.name()), ("out", options.out.name()), ("vec", vec)];
            find(OP, &variant).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{OP} {variant:?}") })
        };
        let (wide, single) = (kernel(if elements == 8 { "8" } else { "4" })?, kernel("1")?);
        if !wide.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: wide.entry, need: wide.target.to_string(), got });
        }
        let (o, lse) = (shape.o(options.dtype)?, shape.lse()?);
        let (out, lse_out) = (shape.out(options.out)?, shape.lse_out()?);
        Ok(Self { shape: *shape, options: *options, o, lse, out, lse_out, wide, single, elements })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with `lse_out` and without `starts` and `sink`.
    pub fn bytes_moved(&self) -> u64 {
        let bytes = |states: &States| states.elements().saturating_mul(states.within.size);
        let times = 1 + u64::from(self.options.accumulate);
        let out = self.out.merged.bytes().saturating_add(self.lse_out.merged.bytes());
        bytes(&self.o).saturating_add(bytes(&self.lse)).saturating_add(times * out)
    }

    /// Floating-point operations: a product and a sum for each element of a state, and the weights.
    pub fn flops(&self) -> u64 {
        2 * self.o.elements() + 4 * self.lse.elements()
    }

    fn starts(&self) -> Strided {
        if self.shape.ragged { Strided::dense([1; 3], self.shape.tokens + 1, 4) } else { Strided::NONE }
    }

    fn sink(&self) -> Strided {
        Strided::dense([1; 3], self.shape.heads, 4)
    }

    /// Merges the states of every token and head.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's types and strides.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` or `U` is not the plan's type; [`Error::Shape`] ← a slice is too short, or `starts` or `lse_out` is absent where the
    /// plan needs it, or `starts` is given where it does not; [`Error::Alias`] ← an output overlaps another tensor. Nothing is written
    /// on these. Entries of `starts` are device data: they are clamped to the states, never followed outside.
    ///
    /// # Numerics
    /// Weights and sums in `f32`, relative to the largest `lse`, so that no magnitude of it overflows; `out` is rounded once. Tokens
    /// without any key get `o = 0` and `lse = -inf` exactly. A state far above all others comes out as it went in.
    ///
    /// # Determinism
    /// Bitwise: states in their order.
    ///
    /// # Cost
    /// One launch; every state crosses the bus once, 16 bytes a thread where `value_dim`, addresses and strides allow it.
    pub fn run<T: Element, U: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, U>,
    ) -> Result<()> {
        strided::dtype(OP, "o", self.options.dtype, T::DTYPE)?;
        strided::dtype(OP, "out", self.options.out, U::DTYPE)?;
        strided::length(OP, "o", &self.o.span(), inputs.o.len())?;
        strided::length(OP, "lse", &self.lse.span(), inputs.lse.len())?;
        inputs.starts.map_or(Ok(()), |s| strided::length(OP, "starts", &self.starts(), s.len()))?;
        inputs.sink.map_or(Ok(()), |s| strided::length(OP, "sink", &self.sink(), s.len()))?;
        strided::length(OP, "out", &self.out.all, outputs.out.len())?;
        outputs.lse.as_ref().map_or(Ok(()), |l| strided::length(OP, "lse_out", &self.lse_out.all, l.len()))?;
        let (o, _o) = memory::input(Some(inputs.o), stream);
        let (lse, _lse) = memory::input(Some(inputs.lse), stream);
        let (starts, _starts) = memory::input(inputs.starts, stream);
        let (sink, _sink) = memory::input(inputs.sink, stream);
        let (out, _out) = memory::output(Some(outputs.out), stream);
        let (lse_out, _lse_out) = memory::output(outputs.lse, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, &Raw { o, lse, starts, sink, out, lse_out }) }
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
        let Shape { states, ragged, batch, tokens, heads, value_dim, .. } = self.shape;
        let (o_span, lse_span, starts, sink) = (self.o.span(), self.lse.span(), self.starts(), self.sink());
        strided::given(OP, "starts", ragged, raw.starts != 0)?;
        // An empty tensor may have no address.
        if self.options.accumulate && self.lse_out.all.elements() > 0 {
            strided::given(OP, "lse_out", true, raw.lse_out != 0)?;
        }
        let inputs: [Placed<'_>; 4] = [
            ("o", raw.o, &o_span),
            ("lse", raw.lse, &lse_span),
            ("starts", raw.starts, &starts),
            ("sink", raw.sink, &sink),
        ];
        // Aliases are sought over all of an output: what is not merged belongs to it as well.
        let outputs: [Placed<'_>; 2] = [("out", raw.out, &self.out.all), ("lse_out", raw.lse_out, &self.lse_out.all)];
        for (i, placed) in inputs.into_iter().enumerate() {
            strided::address(OP, placed, i > 1)?;
        }
        for (i, placed) in outputs.into_iter().enumerate() {
            strided::address(OP, placed, i == 1)?;
        }
        strided::all_disjoint(OP, &outputs, &inputs)?;
        if self.out.merged.elements() == 0 {
            return Ok(());
        }
        let out = raw.out + self.out.before * self.out.all.size;
        let lse_out = if raw.lse_out == 0 { 0 } else { raw.lse_out + self.lse_out.before * 4 };
        let fits = self.o.fits(raw.o, self.elements) && fits(out, &self.out.merged, self.elements);
        let (kernel, vec) = if fits { (self.wide, self.elements) } else { (self.single, 1) };
        let lanes = value_dim.div_ceil(vec).next_power_of_two().min(WARP);
        let [o, lse] = [&self.o, &self.lse].map(|s| (s.stride, s.within.strides));
        let token = |stride: i64| if ragged { 0 } else { stride };
        let args = MergeStates {
            p_o: raw.o,
            p_lse: raw.lse,
            p_starts: raw.starts,
            p_sink: raw.sink,
            p_out: out,
            p_lse_out: lse_out,
            o_stride_state: o.0,
            o_stride_batch: o.1[0],
            o_stride_token: token(o.1[1]),
            o_stride_head: o.1[2],
            lse_stride_state: lse.0,
            lse_stride_batch: lse.1[0],
            lse_stride_token: token(lse.1[1]),
            lse_stride_head: lse.1[2],
            out_stride_batch: self.out.merged.strides[0],
            out_stride_token: self.out.merged.strides[1],
            out_stride_head: self.out.merged.strides[2],
            lse_out_stride_batch: self.lse_out.merged.strides[0],
            lse_out_stride_token: self.lse_out.merged.strides[1],
            lse_out_stride_head: self.lse_out.merged.strides[2],
            states: states as u32,
            tokens: tokens as u32,
            heads: heads as u32,
            value_dim: value_dim as u32,
            accumulate: u32::from(self.options.accumulate),
            lane_bits: lanes.trailing_zeros(),
        };
        let grid = [(tokens * heads).div_ceil(BLOCK / lanes) as u32, batch as u32, 1];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}

/// The union of `states` dense states `[states, batch, tokens, heads, value_dim]` in new memory: `o` of the type of its input, and `lse`.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`].
pub fn merge_states<T: Element>(
    stream: &Arc<CudaStream>,
    o: &dyn DevicePtr<T>,
    lse: &dyn DevicePtr<f32>,
    sink: Option<&dyn DevicePtr<f32>>,
    (states, batch, tokens, heads, value_dim): (usize, usize, usize, usize, usize),
) -> Result<(CudaSlice<T>, CudaSlice<f32>)> {
    let device = DeviceInfo::of(stream.context())?;
    let shape = Shape::dense(states, batch, tokens, heads, value_dim);
    let plan = Plan::new(&shape, &Options::new(T::DTYPE), &device)?;
    let mut out = memory::allocate::<T>(stream, plan.out.all.elements(), OP)?;
    let mut lse_out = memory::allocate::<f32>(stream, plan.lse_out.all.elements(), OP)?;
    let inputs = Inputs { o, lse, starts: None, sink };
    plan.run(stream, &inputs, Outputs { out: &mut out, lse: Some(&mut lse_out) })?;
    Ok((out, lse_out))
}
