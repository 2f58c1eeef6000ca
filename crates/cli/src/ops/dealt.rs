//! Recurrences on a sequence that is dealt to ranks: a run of neighbouring tokens to each, between which states pass.

use super::{
    Inputs,
    inputs::AttributeSpec,
    ranks::{Group, Part},
};
use crate::{
    Result,
    tensor::{Kind, Tensor},
};
use lookback_ring::{
    Layout, Partition,
    state::{Deal, Passing},
};
use std::ops::Range;

/// How many ranks.
pub const RANKS: AttributeSpec = AttributeSpec {
    name: "ranks",
    values: "1 to 64",
    default: "1",
    about: "deals the sequence to as many ranks, if no launcher says how many",
};
/// How states pass.
pub const SCHEDULE: AttributeSpec = AttributeSpec {
    name: "schedule",
    values: "serial|pipelined|allgather",
    default: "serial",
    about: "how states get from rank to rank: in turn, in turn by blocks of heads or channels, to all at once",
};
/// Blocks that pass one after the other.
pub const BLOCKS: AttributeSpec = AttributeSpec {
    name: "blocks",
    values: "1 to heads or channels",
    default: "2",
    about: "blocks each way, with schedule=pipelined",
};

/// A whole, and which rows of it each rank has.
pub struct Dealt {
    /// The ranks.
    pub group: Group,
    /// As plans take it.
    pub deal: Deal,
    batch: usize,
    tokens: usize,
}

impl Dealt {
    /// If the user asks for it by `ranks` or `schedule`. Packed sequences have been checked.
    pub fn of(inputs: &Inputs) -> Result<Option<Self>> {
        let is_asked = ["ranks", "schedule"].iter().any(|name| inputs.is_set(name));
        if !is_asked {
            return match ["blocks", "timeout", "transport"].iter().find(|name| inputs.is_set(name)) {
                Some(name) => Err(inputs.wrong(name, "wants ranks or schedule".into())),
                None => Ok(None),
            };
        }
        let blocks = inputs.parse("blocks")?;
        let passings = [
            ("serial", Passing::Serial),
            ("pipelined", Passing::Pipelined { blocks }),
            ("allgather", Passing::AllGather),
        ];
        let passing = inputs.choose("schedule", &passings)?;
        if inputs.is_set("blocks") && passing != (Passing::Pipelined { blocks }) {
            return Err(inputs.wrong("blocks", "wants schedule=pipelined".into()));
        }
        let group = Group::of(inputs)?;
        let starts = inputs.optional("cu_seqlens").map(Tensor::as_indices);
        let documents = starts.map(|starts| starts.into_iter().map(|start| start as usize).collect());
        let deal = Deal { ranks: group.ranks, documents, passing };
        Ok(Some(Self { group, deal, batch: inputs.extent('B'), tokens: inputs.extent('T') }))
    }

    fn range(&self, rank: usize) -> Range<usize> {
        let layout = Layout { partition: Partition::Contiguous, tokens: self.tokens, ranks: self.deal.ranks };
        layout.position(rank, 0)..layout.position(rank, 0) + layout.len(rank)
    }

    /// Sequences that have tokens on a rank or go on across it, and whether each goes on before and after it.
    fn rows(&self, rank: usize) -> Vec<(usize, bool, bool)> {
        let Range { start: low, end: high } = self.range(rank);
        let Some(starts) = &self.deal.documents else {
            return (0..self.batch).map(|row| (row, rank > 0, rank + 1 < self.deal.ranks)).collect();
        };
        let ends = starts.windows(2).enumerate().map(|(row, ends)| (row, ends[0], ends[1]));
        let here = ends.filter(|(_, start, end)| start < end && *start < high.max(low) && *end > low);
        here.map(|(row, start, end)| (row, start < low, end > high)).collect()
    }

    /// Rows of a rank's states: one at least.
    pub fn sequences(&self, rank: usize) -> usize {
        self.rows(rank).len().max(1)
    }

    /// What a rank is given: its tokens, states of its sequences, and all of what is neither. Starts are the plan's own.
    pub fn part(&self, rank: usize, inputs: &Inputs) -> Inputs {
        inputs.map(|letters, tensor| match letters {
            ["B", "T", ..] => Some(self.tokens_of(rank, tensor)),
            ["N", ..] => Some(self.states_of(rank, tensor)),
            ["N+1"] => None,
            _ => Some(tensor.clone()),
        })
    }

    fn tokens_of(&self, rank: usize, tensor: &Tensor) -> Tensor {
        let (Range { start, end }, bytes) = (self.range(rank), tensor.bytes());
        let width = bytes.len() / (self.batch * self.tokens).max(1);
        let row = |b: usize| &bytes[(b * self.tokens + start) * width..(b * self.tokens + end) * width];
        let mut shape = tensor.shape.clone();
        shape[1] = end - start;
        Tensor::new(tensor.kind, &shape, (0..self.batch).flat_map(row).copied().collect())
    }

    fn states_of(&self, rank: usize, tensor: &Tensor) -> Tensor {
        let (rows, bytes) = (self.rows(rank), tensor.bytes());
        let width = bytes.len() / tensor.shape[0].max(1);
        let mut part: Vec<u8> =
            rows.iter().flat_map(|(row, ..)| &bytes[row * width..(row + 1) * width]).copied().collect();
        part.resize(self.sequences(rank) * width, 0);
        let mut shape = tensor.shape.clone();
        shape[0] = self.sequences(rank);
        Tensor::new(tensor.kind, &shape, part)
    }

    /// Every rank's tokens of output number `at`, `[B,T,..]`.
    pub fn join_tokens(&self, parts: &[Part], at: usize, kind: Kind, shape: &[usize]) -> Tensor {
        let bytes = |part: &Part| part.get(at).map_or(0, Vec::len);
        let mut all = vec![0; parts.iter().map(bytes).sum()];
        let width = all.len() / (self.batch * self.tokens).max(1);
        for (rank, part) in parts.iter().enumerate() {
            let Range { start, end } = self.range(rank);
            for b in (0..self.batch).filter(|_| start < end) {
                let (from, to) = (b * (end - start) * width, (b * self.tokens + start) * width);
                let len = (end - start) * width;
                all[to..to + len].copy_from_slice(&part[at][from..from + len]);
            }
        }
        Tensor::new(kind, shape, all)
    }

    /// States of output number `at`, f32 `[N,units,..]`, from the rank where each ends: the last that has tokens of its sequence, or, of
    /// a unit that `is_reverse`, the first. Those of sequences without tokens are `initial`, or zero.
    pub fn join_states(
        &self,
        parts: &[Part],
        at: usize,
        shape: &[usize],
        initial: Option<&Tensor>,
        is_reverse: impl Fn(usize) -> bool,
    ) -> Tensor {
        let units = shape[1].max(1);
        let unit = shape[2..].iter().product::<usize>() * size_of::<f32>();
        let zeros = || vec![0; shape.iter().product::<usize>() * size_of::<f32>()];
        let mut all = initial.map_or_else(zeros, |initial| initial.bytes().to_vec());
        for (rank, part) in parts.iter().enumerate() {
            for (local, (row, before, after)) in self.rows(rank).into_iter().enumerate() {
                let ends_here = |n: &usize| !(if is_reverse(*n) { before } else { after });
                for n in (0..units).filter(ends_here) {
                    let (from, to) = ((local * units + n) * unit, (row * units + n) * unit);
                    all[to..to + unit].copy_from_slice(&part[at][from..from + unit]);
                }
            }
        }
        Tensor::new(Kind::Float(lookback_device::DType::F32), shape, all)
    }
}
