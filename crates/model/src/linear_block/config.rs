//! Sizes and choices of a linear attention model.

use lookback_device::{Error, Result};
use lookback_nn::rotary::{Grid, Style};

const OP: &str = "linear_block";

/// Where the weights of the state come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Source {
    /// `g = log sigmoid(up down x + bias) / normalizer`, for every entry of a key (GLA).
    LowRank {
        /// Entries between `down` and `up`.
        rank: usize,
        /// Divides the log sigmoid.
        normalizer: f32,
    },
    /// `g = log(1 - 2^(-5 - h))` for head h (RetNet).
    Retention,
    /// The softmax of the keys over the tokens so far, entry by entry; `q = silu(W x)` (LightNet).
    Softmax,
}

/// How queries and keys know where they stand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Positions {
    /// Pairs of entries that turn, or the cosine form, which makes keys twice as wide and stays exact under decays of a key's entries.
    pub style: Style,
    /// Base of the angles.
    pub base: f64,
    /// Positions in several dimensions.
    pub grid: Option<Grid>,
}

/// What the attention's output is gated with, before its sigmoid linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputGate {
    /// One matrix, `g_proj`.
    Full,
    /// Two, `g_proj.0` and `g_proj.1`, with so many entries between.
    LowRank(usize),
}

/// What the output's norm takes its means over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOver {
    /// Each head; one weight of a head's width serves all (`g_norm_swish_gate`).
    Heads,
    /// The whole row (`g_norm`).
    Row,
}

/// Sizes and choices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual, `hidden_size`.
    pub width: usize,
    /// Layers, `num_hidden_layers`.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Entries of a head's key.
    pub key_dim: usize,
    /// Entries of a head's value.
    pub value_dim: usize,
    /// Entries of the gated unit, `intermediate_size`.
    pub inner: usize,
    /// Added to mean squares.
    pub eps: f32,
    /// Where the weights of the state come from.
    pub source: Source,
    /// Whether every token sees all, and none can be added: of [`Source::Softmax`] without positions, whose sum has no order.
    pub bidirectional: bool,
    /// Positions, where there are any.
    pub positions: Option<Positions>,
    /// Gate of the output.
    pub gate: OutputGate,
    /// Means of the output's norm.
    pub norm: NormOver,
}

impl Config {
    /// Gated linear attention as published: keys of half the width, a gate of rank 16 over 16, a norm for each head.
    pub fn gla(vocabulary: usize, width: usize, layers: usize, heads: usize) -> Self {
        let part = |all: usize| all / heads.max(1);
        Self {
            vocabulary,
            width,
            layers,
            heads,
            key_dim: part(width / 2),
            value_dim: part(width),
            inner: (width * 8 / 3).next_multiple_of(256),
            eps: 1e-6,
            source: Source::LowRank { rank: 16, normalizer: 16.0 },
            bidirectional: false,
            positions: None,
            gate: OutputGate::Full,
            norm: NormOver::Heads,
        }
    }

    /// RetNet as published: values of twice the width, fixed decays, rotary positions of base 10000.
    pub fn retnet(vocabulary: usize, width: usize, layers: usize, heads: usize) -> Self {
        let part = |all: usize| all / heads.max(1);
        Self {
            key_dim: part(width),
            value_dim: part(2 * width),
            inner: (width * 4 / 3).next_multiple_of(256),
            source: Source::Retention,
            positions: Some(Positions { style: Style::Half, base: 1e4, grid: None }),
            ..Self::gla(vocabulary, width, layers, heads)
        }
    }

    /// LightNet as published: keys of 128, an output gate of rank 128, a norm of the whole row.
    pub fn light_net(vocabulary: usize, width: usize, layers: usize) -> Self {
        let heads = width / 128;
        Self {
            key_dim: 128,
            value_dim: width / heads.max(1),
            source: Source::Softmax,
            gate: OutputGate::LowRank(128),
            norm: NormOver::Row,
            ..Self::gla(vocabulary, width, layers, heads)
        }
    }

    /// Entries of all heads' keys.
    pub fn keys(&self) -> usize {
        self.heads * self.key_dim
    }

    /// Entries of all heads' values.
    pub fn values(&self) -> usize {
        self.heads * self.value_dim
    }

    /// How many times a key's width its state has: twice with the cosine form.
    pub(super) fn copies(&self) -> usize {
        if self.positions.is_some_and(|positions| positions.style == Style::Cosine) { 2 } else { 1 }
    }

    /// Columns of the projection that belong to keys. What makes weights of a key's entries makes them of both its copies.
    pub(super) fn key_columns(&self) -> usize {
        if self.source == Source::Softmax { self.copies() * self.keys() } else { self.keys() }
    }

    /// Rows of the projection of keys, values, the gate or what it is made of, and what decays are made of.
    pub(super) fn projected(&self) -> usize {
        self.key_columns() + self.values() + self.gate_width() + self.decay_rank()
    }

    /// Columns of the projection that belong to the gate.
    pub(super) fn gate_width(&self) -> usize {
        match self.gate {
            OutputGate::Full => self.values(),
            OutputGate::LowRank(rank) => rank,
        }
    }

    /// Columns of the projection that belong to decays.
    pub(super) fn decay_rank(&self) -> usize {
        match self.source {
            Source::LowRank { rank, .. } => rank,
            _ => 0,
        }
    }

    /// # Errors
    /// [`Error::Shape`] ← a size of 0; [`Error::Range`] ← a normalizer that is none; [`Error::NoKernel`] ← both directions where
    /// weights have an order.
    pub(super) fn check(&self) -> Result<()> {
        for (arg, size) in [
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("heads", self.heads),
            ("key_dim", self.key_dim),
            ("value_dim", self.value_dim),
            ("inner", self.inner),
            ("gate rank", self.gate_width()),
        ] {
            if size == 0 {
                return Err(Error::Shape { op: OP, arg, want: "at least 1".into(), got: vec![0] });
            }
        }
        if self.bidirectional && (self.source != Source::Softmax || self.positions.is_some()) {
            let request = "both directions of fixed or gated decays, or with positions".into();
            return Err(Error::NoKernel { op: OP, request });
        }
        match self.source {
            Source::LowRank { rank: 0, .. } => {
                Err(Error::Shape { op: OP, arg: "decay rank", want: "at least 1".into(), got: vec![0] })
            }
            Source::LowRank { normalizer, .. } if !(normalizer > 0.0 && normalizer.is_finite()) => {
                let got = normalizer as i64;
                Err(Error::Range { op: OP, arg: "normalizer", at: None, lo: 1, hi: i64::MAX, got })
            }
            _ => Ok(()),
        }
    }
}
