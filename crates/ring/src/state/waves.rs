//! Who walks, sends and receives when, as data.
//!
//! Steps are numbered alike on all ranks. A lane with `i` ranks before this one is walked here in step `2 i + block`; its states arrive in
//! the step before and leave in the step after, beside other blocks.

use super::dealt::{Dealt, Passing, Way};
use crate::schedule::{Item, Parcel};
use std::{collections::BTreeMap, ops::Range};

/// Heads whose states travel together, one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    pub heads: Range<usize>,
    /// States go to the rank before.
    pub reverse: bool,
    /// Lanes of one block begin one after the other.
    pub block: usize,
}

/// What one rank does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Results and final states of a lane, from the states that arrived.
    Walk(usize),
    /// Final states of a lane alone.
    State(usize),
    /// What would be left of a state that arrives.
    Total(usize),
    /// The states that arrive, out of those that every rank before ends with.
    Fold(usize),
    /// Results of both lanes of a block.
    Both(usize),
}

/// Whose memory a message is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// States that a lane begins with.
    Arriving,
    /// States that it ends with.
    Leaving,
    /// States that it ends with, and what would be left of others.
    LeavingWithTotal,
    /// Those of this source.
    Gathered(usize),
}

/// A message before it has addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mail {
    pub peer: usize,
    pub parcel: Parcel,
    pub lane: usize,
    pub slot: Slot,
}

/// As [`crate::schedule::Step`]: transfers begin, tasks are done, transfers end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Step {
    pub number: u32,
    pub send: Vec<Mail>,
    pub receive: Vec<Mail>,
    pub tasks: Vec<Task>,
}

/// One rank's steps, which move `item`. With `both` a block has two lanes, one each way, and its results need what arrives on both.
pub(super) fn steps(dealt: &Dealt, item: Item, lanes: &[Lane], both: bool) -> Vec<Step> {
    let mut steps = Steps::default();
    let mut blocks = BTreeMap::new();
    for (index, lane) in lanes.iter().enumerate() {
        let way = Way { dealt, reverse: lane.reverse };
        let mail = |peer: usize, owner: usize, slot: Slot| Mail {
            peer,
            parcel: Parcel { item, owner, tokens: 0..dealt.carried(), heads: lane.heads.clone() },
            lane: index,
            slot,
        };
        let (before, after) = (way.before(), way.after());
        let state = if both { Task::State(index) } else { Task::Walk(index) };
        let ready = match dealt.passing {
            Passing::AllGather => {
                let alone = before.is_none() && !both;
                if after.is_some() || alone {
                    steps.at(0).tasks.push(state);
                }
                if way.through() {
                    steps.at(0).tasks.push(Task::Total(index));
                }
                let leaving = if way.through() { Slot::LeavingWithTotal } else { Slot::Leaving };
                for peer in way.targets() {
                    steps.at(1).send.push(mail(peer, dealt.rank, leaving));
                }
                for (at, peer) in way.sources().into_iter().enumerate() {
                    steps.at(1).receive.push(mail(peer, peer, Slot::Gathered(at)));
                }
                if before.is_some() {
                    steps.at(2).tasks.push(Task::Fold(index));
                }
                if before.is_some() && !both {
                    steps.at(2).tasks.push(state);
                }
                2
            }
            Passing::Serial | Passing::Pipelined { .. } => {
                let now = 2 * way.position() + lane.block;
                if let Some(peer) = before {
                    steps.at(now - 1).receive.push(mail(peer, peer, Slot::Arriving));
                }
                if after.is_some() || !both {
                    steps.at(now).tasks.push(state);
                }
                if let Some(peer) = after {
                    steps.at(now + 1).send.push(mail(peer, dealt.rank, Slot::Leaving));
                }
                now
            }
        };
        let last = blocks.entry(lane.block).or_insert(0);
        *last = ready.max(*last);
    }
    if both {
        for (block, ready) in blocks {
            steps.at(ready).tasks.push(Task::Both(block));
        }
    }
    steps.0.into_values().collect()
}

#[derive(Debug, Default)]
struct Steps(BTreeMap<usize, Step>);

impl Steps {
    fn at(&mut self, number: usize) -> &mut Step {
        self.0.entry(number).or_insert_with(|| Step { number: number as u32, ..Step::default() })
    }
}
