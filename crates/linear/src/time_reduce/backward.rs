//! The gradient: the same reduction with queries and adjoints in place of keys and values, and its adjoint for each token.

use super::{
    Map, Options, Plan, Policy, RawWorkspace, Workspace,
    adjoint::{self, Pull},
    job::{Job, Operand, Roles},
    workspace,
};
use crate::{
    DeviceInfo, Result, Shape, memory,
    strided::{self, Placed, Strided},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::Element;

pub(super) const OP: &str = "time_reduce_backward";
/// Greatest `value_dim`: a block has whole rows of values.
const MAX_VALUE_DIM: usize = 256;
/// Greatest extent of the grid's y and z.
const MAX_GRID: usize = 65_535;

/// What the backward pass reads. `q`, `k`, `v`, `o` and `d_o` have the plan's strides (`d_o` those of `o`).
pub struct BackwardInputs<'a, T> {
    /// `[B,T,query_heads,K]`.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B,T,key_heads,K]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,T,H,V]`.
    pub v: &'a dyn DevicePtr<T>,
    /// As for the forward pass.
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// As for the forward pass.
    pub prefix_len: Option<&'a dyn DevicePtr<i32>>,
    /// `[N,H,F,V]` of the forward pass.
    pub kv: &'a dyn DevicePtr<f32>,
    /// `[N,H,F]` of the forward pass, with a normaliser or [`Map::Softmax`].
    pub ksum: Option<&'a dyn DevicePtr<f32>>,
    /// `[B,T,H,V]` of the forward pass, with a normaliser.
    pub o: Option<&'a dyn DevicePtr<T>>,
    /// `[B,T,H]` of the forward pass, with a normaliser.
    pub den: Option<&'a dyn DevicePtr<f32>>,
    /// `[B,T,H,V]`, adjoint of `o`.
    pub d_o: &'a dyn DevicePtr<T>,
    /// `[N,H,F,V]`, adjoint of `kv`; zero without.
    pub d_kv: Option<&'a dyn DevicePtr<f32>>,
    /// `[N,H,F]`, adjoint of `ksum`; zero without. Not with [`Map::Softmax`].
    pub d_ksum: Option<&'a dyn DevicePtr<f32>>,
}

/// What the backward pass writes, without gaps.
pub struct BackwardOutputs<'a, T> {
    /// `[B,T,query_heads,K]`.
    pub dq: &'a mut dyn DevicePtrMut<T>,
    /// `[B,T,key_heads,K]`, 0 after a prefix.
    pub dk: &'a mut dyn DevicePtrMut<T>,
    /// `[B,T,H,V]`, 0 after a prefix.
    pub dv: &'a mut dyn DevicePtrMut<T>,
}

/// [`BackwardInputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawBackwardInputs {
    /// See [`BackwardInputs::q`].
    pub q: CUdeviceptr,
    /// See [`BackwardInputs::k`].
    pub k: CUdeviceptr,
    /// See [`BackwardInputs::v`].
    pub v: CUdeviceptr,
    /// See [`BackwardInputs::cu_seqlens`].
    pub cu_seqlens: CUdeviceptr,
    /// See [`BackwardInputs::prefix_len`].
    pub prefix_len: CUdeviceptr,
    /// See [`BackwardInputs::kv`].
    pub kv: CUdeviceptr,
    /// See [`BackwardInputs::ksum`].
    pub ksum: CUdeviceptr,
    /// See [`BackwardInputs::o`].
    pub o: CUdeviceptr,
    /// See [`BackwardInputs::den`].
    pub den: CUdeviceptr,
    /// See [`BackwardInputs::d_o`].
    pub d_o: CUdeviceptr,
    /// See [`BackwardInputs::d_kv`].
    pub d_kv: CUdeviceptr,
    /// See [`BackwardInputs::d_ksum`].
    pub d_ksum: CUdeviceptr,
}

/// [`BackwardOutputs`] as device addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawBackwardOutputs {
    /// See [`BackwardOutputs::dq`].
    pub dq: CUdeviceptr,
    /// See [`BackwardOutputs::dk`].
    pub dk: CUdeviceptr,
    /// See [`BackwardOutputs::dv`].
    pub dv: CUdeviceptr,
}

/// Gradients and what the launches hand each other, as they lie in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    dq: Strided,
    dk: Strided,
    dv: Strided,
    dn: Strided,
    /// Gradients of one head each, in f32, where heads share a row or values come in parts.
    heads: Strided,
}

/// Addresses within the workspace.
struct Scratch {
    dn: CUdeviceptr,
    w: CUdeviceptr,
    d_kv: CUdeviceptr,
    d_ksum: CUdeviceptr,
    means: CUdeviceptr,
    heads: CUdeviceptr,
    end: CUdeviceptr,
}

/// A checked backward pass.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    forward: Plan,
    job: Job,
    policy: Policy,
    layout: Layout,
}

impl BackwardPlan {
    /// Checks sizes and strides and finds the kernels.
    ///
    /// # Errors
    /// Those of [`Plan::new`]; [`Error::Range`](crate::Error::Range) ← `value_dim` above 256, or more than 65535 rows or heads.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let forward = Plan::named(OP, shape, options, device)?;
        strided::range(OP, "value_dim", shape.value_dim, 1, MAX_VALUE_DIM)?;
        strided::range(OP, "heads", shape.heads, 0, MAX_GRID)?;
        strided::range(OP, "batch", shape.batch, 0, MAX_GRID)?;
        let swapped = Shape { query_heads: shape.key_heads, key_heads: shape.query_heads, ..*shape };
        let policy = options.policy.unwrap_or(Policy::of(shape, device));
        let job = Job::new(OP, &swapped, options.dtype, options.map, policy, device)?;
        let size = options.dtype.size();
        let dense =
            |heads: usize, width: usize, size: usize| Strided::dense([shape.batch, shape.seq_len, heads], width, size);
        let in_parts = options.map == Map::Taylor && shape.value_dim > adjoint::TAYLOR_VALUES;
        let grouped = shape.query_heads != shape.heads || shape.key_heads != shape.heads || in_parts;
        let layout = Layout {
            dq: dense(shape.query_heads, shape.key_dim, size),
            dk: dense(shape.key_heads, shape.key_dim, size),
            dv: dense(shape.heads, shape.value_dim, size),
            dn: dense(shape.heads, shape.value_dim, size),
            heads: if grouped { dense(shape.heads, shape.key_dim, 4) } else { Strided::NONE },
        };
        Ok(Self { forward, job, policy, layout })
    }

    fn scratch(&self, from: CUdeviceptr) -> Scratch {
        let Plan { options, layout, .. } = &self.forward;
        let mut end = from;
        let mut take = |wanted: bool, bytes: u64| {
            let at = end.next_multiple_of(workspace::ALIGN);
            if wanted {
                end = at.saturating_add(bytes);
            }
            at
        };
        let normalizes = options.normalize.is_some();
        Scratch {
            dn: take(normalizes, self.layout.dn.bytes()),
            w: take(normalizes, layout.den.bytes()),
            d_kv: take(true, layout.kv.bytes()),
            d_ksum: take(normalizes, layout.ksum.bytes()),
            means: take(options.map == Map::Softmax, layout.ksum.bytes()),
            heads: take(true, self.layout.heads.bytes()),
            end,
        }
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, in a [`Workspace`].
    pub fn workspace_bytes(&self) -> u64 {
        // Cells begin at a multiple of the alignment, so the same holds for every address.
        let base = workspace::ALIGN;
        let scratch = self.scratch(base).end - base;
        workspace::bytes_for(self.job.cells_bytes().saturating_add(workspace::ALIGN).saturating_add(scratch))
    }

    /// Bytes that must cross the memory bus at least: the tensors of both passes, `q`, `k` and `v` twice.
    pub fn bytes_moved(&self) -> u64 {
        let super::plan::Layout { q, k, v, o, .. } = &self.forward.layout;
        2 * (q.bytes() + k.bytes() + v.bytes()) + 3 * o.bytes() + q.bytes() + k.bytes()
    }

    /// Floating-point operations of the products.
    pub fn flops(&self) -> u64 {
        2 * self.job.flops()
    }

    /// Gradients of `q`, `k` and `v`.
    ///
    /// # Shapes
    /// As the members of [`BackwardInputs`] and [`BackwardOutputs`] say.
    ///
    /// # Errors
    /// As [`Plan::run`]; nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32`; for 16-bit types adjoints of rows, features and states are rounded to the type where they are multiplied.
    ///
    /// # Determinism
    /// Bitwise; heads that share a row are added in order.
    ///
    /// # Cost
    /// Three launches, one more for each of a normaliser, a softmax, shared queries and shared keys; for Taylor features two more for each 64
    /// values after the first.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let layout = &self.forward.layout;
        strided::dtype(OP, "q", self.forward.options.dtype, T::DTYPE)?;
        for (arg, tensor, slice) in [
            ("q", &layout.q, inputs.q),
            ("k", &layout.k, inputs.k),
            ("v", &layout.v, inputs.v),
            ("d_o", &layout.o, inputs.d_o),
        ] {
            strided::length(OP, arg, tensor, slice.len())?;
        }
        strided::length(OP, "kv", &layout.kv, inputs.kv.len())?;
        inputs.o.map_or(Ok(()), |o| strided::length(OP, "o", &layout.o, o.len()))?;
        for (arg, tensor, slice) in [
            ("ksum", &layout.ksum, inputs.ksum),
            ("den", &layout.den, inputs.den),
            ("d_kv", &layout.kv, inputs.d_kv),
            ("d_ksum", &layout.ksum, inputs.d_ksum),
        ] {
            slice.map_or(Ok(()), |s| strided::length(OP, arg, tensor, s.len()))?;
        }
        for (arg, tensor, slice) in [
            ("cu_seqlens", &layout.cu_seqlens, inputs.cu_seqlens),
            ("prefix_len", &layout.prefix_len, inputs.prefix_len),
        ] {
            slice.map_or(Ok(()), |s| strided::length(OP, arg, tensor, s.len()))?;
        }
        for (arg, tensor, slice) in [
            ("dq", &self.layout.dq, &outputs.dq),
            ("dk", &self.layout.dk, &outputs.dk),
            ("dv", &self.layout.dv, &outputs.dv),
        ] {
            strided::length(OP, arg, tensor, slice.len())?;
        }
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (cu_seqlens, _cu_seqlens) = memory::input(inputs.cu_seqlens, stream);
        let (prefix_len, _prefix_len) = memory::input(inputs.prefix_len, stream);
        let (kv, _kv) = memory::input(Some(inputs.kv), stream);
        let (ksum, _ksum) = memory::input(inputs.ksum, stream);
        let (o, _o) = memory::input(inputs.o, stream);
        let (den, _den) = memory::input(inputs.den, stream);
        let (d_o, _d_o) = memory::input(Some(inputs.d_o), stream);
        let (d_kv, _d_kv) = memory::input(inputs.d_kv, stream);
        let (d_ksum, _d_ksum) = memory::input(inputs.d_ksum, stream);
        let (dq, _dq) = memory::output(Some(outputs.dq), stream);
        let (dk, _dk) = memory::output(Some(outputs.dk), stream);
        let (dv, _dv) = memory::output(Some(outputs.dv), stream);
        let (workspace, _workspace) = workspace.hold(stream);
        let raw = RawBackwardInputs { q, k, v, cu_seqlens, prefix_len, kv, ksum, o, den, d_o, d_kv, d_ksum };
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are
        // held until the launches are queued; the workspace was zeroed when it was made and is borrowed for these launches alone.
        unsafe { self.run_raw(stream, &raw, &RawBackwardOutputs { dq, dk, dv }, workspace) }
    }

    fn check(&self, inputs: &RawBackwardInputs, outputs: &RawBackwardOutputs) -> Result<()> {
        let (layout, options) = (&self.forward.layout, &self.forward.options);
        let normalizes = options.normalize.is_some();
        let softmax = options.map == Map::Softmax;
        strided::given(OP, "cu_seqlens", self.forward.shape.packed.is_some(), inputs.cu_seqlens != 0)?;
        let some = layout.o.elements() > 0;
        strided::given(OP, "o", normalizes && some, inputs.o != 0 && some)?;
        strided::given(OP, "den", normalizes && some, inputs.den != 0 && some)?;
        let states = layout.ksum.elements() > 0;
        strided::given(OP, "ksum", (normalizes || softmax) && states, inputs.ksum != 0 && states)?;
        if softmax {
            strided::given(OP, "d_ksum", false, inputs.d_ksum != 0)?;
        }
        let read: [Placed<'_>; 12] = [
            ("q", inputs.q, &layout.q),
            ("k", inputs.k, &layout.k),
            ("v", inputs.v, &layout.v),
            ("d_o", inputs.d_o, &layout.o),
            ("kv", inputs.kv, &layout.kv),
            ("ksum", inputs.ksum, &layout.ksum),
            ("o", inputs.o, &layout.o),
            ("den", inputs.den, &layout.den),
            ("d_kv", inputs.d_kv, &layout.kv),
            ("d_ksum", inputs.d_ksum, &layout.ksum),
            ("cu_seqlens", inputs.cu_seqlens, &layout.cu_seqlens),
            ("prefix_len", inputs.prefix_len, &layout.prefix_len),
        ];
        let written: [Placed<'_>; 3] = [
            ("dq", outputs.dq, &self.layout.dq),
            ("dk", outputs.dk, &self.layout.dk),
            ("dv", outputs.dv, &self.layout.dv),
        ];
        for (i, placed) in read.into_iter().enumerate() {
            strided::address(OP, placed, i > 4)?;
        }
        for placed in written {
            strided::address(OP, placed, false)?;
        }
        strided::all_disjoint(OP, &written, &read)
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// As [`Plan::run_raw`].
    ///
    /// # Safety
    /// As [`Plan::run_raw`].
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        workspace: RawWorkspace,
    ) -> Result<()> {
        self.check(inputs, outputs)?;
        let parts = workspace.parts(OP, self.workspace_bytes())?;
        let Plan { shape, options, layout, .. } = &self.forward;
        if self.forward.is_empty() || shape.seq_len == 0 {
            return Ok(());
        }
        let scratch = self.scratch(parts.cells + self.job.cells_bytes());
        let softmax = options.map == Map::Softmax;
        let operand = |address, tensor| Operand { address, tensor };
        let (q, k, v) = (operand(inputs.q, &layout.q), operand(inputs.k, &layout.k), operand(inputs.v, &layout.v));
        let d_o = operand(inputs.d_o, &layout.o);
        let dn = if options.normalize.is_some() { operand(scratch.dn, &self.layout.dn) } else { d_o };
        let w = if options.normalize.is_some() { scratch.w } else { 0 };
        let lse = if softmax { inputs.ksum } else { 0 };
        // SAFETY: the caller's promise; the scratch lies in the workspace behind the cells.
        unsafe {
            if options.normalize.is_some() {
                let rows = (d_o, operand(inputs.o, &layout.o), inputs.den);
                adjoint::prepare(stream, shape, options.dtype, rows, (scratch.dn, scratch.w))?;
            }
            // dKV = scale sum of phi(q) dn^T + d_kv, read by phi(k): dv.
            let roles = Roles {
                k: q,
                v: dn,
                q: k,
                o: operand(outputs.dv, &self.layout.dv),
                weights: w,
                lse,
                cu_seqlens: inputs.cu_seqlens,
                prefix_len: 0,
                read_len: inputs.prefix_len,
                den: 0,
                kv: scratch.d_kv,
                ksum: if w != 0 { scratch.d_ksum } else { 0 },
                kv_in: inputs.d_kv,
                ksum_in: inputs.d_ksum,
                scale: 1.0,
                sum_scale: options.scale,
                normalize: None,
            };
            self.job.launch(stream, &roles, parts)?;
            let dq = Pull {
                x: dn,
                y: q,
                m: inputs.kv,
                e: if w != 0 { inputs.ksum } else { 0 },
                w,
                lse: 0,
                cu_seqlens: inputs.cu_seqlens,
                len: 0,
                out: outputs.dq,
                out_f32: false,
                scale: options.scale,
                lift: options.scale,
            };
            // The query of a softmax is read as it is.
            let query_map = if softmax { Map::Identity } else { options.map };
            self.pull(stream, query_map, dq, shape.query_heads, &scratch)?;
            if softmax {
                let rows = layout.ksum.elements();
                adjoint::row_dot(stream, (rows, shape.value_dim), (inputs.kv, scratch.d_kv), scratch.means)?;
            }
            let e = match (softmax, w != 0) {
                (true, _) => scratch.means,
                (_, true) => scratch.d_ksum,
                _ => inputs.d_ksum,
            };
            let len = inputs.prefix_len;
            let dk =
                Pull { x: v, y: k, m: scratch.d_kv, e, w: 0, lse, len, out: outputs.dk, scale: 1.0, lift: 1.0, ..dq };
            self.pull(stream, options.map, dk, shape.key_heads, &scratch)
        }
    }

    /// # Safety
    /// As [`Plan::run_raw`].
    unsafe fn pull(
        &self,
        stream: &CudaStream,
        map: Map,
        pull: Pull<'_>,
        heads: usize,
        scratch: &Scratch,
    ) -> Result<()> {
        let Plan { shape, options, .. } = &self.forward;
        let tokens = self.policy.apply_tokens;
        let in_parts = map == Map::Taylor && shape.value_dim > adjoint::TAYLOR_VALUES;
        let whole = heads == shape.heads && !in_parts;
        let each = if whole { pull } else { Pull { out: scratch.heads, out_f32: true, ..pull } };
        // SAFETY: the caller's promise.
        unsafe {
            if map == Map::Taylor {
                adjoint::pull_taylor(stream, shape, (options.dtype, tokens), &each)?;
            } else {
                adjoint::pull(stream, shape, (options.dtype, map, tokens), &each)?;
            }
            if whole {
                return Ok(());
            }
            adjoint::group_sum(stream, shape, (options.dtype, heads), scratch.heads, pull.out)
        }
    }
}
