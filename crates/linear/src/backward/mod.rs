//! The backward pass: gradients of everything that the forward pass read, by three walks a direction and a few kernels around them.

mod allocate;
mod launches;
mod passes;
mod run;
mod scratch;
mod tensors;

pub use allocate::{Gradients, linear_attention_backward};
pub use tensors::{BackwardInputs, BackwardOutputs, RawBackwardInputs, RawBackwardOutputs, ReverseGradients};

use crate::{
    Decay, DeviceInfo, Error, Features, MAX_KEY_DIM, Mode, Options, Path, Plan, RawInputs, RawOutputs, Result, Shape,
    strided::{self, MAX_EXTENT, Strided},
    walk::Walk,
};
use passes::{Pass, Walks};
use scratch::{Needs, Scratch};

const OP: &str = "linear_attention_backward";

/// The gradients of a shape, without gaps.
#[derive(Debug, Clone, Copy)]
struct Layout {
    dq: Strided,
    dk: Strided,
    dv: Strided,
    dg: Strided,
}

/// A checked backward pass, for the same shape and options as its forward pass.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    /// The forward pass: its layout, its walks.
    forward: Plan,
    layout: Layout,
    needs: Needs,
    /// What runs dq, dk and dv of the forward direction, and of the reverse one.
    paths: [[Path; 3]; 2],
}

impl BackwardPlan {
    /// Checks sizes, strides and options, and finds the kernels. With [`Path::Auto`] each of the walks has a path of its own. With a
    /// decay the walks of `dq` and `dk` need factors of more than 16 bits, and take [`Path::Recurrent`] where tensor cores have no such
    /// kernel: values above 128 with a decay of every entry of a key.
    ///
    /// # Errors
    /// Those of [`Plan::new`]; [`Error::Range`] ← values above [`MAX_KEY_DIM`], with a normaliser above 248, because a walk has them
    /// for keys; [`Error::NoKernel`] ← features, a scale of 0, which adjoints of states are divided by, or a path that a walk cannot take.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        if options.features != Features::Identity {
            return Err(Error::NoKernel { op: OP, request: "gradients of Taylor features".into() });
        }
        let forward = Plan::new(shape, &Options { path: Path::Auto, ..*options }, device)?;
        let needs = Needs::new(shape, options);
        let most = if options.normalize.is_some() { MAX_KEY_DIM - 8 } else { MAX_KEY_DIM };
        strided::range(OP, "value_dim", shape.value_dim, 1, most)?;
        strided::range(OP, "tokens", shape.batch.saturating_mul(shape.seq_len), 0, MAX_EXTENT)?;
        let states = shape.sequences().saturating_mul(shape.heads).saturating_mul(shape.key_dim);
        strided::range(OP, "states", states, 0, MAX_EXTENT)?;
        if options.scale == 0.0 || !options.scale.is_finite() {
            return Err(Error::NoKernel { op: OP, request: format!("a scale of {}", options.scale) });
        }
        let Shape { batch, seq_len, heads, query_heads, key_heads, key_dim, value_dim, .. } = *shape;
        let size = options.dtype.size();
        let rows = |heads, width, size| Strided::dense([batch, seq_len, heads], width, size);
        let layout = Layout {
            dq: rows(query_heads, key_dim, size),
            dk: rows(key_heads, key_dim, size),
            dv: rows(heads, value_dim, size),
            dg: match options.decay {
                Decay::None => Strided::NONE,
                Decay::Head => Strided::dense([1, 1, heads], 1, 4),
                Decay::Scalar => rows(heads, 1, 4),
                Decay::Vector => rows(heads, key_dim, 4),
            },
        };
        let mut plan = Self { forward, layout, needs, paths: [[Path::Recurrent; 3]; 2] };
        for pass in 0..needs.passes {
            let Walks { dq, dk, dv } = plan.walks(pass);
            for (path, walk) in plan.paths[pass].iter_mut().zip([dq, dk, dv]) {
                *path = walk.resolve(options.path);
                if walk.exact && walk.check(*path, device).is_err() {
                    *path = Path::Recurrent;
                }
                let blocks = usize::try_from(walk.blocks(*path)).unwrap_or(usize::MAX);
                strided::range(OP, "blocks", blocks, 0, MAX_EXTENT)?;
                walk.check(*path, device)?;
            }
        }
        Ok(plan)
    }

    /// What runs the walks of `dq`, `dk` and `dv`: never [`Path::Auto`].
    pub fn paths(&self) -> [Path; 3] {
        self.paths[0]
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors. It holds nothing between launches.
    ///
    /// f32 gradients of `q` and `k` for every head where they are not written as they are (16-bit types with a decay, shared heads, a
    /// bonus, both directions with a decay); rewritten rows of `d_o` and `v` with a normaliser, and of `d_o` with shifted reads; a few
    /// states; what [`Path::Parallel`] needs.
    pub fn workspace_bytes(&self) -> u64 {
        self.scratch(0).bytes
    }

    /// Bytes that must cross the memory bus at least: every input and gradient once, with states.
    pub fn bytes_moved(&self) -> u64 {
        let Layout { dq, dk, dv, dg } = self.layout;
        let gradients: u64 = [dq, dk, dv, dg].iter().map(Strided::bytes).sum();
        self.forward.bytes_moved().saturating_add(gradients).saturating_add(2 * self.forward.layout.states.bytes())
    }

    /// Floating-point operations of the recurrences: three walks a direction.
    pub fn flops(&self) -> u64 {
        self.forward.flops().saturating_mul(3)
    }

    fn options(&self) -> &Options {
        &self.forward.options
    }

    fn shape(&self) -> &Shape {
        &self.forward.shape
    }

    /// The parts of a workspace at this address.
    fn scratch(&self, address: u64) -> Scratch {
        let bytes = |pass: usize| {
            let Walks { dq, dk, dv } = self.walks(pass);
            let of = |(walk, path): (Walk, Path)| walk.workspace_bytes(path);
            [dq, dk, dv].into_iter().zip(self.paths[pass]).map(of).max().unwrap_or(0)
        };
        let walks = (0..self.needs.passes).map(bytes).max().unwrap_or(0);
        Scratch::new(self.shape(), self.options(), address, walks)
    }

    /// The walks of a direction with nothing in them, for what depends on sizes alone.
    fn walks(&self, pass: usize) -> Walks {
        let scratch = Scratch::default();
        let inputs = RawBackwardInputs::default();
        self.pass(&inputs, &RawBackwardOutputs::default(), &scratch, pass).walks()
    }

    /// A direction: 0 is the forward one or the only one.
    fn pass<'a>(
        &self,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        scratch: &'a Scratch,
        pass: usize,
    ) -> Pass<'a> {
        let (options, needs) = (self.options(), self.needs);
        let mut read = inputs.forward;
        if options.mode == Mode::PrefixRead {
            (read.state, read.normalizer) = (scratch.prefix, scratch.prefix_sums);
        }
        let nothing = RawOutputs::default();
        let is_reverse = pass == 1;
        let forward =
            if is_reverse { self.forward.reverse_walk(&read, &nothing) } else { self.forward.walk(&read, &nothing) };
        let forward = Walk { accumulate: false, ..forward };
        let RawInputs { reverse_q, reverse_k, reverse_g, .. } = inputs.forward;
        // A tensor of the reverse direction's own has a gradient of its own; else both add up.
        let target =
            |own: u64, shared_out: u64, own_out: u64| if is_reverse && own != 0 { own_out } else { shared_out };
        let apart = needs.apart;
        let row = |parts: [u64; 2], is_apart: bool, out: u64, heads: usize| {
            let (at, heads) = if is_apart { (parts[pass], forward.heads) } else { (out, heads) };
            launches::dense(at, &forward, heads, forward.key_dim)
        };
        let dq = target(reverse_q, outputs.dq, outputs.reverse_dq);
        let dk = target(reverse_k, outputs.dk, outputs.reverse_dk);
        let adds = |own: u64, is_apart: bool| is_reverse && own == 0 && !is_apart;
        let d_first = match (is_reverse, options.mode) {
            (true, _) => outputs.reverse_d_state,
            (false, Mode::PrefixRead) if outputs.d_state == 0 => scratch.d_prefix,
            _ => outputs.d_state,
        };
        let d_first_sums = match (options.mode, options.normalize) {
            (_, None) => 0,
            (Mode::PrefixRead, _) if outputs.d_normalizer == 0 => scratch.d_prefix_sums,
            _ => outputs.d_normalizer,
        };
        Pass {
            dq: row(scratch.dq, apart[0], dq, self.shape().query_heads),
            dk: row(scratch.dk, apart[1], dk, self.shape().key_heads),
            in_f32: apart,
            accumulate: [adds(reverse_q, apart[0]), adds(reverse_k, apart[1]), is_reverse],
            dv: launches::dense(outputs.dv, &forward, forward.heads, forward.value_dim),
            dg: match options.decay {
                Decay::Head if is_reverse => scratch.dg + self.head_decays(),
                Decay::Head => scratch.dg,
                _ if is_reverse && reverse_g == 0 => scratch.dg,
                _ => target(reverse_g, outputs.dg, outputs.reverse_dg),
            },
            d_first,
            d_first_sums,
            o: inputs.o,
            denominator: inputs.denominator,
            d_o: inputs.d_o,
            d_state: if is_reverse { inputs.d_reverse_state } else { inputs.d_state },
            d_normalizer: inputs.d_normalizer,
            decay: options.decay,
            needs,
            scratch,
            forward,
        }
    }

    /// Bytes of `[N,H]` f32.
    fn head_decays(&self) -> u64 {
        4 * self.shape().sequences() as u64 * self.shape().heads as u64
    }
}
