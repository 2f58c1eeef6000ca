//! Appending with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::append_case::{Case, dense, paged, ragged, slots, turn};
use crate::linear::chain_mutants::{Machine, Seen};
use bytemuck::{bytes_of, cast_slice};
use half::bf16;
use lookback_decode::{
    Cache, Scales,
    append::{Place, Style},
};
use lookback_emulator::launch::{Checks, Convergence, LaunchConfig, Options, launch};
use lookback_kernels::{Kernel, args::KvAppend, find};
use lookback_reference::{e4m3, kv_append::codes};
use lookback_suite::measure::{Gate, errors};

/// Every way to say where, both ways to turn, rows of more units than lanes, and what leads outside.
fn cases() -> Vec<Case> {
    let scales = Some(Scales::Token);
    let wide = Case { head_dim: 576, value_dim: 512, heads: 2, rotary: turn(Style::Interleaved, 576), ..paged() };
    vec![
        Case { scales, rotary: turn(Style::Half, 32), ..slots() },
        Case { scales, rotary: turn(Style::Interleaved, 64), head_dim: 72, ..paged() },
        Case { scales, ..wide },
        Case { scales: Some(Scales::Head), ..dense() },
        Case { scales, ..ragged() },
        Case { scales, kv_len: vec![13, 0, 6], ..paged() },
        Case { scales, kv_len: vec![12, 0, 1], kv_indices: vec![6, 1, 8, -1, 0, 0], ..paged() },
        Case { scales, kv_indptr: vec![0, 3, 3, 7], cu_seqlens: Some(vec![0, 2, 2, 4]), ..paged() },
        Case { scales, cu_seqlens: Some(vec![0, 2, 2, 6]), ..paged() },
        Case { scales, kv_indptr: vec![5, 2, 9, 18], ..ragged() },
        Case { scales, slot_map: Some(vec![32, -2, 1, 0, 31]), ..slots() },
    ]
}

/// New rows with zeros, NaN, infinities and small numbers among them.
fn rows(case: &Case) -> [Vec<f64>; 2] {
    let mut rows = case.new_rows::<bf16>(11);
    let width = case.value_dim;
    rows[1][..width].fill(0.0);
    for (i, x) in [f64::NAN, f64::NEG_INFINITY, 2f64.powi(-9), 1.0].into_iter().enumerate() {
        rows[1][3 * width + i] = x;
    }
    rows[1][4 * width] = 8192.0;
    rows[1][2 * width..][..width].iter_mut().step_by(3).for_each(|x| *x *= 2f64.powi(-8));
    rows
}

struct Left {
    k: Vec<u8>,
    v: Vec<u8>,
    k_scale: Vec<f64>,
    v_scale: Vec<f64>,
    status: u32,
}

fn left(machine: &Machine, case: &Case, rows: &[Vec<f64>; 2], options: &Options) -> Option<Left> {
    let (h, dk, dv) = (case.heads, case.head_dim, case.value_dim);
    let (num_pages, places, num_indices) = match case.cache {
        Cache::Dense { capacity } => (case.batch(), capacity, 0),
        Cache::Ragged { tokens } => (1, tokens, 0),
        Cache::Paged { pages, page_size, table } => (pages, page_size, table),
    };
    let slots = num_pages * places;
    let by_slot = case.slot_map.is_some();
    let words = |wanted: bool, v: &[i32]| if wanted { machine.place_bytes(cast_slice(v)) } else { 0 };
    let is_dense = matches!(case.cache, Cache::Dense { .. });
    let (k, v) = (machine.place_bytes(&vec![0xa5; slots * h * dk]), machine.place_bytes(&vec![0xa5; slots * h * dv]));
    let computed = case.scales == Some(Scales::Token);
    let scales = if computed { vec![f64::NAN; slots * h] } else { (0..h).map(|i| 0.011 + i as f64).collect() };
    let (k_scale, v_scale) = (machine.place::<f32>(&scales), machine.place::<f32>(&scales));
    let status = machine.place_bytes(&[0; 4]);
    let rotary_dim = case.rotary.map_or(0, |r| r.rotary_dim);
    let units = rotary_dim / 16 + (dk - rotary_dim).div_ceil(16);
    let lanes = units.max(dv.div_ceil(16)).next_power_of_two().min(32);
    let [head, place, page] = if computed { [1, h, places * h] } else { [1, 0, 0] }.map(|s| s as i64);
    let query_len = if let Place::Requests { query_len } = case.shape().place { query_len } else { 1 };
    let args = KvAppend {
        p_k: machine.place::<bf16>(&rows[0]),
        p_v: machine.place::<bf16>(&rows[1]),
        p_k_cache: k,
        p_v_cache: v,
        p_k_scale: k_scale,
        p_v_scale: v_scale,
        p_slot_map: case.slot_map.as_ref().map_or(0, |s| machine.place_bytes(cast_slice(s))),
        p_positions: case.positions.as_ref().map_or(0, |p| words(case.rotary.is_some(), p)),
        p_cu_seqlens: case.cu_seqlens.as_ref().map_or(0, |s| words(!by_slot, s)),
        p_kv_len: words(!by_slot, &case.kv_len),
        p_kv_indptr: words(!by_slot && !is_dense, &case.kv_indptr),
        p_kv_indices: words(!by_slot && num_indices > 0, &case.kv_indices),
        p_status: status,
        k_stride_token: (h * dk) as i64,
        k_stride_head: dk as i64,
        v_stride_token: (h * dv) as i64,
        v_stride_head: dv as i64,
        k_cache_stride_page: (places * h * dk) as i64,
        k_cache_stride_place: (h * dk) as i64,
        k_cache_stride_head: dk as i64,
        v_cache_stride_page: (places * h * dv) as i64,
        v_cache_stride_place: (h * dv) as i64,
        v_cache_stride_head: dv as i64,
        k_scale_stride_page: page,
        k_scale_stride_place: place,
        k_scale_stride_head: head,
        v_scale_stride_page: page,
        v_scale_stride_place: place,
        v_scale_stride_head: head,
        ratio: case.rotary.map_or(0, |r| (r.base.powf(-2.0 / r.theta_dim as f64) * 2f64.powi(64)) as u64 as i64),
        tokens: case.tokens as u32,
        requests: case.batch() as u32,
        query_len: query_len as u32,
        heads: h as u32,
        head_dim: dk as u32,
        value_dim: dv as u32,
        num_pages: num_pages as u32,
        places: places as u32,
        num_indices: num_indices as u32,
        rotary_dim: rotary_dim as u32,
        interleaved: u32::from(case.rotary.is_some_and(|r| r.style == Style::Interleaved)),
        computed: u32::from(computed),
        block_heads: 2,
        lane_bits: lanes.trailing_zeros(),
    };
    let grid = [case.tokens.div_ceil(256 / lanes) as u32, h.div_ceil(2) as u32, 2];
    let config = LaunchConfig { grid, block: machine.kernel.block, dynamic_shared: 0, cooperative: false };
    launch(&machine.program, &machine.memory, &config, bytes_of(&args), options).ok()?;
    let bytes = |at: u64, len: usize| {
        let mut out = vec![0; len];
        machine.memory.copy_to_host(&mut out, at).expect("memory");
        out
    };
    let word = bytes(status, 4);
    Some(Left {
        k: bytes(k, slots * h * dk),
        v: bytes(v, slots * h * dv),
        k_scale: machine.read::<f32>(k_scale, scales.len()),
        v_scale: machine.read::<f32>(v_scale, scales.len()),
        status: u32::from_le_bytes([word[0], word[1], word[2], word[3]]),
    })
}

fn options(quantum: u32, convergence: Convergence) -> Options {
    let mut options = Options::default();
    options.quantum = quantum;
    options.convergence = convergence;
    options.instruction_limit = 2_000_000;
    options
}

/// Codes of values as the oracle has them; those of keys within what angles in f32 may do.
fn right(case: &Case, rows: &[Vec<f64>; 2], left: &Left) -> bool {
    let h = case.heads;
    let (append, located) = (case.oracle_case(), case.oracle(rows).1);
    let turned = append.turned(&rows[0], &located);
    let mut stored = vec![None; append.slots];
    located.iter().enumerate().for_each(|(t, l)| l.slot.into_iter().for_each(|slot| stored[slot] = Some(t)));
    let computed = case.scales == Some(Scales::Token);
    let mut is_right = left.status == located.iter().fold(0, |bits, l| bits | l.status);
    let mut tensor = |rows: &[f64], width: usize, got: &[u8], scales: &[f64], is_exact: bool| {
        for (slot, token) in stored.iter().enumerate() {
            for head in 0..h {
                let to = slot * h + head;
                let got = &got[to * width..][..width];
                let Some(t) = token else {
                    is_right &= got.iter().all(|c| *c == 0xa5) && (!computed || scales[to].is_nan());
                    continue;
                };
                let row = &rows[(t * h + head) * width..][..width];
                let given = (!computed).then(|| f64::from(scales[head] as f32));
                let (want, scale) = codes(row, given);
                let found = if computed { scales[to] } else { scale };
                is_right &= (found - scale).abs() <= if is_exact { 0.0 } else { 2e-6 * scale };
                let values = |codes: &[u8]| codes.iter().map(|c| e4m3::decode(*c)).collect::<Vec<_>>();
                is_right &= if is_exact {
                    got == want
                } else {
                    // A tie may fall to either side: that is a sixteenth of one element.
                    errors(&values(got), &values(&want), width)
                        .is_ok_and(|e| e.within(Gate { rel: 2e-2, row: 2e-2, inf: 8e-2 }))
                };
            }
        }
    };
    tensor(&turned, case.head_dim, &left.k, &left.k_scale, case.rotary.is_none());
    tensor(&rows[1], case.value_dim, &left.v, &left.v_scale, true);
    is_right
}

fn seen(kernel: &'static Kernel, from: &str, to: &str, nth: usize) -> Vec<Seen> {
    let mut all = Vec::new();
    for case in cases() {
        for options in [options(20_000, Convergence::Natural), options(7, Convergence::Random(1))] {
            let (machine, rows) = (Machine::new(kernel, from, to, nth), rows(&case));
            match left(&machine, &case, &rows, &options) {
                None => all.push(Seen::Something),
                Some(left) if !right(&case, &rows, &left) => all.push(Seen::WrongResult),
                Some(_) => {}
            }
        }
    }
    all
}

#[test]
fn append_every_seeded_mistake_is_caught() {
    let kernel = find("kv_append", &[("dtype", "bf16"), ("cache", "e4m3"), ("vec", "8")]).expect("every variant");
    assert_eq!(seen(kernel, ".visible", ".visible", 0), [], "the kernel itself");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // Slots.
        ("setp.ge.u64 %is_bad, %at, %slots;", "setp.gt.u64 %is_bad, %at, %slots;", 0, Seen::Something),
        ("setp.eq.s64 %is_bad, %slot, -1;", "setp.eq.s64 %is_bad, %slot, -2;", 0, Seen::WrongResult),
        ("sub.u32 %place, %place, %middle;", "", 0, Seen::Something),
        // Requests.
        ("setp.le.s32 %is_before, %from, %i_token;", "setp.lt.s32 %is_before, %from, %i_token;", 0, Seen::WrongResult),
        ("setp.gt.or.u32 %is_bad, %to, %n_tokens, %is_bad;", "", 0, Seen::WrongResult),
        ("sub.s64 %position, %position, %at;", "", 0, Seen::Something),
        ("setp.gt.or.u32 %is_bad, %end, %room, %is_bad;", "", 0, Seen::Something),
        ("setp.gt.u32 %is_bad, %first, %end;", "setp.gt.u32 %is_bad, %first, -1;", 0, Seen::Something),
        ("setp.ge.u64 %is_bad, %p, %at;", "setp.gt.u64 %is_bad, %p, %at;", 0, Seen::Something),
        ("add.u32 %place, %place, %entry;", "", 0, Seen::WrongResult),
        ("add.u32 %entry, %entry, %middle;", "", 0, Seen::WrongResult),
        ("setp.ge.u32 %is_bad, %page, %n_pages;", "setp.gt.u32 %is_bad, %page, %n_pages;", 0, Seen::Something),
        ("red.relaxed.gpu.global.or.b32 [%p], %status;", "st.global.u32 [%p], %status;", 0, Seen::Something),
        // Units.
        ("add.u32 %n_units, %n_units, 15;", "", 0, Seen::WrongResult),
        ("@%is_turned mov.u32 %apart, %half;", "", 0, Seen::Something),
        ("setp.lt.u32 %is_second, %half, %n_width;", "setp.le.u32 %is_second, %half, %n_width;", 0, Seen::Something),
        ("and.pred %is_there, %is_held, %is_computed;", "mov.pred %is_there, %is_computed;", 0, Seen::Something),
        // Angles.
        ("mov.u32 %unit_turned, %i_unit;", "mov.u32 %unit_turned, %i_lane;", 0, Seen::WrongResult),
        ("mul.hi.u64 %power, %power, %power;", "", 0, Seen::WrongResult),
        ("mov.u64 %turn4, %late0;", "", 0, Seen::Something),
        ("neg.f32 %t0, %t0;", "", 8, Seen::WrongResult),
        // Scales.
        ("setp.gt.u32 %is_near, %unit_step, 2;", "setp.gt.u32 %is_near, %unit_step, 4;", 0, Seen::WrongResult),
        ("min.f32 %greatest, %greatest, 0f7F7FFFFF;", "", 0, Seen::WrongResult),
        ("selp.f32 %scale, 0f3F800000, %scale, %is_zero;", "", 0, Seen::WrongResult),
        ("mov.f32 %greatest, 0f00000000;", "", 0, Seen::Something),
        // Codes.
        ("add.u32 %word0, %word0, %odd;", "", 0, Seen::WrongResult),
        ("min.f32 %size, %size, 0f43E00000;", "", 0, Seen::WrongResult),
        ("selp.b32 %word0, 0x7F, %word0, %is_nan;", "", 0, Seen::WrongResult),
        ("selp.b32 %byte, %low, %byte, %is_small;", "", 0, Seen::WrongResult),
        ("shl.b32 %byte, %byte, 16;", "shl.b32 %byte, %byte, 15;", 0, Seen::WrongResult),
    ];
    for (from, to, nth, want) in mutants {
        let seen = seen(kernel, from, to, *nth);
        let fits = |seen: &Seen| *want == Seen::Something || seen == want;
        assert!(seen.iter().any(fits), "`{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}

#[test]
fn append_two_tokens_with_one_slot_leave_one_of_them_in_every_row() {
    let kernel = find("kv_append", &[("dtype", "bf16"), ("cache", "e4m3"), ("vec", "8")]).expect("every variant");
    let case = Case { scales: Some(Scales::Head), slot_map: Some(vec![3, 9, 3, -1, 9]), ..slots() };
    let (machine, rows) = (Machine::new(kernel, ".visible", ".visible", 0), rows(&case));
    // The sanitizer would call it a race.
    let mut options = options(20_000, Convergence::Natural);
    options.checks = Checks::Off;
    let left = left(&machine, &case, &rows, &options).expect("it runs");
    for (slot, tokens) in [(3, [0, 2]), (9, [1, 4])] {
        for head in 0..case.heads {
            let at = (slot * case.heads + head) * 64;
            let of = |t: usize| codes(&rows[0][(t * case.heads + head) * 64..][..64], Some(left.k_scale[head])).0;
            assert!(tokens.into_iter().any(|t| left.k[at..][..64] == of(t)), "slot {slot} head {head}");
        }
    }
    assert_eq!(left.status, 0);
}
