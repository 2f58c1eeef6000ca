//! Packed sequences.

use super::case::{Case, Computed, Data, Uploaded, run};
use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use lookback_attention::{Inputs, Mask, Outputs};
use lookback_device::DType;
use lookback_suite::{
    buffer::{Guarded, upload},
    device,
    random::Random,
};

/// Queries and keys: nothing first, one token, no keys, no queries, more of either, a tile exactly, nothing last.
const LENGTHS: [[usize; 2]; 9] = [[0, 0], [1, 1], [20, 0], [0, 30], [1, 90], [150, 40], [128, 64], [5, 130], [0, 0]];

#[test]
fn attention_packed_sequences_of_any_length() {
    for mask in [Mask::Full, Mask::Causal, Mask::Window { left: Some(30), right: Some(5), sink_tokens: 2 }] {
        Case { mask, ..Case::packed(DType::F16, &LENGTHS, 32) }.check();
    }
    Case { mask: Mask::Causal, key_heads: 1, sink: true, ..Case::packed(DType::Bf16, &LENGTHS, 192) }.check();
    let prefix = vec![0, 1, 9, 30, 40, 40, 0, 129, 5];
    Case { mask: Mask::Prefix, prefix, alibi: true, ..Case::packed(DType::F16, &LENGTHS, 64) }.check();
}

#[test]
fn attention_packed_masks_of_keys_and_intervals() {
    let case = Case::packed(DType::F16, &LENGTHS, 32);
    let mut random = Random::new(4);
    let mask: Vec<u8> = (0..case.key_len).map(|_| u8::from(random.below(3) > 0)).collect();
    Case { key_mask: Some(mask), mask: Mask::Causal, ..case.clone() }.check();
    let mut of_row = || {
        let mut ends: Vec<i32> = (0..4).map(|_| random.uniform(-5.0, 100.0) as i32).collect();
        ends.sort_unstable();
        ends
    };
    let intervals = (0..case.query_len).flat_map(|_| of_row()).collect();
    Case { mask: Mask::Intervals, intervals, ..case }.check();
}

#[test]
fn attention_all_sequences_empty() {
    Case::packed(DType::F16, &[[0, 0], [0, 0]], 32).check();
    Case::packed(DType::F16, &[[0, 5], [0, 60]], 32).check();
    Case { sink: true, ..Case::packed(DType::F16, &[[3, 0], [60, 0]], 32) }.check();
}

#[test]
fn attention_packed_equals_one_sequence_after_the_other_to_the_bit() {
    for (mask, dim) in [(Mask::Causal, 64), (Mask::Full, 192)] {
        let case = Case { mask, ..Case::packed(DType::Bf16, &LENGTHS, dim) };
        let data = Data::new::<bf16>(&case);
        let got = run::<bf16>(&case, &data);
        let [starts_q, starts_k] = case.starts.clone().expect("packed");
        let mut joined = Computed::default();
        for n in 0..LENGTHS.len() {
            let [queries, keys] = LENGTHS[n];
            let rows = |values: &[f64], starts: &[i32], len: usize| {
                values[starts[n] as usize * 2 * dim..][..len * 2 * dim].to_vec()
            };
            let one = Data {
                q: rows(&data.q, &starts_q, queries),
                k: rows(&data.k, &starts_k, keys),
                v: rows(&data.v, &starts_k, keys),
                ..data.clone()
            };
            let alone = Case { starts: None, query_len: queries, key_len: keys, ..case.clone() };
            let one = run::<bf16>(&alone, &one);
            joined.o.extend(one.o);
            joined.lse.extend(one.lse);
        }
        assert_eq!(got.bits(), joined.bits(), "{mask:?}");
    }
}

/// Starts that nobody should pass: whatever they are, nothing outside of the tensors is touched.
#[test]
fn attention_hostile_starts_stay_inside() {
    let case = Case { mask: Mask::Causal, ..Case::packed(DType::F16, &[[40, 50], [30, 20], [10, 70]], 32) };
    let data = Data::new::<f16>(&case);
    let on = Uploaded::<f16>::new(&case, &data);
    let plan = case.plan();
    let mut random = Random::new(5);
    for round in 0..8 {
        let mut any = || (0..4).map(|_| random.uniform(-100.0, 300.0) as i32).collect::<Vec<i32>>();
        let keys = match round {
            0 => vec![i32::MIN, i32::MAX, i32::MIN, i32::MAX],
            1 => vec![140, 90, 50, 0],
            _ => any(),
        };
        // Descending starts of queries: only the first sequence has rows, so no two blocks write one.
        let mut queries = if round == 2 { vec![i32::MAX, 0, i32::MIN, i32::MIN] } else { any() };
        queries.sort_unstable_by_key(|start| std::cmp::Reverse(*start));
        let (queries, keys) = (upload(&queries), upload(&keys));
        let inputs = Inputs {
            cu_seqlens_q: Some(&queries as &dyn DevicePtr<i32>),
            cu_seqlens_k: Some(&keys as &dyn DevicePtr<i32>),
            ..on.inputs()
        };
        let mut o = Guarded::<f16>::poisoned(case.rows() * 32, 0);
        let mut lse = Guarded::<f32>::poisoned(case.rows(), 0);
        {
            let (mut o, mut lse) = (o.view_mut(), lse.view_mut());
            plan.run(&device::stream(), &inputs, Outputs::with_lse(&mut o, &mut lse)).expect("runs");
        }
        // Reading checks the guards.
        device::finish();
        assert_eq!(o.read().len() + lse.read().len(), case.rows() * 33);
    }
}

/// Rows that no sequence has are left alone.
#[test]
fn attention_rows_of_no_sequence_are_not_written() {
    let case = Case::packed(DType::F16, &[[40, 50], [30, 20]], 32);
    let data = Data::new::<f16>(&case);
    let on = Uploaded::<f16>::new(&case, &data);
    let queries = upload(&[5, 40, 60]);
    let inputs = Inputs { cu_seqlens_q: Some(&queries as &dyn DevicePtr<i32>), ..on.inputs() };
    let mut o = Guarded::<f16>::poisoned(case.rows() * 32, 0);
    {
        let mut view = o.view_mut();
        case.plan().run(&device::stream(), &inputs, Outputs::of(&mut view)).expect("runs");
    }
    for (i, o) in o.read().iter().enumerate() {
        assert_eq!(o.is_nan(), !(5..60).contains(&(i / 64)), "element {i}");
    }
}
