//! Operands: special values in full cross product, random ones with related exponents, sweeps. Each is a pure function of its
//! index, so that a recorder and a checker on different machines agree without sending a byte of them.

use crate::oracle::exact::{BF16, F16, F32, F64, Format};
use std::sync::Arc;

/// What an operand holds, which decides its register and its special values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A predicate.
    Pred,
    /// Half precision in a 16-bit register.
    F16,
    /// The other 16-bit float.
    Bf16,
    /// Two halves.
    F16x2,
    /// Two of the others.
    Bf16x2,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// 16-bit integer.
    I16,
    /// 32-bit integer, or any bits.
    I32,
    /// 64-bit integer, or any bits.
    I64,
    /// A shift amount, position or length in a 32-bit register.
    Amount,
    /// 0 up to this, excluded.
    Below(u32),
}

impl Kind {
    /// The type of the register.
    pub fn register(self) -> Register {
        match self {
            Self::Pred => Register::Pred,
            Self::F16 | Self::Bf16 | Self::I16 => Register::B16,
            Self::F64 | Self::I64 => Register::B64,
            _ => Register::B32,
        }
    }

    /// The kind of a PTX type in a register of its own size; 8-bit integers sit in 32 bits.
    pub fn of(ty: &str) -> Self {
        match ty {
            "pred" => Self::Pred,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ if ty.ends_with("16") => Self::I16,
            _ if ty.ends_with("64") => Self::I64,
            _ => Self::I32,
        }
    }

    /// Values where definitions have corners.
    fn specials(self) -> Vec<u64> {
        match self {
            Self::Pred => vec![0, 1],
            Self::F16 => float_specials(F16),
            Self::Bf16 => float_specials(BF16),
            Self::F32 => float_specials(F32),
            Self::F64 => float_specials(F64),
            Self::F16x2 => pairs(&float_specials(F16)),
            Self::Bf16x2 => pairs(&float_specials(BF16)),
            Self::I16 => integer_specials(16),
            Self::I32 => integer_specials(32),
            Self::I64 => integer_specials(64),
            Self::Amount => {
                vec![0, 1, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 255, 256, 0x8000_0001, 0xffff_ffff]
            }
            Self::Below(limit) => (0..u64::from(limit.min(64))).collect(),
        }
    }

    fn random(self, related: u64, own: u64) -> u64 {
        match self {
            Self::Pred => own & 1,
            Self::F16 => random_float(F16, related, own),
            Self::Bf16 => random_float(BF16, related, own),
            Self::F32 => random_float(F32, related, own),
            Self::F64 => random_float(F64, related, own),
            Self::F16x2 => random_float(F16, related, own) | random_float(F16, mix(related), mix(own)) << 16,
            Self::Bf16x2 => random_float(BF16, related, own) | random_float(BF16, mix(related), mix(own)) << 16,
            Self::I16 => own & 0xffff,
            // A random length as well as random bits.
            Self::I32 => (own & 0xffff_ffff) >> (related & 31),
            Self::I64 => own >> (related & 63),
            Self::Amount => own % 70,
            Self::Below(limit) => own % u64::from(limit),
        }
    }
}

/// A register class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// `.pred`
    Pred,
    /// `.b16`
    B16,
    /// `.b32`
    B32,
    /// `.b64`
    B64,
}

impl Register {
    /// Bytes of a value in the buffers that a program reads and writes: 4 for all but 64-bit registers.
    pub fn bytes(self) -> usize {
        if self == Self::B64 { 8 } else { 4 }
    }

    /// Name in a declaration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pred => "pred",
            Self::B16 => "b16",
            Self::B32 => "b32",
            Self::B64 => "b64",
        }
    }
}

fn float_specials(format: Format) -> Vec<u64> {
    let (inf, sign) = (format.infinity(), format.sign());
    let unit = 1u64 << format.mantissa;
    let one = ((1 << (format.exponent - 1)) - 1) << format.mantissa;
    let quiet = unit >> 1;
    let mut values = vec![
        0,
        1,
        unit - 1,
        unit,
        unit + 1,
        one - 1,
        one,
        one + 1,
        one + quiet,
        one + unit,
        one - unit,
        one + unit * (u64::from(format.mantissa) + 1),
        one + unit * u64::from(format.mantissa) + 1,
        inf - 1,
        inf,
        inf | quiet,
    ];
    let negative: Vec<u64> = values.iter().map(|value| value | sign).collect();
    values.extend(negative);
    values.extend([inf | 1, sign | inf | quiet | 5, one + unit + quiet + (quiet >> 1)]);
    values
}

/// Every value low with another one high.
fn pairs(values: &[u64]) -> Vec<u64> {
    let count = values.len();
    (0..2 * count).map(|i| values[i % count] | values[(i * 7 + i / count * 3 + 1) % count] << 16).collect()
}

fn integer_specials(bits: u32) -> Vec<u64> {
    let mask = u64::MAX >> (64 - bits);
    let mut values =
        vec![0, 1, 2, 3, 10, 31, 32, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x5555, mask / 3 * 2];
    values.extend([mask, mask - 1, mask >> 1, (mask >> 1) + 1, (mask >> 1) + 2, mask - 0x7f, mask / 255]);
    if bits > 16 {
        values.extend([0x1_0000, 0x00ff_ffff, 0x0100_0000, 0x1234_5678]);
    }
    if bits > 32 {
        values.extend([0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, 0x0123_4567_89ab_cdef]);
    }
    values.into_iter().map(|value| value & mask).collect()
}

/// A well-known finaliser: every bit of the result depends on every bit of the argument.
pub fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Any bits, or a number near one, or one whose exponent is close to those of the other operands of the same index, or such a
/// one with few bits, so that sums cancel and land on ties.
fn random_float(format: Format, related: u64, own: u64) -> u64 {
    let all = (format.sign() << 1).wrapping_sub(1);
    let fields = (1i64 << format.exponent) - 2;
    let centre = fields / 2;
    let spread = |width: i64| (own >> 40) as i64 % (2 * width + 1) - width;
    let base = (related >> 8) as i64 % fields + 1;
    let field = match related & 3 {
        0 => return own & all,
        1 => centre + spread(8.min(centre)),
        2 => base + spread(3),
        _ => base + spread(i64::from(format.mantissa) + 2),
    };
    let field = field.clamp(0, fields) as u64;
    let fraction = own & ((1 << format.mantissa) - 1);
    let few = if related & 4 == 0 { u64::MAX } else { !((1 << (format.mantissa - 3)) - 1) };
    let sign = if own >> 63 == 0 { 0 } else { format.sign() };
    sign | field << format.mantissa | fraction & few
}

/// A function of index and operand.
pub type Custom = Arc<dyn Fn(u64, usize) -> u64 + Send + Sync>;

/// Where operands come from.
#[derive(Clone)]
pub enum Data {
    /// The full cross product of all special values, then so many random ones.
    Mixed(u64),
    /// All 65536 values of the first operand; the others are random.
    Exhaustive,
    /// Special values of the only operand, then every n-th of all 2^32.
    Sweep,
    /// So many random ones, nothing special about them.
    Random(u64),
    /// So many, by this function.
    Custom(u64, Custom),
}

/// Operands of one form.
pub struct Inputs<'a> {
    kinds: &'a [Kind],
    data: &'a Data,
    specials: Vec<Vec<u64>>,
    cross: u64,
    step: u64,
    stride: u64,
}

/// Cross products beyond this are thinned out evenly.
const MOST_CROSSED: u64 = 24_000;

impl<'a> Inputs<'a> {
    /// The operands of these kinds; `stride` is that of sweeps.
    pub fn new(kinds: &'a [Kind], data: &'a Data, stride: u64) -> Self {
        let specials: Vec<_> = kinds.iter().map(|kind| kind.specials()).collect();
        let all = specials.iter().map(|values| values.len() as u64).product::<u64>();
        // A step without a common divisor with the lengths visits all combinations evenly.
        let all = if matches!(data, Data::Random(_)) { 0 } else { all };
        let step = if all > MOST_CROSSED { all / MOST_CROSSED * 2 + 1 } else { 1 };
        Self { kinds, data, specials, cross: all.min(MOST_CROSSED), step, stride: stride.max(1) }
    }

    /// How many, a multiple of 32.
    pub fn count(&self) -> u64 {
        let count = match self.data {
            Data::Mixed(random) => self.cross + random,
            Data::Exhaustive => 1 << 16,
            Data::Sweep => self.cross + (1u64 << 32).div_ceil(self.stride),
            Data::Random(count) | Data::Custom(count, _) => *count,
        };
        count.next_multiple_of(32)
    }

    /// The operand of an index.
    pub fn value(&self, index: u64, operand: usize) -> u64 {
        let value = self.wide_value(index, operand);
        match self.kinds[operand].register() {
            Register::Pred => value & 1,
            Register::B16 => value & 0xffff,
            Register::B32 => value & 0xffff_ffff,
            Register::B64 => value,
        }
    }

    fn wide_value(&self, index: u64, operand: usize) -> u64 {
        match self.data {
            Data::Custom(count, f) => f(index % count, operand),
            Data::Exhaustive if operand == 0 => index & 0xffff,
            Data::Mixed(_) | Data::Sweep if index < self.cross => self.special(index, operand),
            Data::Sweep => (index - self.cross).wrapping_mul(self.stride) & 0xffff_ffff,
            Data::Mixed(_) | Data::Exhaustive | Data::Random(_) => {
                let related = mix(index.wrapping_mul(2) ^ 0x5151);
                self.kinds[operand].random(related, mix(related ^ (operand as u64 + 1) << 32))
            }
        }
    }

    fn special(&self, index: u64, operand: usize) -> u64 {
        let mut rest = index * self.step;
        for values in &self.specials[..operand] {
            rest /= values.len() as u64;
        }
        let values = &self.specials[operand];
        values[(rest % values.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn special_values_meet_each_other() {
        let (kinds, data) = ([Kind::F32, Kind::F32], Data::Mixed(64));
        let inputs = Inputs::new(&kinds, &data, 1);
        let all: HashSet<_> = (0..inputs.cross).map(|i| (inputs.value(i, 0), inputs.value(i, 1))).collect();
        let count = float_specials(F32).iter().collect::<HashSet<_>>().len();
        assert_eq!(all.len(), count * count);
        assert!(all.contains(&(0x8000_0000, 0x7f80_0000)) && all.contains(&(1, 0x7f7f_ffff)));
        assert_eq!(inputs.count() % 32, 0);
    }

    #[test]
    fn random_floats_are_of_every_size_and_often_related() {
        let (kinds, data) = ([Kind::F32, Kind::F32], Data::Mixed(4096));
        let inputs = Inputs::new(&kinds, &data, 1);
        let exponent = |bits: u64| (bits >> 23 & 255) as i64;
        let drawn: Vec<_> = (inputs.cross..inputs.count()).map(|i| (inputs.value(i, 0), inputs.value(i, 1))).collect();
        let distinct: HashSet<_> = drawn.iter().map(|(a, _)| exponent(*a)).collect();
        let close = drawn.iter().filter(|(a, b)| (exponent(*a) - exponent(*b)).abs() <= 6).count();
        assert!(distinct.len() > 200, "{} exponents", distinct.len());
        assert!(close > drawn.len() / 4, "{close} close pairs");
    }

    #[test]
    fn a_sweep_covers_all_bits() {
        let (kinds, data) = ([Kind::F32], Data::Sweep);
        let inputs = Inputs::new(&kinds, &data, 4099);
        let last = inputs.value(inputs.cross + (1 << 32) / 4099, 0);
        assert!(last > 0xffff_0000, "{last:x}");
    }
}
