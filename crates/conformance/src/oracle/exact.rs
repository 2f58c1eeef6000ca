//! Exact sums of products of floating-point numbers, and their rounding to any format.

/// A binary floating-point format with IEEE encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Format {
    /// Stored bits of the significand.
    pub mantissa: u32,
    /// Bits of the exponent.
    pub exponent: u32,
}

/// Half precision.
pub const F16: Format = Format { mantissa: 10, exponent: 5 };
/// The upper half of single precision.
pub const BF16: Format = Format { mantissa: 7, exponent: 8 };
/// Single precision.
pub const F32: Format = Format { mantissa: 23, exponent: 8 };
/// Double precision.
pub const F64: Format = Format { mantissa: 52, exponent: 11 };
/// The upper 19 bits of single precision, in the low bits here.
pub const TF32: Format = Format { mantissa: 10, exponent: 8 };
/// The 8-bit float with five bits of exponent.
pub const E5M2: Format = Format { mantissa: 2, exponent: 5 };

/// How a value between two neighbours is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    Away,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
}

/// A decoded number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Not a number.
    Nan,
    /// Infinity; true for the negative one.
    Infinite(bool),
    /// `(-1)^negative * significand * 2^exponent`
    Finite {
        /// The sign, of zero too.
        negative: bool,
        /// In units of the last place.
        significand: u64,
        /// Of the last place.
        exponent: i32,
    },
}

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The sign bit.
    pub fn sign(self) -> u64 {
        1 << (self.mantissa + self.exponent)
    }

    /// The bits of plus infinity.
    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    /// The bits of a NaN.
    pub fn nan(self) -> u64 {
        self.infinity() | 1 << (self.mantissa - 1)
    }

    /// Whether the bits are a NaN.
    pub fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    /// Zero of the same sign in place of a subnormal number.
    pub fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }

    /// What the bits stand for.
    pub fn decode(self, bits: u64) -> Number {
        let negative = bits & self.sign() != 0;
        let field = (bits & self.infinity()) >> self.mantissa;
        let fraction = bits & ((1 << self.mantissa) - 1);
        let lowest = 1 - self.bias() - self.mantissa as i32;
        if field == self.infinity() >> self.mantissa {
            return if fraction == 0 { Number::Infinite(negative) } else { Number::Nan };
        }
        match field {
            0 => Number::Finite { negative, significand: fraction, exponent: lowest },
            _ => Number::Finite {
                negative,
                significand: fraction | 1 << self.mantissa,
                exponent: lowest + field as i32 - 1,
            },
        }
    }

    /// The value as `f64`, which holds every number of every format here.
    pub fn value(self, bits: u64) -> f64 {
        match self.decode(bits) {
            Number::Nan => f64::NAN,
            Number::Infinite(negative) => {
                if negative {
                    f64::NEG_INFINITY
                } else {
                    f64::INFINITY
                }
            }
            Number::Finite { negative, significand, exponent } => {
                // Two steps, because the power of the smallest numbers is itself out of range.
                let half = exponent / 2;
                let magnitude = significand as f64 * 2f64.powi(half) * 2f64.powi(exponent - half);
                if negative { -magnitude } else { magnitude }
            }
        }
    }
}

/// The exponent of the lowest bit of a [`Sum`]: below every product of two `f64`.
const LOWEST: i32 = -2176;
const LIMBS: usize = 68;

/// A sum of products, exact: a two's complement fixed-point number.
pub struct Sum([u64; LIMBS]);

impl Default for Sum {
    fn default() -> Self {
        Self([0; LIMBS])
    }
}

impl Sum {
    /// Adds `(-1)^negative * significand * 2^exponent`.
    pub fn add(&mut self, negative: bool, significand: u128, exponent: i32) {
        let shift = (exponent - LOWEST) as usize;
        let (limb, bits) = (shift / 64, shift % 64);
        let low = significand << bits;
        let high = if bits == 0 { 0 } else { significand >> (128 - bits) };
        let parts = [low as u64, (low >> 64) as u64, high as u64];
        let mut carry = false;
        for (index, to) in self.0[limb..].iter_mut().enumerate() {
            let part = parts.get(index).copied().unwrap_or(0);
            if index >= parts.len() && !carry {
                break;
            }
            let (value, first) = if negative { to.overflowing_sub(part) } else { to.overflowing_add(part) };
            let (value, second) = match negative {
                true => value.overflowing_sub(u64::from(carry)),
                false => value.overflowing_add(u64::from(carry)),
            };
            (*to, carry) = (value, first || second);
        }
    }

    /// Adds a finite number.
    pub fn add_number(&mut self, negative: bool, significand: u64, exponent: i32) {
        self.add(negative, significand.into(), exponent);
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        if self.0[LIMBS - 1] >> 63 == 1 { -1 } else { i32::from(self.0.iter().any(|limb| *limb != 0)) }
    }

    fn magnitude(&self) -> [u64; LIMBS] {
        let mut limbs = self.0;
        if limbs[LIMBS - 1] >> 63 == 1 {
            let mut carry = true;
            for limb in &mut limbs {
                (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
            }
        }
        limbs
    }

    /// The nearest number of a format; a sum of zero is plus zero.
    pub fn round(&self, format: Format, round: Round) -> u64 {
        let negative = self.sign() < 0;
        let sign = if negative { format.sign() } else { 0 };
        let limbs = self.magnitude();
        let Some(top_limb) = limbs.iter().rposition(|limb| *limb != 0) else { return 0 };
        let top = 64 * top_limb as i32 + 63 - limbs[top_limb].leading_zeros() as i32;
        let smallest = 1 - format.bias();
        // The place of the last bit that is kept; subnormal numbers keep fewer.
        let last = (top - format.mantissa as i32).max(smallest - format.mantissa as i32 - LOWEST);
        let bit = |place: i32| place >= 0 && limbs[place as usize / 64] >> (place % 64) & 1 == 1;
        let mut kept = 0u64;
        for place in (last..=top).rev() {
            kept = kept << 1 | u64::from(bit(place));
        }
        let half = bit(last - 1);
        let below = |place: i32| {
            let (whole, rest) = (place as usize / 64, place % 64);
            limbs[..whole].iter().any(|limb| *limb != 0) || limbs[whole] & ((1u64 << rest) - 1) != 0
        };
        let sticky = last >= 1 && below(last - 1);
        let up = match round {
            Round::Nearest => half && (sticky || kept & 1 == 1),
            Round::Away => half,
            Round::Zero => false,
            Round::Down => negative && (half || sticky),
            Round::Up => !negative && (half || sticky),
        };
        kept += u64::from(up);
        // Adding the exponent below the implicit bit lets a carry out of the significand raise it.
        let exponent = (last + LOWEST + format.mantissa as i32 - smallest) as u64;
        let bits = (exponent << format.mantissa) + kept;
        if bits < format.infinity() {
            return sign | bits;
        }
        let away = match round {
            Round::Nearest | Round::Away => true,
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
        sign | if away { format.infinity() } else { format.infinity() - 1 }
    }

    /// The integer part after rounding, clamped to 128 bits.
    pub fn to_integer(&self, round: Round) -> i128 {
        let negative = self.sign() < 0;
        let limbs = self.magnitude();
        let point = (-LOWEST) as usize;
        let (whole, half, rest) = (point / 64, (point - 1) / 64, (point - 1) % 64);
        if limbs[whole + 2..].iter().any(|limb| *limb != 0) || limbs[whole + 1] >> 62 != 0 {
            return if negative { i128::MIN } else { i128::MAX };
        }
        let value = i128::from(limbs[whole]) | i128::from(limbs[whole + 1]) << 64;
        let half_bit = limbs[half] >> rest & 1 == 1;
        let sticky = limbs[..half].iter().any(|limb| *limb != 0) || limbs[half] & ((1 << rest) - 1) != 0;
        let up = match round {
            Round::Nearest => half_bit && (sticky || value & 1 == 1),
            Round::Away => half_bit,
            Round::Zero => false,
            Round::Down => negative && (half_bit || sticky),
            Round::Up => !negative && (half_bit || sticky),
        };
        let value = value + i128::from(up);
        if negative { -value } else { value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_f64(terms: &[(f64, f64)]) -> Sum {
        let mut sum = Sum::default();
        for (a, b) in terms {
            let (a, b) = (F64.decode(a.to_bits()), F64.decode(b.to_bits()));
            let Number::Finite { negative, significand, exponent } = a else { panic!("finite") };
            let Number::Finite { negative: n, significand: s, exponent: e } = b else { panic!("finite") };
            sum.add(negative != n, u128::from(significand) * u128::from(s), exponent + e);
        }
        sum
    }

    #[test]
    fn a_sum_rounds_as_the_cpu_does() {
        let values = [1.0, -1.0, 0.1, 1e300, -1e-300, 5e-324, f64::MAX, 3.5, -2.5, 1.0 + f64::EPSILON, 1e-160];
        for a in values {
            for b in values {
                for c in values {
                    let got = f64::from_bits(sum_f64(&[(a, b), (c, 1.0)]).round(F64, Round::Nearest));
                    assert_eq!(got, a.mul_add(b, c), "{a:e} * {b:e} + {c:e}");
                }
            }
        }
    }

    #[test]
    fn directed_roundings_enclose_the_value() {
        let sum = sum_f64(&[(1.0, 1.0), (2f64.powi(-60), 1.0)]);
        let bits = |round| f32::from_bits(sum.round(F32, round) as u32);
        assert_eq!(bits(Round::Down), 1.0);
        assert_eq!(bits(Round::Zero), 1.0);
        assert_eq!(bits(Round::Up), 1.0 + f32::EPSILON);
        let tiny = sum_f64(&[(-(2f64.powi(-1000)), 2f64.powi(-1000))]);
        assert_eq!(f32::from_bits(tiny.round(F32, Round::Down) as u32), -f32::from_bits(1));
        assert_eq!(tiny.round(F32, Round::Nearest) as u32, 0x8000_0000);
        let huge = sum_f64(&[(f64::MAX, f64::MAX)]);
        assert_eq!(f32::from_bits(huge.round(F32, Round::Zero) as u32), f32::MAX);
        assert_eq!(f32::from_bits(huge.round(F32, Round::Nearest) as u32), f32::INFINITY);
    }

    #[test]
    fn integers_round_in_every_mode() {
        let rounds = [Round::Nearest, Round::Away, Round::Zero, Round::Down, Round::Up];
        let of = |x: f64| rounds.map(|round| sum_f64(&[(x, 1.0)]).to_integer(round));
        assert_eq!(of(2.5), [2, 3, 2, 2, 3]);
        assert_eq!(of(-2.5), [-2, -3, -2, -3, -2]);
        assert_eq!(of(-0.25), [0, 0, 0, -1, 0]);
        assert_eq!(of(1e300), [i128::MAX; 5]);
    }

    #[test]
    fn formats_decode_to_their_values() {
        assert_eq!(F16.value(0x3c00), 1.0);
        assert_eq!(F16.value(0x8001), -(2f64.powi(-24)));
        assert_eq!(BF16.value(0x4049), 3.140625);
        assert_eq!(F32.value(u64::from(f32::MIN_POSITIVE.to_bits())), f64::from(f32::MIN_POSITIVE));
        assert_eq!(F64.value(5e-324f64.to_bits()), 5e-324);
        assert!(F16.is_nan(0x7c01) && !F16.is_nan(0xfc00));
    }
}
