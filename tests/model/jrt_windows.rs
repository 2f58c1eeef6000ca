//! Sliding windows between Based's and Just Read Twice's other mixers: prompts, padding, and steps round the ring.

use super::jrt::{BF16, draft, reference, small, tokens, wanted, widened};
use super::support::{Draft, assert_every_tensor_is_wanted};
use half::{bf16, f16};
use lookback_device::{Element, Error};
use lookback_model::jrt::{Config, Jrt, Mixing};
use lookback_suite::{
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of three mixers and three units rounds its output to 11 bits.
const F16: Gate = Gate { rel: 2.5e-3, row: 7.5e-3, inf: 7.5e-3 };

/// Linear attention and a window, as Based has them.
fn based() -> Config {
    Config { layers: vec![Mixing::SlidingWindow, Mixing::Attention, Mixing::SlidingWindow], ..small() }
}

/// As Just Read Twice has them; heads of which only a part turns.
fn jrt() -> Config {
    let layers = vec![Mixing::PrefixAttention, Mixing::SlidingWindow, Mixing::Convolution];
    Config { layers, rotary_dim: 4, window: 6, ..small() }
}

/// No positions at all, biases, and a window of the token alone.
fn without_positions() -> Config {
    Config { layers: vec![Mixing::SlidingWindow, Mixing::Convolution], rotary_dim: 0, window: 0, ..small() }
}

fn draft_of<T: Element>(config: &Config) -> Draft {
    let mut draft = draft::<T>(config, false);
    if config.rotary_dim == 0 {
        // A row of the output's weights serves as its bias, three as that of the projection.
        let name = |tensor: &str| format!("transformer.layers.0.mixer.{tensor}");
        let mut bias = draft.tensors[&name("out_proj.weight")].clone();
        bias.bytes.truncate(4 * config.width);
        bias.shape = vec![config.width];
        draft.tensors.insert(name("out_proj.bias"), bias.clone());
        bias.bytes = bias.bytes.repeat(3);
        bias.shape = vec![3 * config.width];
        draft.tensors.insert(name("Wqkv.bias"), bias);
    }
    draft
}

fn every_token_equals_the_reference<T: Element>(gate: Gate) {
    for config in [based(), jrt(), without_positions()] {
        let draft = draft_of::<T>(&config);
        let model = Jrt::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        // Inside of the window, as long, longer, and over several tiles.
        for count in [1, 5, 7, 70] {
            let got = widened(&model.logits(&tokens(count)).unwrap());
            let what = format!("{:?}, {count} tokens", config.layers);
            let e = assert_close(&what, &got, &wanted(&reference, &tokens(count)), config.vocabulary, gate);
            println!("{} {what}: {e:?}", T::DTYPE);
        }
    }
}

#[test]
fn every_token_equals_the_reference_f16() {
    every_token_equals_the_reference::<f16>(F16);
}

#[test]
fn every_token_equals_the_reference_bf16() {
    every_token_equals_the_reference::<bf16>(BF16);
}

/// Prompts shorter and longer than the window, beside one another where no prefix is encoded, and steps until rings have gone round.
fn prompts_and_their_steps_equal_the_reference<T: Element>(gate: Gate) {
    for (config, lengths) in [(based(), [9, 2]), (jrt(), [12, 12]), (without_positions(), [1, 3])] {
        let draft = draft_of::<T>(&config);
        let model = Jrt::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        let mut rows: Vec<Vec<i32>> = lengths.map(tokens).to_vec();
        rows[1][0] = 17;
        let prompts: Vec<&[i32]> = rows.iter().map(Vec::as_slice).collect();
        let (mut logits, mut generation) = model.prefill(&prompts).unwrap();
        let (mut got, mut all) = (Vec::new(), Vec::new());
        for step in 0..8 {
            got.extend(widened(&logits));
            for row in &rows {
                let wanted = wanted(&reference, row);
                all.extend_from_slice(&wanted[wanted.len() - config.vocabulary..]);
            }
            let next = [step, 28 - step];
            rows.iter_mut().zip(next).for_each(|(row, token)| row.push(token));
            logits = model.step(&mut generation, &next).unwrap();
        }
        let what = format!("{:?}, steps", config.layers);
        let e = assert_close(&what, &got, &all, config.vocabulary, gate);
        println!("{} {what}: {e:?}", T::DTYPE);
    }
}

#[test]
fn prompts_and_their_steps_equal_the_reference_f16() {
    prompts_and_their_steps_equal_the_reference::<f16>(F16);
}

#[test]
fn prompts_and_their_steps_equal_the_reference_bf16() {
    prompts_and_their_steps_equal_the_reference::<bf16>(BF16);
}

/// Two windows deep, a token is seen by the eight behind it and by none behind those.
#[test]
fn a_token_is_forgotten_after_its_windows() {
    let config = Config { layers: vec![Mixing::SlidingWindow; 2], ..small() };
    let model = Jrt::<f16>::load(&stream(), &draft_of::<f16>(&config).checkpoint(), &config).unwrap();
    let before = model.logits(&tokens(20)).unwrap();
    let mut other = tokens(20);
    other[3] = 28;
    let after = model.logits(&other).unwrap();
    for (token, (before, after)) in before.chunks_exact(29).zip(after.chunks_exact(29)).enumerate() {
        assert_eq!(before != after, (3..=11).contains(&token), "token {token}");
    }
}

#[test]
fn every_tensor_is_wanted() {
    let config = based();
    assert_every_tensor_is_wanted(&draft_of::<f16>(&config), |file| {
        Jrt::<f16>::load(&stream(), file, &config).map(|_| ())
    });
}

#[test]
fn windows_have_no_f32() {
    let config = based();
    let model = Jrt::<f32>::load(&stream(), &draft_of::<f32>(&config).checkpoint(), &config).unwrap();
    assert!(matches!(model.logits(&[1, 2]), Err(Error::NoKernel { request, .. }) if request.contains("f32")));
}
