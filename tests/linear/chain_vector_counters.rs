//! What the chunked walk with a decay for every key or value costs, as the emulator counts it.

use super::chain_case::{Case, Data, Decay, run};
use half::bf16;
use lookback_suite::counters::Counters;

/// Matrix products and ex2 (of one lane) for each 16 tokens and block of values, as the contract's cost line says.
fn cost(case: &Case) -> (u64, u64) {
    let (kt, bv) = (case.kt as u64, case.bv as u64);
    match case.decay {
        Decay::Key => (bv / 16 * (kt / 8 + kt / 16 + 2 + kt / 8), 22 * kt),
        _ => (bv / 16 * (kt / 8 + 2 + kt / 8) + kt / 8, 20 * bv),
    }
}

/// Each tensor once.
fn bytes(case: &Case) -> u64 {
    let (kd, vd) = (case.key_dim, case.value_dim);
    let gate = 4 * if case.decay == Decay::Key { kd } else { vd };
    (case.heads * (case.seq_len * (2 * (2 * kd + 2 * vd) + gate) + 4 * kd * vd)) as u64
}

#[test]
fn chain_vector_costs_what_its_contract_says() {
    for decay in [Decay::Key, Decay::Value] {
        for (kd, vd, bv) in [(32, 64, 64), (64, 64, 64), (128, 64, 64), (128, 128, 128), (256, 64, 64)] {
            let case = Case { decay, bv, state: false, ..Case::new(256, 1, kd, vd) };
            let data = Data::new::<bf16>(&case, 1);
            let Some(counted) = Counters::of(|| drop(run::<bf16>(&case, &data))) else { return };
            let what = format!("{case:?}");
            let of = |path: &str| counted.number(path);
            let (moved, wanted) = (counted.unique_bytes(), bytes(&case));
            assert!(moved <= wanted && wanted * 20 <= moved * 21, "{what}: {moved} bytes, the plan says {wanted}");
            let copied = of("async_copy_bytes");
            assert_eq!(copied, wanted - (case.seq_len * 2 * vd + 4 * kd * vd) as u64, "{what}: read more than once");
            assert_eq!(of("global_stores/sectors"), of("global_stores/ideal_sectors"), "{what}: stores");
            let conflicts = of("bank_conflicts");
            let ideal = ["shared_loads", "shared_stores", "matrix_loads"].map(|k| of(&format!("{k}/ideal_wavefronts")));
            assert!(conflicts * 20 <= ideal.iter().sum::<u64>(), "{what}: {conflicts} conflicts of {ideal:?}");

            let chunks = (case.seq_len / 16) as u64;
            let (products, powers) = cost(&case);
            let tensor = of("tensor_flops");
            // On the value side two products of a warp are half as deep.
            let shallow = if decay == Decay::Value { case.bv as u64 / 16 } else { 0 };
            assert_eq!(tensor, chunks * (products - shallow) * 4096, "{what}: products");
            // A few more in the prologue: divisions by the extents of the grid.
            let special = of("instructions/special") * 32;
            assert!((chunks * powers..=chunks * powers + 4096).contains(&special), "{what}: {special} ex2");
            println!("{what}: {} warp instructions a chunk", of("warp_instructions") / chunks);
        }
    }
}
