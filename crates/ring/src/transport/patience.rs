//! How long a rank waits, and who is to blame when it does so in vain.
//!
//! A rank that has waited for the timeout asks all others how they are. One that waits itself says for whom: at the end of that chain is
//! the rank that everybody waits for. If it does not answer within a quarter of the timeout, it is stopped or gone, and to blame. If all
//! of the chain answer, one of them may only have begun to wait later than this rank: then it is waited for as long as that one may wait,
//! so that a rank that is late is not taken for one that is dead. Half of the timeout after the first answer nobody waits any longer.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What this rank is doing, and what others said that they are.
#[derive(Debug)]
pub(super) struct Pulse {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    own: Option<(u32, Instant)>,
    answers: Vec<Option<Answer>>,
}

/// What a rank that is there waits for, and since when.
type Answer = Option<(u32, Instant)>;

/// Who is at the end of those who wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It does not answer.
    Silent(usize),
    /// It is at work, or waits for one of those who wait for it; with the latest begin of anybody's waiting.
    Alive(usize, Option<Instant>),
}

impl Pulse {
    pub(super) fn new(ranks: usize) -> Self {
        Self { state: Mutex::new(State { own: None, answers: vec![None; ranks] }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This rank begins to wait for a peer, or is at work.
    pub(super) fn waits(&self, since: Option<(usize, Instant)>) {
        self.lock().own = since.map(|(peer, since)| (peer as u32, since));
    }

    /// For whom this rank waits, and for how many milliseconds.
    pub(super) fn own(&self) -> (Option<u32>, u32) {
        let age = |since: Instant| u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
        self.lock().own.map_or((None, 0), |(peer, since)| (Some(peer), age(since)))
    }

    /// A rank is there.
    pub(super) fn heard(&self, from: usize, waits_for: Option<u32>, age: u32) {
        let since = Instant::now().checked_sub(Duration::from_millis(age.into()));
        if let Some(answer) = self.lock().answers.get_mut(from) {
            *answer = Some(waits_for.zip(since));
        }
    }

    /// What was heard so far counts no longer.
    pub(super) fn forget(&self) {
        self.lock().answers.fill(None);
    }

    fn end(&self, rank: usize, peer: usize) -> End {
        let state = self.lock();
        let (mut at, mut latest) = (peer, None);
        for _ in 0..state.answers.len() {
            match state.answers.get(at) {
                None | Some(None) => return End::Silent(at),
                Some(Some(None)) => return End::Alive(at, latest),
                // There is no such rank: it lies.
                Some(Some(Some((next, _)))) if *next as usize >= state.answers.len() => return End::Silent(at),
                Some(Some(Some((next, since)))) => {
                    latest = latest.max(Some(*since));
                    if *next as usize == rank {
                        break;
                    }
                    at = *next as usize;
                }
            }
        }
        End::Alive(peer, latest)
    }
}

/// One rank's waiting for a peer.
#[derive(Debug)]
pub(super) struct Patience {
    timeout: Duration,
    since: Instant,
    /// How often others were asked.
    asked: u32,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask all, and wait on.
    Ask,
    /// Wait on.
    Wait,
    Blame(usize),
}

impl Patience {
    pub(super) fn new(timeout: Duration, since: Instant) -> Self {
        Self { timeout, since, asked: 0 }
    }

    /// Begins anew: the peer has sent something.
    pub(super) fn renew(&mut self, since: Instant) {
        *self = Self::new(self.timeout, since);
    }

    /// When to look again.
    pub(super) fn limit(&self) -> Instant {
        self.since + self.timeout + self.timeout / 4 * self.asked
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// At the limit.
    pub(super) fn next(&mut self, rank: usize, peer: usize, pulse: &Pulse) -> Next {
        if self.asked == 0 {
            self.asked = 1;
            return Next::Ask;
        }
        match pulse.end(rank, peer) {
            End::Silent(culprit) => Next::Blame(culprit),
            // Later by more than an answer takes to come.
            End::Alive(_, Some(latest)) if latest > self.since + self.timeout / 8 => {
                self.renew(latest);
                Next::Wait
            }
            End::Alive(culprit, _) if self.asked == 3 => Next::Blame(culprit),
            End::Alive(..) => {
                self.asked += 1;
                Next::Ask
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(8);

    /// Rank 0 waits for rank 1; what the others answer.
    fn blamed(answers: &[Option<(Option<u32>, u32)>]) -> (usize, u32) {
        let (pulse, mut patience) = (Pulse::new(5), Patience::new(T, Instant::now()));
        let mut asked = 0;
        loop {
            match patience.next(0, 1, &pulse) {
                Next::Ask => {
                    asked += 1;
                    pulse.forget();
                    for (at, answer) in answers.iter().enumerate() {
                        answer.iter().for_each(|(waits_for, age)| pulse.heard(at + 1, *waits_for, *age));
                    }
                }
                Next::Wait => panic!("nobody began to wait later"),
                Next::Blame(rank) => return (rank, asked),
            }
        }
    }

    #[test]
    fn the_end_of_the_chain_is_to_blame() {
        let (silent, at_work) = (None, Some((None, 0)));
        let waits_for = |rank: u32| Some((Some(rank), 60_000));
        assert_eq!(blamed(&[silent, at_work, at_work, at_work]), (1, 1));
        assert_eq!(blamed(&[at_work, silent, silent, silent]), (1, 3));
        assert_eq!(blamed(&[waits_for(3), silent, waits_for(2), at_work]), (2, 1));
        assert_eq!(blamed(&[waits_for(3), at_work, waits_for(4), at_work]), (4, 3));
        assert_eq!(blamed(&[waits_for(2), waits_for(0), at_work, at_work]), (1, 3), "a circle");
        assert_eq!(blamed(&[waits_for(2), waits_for(1), at_work, at_work]), (1, 3), "a circle beside this rank");
        assert_eq!(blamed(&[waits_for(70), at_work, at_work, at_work]), (1, 1), "a rank that there is not");
    }

    #[test]
    fn one_that_waits_for_less_long_is_given_its_time() {
        let began = Instant::now();
        let (pulse, mut patience) = (Pulse::new(3), Patience::new(T, began));
        assert_eq!(patience.limit(), began + T);
        assert_eq!(patience.next(0, 1, &pulse), Next::Ask);
        // As if it had begun half of the timeout after this rank; the last rank is at work.
        let later = began + T / 2;
        pulse.lock().answers = vec![None, Some(Some((2, later))), Some(None)];
        assert_eq!((patience.next(0, 1, &pulse), patience.limit()), (Next::Wait, later + T));
        for _ in 0..3 {
            assert_eq!(patience.next(0, 1, &pulse), Next::Ask);
        }
        assert_eq!(patience.limit(), later + T + T * 3 / 4);
        assert_eq!(patience.next(0, 1, &pulse), Next::Blame(2));
    }
}
