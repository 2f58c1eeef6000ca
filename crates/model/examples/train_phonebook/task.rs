//! Random phone books: the training data, and the unseen books that measure a model.

use lookback_model::phonebook::{self, ASK, BEGIN, DIGITS, NAME_ROWS, NAME_TABLES, Token};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Books of one size, one question each, as rows of equal length.
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Tokens of a row.
    pub row_len: usize,
    /// Tokens of a row that are read both ways; the token after them is `BEGIN`.
    pub prefix_len: usize,
    /// The tokens, row after row.
    pub tokens: Vec<Token>,
    /// The digits that answer each row.
    pub answers: Vec<[u8; DIGITS]>,
}

impl Batch {
    /// Random books of `entries` entries. Names are drawn as random rows of the hashed tables and differ within a
    /// book. The answer's own digits, but the last, follow `BEGIN`.
    pub fn random(rng: &mut Pcg64, rows: usize, entries: usize) -> Self {
        let prefix_len = entries * (1 + DIGITS) + 2;
        let row_len = prefix_len + DIGITS;
        let mut tokens = Vec::with_capacity(rows * row_len);
        let mut answers = Vec::with_capacity(rows);
        let mut names: Vec<[u8; NAME_TABLES]> = Vec::with_capacity(entries);
        for _ in 0..rows {
            names.clear();
            while names.len() < entries {
                let name = std::array::from_fn(|_| rng.random_range(0..NAME_ROWS as u8));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            let asked = rng.random_range(0..entries);
            let mut answer = [0; DIGITS];
            for (index, &name) in names.iter().enumerate() {
                let number: [u8; DIGITS] = std::array::from_fn(|_| rng.random_range(0..10));
                tokens.push(phonebook::name_token(name));
                tokens.extend(number.map(phonebook::digit_token));
                if index == asked {
                    answer = number;
                }
            }
            tokens.push(phonebook::kind_token(ASK));
            tokens.push(phonebook::name_token(names[asked]));
            tokens.push(phonebook::kind_token(BEGIN));
            tokens.extend(answer[..DIGITS - 1].iter().map(|&digit| phonebook::digit_token(digit)));
            answers.push(answer);
        }
        Self { rows, row_len, prefix_len, tokens, answers }
    }
}

/// What random numbers are drawn for. Each purpose, and each index within it, has its own stream, so that a run which
/// goes on from a checkpoint draws what it would have drawn.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// First weights.
    Weights,
    /// The batch of a training step.
    Training,
    /// Books never trained on.
    Unseen,
}

/// The stream of a seed, a purpose and an index.
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> Pcg64 {
    let purpose = match purpose {
        Purpose::Weights => 1,
        Purpose::Training => 2,
        Purpose::Unseen => 3,
    };
    let mixed =
        (seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(purpose);
    Pcg64::seed_from_u64(mixed)
}
