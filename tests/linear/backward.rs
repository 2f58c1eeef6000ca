//! Gradients of every element type, decay, read and direction against the adjoint of the recurrence in f64.

use super::{
    backward_case::{Adjoints, check, compare, oracle, plan, run},
    case::{Case, Data},
};
use half::bf16;
use lookback_device::DType;
use lookback_linear::{Decay, Mode, Path, Read};
use lookback_suite::{
    counters::Switch,
    measure::{Gate, assert_close},
};

const DECAYS: [Decay; 4] = [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector];
const READS: [Read; 3] = [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted];
const MODES: [Mode; 4] = [Mode::Causal, Mode::Reverse, Mode::Bidirectional, Mode::Split(1)];

#[test]
fn backward_every_decay_read_and_direction() {
    for decay in DECAYS {
        for read in READS {
            for mode in MODES {
                check(&Case { decay, read, mode, ..Case::new(DType::F32, 1, 13, 10, 6) });
            }
        }
    }
}

#[test]
fn backward_in_16_bits_with_flags() {
    for (dtype, decay) in [(DType::F16, Decay::Vector), (DType::Bf16, Decay::Scalar), (DType::Bf16, Decay::None)] {
        for read in READS {
            for mode in MODES {
                check(&Case { decay, read, mode, flags_every: 6, seed: 2, ..Case::new(dtype, 2, 21, 20, 8) });
            }
        }
    }
}

#[test]
fn backward_with_flags_over_several_tiles() {
    // The gradient of decays goes through time in tiles of 64 tokens.
    for (decay, read) in [
        (Decay::Scalar, Read::Inclusive),
        (Decay::Vector, Read::ExclusiveBonus),
        (Decay::Head, Read::Shifted),
        (Decay::Vector, Read::Inclusive),
    ] {
        for mode in [Mode::Causal, Mode::Split(1)] {
            check(&Case { decay, read, mode, flags_every: 40, seed: 3, ..Case::new(DType::F32, 2, 150, 34, 5) });
        }
    }
}

#[test]
fn backward_normalized() {
    for (decay, read, mode) in [
        (Decay::None, Read::Inclusive, Mode::Causal),
        (Decay::Vector, Read::ExclusiveBonus, Mode::Reverse),
        (Decay::Scalar, Read::Shifted, Mode::Split(1)),
        (Decay::Head, Read::Inclusive, Mode::PrefixState),
    ] {
        for (flags_every, states) in [(0, true), (7, true), (7, false)] {
            let normalize = Some(0.5);
            check(&Case { decay, read, mode, flags_every, states, normalize, ..Case::new(DType::F32, 2, 20, 12, 7) });
        }
    }
    check(&Case { normalize: Some(0.5), decay: Decay::Scalar, ..Case::new(DType::Bf16, 1, 40, 16, 16) });
    check(&Case { normalize: Some(0.5), ..Case::new(DType::F16, 1, 40, 16, 16) });
}

#[test]
fn backward_groups_are_summed() {
    for (query_heads, key_heads) in [(1, 1), (2, 4), (4, 2), (1, 4)] {
        for (dtype, decay) in [(DType::F32, Decay::Scalar), (DType::F16, Decay::Vector), (DType::F32, Decay::None)] {
            check(&Case { heads: 4, query_heads, key_heads, decay, ..Case::new(dtype, 2, 9, 16, 8) });
        }
    }
    for read in [Read::ExclusiveBonus, Read::Shifted] {
        let mode = Mode::Bidirectional;
        let decay = Decay::Vector;
        check(&Case { heads: 4, query_heads: 2, key_heads: 1, decay, read, mode, ..Case::new(DType::F32, 1, 9, 6, 5) });
    }
}

#[test]
fn backward_of_packed_sequences() {
    let starts = Some(vec![0, 0, 5, 6, 30, 30, 101]);
    for (decay, read, mode) in [
        (Decay::Scalar, Read::Inclusive, Mode::Causal),
        (Decay::Vector, Read::Shifted, Mode::Bidirectional),
        (Decay::Scalar, Read::ExclusiveBonus, Mode::Reverse),
        (Decay::None, Read::Shifted, Mode::Split(1)),
    ] {
        let starts = starts.clone();
        check(&Case { decay, read, mode, starts, flags_every: 30, ..Case::new(DType::F32, 1, 101, 8, 5) });
    }
}

#[test]
fn backward_of_the_reverse_directions_own_tensors() {
    for (dtype, decay) in DECAYS.map(|decay| (DType::F32, decay)).into_iter().chain([(DType::Bf16, Decay::Scalar)]) {
        for read in READS {
            let mode = Mode::Bidirectional;
            check(&Case { decay, read, mode, own_reverse: true, flags_every: 9, ..Case::new(dtype, 1, 17, 9, 6) });
        }
    }
}

#[test]
fn backward_of_prefixes() {
    let mode = Mode::PrefixRead;
    for dtype in [DType::F32, DType::Bf16] {
        for normalize in [None, Some(0.5)] {
            let case = Case { mode, normalize, prefix: vec![7, 0, 40], ..Case::new(dtype, 3, 40, 12, 7) };
            check(&case);
            check(&Case { key_heads: 1, query_heads: 1, flags_every: 15, ..case.clone() });
            let starts = Some(vec![0, 3, 40, 60]);
            check(&Case { batch: 1, seq_len: 60, starts, prefix: vec![1, 20, 17], ..case });
        }
    }
}

#[test]
fn backward_of_no_token_and_of_one() {
    for seq_len in [0, 1, 2] {
        for read in READS {
            for (decay, mode) in [
                (Decay::Scalar, Mode::Causal),
                (Decay::Vector, Mode::Bidirectional),
                (Decay::Head, Mode::Reverse),
                (Decay::None, Mode::Causal),
            ] {
                check(&Case { decay, read, mode, ..Case::new(DType::F32, 2, seq_len, 5, 3) });
            }
        }
        check(&Case { normalize: Some(0.5), decay: Decay::Scalar, ..Case::new(DType::F32, 2, seq_len, 5, 3) });
        let prefix = vec![seq_len as i32; 2];
        check(&Case { mode: Mode::PrefixRead, prefix, ..Case::new(DType::F32, 2, seq_len, 5, 3) });
    }
    check(&Case { decay: Decay::Head, ..Case::new(DType::F32, 0, 4, 5, 3) });
    let nothing = Case { decay: Decay::Scalar, states: false, flags_every: 3, ..Case::new(DType::F32, 1, 70, 5, 3) };
    check(&nothing);
}

#[test]
fn backward_every_tile_with_edges_inside() {
    for (key_dim, value_dim) in [(1, 1), (31, 129), (33, 64), (65, 3), (128, 256), (256, 32)] {
        for (dtype, decay) in [(DType::F32, Decay::Vector), (DType::Bf16, Decay::Scalar)] {
            check(&Case { decay, shift: 1, ..Case::new(dtype, 1, 11, key_dim, value_dim) });
        }
    }
}

#[test]
fn backward_is_the_same_to_the_bit_in_any_order_of_blocks() {
    let case = Case {
        decay: Decay::Head,
        read: Read::ExclusiveBonus,
        mode: Mode::Bidirectional,
        heads: 4,
        query_heads: 2,
        key_heads: 1,
        flags_every: 20,
        ..Case::new(DType::F32, 2, 80, 8, 6)
    };
    let data = Data::new::<f32>(&case);
    let adjoints = Adjoints::new::<f32>(&case, &data);
    let first = run::<f32>(&case, &data, &adjoints);
    for order in ["reversed", "random:7"] {
        let _order = Switch::set("order", order, "inorder");
        assert_eq!(run::<f32>(&case, &data, &adjoints), first, "{order}");
    }
}

/// Three segments of 128 tokens, the last of 37.
fn on_tensor_cores(dtype: DType, path: Path, decay: Decay) -> Case {
    Case { path, decay, scale: 0.125, ..Case::new(dtype, 1, 293, 64, 32) }
}

#[test]
fn backward_on_tensor_cores() {
    for (path, dtype) in [(Path::Chain, DType::F16), (Path::Parallel, DType::Bf16)] {
        for (decay, read, mode, flags_every) in [
            (Decay::Scalar, Read::Inclusive, Mode::Causal, 0),
            (Decay::Vector, Read::Inclusive, Mode::Causal, 40),
            (Decay::None, Read::Inclusive, Mode::Bidirectional, 40),
            (Decay::None, Read::Shifted, Mode::Reverse, 0),
            (Decay::Vector, Read::ExclusiveBonus, Mode::Reverse, 0),
            (Decay::None, Read::ExclusiveBonus, Mode::Split(1), 30),
        ] {
            check(&Case { read, mode, flags_every, ..on_tensor_cores(dtype, path, decay) });
        }
        check(&Case { value_dim: 256, seq_len: 133, key_dim: 40, ..on_tensor_cores(dtype, path, Decay::Scalar) });
        let case = Case { batch: 2, seq_len: 140, ..on_tensor_cores(dtype, path, Decay::None) };
        check(&Case { normalize: Some(0.5), ..case.clone() });
        check(&Case { mode: Mode::PrefixRead, prefix: vec![131, 60], ..case.clone() });
        check(&Case { heads: 4, query_heads: 2, key_heads: 1, starts: Some(vec![0, 17, 140]), batch: 1, ..case });
    }
}

#[test]
fn backward_of_a_decay_keeps_the_precision_of_its_sums() {
    // A thousand tokens, each forgotten by the next few: errors of one token would add up over all. Factors of 16 bits leave 0.02 of
    // most gradients, and 0.8 of that of a decay of heads.
    let gate = Gate { rel: 5e-3, row: 5e-3, inf: 5e-3 };
    for decay in [Decay::Head, Decay::Scalar, Decay::Vector] {
        let case = Case { path: Path::Chain, states: false, seed: 5, ..Case::new(DType::Bf16, 1, 1000, 16, 16) };
        let case = Case { decay, ..case };
        let mut data = Data::new::<bf16>(&case);
        for (i, g) in data.own.g.iter_mut().enumerate() {
            *g = f64::from((-1.0 - 0.5 * (i as f64).sin()) as f32);
        }
        let adjoints = Adjoints::new::<bf16>(&case, &data);
        let (got, want) = (run::<bf16>(&case, &data, &adjoints), oracle(&case, &data, &adjoints));
        compare(&case, &got, &want);
        assert_close(&format!("dg of {case:?}"), &got.dg, &want.dg, want.dg.len(), gate);
    }
}

#[test]
fn backward_takes_tensor_cores_where_it_can() {
    let auto = |decay| Case {
        path: Path::Auto,
        batch: 4,
        heads: 64,
        query_heads: 64,
        key_heads: 64,
        decay,
        ..Case::new(DType::Bf16, 4, 64, 64, 64)
    };
    assert_eq!(plan(&auto(Decay::None)).paths(), [Path::Chain; 3]);
    assert_eq!(plan(&auto(Decay::Scalar)).paths(), [Path::Chain; 3]);
    assert_eq!(plan(&auto(Decay::Vector)).paths(), [Path::Chain; 3]);
    let wide = Case { value_dim: 256, ..auto(Decay::Vector) };
    assert_eq!(plan(&wide).paths(), [Path::Recurrent, Path::Recurrent, Path::Chain]);
    assert_eq!(plan(&Case { value_dim: 256, ..auto(Decay::Scalar) }).paths(), [Path::Chain; 3]);
    assert_eq!(plan(&Case { dtype: DType::F32, ..auto(Decay::None) }).paths(), [Path::Recurrent; 3]);
}
