//! The loops by hand and against each other; the invariants of the schedule.

use super::{
    schedule::{Cut, Schedule, Segment, Tiles},
    *,
};

fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn plain<'a>(kv_len: &'a [i32], cache: Cache<'a>) -> Attention<'a> {
    Attention {
        batch: kv_len.len(),
        query_len: 1,
        heads: 4,
        key_heads: 2,
        head_dim: 3,
        value_dim: 2,
        cu_seqlens_q: None,
        kv_len,
        cache,
        scale: 0.7,
        softcap: None,
        left: None,
        sink_tokens: 0,
        list: None,
        alibi_slopes: None,
        sink: None,
        logits_stride: 0,
    }
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a == b || (a - b).abs() < 1e-12, "{at}: {a} {b}");
    }
}

#[test]
fn two_keys_by_hand() {
    let x = Attention {
        heads: 1,
        key_heads: 1,
        head_dim: 1,
        value_dim: 1,
        scale: 2.0,
        ..plain(&[2], Cache::Dense { capacity: 3 })
    };
    let t = Inputs { q: &[1.0], k: &[0.5, 1.0, f64::NAN], v: &[3.0, 5.0, f64::NAN] };
    let out = forward(&Attention { logits_stride: 3, ..x }, &t);
    let (a, b) = (1f64.exp(), 2f64.exp());
    close(&out.o, &[(3.0 * a + 5.0 * b) / (a + b)]);
    close(&out.lse, &[(a + b).ln()]);
    assert_eq!(out.logits, [1.0, 2.0, f64::NEG_INFINITY]);
    let dressed = Attention { softcap: Some(1.5), alibi_slopes: Some(&[0.25]), sink: Some(&[0.5]), ..x };
    let out = forward(&dressed, &t);
    let (a, b) = ((1.5 * (1.0_f64 / 1.5).tanh() - 0.25).exp(), (1.5 * (2.0_f64 / 1.5).tanh()).exp());
    let sum = a + b + 0.5f64.exp();
    close(&out.o, &[(3.0 * a + 5.0 * b) / sum]);
    close(&out.lse, &[sum.ln()]);
}

#[test]
fn empty_sets_are_exact() {
    let (q, k, v) = (noise(2 * 12, 1), noise(2 * 4 * 6, 2), noise(2 * 4 * 4, 3));
    let t = Inputs { q: &q, k: &k, v: &v };
    let x = plain(&[0, -5], Cache::Dense { capacity: 4 });
    let out = forward(&x, &t);
    assert!(out.o.iter().all(|o| *o == 0.0) && out.lse.iter().all(|lse| *lse == f64::NEG_INFINITY));
    let sink = [0.5, -1.0, 2.0, 0.0];
    let out = forward(&Attention { sink: Some(&sink), ..x }, &t);
    assert!(out.o.iter().all(|o| *o == 0.0));
    close(&out.lse, &[sink, sink].concat());
}

#[test]
fn the_same_keys_in_any_cache_give_the_same() {
    let lens = [3, 0, 5];
    let (q, k, v) = (noise(3 * 2 * 12, 4), noise(3 * 5 * 6, 5), noise(3 * 5 * 4, 6));
    let dense = Attention { query_len: 2, ..plain(&lens, Cache::Dense { capacity: 5 }) };
    let want = forward(&dense, &Inputs { q: &q, k: &k, v: &v });

    let starts = [0, 3, 3, 8];
    let gather = |x: &[f64], width: usize| {
        let token = |b: usize, j: usize| x[(b * 5 + j) * width..][..width].to_vec();
        [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)].map(|(b, j)| token(b, j)).concat()
    };
    let (rk, rv) = (gather(&k, 6), gather(&v, 4));
    let ragged = Attention { cache: Cache::Ragged { starts: &starts }, ..dense };
    let got = forward(&ragged, &Inputs { q: &q, k: &rk, v: &rv });
    close(&got.o, &want.o);
    close(&got.lse, &want.lse);

    let (indptr, indices) = ([0, 2, 2, 5], [4, 1, 6, 0, 3]);
    let mut pages = (vec![f64::NAN; 7 * 2 * 6], vec![f64::NAN; 7 * 2 * 4]);
    let paged = Attention { cache: Cache::Paged { page_size: 2, indptr: &indptr, indices: &indices }, ..dense };
    for (b, len) in [(0, 3), (2, 5)] {
        for j in 0..len {
            let slot = paged.cache.slot(b, j, 14).expect("a page");
            pages.0[slot * 6..][..6].copy_from_slice(&k[(b * 5 + j) * 6..][..6]);
            pages.1[slot * 4..][..4].copy_from_slice(&v[(b * 5 + j) * 4..][..4]);
        }
    }
    let got = forward(&paged, &Inputs { q: &q, k: &pages.0, v: &pages.1 });
    close(&got.o, &want.o);
    close(&got.lse, &want.lse);

    let (cu, order) = ([0, 2, 2, 4], [0, 1, 4, 5]);
    let packed: Vec<f64> = order.iter().flat_map(|i| q[i * 12..][..12].to_vec()).collect();
    let got = forward(&Attention { cu_seqlens_q: Some(&cu), ..dense }, &Inputs { q: &packed, k: &k, v: &v });
    close(&got.lse, &order.map(|i| want.lse[i * 4..][..4].to_vec()).concat());
}

#[test]
fn windows_lists_and_hostile_tables_leave_keys_out() {
    let (q, k, v) = (noise(2 * 12, 7), noise(9 * 6, 8), noise(9 * 4, 9));
    let t = Inputs { q: &q, k: &k, v: &v };
    let x = Attention { query_len: 2, ..plain(&[9], Cache::Dense { capacity: 9 }) };
    let windowed = Attention { left: Some(2), sink_tokens: 1, ..x };
    // The first query stands at 7, the second at 8.
    let lists = [[0, 5, 6, 7].as_slice(), &[0, 6, 7, 8]].map(|l| l.repeat(2));
    let want: Vec<Output> = (0..2)
        .map(|i| {
            let list = List { positions: &lists[i], len: &[4, 4], stride: 4 };
            forward(&Attention { list: Some(list), ..x }, &t)
        })
        .collect();
    let got = forward(&windowed, &t);
    for (i, want) in want.iter().enumerate() {
        close(&got.o[i * 8..][..8], &want.o[i * 8..][..8]);
        close(&got.lse[i * 4..][..4], &want.lse[i * 4..][..4]);
    }
    // Entries that name nothing, and lengths beyond the list, change nothing.
    let padded = [0, -1, 6, 7, 8, 900, 0, 8, 7, 6, -7, i32::MAX];
    let list = List { positions: &padded, len: &[6, 99], stride: 6 };
    let got = forward(&Attention { list: Some(list), ..x }, &t);
    close(&got.o[8..], &want[1].o[8..]);
    // A page that does not exist is not seen, and a length beyond the table is cut.
    let paged = |indices| Attention {
        query_len: 1,
        kv_len: &[9],
        cache: Cache::Paged { page_size: 3, indptr: &[0, 3], indices },
        ..x
    };
    let one = Inputs { q: &q[..12], ..t };
    let hole = forward(&paged(&[0, 70, 2]), &one);
    let list = List { positions: &[0, 1, 2, 6, 7, 8].repeat(2), len: &[6, 6], stride: 6 };
    close(&hole.o, &forward(&Attention { query_len: 1, list: Some(list), ..x }, &one).o);
    let cut = Attention { query_len: 1, kv_len: &[1000], ..x };
    close(&forward(&cut, &one).o, &forward(&Attention { query_len: 1, ..x }, &one).o);
}

/// Every tile once, in order; shares that differ by one; slots used once and found by the reader's rule.
fn check(schedule: &Schedule, cut: &Cut) {
    let mut seen: Vec<u64> = schedule.prefix.windows(2).map(|w| w[1] - w[0]).collect();
    let counts = seen.clone();
    seen.iter_mut().for_each(|s| *s = 0);
    let mut used = vec![false; 2 * schedule.blocks as usize];
    let mut handed: Vec<Vec<u64>> = vec![Vec::new(); counts.len()];
    for c in 0..schedule.blocks {
        let share = schedule.begin(c + 1) - schedule.begin(c);
        assert!(share == schedule.quotient || share == schedule.quotient + 1);
        let segments = schedule.segments(c);
        assert_eq!(segments.first().map(|s| (s.row, s.from)), Some(schedule.start[c as usize]));
        let last = segments.len() - 1;
        for (at, Segment { row, from, to, slot }) in segments.into_iter().enumerate() {
            assert_eq!(seen[row as usize], from, "tiles of a row in order");
            seen[row as usize] = to;
            let whole = from == 0 && to == counts[row as usize];
            assert_eq!(slot.is_none(), whole);
            assert!(from == 0 || at == 0, "only a block's first segment continues a row");
            assert!(to == counts[row as usize] || at == last, "only its last leaves one unfinished");
            for t in from..to {
                assert_eq!(schedule.block_of(schedule.prefix[row as usize] + t), c);
            }
            if let Some(slot) = slot {
                assert!(!std::mem::replace(&mut used[slot as usize], true), "a slot twice");
                assert_eq!(slot, schedule.slot(row, c));
                handed[row as usize].push(c);
            }
        }
    }
    assert_eq!(seen, counts);
    for (row, blocks) in handed.iter().enumerate() {
        let contributors: Vec<u64> = schedule.contributors(row as u64).collect();
        assert!(blocks.is_empty() && contributors.len() < 2 || *blocks == contributors);
    }
    let total = schedule.total();
    assert!(schedule.blocks <= cut.slots && schedule.begin(schedule.blocks) == total);
    assert!(total < cut.min_tiles || schedule.blocks * cut.min_tiles <= total);
}

#[test]
fn schedules_keep_their_invariants() {
    for seed in 0..400 {
        let draw = noise(40, seed);
        let rows = (draw[0].abs() * 30.0) as usize;
        let greatest = [1.0, 3.0, 200.0][seed as usize % 3];
        let counts: Vec<u64> = draw[5..5 + rows].iter().map(|d| (d.abs() * greatest * 1.2) as u64).collect();
        let cut = Cut {
            rows: 16,
            tile: 64,
            slots: [1, 2, 3, 264, 100_000][seed as usize % 5],
            min_tiles: [1, 2, 7][seed as usize / 5 % 3],
        };
        check(&Schedule::from_counts(&counts, &cut), &cut);
    }
}

#[test]
fn a_schedule_by_hand() {
    let cut = Cut { rows: 16, tile: 64, slots: 3, min_tiles: 2 };
    let schedule = Schedule::from_counts(&[5, 0, 1, 2], &cut);
    assert_eq!((schedule.blocks, schedule.quotient, schedule.remainder), (3, 2, 2));
    assert_eq!(schedule.start, [(0, 0), (0, 3), (3, 0)]);
    let part = |row, from, to, slot| Segment { row, from, to, slot };
    assert_eq!(schedule.segments(0), [part(0, 0, 3, Some(1))]);
    assert_eq!(schedule.segments(1), [part(0, 3, 5, Some(2)), part(2, 0, 1, None)]);
    assert_eq!(schedule.segments(2), [part(3, 0, 2, None)]);
    assert_eq!((schedule.contributors(0), schedule.contributors(1)), (0..2, 0..0));
    let none = Schedule::from_counts(&[0, 0], &cut);
    assert_eq!((none.blocks, none.total(), none.start.len()), (0, 0, 0));
}

#[test]
fn tiles_cover_what_is_seen_and_nothing_that_no_row_sees() {
    for seed in 0..300_u64 {
        let draw = noise(8, 1000 + seed);
        let whole = |at: usize, most: f64| (draw[at].abs() * most) as usize;
        let (n, queries, rows) = (whole(0, 40.0), 1 + whole(1, 9.0), [3, 4, 16][whole(2, 3.0).min(2)]);
        let kv_len = [n as i32];
        let x = Attention {
            query_len: queries,
            left: (seed % 3 > 0).then(|| whole(3, 12.0) as u32),
            sink_tokens: whole(4, 9.0) as u32 * u32::from(seed % 2 == 0),
            ..plain(&kv_len, Cache::Dense { capacity: 40 })
        };
        let cut = Cut { rows, tile: 4, slots: 7, min_tiles: 1 };
        let group = x.heads / x.key_heads;
        for row_tile in 0..(queries * group).div_ceil(rows) {
            let tiles = Tiles::of(&x, &cut, 0, row_tile, 0, queries, 40);
            let reached: Vec<u64> = (0..tiles.count()).map(|t| tiles.key_tile(t)).collect();
            assert!(reached.windows(2).all(|w| w[0] < w[1]), "ascending, each once");
            let positions: Vec<i64> = (row_tile * rows..(queries * group).min((row_tile + 1) * rows))
                .map(|row| (row / group) as i64 + n as i64 - queries as i64)
                .collect();
            let seen = |tile: u64| (tile * 4..tile * 4 + 4).any(|j| positions.iter().any(|p| x.sees(*p, n, j as i64)));
            let want: Vec<u64> = (0..10).filter(|tile| seen(*tile)).collect();
            if want.is_empty() {
                assert_eq!(reached, [0], "one tile of an empty row");
            } else {
                assert_eq!(reached, want);
            }
        }
        assert!(schedule::sound(&x, queries, 40));
        check(&Schedule::of(&x, &cut, queries, 40), &cut);
    }
}
