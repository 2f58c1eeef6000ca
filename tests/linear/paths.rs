//! The chunked paths behind the plan: one pass, and segments with a pass over their states, against the same oracle as the walk token
//! by token.

use super::case::{Case, Data, Uploaded, run};
use half::bf16;
use lookback_device::{DType, Error};
use lookback_linear::{Decay, Mode, Outputs, Path, Read};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    counters::Switch,
    device,
};

const PATHS: [Path; 2] = [Path::Chain, Path::Parallel];

/// Three segments of 128 tokens, the last of 37.
fn case(dtype: DType, path: Path, decay: Decay) -> Case {
    Case { path, decay, scale: 0.125, ..Case::new(dtype, 1, 293, 64, 64) }
}

#[test]
fn linear_attention_paths_every_read_and_direction() {
    for (path, dtype) in PATHS.into_iter().zip([DType::F16, DType::Bf16]) {
        for (read, mode, flags_every) in [
            (Read::Inclusive, Mode::Causal, 0),
            (Read::Inclusive, Mode::Bidirectional, 40),
            (Read::ExclusiveBonus, Mode::Reverse, 0),
            (Read::Shifted, Mode::Bidirectional, 0),
            (Read::Shifted, Mode::Split(1), 30),
        ] {
            Case { read, mode, flags_every, ..case(dtype, path, Decay::Scalar) }.check();
        }
    }
}

#[test]
fn linear_attention_paths_without_decay_and_by_head() {
    for path in PATHS {
        for decay in [Decay::None, Decay::Head] {
            Case { batch: 2, seq_len: 140, ..case(DType::Bf16, path, decay) }.check();
        }
    }
}

#[test]
fn linear_attention_paths_normalized_with_prefixes() {
    for path in PATHS {
        let case = Case { normalize: Some(0.5), batch: 2, seq_len: 150, ..case(DType::Bf16, path, Decay::None) };
        case.check();
        Case { mode: Mode::PrefixState, ..case.clone() }.check();
        Case { mode: Mode::PrefixRead, prefix: vec![60, 131], ..case }.check();
    }
}

#[test]
fn linear_attention_paths_with_vector_decays() {
    for (path, dtype) in PATHS.into_iter().zip([DType::Bf16, DType::F16]) {
        for (read, mode, flags_every) in [
            (Read::Inclusive, Mode::Causal, 0),
            (Read::ExclusiveBonus, Mode::Causal, 50),
            (Read::Shifted, Mode::Reverse, 40),
            (Read::Inclusive, Mode::Bidirectional, 0),
        ] {
            Case { read, mode, flags_every, ..case(dtype, path, Decay::Vector) }.check();
        }
        let starts = Some(vec![0, 0, 1, 130, 130, 259, 293]);
        Case { starts, key_dim: 32, value_dim: 40, ..case(dtype, path, Decay::Vector) }.check();
    }
}

#[test]
fn linear_attention_auto_finds_kernels_for_every_decay_with_a_normaliser() {
    for decay in [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector] {
        let auto = Case { normalize: Some(0.5), seq_len: 40, ..case(DType::Bf16, Path::Auto, decay) };
        Case { path: auto.plan().path(), ..auto }.check();
    }
}

#[test]
fn linear_attention_paths_packed() {
    let starts = Some(vec![0, 0, 1, 130, 130, 259, 293]);
    for path in PATHS {
        for mode in [Mode::Causal, Mode::Reverse] {
            Case { mode, starts: starts.clone(), ..case(DType::F16, path, Decay::Scalar) }.check();
        }
    }
}

#[test]
fn linear_attention_paths_of_other_tiles_and_groups() {
    for path in PATHS {
        for (key_dim, value_dim) in [(8, 8), (32, 72), (128, 136), (200, 64)] {
            let shape = case(DType::Bf16, path, Decay::Scalar);
            Case { key_heads: 1, key_dim, value_dim, seq_len: 133, ..shape }.check();
        }
    }
}

#[test]
fn linear_attention_paths_short_lengths() {
    for path in PATHS {
        for seq_len in [0, 1, 15, 16, 17] {
            Case { seq_len, ..case(DType::Bf16, path, Decay::Scalar) }.check();
        }
    }
}

#[test]
fn linear_attention_chain_needs_no_workspace_and_segments_need_their_states() {
    let bytes = |path, seq_len| Case { seq_len, ..case(DType::Bf16, path, Decay::Scalar) }.plan().workspace_bytes();
    for seq_len in [1, 1000, 1_000_000] {
        assert_eq!(bytes(Path::Chain, seq_len), 0);
        assert_eq!(bytes(Path::Recurrent, seq_len), 0);
    }
    // Slots of 2 heads: the states of the segments and one more, and their decays.
    let slots = |n: u64| n * 2 * 64 * 64 * 4 + (n * 2 * 4).next_multiple_of(256);
    assert_eq!(bytes(Path::Parallel, 128), slots(2));
    assert_eq!(bytes(Path::Parallel, 129), slots(3));
    // Once the device is full, segments grow and not their number.
    assert!(bytes(Path::Parallel, 1_000_000) <= slots(134));
}

#[test]
fn linear_attention_auto_takes_what_fills_the_device() {
    let path = |case: Case| Case { path: Path::Auto, ..case }.plan().path();
    let long = Case { seq_len: 4096, ..case(DType::Bf16, Path::Auto, Decay::Scalar) };
    assert_eq!(path(Case { batch: 64, ..long.clone() }), Path::Chain);
    assert_eq!(path(long.clone()), Path::Parallel);
    assert_eq!(path(Case { seq_len: 400, ..long.clone() }), Path::Chain);
    assert_eq!(path(Case { dtype: DType::F32, ..long.clone() }), Path::Recurrent);
    assert_eq!(path(Case { key_dim: 20, ..long.clone() }), Path::Recurrent);
    assert_eq!(path(Case { value_dim: 3, ..long }), Path::Recurrent);
}

#[test]
fn linear_attention_auto_goes_token_by_token_where_addresses_do_not_fit() {
    let case = Case { seq_len: 40, path: Path::Auto, shift: 1, ..case(DType::Bf16, Path::Auto, Decay::Scalar) };
    let data = Data::new::<bf16>(&case);
    let token_by_token = Case { path: Path::Recurrent, shift: 0, ..case.clone() };
    assert_eq!(case.plan().path(), Path::Chain);
    assert_eq!(run::<bf16>(&case, &data), run::<bf16>(&token_by_token, &data));
}

#[test]
fn linear_attention_chain_that_was_asked_for_needs_its_alignment() {
    let case = case(DType::Bf16, Path::Chain, Decay::Scalar);
    let case = Case { seq_len: 20, mode: Mode::Bidirectional, own_reverse: true, ..case };
    let data = Data::new::<bf16>(&case);
    let on = Uploaded::<bf16>::new(&case, &data);
    // The second direction's keys are an element off: the first direction must not run either.
    let padded: Vec<f64> = [0.0].into_iter().chain(data.own.k.iter().copied()).collect();
    let padded = upload_as::<bf16>(&padded);
    let keys = padded.slice(1..);
    let mut inputs = on.inputs();
    inputs.reverse.k = Some(&keys);
    let mut o = Guarded::<bf16>::poisoned(data.v.len(), 0);
    let done = case.plan().run(&device::stream(), &inputs, Outputs::of(&mut o.view_mut()), None);
    assert!(matches!(done, Err(Error::Align { arg: "k", need: 16, .. })), "{done:?}");
    assert!(o.read().iter().all(|v| v.is_nan()), "nothing is written on an error");
}

#[test]
fn linear_attention_paths_stay_near_the_walk_token_by_token() {
    for path in PATHS {
        let case = case(DType::Bf16, path, Decay::Scalar);
        let data = Data::new::<bf16>(&case);
        let (chunked, single) =
            (run::<bf16>(&case, &data), run::<bf16>(&Case { path: Path::Recurrent, ..case.clone() }, &data));
        case.compare(&chunked, &single);
        assert_ne!(chunked.o, single.o, "other kernels");
    }
}

/// A Hopper cuts off what it adds up, instead of rounding it.
#[test]
fn linear_attention_paths_with_sums_that_are_cut_off() {
    let _hopper = Switch::set("mma", "hopper", "fma");
    for (path, dtype) in PATHS.into_iter().zip([DType::F16, DType::Bf16]) {
        for decay in [Decay::None, Decay::Scalar, Decay::Vector] {
            Case { read: Read::Shifted, mode: Mode::Bidirectional, ..case(dtype, path, decay) }.check();
        }
    }
}
