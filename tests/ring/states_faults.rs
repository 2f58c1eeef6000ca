//! A rank that leaves or lies while states pass: those who wait for it say so and name it.

use super::{
    case::PATIENCE,
    saboteur::{Saboteur, check_all},
    states::WAYS,
    states_linear::{World, case},
};
use crate::linear::case::{Case, Data, Uploaded};
use lookback_device::{Error, PeerFault, Result};
use lookback_linear::{Decay, Mode};
use lookback_ring::{
    state::{
        Passing,
        linear::{Outputs, Plan},
    },
    transport::{Staged, Transport, local},
};
use lookback_suite::{buffer::Guarded, device};
use std::{
    thread,
    time::{Duration, Instant},
};

/// What rank 1 does to the others, besides what a [`Saboteur`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    FallSilent,
    BeOfOtherShape,
    Fail,
}

fn rank(case: &Case, passing: Passing, act: Act, timeout: Duration, mut end: Staged) -> (Result<()>, Duration) {
    let (rank, ranks, stream) = (end.rank(), end.ranks(), device::stream());
    let is_culprit = rank == 1;
    if is_culprit && act == Act::FallSilent {
        thread::sleep(3 * timeout);
        return (Ok(()), Duration::ZERO);
    }
    let wide = if is_culprit && act == Act::BeOfOtherShape { 12 } else { case.value_dim };
    let case = Case { value_dim: wide, ..case.clone() };
    let world = World::new(&case, ranks, passing);
    let data = Data::new::<f32>(&case);
    let (part, data) = world.part(rank, &data);
    let on = Uploaded::<f32>::new(&part, &data);
    let plan = Plan::new(&world.shape(), &world.options(), &world.places.deal, rank, &device::info()).unwrap();
    let mut workspace = plan.workspace(&stream).unwrap();
    let mut o = Guarded::<f32>::poisoned(part.seq_len * part.heads * part.value_dim, 0);
    let began = Instant::now();
    let mut run = || {
        let mut o = o.view_mut();
        plan.run(&stream, &on.inputs(), Outputs::of(&mut o), &mut workspace, &mut end)
    };
    let done = match is_culprit && act == Act::Fail {
        true => {
            end.abort(&Error::NoKernel { op: "test", request: "what fails".into() });
            Ok(())
        }
        false => run(),
    };
    device::finish();
    (done, began.elapsed())
}

fn check(passing: Passing, act: Act, timeout: Duration) {
    let case = Case { decay: Decay::Scalar, ..case(24) };
    let ended: Vec<_> = thread::scope(|scope| {
        let case = &case;
        let ends = local(3, timeout).into_iter();
        let ranks: Vec<_> = ends.map(|end| scope.spawn(move || rank(case, passing, act, timeout, end))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    // Nobody sends anything to the first rank; the last one waits for the second.
    let (done, took) = &ended[2];
    let what = format!("{passing:?}, {act:?}");
    let error = done.as_ref().expect_err(&what);
    let Error::Peer { rank, fault, .. } = error else { panic!("{what}: {error}") };
    let want = match act {
        Act::Fail => PeerFault::Closed,
        Act::FallSilent => PeerFault::Silent,
        Act::BeOfOtherShape => PeerFault::Mismatch,
    };
    // To a rank of another shape it is what the first one sends that is wrong.
    let culprits: &[u32] = if act == Act::BeOfOtherShape { &[0, 1] } else { &[1] };
    assert!(culprits.contains(rank) && *fault == want, "{what}: {error}");
    assert!(act != Act::FallSilent || *took < 2 * timeout, "{what}: took {took:?}");
}

/// One operation of one rank.
fn walk(case: &Case, passing: Passing, end: &mut Saboteur) -> Result<()> {
    let (rank, ranks, stream) = (end.rank(), end.ranks(), device::stream());
    let world = World::new(case, ranks, passing);
    let (part, data) = world.part(rank, &Data::new::<f32>(case));
    let on = Uploaded::<f32>::new(&part, &data);
    let plan = Plan::new(&world.shape(), &world.options(), &world.places.deal, rank, &device::info()).unwrap();
    let mut workspace = plan.workspace(&stream).unwrap();
    let mut o = Guarded::<f32>::poisoned(part.seq_len * part.heads * part.value_dim, 0);
    let mut o = o.view_mut();
    plan.run(&stream, &on.inputs(), Outputs::of(&mut o), &mut workspace, end)
}

#[test]
fn those_to_whom_states_go_name_the_culprit_at_every_step() {
    let mut count = 0;
    for (passing, ranks) in WAYS.into_iter().flat_map(|passing| [2, 3, 4].map(|ranks| (passing, ranks))) {
        for mode in [Mode::Causal, Mode::Bidirectional] {
            let case = Case { mode, ..case(3 * ranks) };
            let what = format!("{passing:?} of {ranks}, {mode:?}");
            count += check_all(&what, ranks, false, |end| walk(&case, passing, end));
        }
    }
    assert!(count > 150, "{count}");
}

#[test]
fn those_who_wait_name_the_culprit() {
    for passing in WAYS {
        for act in [Act::BeOfOtherShape, Act::Fail] {
            check(passing, act, PATIENCE);
        }
    }
}

#[test]
fn a_silent_rank_is_named_within_twice_the_timeout() {
    thread::scope(|scope| {
        for passing in WAYS {
            scope.spawn(move || check(passing, Act::FallSilent, Duration::from_secs(2)));
        }
    });
}
