//! A program in parts, as it is timed: what is computed without anybody else, and what moves without a result.

use super::case::{Case, PATIENCE};
use half::bf16;
use lookback_device::{Element, cudarc::driver::DevicePtr};
use lookback_ring::{
    Partition, Visible,
    attention::{Inputs, Options, Outputs, Part, Plan},
    schedule::Kind,
    transport::{Staged, Transport, local},
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};
use std::{sync::Barrier, thread};

/// One rank's `o` after all, after computing alone, and after transfers alone; the other rank is away while this one computes.
fn rank(case: &Case, end: &mut Staged, turn: &Barrier) -> [Vec<f64>; 3] {
    let stream = device::stream();
    let options = Options { kind: case.kind, ..Options::new(&case.shape(), bf16::DTYPE) };
    let plan = Plan::new(&case.shape(), &options, &case.layout, &case.visible, end.rank(), &device::info()).unwrap();
    let mut workspace = plan.workspace(&stream).unwrap();
    let part = |seed, heads: usize| {
        upload_as::<bf16>(&case.part(end.rank(), &case.tensor::<bf16>(seed, heads, 32), heads * 32))
    };
    let (q, k, v) = (part(1, case.heads), part(2, case.key_heads), part(3, case.key_heads));
    let first = end.rank() == 0;
    [Part::All, Part::Compute, Part::Transfers].map(|part| {
        if part == Part::Compute && !first {
            turn.wait();
        }
        let mut o = Guarded::<bf16>::poisoned(plan.tokens() * case.heads * 32, 0);
        let mut lse = Guarded::<f32>::poisoned(plan.tokens() * case.heads, 0);
        let (mut o_view, mut lse_view) = (o.view_mut(), lse.view_mut());
        let inputs = Inputs { q: &q as &dyn DevicePtr<bf16>, k: &k, v: &v };
        let outputs = Outputs { o: &mut o_view, lse: &mut lse_view };
        plan.run_part(part, &stream, &inputs, outputs, &mut workspace, end).unwrap();
        device::finish();
        if part == Part::Compute && first {
            turn.wait();
        }
        o.read()
    })
}

#[test]
fn parts_do_what_they_say_and_no_more() {
    for kind in [Kind::Ring, Kind::Bidirectional] {
        let case = Case::new(kind, Partition::Zigzag, 2, Visible::causal(24));
        let turn = Barrier::new(2);
        let told: Vec<[Vec<f64>; 3]> = thread::scope(|scope| {
            let (case, turn) = (&case, &turn);
            let ends = local(2, PATIENCE).into_iter();
            let ranks: Vec<_> = ends.map(|mut end| scope.spawn(move || rank(case, &mut end, turn))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for (rank, [all, computed, moved]) in told.iter().enumerate() {
            assert!(all.iter().all(|x| x.is_finite()) && all == computed, "{kind:?}, rank {rank}: what arrived before");
            assert!(moved.iter().all(|x| x.is_nan()), "{kind:?}, rank {rank}: transfers write no result");
        }
    }
}
