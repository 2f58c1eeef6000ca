//! What the chunked walk costs, as the emulator counts it.

use super::chain_case::{Case, Data, Decay, run};
use half::bf16;
use lookback_suite::counters::Counters;

/// Products of 16x8x16 for each 16 tokens and block of values, as the contract's cost line says.
fn products(case: &Case) -> u64 {
    let kt = case.kt as u64;
    let walk = case.bv as u64 / 16 * (kt / 8 + 2 + kt / 8) + kt / 8;
    // The state of ones, and in each warp the sums of weights.
    let warps = if case.bv == 64 || kt < 128 { 4 } else { 8 };
    walk + if case.normalize { kt / 16 + kt / 8 + warps } else { 0 }
}

fn bytes(case: &Case) -> u64 {
    let [q, k, v] = case.groups;
    let (kd, vd) = (case.key_dim, case.value_dim);
    let token = 2 * (case.heads / q * kd + case.heads / k * kd + case.heads / v * vd + case.heads * vd);
    let gate = if case.decay == Decay::Token { 4 * case.heads } else { 0 };
    let state = 4 * case.heads * (kd * vd + if case.normalize { kd } else { 0 });
    let den = if case.normalize { 4 * case.heads } else { 0 };
    (case.batch * case.seq_len * (token + gate + den) + case.batch * state * if case.state { 2 } else { 1 }) as u64
}

#[test]
fn chain_costs_what_its_contract_says() {
    let causal = Case { state: false, ..Case::new(512, 1, 128, 128) };
    let shared = Case { groups: [2, 2, 1], ..Case::new(256, 2, 128, 64) };
    let normal = Case { normalize: true, decay: Decay::None, ..Case::new(256, 1, 64, 128) };
    let wide = Case { reverse: true, ..Case::new(128, 1, 256, 128) };
    for case in [causal, shared, normal, wide, Case::new(128, 2, 32, 64)] {
        let data = Data::new::<bf16>(&case, 1);
        let Some(counted) = Counters::of(|| drop(run::<bf16>(&case, &data))) else { return };
        let what = format!("{case:?}");
        counted.assert_streams(&what, bytes(&case));
        let chunks = (case.batch * case.heads * case.seq_len / 16) as u64;
        assert_eq!(counted.number("tensor_flops"), chunks * products(&case) * 4096, "{what}");
        let ideal = counted.number("global_stores/ideal_sectors");
        assert_eq!(counted.number("global_stores/sectors"), ideal, "{what}");
    }
}

/// Instructions of a warp for 16 more tokens, of all warps: what issues them is the second limit after memory.
#[test]
fn chain_instructions_stay_few() {
    for (case, most) in [
        (Case::new(0, 1, 128, 128), 2750),
        (Case::new(0, 1, 128, 64), 1900),
        (Case::new(0, 1, 64, 64), 1500),
        (Case { normalize: true, ..Case::new(0, 1, 128, 128) }, 3700),
    ] {
        let count = |seq_len: usize| {
            let case = Case { seq_len, ..case.clone() };
            let data = Data::new::<bf16>(&case, 1);
            Counters::of(|| drop(run::<bf16>(&case, &data))).map(|c| c.number("warp_instructions"))
        };
        let (Some(few), Some(many)) = (count(128), count(256)) else { return };
        let chunk = (many - few) / 8;
        assert!(chunk <= most, "{} {}: {chunk} instructions, more than {most}", case.key_dim, case.value_dim);
    }
}
