//! Bytes that are nearly right.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Spoils seeds, the same way on every machine.
pub struct Mutator {
    random: Pcg64Mcg,
    /// Words that mean something to the reader.
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// A stream of spoiled seeds.
    pub fn new(seed: u64, words: &[&str]) -> Self {
        let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        Self { random: Pcg64Mcg::seed_from_u64(seed), words }
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.random_range(0..n.max(1))
    }

    /// One of the seeds with one to six changes, or now and then as it is.
    pub fn next(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = if seeds.is_empty() { Vec::new() } else { seeds[self.below(seeds.len())].clone() };
        for _ in 0..self.below(7) {
            self.change(&mut bytes, seeds);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        // Most of what readers decide stands at the front.
        let reach = if self.below(2) == 0 { bytes.len().min(400) } else { bytes.len() };
        let at = self.below(reach + 1).min(bytes.len());
        let some = (bytes.len() - at).min(1 + self.below(30));
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.random.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + some)),
            4 => {
                let copy = bytes[at..at + some].to_vec();
                bytes.splice(at..at, copy);
            }
            5 if !self.words.is_empty() => {
                let word = self.below(self.words.len());
                let end = at + if self.below(2) == 0 { 0 } else { some };
                bytes.splice(at..end, self.words[word].clone());
            }
            6 => {
                // A number becomes another one.
                let Some(digit) = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else { return };
                let end = (digit..bytes.len()).find(|i| !bytes[*i].is_ascii_digit()).unwrap_or(bytes.len());
                let numbers =
                    ["0", "1", "2", "3", "7", "8", "65536", "4294967295", "2147483648", "18446744073709551615", "-1"];
                let number = numbers[self.below(numbers.len())];
                bytes.splice(digit..end, number.bytes());
            }
            7 if !seeds.is_empty() => {
                // The end of another seed.
                let other = self.below(seeds.len());
                let from = self.below(seeds[other].len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&seeds[other][from..]);
            }
            _ if at + 8 <= bytes.len() => {
                let number: u64 =
                    [0, 1, u64::MAX, 1 << 31, 1 << 32, u64::from(self.random.random::<u16>())][self.below(6)];
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            _ => bytes.push(self.random.random()),
        }
    }
}
