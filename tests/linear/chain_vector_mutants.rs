//! The chunked walk with a decay for every key or value, with one mistake each: every one must be caught.

use super::{
    chain_case::{Case, Decay},
    chain_mutants::{Seen, check},
};
use lookback_kernels::{Kernel, find};

/// Cuts in both halves of chunks and between chunks, hidden keys, a last stage that is not whole, and values that are not all there.
fn case(decay: Decay) -> Case {
    let flags = [vec![20, 27, 48, 77, 130], vec![]];
    Case { decay, flags, positive: true, ..Case::new(150, 1, 64, 40) }
}

fn kernel(side: &str) -> &'static Kernel {
    let variant = [("side", side), ("dtype", "bf16"), ("kt", "64"), ("bv", "64"), ("norm", "no"), ("part", "whole")];
    find("linear_attention_chain_vector", &variant).expect("every variant is built")
}

#[test]
fn chain_vector_every_seeded_mistake_of_keys_is_caught() {
    check(
        kernel("key"),
        &case(Decay::Key),
        &[
            // The two barriers of a stage, and the copies.
            ("bar.sync 0;", "", 0, Seen::Race),
            ("bar.sync 0;", "", 1, Seen::Race),
            ("cp.async.wait_group 0;", "", 0, Seen::Something),
            // Products of factors: a token's own, those of older keys, of the half, of the other half.
            ("mul.f32 %r0, %r0, %y6;", "", 0, Seen::WrongResult),
            ("mul.f32 %d2, %d2, %y8;", "", 0, Seen::WrongResult),
            ("mul.f32 %qx1, %qx1, %other1;", "", 3, Seen::WrongResult),
            ("mul.f32 %d8, %d8, %other0;", "", 0, Seen::WrongResult),
            ("add.f32 %own1, %own1, %y11;", "", 0, Seen::WrongResult),
            ("mul.f32 %all0, %own0, %other0;", "mov.f32 %all0, %own0;", 0, Seen::WrongResult),
            ("mul.f32 %s7, %s7, %e1;", "", 0, Seen::WrongResult),
            // Sums of scores over the warp.
            ("shfl.sync.bfly.b32 %sent, %sent, 4, 31, 0xffffffff;", "", 2, Seen::WrongResult),
            ("and.b32 %b, %b, 7;", "", 0, Seen::Something),
            // Cuts.
            ("selp.f32 %y6, 0f00000000, %y6, %is_hit;", "", 0, Seen::WrongResult),
            ("setp.ne.u32 %is_cut, %t0, 0;", "setp.eq.u32 %is_cut, %t0, 0;", 2, Seen::WrongResult),
            // Ends.
            (
                "setp.gt.s32 %is_row0, %out_rows, %group;",
                "setp.ge.s32 %is_row0, %out_rows, %group;",
                0,
                Seen::Something,
            ),
            ("setp.gt.and.s32 %is_in, %rows, 24, %g_is;", "setp.ge.s32 %is_in, %rows, -64;", 1, Seen::Something),
        ],
    );
}

#[test]
fn chain_vector_every_seeded_mistake_of_values_is_caught() {
    check(
        kernel("value"),
        &case(Decay::Value),
        &[
            ("bar.sync 0;", "", 0, Seen::Race),
            ("bar.sync 0;", "", 1, Seen::Race),
            ("cp.async.wait_group 0;", "", 0, Seen::Something),
            // Products of factors.
            ("mul.f32 %r8, %r6, %y8;", "mov.f32 %r8, %r6;", 0, Seen::WrongResult),
            ("mul.f32 %d3, %d3, %y11;", "", 0, Seen::WrongResult),
            ("mul.f32 %d6, %d6, %other0;", "", 0, Seen::WrongResult),
            ("mul.f32 %o3, %o3, %mid1;", "", 0, Seen::WrongResult),
            ("mul.f32 %s6, %s6, %e1;", "", 1, Seen::WrongResult),
            ("mul.f32 %s6, %s6, %e1;", "", 3, Seen::WrongResult),
            ("fma.rn.f32 %inner9, %a2, %d5, %inner9;", "", 0, Seen::WrongResult),
            // What the second half reads of the first.
            ("{%none, %score}, {%b1}", "{%none, %none}, {%b1}", 1, Seen::WrongResult),
            // Cuts.
            ("selp.f32 %y6, 0f00000000, %y6, %is_hit;", "", 0, Seen::WrongResult),
            // Ends.
            (
                "setp.gt.and.s32 %is_row, %rows, 6, %is_value;",
                "setp.ge.and.s32 %is_row, %rows, 6, %is_value;",
                0,
                Seen::Something,
            ),
        ],
    );
}
