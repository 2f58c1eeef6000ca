use super::*;
use crate::numerics::testing::{Random, special_f64};

const MODES: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

#[test]
fn every_16_bit_number_survives_a_round_trip_in_every_mode() {
    for format in [Format::F16, Format::BF16] {
        for bits in 0..=0xffffu64 {
            match Exact::from_bits(format, bits) {
                None => assert!(bits & 0x7fff >= format.infinity(), "{bits:x}"),
                Some(value) => MODES.iter().for_each(|mode| assert_eq!(value.round(format, *mode), bits)),
            }
        }
    }
}

#[test]
fn formats_know_their_encodings() {
    assert_eq!((Format::F16.infinity(), Format::F16.sign()), (0x7c00, 0x8000));
    assert_eq!((Format::BF16.infinity(), Format::BF16.sign()), (0x7f80, 0x8000));
    assert_eq!((Format::F32.infinity(), Format::F32.sign()), (0x7f80_0000, 0x8000_0000));
    assert_eq!((Format::F64.infinity(), Format::F64.sign()), (0x7ff0 << 48, 1 << 63));
}

#[test]
fn narrowing_to_f32_agrees_with_the_cpu_and_brackets_the_value() {
    let mut random = Random::new(1);
    let near = (0..100_000).map(|_| (f64::from(f32::from_bits(random.near_one()))).to_bits() ^ random.u64() >> 34);
    let bits: Vec<u64> = near.chain(special_f64()).chain((0..100_000).map(|i| i * 0x1234_5678_9abc)).collect();
    for bits in bits {
        let x = f64::from_bits(bits);
        let Some(value) = Exact::from_bits(Format::F64, bits) else { continue };
        let [nearest, zero, down, up] = MODES.map(|mode| f32::from_bits(value.round(Format::F32, mode) as u32));
        assert_eq!(nearest.to_bits(), (x as f32).to_bits(), "{x:e}");
        assert!(f64::from(down) <= x && x <= f64::from(up), "{x:e}");
        assert!(down.to_bits() == up.to_bits() || down.next_up() == up, "{x:e}");
        assert_eq!(zero.to_bits(), if x.is_sign_negative() { up } else { down }.to_bits(), "{x:e}");
    }
}

#[test]
fn whole_units_round_as_the_mode_says() {
    // Sixths of eight: 0.75, 0.5, 0.25 and so on, in units of one.
    let in_units = |eighths: i128, mode| Exact { exponent: -3, ..Exact::from_integer(eighths) }.in_units(0, mode);
    let rows = [
        (4, [0, 1, 0, 0, 1]),
        (5, [1, 1, 0, 0, 1]),
        (3, [0, 0, 0, 0, 1]),
        (12, [2, 2, 1, 1, 2]),
        (20, [2, 3, 2, 2, 3]),
        (16, [2, 2, 2, 2, 2]),
        (-4, [0, 1, 0, 1, 0]),
        (-12, [2, 2, 1, 2, 1]),
    ];
    for (eighths, expected) in rows {
        let modes = [Rounding::Nearest, Rounding::NearestAway, Rounding::Zero, Rounding::Down, Rounding::Up];
        assert_eq!(modes.map(|mode| in_units(eighths, mode)), expected, "{eighths}/8");
    }
    assert_eq!(Exact { exponent: 100, ..Exact::from_integer(1 << 40) }.in_units(0, Rounding::Zero), u128::MAX);
    assert_eq!(Exact { exponent: -2000, ..Exact::from_integer(7) }.in_units(0, Rounding::Up), 1);
}

#[test]
fn sums_far_apart_keep_their_sticky_bit() {
    let tiny = Exact { exponent: -1074, ..Exact::from_integer(1) };
    for (one, below) in [(1, false), (-1, true)] {
        let sum = Exact::from_integer(one).plus(if below { tiny } else { tiny.negated() }, Rounding::Nearest);
        // Just inside of one, so toward zero the last bit goes.
        assert_eq!(sum.round(Format::F32, Rounding::Zero) as u32 & 0x7fff_ffff, 0x3f7f_ffff);
        assert_eq!(sum.round(Format::F32, Rounding::Nearest) as u32 & 0x7fff_ffff, 0x3f80_0000);
    }
}
