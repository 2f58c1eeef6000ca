//! Attention and its gradients, one block of queries or keys at a time.

use super::family::{Family, every};
use crate::attention::{
    backward_case::{self as backward, Backward},
    forward_case::{self as forward, Case, Data, Out},
    merge_case,
};
use half::f16;

pub const FORWARD: Family = Family {
    kernels: &["attention_fwd", "merge_states"],
    variants: every,
    runs: &[
        || {
            // The first queries see nothing, so that a block of theirs visits nothing.
            for case in [Case::causal(130, 270, 1, 32, 32), Case::causal(200, 70, 1, 32, 32)] {
                forward::check::<f16>(&case, 1);
            }
            let case = Case { sink: true, out: Out::Merge, ..Case::causal(90, 90, 1, 32, 32) };
            forward::compare::<f16>(
                &case,
                &forward::run::<f16>(&case, &Data::new::<f16>(&case, 1)),
                &forward::merged(&case, &Data::new::<f16>(&case, 1)),
            );
        },
        || merge_case::check::<f16, f32>(&merge_case::Case { accumulate: true, ..merge_case::CASE }),
    ],
};

pub const BACKWARD: Family = Family {
    kernels: &[
        "attention_bwd_keys",
        "attention_bwd_queries",
        "attention_bwd_prepare",
        "attention_bwd_finish",
        "attention_bwd_sink",
    ],
    variants: every,
    runs: &[
        || both(Case { sink: true, ..Case::causal(150, 150, 1, 32, 32) }),
        || both(Case { offset: Some(-100), ..Case::causal(64, 70, 1, 32, 32) }),
        || both(Case { intervals: intervals(90), ..Case::new(90, 150, 1, 32, 32) }),
        || both(Case::causal(100, 140, 1, 256, 256)),
        || both(Case { offset: Some(-100), ..Case::causal(64, 70, 1, 256, 256) }),
        || both(Case { intervals: intervals(60), ..Case::new(60, 150, 1, 256, 256) }),
    ],
};

/// Blocks of keys that keep dq for a pass of its own, and that add to it.
fn both(case: Case) {
    let deterministic = [true, false];
    for deterministic in deterministic {
        backward::check::<f16>(Backward { deterministic, d_lse: true, ..case.clone().into() }, 1);
    }
}

/// Every other row sees one run of keys, the rest see two.
fn intervals(rows: i32) -> Vec<i32> {
    (0..rows).flat_map(|i| if i % 2 == 0 { [0, 0, 0, 70 + i % 3] } else { [5, 40, 90, 140] }).collect()
}

#[test]
fn attention_needs_its_barriers() {
    FORWARD.check();
}

#[test]
fn gradients_of_attention_need_their_barriers() {
    BACKWARD.check();
}
