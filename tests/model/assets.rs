//! The models and the book that come with the repository, run by the reference.

use super::support::{reference, rows_of};
use lookback_model::flags;
use lookback_model::phonebook::{Book, DIGITS, digit_token, digits_text};
use lookback_model::weights::{CLASSES, Weights};
use lookback_suite::asset;

pub fn book() -> Book {
    Book::parse(&std::fs::read_to_string(asset("phonebook.txt")).unwrap()).unwrap()
}

/// Entries whose number the reference model writes down right, digit after digit.
fn right_answers(weights: &Weights, book: &Book) -> usize {
    let model = reference(weights);
    let answer = |name: &str| {
        let mut prompt = book.prompt(name).unwrap();
        let mut digits = Vec::new();
        for _ in 0..DIGITS {
            let logits =
                model.logits(&rows_of(&prompt), &flags::build(&[prompt.segment()], weights.config().hard_seam));
            let last = &logits[logits.len() - CLASSES..];
            let digit = (0..CLASSES).fold(0, |best, digit| if last[digit] > last[best] { digit } else { best }) as u8;
            digits.push(digit);
            prompt.tokens.push(digit_token(digit));
        }
        digits_text(&digits)
    };
    book.entries().iter().filter(|entry| answer(&entry.name) == entry.number_text()).count()
}

#[test]
fn reading_both_ways_finds_what_reading_forward_does_not() {
    let book = book();
    assert_eq!(book.entries().len(), 16);
    let both = Weights::open(asset("phonebook.safetensors")).unwrap();
    let causal = Weights::open(asset("phonebook-causal.safetensors")).unwrap();
    assert!(both.config().reads_both_ways() && !causal.config().reads_both_ways());
    let (both, causal) = (right_answers(&both, &book), right_answers(&causal, &book));
    assert!(both >= 15 && causal <= 4, "{both} and {causal} of 16");
}

#[test]
fn files_say_how_they_were_measured() {
    for name in ["phonebook.safetensors", "phonebook-causal.safetensors"] {
        let weights = Weights::open(asset(name)).unwrap();
        let fact = |key: &str| weights.facts()[key].parse::<f64>().unwrap();
        assert!((0.0..=1.0).contains(&fact("unseen_16_exact")) && fact("trained_steps") > 0.0, "{name}");
    }
}
