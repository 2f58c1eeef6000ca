use super::*;
use crate::numerics::testing::{Random, special_f32, special_f64};

const MODES: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];
const FLOATS: [Float; 4] = [Float::F16, Float::Bf16, Float::F32, Float::F64];

fn integers() -> Vec<Integer> {
    [8, 16, 32, 64].iter().flat_map(|bits| [Integer::new(*bits, false), Integer::new(*bits, true)]).collect()
}

/// `f64` bits of values that every source type can be rounded from.
fn values() -> Vec<u64> {
    let mut random = Random::new(10);
    let mut list = special_f64();
    for exponent in 0..70 {
        for offset in [-1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5] {
            for sign in [1.0, -1.0] {
                list.push((sign * (2f64.powi(exponent) + offset)).to_bits());
            }
        }
    }
    list.extend((0..5_000).map(|_| f64::from(f32::from_bits(random.near_one())).to_bits()));
    list
}

/// Rounds to an integer by the standard library alone.
fn whole(x: f64, mode: Rounding) -> f64 {
    match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

fn as_f64(float: Float, bits: u64) -> f64 {
    match float {
        Float::F16 => f64::from(f32::from_bits(crate::numerics::half::f16_to_f32(bits as u16))),
        Float::Bf16 => f64::from(f32::from_bits(crate::numerics::half::bf16_to_f32(bits as u16))),
        Float::F32 => f64::from(f32::from_bits(bits as u32)),
        Float::F64 => f64::from_bits(bits),
    }
}

#[test]
fn floats_become_integers_clamped() {
    for float in FLOATS {
        for value in values() {
            let bits = float_to_float(Float::F64, float, value, Rounding::Nearest);
            let x = as_f64(float, bits);
            for mode in MODES {
                for to in integers() {
                    let got = float_to_integer(float, to, bits, mode);
                    let r = whole(x, mode);
                    let expected = match (to.bits, to.signed) {
                        _ if x.is_nan() && float != Float::F64 && to.bits < 64 => 0,
                        (64, true) if x.is_nan() => i64::MIN as u64,
                        (64, false) if x.is_nan() => 1 << 63,
                        (32, true) if x.is_nan() => i32::MIN as u64,
                        (bits, true) if x.is_nan() => (-1i64 << (bits - 1)) as u64,
                        (bits, false) if x.is_nan() => 1 << (bits - 1),
                        (64, true) => r as i64 as u64,
                        (64, false) => r as u64,
                        (32, true) => r as i32 as u64,
                        (32, false) => u64::from(r as u32),
                        (16, true) => r as i16 as u64,
                        (16, false) => u64::from(r as u16),
                        (_, true) => r as i8 as u64,
                        (_, false) => u64::from(r as u8),
                    };
                    assert_eq!(got, expected, "{float:?} {x:e} {mode:?} {to:?}");
                }
            }
        }
    }
}

#[test]
fn fast_conversions_agree_with_the_general_ones() {
    let mut random = Random::new(11);
    let mut list = special_f32();
    list.extend((0..200_000).map(|_| random.u32()));
    list.extend((0..200_000).map(|_| random.near_one()));
    let (s32, u32_type) = (Integer::new(32, true), Integer::new(32, false));
    for x in list {
        for mode in MODES {
            assert_eq!(f32_to_s32(x, mode), float_to_integer(Float::F32, s32, x.into(), mode) as u32, "{x:x} {mode:?}");
            assert_eq!(
                f32_to_u32(x, mode),
                float_to_integer(Float::F32, u32_type, x.into(), mode) as u32,
                "{x:x} {mode:?}"
            );
            assert_eq!(integral_f32(x, mode), round_to_integral(Float::F32, x.into(), mode) as u32, "{x:x} {mode:?}");
        }
        let signed = s32.extend(x.into());
        assert_eq!(s32_to_f32_rn(x), integer_to_float(s32, Float::F32, signed, Rounding::Nearest) as u32, "{x:x}");
        assert_eq!(
            u32_to_f32_rn(x),
            integer_to_float(u32_type, Float::F32, x.into(), Rounding::Nearest) as u32,
            "{x:x}"
        );
    }
}

#[test]
fn whole_registers_become_integers() {
    let mut random = Random::new(14);
    let specials = special_f32();
    for round in 0..400 {
        let a: Lanes = std::array::from_fn(|lane| match lane % 3 {
            0 => specials[random.below(144) as usize],
            1 => random.near_one(),
            _ => random.u32(),
        });
        for mode in MODES {
            let (signed, ftz) = (round % 2 == 0, round % 3 == 0);
            let d = integer_lanes(signed, ftz, mode, &a);
            assert_eq!(d, integer_body(signed, ftz, mode, &a));
            for lane in 0..32 {
                let x = if ftz { flush_f32(a[lane]) } else { a[lane] };
                let expected = float_to_integer(Float::F32, Integer::new(32, signed), x.into(), mode) as u32;
                assert_eq!(d[lane], expected, "{x:x} {mode:?}");
            }
        }
    }
}

#[test]
fn rounding_to_integral_keeps_type_sign_and_specials() {
    for float in FLOATS {
        for value in values() {
            let bits = float_to_float(Float::F64, float, value, Rounding::Nearest);
            let x = as_f64(float, bits);
            for mode in MODES {
                let got = round_to_integral(float, bits, mode);
                if x.is_nan() {
                    assert_eq!(got, float.nan());
                } else {
                    assert_eq!(as_f64(float, got).to_bits(), whole(x, mode).to_bits(), "{float:?} {x:e} {mode:?}");
                }
            }
        }
    }
}

#[test]
fn integers_become_floats() {
    let mut random = Random::new(12);
    let mut raws = vec![0u64, 1, 2, u64::MAX, i64::MAX as u64, i64::MIN as u64, 0x8080_8080_8080_8080, 0xffff_ffff];
    raws.extend((0..20_000).map(|i| random.u64() >> (i % 64)));
    for raw in raws {
        for from in integers() {
            let value = from.value(raw);
            let convert = |to, mode| integer_to_float(from, to, raw, mode);
            assert_eq!(convert(Float::F64, Rounding::Nearest), (value as f64).to_bits());
            assert_eq!(convert(Float::F32, Rounding::Nearest) as u32, (value as f32).to_bits());
            let back = |mode| f64::from_bits(convert(Float::F64, mode)) as i128;
            assert!(back(Rounding::Down) <= value && value <= back(Rounding::Up), "{value}");
            assert!(back(Rounding::Zero).abs() <= value.abs());
            // f16 overflows from 65520 up.
            let half = convert(Float::F16, Rounding::Nearest) as u16 & 0x7fff;
            assert_eq!(half == 0x7c00, value.unsigned_abs() >= 65520, "{value}");
        }
    }
}

#[test]
fn integers_narrow_by_cutting_or_clamping() {
    let mut random = Random::new(13);
    let mut raws =
        vec![0u64, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, u64::MAX, 1 << 31, 1 << 63, (1 << 31) - 1];
    raws.extend((0..5_000).map(|i| random.u64() >> (i % 64)));
    for raw in raws {
        for from in integers() {
            for to in integers() {
                let value = from.value(raw);
                let mask = (1u128 << to.bits) - 1;
                let cut = integer_to_integer(from, to, raw, false);
                assert_eq!(u128::from(cut) & mask, value as u128 & mask);
                assert_eq!(to.value(cut), to.value(cut & mask as u64));
                let clamped = to.value(integer_to_integer(from, to, raw, true));
                assert_eq!(clamped, value.max(to.min()).min(to.max()), "{from:?} {to:?} {raw:x}");
            }
        }
    }
}

#[test]
fn float_to_float_agrees_with_the_cpu() {
    for value in values() {
        let x = f64::from_bits(value);
        let narrow = float_to_float(Float::F64, Float::F32, value, Rounding::Nearest) as u32;
        assert_eq!(narrow, crate::numerics::float::canonical_f32(x as f32));
        let wide = float_to_float(Float::F32, Float::F64, narrow.into(), Rounding::Zero);
        assert_eq!(wide, crate::numerics::float::canonical_f64(f64::from(x as f32)));
    }
    assert_eq!(float_to_float(Float::F32, Float::Bf16, 0xff80_0000, Rounding::Up), 0xff80);
    assert_eq!(float_to_float(Float::F64, Float::F16, 1e9f64.to_bits(), Rounding::Down), 0x7bff);
}

#[test]
fn modifiers() {
    assert_eq!(Float::F32.flush(0x8000_0001), 0x8000_0000);
    assert_eq!(Float::F16.flush(1), 1);
    for float in FLOATS {
        for value in values() {
            let bits = float_to_float(Float::F64, float, value, Rounding::Nearest);
            let x = as_f64(float, bits);
            let expected = if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) };
            assert_eq!(as_f64(float, float.saturate(bits)).to_bits(), expected.to_bits(), "{float:?} {x:e}");
        }
    }
}
