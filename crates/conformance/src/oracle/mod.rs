//! What a result has to be, computed without a line of the emulator's.
//!
//! Integers go through `i128`, floating point through [`exact`]: a fixed-point number wide enough for every product of two
//! `f64`, rounded once at the end. Division and square root take the CPU's own result and let the sign of the exact
//! remainder decide the directed roundings. Approximations are held against `f64` functions and the documented error.

pub mod exact;
pub mod float;
pub mod integer;

use exact::Format;

/// What is known of one result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Expected {
    /// Nothing: the definition leaves it open.
    Open,
    /// These bits.
    Bits(u64),
    /// Any NaN of the format: no definition fixes payloads.
    Nan(Format),
    /// Two 16-bit floats, the low one first; `None` is any NaN.
    Pair(Format, [Option<u16>; 2]),
    /// Two `f16` near values, the low one first; a NaN stands for any NaN, `None` is open.
    Halves([Option<(f64, f64)>; 2]),
    /// A float of the format that is at most `tolerance` away from `value`; both zeros are the same.
    Near {
        /// Format of the result.
        format: Format,
        /// The exact value, or as good as exact.
        value: f64,
        /// Largest distance.
        tolerance: f64,
    },
}

impl Expected {
    /// How far `got` is off: 0 for a result that agrees, up to 1 for one within its tolerance, infinity for a wrong one.
    pub fn error(&self, got: u64) -> f64 {
        let wrong = |right: bool| if right { 0.0 } else { f64::INFINITY };
        match *self {
            Self::Open => 0.0,
            Self::Bits(bits) => wrong(bits == got),
            Self::Nan(format) => wrong(format.is_nan(got)),
            Self::Pair(format, halves) => wrong((0..2).all(|half| {
                let got = (got >> (16 * half)) as u16;
                halves[half as usize].map_or_else(|| format.is_nan(got.into()), |want| want == got)
            })),
            Self::Halves(halves) => (0..2)
                .map(|half| match halves[half] {
                    None => 0.0,
                    Some((value, _)) if value.is_nan() => Self::Nan(exact::F16).error(got >> (16 * half) & 0xffff),
                    Some((value, tolerance)) => {
                        Self::Near { format: exact::F16, value, tolerance }.error(got >> (16 * half) & 0xffff)
                    }
                })
                .fold(0.0, f64::max),
            Self::Near { format, value, tolerance } => {
                let distance = (format.value(got) - value).abs();
                if distance == 0.0 || format.value(got) == value {
                    0.0
                } else if distance.is_nan() || distance > tolerance {
                    f64::INFINITY
                } else {
                    distance / tolerance
                }
            }
        }
    }

    /// A float result: its bits, or any NaN.
    pub fn float(format: Format, bits: u64) -> Self {
        if format.is_nan(bits) { Self::Nan(format) } else { Self::Bits(bits) }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => write!(f, "anything"),
            Self::Bits(bits) => write!(f, "{bits:#x}"),
            Self::Nan(_) => write!(f, "a NaN"),
            Self::Pair(_, [low, high]) => {
                let half = |half: &Option<u16>| half.map_or_else(|| "NaN".into(), |bits| format!("{bits:#x}"));
                write!(f, "low {} high {}", half(low), half(high))
            }
            Self::Halves([low, high]) => {
                let half = |half: &Option<(f64, f64)>| match half {
                    Some((value, tolerance)) => format!("{value:e} within {tolerance:e}"),
                    None => "anything".into(),
                };
                write!(f, "low {} high {}", half(low), half(high))
            }
            Self::Near { value, tolerance, .. } => write!(f, "{value:e} within {tolerance:e}"),
        }
    }
}

/// Registers of a warp, one array of lanes for each operand.
pub type Warp = Vec<[u64; 32]>;

/// Expected results of a warp, one array of lanes for each output.
pub type WarpExpected = Vec<[Expected; 32]>;

/// Computes the results of one lane from its operands. Closures are given the outputs to fill.
pub type LaneOracle = Box<dyn Fn(&[u64], &mut [Expected]) + Send + Sync>;

/// Computes the results of a warp.
pub type WarpOracle = Box<dyn Fn(&Warp, &mut WarpExpected) + Send + Sync>;

/// The definition of a form, where it can be computed.
pub enum Oracle {
    /// Each lane by itself.
    Lane(LaneOracle),
    /// Lanes exchange values.
    Warp(WarpOracle),
}

impl Oracle {
    /// Of a function that gives the bits of one result.
    pub fn bits(f: impl Fn(&[u64]) -> u64 + Send + Sync + 'static) -> Self {
        Self::Lane(Box::new(move |x, out| out[0] = Expected::Bits(f(x))))
    }

    /// Of a function that gives what is known of one result.
    pub fn one(f: impl Fn(&[u64]) -> Expected + Send + Sync + 'static) -> Self {
        Self::Lane(Box::new(move |x, out| out[0] = f(x)))
    }

    /// Of a function that fills all results.
    pub fn many(f: impl Fn(&[u64], &mut [Expected]) + Send + Sync + 'static) -> Self {
        Self::Lane(Box::new(f))
    }

    /// Of a function on whole warps.
    pub fn warp(f: impl Fn(&Warp, &mut WarpExpected) + Send + Sync + 'static) -> Self {
        Self::Warp(Box::new(f))
    }

    /// What a warp has to give; `outputs` results for each lane.
    pub fn expect(&self, inputs: &Warp, outputs: usize) -> WarpExpected {
        let mut expected = vec![[Expected::Open; 32]; outputs];
        match self {
            Self::Warp(f) => f(inputs, &mut expected),
            Self::Lane(f) => {
                let mut operands = vec![0; inputs.len()];
                let mut results = vec![Expected::Open; outputs];
                for lane in 0..32 {
                    for (operand, register) in operands.iter_mut().zip(inputs) {
                        *operand = register[lane];
                    }
                    f(&operands, &mut results);
                    for (register, result) in expected.iter_mut().zip(&results) {
                        register[lane] = *result;
                    }
                }
            }
        }
        expected
    }
}
