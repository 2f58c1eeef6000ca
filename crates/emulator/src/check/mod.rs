//! The sanitizer: happens-before over warps, shadow memory, and reports.
//!
//! The interpreter runs all CTAs of a launch on one thread and is sequentially consistent, so a kernel with a missing
//! barrier or fence usually gives the right numbers. This module decides whether the PTX memory model *promised* them.
//! `crates/emulator/README.md` says what is modelled and what cannot be caught.
//!
//! # How the interpreter calls it
//!
//! One [`Sanitizer`] per checked launch. [`Sanitizer::cta_start`] when a CTA becomes resident, [`Sanitizer::cta_exit`]
//! when its last warp has ended. For each instruction, *after* bounds and alignment have been checked:
//!
//! | instruction | calls |
//! |---|---|
//! | `ld/st/atom/red.shared`, `ldmatrix` ([`Kind::LoadMatrix`]), `stmatrix` | [`Sanitizer::shared_access`] |
//! | `ld/st/atom/red.global` of any order | [`Sanitizer::global_access`], which also acquires and releases |
//! | `fence`, `membar` | [`Sanitizer::fence`] |
//! | `bar.sync`, `bar.red`, `barrier.*` | [`Sanitizer::barrier_arrive`] by every arriving warp, then [`Sanitizer::barrier_complete`] once |
//! | `bar.arrive` | [`Sanitizer::barrier_arrive`] |
//! | `bar.warp.sync` | [`Sanitizer::warp_sync`] |
//! | `shfl.sync`, `vote.sync`, `match.sync`, `redux.sync` | [`Sanitizer::collective`] |
//! | `mbarrier.arrive` | [`Sanitizer::mbarrier_arrive`], then [`Sanitizer::mbarrier_phase`] if it completed a phase |
//! | successful `mbarrier.test_wait/try_wait` | [`Sanitizer::mbarrier_wait`] |
//! | `cp.async` | [`Sanitizer::global_access`] (a load) for the source, then [`Sanitizer::async_issue`] for the destination |
//! | `cp.async.wait_group/wait_all` | [`Sanitizer::async_complete`] for each copy whose lanes have now waited |
//! | lanes exit | [`Sanitizer::lanes_exit`] |

mod clock;
mod cta;
mod global;
mod hash;
mod lanes;
mod mark;
mod report;
mod request;
mod shared;
mod signal;
#[cfg(test)]
mod tests;
mod warp;
mod world;

pub use report::{Party, Violation, ViolationKind};
pub use request::{Agent, Kind, Order, Request, Scope};

use crate::memory::{MAX_ALLOCATION, MemoryView, OFFSET_BITS};
use cta::{Cta, lanes_of};
use global::{Access, Finding, Found, GlobalShadow};
use hash::NumberMap;
use lanes::{Runs, store_conflict};
use mark::{Mark, Strength};
use signal::Signal;
use warp::Warp;
use world::World;

/// What every checking call returns. Boxed, because it is on the hot path and nearly always `Ok`.
pub type Checked = Result<(), Box<Violation>>;

/// One warp-wide asynchronous copy that has been issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyId(u32);

/// Which optional checks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lints {
    /// Report lanes of one warp that hand data to each other through memory with nothing but convergence between.
    pub lane_order: bool,
    /// Let `shfl`, `vote`, `match` and `redux` order the lanes of a warp. The memory model gives that to
    /// `bar.warp.sync` alone.
    pub collectives_order_lanes: bool,
}

/// Shape of the launch that is checked.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// CTAs of the grid.
    pub ctas: u32,
    /// Threads of a CTA.
    pub threads: u32,
    /// Shared memory of a CTA, static and dynamic.
    pub shared_bytes: u32,
    /// Address of its first byte, as the program sees it.
    pub shared_base: u32,
}

impl Shape {
    fn warps(&self) -> usize {
        self.threads.div_ceil(32).clamp(1, 32) as usize
    }
}

/// Checks one launch.
#[derive(Debug)]
pub struct Sanitizer {
    shape: Shape,
    lints: Lints,
    /// Where resident CTAs are in `residents`.
    places: NumberMap<u32, usize>,
    /// The CTA asked for last, which is nearly always the next one too, and its place.
    last: (u32, usize),
    residents: Vec<Option<Cta>>,
    /// Bodies of CTAs that are over, for the next ones.
    retired: Vec<Cta>,
    shadow: GlobalShadow,
    signals: NumberMap<u64, Signal>,
}

impl Sanitizer {
    /// A sanitizer for one launch over the memory of `view`.
    pub fn new(shape: Shape, view: &MemoryView, lints: Lints) -> Self {
        Self {
            shape,
            lints,
            places: NumberMap::default(),
            last: (0, usize::MAX),
            residents: Vec::new(),
            retired: Vec::new(),
            shadow: GlobalShadow::new(view.clone()),
            signals: NumberMap::default(),
        }
    }

    /// A CTA becomes resident: its shared memory is uninitialised, its warps know nothing.
    pub fn cta_start(&mut self, cta: u32) {
        let body = match self.retired.pop() {
            Some(body) => body.reuse(cta, &self.shape),
            None => Cta::new(cta, &self.shape),
        };
        let free = self.residents.iter().position(Option::is_none).unwrap_or_else(|| {
            self.residents.push(None);
            self.residents.len() - 1
        });
        self.residents[free] = Some(body);
        self.places.insert(cta, free);
    }

    /// The last warp of a CTA has ended. What it published stays.
    pub fn cta_exit(&mut self, cta: u32) {
        if let Some(place) = self.places.remove(&cta) {
            self.retired.extend(self.residents[place].take());
            self.last = (0, usize::MAX);
        }
    }

    /// Lanes ended: nobody waits for them at `bar.warp.sync` any more.
    pub fn lanes_exit(&mut self, agent: Agent, mask: u32) {
        if let Some(warp) = self.warp(agent) {
            warp.exit(mask);
        }
    }

    /// Shared memory. `addresses` are the program's; `values` holds what a store writes, one row of lanes per 4 bytes
    /// (narrower values in the low bits), and is empty for loads and atomics.
    #[inline]
    pub fn shared_access(&mut self, request: &Request, addresses: &[u32; 32], values: &[&[u32; 32]]) -> Checked {
        let runs = Runs::new(request.mask, addresses, request.bytes);
        if request.kind == Kind::Store
            && !runs.are_distinct()
            && let Some((a, b)) = store_conflict(request.mask, addresses, request.bytes, values)
        {
            let place = format!("shared address {:#x}", addresses[a as usize]);
            return Err(lane_conflict(request, place, a, b));
        }
        let lints = self.lints;
        match self.cta(request.agent.cta) {
            Some(cta) => cta.access(request, addresses, runs, lints),
            None => Ok(()),
        }
    }

    /// Global memory, and the acquire or release that the access carries. `values` as for shared memory.
    ///
    /// For a load call it when the value is read, for a store when it is written.
    #[inline]
    pub fn global_access(&mut self, request: &Request, addresses: &[u64; 32], values: &[&[u32; 32]]) -> Checked {
        let runs = Runs::new(request.mask, addresses, request.bytes);
        if request.kind == Kind::Store
            && !runs.are_distinct()
            && let Some((a, b)) = store_conflict(request.mask, addresses, request.bytes, values)
        {
            return Err(lane_conflict(request, self.place(addresses[a as usize]), a, b));
        }
        let strong = request.order != Order::Weak || request.kind == Kind::Atomic;
        let (reads, writes) = (request.kind.reads(), request.kind.writes());
        if strong && reads {
            self.read_signals(request, addresses);
        }
        let warps = self.shape.warps() as u32;
        let Agent { cta, warp: index } = request.agent;
        let place = self.place_of(cta);
        let Some(Some(body)) = self.residents.get(place) else { return Ok(()) };
        let Some(warp) = body.warps.get(index as usize) else { return Ok(()) };
        let strength = match (strong, request.scope) {
            _ if request.kind == Kind::LoadNonCoherent => Strength::NonCoherent,
            (false, _) => Strength::Weak,
            (true, Scope::Cta) => Strength::Cta,
            (true, Scope::Gpu) => Strength::Gpu,
        };
        let agent = cta.wrapping_mul(warps).wrapping_add(index).wrapping_add(1);
        let mark = Mark::new(agent, warp.clock, request.line, request.bytes.trailing_zeros(), strength);
        let mut access = Access::new(warp, [cta, warps], request.bytes, mark).lane_order(self.lints.lane_order);
        let mut runs = runs.merge_equal(!writes && warp.is_uniform() && !self.lints.lane_order);
        loop {
            if runs.are_apart() && access.is_plain() {
                runs.keep(self.shadow.access_lanes(&mut access, writes, runs.mask(), addresses));
            }
            let Some(run) = runs.next() else { break };
            if let Err(found) = self.shadow.access(&mut access, reads, writes, run) {
                return Err(self.report(request, found));
            }
        }
        if strong && writes {
            self.write_signals(request, addresses);
        }
        Ok(())
    }

    /// `fence.acq_rel` or `fence.sc` (all `membar` are) by the lanes of `mask`.
    pub fn fence(&mut self, agent: Agent, mask: u32, scope: Scope) {
        if let Some(warp) = self.warp(agent) {
            warp.fence(mask, scope);
        }
    }

    /// `bar.warp.sync` over `mask` has completed.
    pub fn warp_sync(&mut self, agent: Agent, mask: u32) {
        if let Some(warp) = self.warp(agent) {
            warp.meet(mask);
        }
    }

    /// A warp collective that orders no memory has completed over `mask`.
    pub fn collective(&mut self, agent: Agent, mask: u32) {
        if self.lints.collectives_order_lanes {
            self.warp_sync(agent, mask);
        }
    }

    /// A warp arrives at CTA barrier `id`, whether it will wait there or not.
    pub fn barrier_arrive(&mut self, agent: Agent, id: u32) {
        if let Some(cta) = self.cta(agent.cta) {
            cta.arrive(agent.warp, id);
        }
    }

    /// CTA barrier `id` completes and lets the warps of the bit mask `waiters` go on.
    pub fn barrier_complete(&mut self, cta: u32, id: u32, waiters: u32) {
        if let Some(cta) = self.cta(cta) {
            cta.complete(id, waiters);
        }
    }

    /// Lanes of `mask` arrive at the mbarrier at a shared address. `order` is `Release` (the default of the
    /// instruction) or `Relaxed`.
    pub fn mbarrier_arrive(&mut self, agent: Agent, mask: u32, address: u32, order: Order) {
        if order.releases()
            && let Some(cta) = self.cta(agent.cta)
        {
            cta.mbarrier_arrive(agent.warp, mask, address);
        }
    }

    /// The mbarrier's current phase completed.
    pub fn mbarrier_phase(&mut self, cta: u32, address: u32) {
        if let Some(cta) = self.cta(cta) {
            cta.mbarrier_phase(address);
        }
    }

    /// Lanes of `mask` saw the last completed phase of the mbarrier with an acquiring wait.
    pub fn mbarrier_wait(&mut self, agent: Agent, mask: u32, address: u32) {
        if let Some(cta) = self.cta(agent.cta) {
            cta.mbarrier_wait(agent.warp, mask, address);
        }
    }

    /// `mbarrier.init` and `mbarrier.inval`: forget what was published through it.
    pub fn mbarrier_reset(&mut self, cta: u32, address: u32) {
        if let Some(cta) = self.cta(cta) {
            cta.mbarrier_reset(address);
        }
    }

    /// An asynchronous copy to shared memory is issued: from now until [`Sanitizer::async_complete`] its destination
    /// may not be touched by anyone. `request.bytes` are those written per lane, zero fill included.
    pub fn async_issue(&mut self, request: &Request, addresses: &[u32; 32]) -> Result<CopyId, Box<Violation>> {
        match self.cta(request.agent.cta) {
            Some(cta) => cta.issue(request, addresses),
            None => Ok(CopyId(u32::MAX)),
        }
    }

    /// The lanes of `mask` have waited for that copy. Call it again for the others if lanes wait apart.
    pub fn async_complete(&mut self, agent: Agent, copy: CopyId, mask: u32) {
        if let Some(cta) = self.cta(agent.cta) {
            cta.settle(copy, mask);
        }
    }

    /// The part of the lanes of `mask` of that copy has completed on the mbarrier at a shared address: whoever waits for its
    /// phase sees the data.
    pub fn async_complete_on(&mut self, agent: Agent, copy: CopyId, mask: u32, address: u32) {
        let world = World::new(self.shape.ctas);
        if let Some(cta) = self.cta(agent.cta) {
            cta.settle_on(copy, mask, address, world);
        }
    }

    #[inline]
    fn cta(&mut self, cta: u32) -> Option<&mut Cta> {
        let place = self.place_of(cta);
        self.residents.get_mut(place)?.as_mut()
    }

    /// Place of a CTA among the residents; beyond all of them if it is not there.
    #[inline]
    fn place_of(&mut self, cta: u32) -> usize {
        if self.last.0 != cta || self.last.1 == usize::MAX {
            self.last = (cta, self.places.get(&cta).copied().unwrap_or(usize::MAX));
        }
        self.last.1
    }

    fn warp(&mut self, agent: Agent) -> Option<&mut Warp> {
        self.cta(agent.cta)?.warps.get_mut(agent.warp as usize)
    }

    fn read_signals(&mut self, request: &Request, addresses: &[u64; 32]) {
        if self.signals.is_empty() {
            return;
        }
        let signals = std::mem::take(&mut self.signals);
        if let Some(warp) = self.warp(request.agent) {
            for run in Runs::new(request.mask, addresses, request.bytes) {
                for (lane, address) in lanes_of(run, request.bytes) {
                    if let Some(signal) = signals.get(&address) {
                        signal.read(warp, request.agent.cta, 1 << lane, request.order, request.scope);
                    }
                }
            }
        }
        self.signals = signals;
    }

    fn write_signals(&mut self, request: &Request, addresses: &[u64; 32]) {
        let mut signals = std::mem::take(&mut self.signals);
        if let Some(warp) = self.warp(request.agent)
            && (request.order.releases() || !signals.is_empty() || !warp.never_fenced())
        {
            let modify = request.kind == Kind::Atomic;
            for run in Runs::new(request.mask, addresses, request.bytes) {
                for (lane, address) in lanes_of(run, request.bytes) {
                    let signal = signals.entry(address).or_default();
                    signal.write(warp, request.agent.cta, 1 << lane, request.order, request.scope, modify);
                    if signal.is_empty() {
                        signals.remove(&address);
                    }
                }
            }
        }
        self.signals = signals;
    }

    /// A pointer in words.
    fn place(&self, pointer: u64) -> String {
        let (number, offset) = (pointer >> OFFSET_BITS, pointer & (MAX_ALLOCATION - 1));
        format!("byte {offset} of allocation {number} ({} bytes), address {pointer:#x}", self.shadow.size(pointer))
    }

    #[cold]
    fn report(&self, request: &Request, (finding, pointer, lane): Found) -> Box<Violation> {
        let warps = self.shape.warps() as u32;
        let party = |mark: Mark, action| {
            let (cta, warp) = ((mark.agent - 1) / warps, (mark.agent - 1) % warps);
            Some(Party { cta, warp, lane: Some(mark.lane()), line: mark.line(), action })
        };
        let unordered = "nothing orders the two: no barrier, and no release that an acquire has seen";
        let (kind, before, advice) = match finding {
            Finding::AfterWrite(mark) => (ViolationKind::Race, party(mark, "wrote"), unordered),
            Finding::AfterRead(mark) => (ViolationKind::Race, party(mark, "read"), unordered),
            Finding::Uninitialised => {
                (ViolationKind::Uninitialised, None, "no copy, memset or kernel has ever written it")
            }
            Finding::ReadsWritten(mark) => (
                ViolationKind::NonCoherentRead,
                party(mark, "wrote"),
                "the non-coherent path may hold old data: use ld.global",
            ),
            Finding::WritesNonCoherent(mark) => (
                ViolationKind::NonCoherentRead,
                party(mark, "read (ld.global.nc)"),
                "memory read through the non-coherent path must stay unchanged while the grid runs",
            ),
            Finding::LaneOrder(mark) => (ViolationKind::LaneOrder, party(mark, "wrote"), "put bar.warp.sync between"),
            Finding::LaneOrderAfterRead(mark) => {
                (ViolationKind::LaneOrder, party(mark, "read"), "put bar.warp.sync between")
            }
        };
        let now = now(request, lane);
        Box::new(Violation { kind, place: self.place(pointer), now, before, advice })
    }
}

fn now(request: &Request, lane: u32) -> Party {
    let Agent { cta, warp } = request.agent;
    Party { cta, warp, lane: Some(lane), line: request.line, action: request.kind.verb() }
}

#[cold]
fn lane_conflict(request: &Request, place: String, a: u32, b: u32) -> Box<Violation> {
    let advice = "which value stays is undefined";
    let before = Some(Party { action: "wrote", ..now(request, a) });
    Box::new(Violation { kind: ViolationKind::LaneConflict, place, now: now(request, b), before, advice })
}
