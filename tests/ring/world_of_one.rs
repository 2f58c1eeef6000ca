//! A world of one rank: every schedule and every way to pass states, over every transport that needs no other machine.

use super::{case::Case, states::WAYS, states_linear};
use crate::linear::case::{Data, Uploaded};
use half::bf16;
use lookback_device::Element;
use lookback_linear::Mode;
use lookback_reference::attention::{Adjoint, Inputs as Whole, backward, delta};
use lookback_ring::{
    Partition, Place, Rendezvous, Visible,
    attention::{BackwardInputs, BackwardOptions, BackwardPlan, Gradients, Inputs, Options, Outputs, Plan, Shape},
    schedule::Kind,
    state::linear as state,
    transport::{Staged, Transport, local, tcp},
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{Gate, assert_close, gate},
};

fn transports() -> [(&'static str, Staged); 2] {
    let timeout = super::case::PATIENCE;
    let place = Place::Address("127.0.0.1:1".into());
    let alone = Rendezvous { rank: 0, ranks: 1, place, job: 1, timeout };
    let [local] = <[Staged; 1]>::try_from(local(1, timeout)).unwrap_or_else(|_| panic!("one end"));
    [("threads", local), ("tcp", tcp(&alone).expect("nobody to meet"))]
}

/// Both passes, beside the reference.
fn attend(case: &Case, end: &mut Staged, what: &str) {
    let Shape { heads, key_heads, head_dim, value_dim, .. } = case.shape();
    let stream = device::stream();
    let [q, k, v, d_o] =
        [(1, heads, head_dim), (2, key_heads, head_dim), (3, key_heads, value_dim), (4, heads, value_dim)]
            .map(|(seed, heads, width)| case.tensor::<bf16>(seed, heads, width));
    let want = case.oracle(&q, &k, &v);
    let d_lse = vec![0.0; want.lse.len()];
    let intervals = case.intervals();
    let terms = delta(&want.o, &d_o, Some(&d_lse), value_dim);
    let adjoint = Adjoint { d_o: &d_o, lse: &want.lse, delta: &terms };
    let gradients = backward(&case.attention(&intervals), &Whole { q: &q, k: &k, v: &v }, &adjoint);
    let on = [&q, &k, &v, &d_o].map(|tensor| upload_as::<bf16>(tensor));
    let options = Options { kind: case.kind, ..Options::new(&case.shape(), bf16::DTYPE) };
    let plan = Plan::new(&case.shape(), &options, &case.layout, &case.visible, 0, &device::info()).unwrap();
    assert_eq!(plan.bytes_sent(), 0, "{what}");
    let mut workspace = plan.workspace(&stream).unwrap();
    let mut o = Guarded::<bf16>::poisoned(want.o.len(), 0);
    let mut lse = Guarded::<f32>::poisoned(want.lse.len(), 0);
    let outputs = Outputs { o: &mut o.view_mut(), lse: &mut lse.view_mut() };
    plan.run(&stream, &Inputs { q: &on[0], k: &on[1], v: &on[2] }, outputs, &mut workspace, end).unwrap();
    device::finish();
    assert_close(what, &o.read(), &want.o, value_dim, gate(bf16::DTYPE));
    let back = BackwardOptions::new(options);
    let back = BackwardPlan::new(&case.shape(), &back, &case.layout, &case.visible, 0, &device::info()).unwrap();
    let mut workspace = back.workspace(&stream).unwrap();
    let [mut dq, mut dk, mut dv] =
        [&gradients.dq, &gradients.dk, &gradients.dv].map(|like| Guarded::<bf16>::poisoned(like.len(), 0));
    let given = BackwardInputs {
        q: &on[0],
        k: &on[1],
        v: &on[2],
        o: &upload_as::<bf16>(&o.read()),
        lse: &upload_as::<f32>(&lse.read()),
        d_o: &on[3],
        d_lse: None,
    };
    let made = Gradients { dq: &mut dq.view_mut(), dk: &mut dk.view_mut(), dv: &mut dv.view_mut() };
    back.run::<bf16, bf16, bf16>(&stream, &given, made, &mut workspace, end).unwrap();
    device::finish();
    let gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };
    for (name, got, want) in [("dq", dq, &gradients.dq), ("dk", dk, &gradients.dk), ("dv", dv, &gradients.dv)] {
        assert_close(&format!("{what}, {name}"), &got.read(), want, 32, gate);
    }
}

#[test]
fn every_schedule_works_alone() {
    let kinds = [
        Kind::Ring,
        Kind::Bidirectional,
        Kind::TwoLevel { node: 1 },
        Kind::TokenRing,
        Kind::AllGather { groups: 2 },
        Kind::Ulysses,
    ];
    for (name, mut end) in transports() {
        for kind in kinds {
            let case = Case::new(kind, Partition::Zigzag, 1, Visible::causal(33));
            attend(&case, &mut end, &format!("{kind:?} over {name}"));
        }
    }
}

#[test]
fn every_way_to_pass_states_works_alone() {
    for (name, mut end) in transports() {
        for (passing, mode) in WAYS.into_iter().flat_map(|way| [Mode::Causal, Mode::Bidirectional].map(|m| (way, m))) {
            let case = crate::linear::case::Case { mode, ..states_linear::case(19) };
            let world = states_linear::World::new(&case, 1, passing);
            let data = Data::new::<f32>(&case);
            let on = Uploaded::<f32>::new(&case, &data);
            let stream = device::stream();
            let (shape, options) = (world.shape(), world.options());
            let plan = state::Plan::new(&shape, &options, &world.places.deal, end.rank(), &device::info()).unwrap();
            assert_eq!(plan.bytes_sent(), 0);
            let mut workspace = plan.workspace(&stream).unwrap();
            let mut o = Guarded::<f32>::poisoned(case.seq_len * case.heads * case.value_dim, 0);
            let done = {
                let mut o = o.view_mut();
                plan.run(&stream, &on.inputs(), state::Outputs::of(&mut o), &mut workspace, &mut end)
            };
            done.unwrap();
            device::finish();
            let what = format!("{passing:?} {mode:?} over {name}");
            assert_close(&what, &o.read(), &data.oracle(&case).o, case.value_dim, gate(f32::DTYPE));
        }
    }
}
