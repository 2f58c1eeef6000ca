//! The time of one warp: its clock, what its lanes know, and what it hands on.

use super::clock::{self, Entry, LAST_TICK};
use super::request::Scope;
use super::world::World;

/// What somebody knows: the clocks of all agents of the own CTA, and the world outside.
#[derive(Debug, Clone)]
pub(super) struct Knowledge {
    pub(super) local: Vec<Entry>,
    pub(super) world: World,
}

impl Knowledge {
    /// Nothing but that all of `agents` agents are past `tick`, which is before their first access.
    pub(super) fn new(agents: usize, tick: u32, world: World) -> Self {
        Self { local: vec![Entry::until(tick); agents], world }
    }

    /// Learn what another warp of the same CTA knows.
    pub(super) fn join(&mut self, other: &Self) {
        clock::join(&mut self.local, &other.local);
        self.world.join(&other.world);
    }

    /// Learn what was published, as a member of `cta`.
    pub(super) fn learn(&mut self, cta: u32, published: &World) {
        if let Some(own) = published.get(cta) {
            clock::join(&mut self.local, own);
        }
        self.world.join(published);
    }
}

/// What only some lanes know: they acquired it and have not met the others since.
#[derive(Debug)]
struct Partial {
    lanes: u32,
    knowledge: Knowledge,
}

/// A world that belongs to some lanes.
#[derive(Debug)]
struct Held {
    lanes: u32,
    world: World,
}

/// One warp.
#[derive(Debug)]
pub(super) struct Warp {
    cta: u32,
    index: usize,
    /// Place of the agent that stands for this warp's finished asynchronous copies.
    copier: usize,
    /// Tick at which the warp's present accesses are recorded.
    pub(super) clock: u32,
    /// Accesses up to this tick come before whatever any lane does now.
    pub(super) ordered: u32,
    /// Tick of the last asynchronous copy that lanes of this warp have waited for.
    copies: u32,
    live: u32,
    known: Knowledge,
    partial: Option<Box<Partial>>,
    /// Since the last full synchronisation: lanes that met in part, and when.
    meetings: Vec<(u32, u32)>,
    /// What the last fence of each scope allows a relaxed store to publish.
    fences: [Option<Held>; 2],
    /// What relaxed loads saw and a fence of that scope will make known.
    deferred: [Option<Held>; 2],
}

impl Warp {
    /// Warp `index` of `warps`, whose first access comes after `tick`.
    pub(super) fn new(cta: u32, index: usize, warps: usize, live: u32, tick: u32, world: World) -> Self {
        Self {
            cta,
            index,
            copier: warps + index,
            clock: tick + 1,
            ordered: tick,
            copies: tick,
            live,
            known: Knowledge::new(agents(warps), tick, world),
            partial: None,
            meetings: Vec::new(),
            fences: [None, None],
            deferred: [None, None],
        }
    }

    /// Latest tick that any access of this warp or its copies may carry.
    pub(super) fn latest(&self) -> u32 {
        self.clock.max(self.copies)
    }

    /// What `lanes` all know.
    #[inline]
    pub(super) fn knows(&self, lanes: u32) -> &Knowledge {
        match &self.partial {
            Some(partial) if lanes & !partial.lanes == 0 => &partial.knowledge,
            _ => &self.known,
        }
    }

    /// All lanes know the same.
    #[inline]
    pub(super) fn is_uniform(&self) -> bool {
        self.partial.is_none()
    }

    /// Whether an access of agent `agent` of this CTA comes before what `lanes` do now.
    ///
    /// The warp's own accesses always do; its asynchronous copies only for the lane that waited for them, until the
    /// lanes have met.
    #[inline]
    pub(super) fn is_after(&self, agent: usize, clock: u32, by: u32, lanes: u32) -> bool {
        if agent == self.index {
            return true;
        }
        let entry = &self.knows(lanes).local[agent];
        if agent == self.copier { clock <= entry.all || lanes & !by == 0 } else { entry.covers(clock, by) }
    }

    /// Whether an access of warp `warp` of another CTA comes before what `lanes` do now.
    pub(super) fn is_after_foreign(&self, cta: u32, warp: usize, clock: u32, by: u32, lanes: u32) -> bool {
        self.knows(lanes).world.get(cta).is_some_and(|clocks| clocks[warp].covers(clock, by))
    }

    /// The lanes of `mask` have met: each now knows what any of them knew and did.
    pub(super) fn meet(&mut self, mask: u32) {
        if self.live & !mask == 0 {
            self.ordered = self.clock;
            self.tick();
            if let Some(partial) = self.partial.take() {
                self.known = partial.knowledge;
            }
            self.known.local[self.copier] = Entry::until(self.copies);
            self.meetings.clear();
            return;
        }
        if let Some(partial) = &mut self.partial
            && partial.lanes & mask != 0
        {
            partial.lanes |= mask;
        }
        self.fold();
        self.meetings.retain(|(met, _)| met & !mask != 0);
        self.meetings.push((mask, self.clock));
        self.tick();
    }

    /// Everything that any of `lanes` knows and did, for somebody else to learn. What they do next is not in it.
    pub(super) fn release(&mut self, lanes: u32) -> Knowledge {
        let mut knowledge = match &self.partial {
            Some(partial) if lanes & partial.lanes != 0 => partial.knowledge.clone(),
            _ => self.known.clone(),
        };
        knowledge.local[self.index].join(&self.deeds(lanes));
        self.tick();
        knowledge
    }

    /// [`Warp::release`] of all lanes, for `everybody` to learn.
    pub(super) fn release_to(&mut self, everybody: &mut Knowledge) {
        everybody.join(&self.known);
        everybody.local[self.index].join(&self.deeds(u32::MAX));
        self.tick();
    }

    /// What `lanes` have done so far, as others may know it.
    fn deeds(&self, lanes: u32) -> Entry {
        if self.live & !lanes == 0 {
            return Entry::until(self.clock);
        }
        let mut own = Entry { all: self.ordered, some: self.clock, lanes };
        // Latest first: whoever met one that had met others before brings those too.
        let mut reach = lanes;
        for (met, clock) in self.meetings.iter().rev() {
            if met & reach != 0 {
                reach |= met;
                own.join(&Entry { all: 0, some: *clock, lanes: *met });
            }
        }
        own
    }

    /// [`Warp::release`] as a world that other CTAs can learn from.
    pub(super) fn publish(&mut self, lanes: u32) -> World {
        let Knowledge { local, mut world } = self.release(lanes);
        world.set(self.cta, local.into());
        world
    }

    /// `lanes` learn by `learn`, which adds to a knowledge.
    pub(super) fn acquire(&mut self, lanes: u32, learn: impl Fn(&mut Knowledge)) {
        if lanes & self.live == 0 {
            return;
        }
        if self.live & !lanes == 0 {
            learn(&mut self.known);
            if let Some(partial) = &mut self.partial {
                learn(&mut partial.knowledge);
            }
            return;
        }
        let known = &self.known;
        let partial = self.partial.get_or_insert_with(|| Box::new(Partial { lanes: 0, knowledge: known.clone() }));
        partial.lanes |= lanes;
        learn(&mut partial.knowledge);
        self.fold();
    }

    /// All lanes learn what they and others handed in; nothing of theirs can be missing in it.
    pub(super) fn adopt(&mut self, everybody: &Knowledge) {
        self.known.local.copy_from_slice(&everybody.local);
        self.known.world.clone_from(&everybody.world);
        self.partial = None;
    }

    /// `lanes` learn a published world.
    pub(super) fn learn(&mut self, lanes: u32, published: &World) {
        let cta = self.cta;
        self.acquire(lanes, |knowledge| knowledge.learn(cta, published));
    }

    /// `lanes` read a published world with a relaxed load: a fence of `scope` will make it known.
    pub(super) fn defer(&mut self, lanes: u32, published: &World, scope: Scope) {
        match &mut self.deferred[scope as usize] {
            Some(held) => {
                held.lanes |= lanes;
                held.world.join(published);
            }
            none => *none = Some(Held { lanes, world: published.clone() }),
        }
    }

    /// A fence by `lanes`: learn what relaxed loads saw, and fix what relaxed stores may publish.
    pub(super) fn fence(&mut self, lanes: u32, scope: Scope) {
        for needed in [Scope::Cta, Scope::Gpu] {
            if needed <= scope
                && let Some(held) = self.deferred[needed as usize].take()
            {
                self.learn(lanes & held.lanes, &held.world);
                if held.lanes & !lanes != 0 {
                    self.deferred[needed as usize] = Some(held);
                }
            }
        }
        let before = |held: &Option<Held>| held.as_ref().map_or(0, |held| held.lanes);
        let all = lanes | before(&self.fences[Scope::Cta as usize]);
        let world = self.publish(all);
        if scope == Scope::Gpu {
            let lanes = lanes | before(&self.fences[Scope::Gpu as usize]);
            self.fences[Scope::Gpu as usize] = Some(Held { lanes, world: world.clone() });
        }
        self.fences[Scope::Cta as usize] = Some(Held { lanes: all, world });
    }

    /// What a relaxed store of `scope` by `lanes` publishes: what they had done before their last fence.
    pub(super) fn fenced(&self, lanes: u32, scope: Scope) -> Option<&World> {
        self.fences[scope as usize].as_ref().filter(|held| held.lanes & lanes != 0).map(|held| &held.world)
    }

    /// No fence has ever been used, and no relaxed load saw anything.
    pub(super) fn never_fenced(&self) -> bool {
        self.fences[Scope::Cta as usize].is_none()
    }

    /// `lanes` have waited for asynchronous copies of theirs: agent and tick under which their data is recorded.
    pub(super) fn complete_copies(&mut self, lanes: u32) -> (usize, u32) {
        self.copies = (self.copies + 1).min(LAST_TICK);
        let entry = Entry { all: 0, some: self.copies, lanes };
        self.known.local[self.copier].join(&entry);
        if let Some(partial) = &mut self.partial {
            partial.knowledge.local[self.copier].join(&entry);
        }
        (self.copier, self.copies)
    }

    /// Lanes ended.
    pub(super) fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        self.fold();
    }

    fn tick(&mut self) {
        self.clock = (self.clock + 1).min(LAST_TICK);
    }

    /// Once every live lane has the partial knowledge it is everybody's.
    fn fold(&mut self) {
        if let Some(partial) = self.partial.take_if(|partial| self.live & !partial.lanes == 0) {
            self.known = partial.knowledge;
        }
    }
}

/// Agents of a CTA of `warps` warps: the warps, their asynchronous copies, and the bulk copies of all.
pub(super) fn agents(warps: usize) -> usize {
    2 * warps + 1
}
