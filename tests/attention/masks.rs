//! Masks that tensors say, and what must hold between masks.

use super::case::{Case, Computed, Data, run};
use half::{bf16, f16};
use lookback_attention::Mask;
use lookback_device::DType;
use lookback_suite::random::Random;

/// Intervals of all kinds: none, one, two, with a hole of any size, overlapping, touching, beyond both ends.
fn intervals(rows: usize, keys: usize, seed: u64) -> Vec<i32> {
    let mut random = Random::new(seed);
    let mut of_row = || {
        let mut ends: Vec<i32> = (0..4).map(|_| random.uniform(-20.0, keys as f64 + 20.0) as i32).collect();
        match random.below(6) {
            0 => ends.fill(7),
            1 => ends = vec![0, 0, 0, keys as i32],
            2 => ends = vec![0, 9, 5, 40],
            3 => ends = vec![i32::MIN, 64, 64, i32::MAX],
            _ => ends.sort_unstable(),
        }
        ends
    };
    (0..rows).flat_map(|_| of_row()).collect()
}

#[test]
fn attention_intervals_of_every_kind() {
    for (seed, (batch, queries, keys, dim)) in
        [(2, 40, 150, 32), (1, 140, 140, 64), (1, 70, 200, 192), (1, 5, 1, 32)].into_iter().enumerate()
    {
        let intervals = intervals(batch * queries, keys, seed as u64);
        Case { mask: Mask::Intervals, intervals, ..Case::new(DType::Bf16, batch, queries, keys, dim) }.check();
    }
}

#[test]
fn attention_documents_of_one_row() {
    // Blocks of 50 that see themselves causally, and the first three keys: an edge in nearly every tile.
    let document = |i: i32| [0, 3.min(i / 50 * 50), i / 50 * 50, i + 1];
    let intervals = (0..260).flat_map(document).collect();
    Case { mask: Mask::Intervals, intervals, ..Case::new(DType::F16, 1, 260, 260, 32) }.check();
}

/// Whatever says which keys a row sees, the bits are the same.
#[test]
fn attention_the_same_keys_give_the_same_bits() {
    let case = Case::new(DType::F16, 1, 130, 200, 64);
    let data = Data::new::<f16>(&case);
    let bits = |case: &Case| run::<f16>(case, &data).bits();
    let saying = |of: &dyn Fn(i32) -> [i32; 4]| {
        let intervals = (0..130).flat_map(of).collect();
        Case { mask: Mask::Intervals, intervals, ..case.clone() }
    };
    let window = |left, right, sink_tokens| Case { mask: Mask::Window { left, right, sink_tokens }, ..case.clone() };
    let causal = Case { mask: Mask::Causal, ..case.clone() };
    let want = bits(&causal);
    assert_eq!(bits(&window(None, Some(0), 0)), want);
    assert_eq!(bits(&window(Some(u32::MAX), Some(0), 7)), want);
    assert_eq!(bits(&Case { mask: Mask::Prefix, prefix: vec![0], ..case.clone() }), want);
    assert_eq!(bits(&Case { offset: Some(70), ..causal.clone() }), want);
    assert_eq!(bits(&saying(&|i| [0, 0, 0, i + 71])), want);
    let want = bits(&case);
    assert_eq!(bits(&window(None, None, 0)), want);
    assert_eq!(bits(&Case { offset: Some(-9), ..case.clone() }), want);
    assert_eq!(bits(&saying(&|_| [0, 0, 0, 200])), want);
    assert_eq!(bits(&window(Some(30), Some(2), 5)), bits(&saying(&|i| [0, 5, i + 40, i + 73])));
}

#[test]
fn attention_hidden_keys() {
    let mut random = Random::new(3);
    let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 2, 140, 140, 32) };
    let mut mask: Vec<u8> = (0..280).map(|_| u8::from(random.below(3) > 0)).collect();
    Case { key_mask: Some(mask.clone()), ..case.clone() }.check();
    // Whole tiles and words, the first rows see nothing, and another row of the batch ends early.
    mask[..70].fill(0);
    mask[96..128].fill(0);
    mask[140 + 90..].fill(0);
    Case { key_mask: Some(mask.clone()), ..case.clone() }.check();
    Case { key_mask: Some(mask), mask: Mask::Full, dtype: DType::Bf16, head_dim: 200, ..case.clone() }.check();
    Case { key_mask: Some(vec![0; 280]), ..case.clone() }.check();
    Case { key_mask: Some(vec![0; 280]), sink: true, ..case }.check();
}

/// A list that names each of `tiles` with a chance of one in `of`, and sometimes nothing at all.
fn list(slots: usize, tiles: usize, of: usize, seed: u64) -> [Vec<i32>; 2] {
    let mut random = Random::new(seed);
    let (mut starts, mut keys) = (vec![0], Vec::new());
    for slot in 0..slots {
        if slot % 4 != 1 {
            keys.extend((0..tiles as i32).filter(|_| random.below(of) == 0));
        }
        starts.push(keys.len() as i32);
    }
    [starts, keys]
}

#[test]
fn attention_lists_of_tiles() {
    for (dim, mask) in [(32, Mask::Full), (64, Mask::Causal), (192, Mask::AntiCausal)] {
        for of in [1, 2] {
            // 3 slots a row, 5 tiles.
            let tiles = Some(list(6, 5, of, dim as u64));
            let case = Case { heads: 1, key_heads: 1, mask, tiles, ..Case::new(DType::F16, 2, 290, 300, dim) };
            case.check();
            if of == 2 {
                let mask: Vec<u8> = (0..600).map(|j| u8::from(j % 7 != 2)).collect();
                Case { key_mask: Some(mask), ..case }.check();
            }
        }
    }
}

#[test]
fn attention_lists_of_tiles_with_intervals_and_packed_sequences() {
    let intervals = intervals(200, 250, 9);
    let tiles = Some(list(2, 4, 2, 5));
    Case { mask: Mask::Intervals, intervals, tiles, ..Case::new(DType::Bf16, 1, 200, 250, 32) }.check();
    let case = Case::packed(DType::F16, &[[130, 100], [0, 20], [20, 0], [150, 180]], 32);
    let tiles = Some(list(case.shape().slots(128), 3, 2, 6));
    Case { mask: Mask::Causal, tiles, ..case }.check();
}

/// Entries that no list should have are passed over; nothing outside of the tensors is read.
#[test]
fn attention_hostile_lists_of_tiles_stay_inside() {
    let case = Case { heads: 1, key_heads: 1, ..Case::new(DType::F16, 1, 130, 200, 32) };
    let data = Data::new::<f16>(&case);
    for keys in [
        vec![0, 1, 2, 3, 0, 1, 2, 3],
        vec![-1, i32::MIN, i32::MAX, 4, 1 << 26, 33_554_432, 2, 100],
        vec![3, 2, 1, 0, 3, 3, 3, 3],
    ] {
        for starts in [[0, 4, 8], [-5, 4, 100], [8, 0, 4], [i32::MAX, i32::MIN, 5], [i32::MIN, i32::MAX, i32::MAX]] {
            let tiles = Some([starts.to_vec(), keys.clone()]);
            let got = run::<f16>(&Case { tiles, ..case.clone() }, &data);
            assert!(got.o.iter().all(|o| o.is_finite()), "{starts:?} {keys:?}");
        }
    }
}

/// Tiles that no row of a block reaches are not loaded: NaN in them goes nowhere, not even times zero.
#[test]
fn attention_tiles_that_are_not_seen_are_not_loaded() {
    let case = Case { heads: 1, key_heads: 1, ..Case::new(DType::Bf16, 1, 128, 320, 64) };
    let unseen = |case: Case, from: usize, to: usize| {
        let mut data = Data::new::<bf16>(&case);
        let want = run::<bf16>(&case, &data);
        data.k[from * 64..to * 64].fill(f64::NAN);
        data.v[from * 64..to * 64].fill(f64::NAN);
        assert_eq!(run::<bf16>(&case, &data).bits(), want.bits(), "keys {from} to {to}: {case:?}");
    };
    unseen(Case { mask: Mask::Causal, offset: Some(0), ..case.clone() }, 128, 320);
    unseen(Case { mask: Mask::AntiCausal, offset: Some(63), ..case.clone() }, 0, 64);
    let window = Mask::Window { left: Some(10), right: Some(0), sink_tokens: 64 };
    unseen(Case { mask: window, offset: Some(150), ..case.clone() }, 64, 128);
    unseen(Case { tiles: Some([vec![0, 3], vec![0, 2, 4]]), ..case.clone() }, 64, 128);
    let intervals = (0..128).flat_map(|_| [0, 20, 200, 290]).collect();
    unseen(Case { mask: Mask::Intervals, intervals, ..case }, 64, 192);
}

/// Keys behind the last one of a tile do not exist: what lies there in memory is not seen.
#[test]
fn attention_what_lies_behind_a_sequence_is_not_seen() {
    let packed = Case::packed(DType::F16, &[[70, 70], [70, 70]], 64);
    let alone = Case::packed(DType::F16, &[[70, 70], [0, 70]], 64);
    let data = Data::new::<f16>(&packed);
    let want = run::<f16>(&packed, &data);
    let mut broken = data.clone();
    broken.k[70 * 128..].fill(f64::NAN);
    broken.v[70 * 128..].fill(f64::INFINITY);
    let mut first = broken.clone();
    first.q.truncate(70 * 128);
    let got = run::<f16>(&Case { query_len: 70, ..alone }, &first);
    let Computed { o, lse } = want;
    let want = Computed { o: o[..70 * 128].to_vec(), lse: lse[..140].to_vec() };
    assert_eq!(got.bits(), want.bits());
}
