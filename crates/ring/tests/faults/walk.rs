//! A schedule without its kernels: every message has a few bytes.

use lookback_device::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use lookback_ring::{
    Layout, Partition, Result, Visible,
    schedule::{Job, Kind, Needs, Pass, Schedule, Transfer, schedule},
    transport::{Label, Message, Transport},
};
use std::{fs, sync::Arc, thread, time::Duration};

/// Bytes of a message.
const BYTES: usize = 16;

/// One schedule of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    pub kind: Kind,
    pub pass: Pass,
    pub ranks: usize,
}

/// A rank and a step of its in which messages move, and whether it sends any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub step: usize,
    pub sends: bool,
}

/// All kinds for 2 to 4 ranks.
pub fn walks(passes: &[Pass]) -> Vec<Walk> {
    let mut all = Vec::new();
    for ranks in 2..=4 {
        let mut kinds =
            vec![Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 2 }, Kind::Ulysses];
        if ranks == 4 {
            kinds.push(Kind::TwoLevel { node: 2 });
        }
        all.extend(kinds.into_iter().flat_map(|kind| passes.iter().map(move |pass| Walk { kind, pass: *pass, ranks })));
    }
    all
}

impl Walk {
    /// Everybody sees everybody, so everybody waits for everybody.
    fn schedule(&self, rank: usize) -> Schedule {
        let layout = Layout { partition: Partition::Zigzag, tokens: 8 * self.ranks, ranks: self.ranks };
        let needs = Needs::new(&layout, &Visible::full(layout.tokens));
        let job = Job { layout, heads: 12, key_heads: 12, needs };
        schedule(self.kind, self.pass, &job, rank).expect("a schedule")
    }

    /// Steps of the rank that has the most.
    pub fn steps(&self) -> usize {
        (0..self.ranks).map(|rank| self.schedule(rank).steps.len()).max().unwrap_or_default()
    }

    /// Every rank and step in which messages move.
    pub fn places(&self) -> Vec<Place> {
        let of = |rank: usize| {
            let steps = self.schedule(rank).steps.into_iter().enumerate();
            let moves = steps.filter(|(_, step)| !step.send.is_empty() || !step.receive.is_empty());
            moves.map(move |(at, step)| Place { rank, step: at, sends: !step.send.is_empty() }).collect::<Vec<_>>()
        };
        (0..self.ranks).flat_map(of).collect()
    }

    /// One rank's part of three operations: what is only found when the next message of a rank is looked for, at the end of the second, is
    /// known to all in the third. `change` sees what a step of the first one is about to send.
    pub fn run(
        &self,
        end: &mut dyn Transport,
        stream: &Arc<CudaStream>,
        mut change: impl FnMut(usize, &mut Vec<Message>) -> Result<()>,
    ) -> Result<()> {
        let steps = self.schedule(end.rank()).steps;
        let count = |step: &lookback_ring::schedule::Step| step.send.len() + step.receive.len();
        let most: usize = steps.iter().map(count).sum();
        let mut memory: CudaSlice<u8> = stream.alloc_zeros(2 * most.max(1) * BYTES).expect("memory");
        let (base, _held) = memory.device_ptr_mut(stream);
        for operation in 0..3 {
            let number = end.next_operation();
            let mut at = base;
            for (index, step) in steps.iter().enumerate() {
                let mut messages = |transfers: &[Transfer]| -> Vec<Message> {
                    let message = |Transfer { peer, parcel, steps }: &Transfer| {
                        at += BYTES as u64;
                        Message {
                            peer: *peer,
                            label: Label { operation: number, step: index as u32, parcel: parcel.clone() },
                            segments: vec![(at - BYTES as u64, BYTES)],
                            steps: *steps as u32,
                        }
                    };
                    transfers.iter().map(message).collect()
                };
                let (mut send, receive) = (messages(&step.send), messages(&step.receive));
                if operation == 0 {
                    change(index, &mut send)?;
                }
                // SAFETY: every message has memory of its own, which lives as long as this call.
                let done = unsafe {
                    let begun = end.begin(index as u32, stream, &send, &receive);
                    begun.and_then(|()| end.end(index as u32, stream))
                };
                done.inspect_err(|error| end.abort(error))?;
            }
        }
        Ok(())
    }
}

/// Threads of this process.
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Threads of this process once there are as many as `want`, or after a while.
pub fn settled_threads(want: usize) -> usize {
    // One that was waited for may be listed a moment longer.
    for _ in 0..500 {
        if threads() == want {
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    threads()
}
