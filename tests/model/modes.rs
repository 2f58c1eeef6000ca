//! What a GPU leaves to chance must not show in a model: order of blocks, divergence, when copies land, how many blocks there are room for.

use half::bf16;
use lookback_model::{jrt::Jrt, mamba2::Mamba2};
use lookback_suite::{counters::Switch, device::stream};

/// Logits of models that between them use every kernel of this folder's own, tensor cores, a look-back and one step.
fn everything() -> Vec<f32> {
    let config = super::mamba2::small();
    let file = super::mamba2::draft::<bf16>(&config).checkpoint();
    let model = Mamba2::<bf16>::load(&stream(), &file, &config).unwrap();
    let (mut logits, mut generation) =
        model.prefill(&[&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], &[1]]).unwrap();
    logits.extend(model.step(&mut generation, &[4, 2]).unwrap());
    let config = super::jrt::small();
    let file = super::jrt::draft::<f32>(&config, false).checkpoint();
    logits.extend(Jrt::<f32>::load(&stream(), &file, &config).unwrap().logits(&[2, 7, 1, 8, 2, 8, 1, 8, 2]).unwrap());
    logits
}

#[test]
fn models_are_bitwise_the_same_in_every_mode() {
    let expected = everything();
    for (key, value, default) in [
        ("order", "reversed", "inorder"),
        ("order", "random:5", "inorder"),
        ("convergence", "random:5", "natural"),
        ("async", "eager", "late"),
        ("residency", "1", "auto"),
        ("quantum", "7", "20000"),
        ("checks", "off", "on"),
    ] {
        let _switch = Switch::set(key, value, default);
        assert!(everything() == expected, "{key} = {value} changes a result");
    }
}
