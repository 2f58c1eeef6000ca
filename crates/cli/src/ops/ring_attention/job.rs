//! What the user's tensors and attributes ask of the ranks.

use super::super::{Inputs, ranks::Group};
use crate::{CliError, Result, output::note, tensor::Tensor};
use lookback_device::{DType, cu_seqlens};
use lookback_reference::attention as reference;
use lookback_ring::{
    FAR, Layout, Partition, Visible,
    attention::{Options, Shape},
    cost::{Estimate, Machine, Sizes, candidates},
    schedule::{Kind, Pass},
};

/// Sizes, switches and mask, whoever the ranks are.
pub struct Setting {
    /// Sizes.
    pub shape: Shape,
    /// Switches; the schedule is still open.
    pub options: Options,
    /// Tokens of the whole.
    pub tokens: usize,
    /// What they see.
    pub visible: Visible,
}

impl Setting {
    /// Of tensors in `dtype`.
    pub fn of(inputs: &Inputs, dtype: DType) -> Result<Self> {
        let [batch, tokens, heads, key_heads, head_dim, value_dim] =
            ['B', 'T', 'H', 'G', 'D', 'V'].map(|letter| inputs.extent(letter));
        let shape = Shape { batch, heads, key_heads, head_dim, value_dim };
        let default = Options::new(&shape, dtype);
        let options = Options {
            scale: if inputs.is_set("scale") { inputs.number("scale", 0.0)? } else { default.scale },
            softcap: match inputs.attribute("softcap") {
                "none" => None,
                _ => Some(inputs.number("softcap", 0.0)?),
            },
            ..default
        };
        Ok(Self { shape, options, tokens, visible: visible(inputs, tokens)? })
    }

    /// Calls a function of the reference with the whole.
    pub fn reference<R>(
        &self,
        inputs: &Inputs,
        act: impl FnOnce(&reference::Attention<'_>, &reference::Inputs<'_>) -> Result<R>,
    ) -> Result<R> {
        let [q, k, v] = ["q", "k", "v"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
        let (q, k, v) = (q?, k?, v?);
        let Shape { batch, heads, key_heads, head_dim, value_dim } = self.shape;
        let starts: Vec<i32> = self.visible.documents.iter().map(|start| *start as i32).collect();
        let prefix_len = inputs.optional("prefix_len").map(Tensor::as_indices);
        let far = |reach: i64| reach.min(reference::FAR);
        let mask = reference::Mask {
            prefix_len: prefix_len.as_deref(),
            ..reference::Mask::window(far(self.visible.left), far(self.visible.right), self.visible.sink_tokens as i64)
        };
        let packed = (batch == 1).then_some(&starts[..]);
        let attention = reference::Attention {
            key_heads,
            value_dim,
            scale: f64::from(self.options.scale),
            softcap: self.options.softcap.map(f64::from),
            mask,
            cu_seqlens_q: packed,
            cu_seqlens_k: packed,
            ..reference::Attention::dense(batch, self.tokens, self.tokens, heads, head_dim)
        };
        act(&attention, &reference::Inputs { q: &q, k: &k, v: &v })
    }
}

/// What all ranks agree on.
pub struct Job {
    /// Sizes.
    pub shape: Shape,
    /// Switches.
    pub options: Options,
    /// Who has which token.
    pub layout: Layout,
    /// What tokens see.
    pub visible: Visible,
}

impl Job {
    /// Chooses a schedule, or takes the one that is asked for.
    pub fn of(inputs: &Inputs, dtype: DType, group: &Group, pass: Pass) -> Result<Self> {
        let setting = Setting::of(inputs, dtype)?;
        let partition = inputs.choose(
            "partition",
            &[("contiguous", Partition::Contiguous), ("zigzag", Partition::Zigzag), ("striped", Partition::Striped)],
        )?;
        let kinds = [
            ("auto", None),
            ("ring", Some(Kind::Ring)),
            ("bidirectional", Some(Kind::Bidirectional)),
            ("two_level", Some(Kind::TwoLevel { node: inputs.parse("node")? })),
            ("tokenring", Some(Kind::TokenRing)),
            ("allgather", Some(Kind::AllGather { groups: inputs.parse("groups")? })),
            ("ulysses", Some(Kind::Ulysses)),
        ];
        let (kind, partition) = match inputs.choose("schedule", &kinds)? {
            Some(kind) => (kind, partition),
            None => {
                let best = best(&setting, group, pass, inputs.is_set("partition").then_some(partition))?;
                (best.kind, best.partition)
            }
        };
        let Setting { shape, options, tokens, visible } = setting;
        let layout = Layout { partition, tokens, ranks: group.ranks };
        Ok(Self { shape, options: Options { kind, ..options }, layout, visible })
    }

    /// A rank's rows of a tensor with rows of `width`.
    pub fn part<T: Copy>(&self, rank: usize, all: &[T], width: usize) -> Vec<T> {
        let rows = self.places(rank).map(|row| &all[row * width..][..width]);
        rows.flatten().copied().collect()
    }

    /// A rank's rows back where they belong.
    pub fn put<T: Copy>(&self, rank: usize, part: &[T], all: &mut [T], width: usize) {
        for (row, part) in self.places(rank).zip(part.chunks_exact(width.max(1))) {
            all[row * width..][..width].copy_from_slice(part);
        }
    }

    /// Rows of the whole that a rank has, in order.
    fn places(&self, rank: usize) -> impl Iterator<Item = usize> {
        let layout = self.layout;
        (0..self.shape.batch)
            .flat_map(move |b| (0..layout.len(rank)).map(move |i| b * layout.tokens + layout.position(rank, i)))
    }
}

/// The schedule with the least time by the model; says which, and what came next.
fn best(setting: &Setting, group: &Group, pass: Pass, partition: Option<Partition>) -> Result<Estimate> {
    let Setting { shape, options, tokens, visible } = setting;
    let sizes = Sizes { head_dim: shape.head_dim, value_dim: shape.value_dim, element: options.dtype.size() };
    let heads = (shape.heads, shape.key_heads);
    let mut found = candidates(pass, *tokens, group.ranks, heads, visible, &sizes, &Machine::HOPPER)?;
    found.retain(|estimate| partition.is_none_or(|partition| estimate.partition == partition));
    if group.is_first() {
        for (place, estimate) in found.iter().take(3).enumerate() {
            let took = if place == 0 { "took" } else { "before" };
            note(format_args!("schedule=auto {took} {estimate} (model of Hopper GPUs)"));
        }
    }
    found.into_iter().next().ok_or_else(|| CliError::Failed("no schedule fits".into()))
}

/// What a token sees.
fn visible(inputs: &Inputs, tokens: usize) -> Result<Visible> {
    let reach = |name| match inputs.attribute(name) {
        "all" => Ok(FAR),
        _ => inputs.parse::<u32>(name).map(i64::from),
    };
    let full = Visible::full(tokens);
    let causal = Visible::causal(tokens);
    let mask = inputs.attribute("mask");
    for name in ["left", "right", "sink_tokens"] {
        if inputs.is_set(name) && mask != "window" {
            return Err(inputs.wrong(name, "wants mask=window".into()));
        }
    }
    let index =
        inputs.choose("mask", &[("full", 0), ("causal", 1), ("anti_causal", 2), ("prefix", 3), ("window", 4)])?;
    for name in ["cu_seqlens", "prefix_len"] {
        if inputs.optional(name).is_some() && inputs.extent('B') != 1 {
            return Err(inputs.wrong(name, format!("wants one row, got B = {}", inputs.extent('B'))));
        }
    }
    let mut visible = match index {
        0 => full,
        1 | 3 => causal,
        2 => Visible { left: -1, ..full },
        _ => Visible {
            left: reach("left")?,
            right: reach("right")?,
            sink_tokens: inputs.parse::<u32>("sink_tokens")? as usize,
            ..full
        },
    };
    if let Some(starts) = inputs.optional("cu_seqlens") {
        let starts = starts.as_indices();
        if starts.len() < 2 {
            return Err(inputs.wrong("cu_seqlens", format!("wants at least 2 entries, got {}", starts.len())));
        }
        cu_seqlens(&starts, tokens).map_err(|error| inputs.wrong("cu_seqlens", error.to_string()))?;
        visible.documents = starts.iter().map(|start| *start as usize).collect();
    }
    let documents = visible.documents.len() - 1;
    match (inputs.optional("prefix_len"), index) {
        (Some(lengths), 3) if lengths.len() == documents => {
            let lengths = lengths.as_indices();
            if let Some(bad) = lengths.iter().find(|n| **n < 0) {
                return Err(inputs.wrong("prefix_len", format!("must be at least 0, got {bad}")));
            }
            visible.prefix_len = lengths.iter().map(|n| *n as usize).collect();
        }
        (Some(lengths), 3) => {
            let why = format!("must have {documents} entries, got {:?}", lengths.shape);
            return Err(inputs.wrong("prefix_len", why));
        }
        (Some(_), _) => return Err(inputs.wrong("prefix_len", "wants mask=prefix".into())),
        (None, 3) => return Err(inputs.wrong("prefix_len", "is missing, mask=prefix wants it".into())),
        (None, _) => {}
    }
    Ok(visible)
}
