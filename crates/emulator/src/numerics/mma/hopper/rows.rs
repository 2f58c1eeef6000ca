//! The sums row by row, eight elements side by side, in `f32`: a product of two operands of at most 11 significant bits is
//! exact, scaling it by a power of two is exact, and the conversion to an integer truncates as the aligning shifter does.
//!
//! The same steps are written twice, once with AVX2 instructions: left to itself, the compiler turns the loops inside out.

use super::super::layout::{MatrixA, MatrixB, MatrixC};
use super::{FRACTION, ZERO, power_f64};

/// Below this, a largest exponent leaves the range where `f32` products do the alignment exactly.
const LOWEST: i32 = -80;
/// Between a sum of two exponents and one in which a zero takes part.
const NOTHING: i32 = 2 * ZERO / 3;
/// Clearing the bits that `f32` has not is truncation, because no sum is small enough to become subnormal.
const BEYOND_F32: u64 = (1 << 29) - 1;

/// Operands with no infinity, no NaN, and no product of 2^127 or more.
pub(super) struct Operands<'a> {
    pub k: usize,
    pub a: &'a MatrixA,
    pub a_exponents: &'a [[i32; 16]; 16],
    pub b: &'a MatrixB,
    pub b_exponents: &'a [[i32; 8]; 16],
    pub c: &'a MatrixC,
    pub c_exponents: &'a [[i32; 8]; 16],
}

/// What comes of them.
pub(super) struct Sums {
    pub exact: [[f64; 8]; 16],
    /// The same, truncated to `f32`.
    pub truncated: MatrixC,
    /// A bit for each row in which some element's exponents are too low for this way.
    pub low: u32,
}

impl Operands<'_> {
    /// The sums, in plain words.
    #[inline(always)]
    pub fn plain(&self) -> Sums {
        let mut sums = Sums { exact: [[0.0; 8]; 16], truncated: [[0; 8]; 16], low: 0 };
        for i in 0..16 {
            let mut largest = self.c_exponents[i];
            for p in 0..self.k {
                for j in 0..8 {
                    largest[j] = largest[j].max(self.a_exponents[i][p] + self.b_exponents[p][j]);
                }
            }
            let mut scale = [0.0; 8];
            for j in 0..8 {
                sums.low |= u32::from(largest[j] < LOWEST && largest[j] > NOTHING) << i;
                largest[j] = largest[j].max(LOWEST);
                scale[j] = f32::from_bits(((FRACTION - largest[j] + 127) as u32) << 23);
            }
            let mut products = [0i32; 8];
            for p in 0..self.k {
                let x = f32::from_bits(self.a[i][p]);
                for j in 0..8 {
                    // A product is below 4 times 2^largest, so a term is below 2^27 and sixteen of them below 2^31.
                    products[j] += (x * f32::from_bits(self.b[p][j]) * scale[j]) as i32;
                }
            }
            for j in 0..8 {
                let addend = (f32::from_bits(self.c[i][j]) * scale[j]) as i32;
                let exact = (f64::from(products[j]) + f64::from(addend)) * power_f64(largest[j] - FRACTION);
                sums.exact[i][j] = exact;
                sums.truncated[i][j] = (f64::from_bits(exact.to_bits() & !BEYOND_F32) as f32).to_bits();
            }
        }
        sums
    }

    /// As [`Operands::plain`], for callers that are compiled for AVX2.
    #[inline(always)]
    pub fn wide(&self) -> Sums {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: only code that is compiled for AVX2 and was picked by `has_avx2_fma` calls this.
            unsafe { avx2(self) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self.plain()
        }
    }
}

/// The same steps as in [`Operands::plain`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(x: &Operands<'_>) -> Sums {
    use std::arch::x86_64::*;

    // SAFETY: eight words are there to read.
    let integers = |row: &[i32; 8]| unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
    // SAFETY: as above.
    let floats = |row: &[u32; 8]| unsafe { _mm256_loadu_ps(row.as_ptr().cast()) };
    let halves = |x: __m256i| [_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)];

    let mut sums = Sums { exact: [[0.0; 8]; 16], truncated: [[0; 8]; 16], low: 0 };
    for i in 0..16 {
        let mut largest = integers(&x.c_exponents[i]);
        for p in 0..x.k {
            let exponents = _mm256_add_epi32(_mm256_set1_epi32(x.a_exponents[i][p]), integers(&x.b_exponents[p]));
            largest = _mm256_max_epi32(largest, exponents);
        }
        let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(LOWEST), largest);
        let something = _mm256_cmpgt_epi32(largest, _mm256_set1_epi32(NOTHING));
        let low = _mm256_movemask_epi8(_mm256_and_si256(below, something)) != 0;
        sums.low |= u32::from(low) << i;
        largest = _mm256_max_epi32(largest, _mm256_set1_epi32(LOWEST));
        let field = _mm256_sub_epi32(_mm256_set1_epi32(FRACTION + 127), largest);
        let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(field));

        let mut products = _mm256_setzero_si256();
        for p in 0..x.k {
            let product = _mm256_mul_ps(_mm256_set1_ps(f32::from_bits(x.a[i][p])), floats(&x.b[p]));
            products = _mm256_add_epi32(products, _mm256_cvttps_epi32(_mm256_mul_ps(product, scale)));
        }
        let addend = _mm256_cvttps_epi32(_mm256_mul_ps(floats(&x.c[i]), scale));

        let units = _mm256_sub_epi32(largest, _mm256_set1_epi32(FRACTION - 1023));
        let (products, addend, units) = (halves(products), halves(addend), halves(units));
        for half in 0..2 {
            let sum = _mm256_add_pd(_mm256_cvtepi32_pd(products[half]), _mm256_cvtepi32_pd(addend[half]));
            let unit = _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_cvtepi32_epi64(units[half])));
            let exact = _mm256_mul_pd(sum, unit);
            let beyond = _mm256_castsi256_pd(_mm256_set1_epi64x(BEYOND_F32 as i64));
            let truncated = _mm256_cvtpd_ps(_mm256_andnot_pd(beyond, exact));
            // SAFETY: both rows have four places from 4 * half on.
            unsafe {
                _mm256_storeu_pd(sums.exact[i].as_mut_ptr().add(4 * half), exact);
                _mm_storeu_ps(sums.truncated[i].as_mut_ptr().add(4 * half).cast(), truncated);
            }
        }
    }
    sums
}
