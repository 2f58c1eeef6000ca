//! The layouts are probed one element at a time; the arithmetic is compared with a model in whole numbers that knows nothing
//! of the fast path. Both find elements by the formulas of the ISA, not by [`layout`].

use super::*;
use crate::numerics::exact::{Exact, Format};
use crate::numerics::testing::Random;
use crate::numerics::{NAN_F32, NAN_HALF, Rounding};

/// Every form that there is.
fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for k in [16, 8] {
        forms.extend([
            Form::Half { format: Half::F16, k },
            Form::Half { format: Half::Bf16, k },
            Form::HalfToHalf { k },
        ]);
    }
    forms.extend([Form::Tf32 { k: 8 }, Form::Tf32 { k: 4 }]);
    for k in [32, 16] {
        for signs in 0..4 {
            let (a_signed, b_signed) = (signs & 1 != 0, signs & 2 != 0);
            forms.push(Form::Bytes { k, a_signed, b_signed, saturate: k == 16 });
        }
    }
    for operation in [BitOperation::And, BitOperation::Xor] {
        forms.extend([256, 128].map(|k| Form::Bits { k, operation }));
        forms.push(Form::Bits8x8 { operation });
    }
    forms
}

fn depth(form: Form) -> usize {
    match form {
        Form::Half { k, .. }
        | Form::HalfToHalf { k }
        | Form::Tf32 { k }
        | Form::Bytes { k, .. }
        | Form::Bits { k, .. } => k,
        Form::Bits8x8 { .. } => 128,
    }
}

/// Bits of one element of A and B.
fn width(form: Form) -> usize {
    match form {
        Form::Half { .. } | Form::HalfToHalf { .. } => 16,
        Form::Tf32 { .. } => 32,
        Form::Bytes { .. } => 8,
        Form::Bits { .. } | Form::Bits8x8 { .. } => 1,
    }
}

/// Register, lane and lowest bit of A's element `(row, column)`. A register holds eight rows of 32 bits times four lanes.
fn place_a(form: Form, row: usize, column: usize) -> (usize, usize, usize) {
    let per_register = 32 / width(form);
    let span = 4 * per_register;
    let register = if form.registers()[2] == 2 && depth(form) == 128 { 0 } else { row / 8 + 2 * (column / span) };
    (register, 4 * (row % 8) + column % span / per_register, column % per_register * width(form))
}

/// The same for B's element `(row, column)`.
fn place_b(form: Form, row: usize, column: usize) -> (usize, usize, usize) {
    let per_register = 32 / width(form);
    let span = 4 * per_register;
    (row / span, 4 * column + row % span / per_register, row % per_register * width(form))
}

/// The same for an element of C or D.
fn place_c(form: Form, row: usize, column: usize) -> (usize, usize, usize) {
    let lane = 4 * (row % 8) + column / 2;
    match form {
        Form::HalfToHalf { .. } => (row / 8, lane, 16 * (column % 2)),
        _ => (2 * (row / 8) + column % 2, lane, 0),
    }
}

fn rows(form: Form) -> usize {
    if matches!(form, Form::Bits8x8 { .. }) { 8 } else { 16 }
}

type Fragments = ([Lanes; 4], [Lanes; 2], [Lanes; 4]);

fn run(form: Form, arithmetic: MmaArithmetic, (a, b, c): &Fragments) -> [Lanes; 4] {
    execute(form, arithmetic, [&a[0], &a[1], &a[2], &a[3]], [&b[0], &b[1]], [&c[0], &c[1], &c[2], &c[3]])
}

/// The bits of one, as an operand and as a result.
fn one(form: Form) -> (u32, u32) {
    match form {
        Form::Half { format: Half::F16, .. } => (0x3c00, 0x3f80_0000),
        Form::Half { format: Half::Bf16, .. } => (0x3f80, 0x3f80_0000),
        Form::HalfToHalf { .. } => (0x3c00, 0x3c00),
        Form::Tf32 { .. } => (0x3f80_0000, 0x3f80_0000),
        _ => (1, 1),
    }
}

#[test]
fn one_hot_probes_find_every_element() {
    let zero: Fragments = ([[0; 32]; 4], [[0; 32]; 2], [[0; 32]; 4]);
    for form in forms() {
        if matches!(
            form,
            Form::Bits { operation: BitOperation::Xor, .. } | Form::Bits8x8 { operation: BitOperation::Xor }
        ) {
            continue;
        }
        let (operand, result) = one(form);
        for arithmetic in [MmaArithmetic::Fma, MmaArithmetic::Hopper] {
            let mut random = Random::new(40);
            let all: Vec<[usize; 3]> = (0..rows(form) * 8 * depth(form))
                .map(|i| [i / 8 % rows(form), i % 8, i / 8 / rows(form)])
                .filter(|[_, _, p]| depth(form) <= 32 || random.below(8) == 0 || *p % 31 == 0)
                .collect();
            for [i, j, p] in all {
                let mut x = zero;
                let (register, lane, shift) = place_a(form, i, p);
                x.0[register][lane] = operand << shift;
                let (register, lane, shift) = place_b(form, p, j);
                x.1[register][lane] = operand << shift;
                let mut expected = [[0; 32]; 4];
                let (register, lane, shift) = place_c(form, i, j);
                expected[register][lane] = result << shift;
                assert_eq!(run(form, arithmetic, &x), expected, "{form:?} {i} {j} {p}");
            }
        }
    }
}

#[test]
fn the_accumulator_passes_through() {
    let mut random = Random::new(41);
    for form in forms() {
        if matches!(
            form,
            Form::Bits { operation: BitOperation::Xor, .. } | Form::Bits8x8 { operation: BitOperation::Xor }
        ) {
            continue;
        }
        for arithmetic in [MmaArithmetic::Fma, MmaArithmetic::Hopper] {
            // Finite in every type, and not minus zero, to which a product of zeros adds up to plus zero.
            let c = std::array::from_fn(|r| {
                std::array::from_fn(
                    |_| if r < form.registers()[2] { random.u32() & 0xbbff_bbff | 0x0400_0400 } else { 0 },
                )
            });
            let x = ([[0; 32]; 4], [[0; 32]; 2], c);
            assert_eq!(run(form, arithmetic, &x), c, "{form:?}");
        }
    }
}

#[test]
fn integers_are_exact() {
    let mut random = Random::new(42);
    for form in forms() {
        if width(form) > 8 {
            continue;
        }
        for round in 0..40 {
            let dense = round % 4 == 0;
            let mut lanes = || -> Lanes { std::array::from_fn(|_| if dense { u32::MAX } else { random.u32() }) };
            let (a, b): ([Lanes; 4], [Lanes; 2]) = (std::array::from_fn(|_| lanes()), std::array::from_fn(|_| lanes()));
            // Close to the limits, so that clamping and wrapping differ.
            let c: [Lanes; 4] = std::array::from_fn(|_| {
                std::array::from_fn(|_| {
                    (if random.below(2) == 0 { i32::MAX as u32 } else { i32::MIN as u32 })
                        .wrapping_add(random.below(65536))
                        .wrapping_sub(32768)
                })
            });
            let d = run(form, MmaArithmetic::Fma, &(a, b, c));
            for i in 0..rows(form) {
                for j in 0..8 {
                    let mut sum = 0i64;
                    for p in 0..depth(form) {
                        let (ra, la, sa) = place_a(form, i, p);
                        let (rb, lb, sb) = place_b(form, p, j);
                        let (x, y) = (a[ra][la] >> sa, b[rb][lb] >> sb);
                        sum += match form {
                            Form::Bytes { a_signed, b_signed, .. } => {
                                let value =
                                    |v: u32, signed| if signed { i64::from(v as i8) } else { i64::from(v as u8) };
                                value(x, a_signed) * value(y, b_signed)
                            }
                            Form::Bits { operation, .. } | Form::Bits8x8 { operation } => i64::from(match operation {
                                BitOperation::And => x & y & 1,
                                BitOperation::Xor => (x ^ y) & 1,
                            }),
                            _ => 0,
                        };
                    }
                    let (r, l, _) = place_c(form, i, j);
                    let total = sum + i64::from(c[r][l] as i32);
                    let saturates = matches!(form, Form::Bytes { saturate: true, .. });
                    let total = if saturates { total.clamp(i32::MIN.into(), i32::MAX.into()) } else { total };
                    assert_eq!(d[r][l], total as u32, "{form:?} {i} {j}");
                }
            }
        }
    }
}

/// The formats of factors and accumulator of a floating-point form.
fn formats(form: Form) -> (Format, Format) {
    match form {
        Form::Half { format: Half::F16, .. } => (Format::F16, Format::F32),
        Form::Half { format: Half::Bf16, .. } => (Format::BF16, Format::F32),
        Form::HalfToHalf { .. } => (Format::F16, Format::F16),
        _ => (Format { precision: 11, min_exponent: -126, max_exponent: 127 }, Format::F32),
    }
}

/// A factor as a whole number, if it is finite, and as a float for the rules of NaN and infinity.
type Factor = (Option<Exact>, f64);

/// One element of a fragment as its exact value; `None` for infinity and NaN. A `tf32` is its upper 19 bits.
fn factor(form: Form, word: u32, shift: usize) -> Factor {
    let bits = if matches!(form, Form::Tf32 { .. }) { word >> 13 } else { word >> shift & 0xffff };
    let exact = Exact::from_bits(formats(form).0, bits.into());
    (exact, special(formats(form).0, bits.into(), exact))
}

/// A stand-in with the sign and class of a number, for the sums in which only infinities and NaN matter.
fn special(format: Format, bits: u64, exact: Option<Exact>) -> f64 {
    let sign = if bits & format.sign() != 0 { -1.0 } else { 1.0 };
    match exact {
        Some(value) if value.significand == 0 => 0.0,
        Some(_) => sign,
        None if bits & (format.sign() - 1) == format.infinity() => sign * f64::INFINITY,
        None => f64::NAN,
    }
}

/// Hopper's sum in whole numbers: units of `2^(largest - 25)`, each term cut off toward zero.
fn hopper(form: Form, pairs: &[(Factor, Factor)], c: u32) -> u32 {
    let (factors, accumulator) = formats(form);
    let c_exact = Exact::from_bits(accumulator, c.into());
    let class = special(accumulator, c.into(), c_exact) + pairs.iter().map(|(x, y)| x.1 * y.1).sum::<f64>();
    let all: Option<Vec<(Exact, Exact)>> = pairs.iter().map(|(x, y)| Some((x.0?, y.0?))).collect();
    let (Some(all), Some(c)) = (all, c_exact) else {
        let infinity = accumulator.infinity() as u32;
        return match class {
            x if x.is_nan() => {
                if accumulator == Format::F16 {
                    NAN_HALF.into()
                } else {
                    NAN_F32
                }
            }
            x if x > 0.0 => infinity,
            _ => infinity | accumulator.sign() as u32,
        };
    };
    // An encoding's exponent: that of its unit, moved to where the implicit bit is or would be.
    let exponent = |x: Exact, format: Format| x.exponent + format.precision as i32 - 1;
    let mut largest = if c.significand == 0 { -126 } else { exponent(c, accumulator) };
    for (x, y) in &all {
        let zero = x.significand == 0 || y.significand == 0;
        largest = largest.max(if zero { -126 } else { exponent(*x, factors) + exponent(*y, factors) });
    }
    let unit = largest - 25;
    let cut = |x: Exact| {
        let magnitude = x.in_units(unit, Rounding::Zero) as i128;
        if x.negative { -magnitude } else { magnitude }
    };
    let sum: i128 = cut(c) + all.iter().map(|(x, y)| cut(x.times(*y))).sum::<i128>();
    let exact = Exact { exponent: unit, ..Exact::from_integer(sum) };
    if accumulator == Format::F16 {
        return exact.round(Format::F16, Rounding::Nearest) as u32;
    }
    // Truncation, except that what reaches 2^128 is infinite.
    let top = exact.exponent + 127 - exact.significand.leading_zeros() as i32;
    if exact.significand != 0 && top > 127 {
        return 0x7f80_0000 | u32::from(exact.negative) << 31;
    }
    exact.round(Format::F32, Rounding::Zero) as u32
}

/// Random fragments: exponents within `span` of each other, now and then zeros, subnormals, and with `wild` anything at all.
fn fragments(random: &mut Random, form: Form, span: u32, wild: bool) -> Fragments {
    let (factors, accumulator) = formats(form);
    let mut number = |format: Format| -> u32 {
        let stored = format.precision - 1;
        let fields = (format.max_exponent - format.min_exponent) as u32 + 1;
        let fraction = random.u32() & ((1 << stored) - 1);
        let bias = format.max_exponent as u32;
        let field = match random.below(40) {
            0 => 0,
            1 if wild => random.below(fields + 2),
            _ => bias.saturating_sub(span / 2) + random.below(span.max(1)),
        };
        let fraction = if random.below(20) == 0 { 0 } else { fraction };
        let sign = if random.below(2) == 0 { 0 } else { format.sign() as u32 };
        sign | field.min(fields + u32::from(wild)) << stored | fraction
    };
    let mut word = |format: Format, form: Form, is_factor: bool| match form {
        Form::Tf32 { .. } if is_factor => number(format) << 13 | 0x0abc,
        _ if format.precision == 24 => number(format),
        _ => number(format) << 16 | number(format),
    };
    let mut lanes = |format, is_factor| -> Lanes { std::array::from_fn(|_| word(format, form, is_factor)) };
    (
        std::array::from_fn(|_| lanes(factors, true)),
        std::array::from_fn(|_| lanes(factors, true)),
        std::array::from_fn(|_| lanes(accumulator, false)),
    )
}

#[test]
fn hopper_agrees_with_whole_numbers() {
    let mut random = Random::new(43);
    for form in forms() {
        if width(form) <= 8 {
            continue;
        }
        for round in 0..160 {
            let (_, accumulator) = formats(form);
            let widest = if formats(form).0 == Format::F16 { 28 } else { 250 };
            let span = [1, 3, 8, 20, 60, 120, 200, 250][round % 8].min(widest);
            let mut x = fragments(&mut random, form, span, round % 5 == 4);
            if round % 16 == 3 {
                // Tiny or empty accumulators, and products that are all zero.
                x.2 =
                    x.2.map(|r| r.map(|w| if accumulator == Format::F32 { w & 0x80ff_ffff } else { w & 0x83ff_83ff }));
                x.0 = if round % 32 == 3 { [[0; 32]; 4] } else { x.0 };
            }
            let d = run(form, MmaArithmetic::Hopper, &x);
            for i in 0..16 {
                for j in 0..8 {
                    let pairs: Vec<_> = (0..depth(form))
                        .map(|p| {
                            let (ra, la, sa) = place_a(form, i, p);
                            let (rb, lb, sb) = place_b(form, p, j);
                            (factor(form, x.0[ra][la], sa), factor(form, x.1[rb][lb], sb))
                        })
                        .collect();
                    let (r, l, s) = place_c(form, i, j);
                    let part = |word: u32| if accumulator == Format::F16 { word >> s & 0xffff } else { word };
                    let expected = hopper(form, &pairs, part(x.2[r][l]));
                    assert_eq!(part(d[r][l]), expected, "{form:?} round {round} at {i} {j}");
                }
            }
        }
    }
}

#[test]
fn fma_is_a_chain_in_the_order_of_k() {
    let mut random = Random::new(44);
    for form in forms() {
        if width(form) <= 8 {
            continue;
        }
        for round in 0..60 {
            let x = fragments(&mut random, form, [2, 8, 24, 28][round % 4], round % 5 == 4);
            let d = run(form, MmaArithmetic::Fma, &x);
            for i in 0..16 {
                for j in 0..8 {
                    let value = |word: u32, shift: usize| {
                        let half = (word >> shift) as u16;
                        f32::from_bits(match form {
                            Form::Tf32 { .. } => word & 0xffff_e000,
                            Form::Half { format, .. } => format.widen(half),
                            _ => Half::F16.widen(half),
                        })
                    };
                    let (r, l, s) = place_c(form, i, j);
                    let narrow = matches!(form, Form::HalfToHalf { .. });
                    let mut sum = if narrow { value(x.2[r][l], s) } else { f32::from_bits(x.2[r][l]) };
                    for p in 0..depth(form) {
                        let (ra, la, sa) = place_a(form, i, p);
                        let (rb, lb, sb) = place_b(form, p, j);
                        sum = value(x.0[ra][la], sa).mul_add(value(x.1[rb][lb], sb), sum);
                    }
                    let bits = if sum.is_nan() { NAN_F32 } else { sum.to_bits() };
                    let (got, expected) =
                        if narrow { (d[r][l] >> s & 0xffff, Half::F16.narrow(bits).into()) } else { (d[r][l], bits) };
                    assert_eq!(got, expected, "{form:?} round {round} at {i} {j}");
                }
            }
        }
    }
}

#[test]
fn registers_and_products() {
    assert_eq!(Form::Half { format: Half::F16, k: 16 }.registers(), [4, 2, 4]);
    assert_eq!(Form::HalfToHalf { k: 8 }.registers(), [2, 1, 2]);
    assert_eq!(Form::Tf32 { k: 4 }.registers(), [2, 1, 4]);
    let bytes = Form::Bytes { k: 32, a_signed: true, b_signed: false, saturate: false };
    assert_eq!((bytes.registers(), bytes.products()), ([4, 2, 4], 4096));
    let bits = Form::Bits8x8 { operation: BitOperation::And };
    assert_eq!((bits.registers(), bits.products()), ([1, 1, 2], 8192));
    assert_eq!(Form::Half { format: Half::Bf16, k: 8 }.products(), 1024);
}

#[test]
fn every_cpu_gives_the_same_bits() {
    let mut random = Random::new(45);
    for round in 0..40 {
        for form in forms() {
            let (a, b, c) = &fragments(&mut random, form, 20, round % 3 == 0);
            let (a, b, c) = ([&a[0], &a[1], &a[2], &a[3]], [&b[0], &b[1]], [&c[0], &c[1], &c[2], &c[3]]);
            let plain = match form {
                Form::Half { format, k } => {
                    [fast::half_body(format, k, a, b, c), hopper::half_body::<false>(format, k, a, b, c)]
                }
                Form::HalfToHalf { k } => {
                    [fast::half_to_half_body(k, a, b, c), hopper::half_to_half_body::<false>(k, a, b, c)]
                }
                Form::Tf32 { k } => [fast::tf32_body(k, a, b, c), hopper::tf32_body::<false>(k, a, b, c)],
                Form::Bytes { k, a_signed, b_signed, saturate } => {
                    [integer::bytes_body(k, a_signed, b_signed, saturate, a, b, c); 2]
                }
                Form::Bits { .. } | Form::Bits8x8 { .. } => continue,
            };
            let dispatched = [MmaArithmetic::Fma, MmaArithmetic::Hopper].map(|how| execute(form, how, a, b, c));
            assert_eq!(dispatched, plain, "{form:?}");
        }
    }
}
