//! Launching the forward pass.

use crate::{
    Inputs, Outputs, Plan, RawInputs, RawOutputs, RawWorkspace, Result, Workspace,
    check::{self, Placed},
    memory,
    plan::Frame,
};
use cudarc::driver::CudaStream;
use lookback_device::{Element, launch};
use lookback_kernels::args::GatedScanFwd;

impl Frame {
    /// Lengths and presence of the inputs that every pass has.
    pub(crate) fn check_inputs<T>(
        &self,
        inputs: &Inputs<'_, T>,
        tensors: [&check::Tensor; 3],
        needs_b: bool,
    ) -> Result<()> {
        let (op, source) = (self.op, self.options.source);
        let [name_a, name_b, name_x, name_channel] = source.names();
        let gates = &inputs.gates;
        check::given(op, name_a, source.has_a(), gates.a.is_some())?;
        if needs_b {
            check::given(op, name_b, true, gates.b.is_some())?;
        }
        check::given(op, name_x, source.is_producer(), gates.x.is_some())?;
        check::given(op, name_channel, source.has_channel(), gates.channel.is_some())?;
        check::given(op, "cu_seqlens", self.shape.packed.is_some(), inputs.cu_seqlens.is_some())?;
        for ((name, slice), tensor) in
            [(name_a, gates.a), (name_b, gates.b.filter(|_| needs_b)), (name_x, gates.x)].into_iter().zip(tensors)
        {
            slice.map_or(Ok(()), |s| check::length(op, name, tensor.span(), s.len()))?;
        }
        gates.channel.map_or(Ok(()), |s| check::length(op, name_channel, self.channel_array().span(), s.len()))?;
        inputs.flags.map_or(Ok(()), |s| check::length(op, "flags", self.flags().span(), s.len()))?;
        inputs.cu_seqlens.map_or(Ok(()), |s| check::length(op, "cu_seqlens", self.cu_seqlens().span(), s.len()))?;
        inputs.initial.map_or(Ok(()), |s| check::length(op, "initial", self.states().span(), s.len()))
    }

    /// Presence and alignment of the same inputs by address.
    pub(crate) fn check_addresses(&self, raw: &RawInputs, tensors: [&check::Tensor; 3], needs_b: bool) -> Result<()> {
        let (op, source) = (self.op, self.options.source);
        let [name_a, name_b, name_x, name_channel] = source.names();
        let wanted = [(name_a, raw.a, source.has_a()), (name_b, raw.b, needs_b), (name_x, raw.x, source.is_producer())];
        for ((name, address, wanted), tensor) in wanted.into_iter().zip(tensors) {
            if wanted {
                check::placed(op, (name, address, tensor))?;
            }
        }
        if source.has_channel() {
            check::placed(op, (name_channel, raw.channel, &self.channel_array()))?;
        }
        check::given(op, "cu_seqlens", self.shape.packed.is_some(), raw.cu_seqlens != 0)?;
        for (name, address) in [("cu_seqlens", raw.cu_seqlens), ("initial", raw.initial)] {
            if address != 0 {
                check::aligned(op, name, 4, address)?;
            }
        }
        Ok(())
    }
}

/// Addresses of a forward's inputs, with their guards.
pub(crate) fn hold_inputs<'a, T>(
    inputs: &Inputs<'a, T>,
    stream: &'a CudaStream,
) -> (RawInputs, [memory::Guard<'a>; 7]) {
    let (a, guard_a) = memory::input(inputs.gates.a, stream);
    let (b, guard_b) = memory::input(inputs.gates.b, stream);
    let (x, guard_x) = memory::input(inputs.gates.x, stream);
    let (channel, guard_channel) = memory::input(inputs.gates.channel, stream);
    let (flags, guard_flags) = memory::input(inputs.flags, stream);
    let (cu_seqlens, guard_starts) = memory::input(inputs.cu_seqlens, stream);
    let (initial, guard_initial) = memory::input(inputs.initial, stream);
    let guards = [guard_a, guard_b, guard_x, guard_channel, guard_flags, guard_starts, guard_initial];
    (RawInputs { a, b, x, channel, flags, cu_seqlens, initial }, guards)
}

impl Plan {
    /// `h[t] = a[t] h[t-1] + b[t]`, in reverse `a[t] h[t+1] + b[t]`, in one launch.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say; `[B,T,D]` tensors have the plan's type and strides. With `T = 0` only
    /// the states are copied.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or the source lacks a tensor or has no use for it; [`Error::Alias`](crate::Error::Alias) ← an output overlaps an
    /// input; [`Error::Workspace`](crate::Error::Workspace) ← it is too small. Nothing is written on these.
    ///
    /// # Numerics
    /// The state is f32, one fused multiply-add a step; `h` is rounded once. Within the gates of the kernel's contract as long
    /// as the state remembers no more than some thousands of tokens.
    ///
    /// # Determinism
    /// Bitwise, whatever the order in which tiles run.
    ///
    /// # Cost
    /// One launch; every tensor crosses the bus once; 1 to 3 % more for the look-back.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let op = Self::OP;
        check::dtype(op, self.frame.options.dtype, T::DTYPE)?;
        self.frame.check_inputs(inputs, [&self.a, &self.b, &self.x], true)?;
        check::length(op, "h", self.h.span(), outputs.h.len())?;
        if let Some(last) = &outputs.last {
            check::length(op, "last", self.frame.states().span(), last.len())?;
        }
        let (raw, _inputs) = hold_inputs(inputs, stream);
        let (h, _h) = memory::output(Some(outputs.h), stream);
        let (last, _last) = memory::output(outputs.last, stream);
        let (workspace, _workspace) = workspace.hold(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launch is queued; the workspace was zeroed when it was made and is borrowed for this launch alone.
        unsafe { self.run_raw(stream, &raw, &RawOutputs { h, last }, workspace) }
    }

    /// As [`run`](Self::run) on device addresses; here `h` may be `b` itself, with the same strides.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape),
    /// [`Error::Workspace`](crate::Error::Workspace), and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (outputs, workspace) over the plan's shape until the launch
    ///   has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    /// * The workspace was zeroed once since it was allocated, with this size, and only plans of this crate have used it since,
    ///   one launch at a time, each to its end.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        outputs: &RawOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        let (op, frame) = (Self::OP, &self.frame);
        let (shape, source) = (frame.shape, frame.options.source);
        frame.check_addresses(inputs, [&self.a, &self.b, &self.x], true)?;
        let states = frame.states();
        check::placed(op, ("h", outputs.h, &self.h))?;
        if outputs.last != 0 {
            check::placed(op, ("last", outputs.last, &states))?;
        }
        let [name_a, name_b, name_x, name_channel] = source.names();
        let (flags, starts, channel) = (frame.flags(), frame.cu_seqlens(), frame.channel_array());
        let others: [Placed<'_>; 6] = [
            (name_a, inputs.a, &self.a),
            (name_x, inputs.x, &self.x),
            (name_channel, inputs.channel, &channel),
            ("flags", inputs.flags, &flags),
            ("cu_seqlens", inputs.cu_seqlens, &starts),
            ("initial", inputs.initial, &states),
        ];
        check::disjoint_unless(op, ("h", outputs.h, &self.h), (name_b, inputs.b, &self.b), true)?;
        check::disjoint(op, ("h", outputs.h, &self.h), &others)?;
        check::disjoint(op, ("last", outputs.last, &states), &others)?;
        check::disjoint(
            op,
            ("last", outputs.last, &states),
            &[(name_b, inputs.b, &self.b), ("h", outputs.h, &self.h)],
        )?;
        let parts = workspace.parts(op, self.workspace_bytes())?;
        if frame.is_empty() {
            return Ok(());
        }
        let tiling =
            frame.pick(&[inputs.a, inputs.b, inputs.x, outputs.h], &[inputs.channel, inputs.initial, outputs.last]);
        let strides = shape.strides;
        let args = GatedScanFwd {
            p_a: inputs.a,
            p_b: inputs.b,
            p_x: inputs.x,
            p_channel: if source.has_channel() { inputs.channel } else { 0 },
            p_flags: inputs.flags,
            p_cu_seqlens: inputs.cu_seqlens,
            p_initial: inputs.initial,
            p_h: outputs.h,
            p_final: outputs.last,
            p_header: parts.header,
            p_tile_flags: parts.tile_flags,
            p_slots: parts.slots,
            a_stride_b: strides.a.batch,
            a_stride_t: strides.a.token,
            b_stride_b: strides.b.batch,
            b_stride_t: strides.b.token,
            x_stride_b: strides.x.batch,
            x_stride_t: strides.x.token,
            h_stride_b: strides.h.batch,
            h_stride_t: strides.h.token,
            seq_len: shape.seq_len as u32,
            channels: shape.channels as u32,
            split: frame.options.split as u32,
            sequences: shape.sequences() as u32,
            blocks: tiling.blocks,
            forward_blocks: tiling.forward_blocks,
            streams: tiling.streams,
            chunks: tiling.chunks,
            window: tiling.policy.window,
            mode: source.mode(),
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, tiling.kernel, [tiling.tiles(), 1, 1], &args) }
    }
}
