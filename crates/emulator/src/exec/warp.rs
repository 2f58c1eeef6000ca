//! The state of one warp: registers, and the groups of lanes that stand at different instructions.

use super::asynchronous::Copies;
use super::random::Random;
use crate::decode::cold::BarrierKind;
use crate::decode::op::{ALWAYS, CARRY, NO_PRED, Pred, Slot};

/// One register slot: a word per lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Row(pub [u32; 32]);

/// What registers hold before anything is written to them.
pub(crate) const POISON: Row = Row([0xDEAD_BEEF; 32]);

/// Lanes of one warp that stand at the same instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    /// Waits at a collective for lanes of other groups.
    pub parked: bool,
    /// The collective wants every lane of the warp.
    pub aligned: bool,
    /// The CTA barrier at which it waits for the rest of its warp.
    pub barrier: Option<u32>,
    /// Has failed a poll since any other group ran.
    pub spun: bool,
}

impl Group {
    /// A group that can run.
    pub fn at(pc: u32, mask: u32) -> Self {
        Self { pc, mask, parked: false, aligned: false, barrier: None, spun: false }
    }
}

/// What the scheduler knows of a warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Waits at a CTA barrier: its number and the instruction.
    Barrier {
        id: u32,
        pc: u32,
    },
    Done,
}

/// A barrier reduction whose result is still to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub kind: BarrierKind,
    pub mask: u32,
}

/// Which group runs next, and the instruction at which the others must be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    pub pc: u32,
    pub mask: u32,
    pub bound: u32,
}

/// Backward branches that a group of a diverged warp may take before another has its turn.
const PATIENCE: u32 = 4096;

/// Polls in vain, while nothing in the world changes, after which a warp counts as stuck.
const HOPELESS: u32 = 1 << 20;

/// A poll after which the warp is in the same state as after the one before counts as so many.
const SAME_STATE: u32 = HOPELESS / 64;

/// One warp.
pub(crate) struct Warp {
    /// Number within the CTA.
    pub index: u32,
    /// Register slots; two more than the program numbers, so that a 64-bit view of any of them stays inside.
    pub rows: Vec<Row>,
    pub predicates: Vec<u32>,
    /// Lanes of each slot that have been written; of a 64-bit register the first slot counts. Empty without checks.
    pub defined: Vec<u32>,
    pub predicates_defined: Vec<u32>,
    /// Every group but the one that runs.
    pub groups: Vec<Group>,
    /// Lanes that have not exited.
    pub live: u32,
    pub state: State,
    /// A load that other threads may be expected to change, or a failed attempt, since the last backward branch.
    pub polled: bool,
    /// The last such instruction, for reports.
    pub polled_at: u32,
    /// The version of the world at which turns have ended polling, and how much they count.
    pub spins: (u64, u32),
    pub pending: Option<Pending>,
    /// What the registers were when the last turn ended in a loop, and at which version of the world.
    pub fingerprint: Option<(u64, u64)>,
    pub copies: Copies,
    turns: u32,
    rotated: bool,
    /// Randomised convergence, if asked for.
    pub random: Option<Random>,
}

impl Warp {
    /// An empty warp; [`Warp::start`] makes it run.
    pub fn new() -> Self {
        Self {
            index: 0,
            rows: Vec::new(),
            predicates: Vec::new(),
            defined: Vec::new(),
            predicates_defined: Vec::new(),
            groups: Vec::new(),
            live: 0,
            state: State::Done,
            polled: false,
            polled_at: 0,
            spins: (0, 0),
            pending: None,
            fingerprint: None,
            copies: Copies::default(),
            turns: 0,
            rotated: false,
            random: None,
        }
    }

    /// Begin at the first instruction with the lanes of `mask` and the registers of a template. True for a warp that has
    /// run before, as the same warp of an earlier CTA of the launch: nothing writes to its constants, so they are there.
    pub fn start(&mut self, index: u32, mask: u32, template: &Template, random: Option<Random>) -> bool {
        self.index = index;
        let used = !self.rows.is_empty();
        if !used {
            self.rows.extend_from_slice(&template.rows);
        }
        self.predicates.clear();
        self.predicates.resize(template.predicates, 0);
        for (pred, value) in [(ALWAYS, u32::MAX), (CARRY, 0), (NO_PRED, 0)] {
            if let Some(slot) = self.predicates.get_mut(usize::from(pred)) {
                *slot = value;
            }
        }
        self.defined.clear();
        self.predicates_defined.clear();
        if template.checked {
            self.defined.extend_from_slice(&template.defined);
            self.predicates_defined.resize(template.predicates, 0);
            self.predicates_defined[usize::from(ALWAYS)] = u32::MAX;
        }
        self.groups.clear();
        self.groups.push(Group::at(0, mask));
        self.live = mask;
        self.state = if mask == 0 { State::Done } else { State::Ready };
        self.polled = false;
        self.spins = (0, 0);
        self.pending = None;
        self.fingerprint = None;
        self.copies.clear();
        self.turns = 0;
        self.rotated = false;
        self.random = random;
        used
    }

    /// The 32-bit lanes of a slot.
    #[inline(always)]
    pub fn row(&self, slot: Slot) -> &[u32; 32] {
        &self.rows[usize::from(slot)].0
    }

    /// The 64-bit lanes of a slot and its neighbour.
    #[inline(always)]
    pub fn wide(&self, slot: Slot) -> &[u64; 32] {
        let rows = &self.rows[usize::from(slot)..usize::from(slot) + 2];
        // SAFETY: two rows of 32 words, adjacent and aligned to 64 bytes, are 32 double words.
        unsafe { &*rows.as_ptr().cast() }
    }

    /// Write all lanes of a slot.
    #[inline(always)]
    pub fn put_all(&mut self, slot: Slot, values: &[u32; 32]) {
        self.rows[usize::from(slot)].0 = *values;
        self.define(slot, u32::MAX);
    }

    /// Write the lanes of `mask` to a slot.
    #[inline(always)]
    pub fn put(&mut self, slot: Slot, values: &[u32; 32], mask: u32) {
        if mask == u32::MAX {
            return self.put_all(slot, values);
        }
        let row = &mut self.rows[usize::from(slot)].0;
        for lane in 0..32 {
            let keep = 0u32.wrapping_sub(mask >> lane & 1);
            row[lane] = (values[lane] & keep) | (row[lane] & !keep);
        }
        self.define(slot, mask);
    }

    /// Write the lanes of `mask` to a slot and its neighbour.
    #[inline(always)]
    pub fn put_wide(&mut self, slot: Slot, values: &[u64; 32], mask: u32) {
        let rows = &mut self.rows[usize::from(slot)..usize::from(slot) + 2];
        // SAFETY: as in `wide`; the slice is borrowed for writing.
        let row: &mut [u64; 32] = unsafe { &mut *rows.as_mut_ptr().cast() };
        for lane in 0..32 {
            let keep = 0u64.wrapping_sub(u64::from(mask >> lane & 1));
            row[lane] = (values[lane] & keep) | (row[lane] & !keep);
        }
        self.define(slot, mask);
    }

    /// A predicate's bits.
    pub fn predicate(&self, predicate: Pred) -> u32 {
        self.predicates[usize::from(predicate)]
    }

    /// Write the lanes of `mask` to a predicate.
    pub fn put_predicate(&mut self, predicate: Pred, value: u32, mask: u32) {
        let bits = &mut self.predicates[usize::from(predicate)];
        *bits = (*bits & !mask) | (value & mask);
        if let Some(defined) = self.predicates_defined.get_mut(usize::from(predicate)) {
            *defined |= mask;
        }
    }

    #[inline(always)]
    fn define(&mut self, slot: Slot, mask: u32) {
        if let Some(defined) = self.defined.get_mut(usize::from(slot)) {
            *defined |= mask;
        }
    }

    /// Lanes of `mask` in which the slot was never written; none without checks.
    pub fn undefined(&self, slot: Slot, mask: u32) -> u32 {
        self.defined.get(usize::from(slot)).map_or(0, |defined| mask & !defined)
    }

    /// Lanes of `mask` in which the predicate was never written; none without checks.
    pub fn undefined_predicate(&self, predicate: Pred, mask: u32) -> u32 {
        self.predicates_defined.get(usize::from(predicate)).map_or(0, |defined| mask & !defined)
    }

    /// Put lanes aside that cannot go on without others. Lanes already waiting there join them and try again.
    pub fn park(&mut self, pc: u32, mask: u32, aligned: bool) {
        match self.groups.iter_mut().find(|group| group.pc == pc && group.parked) {
            Some(group) => {
                group.mask |= mask;
                group.parked = false;
                group.barrier = None;
            }
            None => self.groups.push(Group { parked: true, aligned, ..Group::at(pc, mask) }),
        }
    }

    /// Put lanes aside at a CTA barrier that lets a diverged warp arrive in parts. True when the whole warp is there; then
    /// all its groups stand behind their barrier instructions.
    pub fn gather(&mut self, pc: u32, mask: u32, barrier: u32) -> bool {
        self.groups.push(Group { parked: true, barrier: Some(barrier), ..Group::at(pc, mask) });
        let here = |group: &&Group| group.barrier == Some(barrier);
        let whole = self.groups.iter().filter(here).fold(0, |lanes, group| lanes | group.mask) == self.live;
        if whole {
            for group in &mut self.groups {
                *group = Group::at(group.pc + 1, group.mask);
            }
        }
        whole
    }

    /// Lanes have exited; whoever waited for them tries again. Gives a group that wanted the whole warp, if one waits.
    pub fn exit(&mut self, mask: u32) -> Option<Group> {
        self.live &= !mask;
        let waiting = self.groups.iter().find(|group| group.parked && group.aligned).copied();
        for group in &mut self.groups {
            group.parked = false;
            group.barrier = None;
        }
        waiting
    }

    /// A group of a diverged warp branched backwards. True when it is another's turn.
    pub fn impatient(&mut self) -> bool {
        self.turns += 1;
        self.turns >= PATIENCE
    }

    /// The group to run now; `None` when no group can.
    pub fn pick(&mut self) -> Option<Pick> {
        let rotate = self.turns >= PATIENCE && !self.rotated;
        self.turns = 0;
        if let Some(random) = &mut self.random {
            let runnable = self.groups.iter().filter(|group| !group.parked).count();
            if runnable == 0 {
                return None;
            }
            let chosen = random.below(runnable as u32) as usize;
            let index = self.groups.iter().enumerate().filter(|(_, group)| !group.parked).nth(chosen)?.0;
            let group = self.groups.swap_remove(index);
            let bound = if self.groups.is_empty() { u32::MAX } else { group.pc + 1 + random.below(24) };
            return Some(Pick { pc: group.pc, mask: group.mask, bound });
        }
        // Groups that have just polled in vain let the others go first.
        if rotate || !self.others_unspun() {
            for group in &mut self.groups {
                group.spun = false;
            }
        }
        let ready = |group: &&Group| !group.parked && !group.spun;
        let lowest = self.groups.iter().filter(ready).map(|group| group.pc).min()?;
        let next = self.groups.iter().filter(|group| !group.parked && group.pc > lowest).map(|group| group.pc).min();
        // A group that branches back for ever would starve those behind it, so now and then the next higher one runs.
        self.rotated = rotate && next.is_some();
        let pc = if self.rotated { next? } else { lowest };
        let mut mask = 0;
        self.groups.retain(|group| {
            let joins = group.pc == pc && !group.parked;
            mask |= if joins { group.mask } else { 0 };
            !joins
        });
        let bound = match next {
            Some(next) if !self.rotated => next,
            _ => u32::MAX,
        };
        Some(Pick { pc, mask, bound })
    }

    /// The turn ends because every group polls.
    pub fn spin(&mut self, version: u64) {
        for group in &mut self.groups {
            group.spun = false;
        }
        if self.spins.0 != version {
            self.spins = (version, 0);
        }
        // To come back with the very same registers is a sign of waiting; a loop that counts attempts, or reads one flag
        // after another, does not.
        let weight = if self.goes_round(version) { SAME_STATE } else { 1 };
        self.spins.1 = self.spins.1.saturating_add(weight);
    }

    /// Whether the warp can be expected to change nothing at this version of the world: it is blocked, or has polled in
    /// vain for long.
    pub fn quiet(&self, version: u64) -> bool {
        match self.state {
            State::Ready => self.spins.0 == version && self.spins.1 >= HOPELESS,
            State::Barrier { .. } | State::Done => true,
        }
    }

    /// Whether the warp has come back to the very state in which an earlier turn ended, with the world unchanged since:
    /// then it will do so for ever.
    pub fn goes_round(&mut self, version: u64) -> bool {
        let Some((_, known)) = self.fingerprint.filter(|(_, known)| *known == version) else {
            // Hashing is for warps that come back while nothing changes.
            self.fingerprint = Some((0, version));
            return false;
        };
        let mut hash = 0xCBF2_9CE4_8422_2325u64;
        let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(29);
        for group in &self.groups {
            mix(u64::from(group.pc) << 32 | u64::from(group.mask));
        }
        for predicate in &self.predicates {
            mix((*predicate).into());
        }
        for row in &self.rows {
            for pair in row.0.chunks_exact(2) {
                mix(u64::from(pair[0]) << 32 | u64::from(pair[1]));
            }
        }
        let before = self.fingerprint.replace((hash, known));
        before == Some((hash, known))
    }

    /// Whether a group may run that has not just polled in vain.
    pub fn others_unspun(&self) -> bool {
        self.groups.iter().any(|group| !group.parked && !group.spun)
    }
}

/// The registers that every warp of a launch starts with.
pub(crate) struct Template {
    pub rows: Vec<Row>,
    pub defined: Vec<u32>,
    pub predicates: usize,
    pub checked: bool,
}

#[cfg(test)]
mod tests {
    use super::{Group, Pick, Warp};

    fn warp(groups: &[(u32, u32)]) -> Warp {
        let mut warp = Warp::new();
        warp.groups = groups.iter().map(|&(pc, mask)| Group::at(pc, mask)).collect();
        warp.live = groups.iter().fold(0, |lanes, group| lanes | group.1);
        warp
    }

    #[test]
    fn the_lowest_runs_first_and_equals_merge() {
        let mut warp = warp(&[(9, 0b0001), (4, 0b0010), (7, 0b0100), (4, 0b1000)]);
        assert_eq!(warp.pick(), Some(Pick { pc: 4, mask: 0b1010, bound: 7 }));
        assert_eq!(warp.groups.len(), 2);
    }

    #[test]
    fn a_group_that_polls_lets_the_others_go_first() {
        let mut warp = warp(&[(4, 1), (9, 2)]);
        warp.groups[0].spun = true;
        assert_eq!(warp.pick().map(|pick| pick.mask), Some(2));
    }

    #[test]
    fn parked_lanes_wait_until_others_join_them() {
        let mut warp = warp(&[(9, 0b10)]);
        warp.park(5, 0b01, false);
        assert_eq!(warp.pick(), Some(Pick { pc: 9, mask: 0b10, bound: u32::MAX }));
        assert_eq!(warp.pick(), None, "nobody else can run");
        warp.park(5, 0b10, false);
        assert_eq!(warp.pick().map(|pick| (pick.pc, pick.mask)), Some((5, 0b11)));
    }

    #[test]
    fn the_whole_warp_may_come_to_a_barrier_in_parts() {
        let mut warp = warp(&[]);
        warp.live = 0b11;
        assert!(!warp.gather(5, 0b01, 0));
        assert!(warp.gather(8, 0b10, 0));
        assert_eq!(warp.groups, [Group::at(6, 0b01), Group::at(9, 0b10)]);
    }
}
