//! What a rank expects from one peer: nothing else of any size is taken into memory.

use super::frame::{HEADER, Kind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of frames that came before they were expected and are taken all the same: small ones of a peer that is ahead.
const EARLY: u64 = 1 << 20;

/// The frames that a peer's reader may take.
#[derive(Debug, Default)]
pub(super) struct Posted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Expected and not there yet, with the most bytes of each.
    expected: Vec<(Kind, u64)>,
    /// Bytes that came early and were not asked for yet.
    early: u64,
    /// What the reader holds back.
    held: Option<Kind>,
    is_cut: bool,
}

/// What is done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Expected,
    /// Small enough to keep until somebody asks for it.
    Early,
    /// It is longer than what is expected.
    TooLong,
    /// Nobody will ask.
    Cut,
}

impl Posted {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on such a frame may come, with no more than `most` bytes.
    pub(super) fn expect(&self, kind: Kind, most: usize) {
        self.lock().expected.push((kind, most as u64));
        self.changed.notify_all();
    }

    /// Whether a frame is held back that nobody expects so far.
    pub(super) fn holds(&self) -> bool {
        let state = self.lock();
        state.held.as_ref().is_some_and(|held| state.expected.iter().all(|(expected, _)| expected != held))
    }

    /// An early frame has been asked for.
    pub(super) fn taken(&self, kind: &Kind, bytes: usize) {
        let mut state = self.lock();
        state.early = state.early.saturating_sub((bytes + HEADER) as u64);
        if let Some(at) = state.expected.iter().position(|(expected, _)| expected == kind) {
            state.expected.remove(at);
        }
        self.changed.notify_all();
    }

    /// Nothing is expected any more.
    pub(super) fn cut(&self) {
        self.lock().is_cut = true;
        self.changed.notify_all();
    }

    /// Waits until a frame may be taken; says so by `held` first if it cannot be yet.
    pub(super) fn admit(&self, kind: &Kind, length: u64, held: impl FnOnce()) -> Verdict {
        let mut state = self.lock();
        if let Some(verdict) = state.verdict(kind, length) {
            return verdict;
        }
        state.held = Some(kind.clone());
        held();
        loop {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            if let Some(verdict) = state.verdict(kind, length) {
                state.held = None;
                return verdict;
            }
        }
    }
}

impl State {
    /// What is done with a frame, if that can be said already.
    fn verdict(&mut self, kind: &Kind, length: u64) -> Option<Verdict> {
        if self.is_cut {
            return Some(Verdict::Cut);
        }
        if let Some(at) = self.expected.iter().position(|(expected, _)| expected == kind) {
            if length > self.expected[at].1 {
                return Some(Verdict::TooLong);
            }
            self.expected.remove(at);
            return Some(Verdict::Expected);
        }
        let cost = length.saturating_add(HEADER as u64);
        if cost <= EARLY.saturating_sub(self.early) {
            self.early += cost;
            return Some(Verdict::Early);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, thread, time::Duration};

    #[test]
    fn no_more_is_taken_than_is_expected() {
        let posted = Posted::default();
        let never = || panic!("held");
        posted.expect(Kind::Gather(1), 5 << 30);
        assert_eq!(posted.admit(&Kind::Gather(1), (5 << 30) + 1, never), Verdict::TooLong);
        assert_eq!(posted.admit(&Kind::Gather(1), 5 << 30, never), Verdict::Expected);
        assert!(posted.lock().expected.is_empty(), "once");
        let most = EARLY - HEADER as u64;
        assert_eq!(posted.admit(&Kind::Gather(2), most, never), Verdict::Early);
        posted.expect(Kind::Gather(2), 1);
        posted.taken(&Kind::Gather(2), most as usize);
        assert!(posted.lock().expected.is_empty(), "what came early comes no second time");
        // Frames without bytes take memory, too.
        for number in 0..EARLY / HEADER as u64 {
            assert_eq!(posted.admit(&Kind::Gather(number as u32), 0, never), Verdict::Early);
        }
        posted.cut();
        assert_eq!(posted.admit(&Kind::Gather(0), 0, never), Verdict::Cut);
    }

    #[test]
    fn what_is_ahead_waits_until_it_is_expected_or_given_up() {
        let posted = Posted::default();
        for (want, act) in [(Verdict::Expected, true), (Verdict::Cut, false)] {
            let told = Cell::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(20));
                    assert!(posted.holds());
                    if act { posted.expect(Kind::Gather(7), 1 << 40) } else { posted.cut() }
                });
                assert_eq!(posted.admit(&Kind::Gather(7), 1 << 40, || told.set(true)), want);
            });
            assert!(told.get() && !posted.holds(), "the rank must hear what is held back");
        }
    }
}
