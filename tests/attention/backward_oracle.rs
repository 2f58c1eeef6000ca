//! The backward kernels against the f64 oracle: every tile, every mask, every edge.

use super::{
    backward_case::{Backward, check, check_both},
    forward_case::{ALL, Case},
};
use half::{bf16, f16};
use lookback_attention::backward::Gradient;
use lookback_suite::random::Random;

const TILES: [(usize, usize); 7] = [(32, 32), (64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];

/// Blocks of keys add to dq.
fn adds(case: Case) -> Backward {
    Backward { deterministic: false, ..case.into() }
}

#[test]
fn backward_every_tile_of_channels() {
    for (kt, vt) in TILES {
        let case = Case::causal(75, 140, 1, kt, vt);
        check_both(case.clone(), 1);
        check_both(adds(case), 3);
    }
}

#[test]
fn backward_fewer_channels_than_a_tile() {
    for (head_dim, value_dim) in
        [(8, 8), (8, 24), (40, 56), (64, 40), (72, 96), (120, 8), (136, 128), (184, 8), (136, 192), (200, 248)]
    {
        let case = Case { group: 2, ..Case::causal(40, 70, 2, head_dim, value_dim) };
        check::<f16>(case.clone(), 3);
        check::<f16>(adds(case), 4);
    }
}

/// Full and causal with fewer, as many and more queries than keys, around the sizes of tiles.
#[test]
fn backward_lengths_around_tiles() {
    let lengths = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200];
    for (i, m) in lengths.into_iter().enumerate() {
        for n in [1, lengths[(i + 5) % 15], m, lengths[(i + 9) % 15]] {
            let (right, dim) = ([0, ALL][(i + n) % 2], [32, 64, 128, 192][(i + n / 3) % 4]);
            let case = Case { right, ..Case::new(m, n, 1, dim, if dim == 192 { 128 } else { dim }) };
            // With a gradient of lse, or with one key all of dq would be a difference of equals.
            check::<f16>(
                Backward { d_lse: true, deterministic: (m + n) % 3 > 0, ..case.into() },
                (m * 1000 + n) as u64,
            );
        }
    }
}

#[test]
fn backward_nothing_to_see() {
    for case in [
        Case::causal(200, 70, 2, 64, 64),
        Case::causal(140, 1, 1, 64, 64),
        Case::new(70, 0, 2, 64, 64),
        Case::new(0, 70, 2, 128, 128),
        Case { sink: true, ..Case::new(3, 0, 2, 32, 32) },
        Case { offset: Some(-100), ..Case::causal(70, 70, 1, 256, 256) },
        Case { offset: Some(400), left: 20, ..Case::causal(70, 70, 1, 64, 64) },
        Case { offset: Some(1 << 29), left: 3, ..Case::causal(70, 70, 1, 64, 64) },
        Case { offset: Some(-(1 << 29)), ..Case::causal(70, 70, 1, 64, 64) },
    ] {
        check::<bf16>(case.clone(), 5);
        check::<bf16>(adds(case), 6);
    }
}

#[test]
fn backward_windows_sinks_prefixes() {
    for (m, n) in [(180, 180), (90, 300), (150, 60)] {
        for (left, right, first) in
            [(ALL, 0, 0), (-1, ALL, 0), (20, 0, 0), (0, 0, 4), (70, 30, 3), (5, ALL, 70), (64, 0, 130)]
        {
            let case = Case { left, right, first, ..Case::new(m, n, 1, 32, 32) };
            check::<f16>(Backward { deterministic: first % 2 == 0, ..case.into() }, 10);
        }
        let case = Case { prefix: vec![77], ..Case::causal(m, n, 1, 64, 64) };
        check::<f16>(case.clone(), 11);
        check::<f16>(adds(case), 12);
    }
}

/// Intervals at random, some empty, some beyond the ends.
fn intervals(random: &mut Random, rows: usize, n: usize) -> Vec<i32> {
    let mut out = Vec::new();
    for row in 0..rows {
        let mut ends = [(); 4].map(|()| random.below(n + 8) as i32 - 4);
        ends.sort_unstable();
        match row % 5 {
            0 => ends[1] = ends[0],
            1 => ends = [-7, 3, n as i32 / 2, n as i32 + 9],
            2 => ends[3] = ends[2],
            _ => {}
        }
        out.extend(ends);
    }
    out
}

/// Blocks of a document: a run of rows sees a run of keys, so that most tiles see nothing of each other.
fn documents(rows: usize, n: usize, pieces: usize) -> Vec<i32> {
    let at = |i: usize, len: usize| (i * pieces / rows.max(1) * len / pieces) as i32;
    (0..rows).flat_map(|i| [0, 0, at(i, n), at(i, n) + n.div_ceil(pieces) as i32]).collect()
}

#[test]
fn backward_intervals_of_rows() {
    let mut random = Random::new(20);
    for (m, n, heads, dim) in [(150, 170, 2, 64), (300, 90, 1, 128), (70, 200, 1, 256)] {
        let case = Case { intervals: intervals(&mut random, m, n), ..Case::new(m, n, heads, dim, dim) };
        check_both(case.clone(), 21);
        check::<f16>(adds(case), 22);
        let case = Case { group: heads, intervals: documents(m, n, 3), ..Case::new(m, n, heads, dim, dim) };
        check::<f16>(case.clone(), 23);
        check::<f16>(adds(case), 24);
    }
    // More than a span of queries.
    let case = Case { intervals: documents(1200, 140, 4), ..Case::new(1200, 140, 1, 32, 32) };
    check::<f16>(case, 25);
    check::<f16>(Case::causal(1100, 40, 2, 32, 32), 26);
}

#[test]
fn backward_bitmaps_and_lists() {
    let mut random = Random::new(30);
    for (m, n, dim) in [(150, 200, 64), (150, 333, 128), (300, 140, 192)] {
        let key_mask: Vec<u8> = (0..2 * n).map(|_| u8::from(random.below(3) > 0)).collect();
        let case = Case { batch: 2, key_mask, ..Case::causal(m, n, 1, dim, dim) };
        check::<f16>(case.clone(), 31);
        check::<f16>(adds(case), 32);
        // Lists: slots of 128 queries of both rows of the batch, tiles of 64 keys.
        let (mut starts, mut keys) = (vec![0], Vec::new());
        for _ in 0..2 * m.div_ceil(128) {
            keys.extend((0..n.div_ceil(64) as i32).filter(|_| random.below(2) > 0));
            starts.push(keys.len() as i32);
        }
        let tiles = Some((starts, keys));
        let case = Case { batch: 2, tiles: tiles.clone(), ..Case::new(m, n, 2, dim, dim) };
        check::<f16>(case.clone(), 33);
        check::<f16>(adds(case), 34);
        let case = Case { batch: 2, tiles, right: 0, group: 2, ..Case::new(m, n, 2, dim, dim) };
        check::<bf16>(case, 35);
    }
}

#[test]
fn backward_packed_sequences() {
    let lengths: [(&[usize], &[usize]); 4] = [
        (&[5, 0, 130, 1, 64, 33], &[5, 0, 130, 1, 64, 33]),
        (&[0, 70, 0, 3], &[10, 90, 0, 65]),
        (&[129, 1, 40, 0], &[0, 200, 40, 0]),
        (&[1; 20], &[3; 20]),
    ];
    for (i, (q, k)) in lengths.into_iter().enumerate() {
        for (heads, group, dim) in [(2, 2, 64), (2, 1, 128), (1, 1, 192)] {
            let case = Case { group, ..Case::causal(0, 0, heads, dim, dim) }.packed(q, k);
            check::<f16>(case.clone(), 40 + i as u64);
            check::<f16>(Backward { deterministic: false, ..case.into() }, 50 + i as u64);
        }
        let prefix = (0..q.len() as i32).map(|n| 3 + 20 * (n % 3)).collect();
        let case = Case { prefix, ..Case::causal(0, 0, 1, 32, 32) }.packed(q, k);
        check::<bf16>(case, 60);
    }
    // Bitmap and lists of packed sequences.
    let case = Case::causal(0, 0, 1, 64, 64).packed(&[100, 140], &[100, 200]);
    let key_mask = (0..300).map(|i| u8::from(i % 7 != 3)).collect();
    check::<f16>(Case { key_mask, ..case.clone() }, 61);
    // Slots 0; 1, 2 of the second, which begins at query 100 (slot 0 + 1).
    let tiles = Some((vec![0, 1, 3, 5], vec![1, 0, 2, 1, 3]));
    check::<f16>(Case { tiles: tiles.clone(), ..case.clone() }, 62);
    check::<f16>(adds(Case { tiles, ..case }), 63);
}

#[test]
fn backward_caps_slopes_sinks() {
    for (dim, softcap, slopes, sink) in [
        (64, 3.0, false, false),
        (64, 0.0, true, false),
        (128, 2.0, true, true),
        (192, 1.5, true, false),
        (256, 0.0, false, true),
    ] {
        for right in [0, ALL] {
            let case = Case { softcap, slopes, sink, right, scale: 2.0, group: 2, ..Case::new(90, 150, 2, dim, dim) };
            check::<f16>(case.clone(), 70);
            check::<f16>(Backward { d_lse: true, wide_o: true, ..case.clone().into() }, 71);
            check::<f16>(adds(case), 72);
        }
    }
}

#[test]
fn backward_heads_that_share() {
    for (heads, group, dim) in [(6, 3, 32), (8, 8, 64), (4, 2, 128)] {
        let case = Case { group, batch: 2, ..Case::causal(50, 70, heads, dim, dim) };
        check_both(case.clone(), 80);
        check::<bf16>(adds(case), 82);
    }
}

#[test]
fn backward_gradients_of_every_kind() {
    for dim in [64, 128, 192, 256] {
        for gradient in [Gradient::F32, Gradient::Accumulate] {
            for deterministic in [true, false] {
                let case = Case { sink: true, group: 2, ..Case::causal(70, 90, 2, dim, dim) };
                check::<bf16>(Backward { gradient, deterministic, ..case.into() }, 90);
            }
        }
    }
}
