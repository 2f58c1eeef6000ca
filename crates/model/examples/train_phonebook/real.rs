//! The arithmetic that the network is written in: f32 to train, f64 to check the gradient.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// A matrix inside a slice: row and column strides, in elements.
#[derive(Clone, Copy)]
pub struct Matrix<'a, R> {
    /// First element is element (0, 0).
    pub data: &'a [R],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub column: usize,
}

impl<'a, R> Matrix<'a, R> {
    /// Rows of `width` elements.
    pub fn rows(data: &'a [R], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transpose of rows of `width` elements.
    pub fn transposed(data: &'a [R], width: usize) -> Self {
        Self { data, row: 1, column: width }
    }

    /// Elements from the first to the last of an (m, n) matrix, both included.
    fn extent(&self, m: usize, n: usize) -> usize {
        (m - 1) * self.row + (n - 1) * self.column + 1
    }
}

/// A floating-point type.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Rounds to this type.
    fn of(value: f64) -> Self;
    /// The value in f64.
    fn to_f64(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// exp(x), of a form that loops vectorise over where training needs it.
    fn exp(self) -> Self;
    /// c[m, n] = a[m, k] b[k, n] + beta c, with c in rows of n.
    fn gemm(dims: [usize; 3], a: Matrix<Self>, b: Matrix<Self>, beta: Self, c: &mut [Self]);
    /// 1 / (1 + exp(-x)).
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

macro_rules! gemm_with {
    ($routine:path) => {
        fn gemm([m, k, n]: [usize; 3], a: Matrix<Self>, b: Matrix<Self>, beta: Self, c: &mut [Self]) {
            assert!(m > 0 && k > 0 && n > 0, "an empty product");
            assert!(a.data.len() >= a.extent(m, k) && b.data.len() >= b.extent(k, n) && c.len() >= m * n);
            // SAFETY: the assertion above keeps every element of the three matrices inside its slice, and `c` is
            // borrowed mutably, so it overlaps neither input.
            unsafe {
                $routine(
                    m,
                    k,
                    n,
                    1.0,
                    a.data.as_ptr(),
                    a.row as isize,
                    a.column as isize,
                    b.data.as_ptr(),
                    b.row as isize,
                    b.column as isize,
                    beta,
                    c.as_mut_ptr(),
                    n as isize,
                    1,
                );
            }
        }
    };
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }

    /// Splits x log2(e) into a whole and a fraction by adding a large number, takes 2^fraction from its series, and
    /// puts the whole into the exponent: no call and no branch, about 1 ulp.
    #[inline(always)]
    fn exp(self) -> Self {
        const SHIFT: f32 = 12_582_912.0;
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + SHIFT;
        let whole = shifted - SHIFT;
        let r = x - whole * LN_2_HIGH - whole * LN_2_LOW;
        let tail = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0));
        let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * tail))));
        let exponent = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23;
        series * f32::from_bits(exponent)
    }

    gemm_with!(matrixmultiply::sgemm);
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }

    fn exp(self) -> Self {
        self.exp()
    }

    gemm_with!(matrixmultiply::dgemm);
}

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn exp_is_close_over_its_whole_range() {
        for step in 0..=17_400 {
            let x = -87.0 + step as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(Real::exp(x)) / exact - 1.0).abs();
            assert!(error < 3e-7, "exp({x}): relative error {error:e}");
        }
    }
}
