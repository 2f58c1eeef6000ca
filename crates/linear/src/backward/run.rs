//! Launching the backward pass.

use super::{
    BackwardInputs, BackwardOutputs, BackwardPlan, OP, RawBackwardInputs, RawBackwardOutputs,
    launches::{self, Terms},
    passes::Pass,
    scratch::Scratch,
};
use crate::{
    DType, Decay, Mode, RawInputs, RawWorkspace, Read, Result, launch, memory,
    strided::{self, Placed, Strided},
};
use cudarc::driver::{CudaStream, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::Element;

impl BackwardPlan {
    /// Gradients of `q`, `k`, `v`, the log-decays, the bonus and the initial states, from the adjoints of the output and of the final
    /// states.
    ///
    /// # Shapes
    /// As the members of [`BackwardInputs`] and [`BackwardOutputs`] say, with the plan's type. `workspace` has
    /// [`workspace_bytes`](Self::workspace_bytes) and may be left out where that is 0.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, or one is missing or has no meaning with the plan's options; [`Error::Alias`](crate::Error::Alias) ← an output overlaps
    /// an input or another output; [`Error::Workspace`](crate::Error::Workspace) ← it is too small. Nothing is written on these.
    ///
    /// # Numerics
    /// As the forward pass; `dg` is a sum over time, in f64, of `q dq - k dk`, so that its error is relative to these products and grows
    /// with the square root of the tokens: it loses digits where the state forgets within a token or two. For that sum the walks of
    /// `dq` and `dk` keep factors to 16 bits more than the type has; without, a few hundredths of `dg` would be noise, and most of the
    /// gradient of a decay of heads, which sums it over time once more. Measured over 1024 tokens, decays from `e^-0.02` to `e^-4`:
    /// 8e-5 with f32 elements, 4e-4 with bf16; for decays of heads up to 1.8e-3 with either.
    ///
    /// # Determinism
    /// Bitwise on one path.
    ///
    /// # Cost
    /// Three walks a direction, each like the forward pass with the tensors it reads.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: Option<&mut dyn DevicePtrMut<u8>>,
    ) -> Result<()> {
        strided::dtype(OP, "inputs", self.options().dtype, T::DTYPE)?;
        self.check_lengths(inputs, &outputs)?;
        let forward = &inputs.forward;
        let (q, _q) = memory::input(Some(forward.q), stream);
        let (k, _k) = memory::input(Some(forward.k), stream);
        let (v, _v) = memory::input(Some(forward.v), stream);
        let (g, _g) = memory::input(forward.g, stream);
        let (bonus, _bonus) = memory::input(forward.bonus, stream);
        let (flags, _flags) = memory::input(forward.flags, stream);
        let (cu_seqlens, _cu_seqlens) = memory::input(forward.cu_seqlens, stream);
        let (prefix_len, _prefix_len) = memory::input(forward.prefix_len, stream);
        let (state, _state) = memory::input(forward.state, stream);
        let (normalizer, _normalizer) = memory::input(forward.normalizer, stream);
        let (reverse_q, _reverse_q) = memory::input(forward.reverse.q, stream);
        let (reverse_k, _reverse_k) = memory::input(forward.reverse.k, stream);
        let (reverse_g, _reverse_g) = memory::input(forward.reverse.g, stream);
        let (reverse_state, _reverse_state) = memory::input(forward.reverse.state, stream);
        let (o, _o) = memory::input(inputs.o, stream);
        let (denominator, _denominator) = memory::input(inputs.denominator, stream);
        let (d_o, _d_o) = memory::input(Some(inputs.d_o), stream);
        let (d_state, _d_state) = memory::input(inputs.d_state, stream);
        let (d_reverse_state, _d_reverse_state) = memory::input(inputs.d_reverse_state, stream);
        let (d_normalizer, _d_normalizer) = memory::input(inputs.d_normalizer, stream);
        let forward = RawInputs {
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
        let raw = RawBackwardInputs { forward, o, denominator, d_o, d_state, d_reverse_state, d_normalizer };

        let bytes = workspace.as_ref().map_or(0, |w| w.len() as u64);
        let (dq, _dq) = memory::output(Some(outputs.dq), stream);
        let (dk, _dk) = memory::output(Some(outputs.dk), stream);
        let (dv, _dv) = memory::output(Some(outputs.dv), stream);
        let (dg, _dg) = memory::output(outputs.dg, stream);
        let (d_bonus, _d_bonus) = memory::output(outputs.d_bonus, stream);
        let (d_state, _d_first) = memory::output(outputs.d_state, stream);
        let (d_normalizer, _d_first_sums) = memory::output(outputs.d_normalizer, stream);
        let (reverse_dq, _reverse_dq) = memory::output(outputs.reverse.dq, stream);
        let (reverse_dk, _reverse_dk) = memory::output(outputs.reverse.dk, stream);
        let (reverse_dg, _reverse_dg) = memory::output(outputs.reverse.dg, stream);
        let (reverse_d_state, _reverse_d_state) = memory::output(outputs.reverse.d_state, stream);
        let (address, _workspace) = memory::output(workspace, stream);
        let gradients = RawBackwardOutputs {
            dq,
            dk,
            dv,
            dg,
            d_bonus,
            d_state,
            d_normalizer,
            reverse_dq,
            reverse_dk,
            reverse_dg,
            reverse_d_state,
        };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launches are queued; the workspace is borrowed for them alone.
        unsafe { self.run_raw(stream, &raw, &gradients, RawWorkspace { address, bytes }) }
    }

    fn check_lengths<T>(&self, inputs: &BackwardInputs<'_, T>, outputs: &BackwardOutputs<'_, T>) -> Result<()> {
        let (layout, gradients, forward) = (&self.forward.layout, &self.layout, &inputs.forward);
        let reverse = &outputs.reverse;
        for (arg, tensor, len) in [
            ("q", &layout.q, Some(forward.q.len())),
            ("k", &layout.k, Some(forward.k.len())),
            ("v", &layout.v, Some(forward.v.len())),
            ("g", &layout.g, forward.g.map(|s| s.len())),
            ("bonus", &layout.bonus, forward.bonus.map(|s| s.len())),
            ("flags", &layout.flags, forward.flags.map(|s| s.len())),
            ("cu_seqlens", &layout.cu_seqlens, forward.cu_seqlens.map(|s| s.len())),
            ("prefix_len", &layout.prefix_len, forward.prefix_len.map(|s| s.len())),
            ("state", &layout.states, forward.state.map(|s| s.len())),
            ("normalizer", &layout.sums, forward.normalizer.map(|s| s.len())),
            ("reverse.q", &layout.q, forward.reverse.q.map(|s| s.len())),
            ("reverse.k", &layout.k, forward.reverse.k.map(|s| s.len())),
            ("reverse.g", &layout.g, forward.reverse.g.map(|s| s.len())),
            ("reverse.state", &layout.states, forward.reverse.state.map(|s| s.len())),
            ("o", &layout.o, inputs.o.map(|s| s.len())),
            ("denominator", &layout.denominator, inputs.denominator.map(|s| s.len())),
            ("d_o", &layout.o, Some(inputs.d_o.len())),
            ("d_state", &layout.states, inputs.d_state.map(|s| s.len())),
            ("d_reverse_state", &layout.states, inputs.d_reverse_state.map(|s| s.len())),
            ("d_normalizer", &layout.sums, inputs.d_normalizer.map(|s| s.len())),
            ("dq", &gradients.dq, Some(outputs.dq.len())),
            ("dk", &gradients.dk, Some(outputs.dk.len())),
            ("dv", &gradients.dv, Some(outputs.dv.len())),
            ("dg", &gradients.dg, outputs.dg.as_ref().map(|s| s.len())),
            ("d_bonus", &layout.bonus, outputs.d_bonus.as_ref().map(|s| s.len())),
            ("d_state out", &layout.states, outputs.d_state.as_ref().map(|s| s.len())),
            ("d_normalizer out", &layout.sums, outputs.d_normalizer.as_ref().map(|s| s.len())),
            ("reverse.dq", &gradients.dq, reverse.dq.as_ref().map(|s| s.len())),
            ("reverse.dk", &gradients.dk, reverse.dk.as_ref().map(|s| s.len())),
            ("reverse.dg", &gradients.dg, reverse.dg.as_ref().map(|s| s.len())),
            ("reverse.d_state", &layout.states, reverse.d_state.as_ref().map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        Ok(())
    }

    /// Whether each tensor that the options want is there, and none that they have no use for.
    fn check_presence(&self, inputs: &RawBackwardInputs, outputs: &RawBackwardOutputs) -> Result<()> {
        self.forward.check_inputs(OP, &inputs.forward)?;
        let (options, forward) = (self.options(), &inputs.forward);
        let empty = |tensor: &Strided| tensor.elements() == 0;
        let (normalized, decays) = (options.normalize.is_some(), options.decay != Decay::None);
        let both = options.mode == Mode::Bidirectional;
        let exactly = |arg, address: CUdeviceptr, tensor: &Strided, wanted: bool| match address == 0 && empty(tensor) {
            true => Ok(()),
            false => strided::given(OP, arg, wanted, address != 0),
        };
        let only =
            |arg, address: CUdeviceptr, meant: bool| strided::given(OP, arg, address != 0 && meant, address != 0);
        // The address of an input without elements does not say whether there is one.
        let apart = |arg, address, tensor: &Strided, input: CUdeviceptr| {
            exactly(arg, address, tensor, input != 0 || (both && empty(tensor)))
        };
        let layout = &self.forward.layout;
        exactly("denominator", inputs.denominator, &layout.denominator, normalized)?;
        if normalized {
            exactly("o", inputs.o, &layout.o, true)?;
        }
        only("d_normalizer", inputs.d_normalizer, normalized)?;
        only("d_reverse_state", inputs.d_reverse_state, both)?;
        exactly("dg", outputs.dg, &self.layout.dg, decays)?;
        exactly("d_bonus", outputs.d_bonus, &layout.bonus, forward.bonus != 0)?;
        only("d_normalizer out", outputs.d_normalizer, normalized)?;
        apart("reverse.dq", outputs.reverse_dq, &self.layout.dq, forward.reverse_q)?;
        apart("reverse.dk", outputs.reverse_dk, &self.layout.dk, forward.reverse_k)?;
        apart("reverse.dg", outputs.reverse_dg, &self.layout.dg, forward.reverse_g)?;
        only("reverse.d_state", outputs.reverse_d_state, both)
    }

    fn check_placement(
        &self,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        workspace: CUdeviceptr,
    ) -> Result<()> {
        let (layout, gradients, forward) = (&self.forward.layout, &self.layout, &inputs.forward);
        let required: [Placed<'_>; 4] = [
            ("q", forward.q, &layout.q),
            ("k", forward.k, &layout.k),
            ("v", forward.v, &layout.v),
            ("d_o", inputs.d_o, &layout.o),
        ];
        let optional: [Placed<'_>; 16] = [
            ("g", forward.g, &layout.g),
            ("bonus", forward.bonus, &layout.bonus),
            ("flags", forward.flags, &layout.flags),
            ("cu_seqlens", forward.cu_seqlens, &layout.cu_seqlens),
            ("prefix_len", forward.prefix_len, &layout.prefix_len),
            ("state", forward.state, &layout.states),
            ("normalizer", forward.normalizer, &layout.sums),
            ("reverse.q", forward.reverse_q, &layout.q),
            ("reverse.k", forward.reverse_k, &layout.k),
            ("reverse.g", forward.reverse_g, &layout.g),
            ("reverse.state", forward.reverse_state, &layout.states),
            ("o", inputs.o, &layout.o),
            ("denominator", inputs.denominator, &layout.denominator),
            ("d_state", inputs.d_state, &layout.states),
            ("d_reverse_state", inputs.d_reverse_state, &layout.states),
            ("d_normalizer", inputs.d_normalizer, &layout.sums),
        ];
        let bytes = usize::try_from(self.workspace_bytes()).unwrap_or(usize::MAX);
        let scratch = Strided::dense([1, 1, 1], bytes, 1);
        let written: [Placed<'_>; 12] = [
            ("dq", outputs.dq, &gradients.dq),
            ("dk", outputs.dk, &gradients.dk),
            ("dv", outputs.dv, &gradients.dv),
            ("dg", outputs.dg, &gradients.dg),
            ("d_bonus", outputs.d_bonus, &layout.bonus),
            ("d_state out", outputs.d_state, &layout.states),
            ("d_normalizer out", outputs.d_normalizer, &layout.sums),
            ("reverse.dq", outputs.reverse_dq, &gradients.dq),
            ("reverse.dk", outputs.reverse_dk, &gradients.dk),
            ("reverse.dg", outputs.reverse_dg, &gradients.dg),
            ("reverse.d_state", outputs.reverse_d_state, &layout.states),
            ("workspace", workspace, &scratch),
        ];
        required.iter().chain(&written[..3]).try_for_each(|placed| strided::address(OP, *placed, false))?;
        optional.iter().chain(&written[3..]).try_for_each(|placed| strided::address(OP, *placed, true))?;
        strided::all_disjoint(OP, &written, &[&required[..], &optional[..]].concat())
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
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        self.check_presence(inputs, outputs)?;
        self.check_placement(inputs, outputs, workspace.address)?;
        workspace.check(OP, self.workspace_bytes())?;
        let scratch = self.scratch(workspace.address);
        if self.options().mode == Mode::PrefixRead {
            let prefix = self.forward.prefix_walk(&inputs.forward, scratch.prefix, scratch.prefix_sums);
            let path = prefix.aligned_path(prefix.state_path(self.paths[0][0]));
            // SAFETY: the caller's promise covers the addresses, sizes and strides were checked, and the workspace has room for every
            // part of the scratch.
            unsafe { launch::launch(stream, &prefix, path, scratch.walks) }?;
        }
        let passes: Vec<Pass<'_>> = (0..self.needs.passes).map(|n| self.pass(inputs, outputs, &scratch, n)).collect();
        for (pass, paths) in passes.iter().zip(self.paths) {
            // SAFETY: as above. The launches follow each other on the stream, so both directions may use the same parts.
            unsafe { pass.run(stream, paths) }?;
        }
        // SAFETY: as above.
        unsafe { self.finish(stream, &passes, inputs, outputs, &scratch) }
    }

    /// Sums over directions, over the heads that share a row and over tokens, and what the bonus adds.
    ///
    /// # Safety
    /// As [`run_raw`](Self::run_raw).
    unsafe fn finish(
        &self,
        stream: &CudaStream,
        passes: &[Pass<'_>],
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        scratch: &Scratch,
    ) -> Result<()> {
        let (options, shape, read) = (self.options(), self.shape(), &inputs.forward);
        let Some(first) = passes.first().map(|pass| &pass.forward) else { return Ok(()) };
        let both = passes.len() == 2;
        let has_bonus = options.read == Read::ExclusiveBonus && read.bonus != 0;
        let of_bonus = |other| has_bonus.then_some((scratch.weight, read.bonus, other));
        let targets = [
            (0, scratch.dq, shape.query_heads, read.reverse_q, outputs.dq, outputs.reverse_dq, of_bonus(first.k)),
            (1, scratch.dk, shape.key_heads, read.reverse_k, outputs.dk, outputs.reverse_dk, of_bonus(first.q)),
        ];
        for (which, parts, heads, own, out, own_out, bonus) in targets {
            if !self.needs.apart[which] || heads == 0 {
                continue;
            }
            let sum = (shape.heads / heads, shape.key_dim, options.dtype);
            let terms = Terms { x: parts[0], y: if both && own == 0 { parts[1] } else { 0 }, bonus };
            // SAFETY: the caller's promise; the scratch has f32 rows of every head and direction.
            unsafe { launches::group_sum(stream, first, &terms, sum, out) }?;
            if both && own != 0 {
                let terms = Terms { x: parts[1], y: 0, bonus: None };
                // SAFETY: as above.
                unsafe { launches::group_sum(stream, first, &terms, sum, own_out) }?;
            }
        }
        if has_bonus {
            // SAFETY: as above.
            unsafe { launches::bonus(stream, first, scratch.weight, outputs.d_bonus) }?;
        }
        match options.decay {
            Decay::None => Ok(()),
            Decay::Head => {
                let n = shape.sequences();
                let shared = if both && read.reverse_g == 0 { 2 * n } else { n };
                // SAFETY: as above.
                unsafe { launches::column_sum(stream, scratch.dg, shared, shape.heads, outputs.dg) }?;
                if read.reverse_g == 0 {
                    return Ok(());
                }
                let own = scratch.dg + self.head_decays();
                // SAFETY: as above.
                unsafe { launches::column_sum(stream, own, n, shape.heads, outputs.reverse_dg) }
            }
            Decay::Scalar | Decay::Vector if both && read.reverse_g == 0 => {
                let width = if options.decay == Decay::Vector { shape.key_dim } else { 1 };
                let terms = Terms { x: outputs.dg, y: scratch.dg, bonus: None };
                // SAFETY: as above; a thread reads its element of `dg` before it writes it.
                unsafe { launches::group_sum(stream, first, &terms, (1, width, DType::F32), outputs.dg) }
            }
            _ => Ok(()),
        }
    }
}
