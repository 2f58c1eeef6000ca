//! The same bits under every schedule; other arithmetic of tensor cores; numbers that no caller should give.

use super::forward_case::{ALL, Case, Data, Out, compare, run};
use half::{bf16, f16};
use lookback_reference::attention::Forward;
use lookback_suite::{counters::Switch, device};

fn cases() -> [Case; 3] {
    let mask = (0..300).map(|j| u8::from(j % 3 > 0)).collect();
    let packed =
        Case { group: 2, sink: true, ..Case::causal(0, 0, 2, 64, 64) }.packed(&[0, 90, 3, 140], &[4, 90, 70, 100]);
    [
        Case { batch: 2, ..Case::causal(200, 260, 2, 128, 128) },
        packed,
        Case { key_mask: mask, slopes: true, ..Case::new(80, 300, 1, 192, 192) },
    ]
}

fn bits(out: &Forward) -> Vec<u64> {
    out.o.iter().chain(&out.lse).map(|x| x.to_bits()).collect()
}

#[test]
fn forward_same_bits_under_every_schedule() {
    for case in cases() {
        let data = Data::new::<bf16>(&case, 1);
        let first = bits(&run::<bf16>(&case, &data));
        if !device::info().emulated {
            assert!(bits(&run::<bf16>(&case, &data)) == first);
            continue;
        }
        for (order, residency, convergence, copies) in [
            ("inorder", "1", "natural", "eager"),
            ("reversed", "3", "random:1", "late"),
            ("random:1", "5", "random:2", "eager"),
        ] {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            let _convergence = Switch::set("convergence", convergence, "natural");
            let _copies = Switch::set("async", copies, "late");
            assert!(
                bits(&run::<bf16>(&case, &data)) == first,
                "{order}, {residency} resident, {convergence}, {copies}: {case:?}"
            );
        }
    }
}

/// A row's bits depend on its own sequence alone, wherever it lies.
#[test]
fn forward_rows_do_not_depend_on_their_neighbours() {
    let packed = Case::causal(0, 0, 1, 64, 64).packed(&[70, 150, 9], &[70, 190, 20]);
    let data = Data::new::<f16>(&packed, 2);
    let all = run::<f16>(&packed, &data);
    let alone = Case::causal(150, 190, 1, 64, 64);
    let cut = Data {
        q: data.q[70 * 64..220 * 64].to_vec(),
        k: data.k[70 * 64..260 * 64].to_vec(),
        v: data.v[70 * 64..260 * 64].to_vec(),
        ..data
    };
    let out = run::<f16>(&alone, &cut);
    assert_eq!(out.o, all.o[70 * 64..220 * 64]);
    assert_eq!(out.lse, all.lse[70..220]);
}

/// What is not finite reaches the rows that see it, and, in a value, those that are multiplied together with these: nothing else changes.
#[test]
fn forward_nan_reaches_who_sees_it() {
    for (dim, rows, keys) in [(64, 32, 64), (192, 16, 32)] {
        let case = Case { right: 3, ..Case::causal(150, 200, 1, dim, dim) };
        let data = Data::new::<f16>(&case, 9);
        let clean = run::<f16>(&case, &data);
        let poison = |tensor: usize, at: usize| {
            let mut data = data.clone();
            [&mut data.q, &mut data.k, &mut data.v][tensor][at * dim + 5] = [f64::NAN, f64::INFINITY][at % 2];
            run::<f16>(&case, &data)
        };
        for key in [0, 77, 130, 199] {
            let (k, v) = (poison(1, key), poison(2, key));
            for row in 0..150 {
                let [clean, k, v] = [&clean, &k, &v].map(|out| (&out.o[row * dim..][..dim], out.lse[row]));
                let sees = key <= row + 53;
                // The last row of those that a warp multiplies, and the first key of a tile.
                let shares = key / keys * keys <= (row / rows * rows + rows - 1).min(149) + 53;
                if key % 2 == 0 {
                    assert_eq!(k.0.iter().all(|o| o.is_nan()), sees, "key {key}, row {row}");
                }
                assert!(sees || k == clean, "key {key} is hidden from row {row}");
                assert!(!sees || !v.0[5].is_finite(), "value {key}, row {row}");
                assert!(shares || v == clean, "value {key} is far from row {row}");
                assert!(
                    (0..dim).filter(|c| *c != 5).all(|c| v.0[c] == clean.0[c]) && v.1 == clean.1,
                    "value {key}, row {row}"
                );
            }
        }
        let q = poison(0, 40);
        assert!(q.o[40 * dim..][..dim].iter().all(|o| o.is_nan()) && q.lse[40].is_nan());
        assert!(q.o[..40 * dim] == clean.o[..40 * dim] && q.o[41 * dim..] == clean.o[41 * dim..]);
    }
}

/// Tensor cores that cut the low bits of sums off, as those of Hopper do.
#[test]
fn forward_holds_its_gates_with_sums_cut_off() {
    let _mma = Switch::set("mma", "hopper", "fma");
    for case in cases() {
        let data = Data::new::<bf16>(&case, 3);
        compare::<bf16>(&case, &run::<bf16>(&case, &data), &case.forward(&data));
        let data = Data::new::<f16>(&case, 4);
        compare::<f16>(&case, &run::<f16>(&case, &data), &case.forward(&data));
    }
}

/// Starts of sequences outside of the tensors are clamped. What follows such a start is some rows' worth of nothing.
#[test]
fn forward_starts_are_clamped() {
    let case =
        Case { cu_q: vec![0, 40, 100], cu_k: vec![0, 50, 120], query_len: 100, ..Case::causal(100, 120, 1, 64, 64) };
    let data = Data::new::<f16>(&case, 5);
    let want = case.forward(&data);
    let wild = Case { cu_q: vec![-9, 40, i32::MAX], cu_k: vec![i32::MIN, 50, 1 << 30], ..case.clone() };
    compare::<f16>(&case, &run::<f16>(&wild, &data), &want);
    // The second sequence has no keys, or keys of which the last ends before the first begins.
    for cu_k in [vec![0, 50, 50], vec![0, 50, -7], vec![0, 1 << 30, 50]] {
        let out = run::<f16>(&Case { cu_k, ..case.clone() }, &data);
        assert!(out.lse[40..].iter().all(|lse| *lse == f64::NEG_INFINITY));
        assert!(out.o[40 * 64..].iter().all(|o| *o == 0.0));
    }
    // Queries that end before they begin are none, and nothing is written there.
    let out = run::<f16>(&Case { cu_q: vec![0, 40, 10], ..case.clone() }, &data);
    assert!(out.o[..40 * 64].iter().all(|o| o.is_finite()) && out.o[40 * 64..].iter().all(|o| o.is_nan()));
}

/// Places of a list outside of it and tiles that do not exist or do not ascend are passed over.
#[test]
fn forward_lists_are_not_followed_outside() {
    for dim in [64, 192] {
        let case = Case { tiles: Some((vec![0, 2, 3], vec![0, 3, 1])), ..Case::new(200, 250, 1, dim, dim) };
        let data = Data::new::<f16>(&case, 6);
        let want = case.forward(&data);
        let wild = [
            (vec![0, 7, 9], vec![i32::MIN, -1, 0, 3, 3, 2, i32::MAX, 1 << 26, 1]),
            (vec![-5, 6, 1 << 30], vec![0, 0, 3, 4, 1 << 25, -1, 1, 1, 0]),
        ];
        for tiles in wild {
            compare::<f16>(&case, &run::<f16>(&Case { tiles: Some(tiles), ..case.clone() }, &data), &want);
        }
        // A list that ends before it begins, or begins behind its end, has nothing.
        for tiles in [(vec![3, 1, 0], vec![0, 1, 2]), (vec![i32::MAX, i32::MAX, i32::MAX], vec![0])] {
            let out = run::<f16>(&Case { tiles: Some(tiles), ..case.clone() }, &data);
            assert!(out.lse.iter().all(|lse| *lse == f64::NEG_INFINITY));
        }
    }
}

#[test]
fn forward_without_lse() {
    for out in [Out::Same, Out::F32] {
        let case = Case { out, ..Case::causal(70, 90, 2, 64, 64) };
        let data = Data::new::<f16>(&case, 10);
        let bare = run::<f16>(&Case { with_lse: false, ..case.clone() }, &data);
        assert_eq!(bare.o, run::<f16>(&case, &data).o);
        assert!(bare.lse.iter().all(|lse| lse.is_nan()));
    }
}

/// Windows, prefixes and intervals of any numbers.
#[test]
fn forward_numbers_of_any_size() {
    let case = Case::new(70, 100, 1, 64, 64);
    for (left, right, first) in
        [(-(1 << 30), ALL, 0), (ALL, -(1 << 30), u32::MAX), (0, 0, u32::MAX), (ALL - 1, ALL - 1, 1 << 31)]
    {
        let case = Case { left, right, first, out: Out::F32, ..case.clone() };
        let data = Data::new::<f16>(&case, 7);
        compare::<f16>(&case, &run::<f16>(&case, &data), &case.forward(&data));
    }
    let ends = [i32::MIN, -1, 0, 30, 100, 101, i32::MAX];
    let intervals = (0..70).flat_map(|i| [ends[i % 7], ends[i / 7 % 7], 50 + i as i32 % 20, ends[i % 5 + 2]]).collect();
    let case = Case { intervals, ..case };
    let data = Data::new::<f16>(&case, 8);
    compare::<f16>(&case, &run::<f16>(&case, &data), &case.forward(&data));
}
