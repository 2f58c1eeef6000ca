//! Laws of decode attention over random shapes: a plan answers any size, stride or option with itself or a typed error, and a step of
//! any small shape agrees with the oracle. A failure is shrunk to the smallest one.

use super::case::{Case, Kind};
use lookback_decode::{Cache, CacheType, Options, Output, Plan, Scales, Shape, Stride, Strides, Tuning};
use lookback_device::{Class, DType, DeviceInfo, Error};
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

/// Mostly a width that kernels have.
fn width() -> impl Strategy<Value = usize> {
    prop_oneof![4 => (1..33_usize).prop_map(|n| 8 * n), 1 => extent()]
}

fn step() -> impl Strategy<Value = i64> {
    prop_oneof![6 => (-1..40_i64).prop_map(|n| 8 * n), 1 => Just(i64::MAX), 1 => Just(i64::MIN), 2 => any::<i64>()]
}

fn stride() -> impl Strategy<Value = Option<Stride>> {
    prop_oneof![3 => Just(None), 1 => (step(), step(), step()).prop_map(|(batch, token, head)| Some(Stride { batch, token, head }))]
}

fn cache_type() -> impl Strategy<Value = CacheType> {
    select(vec![
        CacheType::Same,
        CacheType::Same,
        CacheType::E4m3(Scales::Tensor),
        CacheType::E4m3(Scales::Head),
        CacheType::E4m3(Scales::Token),
    ])
}

fn any_cache() -> impl Strategy<Value = Cache> {
    prop_oneof![
        extent().prop_map(|capacity| Cache::Dense { capacity }),
        extent().prop_map(|tokens| Cache::Ragged { tokens }),
        (extent(), extent(), extent()).prop_map(|(pages, page_size, table)| Cache::Paged { pages, page_size, table }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn decode_plans_answer_any_shape(
        (batch, query_len, key_heads, group) in (extent(), extent(), extent(), extent()),
        (head_dim, value_dim) in (width(), width()),
        packed in prop_oneof![Just(None), extent().prop_map(Some)],
        (cache, heads_first) in (any_cache(), any::<bool>()),
        (q, k, v, o, scale) in (stride(), stride(), stride(), stride(), stride()),
        (dtype, cache_type) in (select(DType::ALL.to_vec()), cache_type()),
        (left, sink_tokens) in (prop_oneof![Just(None), any::<u32>().prop_map(Some)], any::<u32>()),
        (list, logits) in (prop_oneof![2 => Just(None), 1 => extent().prop_map(Some)], prop_oneof![2 => Just(None), 1 => extent().prop_map(Some)]),
        tuning in (prop_oneof![2 => Just(None), 1 => any::<u32>().prop_map(Some)], prop_oneof![2 => Just(None), 1 => any::<u32>().prop_map(Some)]),
        lengths in proptest::collection::vec(extent(), 0..4),
    ) {
        let heads = key_heads.wrapping_mul(group);
        let shape = Shape { query_len, packed, value_dim, ..Shape::new(batch, heads, key_heads, head_dim, cache) };
        let shape = if heads_first { shape.heads_first() } else { shape };
        let strides = if heads_first { shape.strides } else { Strides { q, k, v, o, k_scale: scale, v_scale: scale } };
        let options = Options {
            dtype,
            cache: cache_type,
            output: Output::Same,
            scale: 1.0,
            softcap: None,
            left,
            sink_tokens,
            list,
            logits,
            tuning: Tuning { slots: tuning.0, min_tiles: tuning.1, rows: None },
        };
        match Plan::new(&Shape { strides, ..shape }, &options, &device()) {
            Ok(plan) => {
                let lengths: Vec<usize> = lengths.iter().map(|n| n % (1 << 20)).collect();
                let _ = (plan.bytes_moved(&lengths), plan.flops(&lengths), plan.workspace_bytes(), plan.schedule_bytes());
            }
            Err(error) => {
                prop_assert!(error.class() == Class::Caller, "{error}");
                prop_assert!(!matches!(error, Error::Workspace { .. }), "{error}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn decode_steps_of_any_small_shape_agree_with_the_oracle(
        keys in proptest::collection::vec(prop_oneof![1 => Just(0), 4 => 0..300_usize], 1..5),
        (query_len, key_heads, group) in (prop_oneof![3 => Just(1), 2 => 1..12_usize], 1..4_usize, 1..9_usize),
        (head_dim, value_dim) in ((1..17_usize).prop_map(|n| 8 * n), (1..17_usize).prop_map(|n| 8 * n)),
        (kind, room) in (0..3_usize, 1..40_usize),
        (cache, dtype, heads_first) in (cache_type(), select(vec![DType::F16, DType::Bf16]), any::<bool>()),
        (left, sink_tokens) in (prop_oneof![1 => Just(None), 1 => (0..200_u32).prop_map(Some)], 0..100_u32),
        (softcap, alibi, sink) in (select(vec![None, Some(1.5)]), any::<bool>(), any::<bool>()),
        (listed, is_packed, slots) in (prop_oneof![3 => Just(None), 1 => (1..200_usize).prop_map(Some)], any::<bool>(), 1..20_u32),
        seed in 0..1000_u64,
    ) {
        let greatest = keys.iter().copied().max().unwrap_or(0);
        let packed = is_packed.then(|| (0..keys.len()).map(|b| (b * 7 + seed as usize) % (query_len + 1)).collect());
        let to_pieces = |width: usize| if cache == CacheType::Same { width } else { width.next_multiple_of(16) };
        let case = Case {
            dtype,
            kind: [Kind::Dense(greatest + room), Kind::Ragged, Kind::Paged(room)][kind],
            heads_first: heads_first && kind != 1,
            cache,
            query_len,
            packed,
            heads: key_heads * group,
            key_heads,
            head_dim: to_pieces(head_dim),
            value_dim: to_pieces(value_dim),
            softcap,
            left,
            sink_tokens,
            list: listed,
            alibi,
            sink,
            seed,
            ..Case::new(&keys)
        };
        case.slots(slots).min_tiles(1).check();
    }
}
