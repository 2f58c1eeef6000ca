//! Seeded inputs, and the generator of the golden vectors.

use lookback_device::Element;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A stream of values that is the same on every machine.
pub struct Random(Pcg64Mcg);

impl Random {
    /// A stream for this seed.
    pub fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// Uniform in `lo..hi`.
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.0.random::<f64>()
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n.max(1))
    }

    /// Standard normal, by the sum of twelve uniforms: tails do not matter here.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.0.random::<f64>()).sum::<f64>() - 6.0
    }

    /// `n` normal values rounded to the element type.
    pub fn normals<T: Element>(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| round::<T>(self.normal())).collect()
    }

    /// `n` values uniform in `lo..hi` rounded to the element type.
    pub fn uniforms<T: Element>(&mut self, n: usize, lo: f64, hi: f64) -> Vec<f64> {
        (0..n).map(|_| round::<T>(self.uniform(lo, hi))).collect()
    }
}

/// The value that the device will see.
pub fn round<T: Element>(value: f64) -> f64 {
    T::from_f64(value).to_f64()
}

/// Golden-vector inputs: `sin(phase + 0.7 i + 0.3 (i² mod 7))` for `i` from 0.
pub fn golden(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}
