//! Samples packed into one row: against the reference, against each sample alone, against prefill and steps.

use super::device::{assert_close, model, small_book};
use super::support::{Draft, packed_logits};
use lookback_device::Error;
use lookback_model::phonebook::{Book, Prompt, TABLE_ROWS, Token, digit_token};
use lookback_model::weights::{CLASSES, Weights};

/// Samples with every kind of prefix. The longest one is longer than a tile of the scan.
fn samples() -> Vec<Prompt> {
    let lines: Vec<String> = (0..13).map(|entry| format!("name {entry} {:04}", 617 * entry)).collect();
    let long = Book::parse(&lines.join("\n")).unwrap().prompt("name 7").unwrap();
    let short = small_book().prompt("Ada").unwrap();
    let causal = Prompt { prefix_len: 0, ..short.clone() };
    let only_prefix = Prompt { prefix_len: short.tokens.len(), ..short.clone() };
    let single = |prefix_len| Prompt { tokens: vec![digit_token(3)], prefix_len };
    vec![short, single(0), long, causal, single(1), only_prefix]
}

fn weights(seam: &str) -> Weights {
    let mut draft = Draft::random(16, 24, &[true, false, true]);
    draft.metadata.insert("seam".into(), seam.into());
    draft.weights()
}

/// The logits of every sample, cut out of those of all.
fn by_sample<'a>(samples: &[Prompt], mut logits: &'a [f32]) -> Vec<&'a [f32]> {
    let parts = samples.iter().map(|sample| logits.split_off(..sample.tokens.len() * CLASSES).unwrap()).collect();
    assert!(logits.is_empty());
    parts
}

fn widened(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|&logit| f64::from(logit)).collect()
}

#[test]
fn every_token_of_packed_samples_equals_the_reference() {
    for seam in ["soft", "hard"] {
        let weights = weights(seam);
        assert_close(&model(&weights).logits(&samples()).unwrap(), &packed_logits(&weights, &samples()));
    }
}

#[test]
fn packed_samples_equal_each_alone() {
    for seam in ["soft", "hard"] {
        let model = model(&weights(seam));
        let packed = model.logits(&samples()).unwrap();
        for (sample, packed) in samples().iter().zip(by_sample(&samples(), &packed)) {
            assert_close(packed, &widened(&model.logits(std::slice::from_ref(sample)).unwrap()));
        }
    }
}

#[test]
fn a_changed_sample_changes_no_bit_of_the_others() {
    let (samples, model) = (samples(), model(&weights("soft")));
    let before = model.logits(&samples).unwrap();
    for changed in 0..samples.len() {
        let mut others = samples.clone();
        others[changed].tokens.iter_mut().zip((4..=9).cycle()).for_each(|(token, digit)| *token = digit_token(digit));
        let after = model.logits(&others).unwrap();
        let pairs = by_sample(&samples, &before).into_iter().zip(by_sample(&samples, &after));
        for (sample, (before, after)) in pairs.enumerate() {
            let same = before.iter().zip(after).all(|(before, after)| before.to_bits() == after.to_bits());
            assert_eq!(same, sample != changed, "sample {sample} after a change of sample {changed}");
        }
    }
}

#[test]
fn prefill_and_steps_give_the_packed_logits_of_prompt_and_answer() {
    for seam in ["soft", "hard"] {
        let model = model(&weights(seam));
        let mut samples = samples();
        // With a soft seam the first token after a prefix is part of what the prefix sees, so it must be in the prompt.
        samples.retain(|sample| seam == "hard" || sample.prefix_len < sample.tokens.len());
        let (logits, mut generation) = model.prefill(&samples).unwrap();
        let mut given = vec![logits];
        for step in 0..3 {
            let answers = (0..10).cycle().skip(step).step_by(3);
            let tokens: Vec<Token> = answers.take(samples.len()).map(digit_token).collect();
            given.push(model.step(&mut generation, &tokens).unwrap());
            samples.iter_mut().zip(tokens).for_each(|(sample, token)| sample.tokens.push(token));
        }
        let packed = model.logits(&samples).unwrap();
        for (row, packed) in by_sample(&samples, &packed).into_iter().enumerate() {
            let given: Vec<f32> =
                given.iter().flat_map(|logits| &logits[row * CLASSES..][..CLASSES]).copied().collect();
            assert_close(&given, &widened(&packed[packed.len() - given.len()..]));
        }
    }
}

#[test]
fn wrong_samples_are_typed_errors() {
    let model = model(&weights("soft"));
    let good = small_book().prompt("Ada").unwrap();
    let error = |tokens: Vec<Token>, prefix_len| {
        model.logits(&[good.clone(), Prompt { tokens, prefix_len }]).expect_err("a wrong sample")
    };
    assert!(matches!(model.logits(&[]), Err(Error::Shape { arg: "prompts", .. })));
    assert!(matches!(error(vec![], 0), Error::Shape { arg: "tokens", .. }));
    assert!(matches!(error(vec![digit_token(1)], 2), Error::Shape { arg: "prefix_len", .. }));
    let outside = vec![digit_token(1), [0, -1, TABLE_ROWS as i32, -1, -1]];
    assert!(matches!(error(outside, 1), Error::Range { arg: "ids", at: Some(7), .. }));
    assert!(model.logits(&[good]).is_ok());
}
