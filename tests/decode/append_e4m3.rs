//! Every value at which the rounding to 8 bits may go wrong.

use super::append_case::{Case, check_rows, slots};
use half::{bf16, f16};
use lookback_decode::{Cache, Scales};
use lookback_device::Element;
use lookback_reference::{e4m3, kv_append};
use lookback_suite::random::round;

/// All values as rows of 8 heads of 64, and as they are seen through a scale.
fn every<T: Element>(values: &[T], scales: Scales, given: f64) {
    let row = 8 * 64;
    let tokens = values.len().div_ceil(row);
    let mut rows: Vec<f64> = values.iter().map(|v| v.to_f64()).collect();
    rows.resize(tokens * row, 0.0);
    let case = Case {
        heads: 8,
        head_dim: 64,
        value_dim: 64,
        cache: Cache::Ragged { tokens },
        slot_map: Some((0..tokens as i64).collect()),
        positions: None,
        tokens,
        scales: Some(scales),
        given: [given, 1.0],
        ..slots()
    };
    // Values have a scale of 1, and other neighbours.
    let backwards = rows.iter().rev().copied().collect();
    check_rows::<T>(&case, &[rows, backwards]);
}

/// A value, and those within two places of it, with both signs.
fn around(value: f32, into: &mut Vec<f32>) {
    for step in -2..=2_i32 {
        let near = f32::from_bits(value.to_bits().saturating_add_signed(step));
        into.extend([near, -near]);
    }
}

#[test]
fn append_e4m3_every_value_of_16_bits() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    for scales in [Scales::Tensor, Scales::Token] {
        every::<f16>(&halves, scales, 0.011);
        every::<bf16>(&brains, scales, 0.011);
    }
}

#[test]
fn append_e4m3_every_boundary_of_32_bits() {
    let scale = round::<f32>(0.011);
    let mut values = vec![0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
    // Codes, ties between neighbours, and where saturation begins, by the scale that is given.
    for code in 0..0x7f_u8 {
        let (low, high) = (e4m3::decode(code), e4m3::decode(code + 1));
        for target in [low, 0.5 * (low + high)] {
            let target = if target.is_nan() { 464.0 } else { target };
            around((target * scale) as f32, &mut values);
            around(target as f32, &mut values);
        }
    }
    // Every exponent, the ends of its fractions, and every place that a carry runs through.
    for exponent in 0..=255_u32 {
        for place in 0..23 {
            around(f32::from_bits(exponent << 23 | 1 << place), &mut values);
            around(f32::from_bits(exponent << 23 | ((1 << place) - 1)), &mut values);
        }
    }
    for scales in [Scales::Tensor, Scales::Head, Scales::Token] {
        every::<f32>(&values, scales, scale);
    }
}

#[test]
fn append_e4m3_with_a_scale_of_one_is_the_rounding_alone() {
    // The oracle by itself: nothing but the code of the value.
    for code in 0..=u8::MAX {
        let value = e4m3::decode(code);
        let (codes, scale) = kv_append::codes(&[value], Some(1.0));
        assert_eq!((codes[0] & 0x7f, scale), (code & 0x7f, 1.0));
        assert!(value.is_nan() || codes[0] == code);
    }
}
