//! One rank that leaves, falls silent or lies, at every step: all others say so in time, and name it.

use super::{
    case::Case,
    saboteur::{Act, Fault, Saboteur, check, check_all, moves},
};
use half::bf16;
use lookback_device::{Element, Result, cudarc::driver::DevicePtr};
use lookback_ring::{
    Partition, Visible,
    attention::{Inputs, Options, Outputs, Plan},
    schedule::Kind,
    transport::Transport,
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};
use std::{thread, time::Duration};

fn case(kind: Kind, ranks: usize) -> Case {
    Case { heads: 4, key_heads: 4, ..Case::new(kind, Partition::Zigzag, ranks, Visible::causal(4 * ranks)) }
}

/// One operation of one rank.
fn run(case: &Case, end: &mut Saboteur) -> Result<()> {
    let stream = device::stream();
    let shape = case.shape();
    let options = Options { kind: case.kind, ..Options::new(&shape, bf16::DTYPE) };
    let plan = Plan::new(&shape, &options, &case.layout, &case.visible, end.rank(), &device::info()).unwrap();
    let mut workspace = plan.workspace(&stream).unwrap();
    let rows = plan.tokens() * case.heads;
    let ones = |heads: usize| upload_as::<bf16>(&vec![1.0; plan.tokens() * heads * 32]);
    let (q, k, v) = (ones(case.heads), ones(case.key_heads), ones(case.key_heads));
    let mut o = Guarded::<bf16>::poisoned(rows * 32, 0);
    let mut lse = Guarded::<f32>::poisoned(rows, 0);
    let inputs = Inputs { q: &q as &dyn DevicePtr<bf16>, k: &k, v: &v };
    let (mut o, mut lse) = (o.view_mut(), lse.view_mut());
    plan.run(&stream, &inputs, Outputs { o: &mut o, lse: &mut lse }, &mut workspace, end)
}

#[test]
fn every_survivor_names_the_culprit_at_every_step() {
    let mut count = 0;
    for ranks in [2, 3, 4] {
        let mut kinds = vec![Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 2 }];
        if ranks == 4 {
            kinds.push(Kind::TwoLevel { node: 2 });
        }
        // Of four heads.
        if ranks != 3 {
            kinds.push(Kind::Ulysses);
        }
        for kind in kinds {
            let case = case(kind, ranks);
            count += check_all(&format!("{kind:?} of {ranks}"), ranks, true, |end| run(&case, end));
        }
    }
    assert!(count > 300, "{count}");
}

#[test]
fn a_silent_rank_is_named_within_twice_the_timeout() {
    // Several times what a step takes on a busy machine, and as long as the test.
    let timeout = Duration::from_secs(2);
    thread::scope(|scope| {
        for (ranks, rank, step) in [(2, 0, 0), (3, 1, 1), (4, 3, 0), (4, 2, 2)] {
            scope.spawn(move || {
                let case = case(Kind::Ring, ranks);
                let run = |end: &mut Saboteur| run(&case, end);
                let fault = Fault { rank, step, act: Act::FallSilent };
                check("ring", fault, timeout, (true, &moves(ranks, &run)), &run);
            });
        }
    });
}
