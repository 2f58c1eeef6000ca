//! One resident CTA: its warps, its barriers, its shared memory and the copies under way into it.

use super::clock::LAST_TICK;
use super::hash::NumberMap;
use super::lanes::{Run, Runs};
use super::report::{Party, Violation, ViolationKind};
use super::request::{Kind, Order, Request};
use super::shared::{Access, Finding, Found, Mark, SharedShadow};
use super::signal::Signal;
use super::warp::{Knowledge, Warp, agents};
use super::world::World;
use super::{CopyId, Lints, Shape};

/// An asynchronous copy under way.
#[derive(Debug, Clone)]
struct Copy {
    warp: u32,
    lanes: u32,
    addresses: [u32; 32],
    bytes: u32,
    line: u32,
}

/// What arrived at a barrier.
#[derive(Debug)]
struct Gathering {
    knowledge: Knowledge,
    warps: u32,
}

/// What arrived at an mbarrier in its present phase, and in the one before.
#[derive(Debug, Default)]
struct Phases {
    present: Option<Knowledge>,
    completed: Option<Knowledge>,
}

/// A resident CTA.
#[derive(Debug)]
pub(super) struct Cta {
    pub(super) id: u32,
    pub(super) warps: Vec<Warp>,
    shared_base: u32,
    shadow: SharedShadow,
    barriers: NumberMap<u32, Gathering>,
    mbarriers: NumberMap<u32, Phases>,
    signals: NumberMap<u32, Signal>,
    copies: Vec<Option<Copy>>,
    /// Barriers that all warps passed.
    generation: u32,
    /// Tick of the last bulk copy.
    bulk: u32,
}

impl Cta {
    /// A CTA that has just become resident.
    pub(super) fn new(id: u32, shape: &Shape) -> Self {
        let warps = shape.warps();
        let mut cta = Self {
            id,
            warps: Vec::new(),
            shared_base: shape.shared_base,
            shadow: SharedShadow::new(shape.shared_bytes, warps),
            barriers: NumberMap::default(),
            mbarriers: NumberMap::default(),
            signals: NumberMap::default(),
            copies: Vec::new(),
            generation: 1,
            bulk: 0,
        };
        cta.start(id, shape, 0);
        cta
    }

    /// Become another CTA in the same place. Clocks go on from where they were, so that what the shadow remembers of
    /// reads lies in everybody's past and need not be cleared.
    pub(super) fn reuse(mut self, id: u32, shape: &Shape) -> Self {
        let latest = self.warps.iter().map(Warp::latest).max().unwrap_or(0).max(self.bulk);
        if latest > LAST_TICK / 2 {
            return Self::new(id, shape);
        }
        self.shadow.reset();
        self.start(id, shape, latest);
        self
    }

    fn start(&mut self, id: u32, shape: &Shape, tick: u32) {
        self.id = id;
        self.bulk = tick;
        self.generation += 1;
        self.barriers.clear();
        self.mbarriers.clear();
        self.signals.clear();
        self.copies.clear();
        let count = shape.warps();
        self.warps = (0..count)
            .map(|warp| {
                let lanes = shape.threads.saturating_sub(32 * warp as u32).clamp(1, 32);
                let live = u32::MAX >> (32 - lanes);
                Warp::new(id, warp, count, live, tick, World::new(shape.ctas))
            })
            .collect();
    }

    /// A warp arrives at a barrier: its lanes meet there, and what they did is handed in.
    pub(super) fn arrive(&mut self, warp: u32, id: u32) {
        let Some(arriver) = self.warps.get_mut(warp as usize) else { return };
        arriver.meet(u32::MAX);
        let gathering = self
            .barriers
            .entry(id)
            .or_insert_with(|| Gathering { knowledge: arriver.knows(u32::MAX).clone(), warps: 0 });
        arriver.release_to(&mut gathering.knowledge);
        gathering.warps |= 1 << warp;
    }

    /// A barrier completes: everybody who waited learns what was handed in.
    pub(super) fn complete(&mut self, id: u32, waiters: u32) {
        let Some(gathering) = self.barriers.remove(&id) else { return };
        for (index, warp) in self.warps.iter_mut().enumerate() {
            if (waiters & gathering.warps) >> index & 1 == 1 {
                warp.adopt(&gathering.knowledge);
            }
        }
        let all = u32::MAX >> (32 - self.warps.len().clamp(1, 32));
        if gathering.warps == all && waiters & all == all {
            self.generation += 1;
        }
    }

    pub(super) fn mbarrier_arrive(&mut self, warp: u32, lanes: u32, address: u32) {
        let Some(arriver) = self.warps.get_mut(warp as usize) else { return };
        let knowledge = arriver.release(lanes);
        let phases = self.mbarriers.entry(address).or_default();
        match &mut phases.present {
            Some(present) => present.join(&knowledge),
            none => *none = Some(knowledge),
        }
    }

    pub(super) fn mbarrier_phase(&mut self, address: u32) {
        if let Some(phases) = self.mbarriers.get_mut(&address) {
            phases.completed = phases.present.take();
        }
    }

    pub(super) fn mbarrier_wait(&mut self, warp: u32, lanes: u32, address: u32) {
        let Some(waiter) = self.warps.get_mut(warp as usize) else { return };
        if let Some(completed) = self.mbarriers.get(&address).and_then(|phases| phases.completed.as_ref()) {
            waiter.acquire(lanes, |knowledge| knowledge.join(completed));
        }
    }

    pub(super) fn mbarrier_reset(&mut self, address: u32) {
        self.mbarriers.remove(&address);
    }

    /// A warp instruction on shared memory.
    #[inline]
    pub(super) fn access(
        &mut self,
        request: &Request,
        addresses: &[u32; 32],
        runs: Runs<'_, u32>,
        lints: Lints,
    ) -> Result<(), Box<Violation>> {
        let strong = request.kind == Kind::Atomic || request.order != Order::Weak;
        if strong && request.kind.reads() {
            self.read_signals(request, addresses);
        }
        let Some(warp) = self.warps.get(request.agent.warp as usize) else { return Ok(()) };
        let index = request.agent.warp as usize;
        let mut access = Access::new(warp, index, request.bytes, request.line, self.generation)
            .strong(request.line, strong)
            .lane_order(lints.lane_order)
            .for_all_lanes(request.kind == Kind::LoadMatrix);
        for run in runs.merge_equal(!request.kind.writes() && warp.is_uniform() && !lints.lane_order) {
            let run = Run { start: run.start.wrapping_sub(self.shared_base.into()), ..run };
            let mut found = if request.kind.reads() { self.shadow.read(&mut access, run) } else { Ok(()) };
            if request.kind.writes() && found.is_ok() {
                found = self.shadow.write(&mut access, run);
            }
            if let Err(found) = found {
                return Err(self.report(request, found));
            }
        }
        if strong && request.kind.writes() {
            self.write_signals(request, addresses);
        }
        Ok(())
    }

    /// Claim the destinations of an asynchronous copy.
    pub(super) fn issue(&mut self, request: &Request, addresses: &[u32; 32]) -> Result<CopyId, Box<Violation>> {
        let Some(warp) = self.warps.get(request.agent.warp as usize) else { return Ok(CopyId(u32::MAX)) };
        let index = request.agent.warp as usize;
        let mut access = Access::new(warp, index, request.bytes, request.line, self.generation);
        for run in Runs::new(request.mask, addresses, request.bytes) {
            let run = Run { start: run.start.wrapping_sub(self.shared_base.into()), ..run };
            if let Err(found) = self.shadow.claim(&mut access, run) {
                return Err(self.report(request, found));
            }
        }
        let copy = Copy {
            warp: request.agent.warp,
            lanes: request.mask,
            addresses: *addresses,
            bytes: request.bytes,
            line: request.line,
        };
        let free = self.copies.iter().position(Option::is_none).unwrap_or_else(|| {
            self.copies.push(None);
            self.copies.len() - 1
        });
        self.copies[free] = Some(copy);
        Ok(CopyId(free as u32))
    }

    /// The lanes of `mask` have waited for their part of a copy.
    pub(super) fn settle(&mut self, copy: CopyId, mask: u32) {
        let Some(copy) = self.take_lanes(copy, mask) else { return };
        let (agent, clock) = self.warps[copy.warp as usize].complete_copies(copy.lanes);
        self.settle_runs(&copy, agent, clock);
    }

    /// The lanes of `mask` have completed their part of a copy on an mbarrier: only who waits there sees it.
    pub(super) fn settle_on(&mut self, copy: CopyId, mask: u32, address: u32, world: World) {
        let Some(copy) = self.take_lanes(copy, mask) else { return };
        self.bulk = (self.bulk + 1).min(LAST_TICK);
        let agents = agents(self.warps.len());
        let mut knowledge = Knowledge::new(agents, 0, world);
        knowledge.local[agents - 1].all = self.bulk;
        let phases = self.mbarriers.entry(address).or_default();
        match &mut phases.present {
            Some(present) => present.join(&knowledge),
            none => *none = Some(knowledge),
        }
        let bulk = self.bulk;
        self.settle_runs(&copy, agents - 1, bulk);
    }

    fn settle_runs(&mut self, copy: &Copy, agent: usize, clock: u32) {
        for run in Runs::new(copy.lanes, &copy.addresses, copy.bytes) {
            let run = Run { start: run.start.wrapping_sub(self.shared_base.into()), ..run };
            self.shadow.settle(agent, clock, copy.line, run, copy.bytes);
        }
    }

    /// The part of a copy that belongs to the lanes of `mask`; what is left stays under way.
    fn take_lanes(&mut self, id: CopyId, mask: u32) -> Option<Copy> {
        let place = self.copies.get_mut(id.0 as usize)?;
        let copy = place.as_mut()?;
        let taken = Copy { lanes: copy.lanes & mask, ..copy.clone() };
        copy.lanes &= !mask;
        if copy.lanes == 0 {
            *place = None;
        }
        (taken.lanes != 0).then_some(taken)
    }

    fn read_signals(&mut self, request: &Request, addresses: &[u32; 32]) {
        if self.signals.is_empty() {
            return;
        }
        for run in Runs::new(request.mask, addresses, request.bytes) {
            for (lane, address) in lanes_of(run, request.bytes) {
                if let Some(signal) = self.signals.get(&(address as u32)) {
                    let warp = &mut self.warps[request.agent.warp as usize];
                    signal.read(warp, self.id, 1 << lane, request.order, request.scope);
                }
            }
        }
    }

    fn write_signals(&mut self, request: &Request, addresses: &[u32; 32]) {
        let warp = &mut self.warps[request.agent.warp as usize];
        if !request.order.releases() && self.signals.is_empty() && warp.never_fenced() {
            return;
        }
        let modify = request.kind == Kind::Atomic;
        for run in Runs::new(request.mask, addresses, request.bytes) {
            for (lane, address) in lanes_of(run, request.bytes) {
                let signal = self.signals.entry(address as u32).or_default();
                signal.write(warp, self.id, 1 << lane, request.order, request.scope, modify);
                if signal.is_empty() {
                    self.signals.remove(&(address as u32));
                }
            }
        }
    }

    #[cold]
    fn report(&self, request: &Request, (finding, offset, lane): Found) -> Box<Violation> {
        let address = offset as u32 + self.shared_base;
        let mut before = None;
        let (kind, advice) = match finding {
            Finding::AfterWrite(mark) => {
                before = Some(self.party(mark, "wrote"));
                (ViolationKind::Race, "no barrier, mbarrier or release and acquire orders the two")
            }
            Finding::AfterRead(mark) => {
                before = Some(self.party(mark, "read"));
                (ViolationKind::Race, "no barrier, mbarrier or release and acquire orders the two")
            }
            Finding::Uninitialised => (ViolationKind::Uninitialised, "no store or completed copy has written it"),
            Finding::InFlight => {
                before = self.copy_at(address);
                (ViolationKind::AsyncInFlight, "wait for the copy's group first")
            }
            Finding::LaneOrder(mark) => {
                before = Some(self.party(mark, "wrote"));
                (ViolationKind::LaneOrder, "put bar.warp.sync between")
            }
            Finding::LaneOrderAfterRead(mark) => {
                before = Some(self.party(mark, "read"));
                (ViolationKind::LaneOrder, "put bar.warp.sync between")
            }
        };
        let now = Party {
            cta: self.id,
            warp: request.agent.warp,
            lane: Some(lane),
            line: request.line,
            action: request.kind.verb(),
        };
        let place = format!("shared address {address:#x} (byte {offset} of the CTA's shared memory)");
        Box::new(Violation { kind, place, now, before, advice })
    }

    fn party(&self, mark: Mark, action: &'static str) -> Party {
        let warps = self.warps.len();
        let (warp, action) = match mark.agent() {
            agent if agent < warps => (agent, action),
            agent => (agent.min(2 * warps - 1) - warps, "copied asynchronously to"),
        };
        Party { cta: self.id, warp: warp as u32, lane: Some(mark.lane()), line: mark.line(), action }
    }

    /// The copy under way that owns the word at `address`.
    fn copy_at(&self, address: u32) -> Option<Party> {
        self.copies.iter().flatten().find_map(|copy| {
            let inside = |lane: &u32| address.wrapping_sub(copy.addresses[*lane as usize]) < copy.bytes;
            let lane = (0..32).filter(|lane| copy.lanes >> lane & 1 == 1).find(inside)?;
            let action = "began to copy asynchronously to";
            Some(Party { cta: self.id, warp: copy.warp, lane: Some(lane), line: copy.line, action })
        })
    }
}

/// Lanes of a run with their addresses.
pub(super) fn lanes_of(run: Run, bytes: u32) -> impl Iterator<Item = (u32, u64)> {
    let step = u64::from(bytes.max(1));
    (0..run.bytes / step).map(move |index| (run.lane + index as u32, run.start + index * step))
}
