//! Rotary positions: pairs of elements turned by an angle that grows with the position, as halves or neighbours; the cosine form of
//! linearised relative positions, which makes a row twice as wide; and both on grids of several axes.
//!
//! Angles are integers until the end: a frequency is a 64-bit fraction of a turn, so that its product with a position wraps to what is
//! left of the whole turns without rounding. At any position of 31 bits they are as good as `f32`.

mod shape;

pub use shape::{Grid, MAX_AXES, Options, Shape, Stride, Style};

use crate::{
    check, memory,
    rows::{BLOCK, Variants},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DeviceInfo, Element, Result, launch,
    strided::{self, Placed, Strided},
};
use std::sync::Arc;

const OP: &str = "rotary";
/// Heads that a thread has in flight.
const HEADS_AT_ONCE: usize = 4;

/// A checked rotation, forward or backward.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    backwards: bool,
    x: Strided,
    out: Strided,
    kernels: Variants,
    sm_count: u32,
}

/// What a launch reads besides `x`.
#[derive(Default, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[batch, tokens]`: the position of each token. Absent means its number in its sequence plus [`Options::offset`].
    pub positions: Option<&'a dyn DevicePtr<i32>>,
    /// `[sequences + 1]` of a packed shape: where each sequence begins, from 0 on, and the end of the last. Tokens behind that end
    /// count as one sequence more. Not needed where positions are given.
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// As many as an axis has angles: how far a position turns each, see [`turns`]. Absent means the powers of [`Options::base`].
    pub frequencies: Option<&'a dyn DevicePtr<u64>>,
}

/// A frequency as [`Inputs::frequencies`] has it, from radians a position: a fraction of a turn, in units of `2^-64` turns.
pub fn turns(radians: f64) -> u64 {
    ((radians / std::f64::consts::TAU).rem_euclid(1.0) * 2_f64.powi(64)) as u64
}

/// How a launch is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    lane_bits: u32,
    /// Heads that a block walks with the same angles.
    block_heads: usize,
    /// Tokens that a thread walks with the same frequencies.
    steps: usize,
}

impl Policy {
    /// All heads and several tokens to a thread when there are many tokens, and few heads when there are few.
    fn of(shape: &Shape, units: usize, sm_count: u32) -> Self {
        let wanted = sm_count.max(1) as usize * 1024;
        let lane_bits = units.min(BLOCK).next_power_of_two().trailing_zeros();
        let threads = shape.batch.saturating_mul(shape.tokens).saturating_mul(1 << lane_bits).max(1);
        let parts = wanted.div_ceil(threads);
        let block_heads = shape.heads.div_ceil(parts).next_multiple_of(HEADS_AT_ONCE).max(shape.heads.div_ceil(65_535));
        Self { lane_bits, block_heads, steps: (threads / wanted).clamp(1, 8) }
    }
}

impl Plan {
    /// Checks sizes, strides and angles and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large, `rotary_dim` above `head_dim` or less with
    /// [`Style::Cosine`], a base below 1 or not finite, more than [`MAX_AXES`] axes, or packed sequences in several rows;
    /// [`Error::Shape`](crate::Error::Shape) ← an odd `rotary_dim`; [`Error::Layout`](crate::Error::Layout) ← a negative stride of
    /// `x`, or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        Self::of(shape, options, device, false)
    }

    /// The gradient by `x` of [`Plan::new`] with the same arguments, but for the strides, which are those of what is read and written:
    /// turning by the negative angles, or for [`Style::Cosine`] `dx = dout[..d] cos + dout[d..] sin`.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn backward(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        Self::of(shape, options, device, true)
    }

    fn of(shape: &Shape, options: &Options, device: &DeviceInfo, backwards: bool) -> Result<Self> {
        check::range(OP, "batch", shape.batch, 0, 65_535)?;
        check::range(OP, "tokens", shape.tokens, 0, check::MAX_EXTENT)?;
        check::range(OP, "heads", shape.heads, 0, 1 << 24)?;
        options.check(shape.head_dim)?;
        if let Some(sequences) = shape.packed {
            check::range(OP, "packed", sequences, 1, 1 << 30)?;
            check::range(OP, "batch", shape.batch, 1, 1)?;
        }
        let style = match (options.style, backwards) {
            (Style::Half, _) => "half",
            (Style::Interleaved, _) => "interleaved",
            (Style::Cosine, false) => "cosine",
            (Style::Cosine, true) => "cosine_bwd",
        };
        let (narrow, wide) = (shape.head_dim, options.wide(shape.head_dim));
        let (read, written) = if backwards { (wide, narrow) } else { (narrow, wide) };
        let plan = Self {
            shape: *shape,
            options: *options,
            backwards,
            x: shape.tensor(shape.x_stride, read, options.dtype),
            out: shape.tensor(shape.out_stride, written, options.dtype),
            kernels: Variants::find(OP, "rotary", options.dtype, &[("style", style)])?,
            sm_count: device.sm_count,
        };
        plan.x.readable(OP, "x")?;
        plan.out.writable(OP, "out")?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, without positions.
    pub fn bytes_moved(&self) -> u64 {
        (self.x.elements() + self.out.elements()) * self.options.dtype.size() as u64
    }

    /// Floating-point operations: two products and a sum for each element that turns; the angles are not counted.
    pub fn flops(&self) -> u64 {
        3 * self.x.elements().max(self.out.elements())
    }

    fn positions(&self) -> Strided {
        Strided::dense([1, 1, self.shape.batch], self.shape.tokens, 4)
    }

    fn frequencies(&self) -> Strided {
        Strided::dense([1; 3], self.options.turned().min(self.options.axis_turned()), 8)
    }

    fn starts(&self) -> Strided {
        self.shape.packed.map_or(Strided::NONE, |sequences| Strided::dense([1; 3], sequences + 1, 4))
    }

    /// Turns the rows of every head of every token. With [`Plan::backward`] `x` is the gradient by the result, and `out` receives that by
    /// what was turned.
    ///
    /// # Shapes
    /// `x`: `[batch, tokens, heads, head_dim]`, `out`: the same, or twice as wide with [`Style::Cosine`] (then `x` is it in a
    /// backward plan), of the plan's type and strides.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or `cu_seqlens` without a packed shape or the other way round; [`Error::Alias`](crate::Error::Alias) ← `out` overlaps
    /// an input. Nothing is written on these.
    ///
    /// # Numerics
    /// Angles within `2^-59 position` turns, or exactly what a table says, then `f32`; products in `f32`, rounded once.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        inputs: Inputs<'_>,
        out: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x.span(), x.len())?;
        if let Some(positions) = inputs.positions {
            check::length(OP, "positions", self.positions().span(), positions.len())?;
        }
        if let Some(starts) = inputs.cu_seqlens {
            check::length(OP, "cu_seqlens", self.starts().span(), starts.len())?;
        }
        if let Some(frequencies) = inputs.frequencies {
            check::length(OP, "frequencies", self.frequencies().span(), frequencies.len())?;
        }
        check::length(OP, "out", self.out.span(), out.len())?;
        let (x, _x) = x.device_ptr(stream);
        let (positions, _positions) = memory::input(inputs.positions, stream);
        let (starts, _starts) = memory::input(inputs.cu_seqlens, stream);
        let (frequencies, _frequencies) = memory::input(inputs.frequencies, stream);
        let (out, _out) = out.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, positions, starts, frequencies, out) }
    }

    /// As [`run`](Self::run) on device addresses; `positions`, `cu_seqlens` and `frequencies` may be 0 for absent. Here `out` may be `x`
    /// itself where both have the same width and strides; elements that do not turn are then left alone.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), and those of [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `out` writable, over the plan's extents until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        positions: CUdeviceptr,
        cu_seqlens: CUdeviceptr,
        frequencies: CUdeviceptr,
        out: CUdeviceptr,
    ) -> Result<()> {
        let Shape { batch, tokens, heads, head_dim, .. } = self.shape;
        if positions == 0 || cu_seqlens != 0 {
            check::given(OP, "cu_seqlens", self.shape.packed.is_some(), cu_seqlens != 0)?;
        }
        let here = |address: CUdeviceptr, tensor: Strided| {
            if address == 0 { Strided { size: tensor.size, ..Strided::NONE } } else { tensor }
        };
        let (positions_rows, starts_rows) = (here(positions, self.positions()), here(cu_seqlens, self.starts()));
        let table = here(frequencies, self.frequencies());
        let (x_at, out_at): (Placed<'_>, Placed<'_>) = (("x", x, &self.x), ("out", out, &self.out));
        let small: [Placed<'_>; 3] = [
            ("positions", positions, &positions_rows),
            ("cu_seqlens", cu_seqlens, &starts_rows),
            ("frequencies", frequencies, &table),
        ];
        for placed in [x_at, out_at].iter().chain(&small) {
            strided::address(OP, *placed, false)?;
        }
        let in_place = x == out && self.x == self.out;
        if !in_place {
            strided::disjoint(OP, out_at, &[x_at])?;
        }
        strided::disjoint(OP, out_at, &small)?;
        if self.x.elements() == 0 {
            return Ok(());
        }
        let (turned, axis_turned) = (self.options.turned(), self.options.axis_turned());
        let copied = if in_place { 0 } else { head_dim - self.options.rotary_dim };
        let within = self.options.style == Style::Interleaved;
        // Accesses must not part a row where it changes: at the last element that turns, and from axis to axis.
        let size = self.options.dtype.size();
        let part = |elements: usize| (0, Strided::dense([1; 3], elements, size));
        let elements = |angles: usize| if within { 2 * angles } else { angles };
        let (kernel, vec) = self.kernels.pick_strided(&[
            (x, self.x),
            (out, self.out),
            part(elements(turned)),
            part(if axis_turned < turned { elements(axis_turned) } else { 0 }),
            part(copied),
        ]);
        let vec = vec as usize;
        let angles = if within && vec > 1 { vec / 2 } else { vec };
        let Policy { lane_bits, block_heads, steps } =
            Policy::of(&self.shape, turned / angles + copied / vec, self.sm_count);
        let grid = self.options.grid;
        let extents = grid.map_or([1; MAX_AXES], |g| g.extents);
        let after = |axis: usize| {
            let product = extents[axis + 1..].iter().fold(1_u64, |all, e| all.saturating_mul(*e as u64));
            product.min(u64::from(u32::MAX)) as u32
        };
        let args = lookback_kernels::args::Rotary {
            p_x: x,
            p_positions: positions,
            p_cu_seqlens: cu_seqlens,
            p_frequencies: frequencies,
            p_out: out,
            tokens: tokens as u32,
            sequences: self.shape.packed.unwrap_or(0) as u32,
            heads: heads as u32,
            turned: turned as u32,
            copied: copied as u32,
            axis_turned: axis_turned as u32,
            divisor_0: after(0),
            divisor_1: after(1),
            divisor_2: after(2),
            extent_1: extents[1] as u32,
            extent_2: extents[2] as u32,
            extent_3: extents[3] as u32,
            is_grid: u32::from(grid.is_some()),
            prefix: grid.map_or(0, |g| g.prefix) as i32,
            offset: self.options.offset,
            x_stride_batch: self.x.strides[0],
            x_stride_token: self.x.strides[1],
            x_stride_head: self.x.strides[2],
            out_stride_batch: self.out.strides[0],
            out_stride_token: self.out.strides[1],
            out_stride_head: self.out.strides[2],
            ratio: fraction(self.options.base.powf(-2.0 / self.options.theta_dim as f64)) as i64,
            // Cosine has an adjoint of its own, with the same angles.
            backwards: if self.backwards && self.options.style != Style::Cosine { 1 << 31 } else { 0 },
            block_heads: block_heads as u32,
            steps: steps as u32,
            lane_bits,
            ..Zeroable::zeroed()
        };
        let tokens_of_a_block = steps * (BLOCK >> lane_bits);
        let grid = [tokens.div_ceil(tokens_of_a_block) as u32, heads.div_ceil(block_heads) as u32, batch as u32];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}

/// A number from 0 to 1 as a 64-bit fraction; 1 becomes the greatest.
fn fraction(value: f64) -> u64 {
    (value * 2_f64.powi(64)) as u64
}

/// The rotation of dense rows with positions from 0 on, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn rotary<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    (batch, tokens, heads, head_dim): (usize, usize, usize, usize),
    options: &Options,
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let plan = Plan::new(&Shape::dense(batch, tokens, heads, head_dim), options, &device)?;
    let mut out = memory::allocate(stream, plan.out.span(), OP)?;
    plan.run(stream, x, Inputs::default(), &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_keeps_what_a_double_has() {
        assert_eq!(fraction(1.0), u64::MAX);
        assert_eq!(fraction(0.5), 1 << 63);
        assert_eq!(fraction(0.0), 0);
    }

    #[test]
    fn turns_are_fractions_of_a_turn() {
        assert_eq!(turns(std::f64::consts::PI), 1 << 63);
        assert_eq!((turns(0.0), turns(f64::NAN)), (0, 0));
        // One radian, and one less than a whole turn.
        assert!(turns(1.0).abs_diff(0x28BE_60DB_9391_054A) < 1 << 12);
        assert!((turns(1.0).wrapping_add(turns(-1.0)) as i64).unsigned_abs() < 1 << 12);
    }

    #[test]
    fn a_launch_reaches_every_token_and_head() {
        for (batch, tokens, heads) in [(1, 1, 1), (1, 1, 32), (2, 100, 7), (8, 4096, 64), (1, 7, 1 << 24)] {
            for units in [1, 3, 8, 1000] {
                let shape = Shape::dense(batch, tokens, heads, 64);
                let Policy { lane_bits, block_heads, steps } = Policy::of(&shape, units, 132);
                assert!((1 << lane_bits) <= BLOCK && (1 << lane_bits) >= units.min(BLOCK));
                assert!(block_heads >= 1 && steps >= 1 && heads.div_ceil(block_heads) <= 65_535);
                assert!(steps == 1 || block_heads >= heads, "few tokens are not walked by one thread");
            }
        }
    }
}
