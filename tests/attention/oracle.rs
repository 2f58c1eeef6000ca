//! Every tile, mask and relation of queries to keys, against the f64 oracle.

use super::case::{Case, Computed, Data, run};
use half::{bf16, f16};
use lookback_attention::{Mask, Output};
use lookback_device::{DType, Element};
use lookback_suite::measure::errors;

const TYPES: [DType; 2] = [DType::F16, DType::Bf16];

/// Masks that are numbers alone.
const MASKS: [Mask; 6] = [
    Mask::Full,
    Mask::Causal,
    Mask::AntiCausal,
    Mask::Window { left: Some(20), right: Some(0), sink_tokens: 0 },
    Mask::Window { left: Some(70), right: Some(9), sink_tokens: 3 },
    Mask::Window { left: None, right: Some(40), sink_tokens: 0 },
];

#[test]
fn attention_every_tile_full_and_in_part() {
    // Both ends of every tile, and extents between; 64 rows a block with wide keys, 128 else.
    let dims = [
        (32, 32),
        (8, 8),
        (24, 16),
        (64, 64),
        (40, 64),
        (96, 96),
        (72, 80),
        (128, 128),
        (104, 24),
        (192, 128),
        (136, 120),
        (192, 192),
        (16, 184),
        (256, 256),
        (200, 232),
    ];
    for (i, (head_dim, value_dim)) in dims.into_iter().enumerate() {
        let case = Case::new(TYPES[i % 2], 1, 70, 75, head_dim);
        Case { value_dim, key_heads: 1, mask: Mask::Causal, seed: i as u64, ..case }.check();
    }
}

#[test]
fn attention_every_mask_with_fewer_as_many_and_more_queries_than_keys() {
    for (i, mask) in MASKS.into_iter().enumerate() {
        for (j, (queries, keys)) in [(60, 150), (129, 129), (140, 65)].into_iter().enumerate() {
            Case { mask, seed: i as u64, ..Case::new(TYPES[(i + j) % 2], 1, queries, keys, 32) }.check();
        }
    }
}

#[test]
fn attention_lengths_around_tiles() {
    for keys in [1, 31, 32, 33, 63, 64, 65, 128, 193] {
        for queries in [1, 16, 17, 128, 129] {
            Case { heads: 1, key_heads: 1, mask: Mask::Causal, ..Case::new(DType::F16, 1, queries, keys, 32) }.check();
        }
    }
}

#[test]
fn attention_offsets_move_the_diagonal() {
    for offset in [-200, -30, 0, 5, 64, 500] {
        for mask in [Mask::Causal, Mask::AntiCausal, MASKS[4]] {
            let case = Case { heads: 1, key_heads: 1, mask, ..Case::new(DType::Bf16, 2, 70, 130, 32) };
            Case { offset: Some(offset), ..case }.check();
        }
    }
}

#[test]
fn attention_groups_of_heads() {
    for (heads, key_heads) in [(8, 8), (8, 4), (8, 1), (6, 2), (5, 1), (3, 3)] {
        Case { heads, key_heads, mask: Mask::Causal, ..Case::new(DType::F16, 2, 20, 40, 32) }.check();
    }
    Case { heads: 6, key_heads: 2, value_dim: 16, ..Case::new(DType::Bf16, 1, 33, 70, 128) }.check();
}

#[test]
fn attention_prefixes_see_each_other() {
    for prefix in [vec![0, 1], vec![64, 130], vec![100, 31], vec![-5, 1000]] {
        Case { mask: Mask::Prefix, prefix, ..Case::new(DType::F16, 2, 130, 130, 32) }.check();
    }
    Case { mask: Mask::Prefix, prefix: vec![90, 3], ..Case::new(DType::Bf16, 2, 20, 130, 64) }.check();
}

#[test]
fn attention_caps_slopes_and_sinks() {
    for (i, (softcap, alibi, sink)) in
        [(Some(2.0), false, false), (None, true, false), (None, false, true), (Some(30.0), true, true)]
            .into_iter()
            .enumerate()
    {
        for (mask, dim) in [(Mask::Full, 64), (Mask::Causal, 32), (MASKS[4], 192)] {
            let case = Case { mask, softcap, alibi, sink, ..Case::new(TYPES[i % 2], 1, 75, 130, dim) };
            Case { scale: 0.3, ..case }.check();
        }
    }
}

#[test]
fn attention_scales() {
    for scale in [0.0, 1e-3, 1.0, 3.0] {
        Case { scale, mask: Mask::Causal, ..Case::new(DType::F16, 1, 40, 70, 64) }.check();
    }
}

#[test]
fn attention_into_f32() {
    for dtype in TYPES {
        let case = Case { output: Output::F32, mask: Mask::Causal, ..Case::new(dtype, 2, 70, 90, 64) };
        case.check();
        Case { head_dim: 40, value_dim: 24, ..case }.check();
    }
}

/// The same with logits in f32, weights that are rounded before they meet values, and a rounded output.
fn rounded<T: Element>(case: &Case, data: &Data) -> Vec<f64> {
    let attention = data.attention(case);
    let mut o = vec![0.0; case.rows() * case.value_dim];
    for row in attention.rows() {
        for h in 0..case.heads {
            let hk = attention.key_head(h);
            let q = &data.q[(row.query * case.heads + h) * case.head_dim..][..case.head_dim];
            let key = |j: usize| (row.first_key + j) * case.key_heads + hk;
            let logit = |j: usize| {
                let k = &data.k[key(j) * case.head_dim..][..case.head_dim];
                attention.logit(h, q, k, j, row.position) as f32
            };
            let logits: Vec<f32> = row.keys.iter().map(|j| logit(*j)).collect();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
            let out = &mut o[(row.query * case.heads + h) * case.value_dim..][..case.value_dim];
            for (j, x) in row.keys.iter().zip(&logits) {
                let weight = T::from_f64(f64::from((x - max).exp())).to_f64();
                let v = &data.v[key(*j) * case.value_dim..][..case.value_dim];
                out.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v / f64::from(sum));
            }
            out.iter_mut().for_each(|o| *o = T::from_f64(*o).to_f64());
        }
    }
    o
}

fn twice_the_rounding<T: Element>(case: &Case) {
    let data = Data::new::<T>(case);
    let Computed { o, .. } = run::<T>(case, &data);
    let want = data.oracle(case).o;
    let of = |o: &[f64]| errors(o, &want, case.value_dim).expect("finite").rel;
    let (got, unavoidable) = (of(&o), of(&rounded::<T>(case, &data)));
    assert!(got <= 2.0 * unavoidable, "{got:.2e} is more than twice {unavoidable:.2e}: {case:?}");
}

#[test]
fn attention_loses_no_more_than_twice_what_rounding_loses() {
    for mask in [Mask::Full, Mask::Causal] {
        let case = Case { mask, ..Case::new(DType::F16, 1, 70, 260, 64) };
        twice_the_rounding::<f16>(&case);
        twice_the_rounding::<bf16>(&Case { dtype: DType::Bf16, ..case.clone() });
        twice_the_rounding::<f16>(&Case { softcap: Some(5.0), alibi: true, scale: 0.5, ..case });
    }
}
