//! The workspace, and the walks over what lies in it.

use super::Frame;
use crate::{
    DeviceInfo, Features, Path, Result, Stride,
    strided::Strided,
    walk::{self, Gate, Order, Rows, Side, States, Walk},
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};

/// Parts begin at multiples of this.
const PART: u64 = 256;

/// Where everything is; in bytes from the workspace's begin until [`Work::at`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    pub flow_q: u64,
    pub flow_k: u64,
    /// `f32[4,H,B*L]`.
    pub query_scalars: u64,
    /// `f32[6,H,B*S]`.
    pub key_scalars: u64,
    /// `f32[N,H,16 or 1,4,key tile]`.
    pub vectors: u64,
    /// A row of zeros of the element type, what a walk adds that only reads. Not causal.
    pub zeros: u64,
    /// `f32[N,H,K,V]`: the sum of `flow_k v`. Not causal.
    pub state: u64,
    /// Adjoints in f32, of the backward pass.
    pub d_flow_q: u64,
    pub d_flow_k: u64,
    pub d_state: u64,
    /// What walks want for themselves.
    pub walks: u64,
    /// Length of all but the walks' own.
    bytes: u64,
}

impl Work {
    /// The parts that a pass needs, one after the other.
    pub fn new(frame: &Frame, backward: bool) -> Self {
        let shape = frame.shape;
        let mut bytes = 0_u64;
        let mut part = |wanted: bool, len: u64| {
            let at = bytes;
            bytes = bytes.saturating_add(if wanted { len } else { 0 }).next_multiple_of(PART);
            at
        };
        let (q, k) = (frame.q.elements(), frame.k.elements());
        let size = frame.options.dtype.size() as u64;
        let product = |factors: &[usize]| factors.iter().fold(4_u64, |n, f| n.saturating_mul(*f as u64));
        let states = product(&[shape.sequences(), shape.heads, shape.key_dim, shape.value_dim]);
        let runs = if shape.causal { 16 } else { 1 };
        let mut work = Self {
            flow_q: part(true, q.saturating_mul(size)),
            flow_k: part(true, k.saturating_mul(size)),
            query_scalars: part(true, product(&[4, shape.heads, shape.batch, shape.queries])),
            key_scalars: part(true, product(&[6, shape.heads, shape.batch, shape.keys])),
            vectors: part(true, product(&[shape.sequences(), shape.heads, runs, 4, frame.key_tile()])),
            zeros: part(!shape.causal, product(&[shape.key_dim.max(shape.value_dim)])),
            state: part(!shape.causal, states),
            d_flow_q: part(backward, q.saturating_mul(4)),
            d_flow_k: part(backward, k.saturating_mul(4)),
            d_state: part(backward && !shape.causal, states),
            walks: 0,
            bytes: 0,
        };
        (work.walks, work.bytes) = (bytes, bytes);
        work
    }

    /// As addresses.
    pub fn at(self, base: CUdeviceptr) -> Self {
        let Self { flow_q, flow_k, query_scalars, key_scalars, vectors, zeros, state, .. } = self;
        Self {
            flow_q: base + flow_q,
            flow_k: base + flow_k,
            query_scalars: base + query_scalars,
            key_scalars: base + key_scalars,
            vectors: base + vectors,
            zeros: base + zeros,
            state: base + state,
            d_flow_q: base + self.d_flow_q,
            d_flow_k: base + self.d_flow_k,
            d_state: base + self.d_state,
            walks: base + self.walks,
            bytes: self.bytes,
        }
    }
}

/// The caller's tensors that walks read and write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub cu_seqlens: CUdeviceptr,
    pub cu_seqlens_k: CUdeviceptr,
    pub v: Rows,
    /// The output, or its adjoint in the backward pass.
    pub out: Rows,
    /// Adjoint of `v`, in the backward pass.
    pub dv: Rows,
}

/// A tensor of the caller's.
pub(super) fn rows(at: CUdeviceptr, tensor: &Strided) -> Rows {
    let [batch, token, head] = tensor.strides;
    Rows { at, stride: Stride { batch, token, head }, group: 1 }
}

/// Which tokens a walk visits.
#[derive(Clone, Copy, PartialEq)]
enum Over {
    Queries,
    Keys,
}

impl Frame {
    /// Rows of keys without gaps.
    fn features(&self, at: CUdeviceptr, over: Over) -> Rows {
        let tokens = if over == Over::Queries { self.shape.queries } else { self.shape.keys };
        Rows { at, stride: Stride::dense(tokens, self.shape.heads, self.shape.key_dim), group: 1 }
    }

    /// One row for all tokens.
    fn constant(at: CUdeviceptr) -> Rows {
        Rows { at, stride: Stride::default(), group: 1 }
    }

    fn walk(&self, over: Over, caller: &Caller, [q, k, v, o]: [Rows; 4], [key_dim, value_dim]: [usize; 2]) -> Walk {
        let shape = &self.shape;
        let (seq_len, cu_seqlens) = match over {
            Over::Queries => (shape.queries, caller.cu_seqlens),
            Over::Keys => (shape.keys, caller.cu_seqlens_k),
        };
        Walk {
            dtype: self.options.dtype,
            batch: shape.batch,
            seq_len,
            sequences: shape.sequences(),
            heads: shape.heads,
            key_dim,
            features: Features::Identity,
            value_dim,
            q,
            k,
            v,
            gate: Gate { side: Side::None, at: 0, stride: Stride::default() },
            bonus: 0,
            flags: 0,
            flags_stride_batch: 0,
            flag_mask: 1,
            flag_mask_reverse: 2,
            cu_seqlens,
            prefix_len: 0,
            h0: States::default(),
            h_final: States::default(),
            z0: 0,
            z_final: 0,
            den: 0,
            o,
            out_f32: false,
            accumulate: false,
            split: shape.heads,
            exact: false,
            scale: 1.0,
            normalize: None,
            reverse: false,
            order: Order::DecayAddRead,
            late_cut: false,
            shift: false,
            sm_count: self.sm_count,
        }
    }

    fn states(&self, at: CUdeviceptr) -> States {
        States::dense(at, self.shape.heads, self.shape.key_dim, self.shape.value_dim)
    }

    /// The sum of `k v` over all tokens, read by nobody.
    fn sum(&self, over: Over, caller: &Caller, [k, v]: [Rows; 2], state: CUdeviceptr) -> Walk {
        let dims = [self.shape.key_dim, self.shape.value_dim];
        let none = Rows { at: 0, ..v };
        Walk { h_final: self.states(state), ..self.walk(over, caller, [k, k, v, none], dims) }
    }

    /// `o = scale state^T q` at every token: nothing is added but zeros.
    fn read(
        &self,
        over: Over,
        caller: &Caller,
        zeros: u64,
        [q, o]: [Rows; 2],
        (state, dims): (States, [usize; 2]),
    ) -> Walk {
        let zeros = Self::constant(zeros);
        Walk { h0: state, ..self.walk(over, caller, [q, zeros, zeros, o], dims) }
    }

    /// The walks of the forward pass: one, or with all keys before all queries the sum and its reading.
    pub(super) fn forward_walks(&self, work: &Work, caller: &Caller) -> Vec<Walk> {
        let (keys, values) = (self.shape.key_dim, self.shape.value_dim);
        let q = self.features(work.flow_q, Over::Queries);
        let k = self.features(work.flow_k, Over::Keys);
        let Caller { v, out, .. } = *caller;
        let scale = 1.0 / self.factor();
        if self.shape.causal {
            return vec![Walk { scale, ..self.walk(Over::Queries, caller, [q, k, v, out], [keys, values]) }];
        }
        let state = (self.states(work.state), [keys, values]);
        let read = self.read(Over::Queries, caller, work.zeros, [q, out], state);
        vec![self.sum(Over::Keys, caller, [k, v], work.state), Walk { scale, ..read }]
    }

    /// The walks of the backward pass: the forward one with exchanged roles. Those of the first and second tensor are f32.
    pub(super) fn backward_walks(&self, work: &Work, caller: &Caller) -> Vec<Walk> {
        let (keys, values) = (self.shape.key_dim, self.shape.value_dim);
        let q = self.features(work.flow_q, Over::Queries);
        let k = self.features(work.flow_k, Over::Keys);
        let Caller { v, out: d_out, dv, .. } = *caller;
        let dq = self.features(work.d_flow_q, Over::Queries);
        let dk = self.features(work.d_flow_k, Over::Keys);
        // The adjoint of flow_q is of flow_q / factor, so that only the others have the factor to take back.
        let scale = 1.0 / self.factor();
        let by_keys = [keys, values];
        let by_values = [values, keys];
        let float = |walk| Walk { out_f32: true, ..walk };
        if self.shape.causal {
            let walk = |rows, dims| self.walk(Over::Queries, caller, rows, dims);
            let back = |walk| Walk { scale, reverse: true, order: Order::AddReadDecay, ..walk };
            return vec![
                float(walk([d_out, v, k, dq], by_values)),
                float(back(walk([v, d_out, q, dk], by_values))),
                back(walk([k, q, d_out, dv], by_keys)),
            ];
        }
        let read = |over, rows, state: States, dims| self.read(over, caller, work.zeros, rows, (state, dims));
        let (state, d_state) = (self.states(work.state), self.states(work.d_state));
        vec![
            self.sum(Over::Keys, caller, [k, v], work.state),
            self.sum(Over::Queries, caller, [q, d_out], work.d_state),
            float(read(Over::Queries, [d_out, dq], state.transposed(), by_values)),
            float(Walk { scale, ..read(Over::Keys, [v, dk], d_state.transposed(), by_values) }),
            Walk { scale, ..read(Over::Keys, [k, dv], d_state, by_keys) },
        ]
    }
}

/// What runs each walk of a pass.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    paths: Vec<Path>,
    /// Bytes that the walks want for themselves.
    bytes: u64,
}

impl Paths {
    /// Chooses kernels and checks that the device takes them. Addresses do not matter, but whether they are there does.
    pub fn new(walks: &[Walk], device: &DeviceInfo) -> Result<Self> {
        let mut paths = Self { paths: Vec::new(), bytes: 0 };
        for walk in walks {
            let path = walk.resolve(Path::Auto);
            let path = if walk.o.at == 0 { walk.state_path(path) } else { path };
            walk.check(path, device)?;
            paths.bytes = paths.bytes.max(walk.workspace_bytes(path));
            paths.paths.push(path);
        }
        Ok(paths)
    }

    /// The workspace of the pass.
    pub fn workspace_bytes(&self, work: &Work) -> u64 {
        work.bytes.saturating_add(self.bytes)
    }

    /// Launches the walks one after the other.
    ///
    /// # Safety
    /// Those of [`walk::launch`], for each when the ones before have ended; `workspace` has the walks' bytes.
    pub unsafe fn launch(&self, stream: &CudaStream, walks: &[Walk], workspace: CUdeviceptr) -> Result<()> {
        for (walk, path) in walks.iter().zip(&self.paths) {
            // SAFETY: the caller's promise; the walks follow each other on the stream, so all may use the workspace.
            unsafe { walk::launch(stream, walk, walk.aligned_path(*path), workspace) }?;
        }
        Ok(())
    }
}
