//! The 8-bit floating-point format of caches: a sign, four bits of exponent with bias 7, three of fraction.
//!
//! There is no infinity; the greatest finite value is [`MAX`], the least `2^-9`, and `0x7f` and `0xff` are NaN.

/// The greatest finite value.
pub const MAX: f64 = 448.0;

/// The value of a code.
pub fn decode(code: u8) -> f64 {
    let exponent = i32::from(code >> 3 & 15);
    let fraction = f64::from(code & 7);
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => fraction * 2f64.powi(-9),
        _ => (8.0 + fraction) * 2f64.powi(exponent - 10),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The nearest code, even fractions where two are as near. What is greater than [`MAX`] becomes [`MAX`]; NaN becomes `0x7f`.
pub fn encode(value: f64) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(MAX);
    let exponent = if magnitude < 2f64.powi(-6) { -6 } else { magnitude.log2().floor() as i32 };
    let eighths = (magnitude / 2f64.powi(exponent - 3)).round_ties_even() as i32;
    // Below 8 eighths lie the subnormals of exponent -6; 16 are the first of the next exponent, which is the next code too.
    sign | (((exponent + 6) << 3) + eighths) as u8
}

/// The scale of a row or a tensor: its greatest magnitude over [`MAX`], or 1 where everything is zero.
pub fn scale(values: &[f64]) -> f64 {
    let greatest = values.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    if greatest > 0.0 { greatest / MAX } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for code in 0..=u8::MAX {
            let value = decode(code);
            if value.is_nan() {
                assert_eq!(code & 0x7f, 0x7f);
            } else {
                assert_eq!(encode(value), code, "{value}");
            }
        }
        assert_eq!((decode(0x7e), decode(0x01), decode(0x38), decode(0xb8)), (448.0, 2f64.powi(-9), 1.0, -1.0));
    }

    #[test]
    fn ties_go_to_even_and_the_rest_to_the_nearest() {
        for code in 0..0x7e_u8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = 0.5 * (low + high);
            assert_eq!(encode(middle), code + (code & 1), "{middle}");
            assert_eq!(encode(middle * (1.0 - 1e-9)), code);
            assert_eq!(encode(middle * (1.0 + 1e-9)), code + 1);
        }
    }

    #[test]
    fn the_rest_saturates() {
        assert_eq!((encode(1e9), encode(-1e9), encode(f64::INFINITY), encode(f64::NAN)), (0x7e, 0xfe, 0x7e, 0x7f));
        assert_eq!((encode(-0.0), encode(2f64.powi(-10)), encode(2f64.powi(-10) * 1.01)), (0x80, 0, 1));
        assert_eq!(scale(&[0.0, -896.0, 3.0]), 2.0);
        assert_eq!(scale(&[0.0, 0.0]), 1.0);
    }
}
