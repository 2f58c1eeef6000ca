//! Every element type, decay, read, direction and size of the walk token by token, against the f64 oracle.

use super::case::{Case, Data};
use lookback_device::DType;
use lookback_linear::{Decay, Mode, Read};

const DECAYS: [Decay; 4] = [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector];
const READS: [Read; 3] = [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted];
const MODES: [Mode; 4] = [Mode::Causal, Mode::Reverse, Mode::Bidirectional, Mode::Split(1)];

#[test]
fn linear_attention_every_decay_read_and_direction() {
    for decay in DECAYS {
        for read in READS {
            for mode in MODES {
                Case { decay, read, mode, ..Case::new(DType::F32, 1, 19, 20, 12) }.check();
            }
        }
    }
}

#[test]
fn linear_attention_every_read_and_direction_in_16_bits_with_flags() {
    for (dtype, decay) in [(DType::F16, Decay::Vector), (DType::Bf16, Decay::Scalar)] {
        for read in READS {
            for mode in MODES {
                Case { decay, read, mode, flags_every: 6, seed: 2, ..Case::new(dtype, 1, 21, 40, 8) }.check();
            }
        }
    }
}

#[test]
fn linear_attention_every_tile_with_edges_inside() {
    // One more value than a tile, one key less; keys that fill a tile.
    for (key_dim, value_dim) in
        [(1, 1), (31, 129), (32, 3), (63, 65), (64, 8), (127, 33), (128, 4), (255, 17), (256, 16)]
    {
        for (dtype, decay) in [(DType::F32, Decay::Vector), (DType::Bf16, Decay::Scalar)] {
            Case { decay, ..Case::new(dtype, 1, 11, key_dim, value_dim) }.check();
        }
    }
}

#[test]
fn linear_attention_normalized() {
    for (decay, read, mode) in [
        (Decay::None, Read::Inclusive, Mode::Causal),
        (Decay::Vector, Read::ExclusiveBonus, Mode::Reverse),
        (Decay::Scalar, Read::Shifted, Mode::Split(1)),
    ] {
        for (key_dim, value_dim) in [(16, 70), (130, 20)] {
            for flags_every in [0, 7] {
                let case = Case {
                    decay,
                    read,
                    mode,
                    flags_every,
                    normalize: Some(0.5),
                    ..Case::new(DType::F32, 2, 20, key_dim, value_dim)
                };
                case.check();
            }
        }
    }
    Case { normalize: Some(1e-6), ..Case::new(DType::F16, 1, 40, 16, 16) }.check();
}

#[test]
fn linear_attention_groups_share_queries_and_keys() {
    for (query_heads, key_heads) in [(1, 1), (2, 4), (4, 2), (1, 4)] {
        Case { heads: 4, query_heads, key_heads, decay: Decay::Scalar, ..Case::new(DType::F32, 2, 9, 16, 8) }.check();
    }
}

/// A rounding error of a constant decay points the same way at every token; with a long memory it would add up.
#[test]
fn linear_attention_constant_decays_with_long_memories() {
    for g in [-1e-4, -3e-3, -0.12] {
        for decay in [Decay::Head, Decay::Vector] {
            let case = Case {
                heads: 1,
                query_heads: 1,
                key_heads: 1,
                decay,
                states: false,
                ..Case::new(DType::F32, 1, 3000, 4, 4)
            };
            let mut data = Data::new::<f32>(&case);
            data.own.g.fill(f64::from(g as f32));
            for tensor in [&mut data.own.q, &mut data.own.k, &mut data.v] {
                tensor.fill(1.0);
            }
            case.check_data::<f32>(&data);
        }
    }
}
