//! The chunked walk that makes Taylor features of its keys and queries on the way.

use super::chain_case::{Case, Data, Decay, check, run};
use half::{bf16, f16};
use lookback_suite::counters::Counters;

fn taylor(seq_len: usize, key_dim: usize, value_dim: usize) -> Case {
    Case {
        taylor: true,
        kt: 160,
        bv: 64,
        normalize: true,
        decay: Decay::None,
        ..Case::new(seq_len, 1, key_dim, value_dim)
    }
}

#[test]
fn chain_makes_taylor_features() {
    for seq_len in [1, 17, 33, 64, 100, 130] {
        check::<bf16>("Taylor", &Case { scale: 1.0, ..taylor(seq_len, 16, 64) });
        check::<f16>("Taylor", &Case { scale: 1.0, state: false, ..taylor(seq_len, 16, 72) });
    }
    check::<f16>("Taylor of eight entries", &Case { scale: 1.0, ..taylor(40, 8, 64) });
}

#[test]
fn chain_walks_taylor_features_in_every_way() {
    let plain = Case { normalize: false, ..taylor(70, 16, 64) };
    check::<bf16>("Taylor, plain", &plain);
    check::<bf16>("Taylor, cut", &Case { flags: [vec![5, 31, 32, 50], vec![]], decay: Decay::Token, ..plain.clone() });
    let packed = Case { lengths: vec![3, 0, 40, 27], transposed: true, ..taylor(70, 16, 64) };
    check::<bf16>("Taylor, packed", &packed);
    check::<bf16>("Taylor, reverse", &Case { reverse: true, order: 2, ..plain });
    check::<bf16>("Taylor, prefix", &Case { prefix: vec![1, 0, 20, 27], ..packed });
}

/// Features never leave the chip: what moves is q, k, v, o, the divisors and states.
#[test]
fn chain_moves_no_taylor_features() {
    let case = Case { state: false, ..taylor(512, 16, 64) };
    let data = Data::new::<bf16>(&case, 1);
    let Some(counted) = Counters::of(|| drop(run::<bf16>(&case, &data))) else { return };
    let bytes = 512 * (2 * (16 + 16 + 64 + 64) + 4) + 4 * 153 * 65;
    counted.assert_streams("Taylor", bytes);
    let chunk = 4 * (20 + 2 + 20 + 1) + 2 + 10 + 20;
    assert_eq!(counted.number("tensor_flops"), 512 / 16 * chunk * 4096);
}
