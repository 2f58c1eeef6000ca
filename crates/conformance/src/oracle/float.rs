//! Floating-point operations by their definition: IEEE 754 arithmetic with PTX's modifiers.

use super::{
    Expected,
    exact::{BF16, F16, F32, F64, Format, Number, Round, Sum},
};

/// The modifiers of an arithmetic instruction.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    /// Format of operands and result.
    pub format: Format,
    /// Rounding of the result.
    pub round: Round,
    /// Subnormal operands and results become zero.
    pub ftz: bool,
    /// The result is clamped to 0 to 1, and NaN to 0.
    pub saturate: bool,
    /// Negative results become 0.
    pub relu: bool,
}

impl Mode {
    /// To nearest, without any modifier.
    pub fn nearest(format: Format) -> Self {
        Self { format, round: Round::Nearest, ftz: false, saturate: false, relu: false }
    }

    fn operand(&self, bits: u64) -> u64 {
        if self.ftz { self.format.flush(bits) } else { bits }
    }

    /// What the modifiers make of a rounded result.
    pub fn finish(&self, bits: u64) -> Expected {
        let format = self.format;
        let bits = if self.ftz { format.flush(bits) } else { bits };
        let zero = Expected::Near { format, value: 0.0, tolerance: 0.0 };
        if self.saturate {
            let value = format.value(bits);
            return match value {
                _ if value.is_nan() => Expected::Bits(0),
                _ if value <= 0.0 => zero,
                _ if value >= 1.0 => Expected::Bits(one(format)),
                _ => Expected::Bits(bits),
            };
        }
        if self.relu && format.value(bits) <= 0.0 {
            return zero;
        }
        Expected::float(format, bits)
    }

    /// `a + b`
    pub fn add(&self, a: u64, b: u64) -> Expected {
        self.fma(a, one(self.format), b)
    }

    /// `a - b`
    pub fn sub(&self, a: u64, b: u64) -> Expected {
        self.fma(a, one(self.format), if self.format.is_nan(b) { b } else { b ^ self.format.sign() })
    }

    /// `a * b`
    pub fn mul(&self, a: u64, b: u64) -> Expected {
        let format = self.format;
        let (a, b) = (self.operand(a), self.operand(b));
        // Adding a zero of the product's own sign leaves the sign of a zero product alone.
        let zero = (a ^ b) & format.sign();
        self.fma(a, b, zero)
    }

    /// `a * b + c`, rounded once.
    pub fn fma(&self, a: u64, b: u64, c: u64) -> Expected {
        let format = self.format;
        let [a, b, c] = [a, b, c].map(|x| self.operand(x));
        self.finish(fma(format, self.round, a, b, c))
    }

    /// `a / b`
    pub fn div(&self, a: u64, b: u64) -> Expected {
        let format = self.format;
        let (a, b) = (self.operand(a), self.operand(b));
        let nearest = match format {
            F32 => u64::from((f32::from_bits(a as u32) / f32::from_bits(b as u32)).to_bits()),
            _ => (f64::from_bits(a) / f64::from_bits(b)).to_bits(),
        };
        let remainder = |quotient: u64| match (format.decode(a), format.decode(b), format.decode(quotient)) {
            (
                Number::Finite { negative: na, significand: sa, exponent: ea },
                Number::Finite { negative: nb, significand: sb, exponent: eb },
                Number::Finite { negative: nq, significand: sq, exponent: eq },
            ) if sb != 0 => {
                let mut sum = Sum::default();
                sum.add_number(na, sa, ea);
                sum.add(nb == nq, u128::from(sb) * u128::from(sq), eb + eq);
                if nb { -sum.sign() } else { sum.sign() }
            }
            // An overflow: the exact value lies on this side of infinity.
            (Number::Finite { negative: na, .. }, Number::Finite { negative: nb, significand: 1.., .. }, _) => {
                if na == nb { -1 } else { 1 }
            }
            _ => 0,
        };
        self.finish(directed(format, self.round, nearest, remainder(nearest)))
    }

    /// `sqrt(a)`
    pub fn sqrt(&self, a: u64) -> Expected {
        let format = self.format;
        let a = self.operand(a);
        let nearest = match format {
            F32 => u64::from(f32::from_bits(a as u32).sqrt().to_bits()),
            _ => f64::from_bits(a).sqrt().to_bits(),
        };
        let remainder = match (format.decode(a), format.decode(nearest)) {
            (
                Number::Finite { negative, significand, exponent },
                Number::Finite { significand: root, exponent: place, .. },
            ) => {
                let mut sum = Sum::default();
                sum.add_number(negative, significand, exponent);
                sum.add(true, u128::from(root) * u128::from(root), 2 * place);
                sum.sign()
            }
            _ => 0,
        };
        self.finish(directed(format, self.round, nearest, remainder))
    }
}

/// Bits of 1.0.
pub fn one(format: Format) -> u64 {
    ((1 << (format.exponent - 1)) - 1) << format.mantissa
}

/// `a * b + c` of one format, rounded once.
pub fn fma(format: Format, round: Round, a: u64, b: u64, c: u64) -> u64 {
    use Number::{Finite, Infinite, Nan};
    let zero_sum = if round == Round::Down { format.sign() } else { 0 };
    match (format.decode(a), format.decode(b), format.decode(c)) {
        (Nan, ..) | (_, Nan, _) | (.., Nan) => format.nan(),
        (Infinite(_), Finite { significand: 0, .. }, _) | (Finite { significand: 0, .. }, Infinite(_), _) => {
            format.nan()
        }
        (Infinite(_), _, c) | (_, Infinite(_), c) => {
            let sign = (a ^ b) & format.sign();
            let clash = matches!(c, Infinite(negative) if negative != (sign != 0));
            if clash { format.nan() } else { sign | format.infinity() }
        }
        (.., Infinite(_)) => c,
        (
            Finite { negative: na, significand: sa, exponent: ea },
            Finite { negative: nb, significand: sb, exponent: eb },
            Finite { negative: nc, significand: sc, exponent: ec },
        ) => {
            let mut sum = Sum::default();
            sum.add(na != nb, u128::from(sa) * u128::from(sb), ea + eb);
            sum.add_number(nc, sc, ec);
            if sum.sign() != 0 {
                return sum.round(format, round);
            }
            // Two zeros of one sign keep it; any other exact zero is plus, or minus when rounding down.
            let both_zero = (sa == 0 || sb == 0) && sc == 0;
            if both_zero && (na != nb) == nc { if nc { format.sign() } else { 0 } } else { zero_sum }
        }
    }
}

/// The number in the direction of the rounding, given the nearest one and the sign of exact minus nearest.
fn directed(format: Format, round: Round, nearest: u64, remainder: i32) -> u64 {
    if remainder == 0 || format.is_nan(nearest) {
        return nearest;
    }
    let negative = nearest & format.sign() != 0;
    let wanted = match round {
        Round::Nearest | Round::Away => return nearest,
        Round::Up => 1,
        Round::Down => -1,
        Round::Zero => {
            if negative {
                1
            } else {
                -1
            }
        }
    };
    if wanted != remainder {
        return nearest;
    }
    let magnitude = nearest & !format.sign();
    match (magnitude, (wanted > 0) == negative) {
        (0, _) => (if wanted > 0 { 0 } else { format.sign() }) | 1,
        (_, true) => nearest - 1,
        (_, false) => nearest + 1,
    }
}

/// A number of one format in another.
pub fn convert(from: Format, to: Format, round: Round, bits: u64) -> u64 {
    match from.decode(bits) {
        Number::Nan => to.nan(),
        Number::Infinite(negative) => to.infinity() | if negative { to.sign() } else { 0 },
        Number::Finite { negative, significand, exponent } => {
            let mut sum = Sum::default();
            sum.add_number(negative, significand, exponent);
            if significand == 0 && negative { to.sign() } else { sum.round(to, round) }
        }
    }
}

/// The integer in the direction of the rounding, `None` for NaN.
pub fn to_integer(from: Format, round: Round, bits: u64) -> Option<i128> {
    match from.decode(bits) {
        Number::Nan => None,
        Number::Infinite(negative) => Some(if negative { i128::MIN } else { i128::MAX }),
        Number::Finite { negative, significand, exponent } => {
            let mut sum = Sum::default();
            sum.add_number(negative, significand, exponent);
            Some(sum.to_integer(round))
        }
    }
}

/// An integer in a format.
pub fn from_integer(value: i128, to: Format, round: Round) -> u64 {
    let mut sum = Sum::default();
    sum.add(value < 0, value.unsigned_abs(), 0);
    sum.round(to, round)
}

/// The modifiers of `min` and `max`.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// Format of operands and result.
    pub format: Format,
    /// `max` rather than `min`.
    pub max: bool,
    /// Subnormal operands become zero.
    pub ftz: bool,
    /// A NaN on either side gives NaN.
    pub nan: bool,
    /// Of magnitudes; the sign is that of the product.
    pub xorsign_abs: bool,
}

impl Choice {
    /// The smaller or larger of two; minus zero is less than plus zero.
    pub fn of(&self, a: u64, b: u64) -> Expected {
        let format = self.format;
        let flushed = |x| if self.ftz { format.flush(x) } else { x };
        let sign = (a ^ b) & format.sign();
        let clear = |x| if self.xorsign_abs { x & !format.sign() } else { x };
        let (a, b) = (clear(flushed(a)), clear(flushed(b)));
        let chosen = match (format.is_nan(a), format.is_nan(b)) {
            (true, true) => return Expected::Nan(format),
            (true, _) | (_, true) if self.nan => return Expected::Nan(format),
            (true, _) => b,
            (_, true) => a,
            _ => {
                let (x, y) = (format.value(a), format.value(b));
                let a_less = x < y || (x == y && a & format.sign() != 0);
                if a_less == self.max { b } else { a }
            }
        };
        Expected::Bits(if self.xorsign_abs { chosen | sign } else { chosen })
    }
}

/// Applies an operation of one 16-bit format to both halves.
pub fn pair(format: Format, x: &[u64], f: impl Fn(&[u64]) -> Expected) -> Expected {
    let mut halves = [None; 2];
    let mut operands = [0; 3];
    for (half, to) in halves.iter_mut().enumerate() {
        for (operand, register) in operands.iter_mut().zip(x) {
            *operand = register >> (16 * half) & 0xffff;
        }
        match f(&operands[..x.len()]) {
            Expected::Bits(bits) => *to = Some(bits as u16),
            Expected::Nan(_) => *to = None,
            // Which zero is left open one by one, and the results here are pairs: take the plus zero.
            Expected::Near { value: 0.0, .. } => *to = Some(0),
            _ => return Expected::Open,
        }
    }
    Expected::Pair(format, halves)
}

/// The format of a type by its name.
pub fn format(ty: &str) -> Format {
    match ty {
        "f16" | "f16x2" => F16,
        "bf16" | "bf16x2" => BF16,
        "f64" => F64,
        _ => F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_and_roots_enclose_the_exact_value() {
        let mode = |round| Mode { round, ..Mode::nearest(F32) };
        let bits = |x: f32| u64::from(x.to_bits());
        let third = |round| mode(round).div(bits(1.0), bits(3.0));
        assert_eq!(third(Round::Nearest), Expected::Bits(bits(1.0 / 3.0)));
        assert_eq!(third(Round::Down), Expected::Bits(bits((1.0f32 / 3.0).next_down())));
        assert_eq!(mode(Round::Up).sqrt(bits(4.0)), Expected::Bits(bits(2.0)));
        assert_eq!(mode(Round::Zero).div(bits(f32::MAX), bits(0.5)), Expected::Bits(bits(f32::MAX)));
        assert_eq!(mode(Round::Up).div(bits(f32::MAX), bits(0.5)), Expected::Bits(bits(f32::INFINITY)));
        assert_eq!(mode(Round::Zero).div(bits(1.0), 0), Expected::Bits(bits(f32::INFINITY)));
        assert_eq!(mode(Round::Up).div(bits(f32::from_bits(1)), bits(8.0)), Expected::Bits(1));
        assert_eq!(mode(Round::Up).sqrt(bits(-1.0)), Expected::Nan(F32));
    }

    #[test]
    fn the_sign_of_zero_follows_ieee() {
        let down = Mode { round: Round::Down, ..Mode::nearest(F32) };
        let (one, minus) = (u64::from(1f32.to_bits()), u64::from((-1f32).to_bits()));
        assert_eq!(Mode::nearest(F32).add(one, minus), Expected::Bits(0));
        assert_eq!(down.add(one, minus), Expected::Bits(1 << 31));
        assert_eq!(Mode::nearest(F32).mul(1 << 31, one), Expected::Bits(1 << 31));
        assert_eq!(Mode::nearest(F32).add(1 << 31, 1 << 31), Expected::Bits(1 << 31));
    }

    #[test]
    fn minimum_orders_the_zeros() {
        let choice = Choice { format: F32, max: false, ftz: false, nan: false, xorsign_abs: false };
        assert_eq!(choice.of(0, 1 << 31), Expected::Bits(1 << 31));
        assert_eq!(Choice { max: true, ..choice }.of(1 << 31, 0), Expected::Bits(0));
        assert_eq!(choice.of(F32.nan(), 5), Expected::Bits(5));
        assert_eq!(Choice { nan: true, ..choice }.of(F32.nan(), 5), Expected::Nan(F32));
    }
}
