//! The forward pass.

use super::{
    EPSILON, Frame, Options, Shape,
    work::{Caller, Paths, Work, rows},
};
use crate::{
    DeviceInfo, Element, RawWorkspace, Result, memory,
    strided::{self, Placed, Strided},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::launch;
use lookback_kernels::{
    Kernel,
    args::{FlowCausal, FlowNormal},
};
use std::sync::Arc;

/// What both passes read. A view into a wider tensor begins at its first element.
pub struct Inputs<'a, T> {
    /// `[B,L,H,K]`, before the sigmoid.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B,S,H,K]`, before the sigmoid.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,S,H,V]`.
    pub v: &'a dyn DevicePtr<T>,
    /// `[N+1]` starts of packed queries; see [`check::cu_seqlens`](crate::check::cu_seqlens).
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[N+1]` starts of packed keys; those of queries without.
    pub cu_seqlens_k: Option<&'a dyn DevicePtr<i32>>,
}

impl<'a, T> Inputs<'a, T> {
    /// Rows of equal length.
    pub fn of(q: &'a dyn DevicePtr<T>, k: &'a dyn DevicePtr<T>, v: &'a dyn DevicePtr<T>) -> Self {
        Self { q, k, v, cu_seqlens: None, cu_seqlens_k: None }
    }
}

/// [`Inputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawInputs {
    /// Queries.
    pub q: CUdeviceptr,
    /// Keys.
    pub k: CUdeviceptr,
    /// Values.
    pub v: CUdeviceptr,
    /// Starts of packed queries.
    pub cu_seqlens: CUdeviceptr,
    /// Starts of packed keys; 0: the same.
    pub cu_seqlens_k: CUdeviceptr,
}

impl RawInputs {
    pub(super) fn keys_starts(&self) -> CUdeviceptr {
        if self.cu_seqlens_k == 0 { self.cu_seqlens } else { self.cu_seqlens_k }
    }
}

impl Frame {
    /// Lengths of the inputs.
    pub(super) fn check_lengths<T>(&self, op: &'static str, inputs: &Inputs<'_, T>) -> Result<()> {
        for (arg, tensor, len) in [
            ("q", &self.q, Some(inputs.q.len())),
            ("k", &self.k, Some(inputs.k.len())),
            ("v", &self.v, Some(inputs.v.len())),
            ("cu_seqlens", &self.starts, inputs.cu_seqlens.map(|s| s.len())),
            ("cu_seqlens_k", &self.starts, inputs.cu_seqlens_k.map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(op, arg, tensor, len))?;
        }
        Ok(())
    }

    /// Presence, alignment and overlap of everything.
    pub(super) fn check_addresses(
        &self,
        op: &'static str,
        inputs: &RawInputs,
        outputs: &[Placed<'_>],
        more: Option<Placed<'_>>,
        (workspace, need): (RawWorkspace, u64),
    ) -> Result<()> {
        let packed = self.shape.packed.is_some();
        strided::given(op, "cu_seqlens", packed, inputs.cu_seqlens != 0)?;
        strided::given(
            op,
            "cu_seqlens_k",
            inputs.cu_seqlens_k != 0 && packed && !self.shape.causal,
            inputs.cu_seqlens_k != 0,
        )?;
        let starts = &self.starts;
        let read: Vec<Placed<'_>> = [("q", inputs.q, &self.q), ("k", inputs.k, &self.k), ("v", inputs.v, &self.v)]
            .into_iter()
            .chain(more)
            .collect();
        let optional: [Placed<'_>; 2] =
            [("cu_seqlens", inputs.cu_seqlens, starts), ("cu_seqlens_k", inputs.cu_seqlens_k, starts)];
        for placed in read.iter().chain(outputs) {
            strided::address(op, *placed, false)?;
        }
        for placed in &optional {
            strided::address(op, *placed, true)?;
        }
        workspace.check(op, need)?;
        let scratch = Strided::dense([1, 1, 1], usize::try_from(need).unwrap_or(usize::MAX), 1);
        let outputs: Vec<Placed<'_>> =
            outputs.iter().copied().chain([("workspace", workspace.address, &scratch)]).collect();
        let inputs: Vec<Placed<'_>> = read.into_iter().chain(optional).collect();
        strided::all_disjoint(op, &outputs, &inputs)
    }

    /// What walks read and write of the caller's; `out` is the output or its adjoint.
    pub(super) fn caller(&self, inputs: &RawInputs, out: CUdeviceptr) -> Caller {
        Caller {
            cu_seqlens: inputs.cu_seqlens,
            cu_seqlens_k: inputs.keys_starts(),
            v: rows(inputs.v, &self.v),
            out: rows(out, &self.out),
            dv: rows(0, &self.v),
        }
    }

    /// The kernel that makes the tensors of the walks.
    ///
    /// # Safety
    /// Those of [`launch`].
    pub(super) unsafe fn conserve(
        &self,
        stream: &CudaStream,
        kernel: &'static Kernel,
        inputs: &RawInputs,
        work: &Work,
    ) -> Result<()> {
        let shape = &self.shape;
        let tokens = |row: usize| (shape.batch * row) as i64;
        let ([q_stride_batch, q_stride_token, q_stride_head], [k_stride_batch, k_stride_token, k_stride_head]) =
            (self.q.strides, self.k.strides);
        macro_rules! arguments {
            ($kernel:ident { $($name:ident: $value:expr),* $(; $padding:expr)? }) => {
                $kernel {
                    p_q: inputs.q,
                    p_k: inputs.k,
                    p_cu_seqlens: inputs.cu_seqlens,
                    p_flow_q: work.flow_q,
                    p_flow_k: work.flow_k,
                    p_query_scalars: work.query_scalars,
                    p_key_scalars: work.key_scalars,
                    p_vectors: work.vectors,
                    q_stride_batch,
                    q_stride_token,
                    q_stride_head,
                    k_stride_batch,
                    k_stride_token,
                    k_stride_head,
                    sequences: shape.sequences() as u32,
                    heads: shape.heads as u32,
                    key_dim: shape.key_dim as u32,
                    mapped: self.options.mapped.into(),
                    eps: EPSILON,
                    extra_eps: self.options.extra_eps,
                    clamp: self.clamp(),
                    factor: self.factor(),
                    $($name: $value,)*
                    $(..$padding)?
                }
            };
        }
        if shape.causal {
            let args = arguments!(FlowCausal { rows: tokens(shape.queries), seq_len: shape.queries as u32; Zeroable::zeroed() });
            // SAFETY: the caller's promise; sizes and strides were checked against the contract.
            return unsafe { launch(stream, kernel, self.grid(), &args) };
        }
        let args = arguments!(FlowNormal {
            p_cu_seqlens_k: inputs.keys_starts(),
            p_zeros: work.zeros,
            value_dim: shape.value_dim as u32,
            query_rows: tokens(shape.queries),
            key_rows: tokens(shape.keys),
            queries: shape.queries as u32,
            keys: shape.keys as u32;
            Zeroable::zeroed()
        });
        // SAFETY: as above.
        unsafe { launch(stream, kernel, self.grid(), &args) }
    }
}

/// A checked forward pass.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    frame: Frame,
    kernel: &'static Kernel,
    work: Work,
    paths: Paths,
}

impl Plan {
    const OP: &str = "flow_attention";

    /// Checks sizes, strides and options, and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large, keys that are not as many as queries in the causal form, packed
    /// sequences in several rows, a clamp that is not above 0; [`Error::Layout`](crate::Error::Layout) ← a negative stride, or rows of
    /// the output that overlap; [`Error::Arch`](crate::Error::Arch) ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let frame = Frame::new(Self::OP, shape, options, device)?;
        frame.out.writable(Self::OP, "out")?;
        let kernel = frame.kernel(Self::OP, false, device)?;
        let work = Work::new(&frame, false);
        let there = RawInputs { v: PLACEHOLDER, ..RawInputs::default() };
        let walks = frame.forward_walks(&work.at(PLACEHOLDER), &frame.caller(&there, PLACEHOLDER));
        let paths = Paths::new(&walks, device)?;
        Ok(Self { frame, kernel, work, paths })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: as much as `q` and `k`, and ten numbers a token and head. It holds
    /// nothing between launches.
    pub fn workspace_bytes(&self) -> u64 {
        self.paths.workspace_bytes(&self.work)
    }

    /// Bytes that must cross the memory bus at least: every tensor once.
    pub fn bytes_moved(&self) -> u64 {
        let Frame { q, k, v, out, .. } = &self.frame;
        [q, k, v, out].iter().map(|t| t.bytes()).sum()
    }

    /// Floating-point operations: those of the linear attention, and eight for every entry of `q` and `k`.
    pub fn flops(&self) -> u64 {
        let Frame { q, k, v, out, shape, .. } = &self.frame;
        let keys = shape.key_dim as u64;
        let attention = 2 * keys.saturating_mul(v.elements().saturating_add(out.elements()));
        attention.saturating_add(8 * q.elements().saturating_add(k.elements()))
    }

    /// The output at every query, in two launches; three where all keys come before all queries, more where the walks are cut into
    /// segments.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] say; `out` is `[B,L,H,V]`. All have the plan's type and strides. `workspace` has
    /// [`workspace_bytes`](Self::workspace_bytes).
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or starts are missing or have no meaning; [`Error::Alias`](crate::Error::Alias) ← the output or the workspace overlap
    /// another tensor; [`Error::Workspace`](crate::Error::Workspace) ← it is too small. Nothing is written on these.
    ///
    /// # Numerics
    /// Flows, sums and the softmax are f32 whatever the type, with a running maximum. The walks read queries, keys and values
    /// rounded to the type, on tensor cores if it has 16 bits. In f16 sums over keys above 65504 overflow: with values of one sign
    /// that is past 10^5 tokens.
    ///
    /// # Determinism
    /// Bitwise.
    ///
    /// # Cost
    /// About twice [`bytes_moved`](Self::bytes_moved), and `q` and `k` four times, from L2 if a sequence fits. A block does a
    /// sequence and head, so few of them do not fill a GPU.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        out: &mut dyn DevicePtrMut<T>,
        workspace: &mut dyn DevicePtrMut<u8>,
    ) -> Result<()> {
        strided::dtype(Self::OP, "inputs", self.frame.options.dtype, T::DTYPE)?;
        self.frame.check_lengths(Self::OP, inputs)?;
        strided::length(Self::OP, "out", &self.frame.out, out.len())?;
        let bytes = workspace.len() as u64;
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (cu_seqlens, _starts) = memory::input(inputs.cu_seqlens, stream);
        let (cu_seqlens_k, _key_starts) = memory::input(inputs.cu_seqlens_k, stream);
        let (out, _out) = memory::output(Some(out), stream);
        let (address, _workspace) = memory::output(Some(workspace), stream);
        let inputs = RawInputs { q, k, v, cu_seqlens, cu_seqlens_k };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launches are queued; the workspace is borrowed for them alone.
        unsafe { self.run_raw(stream, &inputs, out, RawWorkspace { address, bytes }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape),
    /// [`Error::Workspace`](crate::Error::Workspace), and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (output, workspace) over the plan's shape and strides until the
    ///   launches have ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the output.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        out: CUdeviceptr,
        workspace: RawWorkspace,
    ) -> Result<()> {
        let frame = &self.frame;
        let outputs: [Placed<'_>; 1] = [("out", out, &frame.out)];
        frame.check_addresses(Self::OP, inputs, &outputs, None, (workspace, self.workspace_bytes()))?;
        if frame.is_empty() {
            return Ok(());
        }
        let work = self.work.at(workspace.address);
        // SAFETY: the caller's promise covers the addresses, and the workspace has room for its parts.
        unsafe { frame.conserve(stream, self.kernel, inputs, &work) }?;
        let caller = frame.caller(inputs, out);
        // SAFETY: as above; the walks read what the kernel wrote, after it.
        unsafe { self.paths.launch(stream, &frame.forward_walks(&work, &caller), work.walks) }
    }
}

/// An address for plans, which look only at whether a tensor is there.
pub(super) const PLACEHOLDER: CUdeviceptr = 1 << 20;

/// Flow-Attention of rows of equal length into new memory, `[B,L,H,V]`.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn flow_attention<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    q: &impl DevicePtr<T>,
    k: &impl DevicePtr<T>,
    v: &impl DevicePtr<T>,
) -> Result<CudaSlice<T>> {
    let plan = Plan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let mut out = memory::allocate::<T>(stream, plan.frame.out.span(), "out")?;
    let mut workspace = memory::allocate::<u8>(stream, plan.workspace_bytes(), "workspace")?;
    plan.run(stream, &Inputs::of(q, k, v), &mut out, &mut workspace)?;
    Ok(out)
}
