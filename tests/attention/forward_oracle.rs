//! The forward kernel against the f64 oracle: every tile, every mask, every edge.

use super::forward_case::{ALL, Case, Data, Out, check, compare, merged, run};
use half::{bf16, f16};
use lookback_suite::random::Random;

const TILES: [(usize, usize); 7] = [(32, 32), (64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];

#[test]
fn every_tile_of_channels() {
    for (kt, vt) in TILES {
        check::<bf16>(&Case::causal(150, 170, 1, kt, vt), 1);
        check::<f16>(&Case::causal(150, 170, 1, kt, vt), 2);
    }
}

#[test]
fn fewer_channels_than_a_tile() {
    for (dims, tile) in [((8, 8), 32), ((8, 24), 32), ((40, 56), 64), ((64, 40), 64), ((72, 96), 96), ((120, 8), 128)] {
        check::<f16>(&Case { group: 2, ..Case::causal(70, 70, 2, dims.0, dims.1) }, 3);
        assert_eq!(Case::new(1, 1, 1, dims.0, dims.1).kt, tile);
    }
    for (head_dim, value_dim, kt, vt) in
        [(136, 128, 192, 128), (184, 8, 192, 128), (136, 192, 192, 192), (200, 248, 256, 256)]
    {
        check::<f16>(&Case { kt, vt, ..Case::causal(70, 70, 1, head_dim, value_dim) }, 4);
    }
}

/// Full and causal with fewer, as many and more queries than keys, around the sizes of tiles.
#[test]
fn lengths_around_tiles() {
    let lengths = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200];
    for (i, m) in lengths.into_iter().enumerate() {
        for n in [1, lengths[(i + 5) % 12], m, lengths[(i + 9) % 12], 257] {
            let (right, dim) = ([0, ALL][(i + n) % 2], [32, 64, 192][(i + n / 3) % 3]);
            check::<f16>(&Case { right, ..Case::new(m, n, 1, dim, dim) }, (m * 1000 + n) as u64);
        }
    }
}

#[test]
fn nothing_to_see() {
    // More queries than keys: the first rows stand before every key. And keys that are not there at all.
    check::<bf16>(&Case::causal(200, 70, 2, 64, 64), 5);
    check::<bf16>(&Case::causal(140, 1, 1, 64, 64), 6);
    for case in [
        Case::new(70, 0, 2, 64, 64),
        Case::causal(1, 0, 1, 256, 256),
        Case { sink: true, ..Case::new(3, 0, 2, 32, 32) },
    ] {
        check::<bf16>(&case, 7);
        check::<bf16>(&Case { out: Out::F32, ..case }, 7);
    }
    // Windows that lie behind the last key or before the first.
    for offset in [-400, -70, 70, 400, 1 << 30, -(1 << 30)] {
        check::<bf16>(&Case { offset: Some(offset), left: 20, ..Case::causal(70, 70, 1, 64, 64) }, 8);
    }
    check::<bf16>(&Case { left: -5, right: 3, ..Case::new(70, 70, 1, 64, 64) }, 9);
}

#[test]
fn windows_sinks_prefixes() {
    for (m, n) in [(180, 180), (90, 300), (150, 60)] {
        for (left, right, first) in [
            (ALL, 0, 0),
            (-1, ALL, 0),
            (20, 0, 0),
            (0, 0, 4),
            (70, 30, 3),
            (5, ALL, 70),
            (64, 0, 130),
            (ALL, -1, 0),
            (-3, 90, 5),
        ] {
            let case = Case { left, right, first, ..Case::new(m, n, 1, 32, 32) };
            check::<f16>(&case, 10);
            check::<f16>(&Case { prefix: vec![77], ..case.clone() }, 11);
        }
    }
    for prefix in [-3, 0, 1, 63, 64, 65, 200, 1000, i32::MIN, i32::MAX] {
        check::<f16>(
            &Case { prefix: vec![prefix, 130 - prefix.clamp(0, 130)], batch: 2, ..Case::causal(130, 200, 2, 64, 64) },
            12,
        );
    }
    for offset in [-30, 0, 17, 300] {
        check::<f16>(&Case { offset: Some(offset), left: 40, right: 10, ..Case::new(140, 150, 1, 64, 64) }, 13);
    }
}

/// Both intervals of every row, in every relation, with those that reach outside.
#[test]
fn intervals_of_rows() {
    for (seed, (m, n)) in [(150, 300), (70, 130), (129, 64)].into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let mut intervals = Vec::new();
        for _ in 0..2 * m {
            let mut ends: Vec<i32> = (0..4).map(|_| random.below(n + 1) as i32).collect();
            ends.sort_unstable();
            match random.below(6) {
                0 => (ends[0], ends[1]) = (0, 0),
                1 => (ends[2], ends[3]) = (9, 9),
                2 => ends = vec![0; 4],
                3 => (ends[0], ends[3]) = (-7, n as i32 + 50),
                4 => (ends[2], ends[3]) = (ends[3], ends[2]),
                _ => {}
            }
            intervals.extend(ends);
        }
        for dim in [64, 192] {
            check::<f16>(&Case { intervals: intervals.clone(), batch: 2, ..Case::new(m, n, 2, dim, dim) }, 14);
        }
    }
    // Whole blocks see two ranges that are far apart, and none of what is between.
    let far: Vec<i32> = (0..130).flat_map(|i| [0, 60 + i / 13, 500 + i / 2, 640]).collect();
    check::<bf16>(&Case { intervals: far, ..Case::new(130, 650, 1, 64, 64) }, 15);
    // The second range of the block lies before its first one, although no row's does.
    let crossed: Vec<i32> =
        (0..130).flat_map(|i| if i % 2 == 0 { [0, 0, 0, 70] } else { [300, 310, 400, 420] }).collect();
    check::<bf16>(&Case { intervals: crossed, ..Case::new(130, 450, 1, 64, 64) }, 16);
}

#[test]
fn bitmaps_and_lists_of_tiles() {
    let mut random = Random::new(20);
    for dim in [64, 192] {
        for (m, n) in [(150, 300), (260, 200), (40, 64), (40, 1)] {
            let key_mask: Vec<u8> = (0..2 * n).map(|_| u8::from(random.below(3) > 0)).collect();
            let case = Case { batch: 2, ..Case::causal(m, n, 2, dim, dim) };
            check::<f16>(&Case { key_mask: key_mask.clone(), ..case.clone() }, 21);
            let (mut starts, mut keys) = (vec![0], Vec::new());
            for _ in 0..2 * m.div_ceil(128) {
                keys.extend((0..n.div_ceil(64) as i32).filter(|_| random.below(2) == 0));
                starts.push(keys.len() as i32);
            }
            let tiles = Some((starts, keys));
            check::<f16>(&Case { tiles: tiles.clone(), ..case.clone() }, 22);
            check::<f16>(&Case { tiles: tiles.clone(), right: ALL, ..case.clone() }, 23);
            check::<f16>(&Case { tiles, key_mask, left: 40, right: 7, first: 70, ..case }, 24);
        }
    }
    check::<f16>(&Case { key_mask: vec![0; 100], ..Case::new(70, 100, 1, 64, 64) }, 25);
}

#[test]
fn logits_that_are_more_than_a_product() {
    for dims in [(64, 64), (192, 192)] {
        let case = Case { heads: 3, ..Case::causal(100, 140, 3, dims.0, dims.1) };
        for (scale, softcap, slopes, sink) in [
            (1.0, 3.0, false, false),
            (8.0, 5.0, false, true),
            (1.0, 0.0, true, false),
            (1.0, 0.0, false, true),
            (-1.0, 0.0, false, false),
            (0.0, 0.0, false, false),
            (4.0, 30.0, true, true),
            (-2.0, 2.0, true, true),
        ] {
            let case = Case { scale, softcap, slopes, sink, ..case.clone() };
            check::<f16>(&case, 30);
            check::<bf16>(&Case { right: ALL, key_mask: (0..140).map(|j| u8::from(j % 7 != 3)).collect(), ..case }, 31);
        }
    }
}

#[test]
fn packed_sequences() {
    let lengths = [[0, 130, 1, 0, 64, 127, 5, 0], [0, 70, 40, 0, 64, 300, 0, 9]];
    for dim in [64, 192] {
        let case = Case { group: 2, ..Case::causal(0, 0, 2, dim, dim) }.packed(&lengths[0], &lengths[1]);
        check::<f16>(&case, 40);
        check::<f16>(&Case { right: ALL, sink: true, out: Out::F32, ..case.clone() }, 41);
        check::<f16>(
            &Case {
                left: 30,
                right: 5,
                first: 3,
                prefix: vec![9, 50, 3, 2, 1, 200, 4, 7],
                slopes: true,
                ..case.clone()
            },
            42,
        );
        let key_mask = (0..case.key_len).map(|j| u8::from(j % 5 != 1)).collect();
        check::<f16>(&Case { key_mask, ..case.clone() }, 43);
        let intervals = (0..case.query_len as i32).flat_map(|i| [0, i % 9, 20 + i % 11, 40 + i % 200]).collect();
        check::<f16>(&Case { intervals, ..case.clone() }, 44);
        // Slots: sequence s begins at floor(start / 128) + s.
        let slots = case.query_len / 128 + case.sequences();
        let tiles = Some(((0..=slots as i32).collect(), (0..slots as i32).map(|s| s % 5).collect()));
        check::<f16>(&Case { tiles, right: ALL, ..case }, 45);
    }
    // Only queries or only keys are packed.
    let some = Case { cu_q: vec![0, 40, 40, 170], query_len: 170, ..Case::causal(0, 90, 2, 64, 64) };
    check::<f16>(&Case { cu_k: vec![0, 30, 60, 90], ..some.clone() }, 46);
    check::<f16>(&Case { cu_q: vec![0, 130], query_len: 130, ..some }, 47);
    check::<f16>(&Case { cu_k: vec![0, 90], ..Case::causal(130, 90, 2, 64, 64) }, 48);
}

#[test]
fn groups_of_heads_and_layouts() {
    for (heads, group) in [(1, 1), (4, 4), (6, 2), (8, 1)] {
        for padding in [false, true] {
            check::<bf16>(&Case { group, padding, batch: 3, ..Case::causal(33, 47, heads, 32, 32) }, 50);
        }
    }
}

/// A merge of random pieces of the keys in any order is the whole.
#[test]
fn pieces_of_keys_merge_to_all() {
    let mut random = Random::new(60);
    for (dim, pieces) in [(64, 2), (64, 9), (192, 5)] {
        let case = Case { sink: false, ..Case::causal(90, 200, 2, dim, dim) };
        let data = Data::new::<bf16>(&case, 61);
        let want = case.forward(&data);
        let owner: Vec<usize> =
            (0..200).map(|j| if pieces == 9 { random.below(9) } else { j * pieces / 200 }).collect();
        let mut order: Vec<usize> = (0..pieces).collect();
        order.sort_by_key(|_| random.below(1000));
        let mut state = data.clone();
        // What is not there yet need not be anything.
        state.old.o.fill(f64::NAN);
        state.old.lse.fill(f64::NEG_INFINITY);
        for piece in order {
            let key_mask = owner.iter().map(|o| u8::from(*o == piece)).collect();
            state.old = run::<bf16>(&Case { key_mask, out: Out::Merge, ..case.clone() }, &state);
        }
        let once = compare::<bf16>(&case, &run::<bf16>(&Case { out: Out::F32, ..case.clone() }, &data), &want);
        let merged = compare::<bf16>(&case, &state.old, &want);
        assert!(merged.rel <= 1.5 * once.rel, "{merged:?} {once:?}");
    }
}

/// What is there and what comes, with either or both empty.
#[test]
fn merges_with_what_is_there() {
    for dim in [64, 40] {
        merge_with_what_is_there(&Case { out: Out::Merge, ..Case::causal(150, 60, 2, 64, dim) });
    }
}

fn merge_with_what_is_there(case: &Case) {
    let dim = case.value_dim;
    let mut data = Data::new::<f16>(case, 70);
    for row in (0..data.old.lse.len()).step_by(3) {
        data.old.lse[row] = f64::NEG_INFINITY;
        data.old.o[row * dim..][..dim].fill(f64::NAN);
    }
    let (block, want) = (case.forward(&data), merged(case, &data));
    let out = run::<f16>(case, &data);
    compare::<f16>(case, &out, &want);
    // Rows to which nothing comes keep their bits.
    for row in (0..want.lse.len()).filter(|r| block.lse[*r] == f64::NEG_INFINITY && want.lse[*r] != f64::NEG_INFINITY) {
        assert_eq!(out.o[row * dim..][..dim], data.old.o[row * dim..][..dim]);
        assert_eq!(out.lse[row], data.old.lse[row]);
    }
}

/// Logits of thousands, equal keys, and keys whose product overflows to infinity where nobody looks.
#[test]
fn large_and_equal_logits() {
    for scale in [500.0, -500.0] {
        check::<bf16>(&Case { scale, ..Case::causal(70, 200, 1, 64, 64) }, 80);
    }
    let case = Case::causal(140, 140, 1, 64, 64);
    let mut data = Data::new::<f16>(&case, 81);
    data.k.fill(0.5);
    compare::<f16>(&case, &run::<f16>(&case, &data), &case.forward(&data));
    // A hidden key may be anything.
    data.k[139 * 64..].fill(f64::NAN);
    let case = Case { right: -1, ..case };
    compare::<f16>(&case, &run::<f16>(&case, &data), &case.forward(&data));
}
