//! What the launches of a backward pass leave each other, as parts of one workspace.

use crate::{Decay, Mode, Options, Read, Shape};
use cudarc::driver::sys::CUdeviceptr;

/// Parts begin at a multiple of this.
const ALIGN: u64 = 256;

/// Which intermediate tensors a plan has, fixed by shape and options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Rows of `d_o`, and with a normaliser of `v`, are rewritten before the walks.
    pub prepared: bool,
    /// Columns of the rewritten rows: values, with a normaliser two more, to a multiple of 8.
    pub width: usize,
    /// A token's own value has a weight apart from the state.
    pub bonus: bool,
    /// `dq` and `dk` are made in f32 for each head, and summed or rounded at the end.
    pub apart: [bool; 2],
    /// Directions.
    pub passes: usize,
    /// Adjoints of final states are rewritten: scaled, or with the sums of keys as a column.
    pub states: bool,
}

impl Needs {
    pub fn new(shape: &Shape, options: &Options) -> Self {
        let normalized = options.normalize.is_some();
        let bonus = options.read == Read::ExclusiveBonus;
        let both = options.mode == Mode::Bidirectional;
        let decays = options.decay != Decay::None;
        // The decay's gradient reads every head's own in f32, before the other direction is added.
        let in_f32 = decays && (options.dtype != crate::DType::F32 || both);
        let apart = |shared: usize| shared != shape.heads || bonus || in_f32;
        Self {
            prepared: normalized || options.read == Read::Shifted,
            width: if normalized { (shape.value_dim + 2).next_multiple_of(8) } else { shape.value_dim },
            bonus,
            apart: [apart(shape.query_heads), apart(shape.key_heads)],
            passes: if both { 2 } else { 1 },
            states: normalized || options.scale != 1.0,
        }
    }
}

/// Addresses of the parts; 0 where a plan has no use for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// `[B,T,H,width]` adjoint of the read rows.
    pub d_rows: CUdeviceptr,
    /// `[B,T,H,width]` values with two columns of ones.
    pub v_rows: CUdeviceptr,
    /// `[B,T,H]` f32 adjoint of the weight of a token's own value.
    pub weight: CUdeviceptr,
    /// `[N,H,K,width]` f32 adjoint of the final state, over the scale.
    pub d_state: CUdeviceptr,
    /// `[N,H,K,width]` f32 initial state with the sums of keys.
    pub state: CUdeviceptr,
    /// `[N,H,K,width]` f32 final state.
    pub last: CUdeviceptr,
    /// `[N,H,K,width]` f32 adjoint of the initial state, over the scale.
    pub d_first: CUdeviceptr,
    /// `[N,H,K,V]` f32 adjoint of the state behind the prefix, where the caller does not want it.
    pub d_prefix: CUdeviceptr,
    /// `[N,H,K]` f32 the same of the sums of keys.
    pub d_prefix_sums: CUdeviceptr,
    /// `[N,H,K,V]` f32 state behind the prefix.
    pub prefix: CUdeviceptr,
    /// `[N,H,K]` f32 the same of the sums of keys.
    pub prefix_sums: CUdeviceptr,
    /// `[B,T,H,K]` f32 of each direction.
    pub dq: [CUdeviceptr; 2],
    /// `[B,T,H,K]` f32 of each direction.
    pub dk: [CUdeviceptr; 2],
    /// As `dg`: the reverse direction's, where both share decays; or `[2 N,H]` for decays of heads.
    pub dg: CUdeviceptr,
    /// For the walks themselves.
    pub walks: CUdeviceptr,
    /// Bytes in all.
    pub bytes: u64,
}

impl Scratch {
    /// The parts at an address; `walks` are bytes.
    pub fn new(shape: &Shape, options: &Options, base: CUdeviceptr, walks: u64) -> Self {
        let needs = Needs::new(shape, options);
        let Shape { batch, seq_len, heads, key_dim, value_dim, .. } = *shape;
        let product = |factors: &[usize]| factors.iter().fold(1_u64, |n, f| n.saturating_mul(*f as u64));
        let rows = |width: usize, size: usize| product(&[batch, seq_len, heads, width, size]);
        let states = |width: usize| product(&[shape.sequences(), heads, key_dim, width, 4]);
        let mut end = 0_u64;
        let mut part = |wanted: bool, bytes: u64| {
            let at = base + end;
            if !wanted || bytes == 0 {
                return 0;
            }
            end = end.saturating_add(bytes).next_multiple_of(ALIGN);
            at
        };
        let size = options.dtype.size();
        let (normalized, decays) = (options.normalize.is_some(), options.decay != Decay::None);
        let prefix = options.mode == Mode::PrefixRead;
        let both = needs.passes == 2;
        let mut scratch = Self {
            d_rows: part(needs.prepared, rows(needs.width, size)),
            v_rows: part(normalized, rows(needs.width, size)),
            weight: part(needs.bonus, rows(1, 4)),
            d_state: part(needs.states, states(needs.width)),
            state: part(normalized, states(needs.width)),
            last: part(decays, states(needs.width)),
            d_first: part(normalized, states(needs.width)),
            d_prefix: part(prefix, states(value_dim)),
            d_prefix_sums: part(prefix && normalized, states(1)),
            prefix: part(prefix, states(value_dim)),
            prefix_sums: part(prefix && normalized, states(1)),
            dq: [part(needs.apart[0], rows(key_dim, 4)), part(needs.apart[0] && both, rows(key_dim, 4))],
            dk: [part(needs.apart[1], rows(key_dim, 4)), part(needs.apart[1] && both, rows(key_dim, 4))],
            dg: match options.decay {
                Decay::None => 0,
                Decay::Head => part(true, product(&[2, shape.sequences(), heads, 4])),
                Decay::Scalar => part(both, rows(1, 4)),
                Decay::Vector => part(both, rows(key_dim, 4)),
            },
            walks: part(true, walks),
            bytes: 0,
        };
        scratch.bytes = end;
        scratch
    }
}
