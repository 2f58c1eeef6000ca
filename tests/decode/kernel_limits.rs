//! The decode kernel where things go wrong, or might: tables that lie, orders of blocks, offsets that are far.

use super::kernel_case::{Case, Data, Factors, Out, Place, check_status, run, run_with, wrong};
use half::{bf16, f16};
use lookback_device::Element;
use lookback_suite::{counters::Switch, device};

const PAGE: u32 = 16;
const TABLE: u32 = 32;
const LIST: u32 = 64;

/// Bits, not values: NaN equals itself, and zeros differ by their signs.
fn bits(out: &Out) -> Vec<u64> {
    out.o.iter().chain(&out.lse).chain(&out.logits).map(|v| v.to_bits()).collect()
}

#[test]
fn kernel_every_order_of_blocks_gives_the_same_bits() {
    let plain = Case { slots: 7, ..Case::new(64, &[300, 65, 0, 200], 8, 2) };
    let wide = Case {
        e4m3: true,
        factors: Factors::Token,
        rows: 32,
        query_len: 4,
        slots: 5,
        ..Case::new(128, &[150, 90], 6, 1)
    };
    let halves = Case { place: Place::Paged(16), slots: 3, ..Case::new(256, &[130], 4, 2) };
    for case in [plain, wide, halves] {
        let data = Data::new::<bf16>(&case, 5);
        let first = run::<bf16>(&case, &data);
        assert_eq!(wrong::<bf16>(&case, &data, &first), None);
        if !device::info().emulated {
            for _ in 0..20 {
                assert_eq!(bits(&run::<bf16>(&case, &data)), bits(&first), "{case:?}");
            }
            continue;
        }
        for (order, residency, quantum, copies) in [
            ("reversed", "1", "20000", "late"),
            ("random:3", "2", "70", "eager"),
            ("random:4", "1", "333", "late"),
            ("inorder", "auto", "41", "eager"),
        ] {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            let _quantum = Switch::set("quantum", quantum, "20000");
            let _copies = Switch::set("async", copies, "late");
            assert_eq!(bits(&run::<bf16>(&case, &data)), bits(&first), "{order}, {residency} resident: {case:?}");
        }
    }
}

#[test]
fn kernel_lanes_that_meet_at_random_change_nothing() {
    let case = Case {
        place: Place::Paged(8),
        left: Some(70),
        first: 5,
        query_len: 2,
        logits: true,
        ..Case::new(64, &[150, 9], 4, 2)
    };
    let data = Data::new::<f16>(&case, 6);
    let first = run::<f16>(&case, &data);
    for seed in ["random:1", "random:2"] {
        let _convergence = Switch::set("convergence", seed, "natural");
        assert_eq!(bits(&run::<f16>(&case, &data)), bits(&first), "{seed}");
    }
}

#[test]
fn kernel_pages_that_do_not_exist_are_masked_and_reported() {
    let case = Case { place: Place::Paged(16), logits: true, ..Case::new(64, &[200, 40], 4, 2) };
    let mut data = Data::new::<bf16>(&case, 7);
    for (at, page) in [(2, -1), (5, i32::MAX), (7, i32::MIN), (13, data.pages as i32)] {
        data.indices[at] = page;
    }
    check_status::<bf16>(&case, &data, PAGE);
    data.indices.fill(-7);
    let out = check_status::<bf16>(&case, &data, PAGE);
    assert!(out.o.iter().all(|o| *o == 0.0) && out.lse.iter().all(|lse| *lse == f64::NEG_INFINITY));
}

#[test]
fn kernel_table_entries_that_do_not_exist_are_masked_and_reported() {
    let case = Case { place: Place::Paged(16), ..Case::new(64, &[100, 60], 4, 2) };
    let data = Data::new::<bf16>(&case, 8);
    let out = run_with::<bf16>(&case, &data, |args| args.num_indices = 9);
    assert_eq!(out.status, TABLE);
    // As if the entries behind led nowhere.
    let mut short = data.clone();
    short.indices[9..].fill(-1);
    assert_eq!(wrong::<bf16>(&case, &short, &out), None);
    let out = run_with::<bf16>(&case, &data, |args| args.num_indices = 0);
    assert!(out.status == TABLE && out.o.iter().all(|o| *o == 0.0));
}

#[test]
fn kernel_places_that_do_not_exist_are_masked_and_reported() {
    let case = Case::new(64, &[130], 4, 2);
    let data = Data::new::<bf16>(&case, 9);
    let out = run_with::<bf16>(&case, &data, |args| args.places = 77);
    assert_eq!(out.status, PAGE);
    let short = Case { place: case.place, ..Case { kv_len: vec![77], ..case.clone() } };
    assert_eq!(wrong::<bf16>(&short, &data, &out), None, "one query sees the keys up to 77 and no others");
    // Nobody asks for the status.
    let silent = run_with::<bf16>(&case, &data, |args| (args.places, args.p_status) = (77, 0));
    assert_eq!((silent.status, bits(&silent)), (0, bits(&out)));
}

#[test]
fn kernel_list_entries_behind_the_keys_are_masked_and_reported() {
    let case = Case { lists: Some(vec![70, 3]), ..Case::new(64, &[90], 4, 2) };
    let mut data = Data::new::<bf16>(&case, 10);
    check_status::<bf16>(&case, &data, 0);
    for (at, key) in [(0, i32::MIN), (6, -2), (9, 90), (69, i32::MAX)] {
        data.positions[at] = key;
    }
    check_status::<bf16>(&case, &data, LIST);
}

/// Page 5 lies 5 * 2^37 elements behind page 0, which is not there.
#[test]
fn kernel_offsets_have_64_bits() {
    fn far<T: Element>(e4m3: bool) {
        let case = Case { e4m3, place: Place::Paged(200), slots: 2, ..Case::new(128, &[150], 4, 2) };
        let mut data = Data::new::<T>(&case, 11);
        let page = data.indices[0];
        assert_eq!(data.indices.len(), 1);
        let want = data.want(&case);
        data.indices[0] = page + 5;
        let width = if e4m3 { 1 } else { 2 };
        let out = run_with::<T>(&case, &data, |args| {
            for (pointer, stride) in
                [(&mut args.p_k, &mut args.k_stride_page), (&mut args.p_v, &mut args.v_stride_page)]
            {
                let (near, far) = (*stride as u64, 1_u64 << 37);
                *pointer = pointer.wrapping_add(u64::from(page as u32) * near * width);
                *pointer = pointer.wrapping_sub(u64::from(page as u32 + 5) * far * width);
                *stride = far as i64;
            }
            args.num_pages = 100;
        });
        let same = out.lse.iter().zip(&want.lse).all(|(got, want)| (got - want).abs() < 1e-4);
        assert!(same && out.status == 0, "{:?} {:?}", out.lse, want.lse);
    }
    far::<bf16>(false);
    far::<f16>(true);
}

/// A NaN that is seen is NaN, in the rows that see it; elsewhere it is not.
#[test]
fn kernel_a_visible_nan_shows() {
    let case = Case::new(64, &[100, 100], 4, 2);
    let mut data = Data::new::<bf16>(&case, 12);
    let Place::Dense(capacity) = case.place else { unreachable!() };
    data.k[(capacity + 40) * 2 * 64] = f64::NAN;
    let out = run::<bf16>(&case, &data);
    for (row, lse) in out.lse.iter().enumerate() {
        let sees = row / 4 == 1 && row % 4 < 2;
        assert_eq!(lse.is_nan(), sees, "row {row}");
        assert_eq!(out.o[row * 64..][..64].iter().all(|o| o.is_nan()), sees, "row {row}");
    }
}
