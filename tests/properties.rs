//! Properties over random shapes: a plan answers any size, stride or option with itself or a typed error, and a scan of any
//! small shape agrees with the oracle. A failure is shrunk to the smallest one.

use crate::{
    linear::case::Case as LinearCase,
    scan::case::{Case, SOURCES},
};
use lookback_device::{Class, DType, DeviceInfo, Error};
use lookback_linear as linear;
use lookback_nn::{
    Activation, argmax, cross_entropy, decay_gate, embedding, gate, gated_rms_norm, gemm, head_scale, residual_norm,
    rms_norm, rotary,
    short_convolution::{self, Window},
    taylor_map,
};
use lookback_scan as scan;
use proptest::{
    prelude::{Just, ProptestConfig, Strategy, any, prop_oneof},
    prop_assert, proptest,
    sample::select,
    test_runner::RngSeed,
};

fn device() -> DeviceInfo {
    DeviceInfo {
        name: "none".into(),
        compute_capability: (9, 0),
        sm_count: 132,
        shared_per_block_optin: 232_448,
        driver_version: 12_000,
        emulated: false,
    }
}

/// Mostly small, sometimes at a power of two, sometimes absurd.
fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0..70_usize,
        2 => (0..64_u32, 0..3_usize).prop_map(|(bit, off)| (1_usize << bit).wrapping_add(off).wrapping_sub(1)),
        1 => Just(usize::MAX),
        1 => any::<usize>(),
    ]
}

fn stride() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -3..300_i64, 1 => Just(i64::MAX), 1 => Just(i64::MIN), 2 => any::<i64>()]
}

fn dtype() -> impl Strategy<Value = DType> {
    select(DType::ALL.to_vec())
}

const PATHS: [linear::Path; 4] =
    [linear::Path::Auto, linear::Path::Recurrent, linear::Path::Chain, linear::Path::Parallel];
const DECAYS: [linear::Decay; 4] =
    [linear::Decay::None, linear::Decay::Head, linear::Decay::Scalar, linear::Decay::Vector];
const READS: [linear::Read; 3] = [linear::Read::Inclusive, linear::Read::ExclusiveBonus, linear::Read::Shifted];

/// The plan's figures, or an error that blames the caller.
fn plan_or_blame<P>(plan: Result<P, Error>, figures: impl Fn(&P) -> [u64; 3]) -> Result<(), String> {
    match plan {
        Ok(plan) => {
            // What is asked here is that counting does not overflow.
            let _ = figures(&plan);
            Ok(())
        }
        Err(error) if error.class() == Class::Caller && error.outputs_untouched() => Ok(()),
        Err(error) => Err(format!("{error:?}")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn scan_plans_answer_any_shape(
        (batch, seq_len, channels, split) in (extent(), extent(), extent(), extent()),
        packed in prop_oneof![Just(None), extent().prop_map(Some)],
        steps in proptest::array::uniform4(stride()),
        (source, dtype, deterministic) in (select(SOURCES.to_vec()), dtype(), any::<bool>()),
    ) {
        let [a, b, c, d] = steps;
        let (one, two) = (scan::Stride { batch: a, token: b }, scan::Stride { batch: c, token: d });
        let dense = scan::Shape::dense(batch, seq_len, channels);
        let strides = scan::Strides { h: two, db: two, ..scan::Strides::all(one) };
        for shape in [scan::Shape { packed, ..dense }, scan::Shape { packed, strides, ..dense }] {
            let options = scan::Options { dtype, source, split, deterministic };
            let forward = scan::Plan::new(&shape, &options, &device());
            let blamed = plan_or_blame(forward, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]);
            prop_assert!(blamed.is_ok(), "{blamed:?}");
            let backward = scan::BackwardPlan::new(&shape, &options, &device());
            let blamed = plan_or_blame(backward, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]);
            prop_assert!(blamed.is_ok(), "{blamed:?}");
        }
    }

    #[test]
    fn linear_attention_plans_answer_any_shape(
        (batch, seq_len, heads, key_dim, value_dim) in (extent(), extent(), extent(), extent(), extent()),
        (query_heads, key_heads, split) in (extent(), extent(), extent()),
        packed in prop_oneof![2 => Just(None), 1 => extent().prop_map(Some)],
        steps in proptest::array::uniform6(stride()),
        (dtype, path, normalize) in (dtype(), select(PATHS.to_vec()), prop_oneof![Just(None), any::<f32>().prop_map(Some)]),
        (decay, read, mode) in (select(DECAYS.to_vec()), select(READS.to_vec()), 0..6_usize),
    ) {
        let mode = [
            linear::Mode::Causal,
            linear::Mode::Reverse,
            linear::Mode::Bidirectional,
            linear::Mode::PrefixState,
            linear::Mode::PrefixRead,
            linear::Mode::Split(split),
        ][mode];
        let [a, b, c, d, e, f] = steps;
        let (one, two) = (linear::Stride { batch: a, token: b, head: c }, linear::Stride { batch: d, token: e, head: f });
        let dense = linear::Shape { packed, ..linear::Shape::dense(batch, seq_len, heads, key_dim, value_dim) };
        let strides = linear::Strides { q: Some(one), k: Some(two), v: Some(one), g: Some(two), o: Some(one) };
        let aligned = linear::Shape {
            key_dim: key_dim.min(32).next_multiple_of(8), value_dim: value_dim.min(1 << 20).next_multiple_of(8), ..dense
        };
        for shape in [dense, aligned, linear::Shape { query_heads, key_heads, ..dense }, linear::Shape { strides, ..dense }] {
            let features = linear::Features::Identity;
            let options = linear::Options { features, dtype, decay, read, mode, normalize, path, scale: 1.0 };
            let plan = linear::Plan::new(&shape, &options, &device());
            let blamed = plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]);
            prop_assert!(blamed.is_ok(), "{blamed:?}");
            let plan = linear::BackwardPlan::new(&shape, &options, &device());
            let blamed = plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]);
            prop_assert!(blamed.is_ok(), "{blamed:?}");
        }
    }

    #[test]
    fn gemm_plans_answer_any_shape(
        (m, n, k) in (extent(), extent(), extent()),
        (lda, ldb, ldc) in (stride(), stride(), stride()),
        (dtype, out, plain) in (dtype(), dtype(), any::<bool>()),
    ) {
        let dense = if plain { gemm::Shape::plain(m, n, k) } else { gemm::Shape::linear(m, n, k) };
        for shape in [dense, gemm::Shape { lda, ldb, ldc, ..dense }] {
            let plan = gemm::Plan::new(&shape, &gemm::Options { out, ..gemm::Options::new(dtype) }, &device());
            let blamed = plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]);
            prop_assert!(blamed.is_ok(), "{blamed:?}");
        }
    }

    #[test]
    fn memory_bound_plans_answer_any_shape(
        (rows, width, third, fourth) in (extent(), extent(), extent(), extent()),
        (one, two, three, four) in (stride(), stride(), stride(), stride()),
        (dtype, eps) in (dtype(), any::<f32>()),
    ) {
        let device = device();
        let shape = rms_norm::Shape { rows, width, x_stride: one, out_stride: two };
        let plan = rms_norm::Plan::new(&shape, &rms_norm::Options { dtype, eps }, &device);
        let mut blamed = vec![plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()])];
        let (x_stride, y_stride, out_stride) = (one, two, three);
        let plan = gate::Plan::new(
            &gate::Shape { rows, width, x_stride, y_stride, out_stride },
            &gate::Options { dtype, activation: Activation::Gelu },
            &device,
        );
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let plan = argmax::Plan::new(&argmax::Shape { rows, width, x_stride }, &argmax::Options { dtype }, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let plan = cross_entropy::Plan::new(
            &cross_entropy::Shape { rows, classes: width, x_stride, dx_stride: two },
            &cross_entropy::Options { dtype, scale: eps },
            &device,
        );
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let plan = embedding::Plan::new(
            &embedding::Shape {
                tokens: rows, ids_per_token: third, vocabulary: fourth, width, table_stride: one, out_stride: two,
            },
            &embedding::Options { dtype },
            &device,
        );
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let plan = short_convolution::Plan::new(
            &short_convolution::Shape {
                batch: rows, tokens: third, channels: width, taps: fourth, window: Window::Centred,
                packed: (one > 0).then_some(fourth),
                x_stride_batch: one, x_stride_token: two, out_stride_batch: three, out_stride_token: four,
            },
            &short_convolution::Options { dtype, activation: Activation::Silu },
            &device,
        );
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let shape = short_convolution::Shape::packed(rows, third, width, fourth);
        let options = short_convolution::Options { dtype, activation: Activation::Silu };
        let plan = short_convolution::BackwardPlan::new(&shape, (one, two), &options, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let options = gated_rms_norm::Options { dtype, gate: gated_rms_norm::Gate::Silu, norm_before_gate: true, eps };
        let shape = gated_rms_norm::Shape {
            rows, width, group: third, y_stride: one, z_stride: two, out_stride: three,
        };
        let plan = gated_rms_norm::Plan::new(&shape, &options, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let shape = gated_rms_norm::BackwardShape {
            rows, width, group: third, y_stride: one, z_stride: two, dout_stride: three, dy_stride: four, dz_stride: one,
        };
        let plan = gated_rms_norm::BackwardPlan::new(&shape, &options, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let stride = rotary::Stride { batch: one, token: two, head: three };
        let shape = rotary::Shape { x_stride: Some(stride), out_stride: Some(stride), ..rotary::Shape::dense(rows, third, fourth, width) };
        let options = rotary::Options {
            grid: Some(rotary::Grid::new(&[third, fourth], rows)),
            ..rotary::Options::new(dtype, rotary::Style::Cosine, width)
        };
        let plan = rotary::Plan::new(&shape, &options, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let shape = residual_norm::Shape {
            rows, width, residual_stride: one, x_stride: two, sum_stride: three, out_stride: four,
        };
        let options = residual_norm::Options { dtype, eps, center: true, post: false };
        let plan = residual_norm::Plan::new(&shape, &options, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let options = decay_gate::Options { dtype, negated: false, bounds: (eps, f32::INFINITY), rate: eps };
        let shape = decay_gate::Shape { rows, width, x_stride: one, out_stride: two };
        let plan = decay_gate::Plan::new(&shape, &options, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let shape = head_scale::Shape {
            rows, heads: third, x_heads: fourth, dim: width, x_stride: one, scale_stride: two, out_stride: three,
        };
        let plan = head_scale::Plan::new(&shape, &head_scale::Options { dtype, accumulate: true }, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        let shape = taylor_map::Shape { rows, heads: third, dim: width, x_stride: one, out_stride: two };
        let plan = taylor_map::Plan::new(&shape, dtype, &device);
        blamed.push(plan_or_blame(plan, |p| [p.workspace_bytes(), p.bytes_moved(), p.flops()]));
        prop_assert!(blamed.iter().all(Result::is_ok), "{blamed:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn scans_of_any_small_shape_agree_with_the_oracle(
        (batch, seq_len, channels) in (1..4_usize, 0..200_usize, 1..70_usize),
        (split, shift, flags_every) in (0..=70_usize, 0..4_usize, 0..30_usize),
        starts in prop_oneof![Just(None), proptest::collection::vec(0..200_usize, 0..6).prop_map(Some)],
        (source, dtype) in (select(SOURCES.to_vec()), dtype()),
        (states, deterministic, seed) in (any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let batch = if starts.is_some() { 1 } else { batch };
        let starts = starts.map(|inner| {
            let mut starts: Vec<i32> = inner.iter().map(|s| (*s).min(seq_len) as i32).chain([0, seq_len as i32]).collect();
            starts.sort_unstable();
            starts
        });
        let case = Case::new(source, dtype, batch, seq_len, channels);
        Case { split: split.min(channels), shift, flags_every, starts, states, deterministic, seed, ..case }.check();
    }

    #[test]
    fn linear_attention_of_any_small_shape_agrees_with_the_oracle(
        (batch, seq_len, heads) in (1..4_usize, 0..60_usize, 1..3_usize),
        (key_dim, value_dim, wide) in (1..70_usize, 1..140_usize, any::<bool>()),
        (split, flags_every, shift) in (0..3_usize, 0..20_usize, 0..3_usize),
        starts in prop_oneof![2 => Just(None), 1 => proptest::collection::vec(0..60_usize, 0..5).prop_map(Some)],
        (dtype, decay, read, mode) in (dtype(), select(DECAYS.to_vec()), select(READS.to_vec()), 0..4_usize),
        (states, bonus, own_reverse, normalized, seed) in any::<(bool, bool, bool, bool, u64)>(),
    ) {
        let mode = [
            linear::Mode::Causal,
            linear::Mode::Reverse,
            linear::Mode::Bidirectional,
            linear::Mode::Split(split.min(heads)),
        ][mode];
        let batch = if starts.is_some() { 1 } else { batch };
        let starts = starts.map(|inner| {
            let mut starts: Vec<i32> = inner.iter().map(|s| (*s).min(seq_len) as i32).chain([0, seq_len as i32]).collect();
            starts.sort_unstable();
            starts
        });
        let both = mode == linear::Mode::Bidirectional;
        let (key_dim, value_dim) = match wide {
            true => (key_dim.next_multiple_of(8), value_dim.next_multiple_of(8)),
            false => (key_dim, value_dim),
        };
        let case = LinearCase {
            heads, query_heads: heads, key_heads: 1, decay, read, mode, flags_every, starts, states, bonus, seed,
            shift: if dtype == DType::F32 { shift } else { 0 },
            own_reverse: own_reverse && both,
            normalize: (normalized && !both).then_some(0.5),
            ..LinearCase::new(dtype, batch, seq_len, key_dim, value_dim)
        };
        // Chunks on tensor cores where the sizes allow it.
        let auto = LinearCase { path: linear::Path::Auto, ..case };
        LinearCase { path: auto.plan().path(), ..auto }.check();
    }
}
