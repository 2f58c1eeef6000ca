//! Warp-wide matrix products: `mma.sync` on register fragments, and the 16 x 8 products that `wgmma` is made of.
//!
//! [`execute`] takes whole registers in PTX's fragment layouts. The matrix-level parts are public too.

mod fast;
mod hopper;
mod integer;
pub mod layout;

use super::Lanes;
use super::float16::Half;

/// How floating-point products are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MmaArithmetic {
    /// A chain of `f32` fused multiply-adds from the accumulator, `k` ascending. Fast, and within the bound of any hardware.
    #[default]
    Fma,
    /// What Hopper's tensor cores are known to do: all products and the accumulator are aligned to the largest exponent
    /// among them and truncated to 25 fractional bits, summed exactly, and the sum is truncated to `f32`.
    Hopper,
}

/// The shape and types of one product. All have m = 16 and n = 8 but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `m16n8k16` or `m16n8k8` of `f16` or `bf16`, accumulated in `f32`.
    Half {
        /// The type of A and B.
        format: Half,
        /// 16 or 8.
        k: usize,
    },
    /// `m16n8k16` or `m16n8k8` of `f16`, accumulated in `f16` (two registers of pairs for C and D).
    HalfToHalf {
        /// 16 or 8.
        k: usize,
    },
    /// `m16n8k8` or `m16n8k4` of `tf32`; the low 13 bits of the operands are ignored.
    Tf32 {
        /// 8 or 4.
        k: usize,
    },
    /// `m16n8k32` or `m16n8k16` of bytes, accumulated in `s32`.
    Bytes {
        /// 32 or 16.
        k: usize,
        /// A is `s8`, not `u8`.
        a_signed: bool,
        /// B is `s8`, not `u8`.
        b_signed: bool,
        /// `.satfinite`: the sum is clamped, else it wraps.
        saturate: bool,
    },
    /// `m16n8k256` or `m16n8k128` of bits.
    Bits {
        /// 256 or 128.
        k: usize,
        /// The combining operation.
        operation: BitOperation,
    },
    /// `m8n8k128` of bits: one register of A and B, two of C and D.
    Bits8x8 {
        /// The combining operation.
        operation: BitOperation,
    },
}

/// What happens to two rows of bits before they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BitOperation {
    /// `.and.popc`
    And,
    /// `.xor.popc`
    Xor,
}

impl Form {
    /// How many registers A, B and C (and D) take.
    pub const fn registers(self) -> [usize; 3] {
        match self {
            Form::Half { k, .. } => [k / 4, k / 8, 4],
            Form::HalfToHalf { k } => [k / 4, k / 8, 2],
            Form::Tf32 { k } => [k / 2, k / 4, 4],
            Form::Bytes { k, .. } => [k / 8, k / 16, 4],
            Form::Bits { k, .. } => [k / 64, k / 128, 4],
            Form::Bits8x8 { .. } => [1, 1, 2],
        }
    }

    /// Multiplications of one instruction (a bit counts as one).
    pub const fn products(self) -> usize {
        match self {
            Form::Half { k, .. } | Form::HalfToHalf { k } | Form::Tf32 { k } => 128 * k,
            Form::Bytes { k, .. } | Form::Bits { k, .. } => 128 * k,
            Form::Bits8x8 { .. } => 64 * 128,
        }
    }
}

/// `D = A B + C` on fragments. Registers beyond [`Form::registers`] are ignored, and zero in the result: pass any.
pub fn execute(form: Form, arithmetic: MmaArithmetic, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    match (form, arithmetic) {
        (Form::Half { format, k }, MmaArithmetic::Fma) => fast::half(format, k, a, b, c),
        (Form::Half { format, k }, MmaArithmetic::Hopper) => hopper::half(format, k, a, b, c),
        (Form::HalfToHalf { k }, MmaArithmetic::Fma) => fast::half_to_half(k, a, b, c),
        (Form::HalfToHalf { k }, MmaArithmetic::Hopper) => hopper::half_to_half(k, a, b, c),
        (Form::Tf32 { k }, MmaArithmetic::Fma) => fast::tf32(k, a, b, c),
        (Form::Tf32 { k }, MmaArithmetic::Hopper) => hopper::tf32(k, a, b, c),
        (Form::Bytes { k, a_signed, b_signed, saturate }, _) => {
            integer::bytes(k, a_signed, b_signed, saturate, a, b, c)
        }
        (Form::Bits { k, operation }, _) => integer::bits(k, operation, a, b, c),
        (Form::Bits8x8 { operation }, _) => integer::bits_8x8(operation, a[0], b[0], c),
    }
}

#[cfg(test)]
mod tests;
