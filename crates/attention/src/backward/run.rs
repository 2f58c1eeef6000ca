//! Running a backward pass.

use super::{Adjoint, BackwardInputs, BackwardPlan, Final, Gradients, RawBackward, Rows, plan::OP};
use crate::{
    Error, Result,
    backward::Gradient,
    hold, memory,
    strided::{self, Placed},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use lookback_device::Element;

impl BackwardPlan {
    /// The gradient of the queries, keys and values, and of the sink.
    ///
    /// # Shapes
    /// As the members of [`BackwardInputs`] and [`Gradients`] say, with the plan's types and strides; `workspace` has
    /// [`workspace_bytes`](Self::workspace_bytes), at a multiple of 16 bytes.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T`, `O` or `G` is not the plan's type; [`Error::Shape`] ← a slice is too short, one is missing or has no
    /// meaning with the plan's options, or there is one of `dk` and `dv` alone; [`Error::Align`] ← a tensor in rows does not begin at a multiple of 16 bytes; [`Error::Alias`]
    /// ← something written overlaps anything else; [`Error::Workspace`] ← too small. Nothing is written on these.
    ///
    /// # Numerics
    /// Products of 16-bit elements with sums in f32; `d_o . v - delta` is taken in f32, weights and their gradients are rounded to 16 bits
    /// before they meet `d_o`, `q` and `k`. A row with `lse = -inf` adds nothing anywhere, a key that no row sees has zeros.
    ///
    /// # Determinism
    /// Bitwise, whatever the order of blocks; `dq` only with [`BackwardOptions::deterministic`](super::BackwardOptions::deterministic).
    ///
    /// # Cost
    /// [`bytes_moved`](Self::bytes_moved) and [`flops`](Self::flops). Two to five launches, and one that clears the sums of `dq` where
    /// blocks add to them.
    pub fn run<T: Element, O: Element, G: Element>(
        &self,
        stream: &CudaStream,
        given: &BackwardInputs<'_, T, O>,
        gradients: Gradients<'_, G>,
        workspace: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        let BackwardInputs { inputs, adjoint: Adjoint { d_o, rows } } = given;
        self.dtypes::<T, G>()?;
        inputs.check_lengths(OP, &self.layout.forward)?;
        strided::length(OP, "d_o", &self.layout.d_o, d_o.len())?;
        for (arg, tensor, len) in [
            ("dq", &self.layout.dq, gradients.dq.as_ref().map(|d| d.len())),
            ("dk", &self.layout.dk, gradients.dk.as_ref().map(|d| d.len())),
            ("dv", &self.layout.dv, gradients.dv.as_ref().map(|d| d.len())),
            ("d_sink", &self.layout.forward.heads, gradients.d_sink.as_ref().map(|d| d.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        let workspace_bytes = workspace.len() as u64 * 4;
        let (raw_inputs, _guards) = inputs.hold(stream);
        let (d_o, _d_o) = memory::input(Some(*d_o), stream);
        let (dq, _dq) = memory::output(gradients.dq, stream);
        let (dk, _dk) = memory::output(gradients.dk, stream);
        let (dv, _dv) = memory::output(gradients.dv, stream);
        let (d_sink, _d_sink) = memory::output(gradients.d_sink, stream);
        let (workspace, _workspace) = memory::output(Some(workspace), stream);
        let raw = RawBackward {
            inputs: raw_inputs,
            d_o,
            dq,
            dk,
            dv,
            d_sink,
            workspace,
            workspace_bytes,
            ..RawBackward::default()
        };
        match rows {
            Rows::Final(rows) => {
                self.rows::<O>(rows)?;
                let (o, _o) = memory::input(Some(rows.o), stream);
                let (lse, _lse) = memory::input(Some(rows.lse), stream);
                let (d_lse, _d_lse) = memory::input(rows.d_lse, stream);
                // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards
                // are held until the launches are queued.
                unsafe { self.run_raw(stream, &RawBackward { o, lse, d_lse, ..raw }) }
            }
            Rows::Prepared(terms) => {
                strided::length(OP, "prepared", &self.layout.terms, terms.len())?;
                let (prepared, _prepared) = memory::input(Some(*terms), stream);
                // An empty tensor may have no address, and is prepared all the same.
                // SAFETY: as above.
                unsafe { self.run_raw(stream, &RawBackward { prepared, ..raw }) }
            }
        }
    }

    /// What blocks of keys need of the rows' results, once for all of them: `terms` gets [`terms_len`](Self::terms_len) elements.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn prepare<T: Element, O: Element>(
        &self,
        stream: &CudaStream,
        d_o: &dyn DevicePtr<T>,
        rows: &Final<'_, O>,
        terms: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        strided::dtype(OP, "d_o", self.options.attention.dtype, T::DTYPE)?;
        self.rows::<O>(rows)?;
        strided::length(OP, "d_o", &self.layout.d_o, d_o.len())?;
        strided::length(OP, "terms", &self.layout.terms, terms.len())?;
        let (d_o, _d_o) = memory::input(Some(d_o), stream);
        let (o, _o) = memory::input(Some(rows.o), stream);
        let (lse, _lse) = memory::input(Some(rows.lse), stream);
        let (d_lse, _d_lse) = memory::input(rows.d_lse, stream);
        let (terms, _terms) = memory::output(Some(terms), stream);
        let raw = RawBackward { d_o, o, lse, d_lse, ..RawBackward::default() };
        let read = self.check_rows(&raw)?;
        let written: Placed<'_> = ("terms", terms, &self.layout.terms);
        hold::rows(OP, written)?;
        strided::disjoint(OP, written, &read)?;
        // SAFETY: the slices live on the stream's context and have the elements that the plan's strides reach; sizes, strides and
        // alignment were checked, and the guards are held until the launch is queued.
        unsafe { self.launch_prepare(stream, &raw, terms) }
    }

    fn dtypes<T: Element, G: Element>(&self) -> Result<()> {
        let dtype = self.options.attention.dtype;
        strided::dtype(OP, "inputs", dtype, T::DTYPE)?;
        strided::dtype(OP, "gradients", self.options.gradient.dtype(dtype), G::DTYPE)
    }

    fn rows<O: Element>(&self, rows: &Final<'_, O>) -> Result<()> {
        let (attention, layout) = (&self.options.attention, &self.layout.forward);
        strided::dtype(OP, "o", attention.output.dtype(attention.dtype), O::DTYPE)?;
        strided::length(OP, "o", &layout.o, rows.o.len())?;
        strided::length(OP, "lse", &layout.lse, rows.lse.len())?;
        rows.d_lse.map_or(Ok(()), |d| strided::length(OP, "d_lse", &layout.lse, d.len()))
    }

    /// What [`prepare`](Self::prepare) reads, at addresses that it can read.
    fn check_rows(&self, raw: &RawBackward) -> Result<[Placed<'_>; 4]> {
        let layout = &self.layout;
        let read = [
            ("d_o", raw.d_o, &layout.d_o),
            ("o", raw.o, &layout.forward.o),
            ("lse", raw.lse, &layout.forward.lse),
            ("d_lse", raw.d_lse, &layout.forward.lse),
        ];
        hold::rows(OP, read[0])?;
        hold::rows(OP, read[1])?;
        strided::address(OP, read[2], false)?;
        strided::address(OP, read[3], true)?;
        Ok(read)
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`], [`Error::Workspace`], and those of [`lookback_device::launch()`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or readable and writable (gradients and workspace) over the plan's shape and
    ///   strides until the launches have ended, and `tile_keys` over `tile_count` entries.
    /// * Nothing else writes that memory meanwhile, and nothing reads what is written.
    pub unsafe fn run_raw(&self, stream: &CudaStream, raw: &RawBackward) -> Result<()> {
        let layout = &self.layout;
        self.check_raw(raw)?;
        let terms = if raw.prepared == 0 { raw.workspace } else { raw.prepared };
        let sums = raw.workspace + self.terms_bytes();
        let wants_keys = raw.dk != 0 && layout.dk.elements() > 0;
        let wants_queries = raw.dq != 0 && layout.dq.elements() > 0;
        let adds = wants_queries && !self.options.deterministic && layout.dk.elements() > 0 && raw.dk != 0;
        // SAFETY: the caller's promise, passed on; everything was checked.
        unsafe {
            if raw.prepared == 0 {
                self.launch_prepare(stream, raw, terms)?;
            }
            if adds {
                let elsewhere = self.options.gradient != Gradient::Accumulate;
                let dq = if elsewhere { (sums, layout.sums.strides) } else { (raw.dq, layout.dq.strides) };
                if elsewhere {
                    self.clear_sums(stream, sums)?;
                }
                self.launch_keys(stream, raw, terms, dq)?;
                if elsewhere {
                    self.launch_finish(stream, sums, raw.dq)?;
                }
            } else {
                if wants_keys {
                    self.launch_keys(stream, raw, terms, (0, [0; 3]))?;
                }
                if wants_queries {
                    self.launch_queries(stream, raw, terms)?;
                }
            }
            if raw.d_sink != 0 && layout.forward.heads.elements() > 0 {
                self.launch_sink(stream, raw, terms)?;
            }
        }
        Ok(())
    }

    /// Presence, alignment and overlap.
    fn check_raw(&self, raw: &RawBackward) -> Result<()> {
        let layout = &self.layout;
        raw.inputs.check(OP, &self.shape, &self.options.attention, &layout.forward)?;
        let list = raw.inputs.tile_list();
        let mut read: Vec<Placed<'_>> = raw.inputs.placed(&layout.forward, &list).into();
        if raw.prepared == 0 {
            read.extend(self.check_rows(raw)?);
        } else {
            let more: [Placed<'_>; 2] = [("d_o", raw.d_o, &layout.d_o), ("prepared", raw.prepared, &layout.terms)];
            hold::rows(OP, more[0])?;
            hold::rows(OP, more[1])?;
            read.extend(more);
        }
        let elements = layout.dk.elements();
        if elements > 0 {
            strided::given(OP, "dv", raw.dk != 0, raw.dv != 0)?;
        }
        if raw.d_sink != 0 {
            strided::given(OP, "sink", true, raw.inputs.sink != 0)?;
        }
        let need = self.needs(raw);
        if raw.workspace_bytes < need {
            return Err(Error::Workspace { op: OP, need, got: raw.workspace_bytes });
        }
        if need > 0 && (raw.workspace == 0 || !raw.workspace.is_multiple_of(16)) {
            return Err(Error::Align { op: OP, arg: "workspace", need: 16, addr: raw.workspace });
        }
        let words = usize::try_from(need / 4).unwrap_or(usize::MAX);
        let workspace = strided::Strided::dense([1, 1, 1], words, 4);
        let written: [Placed<'_>; 5] = [
            ("dq", raw.dq, &layout.dq),
            ("dk", raw.dk, &layout.dk),
            ("dv", raw.dv, &layout.dv),
            ("d_sink", raw.d_sink, &layout.forward.heads),
            ("workspace", raw.workspace, &workspace),
        ];
        for placed in &written[..3] {
            if placed.1 != 0 {
                hold::rows(OP, *placed)?;
            }
        }
        strided::address(OP, written[3], true)?;
        strided::all_disjoint(OP, &written, &read)
    }

    /// Bytes of the workspace that this run needs.
    fn needs(&self, raw: &RawBackward) -> u64 {
        let terms = if raw.prepared == 0 { self.terms_bytes() } else { 0 };
        let sums = if raw.dq == 0 || raw.dk == 0 { 0 } else { self.layout.sums.bytes() };
        if sums > 0 { self.terms_bytes() + sums } else { terms }
    }
}
