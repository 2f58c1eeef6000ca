//! The chunked walk with a decay for every key, or for every value, against the walk in f64, token by token.

use super::chain_case::{Case, Data, Decay, check, compare, run};
use half::{bf16, f16};
use lookback_device::Element;
use lookback_suite::counters::Switch;

const SIDES: [Decay; 2] = [Decay::Key, Decay::Value];

/// Queries and keys are above zero: right behind a cut a score is the only term of its row, and were it a small difference of
/// large ones, the rounding of decayed keys to 16 bits would be all that is left of it.
fn small(decay: Decay, seq_len: usize) -> Case {
    Case { decay, positive: true, ..Case::new(seq_len, 2, 64, 64) }
}

#[test]
fn chain_vector_follows_the_recurrence_for_every_tile_of_keys() {
    for (key_dim, value_dim) in [(32, 64), (16, 96), (64, 128), (96, 40), (128, 64), (128, 256), (256, 136), (200, 64)]
    {
        let case = Case { decay: Decay::Key, ..Case::new(65, 1, key_dim, value_dim) };
        let bv = if key_dim <= 32 { 64 } else { case.bv };
        check::<bf16>("keys", &Case { padding: 8, bv, ..case.clone() });
        check::<f16>("keys", &Case { bv, seq_len: 40, ..case });
    }
}

#[test]
fn chain_vector_follows_the_recurrence_for_every_tile_of_values() {
    for (key_dim, value_dim) in [(32, 64), (16, 96), (64, 128), (96, 40), (128, 64), (128, 136), (256, 136), (200, 64)]
    {
        let case = Case { decay: Decay::Value, ..Case::new(65, 1, key_dim, value_dim) };
        let bv = if key_dim <= 32 || key_dim > 128 { 64 } else { case.bv };
        check::<bf16>("values", &Case { padding: 8, bv, ..case.clone() });
        check::<f16>("values", &Case { bv, seq_len: 40, ..case });
    }
}

#[test]
fn chain_vector_takes_every_length() {
    for decay in SIDES {
        for seq_len in [0, 1, 15, 16, 17, 63, 64, 65, 150] {
            check::<f16>("lengths", &Case { batch: 2, ..small(decay, seq_len) });
            check::<bf16>("lengths", &Case { reverse: true, decay, ..Case::new(seq_len, 1, 128, 64) });
        }
    }
}

/// Every order of decay, addition and read, both directions, both kinds of cut, on and off the edges of chunks and halves.
#[test]
fn chain_vector_follows_every_order_with_cuts() {
    let flags = [vec![0, 1, 7, 8, 15, 32, 33, 49, 70], vec![3, 16, 23, 31, 47, 48, 64, 69]];
    for decay in SIDES {
        for order in 0..3 {
            for (reverse, late_cut) in [(false, false), (false, true), (true, false), (true, true)] {
                let case = Case { order, late_cut, reverse, flags: flags.clone(), split: 1, ..small(decay, 71) };
                check::<f16>("orders", &case);
                check::<f16>("orders, shifted", &Case { shift: true, key_dim: 32, kt: 32, ..case });
            }
            check::<f16>("orders", &Case { order, ..small(decay, 71) });
        }
    }
}

#[test]
fn chain_vector_adds_the_bonus() {
    for (key_dim, value_dim, order) in [(16, 64, 2), (64, 64, 2), (128, 128, 2), (256, 64, 2)] {
        check::<f16>("bonus", &Case { decay: Decay::Key, bonus: true, order, ..Case::new(40, 2, key_dim, value_dim) });
    }
}

#[test]
fn chain_vector_normalises() {
    for (key_dim, value_dim) in [(32, 64), (64, 72), (128, 64), (96, 136)] {
        let case = Case { decay: Decay::Key, normalize: true, bv: 64, ..Case::new(70, 1, key_dim, value_dim) };
        check::<bf16>("normalised", &case);
        let flags = [vec![7, 16, 40], vec![]];
        check::<f16>("normalised, shifted", &Case { shift: true, flags: flags.clone(), order: 1, ..case.clone() });
        check::<f16>("normalised, packed", &Case { lengths: vec![33, 0, 37], reverse: true, flags, ..case.clone() });
        check::<bf16>("normalised, segments", &Case { segment_tokens: 48, ..case });
    }
}

#[test]
fn chain_vector_starts_from_packed_sequences_and_prefixes() {
    for decay in SIDES {
        let packed = Case { lengths: vec![0, 17, 1, 0, 32, 15, 0], ..small(decay, 65) };
        for (reverse, transposed) in [(false, false), (true, true)] {
            let case = Case { reverse, transposed, ..packed.clone() };
            check::<bf16>("packed", &case);
            check::<bf16>("packed, shifted", &Case { shift: true, state: false, ..case.clone() });
            check::<bf16>("packed, prefix", &Case { prefix: vec![0, 16, 1, 0, 20, 4, 0], ..case });
        }
        check::<bf16>("prefix of rows", &Case { batch: 2, prefix: vec![33, 7], ..small(decay, 50) });
    }
}

#[test]
fn chain_vector_writes_every_kind_of_output() {
    for decay in SIDES {
        for (out_f32, accumulate, shift) in
            [(false, true, false), (true, false, false), (true, true, false), (false, true, true), (true, false, true)]
        {
            check::<f16>("outputs", &Case { out_f32, accumulate, shift, bv: 64, ..small(decay, 50) });
            let narrow = Case { decay, bv: 64, ..Case::new(40, 1, 32, 72) };
            check::<bf16>("outputs", &Case { out_f32, accumulate, shift, ..narrow });
        }
    }
}

/// As the gradients of decays need it: states, values and scores keep the bits that 16 do not hold.
#[test]
fn chain_vector_keeps_more_bits_where_it_is_exact() {
    let exact = |key_dim, value_dim, seq_len| Case {
        decay: Decay::Value,
        exact: true,
        out_f32: true,
        bv: 64,
        ..Case::new(seq_len, 1, key_dim, value_dim)
    };
    for (key_dim, value_dim) in [(32, 64), (64, 72), (128, 64)] {
        check::<bf16>("exact", &exact(key_dim, value_dim, 70));
        check::<f16>("exact", &Case { order: 1, reverse: true, late_cut: true, ..exact(key_dim, value_dim, 40) });
    }
    let flags = [vec![5, 24, 50, 64], vec![]];
    check::<bf16>("exact, segments", &Case { segment_tokens: 48, flags: flags.clone(), ..exact(64, 64, 100) });
    check::<bf16>("exact, packed", &Case { lengths: vec![33, 0, 67], flags, accumulate: true, ..exact(64, 64, 100) });
}

#[test]
fn chain_vector_shares_rows_between_heads() {
    for decay in SIDES {
        check::<bf16>("groups", &Case { decay, groups: [2, 4, 1], padding: 16, ..Case::new(40, 4, 64, 64) });
        check::<bf16>("groups", &Case { decay, groups: [1, 1, 2], batch: 2, ..Case::new(20, 4, 64, 64) });
    }
}

#[test]
fn chain_vector_in_segments_is_the_same_walk() {
    for decay in SIDES {
        for (segment_tokens, reverse, order) in [(48, false, 0), (40, true, 1), (64, false, 2), (16, true, 0)] {
            let flags = [vec![5, 50, 64, 120], vec![6, 47, 63, 121]];
            let case = Case { segment_tokens, reverse, order, late_cut: reverse, split: 1, flags, ..small(decay, 150) };
            check::<bf16>("segments", &case);
            let case = Case { lengths: vec![70, 0, 80], shift: true, ..case };
            check::<bf16>("segments, packed", &case);
        }
        check::<bf16>("segments", &Case { decay, segment_tokens: 48, ..Case::new(100, 1, 256, 64) });
        check::<bf16>("segments", &Case { decay, segment_tokens: 48, ..Case::new(100, 1, 128, 128) });
        check::<f16>("segments", &Case { decay, segment_tokens: 48, ..Case::new(100, 1, 32, 40) });
    }
}

/// From no decay at all to one that leaves nothing, side by side, and even infinite ones: no exponent grows, nothing overflows.
#[test]
fn chain_vector_bears_any_decay() {
    for decay in SIDES {
        for order in 0..3 {
            for (low, infinite) in [(0.0, false), (-1e-4, false), (-5.0, false), (-80.0, false), (-1.0, true)] {
                let case = Case { g_low: low, order, ..small(decay, 70) };
                let data = Data::new::<bf16>(&case, 5);
                let g = data.g.iter().enumerate().map(|(i, g)| {
                    let mixed = [*g, 0.0, -1e-4, -5.0, -80.0][i * 7 / 3 % 5];
                    if infinite && i % 11 == 3 { f64::NEG_INFINITY } else { f64::from(mixed as f32) }
                });
                let g = g.collect();
                compare::<bf16>("any decay", &case, &Data { g, ..data });
            }
        }
    }
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn chain_vector_is_the_same_to_the_bit_in_any_schedule() {
    for decay in SIDES {
        let flags = [vec![9, 33], vec![]];
        let case = Case { flags, segment_tokens: 48, ..small(decay, 100) };
        let data = Data::new::<bf16>(&case, 9);
        let first = run::<bf16>(&case, &data);
        for (key, value, default) in
            [("order", "reversed", "inorder"), ("order", "random:3", "inorder"), ("convergence", "random:4", "natural")]
        {
            let _switch = Switch::set(key, value, default);
            let again = run::<bf16>(&case, &data);
            assert_eq!(bits(&again.o), bits(&first.o), "{key} {value}");
            assert_eq!(bits(&again.h), bits(&first.h), "{key} {value}");
        }
    }
}

/// A NaN stays within its chunk of 16 tokens and the tokens behind it, up to the first cut outside of it, and in its head.
#[test]
fn chain_vector_keeps_nan_to_what_follows() {
    fn spoilt<T: Element>(case: &Case, name: &str, spoil: impl Fn(&mut Data)) {
        let mut data = Data::new::<T>(case, 3);
        let clean = run::<T>(case, &data);
        spoil(&mut data);
        let out = run::<T>(case, &data);
        for (i, (o, c)) in out.o.iter().zip(&clean.o).enumerate() {
            let (token, head) = (i / case.value_dim / case.heads, i / case.value_dim % case.heads);
            let allowed = head == 0 && (16..50).contains(&token);
            assert!(allowed || o.to_bits() == c.to_bits(), "{name}: token {token}, head {head}: {o} instead of {c}");
        }
        for (i, (s, c)) in out.h.iter().zip(&clean.h).enumerate() {
            assert!(s.to_bits() == c.to_bits(), "{name}: state {i}: {s} instead of {c}");
        }
        assert!(out.o.iter().any(|o| o.is_nan()), "{name}: the NaN is lost");
    }
    for decay in SIDES {
        // Token 20, head 0; the cut at 50 ends it.
        let case = Case { flags: [vec![50], vec![]], ..small(decay, 70) };
        let at = 20 * 2 * 64 + 5;
        spoilt::<bf16>(&case, "q", |data| data.q[at] = f64::NAN);
        spoilt::<bf16>(&case, "k", |data| data.k[at] = f64::NAN);
        spoilt::<bf16>(&case, "v", |data| data.v[at] = f64::NAN);
        // The same chunk as the cut: what came before it is gone, and the state behind it is clean.
        let case = Case { flags: [vec![27], vec![]], ..small(decay, 70) };
        for name in ["k", "v"] {
            let mut data = Data::new::<bf16>(&case, 3);
            if name == "k" {
                data.k[at] = f64::NAN
            } else {
                data.v[at] = f64::NAN
            }
            let out = run::<bf16>(&case, &data);
            assert!(out.o[32 * 2 * 64..].iter().all(|o| o.is_finite()), "{decay:?} {name}");
            assert!(out.h.iter().all(|s| s.is_finite()), "{decay:?} {name}: state");
        }
    }
}
