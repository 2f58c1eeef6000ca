//! The same bits whatever the order of blocks, and results within gates where the order is left open.

use super::{
    backward_case::{Backward, Given, Gradients, compare, run},
    forward_case::Case,
};
use half::bf16;
use lookback_attention::backward::Gradient;
use lookback_suite::{counters::Switch, device};

fn bits(of: &Gradients) -> Vec<u64> {
    [&of.dq, &of.dk, &of.dv, &of.d_sink].into_iter().flatten().map(|x| x.to_bits()).collect()
}

/// Runs under several schedules, and what each found.
fn under_schedules(backward: &Backward, given: &Given) -> Vec<Gradients> {
    if !device::info().emulated {
        return (0..10).map(|_| run::<bf16>(backward, given)).collect();
    }
    [("inorder", "1", "eager"), ("reversed", "3", "late"), ("random:1", "5", "eager"), ("random:2", "7", "late")]
        .into_iter()
        .map(|(order, residency, copies)| {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            let _copies = Switch::set("async", copies, "late");
            run::<bf16>(backward, given)
        })
        .collect()
}

fn cases() -> Vec<Case> {
    vec![
        Case { sink: true, group: 2, ..Case::causal(150, 170, 2, 64, 64) },
        Case { slopes: true, ..Case::causal(0, 0, 1, 128, 128) }.packed(&[70, 0, 90], &[90, 30, 70]),
        Case { batch: 2, ..Case::new(70, 100, 1, 192, 192) },
    ]
}

#[test]
fn backward_same_bits_under_every_schedule() {
    for case in cases() {
        for gradient in [Gradient::Same, Gradient::Accumulate] {
            let backward = Backward { gradient, ..case.clone().into() };
            let given = Given::new::<bf16>(&backward, 1);
            let first = bits(&run::<bf16>(&backward, &given));
            for found in under_schedules(&backward, &given) {
                assert!(bits(&found) == first, "{backward:?}");
            }
        }
    }
}

/// dk and dv have their bits even so.
#[test]
fn backward_adding_stays_within_gates() {
    for case in cases() {
        let backward = Backward { deterministic: false, ..case.into() };
        let given = Given::new::<bf16>(&backward, 2);
        let want = given.want(&backward);
        let first = run::<bf16>(&backward, &given);
        for found in under_schedules(&backward, &given) {
            compare::<bf16>(&backward, &found, &want);
            assert_eq!((&found.dk, &found.dv), (&first.dk, &first.dv), "{backward:?}");
        }
    }
}
