//! The backward pass.

use super::{
    EPSILON, Frame, Inputs, Options, RawInputs, Shape,
    forward::PLACEHOLDER,
    steps,
    work::{Caller, Paths, Work, rows},
};
use crate::{
    DeviceInfo, Element, MAX_KEY_DIM, RawWorkspace, Result, Stride, memory,
    strided::{self, Placed, Strided},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::launch;
use lookback_kernels::{
    Kernel,
    args::{FlowCausalBwd, FlowNormalBwd},
};
use std::sync::Arc;

/// What a backward pass writes.
pub struct BackwardOutputs<'a, T> {
    /// `[B,L,H,K]`.
    pub dq: &'a mut dyn DevicePtrMut<T>,
    /// `[B,S,H,K]`.
    pub dk: &'a mut dyn DevicePtrMut<T>,
    /// `[B,S,H,V]`.
    pub dv: &'a mut dyn DevicePtrMut<T>,
}

/// [`BackwardOutputs`] as device addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardOutputs {
    /// Adjoint of `q`.
    pub dq: CUdeviceptr,
    /// Adjoint of `k`.
    pub dk: CUdeviceptr,
    /// Adjoint of `v`.
    pub dv: CUdeviceptr,
}

/// A checked backward pass.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    frame: Frame,
    dq: Strided,
    dk: Strided,
    dv: Strided,
    kernels: [&'static Kernel; 2],
    work: Work,
    paths: Paths,
}

impl BackwardPlan {
    const OP: &str = "flow_attention_backward";

    /// Checks sizes, strides and options, and finds the kernels.
    ///
    /// # Errors
    /// Those of [`Plan::new`](super::Plan::new), for the gradients instead of the output; [`Error::Range`](crate::Error::Range) ← a
    /// value above [`MAX_KEY_DIM`], too.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let op = Self::OP;
        let frame = Frame::new(op, shape, options, device)?;
        strided::range(op, "value_dim", shape.value_dim, 1, MAX_KEY_DIM)?;
        frame.out.readable(op, "dout")?;
        let like = |tensor: &Strided, stride: Option<Stride>| match stride {
            Some(stride) => Strided { strides: steps(stride), ..*tensor },
            None => Strided::dense(tensor.extents, tensor.width, tensor.size as usize),
        };
        let strides = &shape.strides;
        let (dq, dk, dv) = (like(&frame.q, strides.dq), like(&frame.k, strides.dk), like(&frame.v, strides.dv));
        for (arg, tensor) in [("dq", dq), ("dk", dk), ("dv", dv)] {
            tensor.writable(op, arg)?;
        }
        let kernels = [frame.kernel(op, false, device)?, frame.kernel(op, true, device)?];
        let work = Work::new(&frame, true);
        let there = RawInputs { v: PLACEHOLDER, ..RawInputs::default() };
        let caller = Caller { dv: rows(PLACEHOLDER, &dv), ..frame.caller(&there, PLACEHOLDER) };
        let paths = Paths::new(&frame.backward_walks(&work.at(PLACEHOLDER), &caller), device)?;
        Ok(Self { frame, dq, dk, dv, kernels, work, paths })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors. It holds nothing between launches.
    pub fn workspace_bytes(&self) -> u64 {
        self.paths.workspace_bytes(&self.work)
    }

    /// Bytes that must cross the memory bus at least: every tensor and gradient once.
    pub fn bytes_moved(&self) -> u64 {
        let Frame { q, k, v, out, .. } = &self.frame;
        2 * (q.bytes() + k.bytes() + v.bytes()) + out.bytes()
    }

    /// Floating-point operations: those of three linear attentions, and 40 for every entry of `q` and `k`.
    pub fn flops(&self) -> u64 {
        let Frame { q, k, v, out, shape, .. } = &self.frame;
        let keys = shape.key_dim as u64;
        let attention = 6 * keys.saturating_mul(v.elements().saturating_add(out.elements()));
        attention.saturating_add(40 * q.elements().saturating_add(k.elements()))
    }

    /// Gradients of `q`, `k` and `v`, in five launches; seven where all keys come before all queries, more where the walks are cut
    /// into segments.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`BackwardOutputs`] say; `dout`, the adjoint of the output, is `[B,L,H,V]` with the output's
    /// strides. `workspace` has [`workspace_bytes`](Self::workspace_bytes).
    ///
    /// # Errors
    /// As [`Plan::run`](super::Plan::run).
    ///
    /// # Numerics
    /// Everything between the walks and the gradients is f32. Where the flow out of a key is outside of the clamp no gradient
    /// passes through it; on the edge itself a rounding decides.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        dout: &dyn DevicePtr<T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: &mut dyn DevicePtrMut<u8>,
    ) -> Result<()> {
        let (op, frame) = (Self::OP, &self.frame);
        strided::dtype(op, "inputs", frame.options.dtype, T::DTYPE)?;
        frame.check_lengths(op, inputs)?;
        strided::length(op, "dout", &frame.out, dout.len())?;
        strided::length(op, "dq", &self.dq, outputs.dq.len())?;
        strided::length(op, "dk", &self.dk, outputs.dk.len())?;
        strided::length(op, "dv", &self.dv, outputs.dv.len())?;
        let bytes = workspace.len() as u64;
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (cu_seqlens, _starts) = memory::input(inputs.cu_seqlens, stream);
        let (cu_seqlens_k, _key_starts) = memory::input(inputs.cu_seqlens_k, stream);
        let (dout, _dout) = memory::input(Some(dout), stream);
        let (dq, _dq) = memory::output(Some(outputs.dq), stream);
        let (dk, _dk) = memory::output(Some(outputs.dk), stream);
        let (dv, _dv) = memory::output(Some(outputs.dv), stream);
        let (address, _workspace) = memory::output(Some(workspace), stream);
        let inputs = RawInputs { q, k, v, cu_seqlens, cu_seqlens_k };
        let outputs = RawBackwardOutputs { dq, dk, dv };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launches are queued; the workspace is borrowed for them alone.
        unsafe { self.run_raw(stream, &inputs, dout, &outputs, RawWorkspace { address, bytes }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape),
    /// [`Error::Workspace`](crate::Error::Workspace), and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (outputs, workspace) over the plan's shape and strides until the
    ///   launches have ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        dout: CUdeviceptr,
        outputs: &RawBackwardOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        let frame = &self.frame;
        let written: [Placed<'_>; 3] =
            [("dq", outputs.dq, &self.dq), ("dk", outputs.dk, &self.dk), ("dv", outputs.dv, &self.dv)];
        let more = Some(("dout", dout, &frame.out));
        frame.check_addresses(Self::OP, inputs, &written, more, (workspace, self.workspace_bytes()))?;
        if frame.is_empty() {
            return Ok(());
        }
        let work = self.work.at(workspace.address);
        // SAFETY: the caller's promise covers the addresses, and the workspace has room for its parts.
        unsafe { frame.conserve(stream, self.kernels[0], inputs, &work) }?;
        let caller = Caller { dv: rows(outputs.dv, &self.dv), ..frame.caller(inputs, dout) };
        // SAFETY: as above; the walks read what the kernel wrote, after it.
        unsafe { self.paths.launch(stream, &frame.backward_walks(&work, &caller), work.walks) }?;
        // SAFETY: as above; the kernel reads what the walks wrote, after them.
        unsafe { self.gradients(stream, inputs, outputs, &work) }
    }

    unsafe fn gradients(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        outputs: &RawBackwardOutputs,
        work: &Work,
    ) -> Result<()> {
        let (frame, shape) = (&self.frame, &self.frame.shape);
        let tokens = |row: usize| (shape.batch * row) as i64;
        let strides = [&frame.q, &frame.k, &self.dq, &self.dk].map(|t| t.strides);
        macro_rules! arguments {
            ($kernel:ident { $($name:ident: $value:expr),* $(; $padding:expr)? }) => {
                $kernel {
                    p_q: inputs.q,
                    p_k: inputs.k,
                    p_cu_seqlens: inputs.cu_seqlens,
                    p_d_flow_q: work.d_flow_q,
                    p_d_flow_k: work.d_flow_k,
                    p_query_scalars: work.query_scalars,
                    p_key_scalars: work.key_scalars,
                    p_vectors: work.vectors,
                    p_dq: outputs.dq,
                    p_dk: outputs.dk,
                    q_stride_batch: strides[0][0],
                    q_stride_token: strides[0][1],
                    q_stride_head: strides[0][2],
                    k_stride_batch: strides[1][0],
                    k_stride_token: strides[1][1],
                    k_stride_head: strides[1][2],
                    dq_stride_batch: strides[2][0],
                    dq_stride_token: strides[2][1],
                    dq_stride_head: strides[2][2],
                    dk_stride_batch: strides[3][0],
                    dk_stride_token: strides[3][1],
                    dk_stride_head: strides[3][2],
                    sequences: shape.sequences() as u32,
                    heads: shape.heads as u32,
                    key_dim: shape.key_dim as u32,
                    mapped: frame.options.mapped.into(),
                    eps: EPSILON,
                    extra_eps: frame.options.extra_eps,
                    clamp: frame.clamp(),
                    $($name: $value,)*
                    $(..$padding)?
                }
            };
        }
        if shape.causal {
            let args = arguments!(FlowCausalBwd { rows: tokens(shape.queries), seq_len: shape.queries as u32 });
            // SAFETY: the caller's promise; sizes and strides were checked against the contract.
            return unsafe { launch(stream, self.kernels[1], frame.grid(), &args) };
        }
        let args = arguments!(FlowNormalBwd {
            p_cu_seqlens_k: inputs.keys_starts(),
            query_rows: tokens(shape.queries),
            key_rows: tokens(shape.keys),
            queries: shape.queries as u32,
            keys: shape.keys as u32;
            Zeroable::zeroed()
        });
        // SAFETY: as above.
        unsafe { launch(stream, self.kernels[1], frame.grid(), &args) }
    }
}

/// What [`flow_attention_backward`] gives back.
#[derive(Debug)]
pub struct Gradients<T> {
    /// `[B,L,H,K]`.
    pub dq: CudaSlice<T>,
    /// `[B,S,H,K]`.
    pub dk: CudaSlice<T>,
    /// `[B,S,H,V]`.
    pub dv: CudaSlice<T>,
}

/// Gradients of Flow-Attention of rows of equal length into new memory.
///
/// # Errors
/// Those of [`BackwardPlan::new`] and [`BackwardPlan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn flow_attention_backward<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &Inputs<'_, T>,
    dout: &impl DevicePtr<T>,
) -> Result<Gradients<T>> {
    let plan = BackwardPlan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let gradient = |tensor: &Strided| memory::allocate::<T>(stream, tensor.span(), "gradients");
    let (mut dq, mut dk, mut dv) = (gradient(&plan.dq)?, gradient(&plan.dk)?, gradient(&plan.dv)?);
    let mut workspace = memory::allocate::<u8>(stream, plan.workspace_bytes(), "workspace")?;
    let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    plan.run(stream, inputs, dout, outputs, &mut workspace)?;
    Ok(Gradients { dq, dk, dv })
}
