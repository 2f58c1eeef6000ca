//! Linear attention, the oracle: a state `S[K,V]` that decays, takes in `k v^T` and is read by `q`, one token at a time.
//!
//! `S_t = e^{g_t} S_{t-1} + k_t v_t^T` and `o_t = scale S_t^T q_t`, with the read before the update, or handed one token on
//! ([`Read`]), a normaliser, packed sequences, cuts by flags, both directions, and prefixes that every token sees.
//! [`backward()`] is the adjoint of the same loop, taken step by step in the opposite order; it knows no closed form.
//!
//! Tensors are flat and dense: `q [B,T,Hq,K]`, `k [B,T,Hk,K]`, `v` and `o [B,T,H,V]`, states `[N,H,K,V]` and `[N,H,K]`, where `N` is the
//! number of sequences. A *cut* at a token empties the state before anything else happens there; its decay is not used.

mod backward;
mod forward;
#[cfg(test)]
mod roles;
mod step;
#[cfg(test)]
mod tests;

pub use backward::{Adjoint, Backward, DirectionGradients, backward};
pub use forward::{Forward, forward};

/// What is mixed, apart from the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Rows `B`.
    pub batch: usize,
    /// Tokens `T` of a row.
    pub seq_len: usize,
    /// Heads `H` of values, decays, states and outputs.
    pub heads: usize,
    /// Heads of `q`; head `h` reads `h / (heads / q_heads)`.
    pub q_heads: usize,
    /// Heads of `k`, in the same way.
    pub k_heads: usize,
    /// `K`, channels of `q` and `k`.
    pub key_dim: usize,
    /// `V`, channels of `v` and `o`.
    pub value_dim: usize,
    /// Which way the state walks.
    pub mode: Mode,
    /// When the state is read.
    pub read: Read,
    /// Factor of every read.
    pub scale: f64,
    /// With it `o_t` is divided by `den_t = scale q_t . z_t + eps`, where `z` is the state of a value that is always one.
    pub normalize: Option<f64>,
    /// `[B,T]`: bit 0 cuts the link into a forward walk at this token, bit 1 into a reverse one.
    pub flags: Option<&'a [u8]>,
    /// `[N+1]` starts of packed sequences in the only row; tokens after the last form a sequence without a state.
    pub cu_seqlens: Option<&'a [i32]>,
    /// `[N]`: the first tokens of a sequence, which every token of it sees (prefix read; causal, inclusive, without decay).
    pub prefix_len: Option<&'a [i32]>,
}

/// Which way the state walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From the first token to the last.
    Causal,
    /// From the last to the first; the decay of the token that receives guards the link.
    Reverse,
    /// Heads below run forward in time, the others in reverse.
    Split(usize),
    /// The sum of both; a token meets itself once, in the forward walk. States are those of the forward walk.
    Bidirectional,
}

/// When the state is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// `o_t = scale S_t^T q_t`.
    Inclusive,
    /// `o_t = scale (S_{t-1}^T q_t + (q_t . (u k_t)) v_t)`.
    ExclusiveBonus,
    /// `o_t = scale S_{t-1}^T q_{t-1}`: the inclusive row one token later, and zero where the walk starts or is cut.
    Shifted,
}

/// Log decays.
#[derive(Debug, Clone, Copy)]
pub enum Decay<'a> {
    /// The state forgets nothing.
    None,
    /// `[H]`.
    Head(&'a [f64]),
    /// `[B,T,H]`.
    Scalar(&'a [f64]),
    /// `[B,T,H,K]`, a decay for each row of the state.
    Vector(&'a [f64]),
}

/// The tensors of [`forward()`].
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[B,T,Hq,K]`.
    pub q: &'a [f64],
    /// `[B,T,Hk,K]`.
    pub k: &'a [f64],
    /// `[B,T,H,V]`.
    pub v: &'a [f64],
    /// Log decays.
    pub decay: Decay<'a>,
    /// `[H,K]` bonus of [`Read::ExclusiveBonus`]; zero without.
    pub u: Option<&'a [f64]>,
    /// `[N,H,K,V]` states before the first visited token; zero without.
    pub s0: Option<&'a [f64]>,
    /// `[N,H,K]` states of the normaliser; zero without.
    pub z0: Option<&'a [f64]>,
    /// Tensors of the reverse walk of [`Mode::Bidirectional`]; those of the forward walk without.
    pub reverse: Option<Direction<'a>>,
}

/// What the reverse walk of a bidirectional mixer may have of its own.
#[derive(Debug, Clone, Copy)]
pub struct Direction<'a> {
    /// `[B,T,Hq,K]`.
    pub q: &'a [f64],
    /// `[B,T,Hk,K]`.
    pub k: &'a [f64],
    /// Log decays.
    pub decay: Decay<'a>,
}

impl Attention<'_> {
    /// Number of states: packed sequences, or rows.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.map_or(self.batch, |cu| cu.len().saturating_sub(1))
    }

    /// Elements of a tensor of states.
    pub fn state_len(&self) -> usize {
        self.sequences() * self.heads * self.key_dim * self.value_dim
    }
}
