//! Merging with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::merge_case::{CASE, Case, far_lse};
use crate::linear::chain_mutants::{Machine, Seen};
use bytemuck::bytes_of;
use lookback_emulator::launch::{Convergence, FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::{Kernel, args::MergeStates, find};
use lookback_suite::measure::{Gate, errors};

/// Several teams to a warp and rows than lanes, two blocks, more states than are fetched at once, all switches.
fn cases() -> [Case; 4] {
    let all = Case {
        states: 6,
        batch: 2,
        tokens: 7,
        heads: 3,
        value_dim: 132,
        sink: true,
        accumulate: true,
        base: 80.0,
        spread: 12.0,
        empty_every: 4,
        ..CASE
    };
    let starts = Some(vec![0, 2, 2, 9, 14, 14, 15, 15]);
    let ragged = Case { states: 15, batch: 1, starts, accumulate: false, sink: false, value_dim: 24, ..all.clone() };
    // Nothing but empty states, then some.
    let empty = Case { accumulate: false, sink: false, empty_every: 1, states: 2, value_dim: 16, ..all.clone() };
    // Distances beyond the range of weights.
    let far = Case { base: 0.0, spread: 200.0, value_dim: 16, ..all.clone() };
    [all, ragged, empty, far]
}

fn run(machine: &Machine, case: &Case, (quantum, convergence): (u32, Convergence)) -> Option<Seen> {
    let data = case.data::<f32>(9);
    let (heads, dv, tokens) = (case.heads, case.value_dim, case.tokens);
    let poison = |v: &[f64]| if case.accumulate { v.to_vec() } else { vec![f64::NAN; v.len()] };
    let (out, lse_out) = (machine.place::<f32>(&poison(&data.out)), machine.place::<f32>(&poison(&data.lse_out)));
    let ragged = case.starts.is_some();
    let (head, token) = (dv as i64, (heads * dv) as i64);
    let lanes = dv.div_ceil(4).next_power_of_two().min(32);
    let rows = if ragged { 1 } else { tokens as i64 };
    let args = MergeStates {
        p_o: machine.place::<f32>(&data.o),
        p_lse: machine.place::<f32>(&data.lse),
        p_starts: case.starts.as_ref().map_or(0, |s| machine.place_bytes(bytemuck::cast_slice(s))),
        p_sink: if case.sink { machine.place::<f32>(&data.sink) } else { 0 },
        p_out: out,
        p_lse_out: lse_out,
        o_stride_state: case.batch as i64 * rows * token,
        o_stride_batch: rows * token,
        o_stride_token: if ragged { 0 } else { token },
        o_stride_head: head,
        lse_stride_state: case.batch as i64 * rows * heads as i64,
        lse_stride_batch: rows * heads as i64,
        lse_stride_token: if ragged { 0 } else { heads as i64 },
        lse_stride_head: 1,
        out_stride_batch: tokens as i64 * token,
        out_stride_token: token,
        out_stride_head: head,
        lse_out_stride_batch: (tokens * heads) as i64,
        lse_out_stride_token: heads as i64,
        lse_out_stride_head: 1,
        states: case.states as u32,
        tokens: tokens as u32,
        heads: heads as u32,
        value_dim: dv as u32,
        accumulate: u32::from(case.accumulate),
        lane_bits: lanes.trailing_zeros(),
    };
    let grid = [(tokens * heads).div_ceil(256 / lanes) as u32, case.batch as u32, 1];
    let config = LaunchConfig { grid, block: machine.kernel.block, dynamic_shared: 0, cooperative: false };
    let mut options = Options::default();
    options.quantum = quantum;
    options.convergence = convergence;
    options.instruction_limit = 2_000_000;
    if let Err(fault) = launch(&machine.program, &machine.memory, &config, bytes_of(&args), &options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let (want, want_lse) = case.oracle(&data);
    let (got, lse) = (machine.read::<f32>(out, want.len()), machine.read::<f32>(lse_out, want_lse.len()));
    let close = errors(&got, &want, dv).is_ok_and(|e| e.within(Gate::F32));
    (!close || far_lse(&lse, &want_lse).is_some()).then_some(Seen::WrongResult)
}

/// The worst that any case and schedule shows.
fn seen(kernel: &'static Kernel, from: &str, to: &str, nth: usize) -> Vec<Seen> {
    let schedules = [(20_000, Convergence::Natural), (7, Convergence::Random(1))];
    let runs = cases().into_iter().flat_map(|case| schedules.map(|schedule| (case.clone(), schedule)));
    runs.filter_map(|(case, schedule)| run(&Machine::new(kernel, from, to, nth), &case, schedule)).collect()
}

#[test]
fn merge_every_seeded_mistake_is_caught() {
    let kernel = find("merge_states", &[("dtype", "f32"), ("out", "f32"), ("vec", "4")]).expect("every variant");
    assert_eq!(seen(kernel, ".visible", ".visible", 0), [], "the kernel itself");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // Rows and teams.
        ("setp.lt.u32 %is_row, %i_token, %n_tokens;", "setp.le.u32 %is_row, %i_token, %n_tokens;", 0, Seen::Something),
        ("sub.u32 %i_head, %i_team, %t0;", "mov.u32 %i_head, %i_team;", 0, Seen::Something),
        ("add.u32 %next, %i_token, 1;", "add.u32 %next, %i_token, 2;", 0, Seen::Something),
        ("max.u32 %state_end, %state_end, %state_first;", "mov.u32 %state_end, %n_states;", 0, Seen::WrongResult),
        // Columns.
        (
            "setp.ge.u32 %is_outside, %i_column, %n_columns;",
            "setp.gt.u32 %is_outside, %i_column, %n_columns;",
            0,
            Seen::Something,
        ),
        ("add.u64 %p_o, %p_o, %column_bytes;", "", 0, Seen::WrongResult),
        ("mov.u64 %lse_at, %p_lse;", "", 0, Seen::Something),
        // Weights.
        ("selp.f32 %max_safe, 0f00000000, %max, %is_none;", "mov.f32 %max_safe, %max;", 1, Seen::WrongResult),
        ("mul.f32 %sum, %sum, %factor;", "", 1, Seen::WrongResult),
        ("mul.f32 %acc2, %acc2, %factor;", "", 1, Seen::WrongResult),
        ("max.f32 %max, %max, %lse3;", "", 0, Seen::WrongResult),
        (
            "@%is_there1 fma.rn.f32 %acc0, %weight, %x0, %acc0;",
            "fma.rn.f32 %acc0, %weight, %x0, %acc0;",
            0,
            Seen::WrongResult,
        ),
        ("setp.gt.u32 %is_in2, %n_left, 2;", "setp.ge.u32 %is_in2, %n_left, 2;", 0, Seen::Something),
        ("min.u32 %i_state, %n_left, 4;", "min.u32 %i_state, %n_left, 3;", 0, Seen::Something),
        // What runs, and sinks.
        ("selp.f32 %acc0, %x0, 0f00000000, %is_none;", "mov.f32 %acc0, %x0;", 0, Seen::WrongResult),
        ("mov.f32 %sum, 0f3F800000;", "", 0, Seen::WrongResult),
        ("max.f32 %max, %max, %sink;", "mov.f32 %max, %max;", 0, Seen::WrongResult),
        // The end.
        ("selp.f32 %factor, 0f00000000, %factor, %is_none;", "", 0, Seen::WrongResult),
        ("0f3F317218", "0f3F800000", 0, Seen::WrongResult),
    ];
    for (from, to, nth, want) in mutants {
        let seen = seen(kernel, from, to, *nth);
        let fits = |seen: &Seen| *want == Seen::Something || seen == want;
        assert!(seen.iter().any(fits), "`{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}
