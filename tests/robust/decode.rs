//! Calls of decode attention, its schedules, and appends to its caches.

use super::call::{At, CALLS, Calls, given, read, wanted, written};
use half::{bf16, f16};
use lookback_decode::{
    Cache, CacheType, Inputs, Lengths, Options, Outputs, Plan, Scales, Schedule, Shape, Workspace, append,
};
use lookback_device::{Element, Result};
use lookback_suite::{buffer::upload, device};

const CACHES: [Cache; 2] = [Cache::Dense { capacity: 48 }, Cache::Paged { pages: 6, page_size: 16, table: 5 }];

/// Two requests of one query, four heads on two.
fn plan(cache: Cache) -> Plan {
    let shape = Shape::new(2, 4, 2, 16, cache);
    Plan::new(&shape, &Options::new::<f16>(&shape), &device::info()).expect("a plan")
}

fn step<T: Element>(plan: &Plan, at: &At<'_>, schedule: &Schedule, workspace: &mut Workspace) -> Result<()> {
    let (q, k, v) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"));
    let (pages, sink, slopes) =
        (at.maybe::<i32>("kv_indices"), at.maybe::<f32>("sink"), at.maybe::<f32>("alibi_slopes"));
    let (mut o, mut lse) = (at.get::<T>("o"), at.maybe::<f32>("lse"));
    // A step does not read these: the schedule has seen them.
    let (len, starts) = (upload(&[9_i32, 30]), upload(&[0_i32, 2, 5]));
    let paged = Lengths::paged(&len, &starts, &starts);
    let lengths = match given(&pages) {
        Some(pages) => Lengths { kv_indices: Some(pages), ..paged },
        None => Lengths::dense(&len),
    };
    let inputs = Inputs { sink: given(&sink), alibi_slopes: given(&slopes), ..Inputs::of(&q, &k, &v, lengths) };
    let outputs = Outputs { lse: wanted(&mut lse), ..Outputs::of(&mut o) };
    plan.run(&device::stream(), &inputs, outputs, schedule, workspace)
}

#[test]
fn lean_decode_calls() {
    let stream = device::stream();
    for cache in CACHES {
        let plan = plan(cache);
        let is_paged = cache == CACHES[1];
        let (len, starts) = (upload(&[9_i32, 30]), upload(&[0_i32, 2, 5]));
        let pages = upload(&[0_i32, 1, 2, 3, 4]);
        let lengths = if is_paged { Lengths::paged(&len, &starts, &pages) } else { Lengths::dense(&len) };
        let memory = |bytes: u64| Schedule::new(&stream, bytes).expect("memory");
        // One that was made for the plan, and one that nothing was written to.
        let mut schedules = [memory(plan.schedule_bytes()), memory(plan.schedule_bytes())];
        plan.schedule(&stream, &lengths, &mut schedules[0]).expect("a schedule");
        let mut workspaces = [plan.workspace_bytes(), plan.workspace_bytes() - 1]
            .map(|bytes| Workspace::new(&stream, bytes).expect("memory"));
        let mut tensors = vec![
            read("q", 128, 2),
            read("k", 96 * 32, 2),
            read("v", 96 * 32, 2),
            read("sink", 4, 4).optional(),
            read("alibi_slopes", 4, 4).optional(),
            written("o", 128, 2),
            written("lse", 8, 4).optional(),
        ];
        if is_paged {
            tensors.push(read("kv_indices", 5, 4));
        }
        let calls = Calls { others: 2, ..Calls::new("lean_decode", tensors) };
        calls.make(CALLS / 2, |at| {
            let schedule = &schedules[usize::from(at.other == Some(0))];
            let workspace = &mut workspaces[usize::from(at.other == Some(1))];
            match at.other_type {
                true => step::<bf16>(&plan, at, schedule, workspace),
                false => step::<f16>(&plan, at, schedule, workspace),
            }
        });
    }
}

#[test]
fn lean_decode_schedule_calls() {
    let stream = device::stream();
    let (plan, pages) = (plan(CACHES[1]), upload(&[0_i32; 5]));
    let memory = |bytes: u64| Schedule::new(&stream, bytes).expect("memory");
    let mut schedules = [memory(plan.schedule_bytes()), memory(plan.schedule_bytes() - 1)];
    let tensors = vec![read("kv_len", 2, 4), read("kv_indptr", 3, 4)];
    let calls = Calls { others: 1, typed: false, ..Calls::new("lean_decode schedule", tensors) };
    calls.make(CALLS, |at| {
        let (len, starts) = (at.get::<i32>("kv_len"), at.get::<i32>("kv_indptr"));
        let schedule = &mut schedules[usize::from(at.other.is_some())];
        plan.schedule(&stream, &Lengths::paged(&len, &starts, &pages), schedule)
    });
}

fn appended<T: Element>(plan: &append::Plan, at: &At<'_>, is_codes: bool) -> Result<()> {
    let (k_new, v_new) = (at.get::<T>("k_new"), at.get::<T>("v_new"));
    let (len, starts, pages) = (at.get::<i32>("kv_len"), at.get::<i32>("kv_indptr"), at.get::<i32>("kv_indices"));
    let mut status = at.maybe::<u32>("status");
    let inputs = append::Inputs::requests(&k_new, &v_new, Lengths::paged(&len, &starts, &pages));
    let stream = device::stream();
    if !is_codes {
        let (mut k, mut v) = (at.get::<T>("k"), at.get::<T>("v"));
        return plan.run(&stream, &inputs, append::Outputs::Same { k: &mut k, v: &mut v }, wanted(&mut status));
    }
    let (mut k, mut v) = (at.get::<u8>("k"), at.get::<u8>("v"));
    let (mut k_scale, mut v_scale) = (at.get::<f32>("k_scale"), at.get::<f32>("v_scale"));
    let outputs = append::Outputs::Computed { k: &mut k, v: &mut v, k_scale: &mut k_scale, v_scale: &mut v_scale };
    plan.run(&stream, &inputs, outputs, wanted(&mut status))
}

#[test]
fn kv_append_calls() {
    let cache = Cache::Paged { pages: 8, page_size: 4, table: 6 };
    let shape = append::Shape::new(2, 3, 2, 16, cache);
    for is_codes in [false, true] {
        let kind = if is_codes { CacheType::E4m3(Scales::Token) } else { CacheType::Same };
        let options = append::Options { cache: kind, ..append::Options::new::<f16>() };
        let plan = append::Plan::new(&shape, &options, &device::info()).expect("a plan");
        let size = if is_codes { 1 } else { 2 };
        let mut tensors = vec![
            read("k_new", 192, 2),
            read("v_new", 192, 2),
            read("kv_len", 2, 4),
            read("kv_indptr", 3, 4),
            read("kv_indices", 6, 4),
            written("k", 1024, size),
            written("v", 1024, size),
            written("status", 1, 4).optional(),
        ];
        if is_codes {
            tensors.extend([written("k_scale", 64, 4), written("v_scale", 64, 4)]);
        }
        Calls::new("kv_append", tensors).make(CALLS / 2, |at| match at.other_type {
            true => appended::<bf16>(&plan, at, is_codes),
            false => appended::<f16>(&plan, at, is_codes),
        });
    }
}
