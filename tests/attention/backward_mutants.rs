//! The backward kernels with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::{
    backward_case::{Backward, Given, Gradients},
    forward_case::{ALL, Case, Layout},
};
use crate::linear::chain_mutants::{Machine, Seen};
use bytemuck::{Zeroable, bytes_of};
use half::f16;
use lookback_attention::backward::Gradient;
use lookback_emulator::launch::{AsyncCopies, FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::{
    Kernel,
    args::{AttentionBwdKeys, AttentionBwdQueries, AttentionFwd},
    find,
};
use lookback_suite::measure::{Gate, errors};

/// Which kernel, and so which gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// dk, dv, and dq by adding.
    Keys,
    /// dq alone.
    Queries,
}

struct Trial {
    backward: Backward,
    given: Given,
    want: Gradients,
    /// lse2 and delta of rows, `[B,H,Tq,2]`.
    terms: Vec<f64>,
}

impl Trial {
    fn new(case: Case, gradient: Gradient) -> Self {
        let backward = Backward { gradient, d_lse: true, ..Case { padding: false, ..case }.into() };
        let given = Given::new::<f16>(&backward, 1);
        let case = &backward.case;
        let delta = lookback_reference::attention::delta(&given.o, &given.d_o, Some(&given.d_lse), case.value_dim);
        let mut terms = Vec::new();
        for b in 0..case.batch {
            for h in 0..case.heads {
                for i in 0..case.query_len {
                    let at = (b * case.query_len + i) * case.heads + h;
                    let (lse, delta) = (given.lse[at], delta[at]);
                    let empty = lse == f64::NEG_INFINITY;
                    terms.extend(if empty { [f64::INFINITY, 0.0] } else { [lse * std::f64::consts::LOG2_E, delta] });
                }
            }
        }
        let want = given.want(&backward);
        Self { backward, given, want, terms }
    }
}

/// Among them every part of the kernels has something to do.
fn trials() -> Vec<Trial> {
    let causal = Case { batch: 2, group: 2, ..Case::causal(70, 150, 4, 64, 64) };
    let packed = Case {
        left: 40,
        right: 20,
        first: 5,
        prefix: vec![60, 3, 90],
        slopes: true,
        softcap: 3.0,
        key_mask: (0..260).map(|j| u8::from(j % 3 > 0)).collect(),
        ..Case::new(0, 0, 1, 64, 64)
    }
    .packed(&[70, 30, 160], &[90, 10, 160]);
    let intervals =
        (0..150).flat_map(|i| if i % 2 == 0 { [0, 0, 0, 70 + i % 3] } else { [20, 90, 130, 260] }).collect();
    let listed =
        Case { intervals, tiles: Some((vec![0, 3, 5], vec![0, 1, 3, 0, 2])), ..Case::new(150, 250, 1, 64, 64) };
    let narrow = Case { left: 30, right: 20, first: 5, ..Case::new(90, 140, 1, 56, 40) };
    let sinks = Case { left: 20, first: 5, prefix: vec![200], ..Case::causal(260, 260, 1, 64, 64) };
    let whole = Case { right: ALL, ..Case::causal(64, 128, 1, 64, 64) };
    vec![
        Trial::new(whole.clone(), Gradient::Same),
        Trial::new(Case { softcap: 2.0, ..whole.clone() }, Gradient::Same),
        Trial::new(Case { slopes: true, ..whole.clone() }, Gradient::Same),
        Trial::new(Case { key_mask: (0..128).map(|j| u8::from(j % 3 > 0)).collect(), ..whole }, Gradient::Same),
        Trial::new(causal, Gradient::Same),
        Trial::new(packed, Gradient::Same),
        Trial::new(listed, Gradient::F32),
        Trial::new(narrow, Gradient::Accumulate),
        Trial::new(sinks, Gradient::Same),
    ]
}

fn keys_args(a: &AttentionFwd, d_o: u64, terms: u64, [dq, dk, dv]: [u64; 3], out: u32) -> AttentionBwdKeys {
    AttentionBwdKeys {
        p_q: a.p_q,
        p_k: a.p_k,
        p_v: a.p_v,
        p_do: d_o,
        p_terms: terms,
        p_dk: dk,
        p_dv: dv,
        p_dq: dq,
        p_cu_seqlens_q: a.p_cu_seqlens_q,
        p_cu_seqlens_k: a.p_cu_seqlens_k,
        p_prefix_len: a.p_prefix_len,
        p_intervals: a.p_intervals,
        p_key_bits: a.p_key_bits,
        p_tile_starts: a.p_tile_starts,
        p_tile_keys: a.p_tile_keys,
        p_alibi_slopes: a.p_alibi_slopes,
        q_stride_batch: a.q_stride_batch,
        q_stride_token: a.q_stride_token,
        q_stride_head: a.q_stride_head,
        k_stride_batch: a.k_stride_batch,
        k_stride_token: a.k_stride_token,
        k_stride_head: a.k_stride_head,
        v_stride_batch: a.v_stride_batch,
        v_stride_token: a.v_stride_token,
        v_stride_head: a.v_stride_head,
        do_stride_batch: a.o_stride_batch,
        do_stride_token: a.o_stride_token,
        do_stride_head: a.o_stride_head,
        dk_stride_batch: a.k_stride_batch,
        dk_stride_token: a.k_stride_token,
        dk_stride_head: a.k_stride_head,
        dv_stride_batch: a.v_stride_batch,
        dv_stride_token: a.v_stride_token,
        dv_stride_head: a.v_stride_head,
        dq_stride_batch: a.q_stride_batch,
        dq_stride_token: a.q_stride_token,
        dq_stride_head: a.q_stride_head,
        query_len: a.query_len,
        key_len: a.key_len,
        sequences: a.sequences,
        heads: a.heads,
        group: a.group,
        head_dim: a.head_dim,
        value_dim: a.value_dim,
        key_words: a.key_words,
        tile_entries: a.tile_entries,
        offset: a.offset,
        has_offset: a.has_offset,
        left: a.left,
        right: a.right,
        first: a.first,
        out,
        scale: a.scale,
        softcap: a.softcap,
        ..Zeroable::zeroed()
    }
}

fn queries_args(a: &AttentionFwd, d_o: u64, terms: u64, dq: u64, out: u32) -> AttentionBwdQueries {
    let k = keys_args(a, d_o, terms, [dq, 0, 0], out);
    AttentionBwdQueries {
        p_q: k.p_q,
        p_k: k.p_k,
        p_v: k.p_v,
        p_do: k.p_do,
        p_terms: k.p_terms,
        p_dq: k.p_dq,
        p_cu_seqlens_q: k.p_cu_seqlens_q,
        p_cu_seqlens_k: k.p_cu_seqlens_k,
        p_prefix_len: k.p_prefix_len,
        p_intervals: k.p_intervals,
        p_key_bits: k.p_key_bits,
        p_tile_starts: k.p_tile_starts,
        p_tile_keys: k.p_tile_keys,
        p_alibi_slopes: k.p_alibi_slopes,
        q_stride_batch: k.q_stride_batch,
        q_stride_token: k.q_stride_token,
        q_stride_head: k.q_stride_head,
        k_stride_batch: k.k_stride_batch,
        k_stride_token: k.k_stride_token,
        k_stride_head: k.k_stride_head,
        v_stride_batch: k.v_stride_batch,
        v_stride_token: k.v_stride_token,
        v_stride_head: k.v_stride_head,
        do_stride_batch: k.do_stride_batch,
        do_stride_token: k.do_stride_token,
        do_stride_head: k.do_stride_head,
        dq_stride_batch: k.dq_stride_batch,
        dq_stride_token: k.dq_stride_token,
        dq_stride_head: k.dq_stride_head,
        query_len: k.query_len,
        key_len: k.key_len,
        sequences: k.sequences,
        heads: k.heads,
        group: k.group,
        head_dim: k.head_dim,
        value_dim: k.value_dim,
        key_words: k.key_words,
        tile_entries: k.tile_entries,
        offset: k.offset,
        has_offset: k.has_offset,
        left: k.left,
        right: k.right,
        first: k.first,
        out,
        scale: k.scale,
        softcap: k.softcap,
        ..Zeroable::zeroed()
    }
}

fn slots(case: &Case, tokens: usize, tile: usize) -> usize {
    if case.cu_q.is_empty() { case.batch * tokens.div_ceil(tile) } else { tokens / tile + case.sequences() }
}

fn run(which: Which, machine: &Machine, trial: &Trial, options: &Options) -> Option<Seen> {
    let Trial { backward, given, want, terms } = trial;
    let case = &backward.case;
    let layout = Layout::new::<f16>(case, &given.data);
    let inputs = std::array::from_fn(|i| machine.place_bytes(&layout.inputs[i]));
    let a = layout.at(inputs, 0, 0);
    let (d_o, terms) = (machine.place::<f16>(&given.d_o), machine.place::<f32>(terms));
    let out = match backward.gradient {
        Gradient::Same => 0,
        Gradient::F32 => 1,
        Gradient::Accumulate => 2,
    };
    let before = |i: usize| match backward.gradient {
        Gradient::Accumulate => given.old[i].clone(),
        _ => vec![f64::NAN; given.old[i].len()],
    };
    let place = |x: &[f64]| if out == 0 { machine.place::<f16>(x) } else { machine.place::<f32>(x) };
    let [dk, dv] = [1, 2].map(|i| place(&before(i)));
    // Blocks of keys add in f32, whatever the others are.
    let adds = which == Which::Keys;
    let dq = match (adds, out) {
        (true, 2) => machine.place::<f32>(&before(0)),
        (true, _) => machine.place::<f32>(&vec![0.0; given.old[0].len()]),
        (false, _) => place(&before(0)),
    };
    let (grid, bytes) = match which {
        Which::Keys => {
            let args = keys_args(&a, d_o, terms, [dq, dk, dv], out);
            ([slots(case, case.key_len, 128), case.key_heads(), 1], bytes_of(&args).to_vec())
        }
        Which::Queries => {
            let args = queries_args(&a, d_o, terms, dq, out);
            ([slots(case, case.query_len, 128) * case.heads, 1, 1], bytes_of(&args).to_vec())
        }
    };
    let config = LaunchConfig {
        grid: grid.map(|n| n as u32),
        block: machine.kernel.block,
        dynamic_shared: machine.kernel.dynamic_smem,
        cooperative: false,
    };
    if let Err(fault) = launch(&machine.program, &machine.memory, &config, &bytes, options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let read = |at: u64, wide: bool, len: usize| {
        if wide { machine.read::<f32>(at, len) } else { machine.read::<f16>(at, len) }
    };
    let close = |got: Vec<f64>, want: &[f64], width| errors(&got, want, width).is_ok_and(|e| e.within(Gate::F16));
    let right = close(read(dq, adds || out > 0, want.dq.len()), &want.dq, case.head_dim)
        && (!adds
            || close(read(dk, out > 0, want.dk.len()), &want.dk, case.head_dim)
                && close(read(dv, out > 0, want.dv.len()), &want.dv, case.value_dim));
    (!right).then_some(Seen::WrongResult)
}

/// Copies that land at once and as late as they may, warps that run long and that take turns.
fn schedules() -> [Options; 2] {
    [(AsyncCopies::Eager, 20_000), (AsyncCopies::Late, 7)].map(|(copies, quantum)| {
        let mut options = Options::default();
        options.async_copies = copies;
        options.quantum = quantum;
        options.instruction_limit = 4_000_000;
        options
    })
}

fn seen(
    which: Which,
    kernel: &'static Kernel,
    trials: &[Trial],
    (from, to, nth): (&str, &str, usize),
    want: Seen,
) -> (bool, Vec<Seen>) {
    let mut all = Vec::new();
    for options in schedules() {
        for trial in trials {
            all.extend(run(which, &Machine::new(kernel, from, to, nth), trial, &options));
            if all.iter().any(|seen| want == Seen::Something || *seen == want) {
                return (true, all);
            }
        }
    }
    (false, all)
}

fn check(which: Which, kernel: &'static Kernel, mutants: &[(&str, &str, usize, Seen)]) {
    let trials = trials();
    let own = seen(which, kernel, &trials, (".visible", ".visible", 0), Seen::Something);
    assert_eq!(own, (false, vec![]), "the kernel itself");
    let missed: Vec<String> = mutants
        .iter()
        .filter_map(|(from, to, nth, want)| {
            let (caught, all) = seen(which, kernel, &trials, (from, to, *nth), *want);
            (!caught).then(|| format!("`{from}` {nth} -> `{to}`: wanted {want:?}, saw {all:?}"))
        })
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn backward_every_seeded_mistake_of_the_keys_is_caught() {
    use Seen::{Race, Something, WrongResult};
    let variant = [("dtype", "f16"), ("kt", "64"), ("vt", "64"), ("part", "both"), ("dq", "yes")];
    let kernel = find("attention_bwd_keys", &variant).expect("every variant is built");
    check(
        Which::Keys,
        kernel,
        &[
            // Who waits for whom: the span, its list, a step, ds, and the end.
            ("bar.sync 0;", "", 0, Race),
            ("bar.sync 0;", "", 1, Race),
            ("bar.sync 0;", "", 2, Race),
            ("bar.sync 0;", "", 3, Race),
            ("cp.async.wait_group 0;", "", 0, Something),
            // Place of the block.
            ("sub.s32 %offset, %n_keys, %n_rows;", "mov.u32 %offset, 0;", 0, WrongResult),
            ("mul.lo.u32 %head, %head, %n_all;", "", 0, Something),
            ("mad.lo.u32 %head, %q_batch, %n_all, %head;", "mov.u32 %head, 0;", 0, WrongResult),
            // Which tiles: ends of the span, heads, lists.
            ("add.s64 %high, %high, 128;", "", 0, WrongResult),
            ("setp.lt.u32 %is, %key_0, %t0;", "setp.lt.u32 %is, %t0, %key_0;", 0, WrongResult),
            ("setp.lt.s32 %is, %key_0, %t0;", "setp.lt.s32 %is, %t0, %key_0;", 0, WrongResult),
            ("add.u64 %do_from, %do_from, %stride;", "", 1, WrongResult),
            ("add.u64 %p_terms, %p_terms, %stride;", "", 1, WrongResult),
            ("setp.lt.u32 %is, %number, %wanted;", "setp.le.u32 %is, %number, %wanted;", 0, WrongResult),
            ("@%is_low add.u32 %from, %from, 1;", "", 0, WrongResult),
            ("selp.b32 %t1, %high_mask, %low_mask, %is;", "or.b32 %t1, %high_mask, %low_mask;", 0, WrongResult),
            // What is seen.
            ("selp.b32 %key1, %key1, 0x7fffffff, %is_seen;", "", 0, WrongResult),
            ("setp.lt.or.s32 %is_reached, %from, %to, %is_reached;", "", 0, WrongResult),
            ("and.pred %is_plain, %is_plain, %is_whole;", "", 0, WrongResult),
            ("setp.eq.and.u64 %is_plain, %slopes, 0, %is_plain;", "", 0, WrongResult),
            ("setp.equ.and.f32 %is_plain, %cap, 0f00000000, %is_plain;", "", 0, WrongResult),
            ("setp.lt.and.s32 %is_b, %key2, %y3, %is_b;", "", 0, WrongResult),
            ("selp.f32 %s7, %s7, 0f00000000, %is_a;", "", 0, WrongResult),
            ("selp.f32 %d7, %d7, 0f00000000, %is_a;", "", 0, WrongResult),
            // Weights.
            ("sub.f32 %d5, %d5, %delta1;", "", 0, WrongResult),
            ("mul.f32 %d5, %s5, %d5;", "", 0, WrongResult),
            ("mul.f32 %r, %r, 0f40800000;", "", 3, WrongResult),
            ("sub.s32 %distance, %distance, 8;", "", 0, WrongResult),
            // Products and what becomes of them.
            ("add.u32 %turned, %at, %q_turned;", "add.u32 %turned, %at, %q_frag;", 0, WrongResult),
            ("mul.f32 %dk9, %dk9, %unit;", "", 0, WrongResult),
            ("mul.f32 %x6, %x6, %unit;", "", 0, WrongResult),
            ("mov.b32 %dw3, 0;", "", 0, Something),
            ("sub.u32 %slot_out, ", "add.u32 %slot_out, ", 0, Something),
            ("setp.lt.s32 %is_row, %lane_row, %rows;", "setp.ge.s32 %is_row, %lane_row, 0;", 1, Something),
            ("@%is_read ld.global.v2.f32 {%old0, %old1}, [%next+32];", "", 0, WrongResult),
        ],
    );
}

#[test]
fn backward_every_seeded_mistake_of_the_queries_is_caught() {
    use Seen::{Race, Something, WrongResult};
    let variant = [("dtype", "f16"), ("kt", "64"), ("vt", "64")];
    let kernel = find("attention_bwd_queries", &variant).expect("every variant is built");
    check(
        Which::Queries,
        kernel,
        &[
            ("bar.sync 0;", "", 2, Race),
            ("cp.async.wait_all;", "", 0, Something),
            ("mad.lo.u32 %t0, %q_batch, %n_all, %i_head;", "mov.u32 %t0, 0;", 0, WrongResult),
            ("div.u32 %key_head, %i_head, %n_group;", "mov.u32 %key_head, %i_head;", 0, Something),
            ("add.u32 %row, %row, 8;", "", 0, Something),
            ("neg.f32 %minus, %lse2;", "mov.f32 %minus, %lse2;", 0, WrongResult),
            ("sub.f32 %d5, %d5, %delta0;", "", 0, WrongResult),
            ("mul.f32 %d5, %s5, %d5;", "", 0, WrongResult),
            ("mul.f32 %r, %r, 0f40800000;", "", 3, WrongResult),
            ("setp.neu.or.f32 %is_dressed, %cap, 0f00000000, %is_dressed;", "", 0, WrongResult),
            ("selp.f32 %d9, 0f00000000, %d9, %is_none;", "mov.f32 %d9, 0f00000000;", 0, WrongResult),
            ("and.pred %is_plain, %is_plain, %is_a;", "", 0, WrongResult),
            ("sub.u32 %other, ", "add.u32 %other, ", 0, Something),
            ("add.u32 %passing, %k_turned, %slot;", "add.u32 %passing, %k_frag, %slot;", 0, WrongResult),
            ("mul.f32 %dq9, %dq9, %unit;", "", 0, WrongResult),
            ("setp.eq.u32 %is_added, %out, 2;", "setp.eq.u32 %is_added, %out, 3;", 0, WrongResult),
            ("sub.s32 %left, %left, %row_w;", "", 0, Something),
        ],
    );
}
