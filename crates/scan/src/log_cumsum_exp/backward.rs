//! The adjoint of the sums and of the gates.

use super::{Frame, Options, Shape, apart, long_enough};
use crate::{
    DeviceInfo, Element, Result,
    check::{self, Tensor},
    memory,
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::launch;
use lookback_kernels::args::LogCumsumExpBwd;

/// What is known of the gates' adjoints.
pub enum GateAdjoint<'a, T> {
    /// The adjoints themselves, as far as they are not 0.
    Plain {
        /// `[B,T,D]`, of `k`.
        dk: Option<&'a dyn DevicePtr<T>>,
        /// `[B,T,D]` f32 without gaps, of `g`.
        dg: Option<&'a dyn DevicePtr<f32>>,
    },
    /// For gates that fed a linear attention with these very keys and log decays: what its backward pass gave, apart from the
    /// adjoint of `g`, which then is not needed. The sum of `q dq` over what follows stands for it, with less cancellation.
    /// With a final state `S` that has an adjoint, `d_last` must have `-sum over values of S dS` in it; the initial `S` must be
    /// 0, or its share, the same sum over it and its adjoint, be added to `d_initial`.
    LinearAttention {
        /// `[B,T,D]`, what read the state, scale included if there is one.
        q: &'a dyn DevicePtr<T>,
        /// `[B,T,D]`, its adjoint.
        dq: &'a dyn DevicePtr<T>,
        /// `[B,T,D]`, of `k`.
        dk: &'a dyn DevicePtr<T>,
    },
}

/// What a backward pass reads.
pub struct BackwardInputs<'a, T> {
    /// Those of the forward pass.
    pub forward: super::Inputs<'a, T>,
    /// `[B,T,D]`, as the forward pass wrote it.
    pub z: &'a dyn DevicePtr<f32>,
    /// `[B,T,D]`, adjoint of `z`; 0 without.
    pub dz: Option<&'a dyn DevicePtr<f32>>,
    /// Adjoints of `k` and `g`.
    pub gates: GateAdjoint<'a, T>,
    /// `[N,D]`, adjoint of the final `z`; 0 without.
    pub d_last: Option<&'a dyn DevicePtr<f32>>,
}

/// What a backward pass writes.
pub struct BackwardOutputs<'a, T> {
    /// `[B,T,D]`, adjoint of `x`.
    pub dx: &'a mut dyn DevicePtrMut<T>,
    /// `[N,D]`, adjoint of the initial `z`.
    pub d_initial: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// [`BackwardInputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardInputs {
    /// Those of the forward pass.
    pub forward: super::RawInputs,
    /// See [`BackwardInputs::z`].
    pub z: CUdeviceptr,
    /// See [`BackwardInputs::dz`].
    pub dz: CUdeviceptr,
    /// Adjoint of `k`.
    pub dk: CUdeviceptr,
    /// Adjoint of `g`, not together with `q`.
    pub dg: CUdeviceptr,
    /// What read the state.
    pub q: CUdeviceptr,
    /// Its adjoint; both or none.
    pub dq: CUdeviceptr,
    /// See [`BackwardInputs::d_last`].
    pub d_last: CUdeviceptr,
}

/// [`BackwardOutputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardOutputs {
    /// See [`BackwardOutputs::dx`].
    pub dx: CUdeviceptr,
    /// See [`BackwardOutputs::d_initial`].
    pub d_initial: CUdeviceptr,
}

/// A checked backward pass.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    frame: Frame,
    x: Tensor,
    dk: Tensor,
    q: Tensor,
    dq: Tensor,
    dx: Tensor,
}

impl BackwardPlan {
    const OP: &str = "log_cumsum_exp_backward";

    /// Checks sizes and strides and finds the kernel; allocates nothing.
    ///
    /// # Errors
    /// Those of [`Plan::new`](super::Plan::new); [`Error::Layout`](crate::Error::Layout) ← tokens of `dx` that overlap, too.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let frame = Frame::new(Self::OP, "log_cumsum_exp_bwd", shape, options, device)?;
        let plan = Self {
            frame,
            x: frame.tensor(shape.x),
            dk: frame.tensor(shape.dk),
            q: frame.tensor(shape.q),
            dq: frame.tensor(shape.dq),
            dx: frame.tensor(shape.dx),
        };
        for (name, tensor) in [("x", plan.x), ("dk", plan.dk), ("q", plan.q), ("dq", plan.dq)] {
            tensor.readable(Self::OP, name)?;
        }
        plan.dx.writable(Self::OP, "dx")?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with every tensor of the plain adjoint and all states.
    pub fn bytes_moved(&self) -> u64 {
        3 * self.x.bytes() + 3 * self.frame.floats().bytes() + 3 * self.frame.states().bytes()
    }

    /// Floating-point operations; exponentials are not counted.
    pub fn flops(&self) -> u64 {
        8 * self.x.elements()
    }

    /// `dx[t] = k[t] (dk[t] + r[t])` with `r[t] = w[t] + e^(z[t] - z[t+1]) r[t+1]`, in one launch.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or `cu_seqlens` is there without a packed shape or the other way round; [`Error::Alias`](crate::Error::Alias) ← an
    /// output overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// f32 throughout; `dx` is rounded once. `k` is computed anew from `x` and `z`.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
    ) -> Result<()> {
        let (op, frame, forward) = (Self::OP, &self.frame, &inputs.forward);
        check::dtype(op, frame.options.dtype, T::DTYPE)?;
        check::given(op, "cu_seqlens", frame.shape.packed.is_some(), forward.cu_seqlens.is_some())?;
        let (dk, dg, q, dq) = match inputs.gates {
            GateAdjoint::Plain { dk, dg } => (dk, dg, None, None),
            GateAdjoint::LinearAttention { q, dq, dk } => (Some(dk), None, Some(q), Some(dq)),
        };
        long_enough(
            op,
            &[
                ("x", Some(forward.x.len()), self.x),
                ("flags", forward.flags.map(|s| s.len()), frame.flags()),
                ("cu_seqlens", forward.cu_seqlens.map(|s| s.len()), frame.starts()),
                ("initial", forward.initial.map(|s| s.len()), frame.states()),
                ("z", Some(inputs.z.len()), frame.floats()),
                ("dz", inputs.dz.map(|s| s.len()), frame.floats()),
                ("dk", dk.map(|s| s.len()), self.dk),
                ("dg", dg.map(|s| s.len()), frame.floats()),
                ("q", q.map(|s| s.len()), self.q),
                ("dq", dq.map(|s| s.len()), self.dq),
                ("d_last", inputs.d_last.map(|s| s.len()), frame.states()),
                ("dx", Some(outputs.dx.len()), self.dx),
                ("d_initial", outputs.d_initial.as_ref().map(|s| s.len()), frame.states()),
            ],
        )?;
        let (x, _x) = memory::input(Some(forward.x), stream);
        let (flags, _flags) = memory::input(forward.flags, stream);
        let (cu_seqlens, _starts) = memory::input(forward.cu_seqlens, stream);
        let (initial, _initial) = memory::input(forward.initial, stream);
        let (z, _z) = memory::input(Some(inputs.z), stream);
        let (dz, _dz) = memory::input(inputs.dz, stream);
        let (dk, _dk) = memory::input(dk, stream);
        let (dg, _dg) = memory::input(dg, stream);
        let (q, _q) = memory::input(q, stream);
        let (dq, _dq) = memory::input(dq, stream);
        let (d_last, _d_last) = memory::input(inputs.d_last, stream);
        let (dx, _dx) = memory::output(Some(outputs.dx), stream);
        let (d_initial, _d_initial) = memory::output(outputs.d_initial, stream);
        let forward = super::RawInputs { x, flags, cu_seqlens, initial };
        let inputs = RawBackwardInputs { forward, z, dz, dk, dg, q, dq, d_last };
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, &inputs, &RawBackwardOutputs { dx, d_initial }) }
    }

    /// As [`run`](Self::run) on device addresses; here `dx` may be `x` itself, with the same strides.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape) (also ←
    /// `q` without `dq`, or with `dg`), and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (outputs) over the plan's shape until the launch has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
    ) -> Result<()> {
        let (op, frame, forward) = (Self::OP, &self.frame, &inputs.forward);
        check::given(op, "cu_seqlens", frame.shape.packed.is_some(), forward.cu_seqlens != 0)?;
        check::given(op, "dq", inputs.q != 0, inputs.dq != 0)?;
        if inputs.q != 0 {
            check::given(op, "dg", false, inputs.dg != 0)?;
        }
        let (floats, states) = (frame.floats(), frame.states());
        let (flags, starts) = (frame.flags(), frame.starts());
        let x: check::Placed<'_> = ("x", forward.x, &self.x);
        let dx: check::Placed<'_> = ("dx", outputs.dx, &self.dx);
        check::placed(op, x)?;
        check::placed(op, dx)?;
        check::placed(op, ("z", inputs.z, &floats))?;
        check::disjoint_unless(op, dx, x, true)?;
        check::disjoint(op, ("d_initial", outputs.d_initial, &states), &[x])?;
        apart(
            op,
            &[dx, ("d_initial", outputs.d_initial, &states)],
            &[
                ("flags", forward.flags, &flags),
                ("cu_seqlens", forward.cu_seqlens, &starts),
                ("initial", forward.initial, &states),
                ("z", inputs.z, &floats),
                ("dz", inputs.dz, &floats),
                ("dk", inputs.dk, &self.dk),
                ("dg", inputs.dg, &floats),
                ("q", inputs.q, &self.q),
                ("dq", inputs.dq, &self.dq),
                ("d_last", inputs.d_last, &states),
            ],
        )?;
        if frame.is_empty() {
            return Ok(());
        }
        let shape = frame.shape;
        let args = LogCumsumExpBwd {
            p_x: forward.x,
            p_z: inputs.z,
            p_flags: forward.flags,
            p_cu_seqlens: forward.cu_seqlens,
            p_initial: forward.initial,
            p_dz: inputs.dz,
            p_dk: inputs.dk,
            p_dg: inputs.dg,
            p_q: inputs.q,
            p_dq: inputs.dq,
            p_d_final: inputs.d_last,
            p_dx: outputs.dx,
            p_d_initial: outputs.d_initial,
            x_stride_b: shape.x.batch,
            x_stride_t: shape.x.token,
            dk_stride_b: shape.dk.batch,
            dk_stride_t: shape.dk.token,
            q_stride_b: shape.q.batch,
            q_stride_t: shape.q.token,
            dq_stride_b: shape.dq.batch,
            dq_stride_t: shape.dq.token,
            dx_stride_b: shape.dx.batch,
            dx_stride_t: shape.dx.token,
            seq_len: shape.seq_len as u32,
            channels: shape.channels as u32,
            sequences: shape.sequences() as u32,
            reverse: u32::from(frame.options.reverse),
        };
        // SAFETY: the caller's promise covers the pointers; sizes and strides were checked against the contract.
        unsafe { launch(stream, frame.kernel, frame.grid(), &args) }
    }
}
