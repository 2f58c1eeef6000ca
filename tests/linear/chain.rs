//! The chunked walk on tensor cores against the walk in f64, token by token.

use super::chain_case::{Case, Decay, check};
use half::{bf16, f16};

fn small(seq_len: usize) -> Case {
    Case::new(seq_len, 2, 32, 64)
}

#[test]
fn chain_follows_the_recurrence_for_every_tile() {
    for (key_dim, value_dim) in [(32, 64), (64, 64), (128, 64), (128, 128), (256, 128), (16, 96), (96, 24), (64, 136)] {
        check::<bf16>("tiles", &Case { padding: 8, ..Case::new(65, 1, key_dim, value_dim) });
        check::<f16>("tiles", &Case::new(40, 1, key_dim, value_dim));
    }
    check::<bf16>("tiles", &Case::new(50, 1, 256, 64));
    check::<bf16>("tiles", &Case { bv: 128, ..Case::new(50, 1, 32, 64) });
}

#[test]
fn chain_takes_every_length() {
    for seq_len in [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200] {
        check::<f16>("lengths", &Case { batch: 2, ..small(seq_len) });
        check::<bf16>("lengths", &Case { reverse: true, decay: Decay::None, ..Case::new(seq_len, 1, 256, 64) });
    }
}

/// Every order of decay, addition and read, both directions, both kinds of cut, on and off the edges of chunks.
#[test]
fn chain_follows_every_order_with_cuts() {
    let flags = [vec![0, 1, 15, 32, 33, 49, 70], vec![3, 16, 31, 47, 48, 64, 69]];
    for order in 0..3 {
        for (reverse, late_cut) in [(false, false), (false, true), (true, false), (true, true)] {
            let case = Case { order, late_cut, reverse, flags: flags.clone(), split: 1, ..small(71) };
            check::<f16>("orders", &case);
            check::<f16>("orders, shifted", &Case { shift: true, ..case.clone() });
            check::<f16>("orders, normalised", &Case { normalize: true, decay: Decay::Head, ..case });
        }
    }
}

#[test]
fn chain_adds_the_bonus() {
    for (key_dim, order) in [(16, 2), (64, 2), (128, 2), (256, 2)] {
        check::<f16>("bonus", &Case { bonus: true, order, ..Case::new(40, 2, key_dim, 64) });
    }
    check::<f16>("bonus, normalised", &Case { bonus: true, order: 2, normalize: false, reverse: true, ..small(37) });
}

#[test]
fn chain_starts_from_packed_sequences_and_prefixes() {
    let packed = Case { lengths: vec![0, 17, 1, 0, 32, 15, 0], ..small(65) };
    for (reverse, transposed) in [(false, false), (true, true)] {
        let case = Case { reverse, transposed, ..packed.clone() };
        check::<bf16>("packed", &case);
        check::<bf16>("packed, shifted", &Case { shift: true, state: false, ..case.clone() });
        check::<bf16>("packed, prefix", &Case { prefix: vec![0, 16, 1, 0, 20, 4, 0], ..case.clone() });
        check::<bf16>("packed, normalised", &Case { normalize: true, ..case });
    }
    check::<bf16>("prefix of rows", &Case { batch: 2, prefix: vec![33, 7], ..small(50) });
}

#[test]
fn chain_writes_every_kind_of_output() {
    for (out_f32, accumulate, shift) in
        [(false, true, false), (true, false, false), (true, true, false), (false, true, true), (true, false, true)]
    {
        check::<f16>("outputs", &Case { out_f32, accumulate, shift, ..Case::new(50, 2, 32, 72) });
    }
}

#[test]
fn chain_shares_rows_between_heads() {
    check::<bf16>("groups", &Case { groups: [2, 4, 1], padding: 16, ..Case::new(40, 4, 64, 64) });
    check::<bf16>("groups", &Case { groups: [1, 1, 2], batch: 2, ..Case::new(20, 4, 64, 64) });
}

#[test]
fn chain_normalises_with_every_tile() {
    for (key_dim, value_dim) in [(32, 64), (64, 136), (128, 128), (256, 64)] {
        check::<bf16>("normaliser", &Case { normalize: true, batch: 2, ..Case::new(65, 1, key_dim, value_dim) });
    }
    check::<bf16>("normaliser, shifted", &Case { normalize: true, shift: true, reverse: true, ..small(33) });
}

/// Decays from nothing to everything, without an overflow.
#[test]
fn chain_stands_extreme_decays() {
    for g_low in [0.0, -1e-4, -5.0, -80.0] {
        check::<bf16>("decays", &Case { g_low, ..small(70) });
    }
}

#[test]
fn chain_in_segments_is_the_walk() {
    for segment_tokens in [16, 48] {
        for (reverse, order) in [(false, 0), (true, 1), (true, 2)] {
            let case = Case { segment_tokens, reverse, order, ..small(130) };
            check::<f16>(
                "segments",
                &Case { late_cut: order == 1, flags: [vec![40, 47, 48, 96], vec![]], ..case.clone() },
            );
            check::<f16>("segments, normalised", &Case { normalize: true, split: 1, ..case.clone() });
            check::<f16>("segments, packed", &Case { lengths: vec![3, 0, 80, 47], transposed: true, ..case.clone() });
            check::<f16>("segments, shifted", &Case { shift: true, order: 0, batch: 2, ..case });
        }
    }
    check::<bf16>("segments", &Case { segment_tokens: 64, ..Case::new(150, 1, 256, 128) });
    check::<bf16>("segments", &Case { segment_tokens: 64, normalize: true, ..Case::new(150, 1, 128, 136) });
}
