//! Exact binary values with a sticky bit, and their rounding into any format in any mode.
//!
//! The CPU rounds to nearest only; this is the path for `.rz`, `.rm` and `.rp`, for narrow formats, and the model that
//! the fast paths are tested against. Everything is integer arithmetic.

use super::Rounding;

/// A binary floating-point format with IEEE encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the significand, the implicit one included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub min_exponent: i32,
    /// Exponent of the largest finite number.
    pub max_exponent: i32,
}

impl Format {
    /// IEEE half precision.
    pub const F16: Format = Format { precision: 11, min_exponent: -14, max_exponent: 15 };
    /// The upper half of `f32`.
    pub const BF16: Format = Format { precision: 8, min_exponent: -126, max_exponent: 127 };
    /// IEEE single precision.
    pub const F32: Format = Format { precision: 24, min_exponent: -126, max_exponent: 127 };
    /// IEEE double precision.
    pub const F64: Format = Format { precision: 53, min_exponent: -1022, max_exponent: 1023 };

    /// Bits of the exponent field.
    fn exponent_bits(self) -> u32 {
        (self.max_exponent as u32 + 1).ilog2() + 1
    }

    /// The bits of infinity, without a sign.
    pub fn infinity(self) -> u64 {
        ((1u64 << self.exponent_bits()) - 1) << (self.precision - 1)
    }

    /// The sign bit.
    pub fn sign(self) -> u64 {
        1 << (self.precision - 1 + self.exponent_bits())
    }
}

/// A finite value `(-1)^negative * significand * 2^exponent`. A value that is not a multiple of its unit is held by the odd
/// neighbour below it ("jammed"), which rounds as the value itself does in any format two bits narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact {
    /// The sign, kept for zero too.
    pub negative: bool,
    /// The magnitude in units of `2^exponent`.
    pub significand: u128,
    /// The exponent of the unit.
    pub exponent: i32,
}

/// `value >> amount` with the lowest bit set where a one was shifted out.
fn jam(value: u128, amount: u32) -> u128 {
    match amount {
        0 => value,
        1..128 => value >> amount | u128::from(value << (128 - amount) != 0),
        _ => u128::from(value != 0),
    }
}

impl Exact {
    /// The value of a finite encoding; `None` for infinities and NaN.
    pub fn from_bits(format: Format, bits: u64) -> Option<Exact> {
        let magnitude = bits & (format.sign() - 1);
        if magnitude >= format.infinity() {
            return None;
        }
        let stored = format.precision - 1;
        let field = (magnitude >> stored) as i32;
        let fraction = magnitude & ((1 << stored) - 1);
        let significand = if field == 0 { fraction } else { fraction | 1 << stored };
        Some(Exact {
            negative: bits & format.sign() != 0,
            significand: u128::from(significand),
            exponent: field.max(1) - 1 + format.min_exponent - stored as i32,
        })
    }

    /// An integer.
    pub fn from_integer(value: i128) -> Exact {
        Exact { negative: value < 0, significand: value.unsigned_abs(), exponent: 0 }
    }

    /// The negated value.
    pub fn negated(self) -> Exact {
        Exact { negative: !self.negative, ..self }
    }

    /// The product of two values of at most 64 significant bits each, exactly.
    pub fn times(self, other: Exact) -> Exact {
        Exact {
            negative: self.negative != other.negative,
            significand: self.significand * other.significand,
            exponent: self.exponent + other.exponent,
        }
    }

    /// The sum of two values of at most 108 significant bits, jammed. An exact zero of two different signs, or of two
    /// values that cancel, is negative in the mode `Down` only.
    pub fn plus(self, other: Exact, rounding: Rounding) -> Exact {
        if self.significand == 0 && other.significand == 0 {
            let negative = if self.negative == other.negative { self.negative } else { rounding == Rounding::Down };
            return Exact { negative, ..self };
        }
        if self.significand == 0 {
            return other;
        }
        if other.significand == 0 {
            return self;
        }
        let top = |x: &Exact| x.exponent + 127 - x.significand.leading_zeros() as i32;
        let (large, small) = if top(&self) >= top(&other) { (self, other) } else { (other, self) };
        // The larger one's top bit goes to bit 125: room for a carry below the sign of an i128.
        let up = large.significand.leading_zeros() - 2;
        let (significand, exponent) = (large.significand << up, large.exponent - up as i32);
        let down = exponent - small.exponent;
        let aligned = if down >= 0 { jam(small.significand, down as u32) } else { small.significand << -down };
        let signed = |negative: bool, magnitude: u128| if negative { -(magnitude as i128) } else { magnitude as i128 };
        let sum = signed(large.negative, significand) + signed(small.negative, aligned);
        let negative = if sum == 0 { rounding == Rounding::Down } else { sum < 0 };
        Exact { negative, significand: sum.unsigned_abs(), exponent }
    }

    /// The quotient of two values of at most 53 significant bits, jammed; the divisor is not zero.
    pub fn over(self, divisor: Exact) -> Exact {
        let up = self.significand.leading_zeros().saturating_sub(1);
        let dividend = self.significand << up;
        let remains = !dividend.is_multiple_of(divisor.significand);
        Exact {
            negative: self.negative != divisor.negative,
            significand: (dividend / divisor.significand) | u128::from(remains),
            exponent: self.exponent - up as i32 - divisor.exponent,
        }
    }

    /// The square root of a value of at most 53 significant bits, jammed; a negative zero stays.
    pub fn square_root(self) -> Exact {
        let up = self.significand.leading_zeros().saturating_sub(2);
        let up = if (self.exponent - up as i32) % 2 == 0 { up } else { up + 1 };
        let radicand = self.significand << up;
        let root = radicand.isqrt();
        Exact {
            negative: self.negative,
            significand: root | u128::from(root * root != radicand),
            exponent: (self.exponent - up as i32) / 2,
        }
    }

    /// The encoding nearest in the given mode; overflow gives infinity or the largest finite number as the mode says.
    pub fn round(self, format: Format, rounding: Rounding) -> u64 {
        let sign = if self.negative { format.sign() } else { 0 };
        if self.significand == 0 {
            return sign;
        }
        let top = self.exponent + 127 - self.significand.leading_zeros() as i32;
        let stored = format.precision as i32 - 1;
        let unit = top.max(format.min_exponent) - stored;
        let whole = self.in_units(unit, rounding);
        // A carry out of the significand runs on into the exponent field, which is where it belongs.
        let field = (unit + stored - format.min_exponent) as u64;
        let magnitude = (field << stored) + whole as u64;
        if top > format.max_exponent || magnitude >= format.infinity() {
            let finite = match rounding {
                Rounding::Nearest | Rounding::NearestAway => false,
                Rounding::Zero => true,
                Rounding::Down => !self.negative,
                Rounding::Up => self.negative,
            };
            return sign | (format.infinity() - u64::from(finite));
        }
        sign | magnitude
    }

    /// The magnitude as a whole number of `2^unit`, rounded in the given mode (which sees the sign); saturates.
    pub fn in_units(self, unit: i32, rounding: Rounding) -> u128 {
        let down = unit - self.exponent;
        if down <= 0 {
            let up = down.unsigned_abs();
            return if up > self.significand.leading_zeros() { u128::MAX } else { self.significand << up };
        }
        // Two bits below the unit decide: the half, and whether anything is left below it.
        let quarters = if down == 1 { self.significand << 1 } else { jam(self.significand, down as u32 - 2) };
        let (whole, rest) = (quarters >> 2, quarters & 3);
        let up = match rounding {
            Rounding::Nearest => rest == 3 || (rest == 2 && whole & 1 == 1),
            Rounding::NearestAway => rest >= 2,
            Rounding::Zero => false,
            Rounding::Down => self.negative && rest != 0,
            Rounding::Up => !self.negative && rest != 0,
        };
        whole + u128::from(up)
    }
}

#[cfg(test)]
mod tests;
