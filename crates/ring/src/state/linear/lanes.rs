//! Which heads travel together, and what part of each tensor they have.

use super::super::{
    dealt::{Deal, Dealt},
    room::Sizes,
    waves::Lane,
};
use crate::{DeviceInfo, Error, Result};
use cudarc::driver::sys::CUdeviceptr;
use lookback_linear::{Decay, Mode, Options, Plan, RawInputs, Read, Shape, Stride, Strides};
use std::ops::Range;

/// Refuses what does not go across ranks, and makes the lanes of the rest.
///
/// # Errors
/// [`Error::NoKernel`], [`Error::Layout`], [`Error::Range`].
pub(super) fn lanes(op: &'static str, shape: &Shape, options: &Options, deal: &Deal) -> Result<Vec<Lane>> {
    let refused = |what: &str| Err(Error::NoKernel { op, request: format!("{what}, dealt to ranks") });
    if options.read == Read::Shifted {
        return refused("shifted reads");
    }
    if matches!(options.mode, Mode::PrefixRead | Mode::PrefixState) {
        return refused("prefixes");
    }
    if shape.packed.is_some() {
        return refused("a packed shape: the deal has the documents");
    }
    if shape.strides != Strides::default() {
        return Err(Error::Layout { op, arg: "strides", need: "none: tensors have no gaps", stride: Vec::new() });
    }
    let heads = shape.heads;
    let sets: Vec<(Range<usize>, bool)> = match options.mode {
        Mode::Reverse => vec![(0..heads, true)],
        Mode::Bidirectional => vec![(0..heads, false), (0..heads, true)],
        Mode::Split(split) => vec![(0..split.min(heads), false), (split.min(heads)..heads, true)],
        _ => vec![(0..heads, false)],
    };
    let blocks = deal.passing.blocks();
    let mut lanes = Vec::new();
    for (set, reverse) in sets.into_iter().filter(|(set, _)| !set.is_empty()) {
        lookback_device::strided::range(op, "blocks", blocks, 1, set.len())?;
        for block in 0..blocks {
            let bound = |n: usize| set.start + set.len() * n / blocks;
            lanes.push(Lane { heads: bound(block)..bound(block + 1), reverse, block });
        }
    }
    let single = lanes.iter().all(|lane| lane.heads.len() == heads);
    if options.normalize.is_some() && !single {
        return refused("a normaliser of some of the heads");
    }
    Ok(lanes)
}

/// What a lane's sequences keep.
pub(super) fn sizes(shape: &Shape, options: &Options) -> Sizes {
    let keys = options.features.width(shape.key_dim);
    let values = shape.value_dim;
    let sums = if options.normalize.is_some() { keys } else { 0 };
    let (decays, per_decay) = match options.decay {
        Decay::None => (0, [0, 0]),
        Decay::Head | Decay::Scalar => (1, [keys * values, sums]),
        Decay::Vector => (keys, [values, sums.min(1)]),
    };
    Sizes { parts: [keys * values, sums], per_decay, decays }
}

/// The heads of a tensor whose heads are shared that `heads` read.
fn shared(
    op: &'static str,
    arg: &'static str,
    heads: &Range<usize>,
    all: usize,
    tensor: usize,
) -> Result<Range<usize>> {
    let group = all.checked_div(tensor).unwrap_or(1).max(1);
    let range = heads.start / group..heads.end.div_ceil(group);
    if range.len() <= 1 || (heads.start.is_multiple_of(group) && heads.end.is_multiple_of(group)) {
        return Ok(range);
    }
    let want = format!("heads {heads:?} of a block to share those of `{arg}` evenly");
    Err(Error::Shape { op, arg, want, got: vec![tensor as u64] })
}

/// A lane's part of the operation.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Sizes, with the strides of the whole.
    pub shape: Shape,
    heads: Range<usize>,
    query_heads: Range<usize>,
    key_heads: Range<usize>,
    size: usize,
    decay: Decay,
}

impl Part {
    /// `shape` is that of all ranks.
    pub fn new(
        op: &'static str,
        shape: &Shape,
        options: &Options,
        dealt: &Dealt,
        heads: &Range<usize>,
    ) -> Result<Self> {
        let Shape { batch, key_dim, value_dim, .. } = *shape;
        let query_heads = shared(op, "query_heads", heads, shape.heads, shape.query_heads)?;
        let key_heads = shared(op, "key_heads", heads, shape.heads, shape.key_heads)?;
        let tokens = dealt.tokens();
        let stride = |heads: usize, width: usize| {
            let token = (heads * width) as i64;
            Some(Stride { batch: token * tokens as i64, token, head: width as i64 })
        };
        let strides = Strides {
            q: stride(shape.query_heads, key_dim),
            k: stride(shape.key_heads, key_dim),
            v: stride(shape.heads, value_dim),
            g: match options.decay {
                Decay::Scalar => stride(shape.heads, 1),
                Decay::Vector => stride(shape.heads, key_dim),
                _ => None,
            },
            o: stride(shape.heads, value_dim),
        };
        let shape = Shape {
            batch,
            seq_len: tokens,
            heads: heads.len(),
            query_heads: query_heads.len(),
            key_heads: key_heads.len(),
            key_dim,
            value_dim,
            packed: dealt.starts().map(|starts| starts.len() - 1),
            strides,
        };
        let (heads, size) = (heads.clone(), options.dtype.size());
        Ok(Self { shape, heads, query_heads, key_heads, size, decay: options.decay })
    }

    fn rows(&self, at: CUdeviceptr, first: usize, width: usize, size: usize) -> CUdeviceptr {
        if at == 0 { 0 } else { at + (first * width * size) as u64 }
    }

    /// The output's first row.
    pub fn output(&self, o: CUdeviceptr) -> CUdeviceptr {
        self.rows(o, self.heads.start, self.shape.value_dim, self.size)
    }

    fn decays(&self, g: CUdeviceptr) -> CUdeviceptr {
        let width = if self.decay == Decay::Vector { self.shape.key_dim } else { 1 };
        self.rows(g, self.heads.start, width, 4)
    }

    /// The part of the tensors, without states.
    pub fn inputs(&self, all: &RawInputs, starts: CUdeviceptr) -> RawInputs {
        let keys = self.shape.key_dim;
        RawInputs {
            q: self.rows(all.q, self.query_heads.start, keys, self.size),
            k: self.rows(all.k, self.key_heads.start, keys, self.size),
            v: self.rows(all.v, self.heads.start, self.shape.value_dim, self.size),
            g: self.decays(all.g),
            bonus: self.rows(all.bonus, self.heads.start, keys, 4),
            flags: all.flags,
            cu_seqlens: starts,
            reverse_q: self.rows(all.reverse_q, self.query_heads.start, keys, self.size),
            reverse_k: self.rows(all.reverse_k, self.key_heads.start, keys, self.size),
            reverse_g: self.decays(all.reverse_g),
            ..RawInputs::default()
        }
    }

    /// The options of one direction alone; of its states alone where there are two.
    pub fn one_way(&self, options: &Options, reverse: bool) -> Options {
        let mode = if reverse { Mode::Reverse } else { Mode::Causal };
        match options.mode {
            Mode::Bidirectional => Options { mode, read: Read::Inclusive, ..*options },
            _ => Options { mode, ..*options },
        }
    }

    /// The tensors that the reverse direction reads, as those of a direction alone.
    pub fn reversed(inputs: &RawInputs) -> RawInputs {
        let or = |own: CUdeviceptr, shared: CUdeviceptr| if own == 0 { shared } else { own };
        RawInputs {
            q: or(inputs.reverse_q, inputs.q),
            k: or(inputs.reverse_k, inputs.k),
            g: or(inputs.reverse_g, inputs.g),
            bonus: 0,
            reverse_q: 0,
            reverse_k: 0,
            reverse_g: 0,
            ..*inputs
        }
    }
}

/// The walk of one direction.
pub(super) fn plan(part: &Part, options: &Options, device: &DeviceInfo) -> Result<Plan> {
    Plan::new(&part.shape, options, device)
}
