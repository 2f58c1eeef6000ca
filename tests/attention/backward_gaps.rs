//! Tokens that belong to no sequence, and lists that begin outside: what nobody wrote or named is not looked at.

use super::{
    backward_case::{Backward, Given, run},
    forward_case::Case,
};
use half::bf16;
use lookback_suite::measure::{Gate, assert_close};

/// Queries 3..40 and 40..290 of 330 have sequences.
#[test]
fn backward_sink_passes_over_queries_without_a_sequence() {
    let case = Case {
        sink: true,
        cu_q: vec![3, 40, 290],
        cu_k: vec![0, 60, 128],
        query_len: 330,
        key_len: 128,
        ..Case::causal(330, 128, 2, 64, 64)
    };
    let backward = Backward { d_lse: true, ..Backward::from(case.clone()) };
    let mut given = Given::new::<bf16>(&backward, 71);
    let want = given.want(&backward);
    // Whatever was there before: weights that would be e^80.
    for (at, lse) in given.lse.iter_mut().enumerate() {
        if !(3..290).contains(&(at / case.heads)) {
            *lse = -80.0;
        }
    }
    let out = run::<bf16>(&backward, &given);
    let close = |what: &str, out: &[f64], want: &[f64], width, gate| {
        assert_close(what, out, want, width, gate);
    };
    close("d_sink", &out.d_sink, &want.d_sink, case.heads, Gate { rel: 1e-4, row: 1e-4, inf: 1e-4 });
    close("dk", &out.dk, &want.dk, 64, Gate::BF16);
    close("dv", &out.dv, &want.dv, 64, Gate::BF16);
    let row = case.heads * 64;
    close("dq", &out.dq[3 * row..290 * row], &want.dq[3 * row..290 * row], 64, Gate::BF16);
    assert!(out.dq[..3 * row].iter().chain(&out.dq[290 * row..]).all(|x| x.is_nan()), "dq of no sequence is written");
}

/// Places of a list below 0 are place 0, in both kernels as in the forward.
#[test]
fn backward_lists_begin_where_the_forward_lets_them() {
    let gradients = |starts: [i32; 4]| {
        let tiles = Some((starts.to_vec(), vec![0, 2, 1, 2]));
        let backward = Backward::from(Case { tiles, ..Case::new(300, 190, 1, 64, 64) });
        let good = Backward::from(Case { tiles: Some((vec![0, 2, 3, 4], vec![0, 2, 1, 2])), ..backward.case.clone() });
        run::<bf16>(&backward, &Given::new::<bf16>(&good, 73))
    };
    assert_eq!(gradients([-7, 2, 3, 4]), gradients([0, 2, 3, 4]));
    assert_eq!(gradients([i32::MIN, -1, 3, 9]), gradients([0, 0, 3, 4]));
}
