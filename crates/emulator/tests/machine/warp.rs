//! Shuffles, votes, matches and reductions of a warp.

use crate::harness::{Arg, Machine, Random, kernel, options};
use lookback_emulator::launch::{Convergence, FaultKind, Options};

/// Runs one warp; `%a` is each lane's input and `%d` its output.
fn warp(code: &str, input: &[u32], options: &Options) -> Vec<u32> {
    let body = format!(
        ".reg .b32 %a, %d, %lane; .reg .pred %p, %q; .reg .b64 %in, %out, %offset;
         ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out]; mov.u32 %lane, %laneid;
         mul.wide.u32 %offset, %lane, 4; add.u64 %in, %in, %offset; add.u64 %out, %out, %offset;
         ld.global.u32 %a, [%in]; {code} st.global.u32 [%out], %d;"
    );
    let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out", &body));
    let out = machine.uninitialized(128);
    machine.succeed(1, 32, &[Arg::U64(machine.words(input)), Arg::U64(out)], options);
    machine.read(out, 32)
}

/// Every lane runs the code; under random convergence it has to meet at the `.sync` instruction first.
fn check(code: &str, input: &[u32], expected: impl Fn(usize) -> u32) {
    for options in [Options::default(), options(|o| (o.convergence, o.quantum) = (Convergence::Random(8), 2))] {
        let expected: Vec<u32> = (0..32).map(&expected).collect();
        assert_eq!(warp(code, input, &options), expected, "{code}");
    }
}

#[test]
fn shuffles() {
    let input = Random::new(7).words(32);
    // For each mode: the source lane and whether it lies within the segment.
    type Source = fn(i32, i32, i32, i32) -> (i32, bool);
    let modes: [(&str, Source); 4] = [
        ("up", |lane, by, _, limit| (lane - by, lane - by >= limit)),
        ("down", |lane, by, _, limit| (lane + by, lane + by <= limit)),
        ("bfly", |lane, by, _, limit| (lane ^ by, lane ^ by <= limit)),
        ("idx", |_, by, low, limit| (low | by, low | by <= limit)),
    ];
    for (mode, source) in modes {
        for width in [32, 16, 8, 4] {
            for by in [0, 1, 2, 3, 5, 8, 15, 16, 31] {
                let segment = 32 - width;
                let clamp = if mode == "up" { 0 } else { 31 };
                let control = segment << 8 | clamp;
                let pick = |lane: usize| {
                    let lane = lane as i32;
                    let (low, limit) = (lane & segment, lane & segment | clamp & !segment);
                    let by = if mode == "idx" { by & !segment } else { by };
                    let (from, inside) = source(lane, by, low, limit);
                    if inside { (from as usize, true) } else { (lane as usize, false) }
                };
                let code = format!("shfl.sync.{mode}.b32 %d, %a, {by}, {control}, -1;");
                check(&code, &input, |lane| input[pick(lane).0]);
                let code = format!("shfl.sync.{mode}.b32 %d|%p, %a, {by}, {control}, -1; selp.b32 %d, 1, 0, %p;");
                check(&code, &input, |lane| u32::from(pick(lane).1));
            }
        }
    }
    check("shfl.sync.idx.b32 %d, %a, %a, 31, -1;", &input, |lane| input[input[lane] as usize & 31]);
}

#[test]
fn shuffle_reads_only_lanes_that_take_part() {
    let body = ".reg .b32 %d, %lane; .reg .pred %p; mov.u32 %lane, %laneid; setp.lt.u32 %p, %lane, 8;
        @%p shfl.sync.idx.b32 %d, %lane, 9, 31, 0x000000FF;";
    let machine = Machine::new(&kernel("", body));
    let fault = machine.run(1, 32, &[], &Options::default()).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::IllegalInstruction | FaultKind::Divergence), "{fault}");
    assert_eq!(fault.line, 7);
}

#[test]
fn votes() {
    let mixed: Vec<u32> = (0..32).map(|lane| lane % 3).collect();
    for (input, all, any) in [(mixed.clone(), 0, 1), (vec![0; 32], 0, 0), (vec![5; 32], 1, 1)] {
        let uniform = u32::from(all == 1 || any == 0);
        let test = "setp.ne.u32 %p, %a, 0;";
        check(&format!("{test} vote.sync.all.pred %q, %p, -1; selp.b32 %d, 1, 0, %q;"), &input, |_| all);
        check(&format!("{test} vote.sync.any.pred %q, %p, -1; selp.b32 %d, 1, 0, %q;"), &input, |_| any);
        check(&format!("{test} vote.sync.uni.pred %q, %p, -1; selp.b32 %d, 1, 0, %q;"), &input, |_| uniform);
        let ballot = input.iter().enumerate().map(|(lane, value)| u32::from(*value != 0) << lane).sum();
        check(&format!("{test} vote.sync.ballot.b32 %d, %p, -1;"), &input, |_| ballot);
        check(&format!("{test} vote.sync.ballot.b32 %d, !%p, -1;"), &input, |_| !ballot);
    }
    let halves = "setp.lt.u32 %p, %lane, 16; @%p bra LOW; vote.sync.ballot.b32 %d, %p, 0xFFFF0000; bra JOIN;
        LOW: vote.sync.ballot.b32 %d, %p, 0x0000FFFF; JOIN:";
    check(halves, &mixed, |lane| if lane < 16 { 0xFFFF } else { 0 });
}

#[test]
fn matches() {
    let input: Vec<u32> = (0..32).map(|lane| lane * lane % 5).collect();
    let same = |lane: usize| (0..32).map(|other| u32::from(input[other] == input[lane]) << other).sum();
    check("match.any.sync.b32 %d, %a, -1;", &input, same);
    check(".reg .b64 %w; mul.wide.u32 %w, %a, 0x10000001; match.any.sync.b64 %d, %w, -1;", &input, same);
    check("match.all.sync.b32 %d|%p, %a, -1; @!%p mov.b32 %d, 9;", &input, |_| 9);
    check("match.all.sync.b32 %d|%p, %a, -1; @!%p mov.b32 %d, 9;", &[3; 32], |_| u32::MAX);
}

#[test]
fn reductions() {
    let input = Random::new(9).words(32);
    let signed: Vec<i32> = input.iter().map(|value| *value as i32).collect();
    let fold = |f: fn(u32, u32) -> u32| input.iter().copied().reduce(f).unwrap();
    for (code, expected) in [
        ("redux.sync.add.u32", fold(u32::wrapping_add)),
        ("redux.sync.add.s32", fold(u32::wrapping_add)),
        ("redux.sync.min.u32", fold(u32::min)),
        ("redux.sync.max.u32", fold(u32::max)),
        ("redux.sync.min.s32", *signed.iter().min().unwrap() as u32),
        ("redux.sync.max.s32", *signed.iter().max().unwrap() as u32),
        ("redux.sync.and.b32", fold(|a, b| a & b)),
        ("redux.sync.or.b32", fold(|a, b| a | b)),
        ("redux.sync.xor.b32", fold(|a, b| a ^ b)),
    ] {
        check(&format!("{code} %d, %a, -1;"), &input, |_| expected);
    }
    let low: u32 = input[..7].iter().copied().reduce(u32::wrapping_add).unwrap();
    check("mov.b32 %d, 1; setp.lt.u32 %p, %lane, 7; @%p redux.sync.add.u32 %d, %a, 0x7F;", &input, |lane| {
        if lane < 7 { low } else { 1 }
    });
}

#[test]
fn special_registers() {
    let zero = [0; 32];
    check("mov.u32 %d, %laneid;", &zero, |lane| lane as u32);
    check("mov.u32 %d, %lanemask_eq;", &zero, |lane| 1 << lane);
    check("mov.u32 %d, %lanemask_lt;", &zero, |lane| (1 << lane) - 1);
    check("mov.u32 %d, %lanemask_le;", &zero, |lane| ((2u64 << lane) - 1) as u32);
    check("mov.u32 %d, %lanemask_gt;", &zero, |lane| !((2u64 << lane) - 1) as u32);
    check("mov.u32 %d, %lanemask_ge;", &zero, |lane| !((1u32 << lane) - 1));
    check("mov.u32 %d, WARP_SZ;", &zero, |_| 32);
    check(".reg .b32 %m; elect.sync %m|%p, -1; selp.b32 %d, 1, 0, %p;", &zero, |lane| u32::from(lane == 0));

    let body = ".reg .b32 %x, %linear, %i, %n, %v<12>; .reg .b64 %out, %offset; ld.param.u64 %out, [p_out];
        mov.u32 %v0, %tid.x; mov.u32 %v1, %tid.y; mov.u32 %v2, %tid.z;
        mov.u32 %v3, %ctaid.x; mov.u32 %v4, %ctaid.y; mov.u32 %v5, %ctaid.z;
        mov.u32 %v6, %ntid.x; mov.u32 %v7, %ntid.y; mov.u32 %v8, %ntid.z;
        mov.u32 %v9, %nctaid.x; mov.u32 %v10, %nctaid.y; mov.u32 %v11, %nctaid.z;
        mad.lo.u32 %linear, %v2, %v7, %v1; mad.lo.u32 %linear, %linear, %v6, %v0;
        mad.lo.u32 %i, %v5, %v10, %v4; mad.lo.u32 %i, %i, %v9, %v3;
        mul.lo.u32 %n, %v6, %v7; mul.lo.u32 %n, %n, %v8; mad.lo.u32 %linear, %i, %n, %linear;
        mul.wide.u32 %offset, %linear, 32; add.u64 %out, %out, %offset;
        st.global.v4.u32 [%out], {%v0, %v1, %v2, %v3}; mov.u32 %x, %warpid;
        st.global.v4.u32 [%out+16], {%v4, %v5, %x, %v11};";
    let machine = Machine::new(&kernel(".param .u64 p_out", body));
    let out = machine.uninitialized(2 * 3 * 2 * 24 * 32);
    let config = lookback_emulator::launch::LaunchConfig {
        grid: [2, 3, 2],
        block: [4, 3, 2],
        dynamic_shared: 0,
        cooperative: false,
    };
    let params = crate::harness::pack(&[Arg::U64(out)]);
    lookback_emulator::launch::launch(&machine.program, &machine.memory, &config, &params, &Options::default())
        .unwrap();
    let found = machine.read(out, 12 * 24 * 8);
    for (index, words) in found.chunks_exact(8).enumerate() {
        let (thread, cta) = (index as u32 % 24, index as u32 / 24);
        let expected = [thread % 4, thread / 4 % 3, thread / 12, cta % 2, cta / 2 % 3, cta / 6, 0, 2];
        assert_eq!(words, expected, "{index}");
    }
}
