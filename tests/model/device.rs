//! The model on a device (the emulator where there is no GPU) against the reference.

use super::assets::book;
use super::support::{Draft, packed_logits};
use lookback_model::gated_ssm::GatedSsm;
use lookback_model::phonebook::{Book, Prompt, digit_token};
use lookback_model::weights::{CLASSES, Weights};
use lookback_suite::{asset, device::stream};

/// Sums in f32 through a few blocks stay this close to f64, relative to the greatest logit.
const CLOSE: f64 = 2e-5;

pub fn model(weights: &Weights) -> GatedSsm {
    GatedSsm::load(&stream(), weights).unwrap()
}

/// The reference's logits after a prompt's last token.
fn wanted(weights: &Weights, prompt: &Prompt) -> Vec<f64> {
    let logits = packed_logits(weights, std::slice::from_ref(prompt));
    logits[logits.len() - CLASSES..].to_vec()
}

pub fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let greatest = want.iter().fold(0.0_f64, |greatest, want| greatest.max(want.abs()));
    for (&got, want) in got.iter().zip(want) {
        let error = (f64::from(got) - want).abs() / greatest;
        assert!(error < CLOSE, "{got} is not {want}: {error:e}");
    }
}

pub fn small_book() -> Book {
    Book::parse("Ada 1815\n李雷 6118\nnight desk 0007").unwrap()
}

#[test]
fn one_pass_over_prompts_of_many_lengths_equals_the_reference_on_each() {
    for half_reversed in [[true, false], [false, false]] {
        let mut draft = Draft::random(16, 24, &half_reversed);
        for seam in ["soft", "hard"] {
            draft.metadata.insert("seam".into(), seam.into());
            let weights = draft.weights();
            let long = small_book().prompt("Ada").unwrap();
            let short = Book::parse("Zoë 4407").unwrap().prompt("Zoë").unwrap();
            let causal = Prompt { prefix_len: 0, ..long.clone() };
            let only_prefix = Prompt { prefix_len: long.tokens.len(), ..long.clone() };
            let single = Prompt { tokens: vec![digit_token(3)], prefix_len: 0 };
            let prompts = [short, long, causal, single, only_prefix];
            let (logits, generation) = model(&weights).prefill(&prompts).unwrap();
            assert_eq!(generation.rows(), prompts.len());
            for (prompt, got) in prompts.iter().zip(logits.chunks_exact(CLASSES)) {
                assert_close(got, &wanted(&weights, prompt));
            }
        }
    }
}

#[test]
fn steps_go_on_as_one_pass_over_everything_would() {
    let weights = Draft::random(16, 24, &[true, false, true]).weights();
    let model = model(&weights);
    let mut prompts = [small_book().prompt("李雷").unwrap(), Book::parse("Zoë 4407").unwrap().prompt("Zoë").unwrap()];
    let (_, mut generation) = model.prefill(&prompts).unwrap();
    for step in 0..5 {
        let tokens = [digit_token(step), digit_token(9 - step)];
        let logits = model.step(&mut generation, &tokens).unwrap();
        prompts.iter_mut().zip(tokens).for_each(|(prompt, token)| prompt.tokens.push(token));
        let (whole, _) = model.prefill(&prompts).unwrap();
        for row in 0..2 {
            let row_logits = &logits[row * CLASSES..][..CLASSES];
            assert_close(row_logits, &wanted(&weights, &prompts[row]));
            let whole: Vec<f64> = whole[row * CLASSES..][..CLASSES].iter().map(|&logit| f64::from(logit)).collect();
            assert_close(row_logits, &whole);
        }
    }
}

#[test]
fn wrong_calls_are_errors_and_change_nothing() {
    let weights = Draft::random(16, 24, &[true]).weights();
    let model = model(&weights);
    assert!(model.prefill(&[]).is_err());
    let prompts = [small_book().prompt("Ada").unwrap()];
    let (_, mut generation) = model.prefill(&prompts).unwrap();
    assert!(model.step(&mut generation, &[]).is_err());
    assert!(model.step(&mut generation, &[[9999, -1, -1, -1, -1]]).is_err());
    let after_errors = model.step(&mut generation, &[digit_token(1)]).unwrap();
    let (_, mut fresh) = model.prefill(&prompts).unwrap();
    assert_eq!(after_errors, model.step(&mut fresh, &[digit_token(1)]).unwrap());
}

#[test]
fn the_phone_book_is_answered_from() {
    let book = book();
    let prompts: Vec<Prompt> = book.entries()[..4].iter().map(|entry| book.prompt(&entry.name).unwrap()).collect();
    let weights = Weights::open(asset("phonebook.safetensors")).unwrap();
    let (logits, _) = model(&weights).prefill(&prompts[..1]).unwrap();
    assert_close(&logits, &wanted(&weights, &prompts[0]));
    let answers = model(&weights).answer(&prompts).unwrap();
    let right = answers.iter().zip(book.entries()).filter(|(answer, entry)| **answer == entry.number).count();
    assert!(right >= 3, "{right} of {}", prompts.len());
}
