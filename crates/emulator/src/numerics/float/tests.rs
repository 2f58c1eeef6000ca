use super::*;
use crate::numerics::testing::{Random, pairs, special_f32, special_f64};

const OPERATIONS: [Operation; 7] =
    [Operation::Add, Operation::Sub, Operation::Mul, Operation::Fma, Operation::Div, Operation::Rcp, Operation::Sqrt];
const MODES: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

/// The CPU's own arithmetic in any rounding mode: an oracle that shares no code with ours.
#[cfg(target_arch = "x86_64")]
mod cpu {
    use super::{Operation, Rounding};
    use std::arch::asm;

    fn control(rounding: Rounding) -> u32 {
        // Exceptions masked, as always; bits 13 and 14 are the rounding mode.
        0x1f80
            | match rounding {
                Rounding::Nearest | Rounding::NearestAway => 0,
                Rounding::Down => 1 << 13,
                Rounding::Up => 2 << 13,
                Rounding::Zero => 3 << 13,
            }
    }

    macro_rules! oracle {
        ($name:ident, $float:ty, $s:literal) => {
            pub(super) fn $name(operation: Operation, a: $float, b: $float, c: $float, rounding: Rounding) -> $float {
                let (mode, mut saved) = (control(rounding), 0u32);
                let mut d = a;
                let one = 1.0 as $float;
                macro_rules! run {
                    ($text:literal, $x:ident) => {
                        // SAFETY: the control register is saved first and restored before the block ends.
                        unsafe {
                            asm!(
                                "stmxcsr [{saved}]", "ldmxcsr [{mode}]", concat!($text, $s, " {d}, {x}"), "ldmxcsr [{saved}]",
                                saved = in(reg) &mut saved, mode = in(reg) &mode, d = inout(xmm_reg) d, x = in(xmm_reg) $x,
                                options(nostack)
                            )
                        }
                    };
                }
                match operation {
                    Operation::Add => run!("adds", b),
                    Operation::Sub => run!("subs", b),
                    Operation::Mul => run!("muls", b),
                    Operation::Div => run!("divs", b),
                    Operation::Sqrt => run!("sqrts", a),
                    Operation::Rcp => {
                        d = one;
                        run!("divs", a)
                    }
                    Operation::Fma => {
                        // SAFETY: as above; the caller asked whether the CPU has FMA.
                        unsafe {
                            asm!(
                                "stmxcsr [{saved}]", "ldmxcsr [{mode}]", concat!("vfmadd213s", $s, " {d}, {b}, {c}"), "ldmxcsr [{saved}]",
                                saved = in(reg) &mut saved, mode = in(reg) &mode, d = inout(xmm_reg) d, b = in(xmm_reg) b,
                                c = in(xmm_reg) c, options(nostack)
                            )
                        }
                    }
                }
                d
            }
        };
    }
    oracle!(f32, f32, "s");
    oracle!(f64, f64, "d");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn all_modes_agree_with_the_cpu() {
    let has_fma = crate::numerics::has_avx2_fma();
    let mut random = Random::new(2);
    let mut triples = Vec::new();
    for (a, b) in pairs(&special_f32()) {
        triples.push([a, b, special_f32()[random.below(144) as usize]]);
    }
    for _ in 0..30_000 {
        triples.push([random.near_one(), random.near_one(), random.near_one()]);
        triples.push([random.coarse(), random.coarse(), random.coarse()]);
        triples.push([random.u32(), random.u32(), random.u32()]);
        // Products that underflow, sums that cancel.
        let a = random.u32() & 0x9fff_ffff;
        triples.push([a, random.u32() & 0x9fff_ffff, random.u32() & 0x80ff_ffff]);
        triples.push([a, a ^ 0x8000_0000 ^ random.below(4), a]);
    }
    for [a, b, c] in triples {
        for operation in OPERATIONS {
            if operation == Operation::Fma && !has_fma {
                continue;
            }
            for mode in MODES {
                let expected = cpu::f32(operation, f32::from_bits(a), f32::from_bits(b), f32::from_bits(c), mode);
                let expected = canonical_f32(expected);
                let got = rounded_f32(operation, a, b, c, mode);
                assert_eq!(got, expected, "{operation:?} {a:x} {b:x} {c:x} {mode:?}");
                let exact = finite(operation, Format::F32, a.into(), b.into(), c.into(), mode);
                assert!(exact.is_none_or(|bits| bits as u32 == expected), "{operation:?} {a:x} {b:x} {c:x} {mode:?}");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn all_modes_agree_with_the_cpu_in_double_precision() {
    let has_fma = crate::numerics::has_avx2_fma();
    let mut random = Random::new(3);
    let specials = special_f64();
    let mut triples: Vec<[u64; 3]> = Vec::new();
    for (a, b) in pairs(&specials) {
        triples.push([a, b, specials[random.below(specials.len() as u32) as usize]]);
    }
    for _ in 0..20_000 {
        let mut near = || random.u64() & 0x800f_ffff_ffff_ffff | (1023 - 30 + (random.u64() & 63)) << 52;
        triples.push([near(), near(), near()]);
        let coarse = [near(), near(), near()].map(|x| x & 0xffff_f000_0000_0000);
        triples.push(coarse);
        triples.push([random.u64(), random.u64(), random.u64()]);
        let a = random.u64() & 0x9fff_ffff_ffff_ffff;
        triples.push([a, random.u64() & 0x9fff_ffff_ffff_ffff, random.u64() & 0x801f_ffff_ffff_ffff]);
        triples.push([a, a ^ 1 << 63 ^ u64::from(random.below(4)), a]);
    }
    for [a, b, c] in triples {
        for operation in OPERATIONS {
            if operation == Operation::Fma && !has_fma {
                continue;
            }
            for mode in MODES {
                let expected = cpu::f64(operation, f64::from_bits(a), f64::from_bits(b), f64::from_bits(c), mode);
                let expected = canonical_f64(expected);
                let got = rounded_f64(operation, a, b, c, mode);
                assert_eq!(got, expected, "{operation:?} {a:x} {b:x} {c:x} {mode:?}");
                let exact = finite(operation, Format::F64, a, b, c, mode);
                assert!(exact.is_none_or(|bits| bits == expected), "{operation:?} {a:x} {b:x} {c:x} {mode:?}");
            }
        }
    }
}

#[test]
fn nan_is_canonical() {
    for (a, b) in pairs(&special_f32()) {
        let results =
            [add_f32(a, b), sub_f32(a, b), mul_f32(a, b), div_f32(a, b), fma_f32(a, b, a), rcp_f32(a), sqrt_f32(b)];
        for bits in results.into_iter().chain([min_f32(a, b), max_nan_f32(a, b), neg_f32(a), abs_f32(a)]) {
            assert!(!f32::from_bits(bits).is_nan() || bits == NAN_F32, "{a:x} {b:x}");
        }
    }
}

#[test]
fn minimum_and_maximum() {
    let nan = NAN_F32;
    let (zero, minus_zero, one) = (0u32, 0x8000_0000, 1f32.to_bits());
    assert_eq!(min_f32(zero, minus_zero), minus_zero);
    assert_eq!(min_f32(minus_zero, zero), minus_zero);
    assert_eq!(max_f32(zero, minus_zero), zero);
    assert_eq!(max_f32(minus_zero, zero), zero);
    assert_eq!(min_f32(0x7f80_0001, one), one);
    assert_eq!(min_f32(one, 0xffc0_0000), one);
    assert_eq!(max_f32(0x7f80_0001, 0xffc0_0000), nan);
    assert_eq!(max_nan_f32(one, 0xffc0_0000), nan);
    for (a, b) in pairs(&special_f32()) {
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        if x.is_nan() || y.is_nan() {
            assert_eq!([min_nan_f32(a, b), max_nan_f32(a, b)], [nan, nan]);
            continue;
        }
        let (low, high) = if x.total_cmp(&y).is_le() { (a, b) } else { (b, a) };
        assert_eq!([min_f32(a, b), max_f32(a, b), min_nan_f32(a, b), max_nan_f32(a, b)], [low, high, low, high]);
        let wide = |bits: u32| f64::from(f32::from_bits(bits)).to_bits();
        assert_eq!([min_f64(wide(a), wide(b)), max_f64(wide(a), wide(b))], [wide(low), wide(high)]);
    }
}

#[test]
fn choice_modifiers() {
    let lanes = |x: u32| [x; 32];
    let choose = |choice, a, b| choose_lanes(choice, &lanes(a), &lanes(b))[0];
    let plain = Choice::default();
    let (three, minus_five) = (3f32.to_bits(), (-5f32).to_bits());
    assert_eq!(choose(plain, three, minus_five), minus_five);
    assert_eq!(choose(Choice { max: true, xorsign_abs: true, ..plain }, three, minus_five), minus_five);
    assert_eq!(choose(Choice { xorsign_abs: true, ..plain }, three, minus_five), (-3f32).to_bits());
    assert_eq!(choose(Choice { xorsign_abs: true, ..plain }, minus_five, minus_five), 5f32.to_bits());
    assert_eq!(choose(Choice { max: true, ftz: true, ..plain }, 1, 0x8000_0001), 0);
    assert_eq!(choose(Choice { nan: true, ..plain }, three, 0x7f80_0001), NAN_F32);
}

#[test]
fn flushing_and_saturation() {
    for x in special_f32() {
        let v = f32::from_bits(x);
        let flushed = f32::from_bits(flush_f32(x));
        assert_eq!(flushed.is_sign_negative(), v.is_sign_negative());
        if v.is_subnormal() {
            assert_eq!(flushed, 0.0)
        } else {
            assert_eq!(flush_f32(x), x)
        }
        let expected = if v.is_nan() || v <= 0.0 { 0.0 } else { v.min(1.0) };
        assert_eq!(saturate_f32(x), expected.to_bits(), "{x:x}");
    }
}

#[test]
fn lanes_apply_every_modifier() {
    let mut random = Random::new(4);
    let specials = special_f32();
    for round in 0..600 {
        let mut pick = || {
            std::array::from_fn(|_| {
                if random.below(2) == 0 { specials[random.below(144) as usize] } else { random.near_one() }
            })
        };
        let (a, b, c): (Lanes, Lanes, Lanes) = (pick(), pick(), pick());
        let mode = Mode { rounding: MODES[round % 4], ftz: round % 3 == 0, saturate: round % 5 == 0 };
        let all = [
            (Operation::Add, add_lanes(mode, &a, &b)),
            (Operation::Sub, sub_lanes(mode, &a, &b)),
            (Operation::Mul, mul_lanes(mode, &a, &b)),
            (Operation::Fma, fma_lanes(mode, &a, &b, &c)),
            (Operation::Div, div_lanes(mode, &a, &b)),
            (Operation::Rcp, rcp_lanes(mode, &a)),
            (Operation::Sqrt, sqrt_lanes(mode, &a)),
        ];
        for (operation, d) in all {
            for i in 0..32 {
                let flush = |x: u32| if mode.ftz { flush_f32(x) } else { x };
                let value = flush(rounded_f32(operation, flush(a[i]), flush(b[i]), flush(c[i]), mode.rounding));
                let expected = if mode.saturate { saturate_f32(value) } else { value };
                assert_eq!(d[i], expected, "{operation:?} {mode:?} {:x} {:x} {:x}", a[i], b[i], c[i]);
            }
        }
    }
}

#[test]
fn signs_and_classes() {
    assert_eq!(copysign_f32(0x8000_0000, 5f32.to_bits()), (-5f32).to_bits());
    assert_eq!(copysign_f64(1f64.to_bits(), (-2f64).to_bits()), 2f64.to_bits());
    for x in special_f32() {
        let classes = [Class::Finite, Class::Infinite, Class::NotANumber].map(|class| testp_f32(class, x));
        assert_eq!(classes.iter().filter(|is| **is).count(), 1, "{x:x}");
        assert_ne!(testp_f32(Class::Number, x), testp_f32(Class::NotANumber, x));
        assert_eq!(testp_f32(Class::Subnormal, x), x & 0x7f80_0000 == 0 && x & 0x7f_ffff != 0);
        assert_eq!(testp_f32(Class::Normal, x), (1..255).contains(&(x >> 23 & 255)));
        let wide = f64::from(f32::from_bits(x));
        assert_eq!(testp_f64(Class::Normal, wide.to_bits()), wide.is_normal());
    }
}
