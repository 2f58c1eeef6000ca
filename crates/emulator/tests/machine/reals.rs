//! Correct rounding of exact results, written for the tests alone: an independent second opinion on every rounding mode.

/// A binary floating-point format.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Bits of the significand, the hidden one included.
    pub precision: i32,
    /// Exponent of the smallest normal number.
    pub smallest: i32,
    /// Exponent of the largest number.
    pub largest: i32,
}

pub const F32: Format = Format { precision: 24, smallest: -126, largest: 127 };
pub const F16: Format = Format { precision: 11, smallest: -14, largest: 15 };
pub const BF16: Format = Format { precision: 8, smallest: -126, largest: 127 };

/// Rounding modes, by their PTX names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms)]
pub enum Mode {
    Rn,
    Rz,
    Rm,
    Rp,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Rn, Mode::Rz, Mode::Rm, Mode::Rp];

    pub fn name(self) -> &'static str {
        ["rn", "rz", "rm", "rp"][self as usize]
    }
}

/// A finite real number: `near` is it rounded to f64, `rest` has the sign of what was lost.
#[derive(Debug, Clone, Copy)]
pub struct Real {
    near: f64,
    rest: f64,
}

impl Real {
    pub fn exact(value: f64) -> Self {
        Self { near: value, rest: 0.0 }
    }

    /// The sum of two f64, exactly.
    pub fn sum(a: f64, b: f64) -> Self {
        let near = a + b;
        let from_b = near - a;
        Self { near, rest: (a - (near - from_b)) + (b - from_b) }
    }

    /// The product of two numbers of at most 26 bits plus a number of the same kind.
    pub fn fused(a: f64, b: f64, c: f64) -> Self {
        Self::sum(a * b, c)
    }

    pub fn quotient(a: f64, b: f64) -> Self {
        let near = a / b;
        Self { near, rest: (-near).mul_add(b, a) * b.signum() }
    }

    pub fn square_root(a: f64) -> Self {
        let near = a.sqrt();
        Self { near, rest: (-near).mul_add(near, a) }
    }

    /// Rounded to a format; the result is exact in f64, and infinite on overflow where the mode says so.
    pub fn round(self, format: Format, mode: Mode) -> f64 {
        if self.near == 0.0 {
            return self.near;
        }
        let negative = self.near < 0.0;
        let (size, rest) = if negative { (-self.near, -self.rest) } else { (self.near, self.rest) };
        let mut exponent = exponent_of(size);
        if size == power(exponent) && rest < 0.0 {
            exponent -= 1;
        }
        let unit = power(exponent.max(format.smallest) - (format.precision - 1));
        let whole = (size / unit).floor();
        let fraction = size / unit - whole;
        // Below a whole number by less than f64 shows: step down and treat the fraction as almost one.
        let (whole, side) = match (fraction == 0.0, rest) {
            (true, rest) if rest < 0.0 => (whole - 1.0, 1),
            (true, rest) => (whole, if rest > 0.0 { -1 } else { -2 }),
            _ => {
                let distance = if fraction == 0.5 { rest } else { fraction - 0.5 };
                (
                    whole,
                    if distance > 0.0 {
                        1
                    } else if distance < 0.0 {
                        -1
                    } else {
                        0
                    },
                )
            }
        };
        let inexact = side != -2;
        let up = match mode {
            Mode::Rn => side == 1 || side == 0 && whole % 2.0 == 1.0,
            Mode::Rz => false,
            Mode::Rm => inexact && negative,
            Mode::Rp => inexact && !negative,
        };
        let mut rounded = if up { whole + 1.0 } else { whole } * unit;
        let greatest = (2.0 - power(1 - format.precision)) * power(format.largest);
        if rounded > greatest {
            let away = match mode {
                Mode::Rn => true,
                Mode::Rz => false,
                Mode::Rm => negative,
                Mode::Rp => !negative,
            };
            rounded = if away { f64::INFINITY } else { greatest };
        }
        if negative { -rounded } else { rounded }
    }
}

fn power(exponent: i32) -> f64 {
    2f64.powi(exponent)
}

fn exponent_of(size: f64) -> i32 {
    let mut exponent = size.log2().floor() as i32;
    while power(exponent) > size {
        exponent -= 1;
    }
    while power(exponent + 1) <= size {
        exponent += 1;
    }
    exponent
}

#[test]
fn agrees_with_the_cpu() {
    let mut random = crate::harness::Random::new(3);
    for _ in 0..20_000 {
        let [a, b, c] = [0; 3].map(|_| f32::from_bits(random.word()));
        if !(a.is_finite() && b.is_finite() && c.is_finite()) {
            continue;
        }
        let [x, y, z] = [a, b, c].map(f64::from);
        assert_eq!(Real::sum(x, y).round(F32, Mode::Rn), f64::from(a + b));
        assert_eq!(Real::exact(x * y).round(F32, Mode::Rn), f64::from(a * b));
        assert_eq!(Real::fused(x, y, z).round(F32, Mode::Rn), f64::from(a.mul_add(b, c)));
        if b != 0.0 {
            assert_eq!(Real::quotient(x, y).round(F32, Mode::Rn), f64::from(a / b));
        }
        assert_eq!(Real::square_root(x.abs()).round(F32, Mode::Rn), f64::from(a.abs().sqrt()));
        assert_eq!(Real::exact(x).round(F16, Mode::Rn), half::f16::from_f32(a).to_f64());
        assert_eq!(Real::exact(x).round(BF16, Mode::Rn), half::bf16::from_f32(a).to_f64());
    }
}
