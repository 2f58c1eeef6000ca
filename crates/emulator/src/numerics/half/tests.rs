use super::*;
use crate::numerics::testing::{Random, special_f32};

/// Numbers on, beside and between the grid points of every narrow format.
fn interesting() -> Vec<u32> {
    let mut random = Random::new(5);
    let mut list = special_f32();
    for top in 0..=0xffffu32 {
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            list.push(top << 16 | low);
        }
    }
    list.extend((0..200_000).map(|_| random.u32()));
    list.extend((0..200_000).map(|_| random.near_one()));
    list
}

#[test]
fn widening_agrees_with_the_half_crate_everywhere() {
    for h in 0..=0xffffu16 {
        let canonical = |x: f32| if x.is_nan() { NAN_F32 } else { x.to_bits() };
        assert_eq!(f16_to_f32(h), canonical(::half::f16::from_bits(h).to_f32()), "{h:x}");
        assert_eq!(bf16_to_f32(h), canonical(::half::bf16::from_bits(h).to_f32()), "{h:x}");
    }
}

#[test]
fn narrowing_agrees_with_the_half_crate_and_with_exact_rounding() {
    for x in interesting() {
        let v = f32::from_bits(x);
        let canonical = |h: u16, nan: bool| if nan { NAN_HALF } else { h };
        assert_eq!(f32_to_f16_rn(x), canonical(::half::f16::from_f32(v).to_bits(), v.is_nan()), "{x:x}");
        assert_eq!(f32_to_bf16_rn(x), canonical(::half::bf16::from_f32(v).to_bits(), v.is_nan()), "{x:x}");
        assert_eq!(f32_to_f16_rn(x), narrow(x, Format::F16, Rounding::Nearest), "{x:x}");
        assert_eq!(f32_to_bf16_rn(x), narrow(x, Format::BF16, Rounding::Nearest), "{x:x}");
    }
}

#[test]
fn directed_narrowing_brackets() {
    for x in interesting() {
        let v = f32::from_bits(x);
        if v.is_nan() {
            assert_eq!([f32_to_f16(x, Rounding::Up), f32_to_bf16(x, Rounding::Zero)], [NAN_HALF; 2]);
            continue;
        }
        for bf16 in [false, true] {
            let to = |mode| if bf16 { f32_to_bf16(x, mode) } else { f32_to_f16(x, mode) };
            let back = |h| f32::from_bits(if bf16 { bf16_to_f32(h) } else { f16_to_f32(h) });
            let (down, up, zero) = (to(Rounding::Down), to(Rounding::Up), to(Rounding::Zero));
            assert!(back(down) <= v && v <= back(up), "{x:x}");
            assert_eq!(zero, if v.is_sign_negative() { up } else { down }, "{x:x}");
            assert!(down.abs_diff(up) <= 1, "{x:x}: {down:x} {up:x}");
            assert_eq!(down == up, back(down) == v, "{x:x}");
        }
    }
}

#[test]
fn tf32_rounds_as_its_instructions_do() {
    for x in interesting() {
        let v = f32::from_bits(x);
        let (rn, rna, rz) = (f32_to_tf32_rn(x), f32_to_tf32_rna(x), f32_to_tf32_rz(x));
        if v.is_nan() {
            assert_eq!((rn, rz), (NAN_F32, NAN_F32));
            assert_eq!(rna, x & 0xffff_e000);
            continue;
        }
        assert_eq!((rn | rna | rz) & 0x1fff, 0);
        if v.is_infinite() {
            assert_eq!([rn, rna, rz], [x; 3]);
            continue;
        }
        // The units of a number's own binade are 2^13 of its last places, whatever the exponent.
        let (units, rest) = (x >> 13, x & 0x1fff);
        assert_eq!(rz, units << 13);
        assert_eq!(rna, (units + u32::from(rest >= 0x1000)) << 13);
        assert_eq!(rn, (units + u32::from(rest > 0x1000 || (rest == 0x1000 && units & 1 == 1))) << 13);
    }
}

/// The number that a byte means, by the definition of the format.
fn eight_value(b: u8, format: Eight) -> f64 {
    let (fraction_bits, bias) = match format {
        Eight::E4m3 => (3, 7),
        Eight::E5m2 => (2, 15),
    };
    let field = i32::from(b & 0x7f) >> fraction_bits;
    let fraction = f64::from(b & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
    let magnitude =
        if field == 0 { fraction * 2f64.powi(1 - bias) } else { (1.0 + fraction) * 2f64.powi(field - bias) };
    let nan = match format {
        Eight::E4m3 => b & 0x7f == 0x7f,
        Eight::E5m2 => b & 0x7f > 0x7c,
    };
    let value = if nan {
        f64::NAN
    } else if format == Eight::E5m2 && b & 0x7f == 0x7c {
        f64::INFINITY
    } else {
        magnitude
    };
    if b & 0x80 == 0 { value } else { -value }
}

#[test]
fn bytes_widen_exactly() {
    for format in [Eight::E4m3, Eight::E5m2] {
        for b in 0..=255u8 {
            let got = f64::from(f32::from_bits(f16_to_f32(eight_to_f16(b, format))));
            let expected = eight_value(b, format);
            assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "{b:x} {format:?}");
        }
        let [nan_high, nan_low] = [unpack_eight(0xff00, format, false), unpack_eight(0x007f, format, true)];
        assert_eq!((nan_high, nan_low), (0x7fff_0000, 0x7fff));
    }
    assert_eq!(unpack_eight(0xb838, Eight::E4m3, true), 0x3c00);
}

#[test]
fn bytes_take_the_nearest_number() {
    for format in [Eight::E4m3, Eight::E5m2] {
        let infinity = if format == Eight::E5m2 { 0x7c } else { 0x7f };
        for x in interesting() {
            let v = f64::from(f32::from_bits(x));
            let got = f32_to_eight(x, format);
            if v.is_nan() {
                assert_eq!(got, 0x7f);
                continue;
            }
            assert_eq!(got & 0x80, (x >> 24) as u8 & 0x80, "{x:x}");
            let magnitude = got & 0x7f;
            assert!(magnitude < infinity, "{x:x}");
            // Far beyond the largest number, distances would be equal in f64.
            let distance = |b: u8| (eight_value(b, format) - v.abs().min(1e6)).abs();
            if magnitude > 0 {
                let below = distance(magnitude - 1);
                assert!(distance(magnitude) < below || (distance(magnitude) == below && magnitude & 1 == 0), "{x:x}");
            }
            if magnitude + 1 < infinity {
                let above = distance(magnitude + 1);
                assert!(distance(magnitude) < above || (distance(magnitude) == above && magnitude & 1 == 0), "{x:x}");
            }
        }
    }
    assert_eq!(pack_eight(448f32.to_bits(), 1e9f32.to_bits(), Eight::E4m3, false), 0x7e7e);
    assert_eq!(pack_eight((-1f32).to_bits(), f32::NAN.to_bits(), Eight::E4m3, true), 0x007f);
    assert_eq!(pack_eight_from_f16x2(0x3c00_c000, Eight::E5m2, false), 0x3cc0);
}

#[test]
fn packing_puts_the_first_source_high() {
    let (a, b) = ([1f32.to_bits(); 32], [(-2f32).to_bits(); 32]);
    let plain = Pack { bf16: false, rounding: Rounding::Nearest, relu: false, satfinite: false };
    assert_eq!(pack_lanes(&a, &b, plain), [0x3c00_c000; 32]);
    assert_eq!(pack_lanes(&a, &b, Pack { bf16: true, ..plain }), [0x3f80_c000; 32]);
    assert_eq!(pack_lanes(&a, &b, Pack { relu: true, ..plain }), [0x3c00_0000; 32]);
    let huge = [1e30f32.to_bits(); 32];
    assert_eq!(pack_lanes(&huge, &b, Pack { satfinite: true, ..plain }), [0x7bff_c000; 32]);
    assert_eq!(pack_lanes(&huge, &b, Pack { rounding: Rounding::Zero, ..plain }), [0x7bff_c000; 32]);
    assert_eq!(pack_lanes(&[NAN_F32 | 1 << 31; 32], &b, Pack { relu: true, ..plain }), [0x7fff_0000; 32]);
    assert_eq!(halves(pair(0x1234, 0x5678)), (0x1234, 0x5678));
}

#[test]
fn packing_is_the_same_on_every_cpu() {
    let mut random = Random::new(6);
    for round in 0..400 {
        let how = Pack {
            bf16: round % 2 == 0,
            rounding: [Rounding::Nearest, Rounding::Zero, Rounding::Nearest, Rounding::Up][round % 4],
            relu: round % 3 == 0,
            satfinite: round % 5 == 0,
        };
        let (a, b) = (random.lanes(), random.lanes());
        let d = pack_lanes(&a, &b, how);
        assert_eq!(d, pack_lanes_body(&a, &b, how));
        let one = |x: u32| if how.bf16 { f32_to_bf16(x, how.rounding) } else { f32_to_f16(x, how.rounding) };
        for i in 0..32 {
            if !how.relu && !how.satfinite {
                assert_eq!(d[i], pair(one(a[i]), one(b[i])));
            }
        }
    }
}
