//! Checked shapes and options.

use super::{
    Map, Options, Policy,
    job::{self, Job},
};
use crate::{
    DeviceInfo, Error, Result, Shape, Stride,
    strided::{self, MAX_EXTENT, Strided},
};

/// The tensors of a shape, as they lie in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub q: Strided,
    pub k: Strided,
    pub v: Strided,
    pub o: Strided,
    pub den: Strided,
    pub kv: Strided,
    pub ksum: Strided,
    pub cu_seqlens: Strided,
    pub prefix_len: Strided,
}

impl Layout {
    fn new(shape: &Shape, options: &Options) -> Self {
        let Shape { batch, seq_len, heads, query_heads, key_heads, key_dim, value_dim, packed, strides } = *shape;
        let size = options.dtype.size();
        let tensor = |heads: usize, width: usize, stride: Option<Stride>| {
            let Stride { batch: b, token, head } = stride.unwrap_or(Stride::dense(seq_len, heads, width));
            Strided::new([batch, seq_len, heads], [b, token, head], width, size)
        };
        let (sequences, features) = (shape.sequences(), options.map.features(key_dim));
        Self {
            q: tensor(query_heads, key_dim, strides.q),
            k: tensor(key_heads, key_dim, strides.k),
            v: tensor(heads, value_dim, strides.v),
            o: tensor(heads, value_dim, strides.o),
            den: Strided::dense([batch, seq_len, heads], 1, 4),
            kv: Strided::dense([1, sequences, heads], features.saturating_mul(value_dim), 4),
            ksum: Strided::dense([1, sequences, heads], features, 4),
            cu_seqlens: packed.map_or(Strided::NONE, |n| Strided::dense([1, 1, 1], n.saturating_add(1), 4)),
            prefix_len: Strided::dense([1, 1, 1], sequences, 4),
        }
    }
}

/// A checked reduction.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) shape: Shape,
    pub(super) options: Options,
    pub(super) layout: Layout,
    pub(super) job: Job,
}

impl Plan {
    pub(super) const OP: &str = "time_reduce";

    /// Checks sizes and strides, finds the kernel and cuts the work into blocks.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, packed sequences in several rows, or a policy out of bounds; [`Error::Shape`] ← a number of heads
    /// that does not divide `heads`; [`Error::Layout`] ← a negative stride, or rows of `o` that overlap; [`Error::NoKernel`] ← a normaliser with
    /// [`Map::Softmax`], or log-decay strides; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        Self::named(Self::OP, shape, options, device)
    }

    pub(super) fn named(op: &'static str, shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        strided::range(op, "batch", shape.batch, 0, MAX_EXTENT)?;
        strided::range(op, "seq_len", shape.seq_len, 0, MAX_EXTENT)?;
        strided::range(op, "heads", shape.heads, 0, MAX_EXTENT)?;
        job::key_dim(op, options.map, shape.key_dim)?;
        strided::range(op, "value_dim", shape.value_dim, 1, MAX_EXTENT)?;
        for (arg, heads) in [("query_heads", shape.query_heads), ("key_heads", shape.key_heads)] {
            strided::range(op, arg, heads, usize::from(shape.heads > 0), shape.heads)?;
            if heads > 0 && !shape.heads.is_multiple_of(heads) {
                let want = format!("a divisor of the {} heads", shape.heads);
                return Err(Error::Shape { op, arg, want, got: vec![heads as u64] });
            }
        }
        if let Some(sequences) = shape.packed {
            strided::range(op, "packed", sequences, 1, MAX_EXTENT)?;
            strided::range(op, "batch", shape.batch, 1, 1)?;
        }
        if options.map == Map::Softmax && options.normalize.is_some() {
            return Err(Error::NoKernel {
                op,
                request: "a normaliser with a softmax, whose weights add up to 1".into(),
            });
        }
        let layout = Layout::new(shape, options);
        for (arg, tensor) in [("q", &layout.q), ("k", &layout.k), ("v", &layout.v)] {
            tensor.readable(op, arg)?;
        }
        layout.o.writable(op, "o")?;
        layout.kv.writable(op, "kv")?;
        let policy = options.policy.unwrap_or(Policy::of(shape, device));
        let job = Job::new(op, shape, options.dtype, options.map, policy, device)?;
        Ok(Self { shape: *shape, options: *options, layout, job })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, in a [`Workspace`](super::Workspace).
    pub fn workspace_bytes(&self) -> u64 {
        self.job.workspace_bytes()
    }

    /// Bytes that must cross the memory bus at least: `q`, `k`, `v` and `o`. Summing stays in the cache.
    pub fn bytes_moved(&self) -> u64 {
        let Layout { q, k, v, o, .. } = &self.layout;
        q.bytes() + k.bytes() + v.bytes() + o.bytes()
    }

    /// Floating-point operations of both products; maps are not counted.
    pub fn flops(&self) -> u64 {
        self.job.flops()
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.shape.batch == 0 || self.shape.heads == 0
    }
}
