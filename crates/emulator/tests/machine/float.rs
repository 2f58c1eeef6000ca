//! Floating-point instructions over special values, against exact arithmetic rounded by [`crate::reals`].

use crate::harness::{B16, B32, F32 as R32, F64 as R64, Operand, Random, cross, elementwise};
use crate::reals::{BF16, F16, F32, Format, Mode, Real};

const NAN_F32: u64 = 0x7FFF_FFFF;
const NAN_HALF: u64 = 0x7FFF;

/// Zeros, subnormals, ties, extremes, infinities, NaNs, and a few values without pattern.
fn singles() -> Vec<u64> {
    let mut bits: Vec<u32> = [
        0.0,
        1.0,
        1.5,
        2.0,
        3.0,
        0.1,
        1.0 + f32::EPSILON,
        1.0 - f32::EPSILON / 2.0,
        16_777_215.0,
        16_777_216.0,
        1e-20,
        1e20,
        f32::MIN_POSITIVE,
        f32::MAX,
    ]
    .iter()
    .map(|value: &f32| value.to_bits())
    .collect();
    bits.extend([1, 0x007F_FFFF, 0x0040_0000, 0x3300_0000, f32::INFINITY.to_bits()]);
    bits.extend(bits.clone().iter().map(|value| value | 0x8000_0000));
    bits.extend([0x7FC0_0000, 0x7F80_0001, 0xFFC1_2345]);
    bits.extend(Random::new(4).words(4).iter().map(|word| word & 0xBFFF_FFFF | 0x2000_0000));
    bits.into_iter().map(u64::from).collect()
}

fn few_singles() -> Vec<u64> {
    [
        0x0000_0000,
        0x8000_0000,
        0x3F80_0000,
        0xBFC0_0000,
        0x0000_0001,
        0x8040_0000,
        0x7F7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0001,
        0x3380_0000,
        0x4B80_0000,
        0x0080_0000,
        0xB400_0001,
    ]
    .to_vec()
}

fn single(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

fn flush(bits: u64) -> u64 {
    if bits & 0x7F80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// The bits of an exactly representable f32, NaN in its one form.
fn single_bits(value: f64) -> u64 {
    if value.is_nan() { NAN_F32 } else { u64::from((value as f32).to_bits()) }
}

fn saturate(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
}

/// `add`, `mul` or `fma` of f64 that are no wider than f32, rounded once.
fn rounded(operation: &str, v: &[f64], format: Format, mode: Mode) -> f64 {
    let loose = match operation {
        "add" => v[0] + v[1],
        "sub" => v[0] - v[1],
        "mul" => v[0] * v[1],
        _ => v[0].mul_add(v[1], v[2]),
    };
    if !loose.is_finite() {
        return loose;
    }
    let real = match operation {
        "add" => Real::sum(v[0], v[1]),
        "sub" => Real::sum(v[0], -v[1]),
        "mul" => Real::exact(v[0] * v[1]),
        _ => Real::fused(v[0], v[1], v[2]),
    };
    let result = real.round(format, mode);
    // A sum of opposites is -0 when rounding down, and the CPU does not round down.
    let terms = match operation {
        "add" => [v[0], v[1]],
        "sub" => [v[0], -v[1]],
        "mul" => return result,
        _ => [v[0] * v[1], v[2]],
    };
    let cancels = result == 0.0 && terms[0] == -terms[1] && terms[0].is_sign_negative() != terms[1].is_sign_negative();
    if cancels { if mode == Mode::Rm { -0.0 } else { 0.0 } } else { result }
}

fn check(code: &str, to: Operand, from: &[Operand], rows: &[Vec<u64>], expected: impl Fn(&[u64]) -> u64) {
    for (row, found) in rows.iter().zip(elementwise(code, to, from, rows)) {
        let expected = expected(row);
        assert_eq!(found, expected, "{code} of {row:x?}: {found:#x} instead of {expected:#x}");
    }
}

#[test]
fn sums_and_products_of_f32() {
    let pairs = cross(&[&singles(), &singles()]);
    let triples = cross(&[&few_singles(), &few_singles(), &few_singles()]);
    for operation in ["add", "sub", "mul", "fma"] {
        let (rows, operands, sources) = match operation {
            "fma" => (&triples, "%d, %a, %b, %c", &[R32; 3][..]),
            _ => (&pairs, "%d, %a, %b", &[R32; 2][..]),
        };
        for mode in Mode::ALL {
            let exact = |row: &[u64]| {
                let values: Vec<f64> = row.iter().map(|bits| single(*bits)).collect();
                rounded(operation, &values, F32, mode)
            };
            let flushed = |row: &[u64]| {
                let values: Vec<f64> = row.iter().map(|bits| single(flush(*bits))).collect();
                flush(single_bits(rounded(operation, &values, F32, mode)))
            };
            let name = mode.name();
            check(&format!("{operation}.{name}.f32 {operands};"), R32, sources, rows, |row| single_bits(exact(row)));
            check(&format!("{operation}.{name}.ftz.f32 {operands};"), R32, sources, rows, flushed);
            let saturated = |row: &[u64]| single_bits(saturate(exact(row)));
            check(&format!("{operation}.{name}.sat.f32 {operands};"), R32, sources, rows, saturated);
        }
    }
    check("add.f32 %d, %a, %b;", R32, &[R32, R32], &pairs, |v| {
        single_bits(rounded("add", &[single(v[0]), single(v[1])], F32, Mode::Rn))
    });
}

#[test]
fn quotients_and_roots_of_f32() {
    let pairs = cross(&[&singles(), &singles()]);
    let ones: Vec<Vec<u64>> = cross(&[&singles()]);
    for mode in Mode::ALL {
        let name = mode.name();
        let quotient = |a: f64, b: f64| match a / b {
            loose if !loose.is_finite() || loose == 0.0 => loose,
            _ => Real::quotient(a, b).round(F32, mode),
        };
        let root = |a: f64| if a > 0.0 && a.is_finite() { Real::square_root(a).round(F32, mode) } else { a.sqrt() };
        check(&format!("div.{name}.f32 %d, %a, %b;"), R32, &[R32, R32], &pairs, |v| {
            single_bits(quotient(single(v[0]), single(v[1])))
        });
        check(&format!("rcp.{name}.f32 %d, %a;"), R32, &[R32], &ones, |v| single_bits(quotient(1.0, single(v[0]))));
        check(&format!("sqrt.{name}.f32 %d, %a;"), R32, &[R32], &ones, |v| single_bits(root(single(v[0]))));
        check(&format!("sqrt.{name}.ftz.f32 %d, %a;"), R32, &[R32], &ones, |v| {
            flush(single_bits(root(single(flush(v[0])))))
        });
    }
}

/// The smaller or larger of two numbers; -0 is smaller than +0.
fn extreme(a: f64, b: f64, larger: bool, nan_wins: bool) -> f64 {
    if a.is_nan() || b.is_nan() {
        return if nan_wins {
            f64::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    let a_first = a.total_cmp(&b).is_le();
    if a_first != larger { a } else { b }
}

#[test]
fn minima_signs_and_comparisons_of_f32() {
    let pairs = cross(&[&singles(), &singles()]);
    for (name, larger) in [("min", false), ("max", true)] {
        for (suffix, nan_wins) in [("", false), (".NaN", true)] {
            check(&format!("{name}{suffix}.f32 %d, %a, %b;"), R32, &[R32, R32], &pairs, |v| {
                single_bits(extreme(single(v[0]), single(v[1]), larger, nan_wins))
            });
            check(&format!("{name}.ftz{suffix}.f32 %d, %a, %b;"), R32, &[R32, R32], &pairs, |v| {
                single_bits(extreme(single(flush(v[0])), single(flush(v[1])), larger, nan_wins))
            });
        }
    }
    let numbers: Vec<Vec<u64>> = cross(&[&singles()]).into_iter().filter(|row| !single(row[0]).is_nan()).collect();
    check("neg.f32 %d, %a;", R32, &[R32], &numbers, |v| v[0] ^ 0x8000_0000);
    check("abs.f32 %d, %a;", R32, &[R32], &numbers, |v| v[0] & 0x7FFF_FFFF);
    check("neg.ftz.f32 %d, %a;", R32, &[R32], &numbers, |v| flush(v[0]) ^ 0x8000_0000);
    check("abs.ftz.f32 %d, %a;", R32, &[R32], &numbers, |v| flush(v[0]) & 0x7FFF_FFFF);
    check("copysign.f32 %d, %a, %b;", R32, &[R32, R32], &cross(&[&few_singles(), &few_singles()]), |v| {
        v[0] & 0x8000_0000 | v[1] & 0x7FFF_FFFF
    });

    type Test = fn(f64, f64) -> bool;
    let tests: [(&str, Test); 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
        ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
        ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    for (name, test) in tests {
        check(&format!("setp.{name}.f32 %p, %a, %b; selp.f32 %d, %a, %b, %p;"), R32, &[R32, R32], &pairs, |v| {
            if test(single(v[0]), single(v[1])) { v[0] } else { v[1] }
        });
        check(&format!("setp.{name}.ftz.f32 %p, %a, %b; selp.b32 %d, 1, 0, %p;"), B32, &[R32, R32], &pairs, |v| {
            u64::from(test(single(flush(v[0])), single(flush(v[1]))))
        });
    }
    check("testp.finite.f32 %p, %a; selp.b32 %d, 1, 0, %p;", B32, &[R32], &cross(&[&singles()]), |v| {
        u64::from(single(v[0]).is_finite())
    });
}

#[test]
fn double_precision() {
    let doubles: Vec<u64> =
        [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, -1e-300, 5e-324, f64::MAX, f64::INFINITY, f64::MIN_POSITIVE]
            .iter()
            .map(|value: &f64| value.to_bits())
            .collect();
    let pairs = cross(&[&doubles, &doubles]);
    let triples = cross(&[&doubles, &doubles, &doubles]);
    let double = f64::from_bits;
    // The payload of a NaN is not defined for f64.
    let check = |code: &str, from: &[Operand], rows: &[Vec<u64>], expected: &dyn Fn(&[u64]) -> f64| {
        for (row, found) in rows.iter().zip(elementwise(code, R64, from, rows)) {
            let (found, expected) = (double(found), expected(row));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{code} of {row:x?}: {found} instead of {expected}");
        }
    };
    check("add.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) + double(v[1]));
    check("add.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) + double(v[1]));
    check("sub.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) - double(v[1]));
    check("mul.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) * double(v[1]));
    check("div.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) / double(v[1]));
    check("fma.rn.f64 %d, %a, %b, %c;", &[R64; 3], &triples, &|v| double(v[0]).mul_add(double(v[1]), double(v[2])));
    check("sqrt.rn.f64 %d, %a;", &[R64], &cross(&[&doubles]), &|v| double(v[0]).sqrt());
    check("max.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| extreme(double(v[0]), double(v[1]), true, false));
    check("min.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| extreme(double(v[0]), double(v[1]), false, false));
    check("neg.f64 %d, %a;", &[R64], &cross(&[&doubles]), &|v| -double(v[0]));
}

/// A 16-bit format and its conversions.
#[derive(Clone, Copy)]
struct Half {
    name: &'static str,
    format: Format,
    decode: fn(u16) -> f64,
    encode: fn(f64) -> u16,
}

const HALVES: [Half; 2] = [
    Half {
        name: "f16",
        format: F16,
        decode: |bits| half::f16::from_bits(bits).to_f64(),
        encode: |value| half::f16::from_f64(value).to_bits(),
    },
    Half {
        name: "bf16",
        format: BF16,
        decode: |bits| half::bf16::from_bits(bits).to_f64(),
        encode: |value| half::bf16::from_f64(value).to_bits(),
    },
];

impl Half {
    fn values(self) -> Vec<u64> {
        let mut bits = vec![0, 1, 0x3FF, 0x7F, 0x80, 0x400, 0x3C00, 0x3C01, 0x3BFF, 0x3F80, 0x3F81, 0x4248, 0x5640];
        bits.extend([(self.encode)(f64::INFINITY), (self.encode)(f64::INFINITY) - 1]);
        bits.extend(bits.clone().iter().map(|value| value | 0x8000));
        bits.push((self.encode)(f64::INFINITY) + 1);
        bits.push(0x7FFF);
        bits.into_iter().map(u64::from).collect()
    }

    fn value(self, bits: u64) -> f64 {
        (self.decode)(bits as u16)
    }

    fn bits(self, value: f64) -> u64 {
        if value.is_nan() { NAN_HALF } else { u64::from((self.encode)(value)) }
    }
}

#[test]
fn arithmetic_of_f16_and_bf16() {
    for half in HALVES {
        let pairs = cross(&[&half.values(), &half.values()]);
        let few: Vec<u64> = half.values().into_iter().step_by(3).collect();
        let triples = cross(&[&few, &few, &few]);
        let calculate = |operation: &str, v: &[u64]| {
            let values: Vec<f64> = v.iter().map(|bits| half.value(*bits)).collect();
            half.bits(rounded(operation, &values, half.format, Mode::Rn))
        };
        for operation in ["add", "sub", "mul"] {
            let code = format!("{operation}.rn.{} %d, %a, %b;", half.name);
            check(&code, B16, &[B16, B16], &pairs, |v| calculate(operation, v));
            // Two at once: the second pair has its operands the other way round.
            let packed = format!(
                ".reg .b32 %x, %y; .reg .b16 %unused; mov.b32 %x, {{%a, %b}}; mov.b32 %y, {{%b, %a}};
                 {operation}.rn.{}x2 %x, %x, %y; mov.b32 {{%unused, %d}}, %x;",
                half.name
            );
            check(&packed, B16, &[B16, B16], &pairs, |v| calculate(operation, &[v[1], v[0]]));
        }
        let code = format!("fma.rn.{} %d, %a, %b, %c;", half.name);
        check(&code, B16, &[B16; 3], &triples, |v| calculate("fma", v));
        for (name, larger) in [("min", false), ("max", true)] {
            check(&format!("{name}.{} %d, %a, %b;", half.name), B16, &[B16, B16], &pairs, |v| {
                half.bits(extreme(half.value(v[0]), half.value(v[1]), larger, false))
            });
        }
        let numbers: Vec<Vec<u64>> =
            cross(&[&half.values()]).into_iter().filter(|v| !half.value(v[0]).is_nan()).collect();
        check(&format!("neg.{} %d, %a;", half.name), B16, &[B16], &numbers, |v| v[0] ^ 0x8000);
        check(&format!("abs.{} %d, %a;", half.name), B16, &[B16], &numbers, |v| v[0] & 0x7FFF);
        check(&format!("setp.lt.{} %p, %a, %b; selp.b32 %d, 1, 0, %p;", half.name), B32, &[B16, B16], &pairs, |v| {
            u64::from(half.value(v[0]) < half.value(v[1]))
        });
    }
}

#[test]
fn conversions_between_formats() {
    for half in HALVES {
        let name = half.name;
        let all: Vec<Vec<u64>> = (0..=0xFFFF).map(|bits| vec![bits]).collect();
        for (row, found) in all.iter().zip(elementwise(&format!("cvt.f32.{name} %d, %a;"), R32, &[B16], &all)) {
            let (found, expected) = (single(found), half.value(row[0]));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{name} {row:x?}: {found} instead of {expected}");
        }

        let mut rows = cross(&[&singles()]);
        rows.extend(Random::new(5).words(4000).iter().map(|word| vec![u64::from(*word)]));
        // Ties and their neighbours for every exponent of the 16-bit format.
        rows.extend((0..=0x7FFFu64).step_by(61).flat_map(|bits| {
            let middle = single_bits((half.value(bits) + half.value(bits + 1)) / 2.0);
            [middle.saturating_sub(1), middle, middle + 1].map(|bits| vec![bits])
        }));
        for mode in [Mode::Rn, Mode::Rz] {
            check(&format!("cvt.{}.{name}.f32 %d, %a;", mode.name()), B16, &[R32], &rows, |v| {
                let value = single(v[0]);
                half.bits(if value.is_finite() { Real::exact(value).round(half.format, mode) } else { value })
            });
        }
        let pairs = cross(&[&few_singles(), &few_singles()]);
        check(&format!("cvt.rn.{name}x2.f32 %d, %a, %b;"), B32, &[R32, R32], &pairs, |v| {
            let round = |bits| {
                let value = single(bits);
                half.bits(if value.is_finite() { Real::exact(value).round(half.format, Mode::Rn) } else { value })
            };
            round(v[0]) << 16 | round(v[1])
        });
    }
    check("cvt.rna.tf32.f32 %d, %a;", B32, &[R32], &cross(&[&singles()]), |v| {
        let special = v[0] & 0x7F80_0000 == 0x7F80_0000;
        if special && single(v[0]).is_nan() {
            return v[0] & !0x1FFF;
        }
        if special { v[0] } else { (v[0] + 0x1000) & !0x1FFF }
    });
    check("cvt.f64.f32 %d, %a;", R64, &[R32], &cross(&[&few_singles()[..9]]), |v| single(v[0]).to_bits());
    let doubles: Vec<Vec<u64>> =
        [0.0, -0.0, 0.1, -1e-46, 1e-40, 1e300, 3.4028235677973366e38, 1.0 + 2f64.powi(-24), f64::INFINITY]
            .iter()
            .map(|value: &f64| vec![value.to_bits()])
            .collect();
    for mode in Mode::ALL {
        check(&format!("cvt.{}.f32.f64 %d, %a;", mode.name()), R32, &[R64], &doubles, |v| {
            let value = f64::from_bits(v[0]);
            single_bits(if value.is_finite() { Real::exact(value).round(F32, mode) } else { value })
        });
    }
}

#[test]
fn conversions_between_numbers_and_integers() {
    let mut rows = cross(&[&singles()]);
    for value in [
        0.5,
        1.5,
        2.5,
        -0.5,
        -2.5,
        2147483520.0,
        2147483648.0,
        4294967040.0,
        4294967296.0,
        -2147483648.0,
        9.3e18,
        1.9e19f32,
    ] {
        rows.push(vec![u64::from(value.to_bits())]);
    }
    let whole = |value: f64, mode: Mode| match mode {
        Mode::Rn => value.round_ties_even(),
        Mode::Rz => value.trunc(),
        Mode::Rm => value.floor(),
        Mode::Rp => value.ceil(),
    };
    for mode in Mode::ALL {
        let name = mode.name();
        check(&format!("cvt.{name}i.s32.f32 %d, %a;"), B32, &[R32], &rows, |v| {
            u64::from(whole(single(v[0]), mode) as i32 as u32)
        });
        check(&format!("cvt.{name}i.u32.f32 %d, %a;"), B32, &[R32], &rows, |v| {
            u64::from(whole(single(v[0]), mode) as u32)
        });
        let numbers: Vec<Vec<u64>> = rows.iter().filter(|v| !single(v[0]).is_nan()).cloned().collect();
        let wide = crate::harness::B64;
        check(&format!("cvt.{name}i.s64.f32 %d, %a;"), wide, &[R32], &numbers, |v| {
            whole(single(v[0]), mode) as i64 as u64
        });
        check(&format!("cvt.{name}i.u64.f32 %d, %a;"), wide, &[R32], &numbers, |v| whole(single(v[0]), mode) as u64);
        check(&format!("cvt.{name}i.f32.f32 %d, %a;"), R32, &[R32], &numbers, |v| {
            single_bits(whole(single(v[0]), mode))
        });

        let words: Vec<Vec<u64>> =
            [0, 1, 16_777_217, 16_777_219, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFF00_0081u32]
                .iter()
                .map(|word| vec![u64::from(*word)])
                .collect();
        check(&format!("cvt.{name}.f32.u32 %d, %a;"), R32, &[B32], &words, |v| {
            single_bits(Real::exact(v[0] as f64).round(F32, mode))
        });
        check(&format!("cvt.{name}.f32.s32 %d, %a;"), R32, &[B32], &words, |v| {
            single_bits(Real::exact(f64::from(v[0] as i32)).round(F32, mode))
        });
    }
    check("cvt.rn.f16.u32 %d, %a;", B16, &[B32], &cross(&[&[0, 1, 2049, 2051, 65504, 65519, 65520, 1 << 31]]), |v| {
        HALVES[0].bits(Real::exact(v[0] as f64).round(F16, Mode::Rn))
    });
    check("cvt.rzi.s32.f16 %d, %a;", B32, &[B16], &cross(&[&[0, 0x3C00, 0xBE00, 0x7BFF, 0xFC00, 0x7C00]]), |v| {
        u64::from(HALVES[0].value(v[0]) as i32 as u32)
    });
    check("cvt.rn.f64.s64 %d, %a;", R64, &[crate::harness::B64], &cross(&[&[0, 1, u64::MAX, i64::MAX as u64]]), |v| {
        (v[0] as i64 as f64).to_bits()
    });
}

/// Distance in units of the last place of `exact`, measured in f32.
fn ulps(found: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let unit = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
    (f64::from(found) - exact).abs() / unit
}

#[test]
fn approximations_keep_their_promises() {
    let mut random = Random::new(6);
    let positive: Vec<Vec<u64>> =
        (0..3000).map(|_| vec![u64::from(random.word() % 0x7F00_0000 + 0x0080_0000)]).collect();
    let small: Vec<Vec<u64>> =
        (0..3000).map(|_| vec![u64::from((random.word() as f32 / 2f32.powi(27) - 16.0).to_bits())]).collect();
    let within = |code: &str, rows: &[Vec<u64>], limit: f64, exact: fn(f64) -> f64| {
        for (row, found) in rows.iter().zip(elementwise(code, R32, &[R32], rows)) {
            let exact = exact(single(row[0]));
            if exact.abs() < f64::from(f32::MIN_POSITIVE) || exact.abs() > f64::from(f32::MAX) {
                continue;
            }
            let error = ulps(f32::from_bits(found as u32), exact);
            assert!(error <= limit, "{code} of {:e}: {error} ulp", single(row[0]));
        }
    };
    within("ex2.approx.f32 %d, %a;", &small, 2.0, f64::exp2);
    within("ex2.approx.ftz.f32 %d, %a;", &small, 2.0, f64::exp2);
    within("rcp.approx.f32 %d, %a;", &positive, 1.0, |x| 1.0 / x);
    within("rsqrt.approx.f32 %d, %a;", &positive, 2.0, |x| 1.0 / x.sqrt());
    within("sqrt.approx.f32 %d, %a;", &positive, 2.0, f64::sqrt);
    within("tanh.approx.f32 %d, %a;", &small, 8192.0, f64::tanh);
    for (row, found) in positive.iter().zip(elementwise("lg2.approx.f32 %d, %a;", R32, &[R32], &positive)) {
        let (found, exact) = (single(found), single(row[0]).log2());
        let limit = if exact.abs() < 1.0 { 2f64.powi(-22) } else { 2f64.powi(-22) * exact.abs() };
        assert!((found - exact).abs() <= limit, "lg2 of {:e}", single(row[0]));
    }
    for (code, function) in
        [("sin.approx.f32 %d, %a;", f64::sin as fn(f64) -> f64), ("cos.approx.f32 %d, %a;", f64::cos)]
    {
        let near: Vec<Vec<u64>> =
            small.iter().filter(|row| single(row[0]).abs() < std::f64::consts::TAU).cloned().collect();
        for (row, found) in near.iter().zip(elementwise(code, R32, &[R32], &near)) {
            assert!((single(found) - function(single(row[0]))).abs() <= 2f64.powi(-20), "{code} of {}", single(row[0]));
        }
    }
    let pairs: Vec<Vec<u64>> =
        (0..2000).map(|i| vec![positive[i][0] % 0x2000_0000 + 0x3000_0000, small[i][0]]).collect();
    for code in ["div.approx.f32 %d, %a, %b;", "div.full.f32 %d, %a, %b;"] {
        for (row, found) in pairs.iter().zip(elementwise(code, R32, &[R32, R32], &pairs)) {
            let error = ulps(f32::from_bits(found as u32), single(row[0]) / single(row[1]));
            assert!(error <= 2.0, "{code} of {row:x?}: {error} ulp");
        }
    }
}

#[test]
fn approximations_of_special_values() {
    let inf = f32::INFINITY;
    let cases: [(&str, &[(f32, f32)]); 7] = [
        ("ex2", &[(0.0, 1.0), (-0.0, 1.0), (inf, inf), (-inf, 0.0), (200.0, inf), (-200.0, 0.0), (1.0, 2.0)]),
        ("lg2", &[(0.0, -inf), (-0.0, -inf), (inf, inf), (-1.0, f32::NAN), (1.0, 0.0), (8.0, 3.0)]),
        ("rcp", &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0), (1.0, 1.0), (-4.0, -0.25)]),
        ("rsqrt", &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, f32::NAN), (4.0, 0.5)]),
        ("sqrt", &[(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1.0, f32::NAN), (9.0, 3.0)]),
        ("tanh", &[(0.0, 0.0), (-0.0, -0.0), (inf, 1.0), (-inf, -1.0), (20.0, 1.0)]),
        ("cos", &[(0.0, 1.0), (inf, f32::NAN)]),
    ];
    for (name, values) in cases {
        let mut rows: Vec<Vec<u64>> = values.iter().map(|(input, _)| vec![u64::from(input.to_bits())]).collect();
        rows.push(vec![0x7FC0_0001]);
        let found = elementwise(&format!("{name}.approx.f32 %d, %a;"), R32, &[R32], &rows);
        for ((input, expected), found) in values.iter().zip(&found) {
            assert_eq!(*found, single_bits(f64::from(*expected)), "{name} of {input}: {:e}", single(*found));
        }
        assert_eq!(found.last(), Some(&NAN_F32), "{name} of NaN");
    }
}
