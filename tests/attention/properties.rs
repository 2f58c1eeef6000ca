//! Properties over random shapes: a plan answers any size, stride or option with itself or a typed error, and attention of any small
//! shape agrees with the oracle. A failure is shrunk to the smallest one.

use super::case::Case;
use lookback_attention::{Mask, Options, Output, Plan, Shape, Stride, Strides};
use lookback_device::{Class, DType};
use lookback_suite::{device, random::Random};
use proptest::{
    prelude::{Just, ProptestConfig, Strategy, any, prop_oneof},
    prop_assert, proptest,
    sample::select,
    test_runner::RngSeed,
};

/// Mostly small, sometimes at a power of two, sometimes absurd.
fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0..70_usize,
        2 => (0..64_u32, 0..3_usize).prop_map(|(bit, off)| (1_usize << bit).wrapping_add(off).wrapping_sub(1)),
        1 => Just(usize::MAX),
        1 => any::<usize>(),
    ]
}

fn stride() -> impl Strategy<Value = Stride> {
    let step = || prop_oneof![6 => (-1..40_i64).prop_map(|s| s * 8), 1 => Just(i64::MAX), 1 => Just(i64::MIN), 2 => any::<i64>()];
    (step(), step(), step()).prop_map(|(batch, token, head)| Stride { batch, token, head })
}

fn mask() -> impl Strategy<Value = Mask> {
    let reach = || prop_oneof![Just(None), (0..80_u32).prop_map(Some), any::<u32>().prop_map(Some)];
    let window =
        (reach(), reach(), 0..20_u32).prop_map(|(left, right, sink_tokens)| Mask::Window { left, right, sink_tokens });
    prop_oneof![
        3 => select(vec![Mask::Full, Mask::Causal, Mask::AntiCausal, Mask::Prefix, Mask::Intervals]),
        2 => window,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn attention_plans_answer_any_shape(
        (batch, query_len, key_len, heads, key_heads) in (extent(), extent(), extent(), extent(), extent()),
        (head_dim, value_dim) in (extent(), extent()),
        packed in prop_oneof![2 => Just(None), 1 => extent().prop_map(Some)],
        (q, k, v, o) in (stride(), stride(), stride(), stride()),
        (dtype, mask) in (select(DType::ALL.to_vec()), mask()),
        output in select(vec![Output::Same, Output::F32, Output::Merge]),
        (scale, softcap, offset) in (any::<f32>(), any::<Option<f32>>(), any::<Option<i32>>()),
    ) {
        let device = device::info();
        let any = Shape { key_heads, value_dim, packed, ..Shape::dense(batch, query_len, key_len, heads, head_dim) };
        let aligned = |dim: usize| dim.min(256).next_multiple_of(8);
        let likely = Shape { key_heads: heads, head_dim: aligned(head_dim), value_dim: aligned(value_dim), ..any };
        let strides = Strides { q: Some(q), k: Some(k), v: Some(v), o: Some(o) };
        for shape in [any, likely, Shape { strides, ..likely }] {
            let wild = Options { dtype, scale, softcap, mask, offset, output };
            for options in [wild, Options { dtype: DType::F16, scale: 1.0, softcap: None, offset: None, ..wild }] {
                match Plan::new(&shape, &options, &device) {
                    // What is asked here is that counting does not overflow.
                    Ok(plan) => {
                        let _ = (plan.workspace_bytes(), plan.bytes_moved(), plan.flops());
                    }
                    Err(error) => prop_assert!(error.class() == Class::Caller && error.outputs_untouched(), "{error:?}"),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn attention_of_any_small_shape_agrees_with_the_oracle(
        (batch, query_len, key_len) in (1..3_usize, 0..150_usize, 0..150_usize),
        (key_heads, group, head_dim, value_dim) in (1..3_usize, 1..4_usize, 1..33_usize, 1..33_usize),
        lengths in prop_oneof![2 => Just(None), 1 => proptest::collection::vec((0..90_usize, 0..90_usize), 1..5).prop_map(Some)],
        (dtype, mask) in (select(vec![DType::F16, DType::Bf16]), mask()),
        output in select(vec![Output::Same, Output::F32]),
        offset in prop_oneof![2 => Just(None), 1 => (-100..200_i32).prop_map(Some)],
        softcap in prop_oneof![3 => Just(None), 1 => (0.5..30.0_f32).prop_map(Some)],
        (alibi, sink, hidden, listed, seed) in any::<(bool, bool, bool, bool, u64)>(),
    ) {
        let mut case = match &lengths {
            Some(lengths) => {
                let lengths: Vec<[usize; 2]> = lengths.iter().map(|(queries, keys)| [*queries, *keys]).collect();
                Case::packed(dtype, &lengths, head_dim * 8)
            }
            None => Case::new(dtype, batch, query_len, key_len, head_dim * 8),
        };
        // Far ahead of its keys, a row with slopes has logits so low that a sink leaves nothing that 16 bits hold.
        let sink = sink && !(alibi && offset.is_some());
        let mut random = Random::new(seed);
        case = Case {
            heads: key_heads * group, key_heads, value_dim: value_dim * 8, mask, output, offset, softcap, alibi, sink, seed, ..case
        };
        let mut any = |lo: f64, hi: f64| random.uniform(lo, hi) as i32;
        case.prefix = (0..case.shape().sequences()).map(|_| any(-5.0, 160.0)).collect();
        case.intervals = (0..case.batch * case.query_len * 4).map(|_| any(-20.0, 170.0)).collect();
        case.key_mask = hidden.then(|| (0..case.batch * case.key_len).map(|_| u8::from(any(0.0, 4.0) > 0)).collect());
        case.tiles = listed.then(|| {
            let (mut starts, mut keys) = (vec![0], Vec::new());
            for _ in 0..case.shape().slots(Shape::SLOT_QUERIES) {
                keys.extend((0..case.key_len.div_ceil(64) as i32).filter(|_| any(0.0, 3.0) > 0));
                starts.push(keys.len() as i32);
            }
            [starts, keys]
        });
        case.check();
    }
}
