//! Keys in parts, merged in the kernel.

use super::case::{Case, Computed, Data, run};
use half::{bf16, f16};
use lookback_attention::{Mask, Output};
use lookback_device::{DType, Element};
use lookback_suite::{
    measure::{assert_close, errors, gate},
    random::Random,
};

/// The state of no keys.
fn nothing(case: &Case) -> Computed {
    // What o holds where lse says that there is nothing is not read.
    Computed { o: vec![f64::NAN; case.rows() * case.value_dim], lse: vec![f64::NEG_INFINITY; case.rows()] }
}

/// Merges parts of the keys, which bitmaps choose, in order.
fn in_parts<T: Element>(case: &Case, data: &Data, parts: &[Vec<u8>]) -> Computed {
    let mut state = nothing(case);
    for (i, part) in parts.iter().enumerate() {
        let key_mask = Some(part.iter().zip(case.key_mask.as_ref().unwrap_or(part)).map(|(a, b)| a & b).collect());
        // Only one part has the logit without a value.
        let case = Case { output: Output::Merge, key_mask, sink: false, ..case.clone() };
        let sink = data.sink.clone().filter(|_| i == 0);
        state = run::<T>(&case, &Data { state: Some(state), sink, ..data.clone() });
    }
    state
}

#[test]
fn attention_merging_into_nothing_is_the_block_alone() {
    let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 2, 70, 40, 64) };
    let data = Data::new::<f16>(&case);
    let alone = run::<f16>(&Case { output: Output::F32, ..case.clone() }, &data);
    let merge = Case { output: Output::Merge, ..case };
    let merged = run::<f16>(&merge, &Data { state: Some(nothing(&merge)), ..data });
    assert_eq!(merged.bits(), alone.bits());
}

#[test]
fn attention_merging_nothing_changes_nothing() {
    // Rows of the first tile see no key, and have a state or none.
    let case = Case { mask: Mask::Causal, output: Output::Merge, ..Case::new(DType::F16, 1, 200, 60, 32) };
    let mut data = Data::new::<f16>(&case);
    let mut random = Random::new(8);
    let lse = (0..400).map(|row| if row % 3 == 0 { f64::NEG_INFINITY } else { f64::from(random.normal() as f32) });
    let state = Computed { lse: lse.collect(), o: random.normals::<f32>(400 * 32) };
    data.state = Some(state.clone());
    let got = run::<f16>(&case, &data);
    for row in 0..280 {
        let o = |of: &Computed| of.o[row * 32..][..32].to_vec();
        assert_eq!(got.lse[row].to_bits(), state.lse[row].to_bits(), "row {row}");
        if state.lse[row] == f64::NEG_INFINITY {
            assert!(o(&got).iter().all(|o| o.to_bits() == 0), "row {row}");
        } else {
            assert_eq!(o(&got), o(&state), "row {row}");
        }
    }
    let mut want = data.oracle(&case);
    // Where neither has keys the oracle keeps what was there.
    for row in (0..280).filter(|row| state.lse[*row] == f64::NEG_INFINITY) {
        want.o[row * 32..][..32].fill(0.0);
    }
    case.compare(&got, &want);
}

#[test]
fn attention_merging_is_the_oracles() {
    for (dtype, dim, mask) in [(DType::F16, 64, Mask::Full), (DType::Bf16, 192, Mask::Causal)] {
        let case = Case { mask, output: Output::Merge, ..Case::new(dtype, 2, 70, 80, dim) };
        let mut data = if dtype == DType::F16 { Data::new::<f16>(&case) } else { Data::new::<bf16>(&case) };
        let mut random = Random::new(7);
        // Far lighter, about as heavy, far heavier than what is merged.
        let lse = (0..case.rows()).map(|row| f64::from((random.normal() * [200.0, 3.0, 20.0][row % 3]) as f32));
        data.state = Some(Computed { lse: lse.collect(), o: random.normals::<f32>(case.rows() * dim) });
        case.check_state(&data);
    }
}

impl Case {
    fn check_state(&self, data: &Data) {
        match self.dtype {
            DType::F16 => self.check_data::<f16>(data),
            _ => self.check_data::<bf16>(data),
        }
    }
}

fn any_parts<T: Element>(case: &Case, pieces: usize, striped: bool, seed: u64) {
    let data = Data::new::<T>(case);
    let mut random = Random::new(seed);
    let owner: Vec<usize> =
        (0..case.key_len).map(|key| if striped { random.below(pieces) } else { key * pieces / case.key_len }).collect();
    let mut parts: Vec<Vec<u8>> =
        (0..pieces).map(|part| owner.iter().map(|owner| u8::from(*owner == part)).collect()).collect();
    for i in (1..pieces).rev() {
        parts.swap(i, random.below(i + 1));
    }
    let want = data.oracle(case);
    let merged = in_parts::<T>(case, &data, &parts);
    let once = run::<T>(&Case { output: Output::F32, ..case.clone() }, &data);
    let of = |o: &[f64]| errors(o, &want.o, case.value_dim).expect("finite").rel;
    let (got, single) = (of(&merged.o), of(&once.o));
    assert!(got <= 1.5 * single, "{pieces} pieces: {got:.2e} is more than 1.5 of {single:.2e}");
    assert_close("o", &merged.o, &want.o, case.value_dim, gate(case.dtype));
    for (row, (got, want)) in merged.lse.iter().zip(&want.lse).enumerate() {
        assert!(got == want || (got - want).abs() < 1e-4, "lse[{row}] is {got}, not {want}");
    }
}

#[test]
fn attention_keys_in_any_parts_and_order() {
    let case = Case { heads: 1, key_heads: 1, mask: Mask::Causal, ..Case::new(DType::Bf16, 1, 40, 192, 32) };
    any_parts::<bf16>(&case, 2, false, 1);
    any_parts::<bf16>(&case, 7, true, 2);
    any_parts::<bf16>(&case, 64, true, 3);
    any_parts::<f16>(&Case { dtype: DType::F16, sink: true, ..case.clone() }, 5, true, 4);
    any_parts::<f16>(&Case { dtype: DType::F16, alibi: true, softcap: Some(3.0), ..case }, 64, false, 5);
}
