//! Plans: shapes and options checked, kernels chosen, memory counted.

use crate::{
    DeviceInfo, Error, Options, Result, Shape, Stride,
    check::{self, Tensor},
    policy::{self, Pass, Policy},
    workspace,
};
use lookback_kernels::Kernel;

/// One variant of a pass: how it cuts the tensors into tiles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiling {
    pub kernel: &'static Kernel,
    pub policy: Policy,
    /// Channel blocks of a row, forward ones first.
    pub blocks: u32,
    pub forward_blocks: u32,
    pub streams: u32,
    pub chunks: u32,
}

impl Tiling {
    pub fn tiles(&self) -> u32 {
        self.streams * self.chunks
    }

    fn new(op: &'static str, pass: Pass, shape: &Shape, options: &Options, vec: usize) -> Result<Self> {
        let policy = policy::policy(pass, options.source, vec, options.deterministic);
        let name = match pass {
            Pass::Forward => "gated_scan_fwd",
            Pass::Backward => "gated_scan_bwd",
        };
        let (source, dtype) = (options.source.variant(), options.dtype.name());
        let kernel = lookback_kernels::find(name, &[("source", source), ("dtype", dtype), ("vec", &vec.to_string())]);
        let request = || format!("{name}, source {source}, {dtype}, {vec} channels a lane");
        let kernel = kernel.ok_or_else(|| Error::NoKernel { op, request: request() })?;
        let forward_blocks = options.split.div_ceil(policy.tile_channels());
        let blocks = forward_blocks + (shape.channels - options.split).div_ceil(policy.tile_channels());
        let chunks = shape.seq_len.div_ceil(policy.tile_tokens()).max(1);
        let streams = shape.batch.saturating_mul(blocks);
        check::range(op, "tiles", streams.saturating_mul(chunks), 0, check::MAX_TILES)?;
        Ok(Self {
            kernel,
            policy,
            blocks: blocks as u32,
            forward_blocks: forward_blocks as u32,
            streams: streams as u32,
            chunks: chunks as u32,
        })
    }
}

/// What both passes share.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub op: &'static str,
    pub shape: Shape,
    pub options: Options,
    /// Accesses of one element, for any address.
    pub narrow: Tiling,
    /// Accesses of 8 bytes, where extents and strides allow it.
    pub wide: Option<Tiling>,
}

impl Frame {
    pub fn new(
        op: &'static str,
        pass: Pass,
        shape: &Shape,
        options: &Options,
        device: &DeviceInfo,
        tensors: &[Tensor],
    ) -> Result<Self> {
        check::range(op, "batch", shape.batch, 0, check::MAX_EXTENT)?;
        check::range(op, "seq_len", shape.seq_len, 0, check::MAX_EXTENT)?;
        check::range(op, "channels", shape.channels, 0, check::MAX_EXTENT)?;
        check::range(op, "split", options.split, 0, shape.channels)?;
        if let Some(sequences) = shape.packed {
            check::range(op, "packed", sequences, 1, check::MAX_EXTENT)?;
            check::range(op, "batch", shape.batch, 1, 1)?;
        }
        let vec = policy::wide(options.dtype);
        let whole = shape.channels.is_multiple_of(vec) && options.split.is_multiple_of(vec);
        let fits = whole && tensors.iter().all(|t| t.steps_by(vec));
        let tiling = |vec| Tiling::new(op, pass, shape, options, vec);
        let frame = Self {
            op,
            shape: *shape,
            options: *options,
            narrow: tiling(1)?,
            wide: if fits { Some(tiling(vec)?) } else { None },
        };
        for kernel in [Some(frame.narrow), frame.wide].into_iter().flatten().map(|t| t.kernel) {
            if !kernel.target.runs_on(device.compute_capability) {
                let got = device.compute_capability;
                return Err(Error::Arch { kernel: kernel.entry, need: kernel.target.to_string(), got });
            }
        }
        Ok(frame)
    }

    /// A `[B,T,D]` tensor of elements.
    pub fn tensor(shape: &Shape, options: &Options, stride: Stride) -> Tensor {
        check::tokens([shape.batch, shape.seq_len], shape.channels, stride, options.dtype.size())
    }

    /// `[N,D]` f32.
    pub fn states(&self) -> Tensor {
        check::rows(self.shape.sequences(), self.shape.channels, 4)
    }

    /// `[D]` f32.
    pub fn channel_array(&self) -> Tensor {
        check::rows(1, self.shape.channels, 4)
    }

    /// `[B,T]` u8, or nothing to check if absent.
    pub fn flags(&self) -> Tensor {
        check::rows(self.shape.batch, self.shape.seq_len, 1)
    }

    /// `[N+1]` i32.
    pub fn cu_seqlens(&self) -> Tensor {
        check::rows(1, self.shape.sequences() + 1, 4)
    }

    /// Elements of a `[B,T,D]` tensor.
    pub fn elements(&self) -> u64 {
        Self::tensor(&self.shape, &self.options, self.shape.strides.h).elements()
    }

    /// Whether there is anything to do.
    pub fn is_empty(&self) -> bool {
        self.shape.batch == 0 || self.shape.channels == 0
    }

    /// Workspace for every variant; `reduces`: tiles leave sums over channels in it.
    pub fn workspace_bytes(&self, reduces: bool) -> u64 {
        let slots = |t: Tiling| match t.chunks > 1 || reduces {
            true => u64::from(t.tiles()) * t.policy.vec as u64,
            false => 0,
        };
        workspace::bytes_for(slots(self.narrow).max(self.wide.map_or(0, slots)))
    }

    /// The widest variant that these addresses allow: of elements, and of f32 states.
    pub fn pick(&self, elements: &[u64], states: &[u64]) -> Tiling {
        let Some(wide) = self.wide else { return self.narrow };
        let vec = wide.policy.vec as u64;
        let on = |addresses: &[u64], bytes: u64| addresses.iter().all(|a| a.is_multiple_of(bytes));
        let fits = on(elements, vec * self.options.dtype.size() as u64) && on(states, vec * 4);
        if fits { wide } else { self.narrow }
    }
}

/// A checked forward scan.
///
/// Made from a shape, options and the device; allocates nothing and may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) frame: Frame,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) x: Tensor,
    pub(crate) h: Tensor,
}

impl Plan {
    pub(crate) const OP: &str = "gated_scan";

    /// Checks sizes and strides, cuts tiles and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, `split` above `channels`, or packed sequences in several rows;
    /// [`Error::Layout`] ← a negative stride, or tokens of `h` that overlap; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let tensor = |stride| Frame::tensor(shape, options, stride);
        let strides = shape.strides;
        let (a, b, x, h) = (tensor(strides.a), tensor(strides.b), tensor(strides.x), tensor(strides.h));
        let [name_a, name_b, name_x, _] = options.source.names();
        let source = options.source;
        let read: Vec<(&'static str, Tensor)> =
            [(source.has_a(), name_a, a), (true, name_b, b), (source.is_producer(), name_x, x)]
                .into_iter()
                .filter_map(|(there, name, t)| there.then_some((name, t)))
                .collect();
        for (name, tensor) in &read {
            tensor.readable(Self::OP, name)?;
        }
        h.writable(Self::OP, "h")?;
        let all: Vec<Tensor> = read.iter().map(|(_, t)| *t).chain([h]).collect();
        Ok(Self { frame: Frame::new(Self::OP, Pass::Forward, shape, options, device, &all)?, a, b, x, h })
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, in a [`Workspace`](crate::Workspace): none when no
    /// sequence is longer than a tile.
    pub fn workspace_bytes(&self) -> u64 {
        self.frame.workspace_bytes(false)
    }

    /// Bytes that must cross the memory bus at least, with initial and final states.
    pub fn bytes_moved(&self) -> u64 {
        let source = self.frame.options.source;
        let tensors = 2 + u64::from(source.has_a()) + u64::from(source.is_producer());
        let channel = if source.has_channel() { self.frame.channel_array().bytes() } else { 0 };
        tensors * self.h.bytes() + 2 * self.frame.states().bytes() + channel
    }

    /// Floating-point operations of the recurrence; making the gates is not counted.
    pub fn flops(&self) -> u64 {
        2 * self.frame.elements()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Source, Strides};

    pub(crate) fn device() -> DeviceInfo {
        DeviceInfo {
            name: "test".into(),
            compute_capability: (9, 0),
            sm_count: 132,
            shared_per_block_optin: 232_448,
            driver_version: 13_000,
            emulated: true,
        }
    }

    fn plan(shape: &Shape, source: Source, split: usize) -> Result<Plan> {
        Plan::new(shape, &Options { split, ..Options::new::<f32>(source, shape) }, &device())
    }

    #[test]
    fn plan_cuts_directions_into_separate_blocks() {
        let plan = plan(&Shape::dense(3, 300, 100), Source::Tensor, 70).expect("good");
        let wide = plan.frame.wide.expect("70 and 100 are even");
        assert_eq!((wide.forward_blocks, wide.blocks, wide.streams, wide.chunks), (2, 3, 9, 3));
        assert_eq!((plan.frame.narrow.forward_blocks, plan.frame.narrow.blocks), (3, 4));
    }

    #[test]
    fn plan_falls_back_to_single_elements() {
        for shape in [
            Shape::dense(1, 10, 63),
            Shape { strides: Strides::all(Stride { batch: 0, token: 65 }), ..Shape::dense(1, 10, 64) },
        ] {
            assert!(plan(&shape, Source::Tensor, 0).expect("good").frame.wide.is_none());
        }
        assert!(plan(&Shape::dense(1, 10, 64), Source::Tensor, 3).expect("good").frame.wide.is_none());
        let plan = plan(&Shape::dense(1, 10, 64), Source::Tensor, 2).expect("good");
        assert_eq!(plan.frame.pick(&[0, 4096, 8], &[8]).policy.vec, 2);
        assert_eq!(plan.frame.pick(&[4], &[]).policy.vec, 1);
        assert_eq!(plan.frame.pick(&[], &[4]).policy.vec, 1);
    }

    #[test]
    fn plan_needs_a_workspace_only_for_several_chunks() {
        let bytes = |t| plan(&Shape::dense(2, t, 64), Source::Tensor, 64).expect("good").workspace_bytes();
        assert_eq!(bytes(0), 0);
        assert_eq!(bytes(128), 0);
        assert_eq!(bytes(129), workspace::bytes_for(8));
    }

    #[test]
    fn plan_counts_what_moves() {
        let plan = |source| plan(&Shape::dense(2, 10, 64), source, 64).expect("good");
        let (tensor, states) = (2 * 10 * 64 * 4, 2 * 2 * 64 * 4);
        assert_eq!(plan(Source::Tensor).bytes_moved(), 3 * tensor + states);
        assert_eq!(plan(Source::Cumsum).bytes_moved(), 2 * tensor + states);
        assert_eq!(plan(Source::RgLru { unit_at_reset: true }).bytes_moved(), 4 * tensor + states + 64 * 4);
        assert_eq!(plan(Source::Tensor).flops(), 2 * 2 * 10 * 64);
    }

    #[test]
    fn plan_refuses_what_kernels_cannot_count() {
        let refuse = |shape: Shape, split: usize, name: &str| {
            let error = plan(&shape, Source::Tensor, split).expect_err(name);
            let named = match error {
                Error::Range { arg, .. } | Error::Layout { arg, .. } => arg,
                other => panic!("{name}: {other}"),
            };
            assert_eq!(named, name);
        };
        refuse(Shape::dense(1, 4, 8), 9, "split");
        refuse(Shape::dense(1, 1 << 31, 8), 8, "seq_len");
        refuse(Shape::dense(1, 4, 1 << 31), 8, "channels");
        refuse(Shape::dense(1 << 31, 4, 8), 8, "batch");
        refuse(Shape { batch: 2, ..Shape::packed(3, 4, 8) }, 8, "batch");
        refuse(Shape::packed(0, 4, 8), 8, "packed");
        let zero = Strides::all(Stride { batch: 0, token: 0 });
        refuse(Shape { strides: zero, ..Shape::dense(1 << 30, 1 << 20, 1) }, 1, "h");
        let one_token = Stride { batch: 0, token: 0 };
        let shape = Shape::dense(2, 4, 8);
        let strides = Strides { a: one_token, b: one_token, ..shape.strides };
        assert!(plan(&Shape { strides, ..shape }, Source::Tensor, 8).is_ok(), "inputs may repeat");
        let strides = Strides { h: Stride { batch: 32, token: 7 }, ..shape.strides };
        refuse(Shape { strides, ..shape }, 8, "h");
        let strides = Strides { x: Stride { batch: -1, token: 0 }, ..shape.strides };
        assert!(plan(&Shape { strides, ..shape }, Source::Tensor, 8).is_ok(), "the source has no x");
        let tall =
            Shape { strides: Strides::all(Stride { batch: 1, token: 1 << 20 }), ..Shape::dense(1 << 20, 1 << 24, 1) };
        refuse(tall, 1, "tiles");
    }

    #[test]
    fn plan_refuses_an_old_device() {
        let shape = Shape::dense(1, 4, 8);
        let old = DeviceInfo { compute_capability: (7, 5), ..device() };
        let got = Plan::new(&shape, &Options::new::<f32>(Source::Tensor, &shape), &old);
        assert!(matches!(got, Err(Error::Arch { got: (7, 5), .. })));
    }
}
