//! Plans of any size, stride and option: themselves, with figures that do not overflow, or an error that blames the caller. Those that
//! `tests/properties.rs`, `attention::properties` and `decode::properties` do not make.

use lookback_attention::{self as attention, backward, merge};
use lookback_decode::{Cache, CacheType, Scales, append};
use lookback_device::{Class, DType, DeviceInfo, Error, Result};
use lookback_linear::{self as linear, flow, step, time_reduce as sums};
use lookback_nn::{copy_rows, pool, residual_norm, rms_norm};
use lookback_ring::{
    Layout, Partition, Visible, attention as ring,
    schedule::Kind,
    state::{self, Deal, Passing},
};
use lookback_scan::{self as scan, log_cumsum_exp as logs};
use lookback_suite::{device, random::Random};

/// Plans of an operation.
const PLANS: usize = 10_000;

/// What is drawn from.
struct Draw(Random);

impl Draw {
    /// Mostly small, sometimes at a power of two, sometimes absurd.
    fn extent(&mut self) -> usize {
        match self.0.below(20) {
            0..15 => self.0.below(40),
            15..18 => (1_usize << self.0.below(64)).wrapping_add(self.0.below(3)).wrapping_sub(1),
            18 => usize::MAX,
            _ => self.any(),
        }
    }

    fn any(&mut self) -> usize {
        self.0.below(1 << 32) << 32 | self.0.below(1 << 32)
    }

    /// A width that kernels have, or any.
    fn width(&mut self) -> usize {
        if self.0.below(8) == 0 { self.extent() } else { 8 * (1 + self.0.below(16)) }
    }

    fn step(&mut self) -> i64 {
        match self.0.below(10) {
            0 => self.any() as i64,
            1 => i64::MIN + self.0.below(2) as i64 * (i64::MAX - 1),
            _ => 8 * (self.0.below(400) as i64 - 2),
        }
    }

    fn stride(&mut self) -> attention::Stride {
        attention::Stride { batch: self.step(), token: self.step(), head: self.step() }
    }

    fn maybe<R>(&mut self, draw: impl FnOnce(&mut Self) -> R) -> Option<R> {
        (self.0.below(5) == 0).then(|| draw(self))
    }

    fn flag(&mut self) -> bool {
        self.0.below(2) == 0
    }

    fn of<R: Copy>(&mut self, all: &[R]) -> R {
        all[self.0.below(all.len())]
    }

    fn dtype(&mut self) -> DType {
        self.of(&DType::ALL)
    }

    fn number(&mut self) -> f32 {
        self.of(&[1.0, 0.5, 0.0, -1.0, f32::NAN, f32::INFINITY, 1e-30, f32::MAX])
    }
}

fn answers(what: &str, mut plan: impl FnMut(&mut Draw, &DeviceInfo) -> Result<[u64; 3]>) {
    let mut draw = Draw(Random::new(7));
    let device = device::info();
    let (mut made, mut refused) = (0, 0);
    for n in 0..PLANS {
        match plan(&mut draw, &device) {
            Ok(_) => made += 1,
            Err(error) => {
                refused += 1;
                let blames = error.class() == Class::Caller && error.outputs_untouched();
                assert!(blames && !matches!(error, Error::Workspace { .. }), "{what} {n}: {error}");
            }
        }
    }
    assert!(made > PLANS / 200 && refused > PLANS / 20, "{what}: {made} plans, {refused} refused");
}

macro_rules! figures {
    ($plan:expr) => {
        $plan.map(|plan| [plan.workspace_bytes(), plan.bytes_moved(), plan.flops()])
    };
}

#[test]
fn attention_backward_and_merge_plans() {
    answers("attention backward", |d, device| {
        let heads = d.extent();
        let shape = attention::Shape {
            key_heads: if d.flag() { heads } else { d.extent() },
            value_dim: d.width(),
            packed: d.maybe(Draw::extent),
            ..attention::Shape::dense(d.extent(), d.extent(), d.extent(), heads, d.width())
        };
        let mask = d.of(&[attention::Mask::Full, attention::Mask::Causal, attention::Mask::Intervals]);
        let scale = d.number();
        let attention = attention::Options {
            dtype: d.of(&[DType::F16, DType::Bf16, DType::F16, DType::F32]),
            mask,
            scale: if d.flag() { 1.0 } else { scale },
            softcap: d.maybe(Draw::number),
            offset: d.maybe(|d| d.any() as i32),
            output: d.of(&[attention::Output::Same, attention::Output::F32, attention::Output::Merge]),
        };
        let strides = backward::BackwardStrides {
            d_o: d.maybe(Draw::stride),
            dq: d.maybe(Draw::stride),
            dk: d.maybe(Draw::stride),
            dv: d.maybe(Draw::stride),
        };
        let gradient = d.of(&[backward::Gradient::Same, backward::Gradient::F32, backward::Gradient::Accumulate]);
        let options = backward::BackwardOptions { attention, deterministic: d.flag(), gradient, strides };
        figures!(backward::BackwardPlan::new(&shape, &options, device))
    });
    answers("merge", |d, device| {
        let dense = merge::Shape::dense(d.extent(), d.extent(), d.extent(), d.extent(), d.extent());
        let ragged = d.flag();
        let out_tokens = if d.flag() { dense.tokens } else { d.extent() };
        let shape = merge::Shape { ragged, out_tokens, first_token: d.maybe(Draw::extent).unwrap_or(0), ..dense };
        let options = merge::Options { dtype: d.dtype(), out: d.dtype(), accumulate: d.flag() };
        figures!(merge::Plan::new(&shape, &options, device))
    });
}

#[test]
fn append_plans() {
    answers("append", |d, device| {
        let cache = match d.0.below(3) {
            0 => Cache::Dense { capacity: d.extent() },
            1 => Cache::Ragged { tokens: d.extent() },
            _ => Cache::Paged { pages: d.extent(), page_size: d.extent(), table: d.extent() },
        };
        let (batch, tokens) = (d.extent(), d.extent());
        let shape = match d.0.below(3) {
            0 => append::Shape::new(batch, tokens % 100, d.extent(), d.width(), cache),
            1 => append::Shape::slots(tokens, batch, d.extent(), d.width(), cache),
            _ => append::Shape::packed(tokens, batch, d.extent(), d.width(), cache),
        };
        let strides = append::Strides { k_new: d.maybe(Draw::stride), k: d.maybe(Draw::stride), ..shape.strides };
        let shape = append::Shape { strides, value_dim: d.width(), ..shape };
        let turned = append::Rotary::new(append::Style::Half, shape.head_dim);
        let rotary = d.maybe(|d| append::Rotary { rotary_dim: d.extent(), ..turned });
        let cache = d.of(&[CacheType::Same, CacheType::E4m3(Scales::Head), CacheType::E4m3(Scales::Token)]);
        let options = append::Options { dtype: d.of(&[DType::F16, DType::Bf16, DType::F32]), cache, rotary };
        figures!(append::Plan::new(&shape, &options, device))
    });
}

#[test]
fn linear_attention_step_flow_and_sum_plans() {
    answers("step", |d, device| {
        let heads = d.extent();
        let dense = linear::Shape::dense(d.extent(), d.of(&[1, 1, 1, 2]), heads, d.extent(), d.extent());
        let shape = linear::Shape { key_heads: if d.flag() { heads } else { d.extent() }, ..dense };
        let strides = linear::Strides { q: d.maybe(Draw::stride), o: d.maybe(Draw::stride), ..shape.strides };
        let options = linear::Options {
            dtype: d.dtype(),
            normalize: d.maybe(Draw::number),
            decay: d.of(&[linear::Decay::None, linear::Decay::Vector]),
            ..linear::Options::new::<f32>(&shape)
        };
        figures!(step::Plan::new(&linear::Shape { strides, ..shape }, &options, device))
    });
    answers("flow", |d, device| {
        let dense = flow::Shape::causal(d.extent(), d.extent(), d.extent(), d.width(), d.width());
        let keys = if d.flag() { dense.keys } else { d.extent() };
        let shape = flow::Shape { causal: d.flag(), keys, packed: d.maybe(Draw::extent), ..dense };
        let options = flow::Options {
            dtype: d.dtype(),
            clamp: d.maybe(Draw::number),
            extra_eps: d.maybe(Draw::number).unwrap_or(0.0),
            mapped: d.flag(),
        };
        if d.flag() {
            return figures!(flow::Plan::new(&shape, &options, device));
        }
        figures!(flow::BackwardPlan::new(&shape, &options, device))
    });
    answers("time_reduce", |d, device| {
        let heads = d.extent();
        let dense = linear::Shape::dense(d.extent(), d.extent(), heads, d.width(), d.width());
        let shape = linear::Shape { packed: d.maybe(Draw::extent), query_heads: d.of(&[heads, 1]), ..dense };
        let map = d.of(&[sums::Map::Identity, sums::Map::EluPlusOne, sums::Map::Softmax, sums::Map::Taylor]);
        let scale = d.maybe(Draw::number).unwrap_or(1.0);
        let options = sums::Options { scale, normalize: d.maybe(Draw::number), ..sums::Options::new(d.dtype(), map) };
        if d.flag() {
            return figures!(sums::Plan::new(&shape, &options, device));
        }
        figures!(sums::BackwardPlan::new(&shape, &options, device))
    });
}

#[test]
fn log_cumsum_exp_and_row_plans() {
    answers("log_cumsum_exp", |d, device| {
        let dense = logs::Shape::dense(d.extent(), d.extent(), d.extent());
        let x = scan::Stride { batch: d.step(), token: d.step() };
        let shape = logs::Shape { packed: d.maybe(Draw::extent), x: d.maybe(|_| x).unwrap_or(dense.x), ..dense };
        let options = logs::Options { dtype: d.dtype(), reverse: d.flag() };
        if d.flag() {
            return figures!(logs::Plan::new(&shape, &options, device));
        }
        figures!(logs::BackwardPlan::new(&shape, &options, device))
    });
    answers("pool", |d, device| {
        let (sequences, tokens, width) = (d.extent(), d.extent(), d.extent());
        let packed = d.flag();
        let dense = if packed {
            pool::Shape::packed(sequences, tokens, width)
        } else {
            pool::Shape::dense(sequences, tokens, width)
        };
        let shape = pool::Shape { x_stride: d.maybe(Draw::step).unwrap_or(dense.x_stride), ..dense };
        let pooling = d.of(&[pool::Pooling::Mean, pool::Pooling::First]);
        figures!(pool::Plan::new(&shape, &pool::Options { dtype: d.dtype(), pooling, normalize: d.flag() }, device))
    });
    answers("copy_rows", |d, device| {
        let dense = copy_rows::Shape::dense(d.extent(), d.extent(), d.extent(), d.extent());
        let shape = copy_rows::Shape { x_stride: d.maybe(Draw::stride), out_stride: d.maybe(Draw::stride), ..dense };
        let options = copy_rows::Options { dtype: d.dtype(), out: d.dtype(), accumulate: d.flag() };
        figures!(copy_rows::Plan::new(&shape, &options, device))
    });
    answers("rms_norm backward", |d, device| {
        let dense = rms_norm::BackwardShape::dense(d.extent(), d.extent());
        let shape = rms_norm::BackwardShape { dx_stride: d.maybe(Draw::step).unwrap_or(dense.dx_stride), ..dense };
        figures!(rms_norm::BackwardPlan::new(&shape, d.dtype(), device))
    });
    answers("residual_norm backward", |d, device| {
        let dense = residual_norm::BackwardShape::dense(d.extent(), d.extent());
        let shape = residual_norm::BackwardShape { ds_stride: d.maybe(Draw::step).unwrap_or(dense.ds_stride), ..dense };
        let options = residual_norm::Options { dtype: d.dtype(), eps: d.number(), center: d.flag(), post: d.flag() };
        figures!(residual_norm::BackwardPlan::new(&shape, &options, device))
    });
}

/// A job of a few ranks, for one of them or for one that there is not.
fn dealt(d: &mut Draw) -> (Deal, usize, usize) {
    let (ranks, tokens) = (d.0.below(6), d.0.below(60));
    let blocks = d.extent();
    let passing = d.of(&[Passing::Serial, Passing::AllGather, Passing::Pipelined { blocks }]);
    let documents = d.maybe(|d| (0..1 + d.0.below(4)).map(|i| i * tokens / 2).collect());
    (Deal { ranks, documents, passing }, tokens, d.0.below(ranks + 1))
}

#[test]
fn ring_plans() {
    answers("ring attention", |d, device| {
        let (ranks, tokens) = (d.0.below(6), d.0.below(80));
        let heads = d.0.below(9);
        let shape = ring::Shape {
            batch: if d.flag() { 1 } else { d.extent() },
            heads: if d.flag() { heads } else { d.extent() },
            key_heads: if d.flag() { heads } else { d.extent() },
            head_dim: d.width(),
            value_dim: d.width(),
        };
        let node = d.0.below(5);
        let kind = d.of(&[
            Kind::Ring,
            Kind::Bidirectional,
            Kind::TwoLevel { node },
            Kind::TokenRing,
            Kind::AllGather { groups: node },
            Kind::Ulysses,
        ]);
        let options =
            ring::Options { kind, scale: d.of(&[1.0, f32::NAN, 0.5]), ..ring::Options::new(&shape, d.dtype()) };
        let partition = d.of(&[Partition::Contiguous, Partition::Zigzag, Partition::Striped]);
        let layout = Layout { partition, tokens, ranks };
        let visible = if d.flag() { Visible::causal(tokens) } else { Visible::full(d.0.below(80)) };
        let rank = d.0.below(ranks + 1);
        if d.flag() {
            let plan = ring::Plan::new(&shape, &options, &layout, &visible, rank, device);
            return plan.map(|plan| [plan.workspace_bytes(), plan.bytes_sent(), 0]);
        }
        let options = ring::BackwardOptions { deterministic: d.flag(), ..ring::BackwardOptions::new(options) };
        let plan = ring::BackwardPlan::new(&shape, &options, &layout, &visible, rank, device);
        plan.map(|plan| [plan.workspace_bytes(), plan.bytes_sent(), 0])
    });
}

#[test]
fn ring_state_plans() {
    answers("ring scan", |d, device| {
        let (deal, tokens, rank) = dealt(d);
        let channels = d.extent();
        let shape = scan::Shape::dense(d.of(&[1, 1, 2, usize::MAX]), tokens, channels);
        let split = if d.flag() { channels } else { d.extent() };
        let source = d.of(&[scan::Source::Tensor, scan::Source::Log, scan::Source::Cumsum]);
        let options = scan::Options { dtype: d.dtype(), source, split, deterministic: d.flag() };
        if d.flag() {
            let plan = state::scan::Plan::new(&shape, &options, &deal, rank, device);
            return plan.map(|plan| [plan.workspace_bytes(), plan.bytes_sent(), 0]);
        }
        let plan = state::scan::BackwardPlan::new(&shape, &options, &deal, rank, device);
        plan.map(|plan| [plan.workspace_bytes(), plan.bytes_sent(), 0])
    });
    answers("ring linear attention", |d, device| {
        let (deal, tokens, rank) = dealt(d);
        let heads = if d.flag() { 2 } else { d.extent() };
        let shape = linear::Shape::dense(d.of(&[1, 1, 2, usize::MAX]), tokens, heads, d.width(), d.width());
        let options = linear::Options {
            dtype: d.dtype(),
            mode: d.of(&[
                linear::Mode::Causal,
                linear::Mode::Reverse,
                linear::Mode::Bidirectional,
                linear::Mode::PrefixRead,
            ]),
            decay: d.of(&[linear::Decay::None, linear::Decay::Scalar, linear::Decay::Vector]),
            normalize: d.maybe(Draw::number),
            ..linear::Options::new::<f32>(&shape)
        };
        if d.flag() {
            let plan = state::linear::Plan::new(&shape, &options, &deal, rank, device);
            return plan.map(|plan| [plan.workspace_bytes(), plan.bytes_sent(), 0]);
        }
        let plan = state::linear::BackwardPlan::new(&shape, &options, &deal, rank, device);
        plan.map(|plan| [plan.workspace_bytes(), plan.bytes_sent(), 0])
    });
}
