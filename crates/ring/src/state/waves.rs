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

#[cfg(test)]
mod tests {
    use super::{
        super::dealt::{Deal, Passing},
        *,
    };

    fn lanes(kind: usize, passing: Passing) -> (Vec<Lane>, bool) {
        let blocks = passing.blocks();
        let set = |heads: Range<usize>, reverse: bool| {
            let bound = move |n: usize| heads.start + heads.len() * n / blocks;
            (0..blocks).map(move |block| Lane { heads: bound(block)..bound(block + 1), reverse, block })
        };
        match kind {
            0 => (set(0..6, false).collect(), false),
            1 => (set(0..6, true).collect(), false),
            2 => (set(0..3, false).chain(set(3..6, true)).collect(), false),
            _ => (set(0..6, false).chain(set(0..6, true)).collect(), true),
        }
    }

    #[test]
    fn every_message_is_sent_and_awaited_once_and_every_walk_comes_after_its_states() {
        let documents = [None, Some(vec![0, 7, 20]), Some(vec![0, 5, 10, 15, 20]), Some(vec![0, 1, 2, 19, 20])];
        for documents in documents {
            for passing in [Passing::Serial, Passing::AllGather, Passing::Pipelined { blocks: 3 }] {
                for (kind, ranks) in (0..4).flat_map(|kind| [1, 2, 3, 4, 7, 25].map(|ranks| (kind, ranks))) {
                    let what = format!("{documents:?} {passing:?} {kind} of {ranks}");
                    let (lanes, both) = lanes(kind, passing);
                    let (mut sent, mut awaited) = (Vec::new(), Vec::new());
                    for rank in 0..ranks {
                        let deal = Deal { ranks, documents: documents.clone(), passing };
                        let dealt = Dealt::new("test", &deal, 1, 20, rank).expect("good");
                        let steps = steps(&dealt, Item::State, &lanes, both);
                        assert!(steps.is_sorted_by(|a, b| a.number < b.number), "{what}");
                        for (at, step) in steps.iter().enumerate() {
                            let mail = |mail: &Mail, from: usize, to: usize, total: bool| {
                                (step.number, from, to, mail.parcel.clone(), total)
                            };
                            for each in &step.send {
                                let with_total = each.slot == Slot::LeavingWithTotal;
                                sent.push(mail(each, rank, each.peer, with_total));
                                let before = &steps[..at];
                                let made = [Task::Walk(each.lane), Task::State(each.lane)];
                                let is_made = |s: &Step| s.tasks.iter().any(|task| made.contains(task));
                                assert!(before.iter().any(is_made), "{what}: rank {rank} sends what it has not");
                            }
                            for each in &step.receive {
                                let with_total = matches!(each.slot, Slot::Gathered(n) if n > 0);
                                awaited.push(mail(each, each.peer, rank, with_total));
                                let last = |s: &Step| {
                                    s.tasks.iter().any(|task| match task {
                                        Task::Walk(lane) => *lane == each.lane,
                                        Task::Both(block) => *block == lanes[each.lane].block,
                                        _ => false,
                                    })
                                };
                                let end = steps.iter().rposition(last).expect("results");
                                assert!(end > at, "{what}: rank {rank} walks before its states came");
                            }
                        }
                    }
                    let key = |m: &(u32, usize, usize, Parcel, bool)| (m.0, m.1, m.2, m.3.heads.start);
                    sent.sort_by_key(key);
                    awaited.sort_by_key(key);
                    assert_eq!(sent, awaited, "{what}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_walked_side_by_side() {
        let passing = Passing::Pipelined { blocks: 3 };
        let walked = |rank: usize| -> Vec<u32> {
            let deal = Deal { ranks: 3, documents: None, passing };
            let dealt = Dealt::new("test", &deal, 1, 20, rank).expect("good");
            let steps = steps(&dealt, Item::State, &lanes(0, passing).0, false);
            steps.iter().filter(|step| !step.tasks.is_empty()).map(|step| step.number).collect()
        };
        assert_eq!([walked(0), walked(1), walked(2)], [vec![0, 1, 2], vec![2, 3, 4], vec![4, 5, 6]]);
    }
}
