//! Inputs for the tests of this module: special values and a small generator.

use super::Lanes;

/// A reproducible source of random bits (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    /// A generator that always gives the same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn u32(&mut self) -> u32 {
        (self.u64() >> 32) as u32
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.u32()) * u64::from(bound)) >> 32) as u32
    }

    pub(crate) fn lanes(&mut self) -> Lanes {
        std::array::from_fn(|_| self.u32())
    }

    /// Bits of an `f32` with an exponent near zero: sums and products of such numbers interact.
    pub(crate) fn near_one(&mut self) -> u32 {
        self.u32() & 0x807f_ffff | (127 - 20 + self.below(40)) << 23
    }

    /// As [`Random::near_one`] with few significant bits, so that ties are common.
    pub(crate) fn coarse(&mut self) -> u32 {
        self.near_one() & 0xfff0_0000
    }
}

/// Bits of `f32` numbers where rules change: zeros, subnormals, the edges of normal numbers, powers of two, ties, integers,
/// the limits of integer types, infinities and NaN with several payloads; both signs of each.
pub(crate) fn special_f32() -> Vec<u32> {
    let positive = [
        0x0000_0000,
        0x0000_0001,
        0x0000_0002,
        0x0000_0003,
        0x003f_ffff,
        0x0040_0000,
        0x007f_ffff,
        0x0080_0000,
        0x0080_0001,
        0x00ff_ffff,
        0x0100_0000,
        0x0c00_0000,
        0x3300_0000,
        0x3380_0000,
        0x33ff_ffff,
        0x3400_0000,
        0x387f_c000,
        0x387f_e000,
        0x387f_f000,
        0x3880_0000,
        0x3eff_ffff,
        0x3f00_0000,
        0x3f00_0001,
        0x3f7f_ffff,
        0x3f80_0000,
        0x3f80_0001,
        0x3f80_1000,
        0x3f80_3000,
        0x3f80_8000,
        0x3f81_8000,
        0x3fc0_0000,
        0x4000_0000,
        0x4020_0000,
        0x4060_0000,
        0x42fe_0000,
        0x42ff_0000,
        0x4300_0000,
        0x437e_8000,
        0x437f_8000,
        0x4380_0000,
        0x43e0_0000,
        0x43e8_0000,
        0x43e8_0001,
        0x477f_e000,
        0x477f_efff,
        0x477f_f000,
        0x477f_ff80,
        0x4780_0000,
        0x4aff_ffff,
        0x4b00_0001,
        0x4b80_0000,
        0x4eff_ffff,
        0x4f00_0000,
        0x4f7f_ffff,
        0x4f80_0000,
        0x5eff_ffff,
        0x5f00_0000,
        0x5f7f_ffff,
        0x5f80_0000,
        0x7e7f_ffff,
        0x7e80_0000,
        0x7e80_0001,
        0x7f00_0000,
        0x7f7f_0000,
        0x7f7f_7fff,
        0x7f7f_8000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7f80_0001,
        0x7f80_1fff,
        0x7fc0_0000,
        0x7fff_ffff,
    ];
    positive.iter().flat_map(|x| [*x, x | 0x8000_0000]).collect()
}

/// The same for `f64`: the `f32` list widened, and what only `f64` has.
pub(crate) fn special_f64() -> Vec<u64> {
    let own = [
        0x0000_0000_0000_0001,
        0x000f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x0010_0000_0000_0001,
        0x0020_0000_0000_0000,
        0x3690_0000_0000_0000,
        0x3690_0000_0000_0001,
        0x36a0_0000_0000_0000,
        0x36a8_0000_0000_0000,
        0x3ca0_0000_0000_0000,
        0x3cb0_0000_0000_0000,
        0x3fef_ffff_ffff_ffff,
        0x3ff0_0000_0000_0001,
        0x41df_ffff_ffc0_0000,
        0x41ef_ffff_ffe0_0000,
        0x432f_ffff_ffff_ffff,
        0x4330_0000_0000_0001,
        0x43df_ffff_ffff_ffff,
        0x43ef_ffff_ffff_ffff,
        0x47ef_ffff_efff_ffff,
        0x47ef_ffff_f000_0000,
        0x5fe0_0000_0000_0000,
        0x7fd0_0000_0000_0000,
        0x7fe0_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x7ff0_0000_0000_0001,
        0x7ff8_0000_0000_0000,
        0xfff8_0000_0000_0000,
    ];
    let widened = special_f32().into_iter().map(|x| f64::from(f32::from_bits(x)).to_bits());
    own.iter().flat_map(|x| [*x, x ^ 1 << 63]).chain(widened).collect()
}

/// Every pair of two lists.
pub(crate) fn pairs<T: Copy>(list: &[T]) -> Vec<(T, T)> {
    list.iter().flat_map(|a| list.iter().map(|b| (*a, *b))).collect()
}
