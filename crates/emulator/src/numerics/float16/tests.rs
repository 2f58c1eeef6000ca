use super::*;
use crate::numerics::Rounding;
use crate::numerics::exact::{Exact, Format};
use crate::numerics::testing::Random;

const FORMATS: [(Half, Format); 2] = [(Half::F16, Format::F16), (Half::Bf16, Format::BF16)];

/// The operation in exact arithmetic, where all operands and the result are numbers.
fn model(operation: HalfOperation, format: Format, a: u16, b: u16, c: u16) -> Option<u16> {
    let exact = |h: u16| Exact::from_bits(format, h.into());
    let (a, b) = (exact(a)?, exact(b)?);
    let nearest = Rounding::Nearest;
    let value = match operation {
        HalfOperation::Add => a.plus(b, nearest),
        HalfOperation::Sub => a.plus(b.negated(), nearest),
        HalfOperation::Mul => a.times(b),
        HalfOperation::Fma => a.times(b).plus(exact(c)?, nearest),
    };
    Some(value.round(format, nearest) as u16)
}

fn operate(operation: HalfOperation, format: Half, a: u16, b: u16, c: u16) -> u16 {
    match operation {
        HalfOperation::Add => add_half(format, a, b),
        HalfOperation::Sub => sub_half(format, a, b),
        HalfOperation::Mul => mul_half(format, a, b),
        HalfOperation::Fma => fma_half(format, a, b, c),
    }
}

const OPERATIONS: [HalfOperation; 4] = [HalfOperation::Add, HalfOperation::Sub, HalfOperation::Mul, HalfOperation::Fma];

fn specials(format: Format) -> Vec<u16> {
    let infinity = format.infinity() as u16;
    let one = Exact::from_integer(1).round(format, Rounding::Nearest) as u16;
    let unit = 1 << (format.precision - 1);
    let positive = [
        0,
        1,
        2,
        3,
        unit - 1,
        unit,
        unit + 1,
        2 * unit,
        one - unit,
        one - 1,
        one,
        one + 1,
        one + unit,
        infinity - unit,
        infinity - 2,
        infinity - 1,
        infinity,
        infinity + 1,
        0x7fff,
    ];
    positive.iter().flat_map(|h| [*h, h | 0x8000]).collect()
}

#[test]
fn one_rounding_per_operation() {
    let mut random = Random::new(7);
    for (half, format) in FORMATS {
        let list = specials(format);
        let mut triples = Vec::new();
        for a in &list {
            for b in &list {
                triples.extend(list.iter().map(|c| [*a, *b, *c]));
            }
        }
        for _ in 0..400_000 {
            let bits = random.u64();
            triples.push([bits as u16, (bits >> 16) as u16, (bits >> 32) as u16]);
            // Operands near one, where ties and cancellation are common; and an addend far away from an exact tie.
            let near = |shift: u32| (bits >> shift) as u16 & 0x83ff | 0x3c00;
            triples.push([near(0), near(16), near(32) ^ 0x8000]);
            triples.push([near(0) & 0xfff0, near(16) & 0xfff0, (bits >> 48) as u16 & 0x80ff]);
        }
        for [a, b, c] in triples {
            for operation in OPERATIONS {
                let got = operate(operation, half, a, b, c);
                match model(operation, format, a, b, c) {
                    Some(expected) => assert_eq!(got, expected, "{operation:?} {half:?} {a:x} {b:x} {c:x}"),
                    None => {
                        // Infinities and NaN: f64 has the same rules, and nothing finite overflows in it.
                        let x = [a, b, c].map(|h| f64::from(f32::from_bits(half.widen(h))));
                        let value = match operation {
                            HalfOperation::Add => x[0] + x[1],
                            HalfOperation::Sub => x[0] - x[1],
                            HalfOperation::Mul => x[0] * x[1],
                            HalfOperation::Fma => x[0] * x[1] + x[2],
                        };
                        assert_eq!(
                            got,
                            half.narrow((value as f32).to_bits()),
                            "{operation:?} {half:?} {a:x} {b:x} {c:x}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn narrowing_from_f64_rounds_once() {
    let mut random = Random::new(8);
    for (half, format) in FORMATS {
        for h in 0..0x7fffu16 {
            let Some(value) = Exact::from_bits(format, h.into()) else { continue };
            if value.significand == 0 {
                continue;
            }
            // The middle of this number and the next, and the two f64 beside it.
            let x = f64::from(f32::from_bits(half.widen(h)));
            let unit = 2f64.powi(value.exponent);
            for x in
                [x + unit / 2.0, (x + unit / 2.0).next_up(), (x + unit / 2.0).next_down(), -(x + unit / 2.0).next_up()]
            {
                let expected = Exact::from_bits(Format::F64, x.to_bits()).map(|e| e.round(format, Rounding::Nearest));
                assert_eq!(Some(u64::from(half.narrow_f64(x))), expected, "{x:e}");
            }
        }
        for _ in 0..200_000 {
            let x =
                f64::from_bits(random.u64() & 0x800f_ffff_ffff_ffff | u64::from(1023 - 160 + random.below(320)) << 52);
            let expected = Exact::from_bits(Format::F64, x.to_bits()).map(|e| e.round(format, Rounding::Nearest));
            assert_eq!(Some(u64::from(half.narrow_f64(x))), expected, "{x:e}");
        }
        assert_eq!(half.narrow_f64(f64::NAN), NAN_HALF);
        assert_eq!(u64::from(half.narrow_f64(f64::NEG_INFINITY)), format.infinity() | 0x8000);
        assert_eq!(u64::from(half.narrow_f64(1e300)), format.infinity());
        assert_eq!(half.narrow_f64(-1e-300), 0x8000);
    }
}

#[test]
fn lanes_apply_every_modifier_on_both_halves() {
    let mut random = Random::new(9);
    for round in 0..400u32 {
        let (half, _) = FORMATS[(round % 2) as usize];
        let mode = HalfMode { ftz: round % 3 == 0, saturate: round % 5 == 0, relu: round % 7 == 0 };
        let (a, b, c) = (random.lanes(), random.lanes(), random.lanes());
        for operation in OPERATIONS {
            let d = operate_lanes(operation, half, true, mode, [&a, &b, &c]);
            assert_eq!(d, operate_body(operation, half, true, mode, [&a, &b, &c]));
            let low = operate_lanes(operation, half, false, mode, [&a, &b, &c]);
            for i in 0..32 {
                let flush = |h: u16| if mode.ftz { flush_half(half, h) } else { h };
                let one = |shift: u32| {
                    let x = [a[i], b[i], c[i]].map(|word| flush((word >> shift) as u16));
                    let mut h = flush(operate(operation, half, x[0], x[1], x[2]));
                    if mode.relu {
                        h = relu_half(h);
                    }
                    if mode.saturate { saturate_half(half, h) } else { h }
                };
                assert_eq!(d[i], pair(one(16), one(0)), "{operation:?} {half:?} {mode:?} lane {i}");
                assert_eq!(low[i], u32::from(one(0)));
            }
        }
    }
}

#[test]
fn choices_agree_with_f32() {
    for (half, format) in FORMATS {
        let list = specials(format);
        for a in &list {
            for b in &list {
                for bits in 0..16 {
                    let choice = Choice {
                        max: bits & 1 != 0,
                        ftz: bits & 2 != 0,
                        nan: bits & 4 != 0,
                        xorsign_abs: bits & 8 != 0,
                    };
                    let got = choose_half(half, choice, *a, *b);
                    // A flushed half is flushed beforehand here, because its f32 is not subnormal.
                    let flush = |h: u16| if choice.ftz { flush_half(half, h) } else { h };
                    // A NaN keeps its sign, which the exclusive or sees.
                    let wide = |h: u16| [half.widen(flush(h)) | u32::from(h & 0x8000) << 16; 32];
                    let plain = Choice { ftz: false, ..choice };
                    let expected = crate::numerics::float::choose_lanes(plain, &wide(*a), &wide(*b))[0];
                    assert_eq!(got, half.narrow(expected), "{choice:?} {a:x} {b:x}");
                }
            }
        }
        let lanes = |high: u16, low: u16| [pair(high, low); 32];
        let choice = Choice { max: true, ..Choice::default() };
        let one = list[20];
        assert_eq!(choose_half_lanes(half, true, choice, &lanes(one, 0), &lanes(0, one)), lanes(one, one));
        assert_eq!(choose_half_lanes(half, false, choice, &lanes(one, 0), &lanes(0, one)), lanes(0, one));
    }
}

#[test]
fn signs_and_saturation() {
    for (half, format) in FORMATS {
        let infinity = format.infinity() as u16;
        for h in 0..=0xffffu16 {
            let nan = h & 0x7fff > infinity;
            assert_eq!(neg_half(half, h), if nan { NAN_HALF } else { h ^ 0x8000 });
            assert_eq!(abs_half(half, h), if nan { NAN_HALF } else { h & 0x7fff });
            let x = f32::from_bits(half.widen(h));
            let expected = if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) };
            assert_eq!(half.widen(saturate_half(half, h)), expected.to_bits(), "{h:x}");
            assert_eq!(flush_half(half, h) != h, h & infinity == 0 && h & 0x7fff != 0);
        }
    }
}
