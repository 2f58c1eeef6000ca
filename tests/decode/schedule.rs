//! The schedule that the device makes beside the model's, word by word.

use super::{
    case::{Case, Data, Kind, On, Tables},
    layout::{self, Request, Row},
};
use half::bf16;
use lookback_decode::{Lengths, MAX_KEYS, Tuning};
use lookback_device::Error;
use lookback_reference::lean_decode::{
    schedule::{Cut, Schedule, Tiles},
    within,
};
use lookback_suite::{
    buffer::{download, upload},
    device,
    random::Random,
};

/// Words of the header, less what the model does not say.
pub const HEADER: usize = 16;
pub const STATUS: usize = 5;

/// The model's schedule, and its words.
pub fn model(case: &Case, tables: &Tables) -> (Schedule, Vec<u32>) {
    let x = tables.reference(case);
    let plan = case.plan(tables);
    let policy = plan.policy();
    let cut = Cut {
        rows: policy.rows,
        tile: lookback_decode::TILE,
        slots: u64::from(policy.slots),
        min_tiles: u64::from(policy.min_tiles),
    };
    let (tokens, slots) = (case.tokens(), tables.slots());
    let schedule = Schedule::of(&x, &cut, tokens, slots);
    let row_tiles = (case.query_len * case.heads / case.key_heads).div_ceil(policy.rows);
    let (mut rows, mut requests) = (Vec::new(), Vec::<Request>::new());
    for b in 0..x.batch {
        let (queries, keys) = (x.queries(b, tokens), x.keys(b, slots));
        let entries = tables.kv_indices.as_ref().map_or(slots, Vec::len);
        let start = tables.kv_indptr.as_ref().map_or(0, |indptr| within(indptr, b, entries).start);
        let first = if x.cu_seqlens_q.is_some() { queries.start } else { 0 };
        requests.push([keys as u32, first as u32, queries.len() as u32, start as u32]);
        for row_tile in 0..row_tiles {
            for key_head in 0..x.key_heads {
                let tiles = Tiles::of(&x, &cut, b, row_tile, key_head, tokens, slots);
                let listed = x.list.map(|list| list.len[b * x.key_heads + key_head].clamp(0, list.stride as i32));
                rows.push(Row {
                    keys: listed.map_or(keys as u32, |n| n as u32),
                    head_tiles: tiles.sink.end as u32,
                    skip: (tiles.window.start - tiles.sink.end) as u32,
                });
            }
        }
    }
    let words = layout::words(&schedule, &rows, &requests, policy.slots as usize);
    (schedule, words)
}

fn compare(case: &Case, tables: &Tables) -> u32 {
    let (schedule, want) = model(case, tables);
    let mut on = On::<bf16>::new(case, tables, &Data::new::<bf16>(case, tables));
    let mut got = on.schedule();
    let status = std::mem::take(&mut got[STATUS]);
    // Starts of blocks without work are not written, nor is the rest of the header.
    let end = want.len() - 2 * (case.plan(tables).policy().slots as usize - schedule.blocks as usize);
    assert_eq!(got[..STATUS], want[..STATUS], "{case:?}");
    assert_eq!(got[HEADER..end], want[HEADER..end], "{case:?}");
    assert_eq!(got[end..got.len()], vec![0; got.len() - end], "{case:?}");
    status
}

fn random_case(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let batch = 1 + random.below(9);
    let greatest = [1, 70, 700, 3000][random.below(4)];
    let keys: Vec<usize> = (0..batch).map(|_| random.below(greatest + 1) * random.below(3).min(1)).collect();
    let query_len = [1, 1, 3, 9, 40][random.below(5)];
    let key_heads = 1 + random.below(3);
    let case = Case::new(&keys);
    Case {
        kind: [Kind::Dense(greatest), Kind::Ragged, Kind::Paged(1 + random.below(40))][random.below(3)],
        packed: (random.below(3) == 0).then(|| (0..batch).map(|_| random.below(query_len + 1)).collect()),
        query_len,
        key_heads,
        heads: key_heads * (1 + random.below(7)),
        head_dim: 8,
        value_dim: 8,
        left: (random.below(2) == 0).then(|| random.below(300) as u32),
        sink_tokens: (random.below(200) * random.below(2)) as u32,
        list: (random.below(4) == 0).then(|| 1 + random.below(600)),
        tuning: Tuning {
            slots: [None, Some(1), Some(2), Some(3), Some(1500)][random.below(5)],
            min_tiles: [None, Some(1), Some(5)][random.below(3)],
            rows: None,
        },
        seed,
        ..case
    }
}

#[test]
fn lean_plan_is_the_model_for_random_lengths() {
    for seed in 0..60 {
        let case = random_case(seed);
        assert_eq!(compare(&case, &Tables::new(&case)), 0, "{case:?}");
    }
}

#[test]
fn lean_plan_takes_more_rows_than_threads() {
    let keys: Vec<usize> = (0..700).map(|i| (i * 37) % 200).collect();
    let case = Case { head_dim: 8, value_dim: 8, kind: Kind::Ragged, ..Case::new(&keys) };
    assert_eq!(compare(&case, &Tables::new(&case)), 0);
    let windowed = Case { left: Some(20), sink_tokens: 5, key_heads: 4, query_len: 9, ..case };
    let tables = Tables::new(&windowed);
    assert_eq!(compare(&windowed.slots(3000).min_tiles(1), &tables), 0);
}

#[test]
fn lean_plan_clamps_hostile_lengths_and_says_so() {
    let base = Case { head_dim: 8, value_dim: 8, ..Case::new(&[70, 200, 3]) };
    // A bit of the status word for each thing that can be wrong: kernels/tile/lean_schedule.ptx.
    let hostile = |case: &Case, bit: u32, arg: &str, spoil: &dyn Fn(&mut Tables)| {
        let good = Tables::new(case);
        let data = Data::new::<bf16>(case, &good);
        let mut tables = good;
        spoil(&mut tables);
        let (_, want) = model(case, &tables);
        let mut on = On::<bf16>::new(case, &tables, &data);
        let got = on.schedule();
        assert_eq!((got[..STATUS].to_vec(), got[STATUS]), (want[..STATUS].to_vec(), bit), "{arg}: {tables:?}");
        let stream = device::stream();
        let error = on.plan.status(&stream, &mut on.schedule).expect_err(arg);
        assert!(matches!(error, Error::Masked { arg: a, .. } if a == arg), "{error}");
        assert!(on.plan.status(&stream, &mut on.schedule).is_ok(), "told once");
    };
    for length in [-1, i32::MIN, 204, i32::MAX] {
        hostile(&base, 1, "kv_len", &|t| t.kv_len[1] = length);
    }
    for kind in [Kind::Ragged, Kind::Paged(16)] {
        let case = Case { kind, ..base.clone() };
        for (at, entry) in [(1, -1), (1, i32::MAX), (2, 0), (3, i32::MIN), (3, 1 << 20)] {
            hostile(&case, 3, "kv_len", &|t| {
                let indptr = t.kv_indptr.as_mut().expect("a table");
                indptr[at] = entry;
                // What is left of the table is too short for somebody.
                t.kv_len.iter_mut().for_each(|n| *n += 500);
            });
        }
    }
    let packed = Case { packed: Some(vec![2, 0, 3]), query_len: 3, ..base.clone() };
    for (at, entry) in [(1, -1), (1, 9), (3, 4000), (3, i32::MIN), (2, i32::MAX)] {
        hostile(&packed, 4, "cu_seqlens_q", &|t| t.cu_seqlens_q.as_mut().expect("starts")[at] = entry);
    }
    hostile(&packed, 4, "cu_seqlens_q", &|t| t.cu_seqlens_q = Some(vec![0, 0, 4, 5]));
    let listed = Case { list: Some(9), ..base };
    for length in [-1, 10, i32::MAX] {
        hostile(&listed, 8, "list_len", &|t| t.list.as_mut().expect("lists").1[3] = length);
    }
}

#[test]
fn lean_plan_shares_differ_by_one_tile() {
    for seed in 100..110 {
        let case = random_case(seed);
        let tables = Tables::new(&case);
        let words = On::<bf16>::new(&case, &tables, &Data::new::<bf16>(&case, &tables)).schedule();
        let [tiles, blocks, rows] = [words[0], words[1], words[4]];
        let starts = &words[HEADER + 4 * (rows as usize + 1) + 4 * case.keys.len()..];
        let at = |c: u32| words[HEADER + 4 * starts[2 * c as usize] as usize] + starts[2 * c as usize + 1];
        let shares: Vec<u32> =
            (0..blocks).map(|c| if c + 1 < blocks { at(c + 1) - at(c) } else { tiles - at(c) }).collect();
        let least = tiles.checked_div(blocks).unwrap_or(0);
        assert!(shares.iter().all(|share| *share == least || *share == least + 1), "{shares:?}");
    }
}

/// Six hundred requests of 2^28 keys: their tiles, which 31 bits cannot count.
pub fn too_many() -> Case {
    let keys = MAX_KEYS;
    Case { heads: 1, key_heads: 1, head_dim: 8, value_dim: 8, kind: Kind::Dense(keys), ..Case::new(&vec![keys; 600]) }
}

#[test]
fn lean_plan_refuses_more_tiles_than_it_counts() {
    let case = too_many();
    let tables = Tables::new(&case);
    let plan = case.plan(&tables);
    let stream = device::stream();
    let mut schedule = lookback_decode::Schedule::new(&stream, plan.schedule_bytes()).expect("memory");
    let kv_len = upload(&tables.kv_len);
    plan.schedule(&stream, &Lengths::dense(&kv_len), &mut schedule).expect("good");
    device::finish();
    let words = download(schedule.slice());
    assert!(words[..16].iter().all(|byte| *byte == 0), "nobody has work");
    let error = plan.status(&stream, &mut schedule).expect_err("too many");
    assert!(error.to_string().contains("2^31 tiles"), "{error}");
    // Half of them are as many as there may be.
    let kv_len = upload(&vec![MAX_KEYS as i32; 300].into_iter().chain([0; 300]).collect::<Vec<_>>());
    plan.schedule(&stream, &Lengths::dense(&kv_len), &mut schedule).expect("good");
    plan.status(&stream, &mut schedule).expect("within 31 bits");
    let words: Vec<u32> = download(schedule.slice()).chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
    assert_eq!(words[0] as usize, 300 * MAX_KEYS / 64 + 300);
}
