//! Linear attention.

use super::family::{Family, every};
use crate::linear::{
    backward_case,
    case::Case as Whole,
    chain_case::{Case, Decay, check},
    flow_case::Case as Flow,
    step, time_reduce_backward, time_reduce_case as reduce,
};
use half::{bf16, f16};
use lookback_device::{DType, Element};
use lookback_kernels::Kernel;
use lookback_linear::{
    Mode,
    time_reduce::{Map, Policy},
};

fn chain(key_dim: usize, value_dim: usize) -> Case {
    let flags = [vec![20, 33, 48], vec![]];
    Case { flags, ..Case::new(110, 1, key_dim, value_dim) }
}

fn whole_and_states(case: Case) {
    let twice = Case { twice: true, ..case };
    check::<f16>("barriers", &twice);
    check::<f16>("barriers", &Case { segment_tokens: 128, seq_len: 140, ..twice });
}

pub const CHAIN: Family = Family {
    kernels: &["linear_attention_chain"],
    variants: every,
    runs: &[
        || [32, 64, 128, 256].map(|keys| whole_and_states(chain(keys, 64))).into_iter().collect(),
        || [64, 128].map(|keys| whole_and_states(chain(keys, 128))).into_iter().collect(),
        || {
            for (keys, values) in [(32, 64), (32, 128), (64, 64), (64, 128), (128, 64), (128, 128), (256, 64)] {
                whole_and_states(Case { normalize: true, positive: true, ..chain(keys, values) });
            }
        },
        || {
            for keys in [32, 64, 128, 256] {
                whole_and_states(Case { exact: true, out_f32: true, ..chain(keys, 64) });
            }
        },
        || {
            let taylor = Case { taylor: true, kt: 160, ..chain(16, 64) };
            for seq_len in [60, 110] {
                let taylor = Case { twice: true, seq_len, ..taylor.clone() };
                check::<f16>("barriers", &taylor);
                check::<f16>("barriers", &Case { normalize: true, positive: true, ..taylor });
            }
        },
    ],
};

pub const VECTOR: Family = Family {
    kernels: &["linear_attention_chain_vector"],
    variants: every,
    runs: &[
        || {
            for decay in [Decay::Key, Decay::Value] {
                for (keys, values) in [(32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (256, 64)] {
                    whole_and_states(Case { decay, ..chain(keys, values) });
                }
            }
            whole_and_states(Case { decay: Decay::Key, ..chain(256, 128) });
        },
        || {
            for keys in [32, 64, 128] {
                let case = Case { decay: Decay::Key, normalize: true, positive: true, ..chain(keys, 64) };
                whole_and_states(case);
                whole_and_states(Case { decay: Decay::Value, exact: true, out_f32: true, ..chain(keys, 64) });
            }
        },
    ],
};

pub const OTHERS: Family = Family {
    kernels: &[
        "linear_attention_recurrent",
        "linear_attention_step",
        "flow_causal",
        "flow_causal_bwd",
        "flow_normal",
        "flow_normal_bwd",
        "decay_bwd",
        "bonus_bwd",
        "prefix_bwd",
        "prepare_bwd",
    ],
    variants: every,
    runs: &[
        || {
            check::<f32>("barriers", &Case { token_by_token: true, ..Case::new(21, 1, 20, 12) });
        },
        || {
            step::check::<f32>(step::Case {
                normalize: true,
                value_dim: 200,
                batch: 1,
                heads: 1,
                query_heads: 1,
                key_heads: 1,
                ..step::CASE
            })
        },
        || Flow::causal(1, 70, 1, 24, 24).check::<f32>(),
        || Flow::normal(1, 70, 90, 1, 24, 24).check::<f32>(),
        || {
            use lookback_linear::{Decay, Read};
            let case = Whole { normalize: Some(0.5), ..Whole::new(DType::F32, 1, 150, 34, 5) };
            backward_case::check(&Whole { decay: Decay::Vector, read: Read::ExclusiveBonus, ..case.clone() });
            backward_case::check(&Whole { decay: Decay::Scalar, ..case.clone() });
            backward_case::check(&Whole { decay: Decay::Head, ..case.clone() });
            backward_case::check(&Whole { decay: Decay::Head, seq_len: 100, ..case });
            // More tiles of a prefix than blocks share.
            let prefix = vec![530];
            backward_case::check(&Whole {
                mode: Mode::PrefixRead,
                prefix,
                heads: 1,
                query_heads: 1,
                key_heads: 1,
                ..Whole::new(DType::F32, 1, 530, 12, 7)
            });
        },
    ],
};

const REDUCING: &[&str] =
    &["time_reduce", "time_reduce_prepare", "time_reduce_bwd", "time_reduce_taylor_bwd", "time_reduce_row_dot"];

fn is_half(kernel: &Kernel) -> bool {
    kernel.variant("dtype").is_some_and(|dtype| dtype != "f32")
}

pub const REDUCE_HALF: Family = Family {
    kernels: REDUCING,
    variants: is_half,
    runs: &[
        || {
            for keys in [64, 128, 256] {
                reduced::<f16>(&reduction(Map::Identity, keys, 64));
                reduced::<bf16>(&reduction(Map::Identity, keys, 64));
            }
        },
        || {
            let case = reduction(Map::Taylor, 16, 64);
            reduced::<f16>(&case);
            reduced::<bf16>(&case);
            time_reduce_backward::check::<f16>(&case, true);
            time_reduce_backward::check::<bf16>(&case, true);
        },
        || {
            for values in [64, 128, 256] {
                let case = reduction(Map::Relu, 64, values);
                time_reduce_backward::check::<f16>(&case, true);
                time_reduce_backward::check::<bf16>(&case, true);
            }
        },
    ],
};

pub const REDUCE_SINGLE: Family = Family {
    kernels: REDUCING,
    variants: |kernel| !is_half(kernel),
    runs: &[
        || {
            for keys in [64, 256] {
                for map in [Map::Identity, Map::Relu, Map::Softmax] {
                    reduced::<f32>(&reduction(map, keys, 64));
                }
            }
        },
        || {
            let case = reduction(Map::Taylor, 16, 64);
            reduced::<f32>(&case);
            time_reduce_backward::check::<f32>(&case, true);
        },
        || {
            for keys in [64, 256] {
                let case = reduce::Case { seq_len: 40, ..reduction(Map::Softmax, keys, 64) };
                time_reduce_backward::check::<f32>(&case, true);
            }
            for values in [64, 256] {
                time_reduce_backward::check::<f32>(&reduction(Map::Relu, 64, values), true);
            }
        },
    ],
};

/// One segment of several stages.
fn reduction(map: Map, key_dim: usize, value_dim: usize) -> reduce::Case {
    let policy = Policy { part_tokens: 256, apply_tokens: 256, lag: 1 };
    reduce::Case { heads: 1, query_heads: 1, key_heads: 1, policy, ..reduce::Case::new(map, 100, key_dim, value_dim) }
}

/// One segment, which nobody merges, of more stages than lie in shared memory at a time; and two segments of one.
fn reduced<T: Element>(case: &reduce::Case) {
    let seq_len = if T::DTYPE == DType::F32 { 70 } else { 200 };
    reduce::check::<T>(&reduce::Case { seq_len, ..case.clone() });
    let policy = Policy { part_tokens: 32, apply_tokens: 64, lag: 1 };
    reduce::check::<T>(&reduce::Case { policy, seq_len: 70, ..case.clone() });
}

#[test]
fn chains_need_their_barriers() {
    CHAIN.check();
}

#[test]
fn chains_of_vectors_need_their_barriers() {
    VECTOR.check();
}

#[test]
fn the_rest_of_linear_attention_needs_its_barriers() {
    OTHERS.check();
}

#[test]
fn reductions_over_time_need_their_barriers() {
    REDUCE_HALF.check();
}

#[test]
fn reductions_over_time_in_f32_need_their_barriers() {
    REDUCE_SINGLE.check();
}
