//! The forward kernel with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::forward_case::{ALL, Case, Data, Layout, Out, merged};
use crate::linear::chain_mutants::{Machine, Seen};
use bytemuck::bytes_of;
use half::f16;
use lookback_emulator::launch::{AsyncCopies, Convergence, FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::Kernel;
use lookback_reference::attention::Forward;
use lookback_suite::{
    measure::{Gate, errors},
    random::Random,
};

/// A case, what is launched (which may say the same in a worse way), its data and what is wanted.
struct Trial {
    launched: Case,
    data: Data,
    want: Forward,
}

impl Trial {
    fn new(case: &Case, launched: Case) -> Self {
        let mut data = Data::new::<f16>(case, 1);
        for row in (0..data.old.lse.len()).step_by(3) {
            data.old.lse[row] = f64::NEG_INFINITY;
            data.old.o[row * case.value_dim..][..case.value_dim].fill(f64::NAN);
        }
        let want = if case.out == Out::Merge { merged(case, &data) } else { case.forward(&data) };
        Self { launched, data, want }
    }
}

/// Among them every part of the kernel has something to do.
fn trials() -> Vec<Trial> {
    let causal = Case { group: 2, ..Case::causal(230, 150, 2, 64, 64) };
    let packed = Case {
        left: 40,
        right: 20,
        first: 5,
        prefix: vec![60, 3, 90],
        slopes: true,
        softcap: 3.0,
        sink: true,
        key_mask: (0..260).map(|j| u8::from(j % 3 > 0)).collect(),
        ..Case::new(0, 0, 1, 64, 64)
    }
    .packed(&[70, 30, 160], &[90, 10, 160]);
    let intervals =
        (0..150).flat_map(|i| if i % 2 == 0 { [0, 0, 0, 70 + i % 3] } else { [200, 210, 300, 420] }).collect();
    let listed = Case {
        intervals,
        out: Out::Merge,
        tiles: Some((vec![0, 5, 9], vec![0, 1, 3, 4, 6, 0, 1, 3, 5])),
        ..Case::new(150, 450, 1, 64, 64)
    };
    let wild = Some((vec![0, 8, 1 << 20], vec![0, 1, 0, 3, 4, 4, -7, 6, 0, 1, 3, 3, 5]));
    let narrow = Case {
        head_dim: 56,
        value_dim: 40,
        left: 30,
        right: 20,
        first: 5,
        out: Out::F32,
        ..Case::new(90, 270, 1, 56, 40)
    };
    // Keys grow along the way, so that the largest logit of single rows moves late.
    let mut growing =
        Trial::new(&Case { right: ALL, ..Case::causal(64, 320, 1, 64, 64) }, Case::new(64, 320, 1, 64, 64));
    let mut random = Random::new(2);
    for key in (64..320).step_by(29) {
        let query = random.below(64);
        let row: Vec<f64> =
            growing.data.q[query * 64..][..64].iter().map(|q| f16::from_f64(q * key as f64 / 64.0).to_f64()).collect();
        growing.data.k[key * 64..][..64].copy_from_slice(&row);
    }
    growing.want = growing.launched.forward(&growing.data);
    let same = |case: &Case| Trial::new(case, case.clone());
    vec![
        same(&causal),
        same(&packed),
        Trial::new(&listed, Case { tiles: wild, ..listed.clone() }),
        same(&Case { tiles: None, out: Out::Same, ..listed }),
        same(&narrow),
        growing,
    ]
}

fn run(machine: &Machine, Trial { launched: case, data, want }: &Trial, options: &Options) -> Option<Seen> {
    let layout = Layout::new::<f16>(case, data);
    let [o_before, lse_before] = layout.before(case, data);
    let o = if case.out == Out::Same { machine.place::<f16>(&o_before) } else { machine.place::<f32>(&o_before) };
    let lse = machine.place::<f32>(&lse_before);
    let inputs = std::array::from_fn(|i| machine.place_bytes(&layout.inputs[i]));
    let config = LaunchConfig {
        grid: case.grid(),
        block: machine.kernel.block,
        dynamic_shared: machine.kernel.dynamic_smem,
        cooperative: false,
    };
    let args = layout.at(inputs, o, lse);
    if let Err(fault) = launch(&machine.program, &machine.memory, &config, bytes_of(&args), options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let [o_len, lse_len] = layout.outputs;
    let out = if case.out == Out::Same { machine.read::<f16>(o, o_len) } else { machine.read::<f32>(o, o_len) };
    let lse = machine.read::<f32>(lse, lse_len);
    let right = layout.rows(case, &out).is_some_and(|rows| {
        errors(&rows, &want.o, case.value_dim).is_ok_and(|e| e.within(Gate::F16))
            && lse.iter().zip(&want.lse).all(|(a, b)| a == b || (a - b).abs() <= 1e-4)
    });
    (!right).then_some(Seen::WrongResult)
}

/// Copies that land at once and as late as they may, warps that run long and that take turns.
fn schedules() -> [Options; 2] {
    let schedules =
        [(AsyncCopies::Eager, 20_000, Convergence::Natural), (AsyncCopies::Late, 7, Convergence::Random(1))];
    schedules.map(|(copies, quantum, convergence)| {
        let mut options = Options::default();
        options.async_copies = copies;
        options.quantum = quantum;
        options.convergence = convergence;
        options.instruction_limit = 4_000_000;
        options
    })
}

/// Whether any trial and schedule shows what is wanted; and what they show.
fn seen(
    kernel: &'static Kernel,
    trials: &[Trial],
    (from, to, nth): (&str, &str, usize),
    want: Seen,
) -> (bool, Vec<Seen>) {
    let mut all = Vec::new();
    for options in schedules() {
        for trial in trials {
            all.extend(run(&Machine::new(kernel, from, to, nth), trial, &options));
            if all.iter().any(|seen| want == Seen::Something || *seen == want) {
                return (true, all);
            }
        }
    }
    (false, all)
}

#[test]
fn forward_every_seeded_mistake_is_caught() {
    use Seen::{Race, Something, WrongResult};
    let trials = trials();
    let kernel = trials[0].launched.kernel::<f16>();
    assert_eq!(seen(kernel, &trials, (".visible", ".visible", 0), Something), (false, vec![]), "the kernel itself");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // Who waits for whom.
        ("bar.sync 0;", "", 0, Race),
        ("bar.sync 0;", "", 1, Race),
        ("bar.sync 0;", "", 2, Race),
        ("cp.async.wait_all;", "", 0, Something),
        ("sub.u32 %other, 16384, %slot;", "mov.u32 %other, %slot;", 0, Something),
        // The block's place.
        ("div.u32 %key_head, %i_head, %group_heads;", "mov.u32 %key_head, %i_head;", 0, Something),
        ("add.u32 %first, %first, %middle;", "", 0, Something),
        ("mov.u32 %q_token, %lo;", "mov.u32 %q_token, 0;", 0, Something),
        ("mov.u32 %k_token, %lo;", "mov.u32 %k_token, 0;", 0, WrongResult),
        // Intervals.
        ("add.s64 %at, %at, 1;", "", 0, WrongResult),
        ("sub.s64 %at, %position, %reach;", "add.s64 %at, %position, %reach;", 0, WrongResult),
        ("min.s64 %at, %at, %keys;", "", 1, WrongResult),
        ("min.u32 %a_hi, %t0, %b_lo;", "mov.u32 %a_hi, 0;", 0, WrongResult),
        ("max.s32 %b_hi, %b_hi, %t0;", "", 0, WrongResult),
        ("add.u32 %t0, %q_token, %row;", "mov.u32 %t0, %q_token;", 0, WrongResult),
        ("redux.sync.max.s32 %all2", "redux.sync.min.s32 %all2", 0, WrongResult),
        ("redux.sync.min.s32 %all3", "redux.sync.max.s32 %all3", 0, WrongResult),
        ("redux.sync.max.s32 %any3", "redux.sync.min.s32 %any3", 0, WrongResult),
        ("selp.b32 %all1, %all1, 0x7fffffff, %is_row;", "mov.u32 %all1, 0x7fffffff;", 0, WrongResult),
        // Tiles.
        ("setp.lt.s32 %is_mixed, %any2, %any1;", "setp.lt.s32 %is_mixed, %any3, %any0;", 0, WrongResult),
        ("add.u32 %any3, %any3, 63;", "", 0, WrongResult),
        (
            "setp.ge.and.s32 %is_b, %b_hi, %k_end, %is_b;",
            "setp.gt.and.s32 %is_b, %b_hi, %k_now, %is_b;",
            0,
            WrongResult,
        ),
        ("setp.lt.or.s32 %is_out, %t0, %k_next, %is_out;", "", 1, WrongResult),
        ("min.u32 %list_end, %list_end, %all;", "", 0, Something),
        ("add.u32 %slot, %slot, %t0;", "", 0, WrongResult),
        ("setp.gt.s32 %is_row, %below, 48;", "setp.gt.s32 %is_row, %below, -64;", 4, Something),
        ("setp.lt.and.u32 %is_in, %bytes, %channels, %is_row;", "and.pred %is_in, %is_row, %is_row;", 8, Something),
        // Products and weights.
        ("cvt.rn.f16x2.f32 %p0, %s1, %s0;", "cvt.rn.f16x2.f32 %p0, %s0, %s1;", 0, WrongResult),
        ("mul.f32 %factor, %factor, 0f3FB8AA3B;", "", 0, WrongResult),
        (
            "shfl.sync.bfly.b32 %other, %top, 2, 31, 0xffffffff;",
            "shfl.sync.bfly.b32 %other, %top, 1, 31, 0xffffffff;",
            0,
            WrongResult,
        ),
        ("ex2.approx.ftz.f32 %alpha1, %alpha1;", "mov.f32 %alpha1, 0f3F800000;", 0, WrongResult),
        ("mul.f32 %l2, %l2, %alpha2;", "", 0, WrongResult),
        ("mov.f32 %m0, %top;", "", 0, WrongResult),
        ("selp.f32 %base, 0f00000000, %top, %is_empty;", "mov.f32 %base, %top;", 0, WrongResult),
        ("setp.gt.or.f32 %is_skipped, %top, %m3, %is_skipped;", "", 0, WrongResult),
        ("vote.sync.any.pred", "vote.sync.all.pred", 0, WrongResult),
        ("mul.f32 %o37, %o37, %alpha2;", "", 0, WrongResult),
        // Logits.
        ("selp.f32 %s5, %s5, 0fFF800000, %is_seen;", "", 0, WrongResult),
        ("or.b32 %seen1, %seen1, %below;", "", 1, WrongResult),
        ("and.b32 %seen0, %seen0, %bits0;", "", 2, WrongResult),
        ("shf.r.wrap.b32 %bits1, %word1, %word2, %shift;", "mov.b32 %bits1, %word1;", 0, WrongResult),
        ("setp.lt.u32 %is_word, %t0, %end;", "setp.le.u32 %is_word, %t0, %end;", 2, Something),
        ("fma.rn.f32 %s9, %s9, %double, %out;", "mul.f32 %s9, %s9, %out;", 0, WrongResult),
        ("add.f32 %distance, %distance, 0f40E00000;", "add.f32 %distance, %distance, 0f41000000;", 3, WrongResult),
        ("setp.eq.and.u64 %is_plain, %p_slopes, 0, %is_whole;", "setp.eq.u64 %is_plain, %p_slopes, 0;", 0, WrongResult),
        (
            "setp.eq.and.u64 %is_plain, %p_slopes, 0, %is_whole;",
            "and.pred %is_plain, %is_whole, %is_whole;",
            0,
            WrongResult,
        ),
        ("sub.s32 %t1, %t0, 8;", "sub.s32 %t1, %t0, 16;", 0, WrongResult),
        // The end.
        ("add.f32 %l1, %l1, %other;", "", 1, WrongResult),
        ("fma.rn.f32 %l1, %l1, %of_new1, %part;", "mul.f32 %l1, %l1, %of_new1;", 0, WrongResult),
        ("selp.f32 %alpha, 0f00000000, %alpha, %is_empty;", "", 0, WrongResult),
        ("add.s32 %row3, %row_first, 24;", "add.s32 %row3, %row_first, 16;", 0, Something),
        ("setp.lt.s32 %is_row3, %row3, %rows;", "setp.le.s32 %is_row3, %row3, %rows;", 0, Something),
        ("setp.gt.s32 %is_there, %left, 4;", "setp.ge.s32 %is_there, %left, 4;", 0, Something),
        ("mul.f32 %of_new2, %of_new2, %alpha;", "", 1, WrongResult),
        (
            "setp.eq.f32 %is_fresh, %of_old0, 0f00000000;",
            "setp.ne.f32 %is_fresh, 0f00000000, 0f00000000;",
            0,
            WrongResult,
        ),
        ("setp.gt.u32 %is_in, %channels, 40;", "setp.ge.u32 %is_in, %channels, 40;", 2, Something),
    ];
    let missed = mutants.iter().filter_map(|(from, to, nth, want)| {
        let (is_caught, all) = seen(kernel, &trials, (from, to, *nth), *want);
        (!is_caught).then(|| format!("`{from}` -> `{to}` ({nth}): wanted {want:?}, saw {all:?}"))
    });
    let missed: Vec<String> = missed.collect();
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), mutants.len(), missed.join("\n"));
}
