//! The backward pass: its plan and its launch.

use crate::{
    BackwardInputs, BackwardOutputs, DeviceInfo, Options, RawBackwardInputs, RawBackwardOutputs, RawWorkspace, Result,
    Shape, Workspace,
    check::{self, Placed, Tensor},
    memory,
    plan::Frame,
    policy::Pass,
    run::hold_inputs,
};
use cudarc::driver::{CudaStream, result, sys::CUdeviceptr};
use lookback_device::{Element, driver, launch};
use lookback_kernels::args::GatedScanBwd;

/// A checked backward scan, for the same shape and options as its forward pass.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    frame: Frame,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    h: Tensor,
    dh: Tensor,
    da: Tensor,
    db: Tensor,
    dx: Tensor,
}

impl BackwardPlan {
    const OP: &str = "gated_scan_backward";

    /// Checks sizes and strides, cuts tiles and finds the kernels.
    ///
    /// # Errors
    /// Those of [`Plan::new`](crate::Plan::new), with tokens of the gradients in place of `h`.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let tensor = |stride| Frame::tensor(shape, options, stride);
        let (strides, source) = (shape.strides, options.source);
        let [a, b, x, h, dh] = [strides.a, strides.b, strides.x, strides.h, strides.dh].map(tensor);
        let [da, db, dx] = [strides.da, strides.db, strides.dx].map(tensor);
        let [name_a, name_b, name_x, _] = source.names();
        let [name_da, name_db, name_dx, _] = source.gradient_names();
        let (has_a, is_producer) = (source.has_a(), source.is_producer());
        let read =
            [(has_a, name_a, a), (is_producer, name_b, b), (is_producer, name_x, x), (true, "h", h), (true, "dh", dh)];
        let written = [(has_a, name_da, da), (true, name_db, db), (is_producer, name_dx, dx)];
        let mut all = Vec::new();
        for (_, name, tensor) in read.into_iter().filter(|(there, ..)| *there) {
            tensor.readable(Self::OP, name)?;
            all.push(tensor);
        }
        for (_, name, tensor) in written.into_iter().filter(|(there, ..)| *there) {
            tensor.writable(Self::OP, name)?;
            all.push(tensor);
        }
        let frame = Frame::new(Self::OP, Pass::Backward, shape, options, device, &all)?;
        Ok(Self { frame, a, b, x, h, dh, da, db, dx })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, in a [`Workspace`].
    pub fn workspace_bytes(&self) -> u64 {
        self.frame.workspace_bytes(self.frame.options.source.has_channel())
    }

    /// Bytes that must cross the memory bus at least, with all states and their adjoints.
    pub fn bytes_moved(&self) -> u64 {
        let source = self.frame.options.source;
        let tensors = 3 + 2 * u64::from(source.has_a()) + 3 * u64::from(source.is_producer());
        let channel = if source.has_channel() { self.frame.channel_array().bytes() } else { 0 };
        tensors * self.h.bytes() + 3 * self.frame.states().bytes() + 2 * channel
    }

    /// Floating-point operations of the recurrence; the chain rule of a producer is not counted.
    pub fn flops(&self) -> u64 {
        3 * self.frame.elements()
    }

    /// Elements that the gradients of `a`, `b` and `x` span.
    pub(crate) fn gradient_spans(&self) -> [u64; 3] {
        [self.da.span(), self.db.span(), self.dx.span()]
    }

    /// Gradients of everything that the forward pass read, in one launch.
    ///
    /// # Shapes
    /// As the members of [`BackwardInputs`] and [`BackwardOutputs`] say.
    ///
    /// # Errors
    /// As [`Plan::run`](crate::Plan::run).
    ///
    /// # Numerics
    /// Adjoints are f32 and rounded once; `h` enters as it was stored, so with 16-bit elements the gradient of `a` has their
    /// precision.
    ///
    /// # Determinism
    /// Bitwise, also of the sums over tokens that are gradients of a channel.
    ///
    /// # Cost
    /// One launch; every tensor crosses the bus once; 1 to 5 % more for the look-back.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (op, source) = (Self::OP, self.frame.options.source);
        check::dtype(op, self.frame.options.dtype, T::DTYPE)?;
        self.frame.check_inputs(&inputs.forward, [&self.a, &self.b, &self.x], source.is_producer())?;
        check::length(op, "h", self.h.span(), inputs.h.len())?;
        check::length(op, "dh", self.dh.span(), inputs.dh.len())?;
        let states = self.frame.states().span();
        inputs.d_last.map_or(Ok(()), |s| check::length(op, "d_last", states, s.len()))?;
        let [name_a, name_b, name_x, name_channel] = source.gradient_names();
        let gates = outputs.gates;
        let wanted = [
            (name_a, source.has_a(), &self.da, &gates.a),
            (name_b, true, &self.db, &gates.b),
            (name_x, source.is_producer(), &self.dx, &gates.x),
        ];
        for (name, wanted, tensor, slice) in wanted {
            check::given(op, name, wanted, slice.is_some())?;
            slice.as_ref().map_or(Ok(()), |s| check::length(op, name, tensor.span(), s.len()))?;
        }
        if !source.has_channel() || source.is_producer() {
            check::given(op, name_channel, source.has_channel(), gates.channel.is_some())?;
        }
        let channels = self.frame.channel_array().span();
        gates.channel.as_ref().map_or(Ok(()), |s| check::length(op, name_channel, channels, s.len()))?;
        outputs.d_initial.as_ref().map_or(Ok(()), |s| check::length(op, "d_initial", states, s.len()))?;

        let (forward, _forward) = hold_inputs(&inputs.forward, stream);
        let (h, _h) = memory::input(Some(inputs.h), stream);
        let (dh, _dh) = memory::input(Some(inputs.dh), stream);
        let (d_last, _d_last) = memory::input(inputs.d_last, stream);
        let (a, _a) = memory::output(gates.a, stream);
        let (b, _b) = memory::output(gates.b, stream);
        let (x, _x) = memory::output(gates.x, stream);
        let (channel, _channel) = memory::output(gates.channel, stream);
        let (d_initial, _d_initial) = memory::output(outputs.d_initial, stream);
        let (workspace, _workspace) = workspace.hold(stream);
        let raw = RawBackwardInputs { forward, h, dh, d_last };
        let gradients = RawBackwardOutputs { a, b, x, channel, d_initial };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launch is queued; the workspace was zeroed when it was made and is borrowed for this launch alone.
        unsafe { self.run_raw(stream, &raw, &gradients, workspace) }
    }

    /// As [`run`](Self::run) on device addresses; here the gradient of `b` may be `dh` itself and that of `a` may be `a`, with the
    /// same strides.
    ///
    /// # Errors
    /// As [`Plan::run_raw`](crate::Plan::run_raw).
    ///
    /// # Safety
    /// That of [`Plan::run_raw`](crate::Plan::run_raw).
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        let frame = &self.frame;
        self.check_raw(inputs, outputs)?;
        let parts = workspace.parts(Self::OP, self.workspace_bytes())?;
        if frame.is_empty() {
            return self.clear_channel(stream, outputs.channel);
        }
        let (shape, source, forward) = (frame.shape, frame.options.source, &inputs.forward);
        // What the source does not have is not looked at, whatever the caller left in it.
        let of_a = |address| if source.has_a() { address } else { 0 };
        let of_producer = |address| if source.is_producer() { address } else { 0 };
        let of_channel = |address| if source.has_channel() { address } else { 0 };
        let (b, x) = (of_producer(forward.b), of_producer(forward.x));
        let (a, da) = (of_a(forward.a), of_a(outputs.a));
        let (channel, d_channel) = (of_channel(forward.channel), of_channel(outputs.channel));
        let tiling = frame.pick(
            &[a, b, x, inputs.h, inputs.dh, da, outputs.b, of_producer(outputs.x)],
            &[channel, forward.initial, inputs.d_last, d_channel, outputs.d_initial],
        );
        let strides = shape.strides;
        let args = GatedScanBwd {
            p_a: a,
            p_b: b,
            p_x: x,
            p_channel: channel,
            p_h: inputs.h,
            p_dh: inputs.dh,
            p_flags: forward.flags,
            p_cu_seqlens: forward.cu_seqlens,
            p_initial: forward.initial,
            p_d_final: inputs.d_last,
            p_da: da,
            p_db: outputs.b,
            p_dx: of_producer(outputs.x),
            p_d_channel: d_channel,
            p_d_initial: outputs.d_initial,
            p_header: parts.header,
            p_tile_flags: parts.tile_flags,
            p_counts: parts.counts,
            p_slots: parts.slots,
            a_stride_b: strides.a.batch,
            a_stride_t: strides.a.token,
            b_stride_b: strides.b.batch,
            b_stride_t: strides.b.token,
            x_stride_b: strides.x.batch,
            x_stride_t: strides.x.token,
            h_stride_b: strides.h.batch,
            h_stride_t: strides.h.token,
            dh_stride_b: strides.dh.batch,
            dh_stride_t: strides.dh.token,
            da_stride_b: strides.da.batch,
            da_stride_t: strides.da.token,
            db_stride_b: strides.db.batch,
            db_stride_t: strides.db.token,
            dx_stride_b: strides.dx.batch,
            dx_stride_t: strides.dx.token,
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

    /// The sum over no row at all: what belongs to a channel becomes 0 where it is wanted.
    fn clear_channel(&self, stream: &CudaStream, d_channel: CUdeviceptr) -> Result<()> {
        let bytes = self.frame.channel_array().bytes() as usize;
        if !self.frame.options.source.has_channel() || d_channel == 0 || bytes == 0 {
            return Ok(());
        }
        let failed = |e| driver(e, "clearing the gradient of the channels");
        stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: the caller promised that the gradient is writable over the plan's channels.
        unsafe { result::memset_d8_async(d_channel, 0, bytes, stream.cu_stream()) }.map_err(failed)
    }

    /// Presence, alignment and overlap.
    fn check_raw(&self, inputs: &RawBackwardInputs, outputs: &RawBackwardOutputs) -> Result<()> {
        let (op, frame) = (Self::OP, &self.frame);
        let (source, forward) = (frame.options.source, &inputs.forward);
        frame.check_addresses(forward, [&self.a, &self.b, &self.x], source.is_producer())?;
        let (states, channel) = (frame.states(), frame.channel_array());
        let (flags, starts) = (frame.flags(), frame.cu_seqlens());
        let [name_a, name_b, name_x, name_channel] = source.names();
        let [name_da, name_db, name_dx, name_d_channel] = source.gradient_names();
        let there = |condition: bool, address| if condition { address } else { 0 };
        let (has_a, is_producer) = (source.has_a(), source.is_producer());

        let a: Placed<'_> = (name_a, there(has_a, forward.a), &self.a);
        let dh: Placed<'_> = ("dh", inputs.dh, &self.dh);
        let others: [Placed<'_>; 8] = [
            (name_b, there(is_producer, forward.b), &self.b),
            (name_x, there(is_producer, forward.x), &self.x),
            (name_channel, there(source.has_channel(), forward.channel), &channel),
            ("h", inputs.h, &self.h),
            ("flags", forward.flags, &flags),
            ("cu_seqlens", forward.cu_seqlens, &starts),
            ("initial", forward.initial, &states),
            ("d_last", inputs.d_last, &states),
        ];
        let gradients: [Placed<'_>; 5] = [
            (name_da, there(has_a, outputs.a), &self.da),
            (name_db, outputs.b, &self.db),
            (name_dx, there(is_producer, outputs.x), &self.dx),
            (name_d_channel, there(source.has_channel(), outputs.channel), &channel),
            ("d_initial", outputs.d_initial, &states),
        ];
        check::placed(op, ("h", inputs.h, &self.h))?;
        check::placed(op, dh)?;
        if inputs.d_last != 0 {
            check::placed(op, ("d_last", inputs.d_last, &states))?;
        }
        let needed = [has_a, true, is_producer, source.has_channel() && is_producer, false];
        for (n, out) in gradients.iter().enumerate() {
            if needed[n] || out.1 != 0 {
                check::placed(op, *out)?;
            }
            check::disjoint(op, *out, &others)?;
            check::disjoint(op, *out, &gradients[..n])?;
            // A tile reads its own elements of a and dh before it writes there, and no other tile reads them.
            let [may_be_a, may_be_dh] = [n == 0, n == 1];
            check::disjoint_unless(op, *out, a, may_be_a)?;
            check::disjoint_unless(op, *out, dh, may_be_dh)?;
        }
        Ok(())
    }
}
