//! Launching the forward pass.

use crate::{
    Decay, Inputs, Mode, Outputs, Path, Plan, RawInputs, RawOutputs, RawWorkspace, Read, Result,
    launch::{launch, launch_both},
    memory,
    strided::{self, Placed},
    walk::Walk,
};
use cudarc::driver::{CudaStream, DevicePtrMut};
use lookback_device::Element;

impl Plan {
    /// The output at every token, and the states after the last, in one launch: two with [`Mode::PrefixRead`], three a direction with
    /// [`Path::Parallel`]. Both directions of [`Mode::Bidirectional`] are one launch with
    /// [`Path::Chain`], each block walking one way and then the other; token by token they are two.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's type and strides. With `T = 0` states are copied.
    /// `workspace` has [`workspace_bytes`](Self::workspace_bytes) and may be left out where that is 0.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or one is missing or has no meaning with the plan's options; [`Error::Alias`](crate::Error::Alias) ← an output overlaps
    /// an input or another output; [`Error::Workspace`](crate::Error::Workspace) ← it is too small. Nothing is written on these.
    ///
    /// # Numerics
    /// States, decays, normalisers and their sums are f32. [`Path::Recurrent`] computes in f32 and rounds
    /// the output once; the others multiply 16-bit elements on tensor cores. The output of a bidirectional mode in 16 bits is
    /// rounded after each direction. Log-decays above 0 are the caller's mistake, see [`Decay`].
    ///
    /// # Determinism
    /// Bitwise on one path, whatever the order of blocks.
    ///
    /// # Cost
    /// [`bytes_moved`](Self::bytes_moved) and [`flops`](Self::flops); `q`, `k` and vector decays are read once for every tile of
    /// values.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
        workspace: Option<&mut dyn DevicePtrMut<u8>>,
    ) -> Result<()> {
        let (op, layout) = (Self::OP, &self.layout);
        strided::dtype(op, "inputs", self.options.dtype, T::DTYPE)?;
        for (arg, tensor, len) in [
            ("q", &layout.q, Some(inputs.q.len())),
            ("k", &layout.k, Some(inputs.k.len())),
            ("v", &layout.v, Some(inputs.v.len())),
            ("g", &layout.g, inputs.g.map(|s| s.len())),
            ("bonus", &layout.bonus, inputs.bonus.map(|s| s.len())),
            ("flags", &layout.flags, inputs.flags.map(|s| s.len())),
            ("cu_seqlens", &layout.cu_seqlens, inputs.cu_seqlens.map(|s| s.len())),
            ("prefix_len", &layout.prefix_len, inputs.prefix_len.map(|s| s.len())),
            ("state", &layout.states, inputs.state.map(|s| s.len())),
            ("normalizer", &layout.sums, inputs.normalizer.map(|s| s.len())),
            ("reverse.q", &layout.q, inputs.reverse.q.map(|s| s.len())),
            ("reverse.k", &layout.k, inputs.reverse.k.map(|s| s.len())),
            ("reverse.g", &layout.g, inputs.reverse.g.map(|s| s.len())),
            ("reverse.state", &layout.states, inputs.reverse.state.map(|s| s.len())),
            ("o", &layout.o, Some(outputs.o.len())),
            ("final state", &layout.states, outputs.state.as_ref().map(|s| s.len())),
            ("final reverse state", &layout.states, outputs.reverse_state.as_ref().map(|s| s.len())),
            ("final normalizer", &layout.sums, outputs.normalizer.as_ref().map(|s| s.len())),
            ("denominator", &layout.denominator, outputs.denominator.as_ref().map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(op, arg, tensor, len))?;
        }
        let bytes = workspace.as_ref().map_or(0, |w| w.len() as u64);
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (g, _g) = memory::input(inputs.g, stream);
        let (bonus, _bonus) = memory::input(inputs.bonus, stream);
        let (flags, _flags) = memory::input(inputs.flags, stream);
        let (cu_seqlens, _cu_seqlens) = memory::input(inputs.cu_seqlens, stream);
        let (prefix_len, _prefix_len) = memory::input(inputs.prefix_len, stream);
        let (state, _state) = memory::input(inputs.state, stream);
        let (normalizer, _normalizer) = memory::input(inputs.normalizer, stream);
        let (reverse_q, _reverse_q) = memory::input(inputs.reverse.q, stream);
        let (reverse_k, _reverse_k) = memory::input(inputs.reverse.k, stream);
        let (reverse_g, _reverse_g) = memory::input(inputs.reverse.g, stream);
        let (reverse_state, _reverse_state) = memory::input(inputs.reverse.state, stream);
        let raw = RawInputs {
            q,
            k,
            v,
            g,
            bonus,
            flags,
            cu_seqlens,
            prefix_len,
            state,
            normalizer,
            reverse_q,
            reverse_k,
            reverse_g,
            reverse_state,
        };
        let (o, _o) = memory::output(Some(outputs.o), stream);
        let (state, _final_state) = memory::output(outputs.state, stream);
        let (reverse_state, _final_reverse) = memory::output(outputs.reverse_state, stream);
        let (normalizer, _final_normalizer) = memory::output(outputs.normalizer, stream);
        let (denominator, _denominator) = memory::output(outputs.denominator, stream);
        let (address, _workspace) = memory::output(workspace, stream);
        let out = RawOutputs { o, state, reverse_state, normalizer, denominator };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launches are queued; the workspace is borrowed for them alone.
        unsafe { self.run_raw(stream, &raw, &out, RawWorkspace { address, bytes }) }
    }

    /// Whether each input that the options want is there, and none that they have no use for.
    pub(crate) fn check_inputs(&self, op: &'static str, inputs: &RawInputs) -> Result<()> {
        let (options, layout) = (&self.options, &self.layout);
        // An empty tensor may have no address.
        let exactly = |(arg, address, tensor): Placed<'_>, wanted: bool| match address == 0 && tensor.elements() == 0 {
            true => Ok(()),
            false => strided::given(op, arg, wanted, address != 0),
        };
        exactly(("g", inputs.g, &layout.g), options.decay != Decay::None)?;
        exactly(("cu_seqlens", inputs.cu_seqlens, &layout.cu_seqlens), self.shape.packed.is_some())?;
        exactly(("prefix_len", inputs.prefix_len, &layout.prefix_len), options.mode == Mode::PrefixRead)?;
        if options.mode == Mode::PrefixState {
            exactly(("state", inputs.state, &layout.states), true)?;
        }
        let only = |arg, there: bool, meant: bool| strided::given(op, arg, there && meant, there);
        only("bonus", inputs.bonus != 0, options.read == Read::ExclusiveBonus)?;
        only("normalizer", inputs.normalizer != 0, options.normalize.is_some())?;
        for (arg, address) in
            [("reverse.q", inputs.reverse_q), ("reverse.k", inputs.reverse_k), ("reverse.state", inputs.reverse_state)]
        {
            only(arg, address != 0, options.mode == Mode::Bidirectional)?;
        }
        let decays_both_ways = options.mode == Mode::Bidirectional && options.decay != Decay::None;
        only("reverse.g", inputs.reverse_g != 0, decays_both_ways)
    }

    /// No output that the options have no use for.
    fn check_outputs(&self, outputs: &RawOutputs) -> Result<()> {
        let (normalized, both) = (self.options.normalize.is_some(), self.options.mode == Mode::Bidirectional);
        for (arg, address, meant) in [
            ("final normalizer", outputs.normalizer, normalized),
            ("denominator", outputs.denominator, normalized),
            ("final reverse state", outputs.reverse_state, both),
        ] {
            strided::given(Self::OP, arg, address != 0 && meant, address != 0)?;
        }
        Ok(())
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape),
    /// [`Error::Workspace`](crate::Error::Workspace), and those of [`lookback_device::launch()`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or writable (outputs, workspace) over the plan's shape and strides until the
    ///   launches have ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        outputs: &RawOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        let (op, layout) = (Self::OP, &self.layout);
        self.check_inputs(op, inputs)?;
        self.check_outputs(outputs)?;
        let required: [Placed<'_>; 3] =
            [("q", inputs.q, &layout.q), ("k", inputs.k, &layout.k), ("v", inputs.v, &layout.v)];
        let optional: [Placed<'_>; 11] = [
            ("g", inputs.g, &layout.g),
            ("bonus", inputs.bonus, &layout.bonus),
            ("flags", inputs.flags, &layout.flags),
            ("cu_seqlens", inputs.cu_seqlens, &layout.cu_seqlens),
            ("prefix_len", inputs.prefix_len, &layout.prefix_len),
            ("state", inputs.state, &layout.states),
            ("normalizer", inputs.normalizer, &layout.sums),
            ("reverse.q", inputs.reverse_q, &layout.q),
            ("reverse.k", inputs.reverse_k, &layout.k),
            ("reverse.g", inputs.reverse_g, &layout.g),
            ("reverse.state", inputs.reverse_state, &layout.states),
        ];
        let need = self.workspace_bytes();
        let scratch = strided::Strided::dense([1, 1, 1], usize::try_from(need).unwrap_or(usize::MAX), 1);
        let written: [Placed<'_>; 6] = [
            ("o", outputs.o, &layout.o),
            ("final state", outputs.state, &layout.states),
            ("final reverse state", outputs.reverse_state, &layout.states),
            ("final normalizer", outputs.normalizer, &layout.sums),
            ("denominator", outputs.denominator, &layout.denominator),
            ("workspace", workspace.address, &scratch),
        ];
        required.iter().chain(&written[..1]).try_for_each(|placed| strided::address(op, *placed, false))?;
        optional.iter().chain(&written[1..]).try_for_each(|placed| strided::address(op, *placed, true))?;
        strided::all_disjoint(op, &written, &[&required[..], &optional[..]].concat())?;
        workspace.check(op, need)?;

        let RawWorkspace { address, .. } = workspace;
        let walks = match self.options.mode {
            Mode::PrefixRead => {
                let sums = address + layout.states.bytes();
                let normalizer = if self.options.normalize.is_some() { sums } else { 0 };
                let prefix = self.prefix_walk(inputs, address, normalizer);
                let path = prefix.state_path(self.path_at(&prefix));
                let whole = self.walk(&RawInputs { state: address, normalizer, ..*inputs }, outputs);
                [Some((prefix, path)), Some((whole, self.path_at(&whole)))]
            }
            mode => {
                let first = self.walk(inputs, outputs);
                let second = (mode == Mode::Bidirectional).then(|| self.reverse_walk(inputs, outputs));
                [Some((first, self.path_at(&first))), second.map(|walk| (walk, self.path_at(&walk)))]
            }
        };
        walks.iter().flatten().try_for_each(|(walk, path)| walk.check_addresses(*path))?;
        // The launches follow each other on the stream, so all may use the same workspace.
        let segments = address + self.prefix_bytes();
        if let ([Some((first, one)), Some((second, other))], Mode::Bidirectional) = (&walks, self.options.mode) {
            // SAFETY: the caller's promise covers the addresses, sizes and strides were checked, and the workspace has room for what
            // belongs to segments.
            return unsafe { launch_both(stream, [(first, *one), (second, *other)], segments) };
        }
        for (walk, path) in walks.iter().flatten() {
            // SAFETY: as above, and for the states and sums of prefixes before it.
            unsafe { launch(stream, walk, *path, segments) }?;
        }
        Ok(())
    }

    /// The plan's path, unless the choice was the plan's and the addresses do not fit it.
    fn path_at(&self, walk: &Walk) -> Path {
        if self.options.path == Path::Auto { walk.aligned_path(self.path) } else { self.path }
    }
}
