//! Plans: shapes and options checked, walks laid out, memory counted.

use crate::{
    DType, Decay, DeviceInfo, Error, Features, Mode, Options, Path, RawInputs, RawOutputs, Read, Result, Shape, Stride,
    strided::{self, MAX_EXTENT, Strided},
    walk::{Gate, Order, Rows, Side, States, Walk},
};
use cudarc::driver::sys::CUdeviceptr;

/// Greatest number of heads: they are the grid's y.
const MAX_HEADS: usize = 65_535;
/// Greatest extent of a key.
pub const MAX_KEY_DIM: usize = 256;

/// The tensors of a shape, with their strides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub q: Strided,
    pub k: Strided,
    pub v: Strided,
    pub g: Strided,
    pub o: Strided,
    /// `[H,K]` f32.
    pub bonus: Strided,
    /// `[B,T]` u8.
    pub flags: Strided,
    /// `[N+1]` i32.
    pub cu_seqlens: Strided,
    /// `[N]` i32.
    pub prefix_len: Strided,
    /// `[N,H,K,V]` f32, where `K` is that of the features.
    pub states: Strided,
    /// `[N,H,K]` f32, likewise.
    pub sums: Strided,
    /// `[B,T,H]` f32.
    pub denominator: Strided,
}

fn steps(stride: Stride) -> [i64; 3] {
    [stride.batch, stride.token, stride.head]
}

fn as_stride(tensor: &Strided) -> Stride {
    let [batch, token, head] = tensor.strides;
    Stride { batch, token, head }
}

impl Layout {
    /// Checks sizes and strides of every tensor.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large; [`Error::Shape`] ← heads of `q` or `k` that do not divide `heads`;
    /// [`Error::Layout`] ← a negative stride, or rows of `o` that overlap.
    pub fn new(op: &'static str, shape: &Shape, options: &Options) -> Result<Self> {
        let Shape { batch, seq_len, heads, query_heads, key_heads, key_dim, value_dim, packed, strides } = *shape;
        strided::range(op, "batch", batch, 0, MAX_EXTENT)?;
        strided::range(op, "seq_len", seq_len, 0, MAX_EXTENT)?;
        strided::range(op, "heads", heads, 0, MAX_HEADS)?;
        strided::range(op, "key_dim", key_dim, 1, MAX_KEY_DIM)?;
        strided::range(op, "value_dim", value_dim, 1, MAX_EXTENT)?;
        if let Some(sequences) = packed {
            strided::range(op, "packed", sequences, 1, MAX_EXTENT)?;
            strided::range(op, "batch", batch, 1, 1)?;
        }
        for (arg, group_heads) in [("query_heads", query_heads), ("key_heads", key_heads)] {
            if heads > 0 && (group_heads == 0 || !heads.is_multiple_of(group_heads)) {
                let want = format!("a divisor of heads = {heads}");
                return Err(Error::Shape { op, arg, want, got: vec![group_heads as u64] });
            }
        }
        let size = options.dtype.size();
        let rows = |heads: usize, width: usize, size: usize, stride: Option<Stride>| match stride {
            Some(stride) => Strided::new([batch, seq_len, heads], steps(stride), width, size),
            None => Strided::dense([batch, seq_len, heads], width, size),
        };
        let n = shape.sequences();
        let keys = options.features.width(key_dim);
        let layout = Self {
            q: rows(query_heads, key_dim, size, strides.q),
            k: rows(key_heads, key_dim, size, strides.k),
            v: rows(heads, value_dim, size, strides.v),
            g: match options.decay {
                Decay::None => Strided::NONE,
                Decay::Head => Strided::new([1, 1, heads], [0, 0, 1], 1, 4),
                Decay::Scalar => rows(heads, 1, 4, strides.g),
                Decay::Vector => rows(heads, key_dim, 4, strides.g),
            },
            o: rows(heads, value_dim, size, strides.o),
            bonus: Strided::dense([1, 1, heads], key_dim, 4),
            flags: Strided::dense([1, 1, batch], seq_len, 1),
            cu_seqlens: Strided::dense([1, 1, 1], n + 1, 4),
            prefix_len: Strided::dense([1, 1, 1], n, 4),
            states: Strided::dense([n, heads, keys], value_dim, 4),
            sums: Strided::dense([1, n, heads], keys, 4),
            denominator: Strided::dense([1, batch, seq_len], heads, 4),
        };
        for (arg, tensor) in [("q", layout.q), ("k", layout.k), ("v", layout.v), ("g", layout.g)] {
            tensor.readable(op, arg)?;
        }
        layout.o.writable(op, "o")?;
        layout.states.writable(op, "state")?;
        layout.denominator.writable(op, "denominator")?;
        Ok(layout)
    }
}

/// What no kernel computes.
fn refused(op: &'static str, request: &str) -> Error {
    Error::NoKernel { op, request: request.into() }
}

/// Checks options that exclude each other.
///
/// # Errors
/// [`Error::NoKernel`] ← a normaliser in both directions, a prefix with decays or with reads that are not inclusive, what
/// [`Features`] do not go with; [`Error::Range`] ← a split above `heads`.
pub(crate) fn check_options(op: &'static str, shape: &Shape, options: &Options) -> Result<()> {
    if options.features == Features::Taylor {
        check_taylor(op, shape, options)?;
    }
    match options.mode {
        Mode::Bidirectional if options.normalize.is_some() => {
            Err(refused(op, "a normaliser in both directions; time_reduce divides sums over all tokens"))
        }
        Mode::PrefixRead if options.decay != Decay::None => Err(refused(op, "prefixes with a decay")),
        Mode::PrefixRead if options.read != Read::Inclusive => {
            Err(refused(op, "prefixes with reads that are not inclusive"))
        }
        Mode::Split(split) => strided::range(op, "split", split, 0, shape.heads),
        _ => Ok(()),
    }
}

/// Refuses what the one kernel of Taylor features does not do.
fn check_taylor(op: &'static str, shape: &Shape, options: &Options) -> Result<()> {
    let Options { dtype, path, .. } = *options;
    let with = |what: String| Err(refused(op, &format!("Taylor features {what}")));
    match () {
        () if dtype == DType::F32 => with("of f32".into()),
        () if ![8, 16].contains(&shape.key_dim) => with(format!("of {} entries: there are 8 and 16", shape.key_dim)),
        () if options.decay == Decay::Vector => with("with a decay of every entry of a key".into()),
        () if options.mode == Mode::PrefixRead => with("with prefixes that are read both ways".into()),
        () if options.read == Read::ExclusiveBonus => with("with exclusive reads and a bonus".into()),
        () if path == Path::Recurrent => with("token by token".into()),
        () if path == Path::Parallel => with("in segments".into()),
        () => Ok(()),
    }
}

/// A checked forward pass.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) shape: Shape,
    pub(crate) options: Options,
    pub(crate) layout: Layout,
    /// What runs the walks; never [`Path::Auto`].
    pub(crate) path: Path,
    sm_count: u32,
}

impl Plan {
    pub(crate) const OP: &str = "linear_attention";

    /// Checks sizes, strides and options, and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, a key above [`MAX_KEY_DIM`], `split` above `heads`, or packed sequences in several
    /// rows; [`Error::Shape`] ← heads of `q` or `k` that do not divide `heads`; [`Error::Layout`] ← a negative stride, or rows of `o`
    /// that overlap; [`Error::NoKernel`] ← a normaliser in both directions, a prefix with decays or with reads that are not inclusive,
    /// what [`Features`] do not go with, a path that has no kernel for the type or the sizes; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let layout = Layout::new(Self::OP, shape, options)?;
        check_options(Self::OP, shape, options)?;
        let mut plan = Self { shape: *shape, options: *options, layout, path: options.path, sm_count: device.sm_count };
        let walk = plan.walk(&RawInputs::default(), &RawOutputs::default());
        plan.path = walk.resolve(options.path);
        // Addresses that tensor cores cannot read are taken token by token, but not to features.
        let instead = if options.features == Features::Identity { Path::Recurrent } else { plan.path };
        for path in [plan.path, instead] {
            let blocks = usize::try_from(walk.blocks(path)).unwrap_or(usize::MAX);
            strided::range(Self::OP, "blocks", blocks, 0, MAX_EXTENT)?;
            walk.check(path, device)?;
        }
        Ok(plan)
    }

    /// The kernels that run: never [`Path::Auto`]. Where that was asked for, tensors at addresses that tensor cores cannot read (not
    /// multiples of 16 bytes, or 8 for `o`) go token by token, unless they have features.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors. It holds nothing between launches.
    ///
    /// States of prefixes with [`Mode::PrefixRead`], states of segments with [`Path::Parallel`]; else none. Only that of
    /// [`Path::Parallel`] grows with the number of tokens.
    pub fn workspace_bytes(&self) -> u64 {
        self.prefix_bytes().saturating_add(self.segment_bytes())
    }

    /// States and sums of the prefixes, to a multiple of 256.
    pub(crate) fn prefix_bytes(&self) -> u64 {
        match self.options.mode {
            Mode::PrefixRead => (self.layout.states.bytes() + self.layout.sums.bytes()).next_multiple_of(256),
            _ => 0,
        }
    }

    fn segment_bytes(&self) -> u64 {
        self.walk(&RawInputs::default(), &RawOutputs::default()).workspace_bytes(self.path)
    }

    /// Bytes that must cross the memory bus at least: every tensor once, with initial and final states.
    pub fn bytes_moved(&self) -> u64 {
        let Layout { q, k, v, g, o, states, .. } = self.layout;
        let directions = if self.options.mode == Mode::Bidirectional { 2 } else { 1 };
        let states = states.bytes().saturating_mul(2 * directions);
        [q, k, v, g, o].iter().map(Strided::bytes).fold(states, u64::saturating_add)
    }

    /// Floating-point operations of the recurrence: a product and a sum for every entry of the state to add to it, and to read it.
    pub fn flops(&self) -> u64 {
        let Shape { batch, seq_len, heads, key_dim, value_dim, .. } = self.shape;
        let keys = self.options.features.width(key_dim);
        let entries = [batch, seq_len, heads, keys, value_dim].iter().fold(1_u64, |n, e| n.saturating_mul(*e as u64));
        let directions = if self.options.mode == Mode::Bidirectional { 2 } else { 1 };
        entries.saturating_mul(4 * directions)
    }

    /// The forward direction's walk, or the only one.
    pub(crate) fn walk(&self, inputs: &RawInputs, outputs: &RawOutputs) -> Walk {
        let Shape { batch, seq_len, heads, query_heads, key_heads, key_dim, value_dim, .. } = self.shape;
        let Layout { q, k, v, g, o, .. } = &self.layout;
        let options = self.options;
        let group = |shared: usize| heads.checked_div(shared).unwrap_or(1).max(1);
        let rows = |at, tensor: &Strided, group| Rows { at, stride: as_stride(tensor), group };
        let states = |at: CUdeviceptr| States::dense(at, heads, options.features.width(key_dim), value_dim);
        let side = match options.decay {
            Decay::None => Side::None,
            Decay::Head | Decay::Scalar => Side::Scalar,
            Decay::Vector => Side::Key,
        };
        Walk {
            dtype: options.dtype,
            batch,
            seq_len,
            sequences: self.shape.sequences(),
            heads,
            key_dim,
            features: options.features,
            value_dim,
            q: rows(inputs.q, q, group(query_heads)),
            k: rows(inputs.k, k, group(key_heads)),
            v: rows(inputs.v, v, 1),
            gate: Gate { side, at: inputs.g, stride: as_stride(g) },
            bonus: inputs.bonus,
            flags: inputs.flags,
            flags_stride_batch: seq_len as i64,
            flag_mask: if options.mode == Mode::Reverse { 2 } else { 1 },
            flag_mask_reverse: 2,
            cu_seqlens: inputs.cu_seqlens,
            prefix_len: if options.mode == Mode::PrefixRead { inputs.prefix_len } else { 0 },
            h0: states(inputs.state),
            h_final: states(outputs.state),
            z0: inputs.normalizer,
            z_final: outputs.normalizer,
            den: outputs.denominator,
            o: rows(outputs.o, o, 1),
            out_f32: false,
            accumulate: false,
            split: if let Mode::Split(split) = options.mode { split } else { heads },
            scale: options.scale,
            normalize: options.normalize,
            reverse: options.mode == Mode::Reverse,
            order: if options.read == Read::ExclusiveBonus { Order::ReadDecayAdd } else { Order::DecayAddRead },
            late_cut: false,
            shift: options.read == Read::Shifted,
            exact: false,
            sm_count: self.sm_count,
        }
    }

    /// The reverse direction of [`Mode::Bidirectional`], which adds to the output of the forward one. A token has read itself
    /// already.
    pub(crate) fn reverse_walk(&self, inputs: &RawInputs, outputs: &RawOutputs) -> Walk {
        let forward = self.walk(inputs, outputs);
        let or = |own: CUdeviceptr, shared: CUdeviceptr| if own == 0 { shared } else { own };
        Walk {
            q: Rows { at: or(inputs.reverse_q, inputs.q), ..forward.q },
            k: Rows { at: or(inputs.reverse_k, inputs.k), ..forward.k },
            gate: Gate { at: or(inputs.reverse_g, inputs.g), ..forward.gate },
            bonus: 0,
            flag_mask: 2,
            h0: States { at: inputs.reverse_state, ..forward.h0 },
            h_final: States { at: outputs.reverse_state, ..forward.h_final },
            accumulate: true,
            reverse: true,
            order: if self.options.read == Read::Shifted { Order::DecayAddRead } else { Order::ReadDecayAdd },
            ..forward
        }
    }

    /// The sum over the prefixes of [`Mode::PrefixRead`], from the initial state into `state` and `sums`.
    pub(crate) fn prefix_walk(&self, inputs: &RawInputs, state: CUdeviceptr, sums: CUdeviceptr) -> Walk {
        let outputs = RawOutputs { state, normalizer: sums, ..RawOutputs::default() };
        Walk { flags: 0, ..self.walk(inputs, &outputs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceInfo {
        DeviceInfo {
            name: "test".into(),
            compute_capability: (9, 0),
            sm_count: 132,
            shared_per_block_optin: 232_448,
            driver_version: 13_000,
            emulated: true,
        }
    }

    fn plan(shape: &Shape, with: impl Fn(&mut Options)) -> Result<Plan> {
        let mut options = Options::new::<f32>(shape);
        with(&mut options);
        Plan::new(shape, &options, &device())
    }

    #[test]
    fn plan_refuses_sizes_that_kernels_cannot_take() {
        let refuse = |shape: Shape, name: &str| match plan(&shape, |_| {}).expect_err(name) {
            Error::Range { arg, .. } | Error::Layout { arg, .. } | Error::Shape { arg, .. } => assert_eq!(arg, name),
            other => panic!("{name}: {other}"),
        };
        let good = Shape::dense(2, 10, 4, 64, 64);
        assert!(plan(&good, |_| {}).is_ok());
        assert!(plan(&Shape { key_heads: 2, query_heads: 1, ..good }, |_| {}).is_ok());
        refuse(Shape { key_heads: 3, ..good }, "key_heads");
        refuse(Shape { query_heads: 0, ..good }, "query_heads");
        refuse(Shape { key_heads: 8, ..good }, "key_heads");
        refuse(Shape { key_dim: 257, ..good }, "key_dim");
        refuse(Shape { key_dim: 0, ..good }, "key_dim");
        refuse(Shape { value_dim: 0, ..good }, "value_dim");
        refuse(Shape { seq_len: 1 << 31, ..good }, "seq_len");
        refuse(Shape { heads: 1 << 16, query_heads: 1, key_heads: 1, ..good }, "heads");
        refuse(Shape { packed: Some(2), ..good }, "batch");
        refuse(Shape::packed(0, 10, 4, 64, 64), "packed");
        let mut overlapping = good;
        overlapping.strides.o = Some(Stride { batch: 2560, token: 256, head: 63 });
        refuse(overlapping, "o");
        let mut backwards = good;
        backwards.strides.k = Some(Stride { batch: 2560, token: -256, head: 64 });
        refuse(backwards, "k");
        assert!(plan(&Shape { seq_len: 0, ..good }, |_| {}).is_ok());
        assert!(plan(&Shape { batch: 0, ..good }, |_| {}).is_ok());
    }

    #[test]
    fn plan_refuses_options_that_exclude_each_other() {
        let shape = Shape::dense(2, 10, 4, 64, 64);
        let refuse = |with: &dyn Fn(&mut Options), word: &str| match plan(&shape, with) {
            Err(Error::NoKernel { request, .. }) => assert!(request.contains(word), "{request}"),
            other => panic!("{word}: {other:?}"),
        };
        refuse(&|o| (o.mode, o.normalize) = (Mode::Bidirectional, Some(1e-6)), "time_reduce");
        refuse(&|o| (o.mode, o.decay) = (Mode::PrefixRead, Decay::Scalar), "decay");
        refuse(&|o| (o.mode, o.read) = (Mode::PrefixRead, Read::Shifted), "inclusive");
        refuse(&|o| o.path = Path::Chain, "f32");
        assert!(matches!(plan(&shape, |o| o.mode = Mode::Split(5)), Err(Error::Range { arg: "split", hi: 4, .. })));
        let old = DeviceInfo { compute_capability: (7, 5), ..device() };
        let got = Plan::new(&shape, &Options::new::<f32>(&shape), &old);
        assert!(matches!(got, Err(Error::Arch { got: (7, 5), .. })));
    }

    #[test]
    fn workspace_of_one_pass_does_not_grow_with_tokens() {
        for (mode, bytes) in [(Mode::Causal, 0), (Mode::PrefixRead, 2 * 4 * (64 * 32 + 64) * 4)] {
            for tokens in [1, 100, 100_000] {
                let plan = plan(&Shape::dense(2, tokens, 4, 64, 32), |o| o.mode = mode).expect("good");
                assert_eq!(plan.workspace_bytes(), bytes, "{mode:?} {tokens}");
            }
        }
    }

    #[test]
    fn plan_counts_what_moves() {
        let shape = Shape { key_heads: 1, ..Shape::dense(2, 10, 4, 64, 32) };
        let count = |mode| plan(&shape, |o| (o.mode, o.decay) = (mode, Decay::Scalar)).expect("good");
        let (q, k, v, g) = (20 * 4 * 64, 20 * 64, 20 * 4 * 32, 20 * 4);
        let states = 2 * 4 * 64 * 32;
        assert_eq!(count(Mode::Causal).bytes_moved(), 4 * (q + k + 2 * v + g + 2 * states));
        assert_eq!(count(Mode::Causal).flops(), 4 * 20 * 4 * 64 * 32);
        assert_eq!(count(Mode::Bidirectional).flops(), 2 * count(Mode::Causal).flops());
    }
}
