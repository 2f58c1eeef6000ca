//! One CTA: its warps and their turns.

use super::prepare::Template;
use crate::exec::barrier::Barriers;
use crate::exec::machine::{Block, Faulted, Machine, Stop};
use crate::exec::random::Random;
use crate::exec::run;
use crate::exec::warp::{Row, State, Warp};
use crate::launch::{Convergence, WARP};
use crate::memory::POISON;
use crate::ptx::ast::SpecialRegister;
use std::collections::BTreeSet;

/// What came of a CTA's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// All its threads have exited.
    Ended,
    /// It has not ended: its quantum is used up, or its warps wait for something.
    Going,
}

/// A resident CTA.
pub(super) struct Cta {
    pub block: Block,
    pub warps: Vec<Warp>,
    /// Warps in use; the vector keeps others for a later CTA.
    count: usize,
    /// The warp whose turn is first.
    first: usize,
}

impl Default for Cta {
    fn default() -> Self {
        let block =
            Block { index: 0, id: [0; 3], shared: Vec::new(), barriers: Barriers::new(0), mbarriers: BTreeSet::new() };
        Self { block, warps: Vec::new(), count: 0, first: 0 }
    }
}

impl Cta {
    /// Make it CTA number `index` of the grid, about to begin.
    pub fn start(&mut self, m: &mut Machine<'_>, template: &Template, index: u64) {
        let [x, y, _] = m.config.grid;
        let (x, y) = (u64::from(x), u64::from(y));
        self.block.index = index as u32;
        self.block.id = [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32];
        self.block.shared.clear();
        self.block.shared.resize(template.shared_bytes as usize, POISON);
        self.block.barriers = Barriers::new(template.warps);
        self.block.mbarriers.clear();
        self.count = template.warps as usize;
        self.first = 0;
        if self.warps.len() < self.count {
            self.warps.resize_with(self.count, Warp::new);
        }
        for number in 0..template.warps {
            let lanes = (template.threads - number * WARP).min(WARP);
            let mask = u32::MAX >> (WARP - lanes);
            let random = match m.options.convergence {
                Convergence::Natural => None,
                Convergence::Random(seed) => Some(Random::new(seed ^ index << 16 ^ u64::from(number) << 48)),
            };
            let warp = &mut self.warps[number as usize];
            let used = warp.start(number, mask, &template.warp, random);
            for &(slot, special) in &template.varying {
                if !used || matches!(special, SpecialRegister::Ctaid(_) | SpecialRegister::SmId) {
                    warp.rows[usize::from(slot)] = special_row(m, &self.block, number, special);
                }
            }
        }
        if let Some(sanitizer) = &mut m.sanitizer {
            sanitizer.cta_start(self.block.index);
        }
    }

    /// Run until the end, until nothing can go on, or until every warp has had its quantum.
    pub fn turn(&mut self, m: &mut Machine<'_>) -> Result<Progress, Faulted> {
        let quota = u64::from(m.options.quantum.max(1)) * self.count as u64;
        let begin = m.clock;
        loop {
            let version = m.version;
            let (mut live, mut ran) = (false, false);
            for turn in 0..self.count {
                let number = (self.first + turn) % self.count;
                let warp = &mut self.warps[number];
                match warp.state {
                    State::Done => continue,
                    State::Barrier { .. } if !self.block.barriers.take_release(warp.index) => {
                        live = true;
                        continue;
                    }
                    _ => {}
                }
                live = true;
                match run::turn(m, &mut self.block, warp) {
                    Stop::Quantum => ran = true,
                    Stop::Spin => {}
                    Stop::Blocked => ran = true,
                    Stop::Done => {
                        ran = true;
                        self.leave(m, number);
                    }
                    Stop::Fault(fault) => return Err(fault),
                }
            }
            if !live {
                if let Some(sanitizer) = &mut m.sanitizer {
                    sanitizer.cta_exit(self.block.index);
                }
                return Ok(Progress::Ended);
            }
            let moved = ran || m.version != version;
            if !moved && !self.deliver(m)? {
                return Ok(Progress::Going);
            }
            if m.clock - begin >= quota {
                self.first = (self.first + 1) % self.count;
                return Ok(Progress::Going);
            }
        }
    }

    /// A warp has ended.
    fn leave(&mut self, m: &mut Machine<'_>, number: usize) {
        for (id, waiters) in self.block.barriers.leave(number as u32) {
            if let Some(sanitizer) = &mut m.sanitizer {
                sanitizer.barrier_complete(self.block.index, id, waiters);
            }
        }
    }

    /// Let copies land that mbarriers are waiting for.
    fn deliver(&mut self, m: &mut Machine<'_>) -> Result<bool, Faulted> {
        let mut any = false;
        for warp in self.warps[..self.count].iter_mut().filter(|warp| warp.copies.owes_arrivals()) {
            any |= run::deliver(m, &mut self.block, warp)?;
        }
        Ok(any)
    }

    /// The warps that have not ended.
    pub fn live_warps(&self) -> impl Iterator<Item = &Warp> {
        self.warps[..self.count].iter().filter(|warp| warp.state != State::Done)
    }
}

/// A special register that differs between threads, warps or CTAs.
fn special_row(m: &Machine<'_>, block: &Block, warp: u32, special: SpecialRegister) -> Row {
    use SpecialRegister as S;
    Row(std::array::from_fn(|lane| {
        let lane = lane as u32;
        match special {
            S::Tid(dimension) => m.thread(warp, lane)[dimension.index()],
            S::Ctaid(dimension) => block.id[dimension.index()],
            S::LaneId => lane,
            S::WarpId => warp,
            S::SmId => block.index % m.options.sm_count.max(1),
            S::LanemaskEq => 1 << lane,
            S::LanemaskLt => (1 << lane) - 1,
            S::LanemaskLe => u32::MAX >> (31 - lane),
            S::LanemaskGe => u32::MAX << lane,
            S::LanemaskGt => (u32::MAX << lane) & !(1 << lane),
            _ => 0,
        }
    }))
}
