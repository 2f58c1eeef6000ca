//! Atomic operations of every type, in global and shared memory.

use crate::harness::{Arg, Machine, Random, kernel, options};
use lookback_emulator::launch::{CtaOrder, Options};

/// Each of 64 threads of one CTA applies `operation` once with its own operand to one cell of global or of shared
/// memory; the cell is returned, and the old values that the threads saw.
fn apply(operation: &str, ty: &str, shared: bool, start: u64, operands: &[u64]) -> (u64, Vec<u64>) {
    let wide = ty.ends_with("64");
    let register = if wide { "b64" } else { "b32" };
    let space = if shared { "shared" } else { "global" };
    let cell = if shared { "[cell]" } else { "[%global]" };
    let extra = if operation == "cas" { ", 1000" } else { "" };
    let ordering = if ty.starts_with('f') && ty != "f32" { ".noftz" } else { "" };
    let ordering = if ty == "f64" { "" } else { ordering };
    let body = format!(
        ".shared .align 8 .{register} cell; .reg .{register} %a, %old, %new; .reg .b32 %thread; .reg .pred %first;
         .reg .b64 %in, %olds, %global, %offset;
         ld.param.u64 %in, [p_in]; ld.param.u64 %olds, [p_olds]; ld.param.u64 %global, [p_cell];
         mov.u32 %thread, %tid.x; mul.wide.u32 %offset, %thread, {bytes};
         add.u64 %in, %in, %offset; add.u64 %olds, %olds, %offset; ld.global.{register} %a, [%in];
         setp.eq.u32 %first, %thread, 0;
         @%first ld.global.{register} %new, [%global]; @%first st.shared.{register} [cell], %new; bar.sync 0;
         atom.{space}.{operation}{ordering}.{ty} %old, {cell}, %a{extra};
         bar.sync 0; st.global.{register} [%olds], %old;
         @!%first ret; {write_back}",
        bytes = if wide { 8 } else { 4 },
        write_back = if shared {
            format!("ld.shared.{register} %new, [cell]; st.global.{register} [%global], %new;")
        } else {
            String::new()
        },
    );
    let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_olds, .param .u64 p_cell", &body));
    let place = |values: &[u64]| {
        if wide {
            machine.doubles(values)
        } else {
            machine.words(&values.iter().map(|v| *v as u32).collect::<Vec<_>>())
        }
    };
    let (input, olds, cell) = (place(operands), machine.uninitialized(64 * 8), place(&[start]));
    machine.succeed(1, 64, &[Arg::U64(input), Arg::U64(olds), Arg::U64(cell)], &Options::default());
    let read = |pointer, count| {
        if wide {
            machine.read_doubles(pointer, count)
        } else {
            machine.read(pointer, count).into_iter().map(u64::from).collect()
        }
    };
    (read(cell, 1)[0], read(olds, 64))
}

#[test]
fn integers() {
    type Step = fn(u64, u64) -> u64;
    let cases: [(&str, &str, Step); 22] = [
        ("add", "u32", |x, a| u64::from((x as u32).wrapping_add(a as u32))),
        ("add", "s32", |x, a| u64::from((x as u32).wrapping_add(a as u32))),
        ("add", "u64", u64::wrapping_add),
        ("min", "u32", |x, a| x.min(a)),
        ("max", "u32", |x, a| x.max(a)),
        ("min", "s32", |x, a| u64::from((x as i32).min(a as i32) as u32)),
        ("max", "s32", |x, a| u64::from((x as i32).max(a as i32) as u32)),
        ("min", "u64", |x, a| x.min(a)),
        ("max", "u64", |x, a| x.max(a)),
        ("min", "s64", |x, a| (x as i64).min(a as i64) as u64),
        ("max", "s64", |x, a| (x as i64).max(a as i64) as u64),
        ("and", "b32", |x, a| x & a),
        ("or", "b32", |x, a| x | a),
        ("xor", "b32", |x, a| x ^ a),
        ("and", "b64", |x, a| x & a),
        ("or", "b64", |x, a| x | a),
        ("xor", "b64", |x, a| x ^ a),
        ("exch", "b32", |_, a| a),
        ("exch", "b64", |_, a| a),
        ("inc", "u32", |x, a| if x >= a { 0 } else { x + 1 }),
        ("dec", "u32", |x, a| if x == 0 || x > a { a } else { x - 1 }),
        ("cas", "b32", |x, a| if x == a { 1000 } else { x }),
    ];
    let mut random = Random::new(10);
    for (operation, ty, step) in cases {
        for shared in [false, true] {
            let mask = if ty.ends_with("64") { u64::MAX } else { 0xFFFF_FFFF };
            let small = matches!(operation, "inc" | "dec" | "cas");
            let draw = |value: u64| if small { value % 9 } else { value & mask };
            let operands: Vec<u64> = (0..64).map(|_| draw(random.next())).collect();
            let start = draw(random.next());
            let (last, olds) = apply(operation, ty, shared, start, &operands);
            // The order of the lanes is free. In any order, what a lane leaves is what the next one sees: the values
            // seen and the last one are the first one and the values left.
            let left = olds.iter().zip(&operands).map(|(old, operand)| step(*old, *operand));
            let mut left: Vec<u64> = left.chain([start]).collect();
            let mut seen = [olds.as_slice(), &[last]].concat();
            left.sort_unstable();
            seen.sort_unstable();
            assert_eq!(seen, left, "{operation}.{ty}");
        }
    }
    let (last, _) = apply("cas", "b64", false, 7, &[7; 64]);
    assert_eq!(last, 1000);
}

#[test]
fn floats() {
    for shared in [false, true] {
        let operands: Vec<u64> = (1..=64).map(|value| u64::from((value as f32 * 0.5).to_bits())).collect();
        let (last, olds) = apply("add", "f32", shared, 0, &operands);
        assert_eq!(f32::from_bits(last as u32), 1040.0);
        assert!(olds.iter().filter(|old| **old == 0).count() == 1);
        let operands: Vec<u64> = (1..=64).map(|value| (f64::from(value) * 0.5).to_bits()).collect();
        assert_eq!(f64::from_bits(apply("add", "f64", shared, 0, &operands).0), 1040.0);
        let pair = u64::from(half::f16::from_f32(2.0).to_bits()) << 16 | u64::from(half::f16::from_f32(0.25).to_bits());
        let (last, _) = apply("add", "f16x2", shared, 0, &[pair; 64]);
        assert_eq!(
            last,
            u64::from(half::f16::from_f32(128.0).to_bits()) << 16 | u64::from(half::f16::from_f32(16.0).to_bits())
        );
    }
    let bf16 = half::bf16::from_f32(1.0).to_bits();
    let text = kernel(
        ".param .u64 p_cell",
        ".reg .b64 %at; .reg .b32 %x; ld.param.u64 %at, [p_cell]; mov.b32 %x, 0x3F803F80;
         red.global.add.noftz.bf16x2 [%at], %x;",
    );
    let machine = Machine::new(&text);
    let cell = machine.zeros(1);
    machine.succeed(1, 64, &[Arg::U64(cell)], &Options::default());
    let sum = u32::from(half::bf16::from_f32(64.0 * half::bf16::from_bits(bf16).to_f32()).to_bits());
    assert_eq!(machine.read(cell, 1), [sum << 16 | sum]);
}

#[test]
fn global_additions_of_f32_flush_subnormals_and_shared_ones_do_not() {
    let tiny = u64::from(1u32 << 20);
    let mut operands = vec![0; 64];
    operands[5] = tiny;
    assert_eq!(apply("add", "f32", false, 0, &operands).0, 0);
    assert_eq!(apply("add", "f32", true, 0, &operands).0, tiny);
}

#[test]
fn vector_additions() {
    let text = kernel(
        ".param .u64 p_cells",
        ".reg .b64 %at; .reg .f32 %x; .reg .b32 %lane; ld.param.u64 %at, [p_cells]; mov.u32 %lane, %tid.x;
         cvt.rn.f32.u32 %x, %lane;
         red.global.add.v4.f32 [%at], {%x, 0f3F800000, 0f40000000, 0f00000000};
         red.global.add.v2.f32 [%at+8], {%x, %x};",
    );
    let machine = Machine::new(&text);
    let cells = machine.zeros(4);
    machine.succeed(2, 32, &[Arg::U64(cells)], &options(|o| o.order = CtaOrder::Random(2)));
    let found: Vec<f32> = machine.read(cells, 4).into_iter().map(f32::from_bits).collect();
    assert_eq!(found, [992.0, 64.0, 128.0 + 992.0, 992.0]);
}

#[test]
fn every_cta_is_counted_once_whatever_the_order() {
    let text = kernel(
        ".param .u64 p_count, .param .u64 p_seen",
        ".reg .b64 %count, %seen, %offset; .reg .b32 %ticket; .reg .pred %p; .reg .b32 %lane;
         mov.u32 %lane, %tid.x; setp.ne.u32 %p, %lane, 0; @%p ret;
         ld.param.u64 %count, [p_count]; ld.param.u64 %seen, [p_seen];
         atom.global.inc.u32 %ticket, [%count], 1000;
         mul.wide.u32 %offset, %ticket, 4; add.u64 %seen, %seen, %offset; red.global.add.u32 [%seen], 1;",
    );
    for order in [CtaOrder::InOrder, CtaOrder::Reversed, CtaOrder::Random(1)] {
        let machine = Machine::new(&text);
        let (count, seen) = (machine.zeros(1), machine.zeros(100));
        machine.succeed(100, 64, &[Arg::U64(count), Arg::U64(seen)], &options(|o| (o.order, o.quantum) = (order, 2)));
        assert_eq!(machine.read(count, 1), [100]);
        assert_eq!(machine.read(seen, 100), [1; 100]);
    }
}
