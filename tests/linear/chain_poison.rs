//! NaN goes where the recurrence carries it, and nowhere else.

use super::chain_case::{Case, Data, compare, run, walk};
use half::{bf16, f16};

/// A NaN in one tensor at one token, in every order, with a cut on each side of it.
#[test]
fn chain_nan_reaches_what_its_weight_reaches() {
    for order in 0..3 {
        for (reverse, normalize, late_cut) in [(false, false, false), (true, false, true), (false, true, false)] {
            let flags = [vec![14, 38], Vec::new()];
            let case = Case { order, reverse, normalize, late_cut, flags, ..Case::new(50, 1, 32, 64) };
            for at in [12, 21, 31] {
                for tensor in 0..3 {
                    let mut data = Data::new::<f16>(&case, 3);
                    let (values, width) = match tensor {
                        0 => (&mut data.q, 32),
                        1 => (&mut data.k, 32),
                        _ => (&mut data.v, 64),
                    };
                    values[at * width + 5] = f64::NAN;
                    compare::<f16>(&format!("NaN at {at} of tensor {tensor}"), &case, &data);
                }
            }
        }
    }
}

/// Infinities reach the same places, though as themselves or as NaN: that depends on what is summed first.
#[test]
fn chain_infinity_reaches_what_its_weight_reaches() {
    let case = Case { flags: [vec![30], Vec::new()], ..Case::new(40, 1, 32, 64) };
    for at in [3, 20] {
        let mut data = Data::new::<bf16>(&case, 4);
        data.v[at * 64 + 7] = f64::INFINITY;
        let (out, want) = (run::<bf16>(&case, &data), walk(&case, &data));
        for (out, want) in [(&out.o, &want.o), (&out.h, &want.h)] {
            let odd = out.iter().zip(want).position(|(a, b)| a.is_finite() != b.is_finite());
            assert_eq!(odd, None, "infinity at {at}");
        }
        assert!(out.o[at * 64 + 7].is_infinite(), "infinity at {at} is lost");
    }
}

/// Tokens of a prefix and of other sequences hold NaN: nothing of them is multiplied.
#[test]
fn chain_what_is_not_added_may_be_anything() {
    let case = Case { lengths: vec![20, 9, 40], prefix: vec![5, 9, 18], padding: 8, ..Case::new(69, 1, 64, 64) };
    let mut data = Data::new::<bf16>(&case, 5);
    for t in (0..5).chain(20..29).chain(29..47) {
        data.k[t * 64..(t + 1) * 64].fill(f64::NAN);
        data.v[t * 64..(t + 1) * 64].fill(f64::NAN);
    }
    for (reverse, segment_tokens) in [(false, 0), (true, 0), (false, 16)] {
        compare::<bf16>("NaN in prefixes", &Case { reverse, segment_tokens, ..case.clone() }, &data);
    }
}

/// A token decides nothing before it: the bits of earlier rows stay.
#[test]
fn chain_is_causal_to_the_bit() {
    let case = Case::new(60, 1, 64, 64);
    let data = Data::new::<bf16>(&case, 6);
    let before = run::<bf16>(&case, &data);
    for at in [1, 17, 40] {
        let mut data = Data::new::<bf16>(&case, 6);
        data.k[at * 64 + 1] = 7.0;
        data.v[at * 64 + 2] = f64::NAN;
        data.g[at] = -9.0;
        let after = run::<bf16>(&case, &data);
        let same = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same(&before.o[..at * 64], &after.o[..at * 64]), "token {at} changes the past");
        assert!(!same(&before.o[at * 64..], &after.o[at * 64..]), "token {at} changes nothing");
    }
}
