//! The chunked walk on tensor cores against the walk in f64, token by token.

use super::chain_case::{Case, Decay, check};
use half::{bf16, f16};

#[test]
fn chain_follows_the_recurrence_for_every_tile() {
    for (key_dim, value_dim) in [(32, 64), (64, 64), (128, 64), (128, 128), (256, 128), (16, 96), (96, 24), (64, 136)] {
        let e = check::<bf16>("tiles", &Case::new(65, 2, key_dim, value_dim));
        println!("{key_dim} {value_dim} {e:?}");
    }
    println!("{:?}", check::<f16>("tiles", &Case::new(65, 1, 64, 64)));
    let _ = Decay::None;
}
