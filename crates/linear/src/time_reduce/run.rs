//! Launching the forward pass.

use super::{
    Inputs, Outputs, Plan, RawInputs, RawOutputs, RawWorkspace, Workspace,
    job::{Operand, Roles},
};
use crate::{
    Result, memory,
    strided::{self, Placed},
};
use cudarc::driver::CudaStream;
use lookback_device::Element;

impl Plan {
    /// `KV = sum of phi(k[t]) v[t]^T` over the tokens of each sequence, `o[t] = scale phi(q[t])^T KV`, in one launch.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's type and strides. A sequence without tokens has a `KV` of zeros.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too short, `cu_seqlens`
    /// and the shape disagree, `q` without `o` or the other way round, `den` without a normaliser; [`Error::Alias`](crate::Error::Alias) ← an output
    /// overlaps another tensor; [`Error::Workspace`](crate::Error::Workspace) ← it is too small. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32`. For 16-bit types features, and what queries read of `KV`, are rounded to the type (for `f16` scaled by a power of two, so
    /// that long sums do not overflow); `ksum` and denominators stay `f32`.
    ///
    /// # Determinism
    /// Bitwise, whatever the order in which blocks run. The size of a segment changes the last places.
    ///
    /// # Cost
    /// One launch; `q`, `k` and `v` are read once and `o` is written once, plus a cell of 264 bytes a feature for each head, 64 values and segment.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (op, layout) = (Self::OP, &self.layout);
        strided::dtype(op, "k", self.options.dtype, T::DTYPE)?;
        inputs.q.map_or(Ok(()), |q| strided::length(op, "q", &layout.q, q.len()))?;
        strided::length(op, "k", &layout.k, inputs.k.len())?;
        strided::length(op, "v", &layout.v, inputs.v.len())?;
        inputs.cu_seqlens.map_or(Ok(()), |s| strided::length(op, "cu_seqlens", &layout.cu_seqlens, s.len()))?;
        inputs.prefix_len.map_or(Ok(()), |s| strided::length(op, "prefix_len", &layout.prefix_len, s.len()))?;
        outputs.o.as_ref().map_or(Ok(()), |o| strided::length(op, "o", &layout.o, o.len()))?;
        outputs.den.as_ref().map_or(Ok(()), |d| strided::length(op, "den", &layout.den, d.len()))?;
        outputs.kv.as_ref().map_or(Ok(()), |s| strided::length(op, "kv", &layout.kv, s.len()))?;
        outputs.ksum.as_ref().map_or(Ok(()), |s| strided::length(op, "ksum", &layout.ksum, s.len()))?;
        let (q, _q) = memory::input(inputs.q, stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (cu_seqlens, _cu_seqlens) = memory::input(inputs.cu_seqlens, stream);
        let (prefix_len, _prefix_len) = memory::input(inputs.prefix_len, stream);
        let (o, _o) = memory::output(outputs.o, stream);
        let (den, _den) = memory::output(outputs.den, stream);
        let (kv, _kv) = memory::output(outputs.kv, stream);
        let (ksum, _ksum) = memory::output(outputs.ksum, stream);
        let (workspace, _workspace) = workspace.hold(stream);
        let raw = RawInputs { q, k, v, cu_seqlens, prefix_len };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launch is queued; the workspace was zeroed when it was made and is borrowed for this launch alone.
        unsafe { self.run_raw(stream, &raw, &RawOutputs { o, den, kv, ksum }, workspace) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape),
    /// [`Error::Workspace`](crate::Error::Workspace), and those of [`lookback_device::launch()`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (outputs, workspace) over the plan's shape until the launch has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    /// * The workspace was zeroed once since it was allocated, with this size, and only plans of this module have used it since, one launch at a
    ///   time, each to its end, with starts of sequences in order.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        outputs: &RawOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        let (op, layout, options) = (Self::OP, &self.layout, &self.options);
        strided::given(op, "cu_seqlens", self.shape.packed.is_some(), inputs.cu_seqlens != 0)?;
        // Without tokens q and o may both be null.
        let reads = inputs.q != 0 || outputs.o != 0;
        strided::given(op, "q", reads && layout.q.elements() > 0, inputs.q != 0 && layout.q.elements() > 0)?;
        strided::given(op, "o", reads && layout.o.elements() > 0, outputs.o != 0 && layout.o.elements() > 0)?;
        if options.normalize.is_none() || inputs.q == 0 {
            strided::given(op, "den", false, outputs.den != 0 && layout.den.elements() > 0)?;
        }
        let read: [Placed<'_>; 5] = [
            ("k", inputs.k, &layout.k),
            ("v", inputs.v, &layout.v),
            ("q", inputs.q, &layout.q),
            ("cu_seqlens", inputs.cu_seqlens, &layout.cu_seqlens),
            ("prefix_len", inputs.prefix_len, &layout.prefix_len),
        ];
        let written: [Placed<'_>; 4] = [
            ("o", outputs.o, &layout.o),
            ("den", outputs.den, &layout.den),
            ("kv", outputs.kv, &layout.kv),
            ("ksum", outputs.ksum, &layout.ksum),
        ];
        for (i, placed) in read.into_iter().enumerate() {
            strided::address(op, placed, i > 1)?;
        }
        for placed in written {
            strided::address(op, placed, true)?;
        }
        strided::all_disjoint(op, &written, &read)?;
        let parts = workspace.parts(op, self.workspace_bytes())?;
        if self.is_empty() {
            return Ok(());
        }
        let roles = Roles {
            k: Operand { address: inputs.k, tensor: &layout.k },
            v: Operand { address: inputs.v, tensor: &layout.v },
            q: Operand { address: inputs.q, tensor: &layout.q },
            o: Operand { address: outputs.o, tensor: &layout.o },
            weights: 0,
            lse: 0,
            cu_seqlens: inputs.cu_seqlens,
            prefix_len: inputs.prefix_len,
            read_len: 0,
            den: outputs.den,
            kv: outputs.kv,
            ksum: outputs.ksum,
            kv_in: 0,
            ksum_in: 0,
            scale: options.scale,
            sum_scale: 1.0,
            normalize: options.normalize,
        };
        // SAFETY: the caller's promise; overlaps were checked above.
        unsafe { self.job.launch(stream, &roles, parts) }
    }
}
