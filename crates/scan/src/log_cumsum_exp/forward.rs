//! The sums and the gates.

use super::{Frame, Options, Shape, apart, long_enough};
use crate::{
    DeviceInfo, Element, Result,
    check::{self, Tensor},
    memory,
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::launch;
use lookback_kernels::args::LogCumsumExpFwd;

/// What a forward pass reads.
pub struct Inputs<'a, T> {
    /// `[B,T,D]` with the plan's strides. `-inf` is a masked token: it adds nothing, its `k` and `g` are 0.
    pub x: &'a dyn DevicePtr<T>,
    /// `[B,T]`: bit 0 of a token starts the sum anew there in a forward walk, bit 1 in a reverse one.
    pub flags: Option<&'a dyn DevicePtr<u8>>,
    /// `[N+1]`, for a packed shape; see [`check::cu_seqlens`].
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[N,D]`: `z` before the first step of each sequence; `-inf` without. With 0 the sum begins with 1.
    pub initial: Option<&'a dyn DevicePtr<f32>>,
}

impl<'a, T> Inputs<'a, T> {
    /// `x` alone.
    pub fn of(x: &'a dyn DevicePtr<T>) -> Self {
        Self { x, flags: None, cu_seqlens: None, initial: None }
    }
}

/// What a forward pass writes, as far as it is wanted. Tensors have no gaps.
pub struct Outputs<'a, T> {
    /// `[B,T,D]`: logarithms of the sums. The backward pass reads them.
    pub z: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[B,T,D]`: `e^(x - z)`.
    pub k: Option<&'a mut dyn DevicePtrMut<T>>,
    /// `[B,T,D]`: `z[t-1] - z[t]`, and 0 where the sum starts.
    pub g: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,D]`: `z` after the last step of each sequence.
    pub last: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// [`Inputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawInputs {
    /// See [`Inputs::x`].
    pub x: CUdeviceptr,
    /// See [`Inputs::flags`].
    pub flags: CUdeviceptr,
    /// See [`Inputs::cu_seqlens`].
    pub cu_seqlens: CUdeviceptr,
    /// See [`Inputs::initial`].
    pub initial: CUdeviceptr,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOutputs {
    /// See [`Outputs::z`].
    pub z: CUdeviceptr,
    /// See [`Outputs::k`].
    pub k: CUdeviceptr,
    /// See [`Outputs::g`].
    pub g: CUdeviceptr,
    /// See [`Outputs::last`].
    pub last: CUdeviceptr,
}

/// A checked forward pass.
#[derive(Debug, Clone)]
pub struct Plan {
    frame: Frame,
    x: Tensor,
}

impl Plan {
    const OP: &str = "log_cumsum_exp";

    /// Checks sizes and strides and finds the kernel; allocates nothing.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large (65535 sequences), or packed sequences in several rows;
    /// [`Error::Layout`](crate::Error::Layout) ← a negative stride; [`Error::Arch`](crate::Error::Arch) ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let frame = Frame::new(Self::OP, "log_cumsum_exp_fwd", shape, options, device)?;
        let x = frame.tensor(shape.x);
        x.readable(Self::OP, "x")?;
        Ok(Self { frame, x })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with every output and both states.
    pub fn bytes_moved(&self) -> u64 {
        2 * self.x.bytes() + 2 * self.frame.floats().bytes() + 2 * self.frame.states().bytes()
    }

    /// Floating-point operations of the sums; exponentials and logarithms are not counted.
    pub fn flops(&self) -> u64 {
        2 * self.x.elements()
    }

    /// `z[t] = log(e^z[t-1] + e^x[t])`, `k[t] = e^(x[t] - z[t])`, `g[t] = z[t-1] - z[t]` in one launch.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or `cu_seqlens` is there without a packed shape or the other way round; [`Error::Alias`](crate::Error::Alias) ← an
    /// output overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// A running maximum and a compensated f32 sum beside it: `z`, `k` and `g` are as exact after a million tokens as after ten.
    ///
    /// # Determinism
    /// Bitwise.
    ///
    /// # Cost
    /// One launch; every tensor crosses the bus once where there are many channels. Of few, sequences are cut into 16 runs that
    /// are walked side by side, and `x` is read twice.
    pub fn run<T: Element>(&self, stream: &CudaStream, inputs: &Inputs<'_, T>, outputs: Outputs<'_, T>) -> Result<()> {
        let (op, frame) = (Self::OP, &self.frame);
        check::dtype(op, frame.options.dtype, T::DTYPE)?;
        check::given(op, "cu_seqlens", frame.shape.packed.is_some(), inputs.cu_seqlens.is_some())?;
        long_enough(
            op,
            &[
                ("x", Some(inputs.x.len()), self.x),
                ("flags", inputs.flags.map(|s| s.len()), frame.flags()),
                ("cu_seqlens", inputs.cu_seqlens.map(|s| s.len()), frame.starts()),
                ("initial", inputs.initial.map(|s| s.len()), frame.states()),
                ("z", outputs.z.as_ref().map(|s| s.len()), frame.floats()),
                ("k", outputs.k.as_ref().map(|s| s.len()), frame.dense()),
                ("g", outputs.g.as_ref().map(|s| s.len()), frame.floats()),
                ("last", outputs.last.as_ref().map(|s| s.len()), frame.states()),
            ],
        )?;
        let (x, _x) = memory::input(Some(inputs.x), stream);
        let (flags, _flags) = memory::input(inputs.flags, stream);
        let (cu_seqlens, _starts) = memory::input(inputs.cu_seqlens, stream);
        let (initial, _initial) = memory::input(inputs.initial, stream);
        let (z, _z) = memory::output(outputs.z, stream);
        let (k, _k) = memory::output(outputs.k, stream);
        let (g, _g) = memory::output(outputs.g, stream);
        let (last, _last) = memory::output(outputs.last, stream);
        let inputs = RawInputs { x, flags, cu_seqlens, initial };
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, &inputs, &RawOutputs { z, k, g, last }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape), and
    /// those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (outputs) over the plan's shape until the launch has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(&self, stream: &CudaStream, inputs: &RawInputs, outputs: &RawOutputs) -> Result<()> {
        let (op, frame) = (Self::OP, &self.frame);
        check::given(op, "cu_seqlens", frame.shape.packed.is_some(), inputs.cu_seqlens != 0)?;
        check::placed(op, ("x", inputs.x, &self.x))?;
        let (floats, states, k) = (frame.floats(), frame.states(), frame.dense());
        let (flags, starts) = (frame.flags(), frame.starts());
        apart(
            op,
            &[
                ("z", outputs.z, &floats),
                ("k", outputs.k, &k),
                ("g", outputs.g, &floats),
                ("last", outputs.last, &states),
            ],
            &[
                ("x", inputs.x, &self.x),
                ("flags", inputs.flags, &flags),
                ("cu_seqlens", inputs.cu_seqlens, &starts),
                ("initial", inputs.initial, &states),
            ],
        )?;
        if frame.is_empty() {
            return Ok(());
        }
        let shape = frame.shape;
        let args = LogCumsumExpFwd {
            p_x: inputs.x,
            p_flags: inputs.flags,
            p_cu_seqlens: inputs.cu_seqlens,
            p_initial: inputs.initial,
            p_z: outputs.z,
            p_k: outputs.k,
            p_g: outputs.g,
            p_final: outputs.last,
            x_stride_b: shape.x.batch,
            x_stride_t: shape.x.token,
            seq_len: shape.seq_len as u32,
            channels: shape.channels as u32,
            sequences: shape.sequences() as u32,
            reverse: u32::from(frame.options.reverse),
        };
        // SAFETY: the caller's promise covers the pointers; sizes and strides were checked against the contract.
        unsafe { launch(stream, frame.kernel, frame.grid(), &args) }
    }
}
