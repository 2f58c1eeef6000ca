//! What a launch did, counted: the performance evidence that needs no GPU.
//!
//! [`Counters`] are plain sums. A [`Recorder`] fills them during one launch; it knows the rules by which a device
//! splits a warp's request into 32-byte sectors (global) and wavefronts (shared).

mod json;
mod recorder;
mod sectors;
#[cfg(test)]
mod tests;
mod unique;
mod wavefronts;

pub use recorder::{Counting, Direction, Recorder};
pub use sectors::Sectors;
pub use wavefronts::Wavefronts;

use std::ops::AddAssign;

/// What kind of work an instruction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Integer, logic, predicates, moves.
    Integer,
    /// Floating-point add, multiply, fused multiply-add, compare, min, max.
    Float,
    /// `cvt`.
    Convert,
    /// `ex2`, `lg2`, `rcp`, `rsqrt`, `sqrt`, `tanh`, `sin`, `cos`, `div`.
    Special,
    /// Global memory, atomics included.
    Global,
    /// Shared memory, `ldmatrix` included.
    Shared,
    /// `mma`.
    Tensor,
    /// Branches and exits.
    Control,
    /// Barriers, fences, shuffles, votes, waits.
    Sync,
    /// All else.
    Other,
}

impl Class {
    /// All classes, in the order of [`Counters::instructions`].
    pub const ALL: [Class; 10] = [
        Class::Integer,
        Class::Float,
        Class::Convert,
        Class::Special,
        Class::Global,
        Class::Shared,
        Class::Tensor,
        Class::Control,
        Class::Sync,
        Class::Other,
    ];

    /// Name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Float => "float",
            Class::Convert => "convert",
            Class::Special => "special",
            Class::Global => "global",
            Class::Shared => "shared",
            Class::Tensor => "tensor",
            Class::Control => "control",
            Class::Sync => "sync",
            Class::Other => "other",
        }
    }
}

/// Traffic of one direction between warps and global memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GlobalTraffic {
    /// Warp requests.
    pub requests: u64,
    /// Bytes asked for by all lanes.
    pub bytes: u64,
    /// 32-byte sectors that the requests touched, each request for itself.
    pub sectors: u64,
    /// Sectors that the same bytes would need if they were dense and aligned.
    pub ideal_sectors: u64,
    /// Distinct bytes touched in one launch, summed over launches. Counted with [`Counting::Full`] only.
    pub unique_bytes: u64,
}

/// Traffic of one direction between warps and shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SharedTraffic {
    /// Warp requests.
    pub requests: u64,
    /// Bytes asked for by all lanes.
    pub bytes: u64,
    /// Passes over the 32 banks.
    pub wavefronts: u64,
    /// Passes without a bank conflict.
    pub ideal_wavefronts: u64,
}

/// Matrix instructions of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorCount {
    /// Rows of D.
    pub m: u32,
    /// Columns of D.
    pub n: u32,
    /// Length of the inner products.
    pub k: u32,
    /// Type of A and B, as in PTX: "bf16".
    pub input: &'static str,
    /// Warp instructions.
    pub count: u64,
}

impl TensorCount {
    /// Multiplications and additions, two per product.
    pub fn flops(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k) * self.count
    }
}

/// Everything that was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Launches in this sum.
    pub launches: u64,
    /// CTAs that ran.
    pub ctas: u64,
    /// Most CTAs that were resident at once in one launch.
    pub max_resident_ctas: u64,
    /// Warp instructions by class, in the order of [`Class::ALL`].
    pub instructions: [u64; Class::ALL.len()],
    /// Lanes that took part, summed over warp instructions.
    pub lanes: u64,
    /// Reads of global memory.
    pub global_loads: GlobalTraffic,
    /// Writes of global memory, without atomics.
    pub global_stores: GlobalTraffic,
    /// Atomics on global memory.
    pub global_atomics: GlobalTraffic,
    /// Reads of shared memory, without `ldmatrix`.
    pub shared_loads: SharedTraffic,
    /// Writes of shared memory.
    pub shared_stores: SharedTraffic,
    /// Atomics on shared memory.
    pub shared_atomics: SharedTraffic,
    /// `ldmatrix` and `stmatrix`; without conflicts a wavefront per 8 by 8 matrix.
    pub matrix_loads: SharedTraffic,
    /// Bytes copied by `cp.async`, zero fill not counted.
    pub async_copy_bytes: u64,
    /// Matrix instructions by shape.
    pub tensor: Vec<TensorCount>,
    /// CTA barriers, counted once per arriving warp.
    pub barriers: u64,
    /// Branches at which the active lanes of a warp parted.
    pub divergent_branches: u64,
}

impl Counters {
    /// Warp instructions of all classes.
    pub fn warp_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Warp instructions of one class.
    pub fn class(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// Multiplications and additions on tensor cores.
    pub fn tensor_flops(&self) -> u64 {
        self.tensor.iter().map(TensorCount::flops).sum()
    }

    /// Passes over shared memory beyond the ideal.
    pub fn bank_conflicts(&self) -> u64 {
        [self.shared_loads, self.shared_stores, self.shared_atomics, self.matrix_loads]
            .iter()
            .map(|traffic| traffic.wavefronts - traffic.ideal_wavefronts)
            .sum()
    }

    /// All of it as one JSON object.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// The entry for that shape, made when it is new.
    pub(super) fn tensor_entry(&mut self, m: u32, n: u32, k: u32, input: &'static str) -> &mut u64 {
        let same = |entry: &TensorCount| (entry.m, entry.n, entry.k) == (m, n, k) && entry.input == input;
        let index = self.tensor.iter().position(same).unwrap_or_else(|| {
            self.tensor.push(TensorCount { m, n, k, input, count: 0 });
            self.tensor.len() - 1
        });
        &mut self.tensor[index].count
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        self.launches += other.launches;
        self.ctas += other.ctas;
        self.max_resident_ctas = self.max_resident_ctas.max(other.max_resident_ctas);
        for (sum, count) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += count;
        }
        self.lanes += other.lanes;
        self.global_loads += other.global_loads;
        self.global_stores += other.global_stores;
        self.global_atomics += other.global_atomics;
        self.shared_loads += other.shared_loads;
        self.shared_stores += other.shared_stores;
        self.shared_atomics += other.shared_atomics;
        self.matrix_loads += other.matrix_loads;
        self.async_copy_bytes += other.async_copy_bytes;
        for entry in &other.tensor {
            *self.tensor_entry(entry.m, entry.n, entry.k, entry.input) += entry.count;
        }
        self.barriers += other.barriers;
        self.divergent_branches += other.divergent_branches;
    }
}

impl AddAssign for GlobalTraffic {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
        self.unique_bytes += other.unique_bytes;
    }
}

impl AddAssign for SharedTraffic {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.wavefronts += other.wavefronts;
        self.ideal_wavefronts += other.ideal_wavefronts;
    }
}
