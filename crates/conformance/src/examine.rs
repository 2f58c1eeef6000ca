//! One form on one device: what came out, and whether that is what the definition says.

use crate::{
    Result,
    device::{Results, Runner},
    form::Form,
    inputs::Inputs,
    oracle::Expected,
    program,
};

/// Most pieces of the results that are hashed on their own, and the least results of a piece.
const BLOCKS: u64 = 32;
const BLOCK: u64 = 2048;

/// Results of a form that are kept in full: the first ones, where the special values meet, and some from everywhere.
const SAMPLED_FIRST: u64 = 4;
const SAMPLED_SPREAD: u64 = 6;

/// Wrong results that are kept.
const MOST_WRONG: usize = 8;

/// What a form gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Hash of the program's text.
    pub program: u64,
    /// Hash of all operands.
    pub inputs: u64,
    /// How many results there are.
    pub results: u64,
    /// A hash for each block of results.
    pub blocks: Vec<u64>,
    /// Some results: the index and the bits of each output.
    pub sample: Vec<(u64, Vec<u64>)>,
    /// How many outputs were held against a definition.
    pub checked: u64,
    /// How many of them disagree.
    pub wrong: u64,
    /// The largest error as a part of the tolerance, among those that agree.
    pub worst: f64,
    /// The first that disagree.
    pub mistakes: Vec<Mistake>,
}

/// A result that is not what it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    /// Index of the operands.
    pub index: u64,
    /// Their bits.
    pub inputs: Vec<u64>,
    /// Which output.
    pub output: usize,
    /// Its bits.
    pub got: u64,
    /// What was expected.
    pub expected: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inputs: Vec<String> = self.inputs.iter().map(|bits| format!("{bits:#x}")).collect();
        let Self { index, output, got, expected, .. } = self;
        write!(f, "#{index} ({}): output {output} is {got:#x}, expected {expected}", inputs.join(", "))
    }
}

/// FNV-1a over 64-bit words in place of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Takes in one word.
    pub fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        // The product only moves bits up; this brings the upper ones back down.
        self.0 ^= self.0 >> 29;
    }

    /// Takes in a text.
    pub fn add_text(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.add(byte.into()));
    }

    /// The hash of what came so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Runs a form and looks at everything that comes out; `raw` gets all results too.
///
/// # Errors
/// When the device refuses the program, or it faults.
pub fn examine(
    runner: &Runner,
    form: &Form,
    number: usize,
    stride: u64,
    mut raw: impl FnMut(u64, &Results),
) -> Result<Outcome> {
    let inputs = Inputs::new(&form.inputs, &form.data, stride);
    let prepared = runner.prepare(form, number)?;
    let mut state = State::new(form, &inputs);
    (state.outcome.program, state.outcome.inputs) = identity(form, stride);
    runner.run(&prepared, &inputs, form, |first, results| {
        state.take(first, results);
        raw(first, results);
    })?;
    Ok(state.finish())
}

/// The hashes by which a record knows that it is of this form: those of the program and of its operands.
pub fn identity(form: &Form, stride: u64) -> (u64, u64) {
    let inputs = Inputs::new(&form.inputs, &form.data, stride);
    let mut hash = Hash::default();
    // Operands are functions of their index: a few thousand tell one function from another.
    let count = inputs.count();
    hash.add(count);
    let step = (count / 4096).max(1);
    for index in (0..count).step_by(step as usize) {
        (0..form.inputs.len()).for_each(|operand| hash.add(inputs.value(index, operand)));
    }
    let mut text = Hash::default();
    text.add_text(&program::render(form, "conformance"));
    (text.value(), hash.value())
}

struct State<'a> {
    form: &'a Form,
    inputs: &'a Inputs<'a>,
    outcome: Outcome,
    block: u64,
    hashes: Vec<Hash>,
    spread: u64,
}

impl<'a> State<'a> {
    fn new(form: &'a Form, inputs: &'a Inputs<'a>) -> Self {
        let results = inputs.count();
        let block = results.div_ceil(BLOCKS).next_multiple_of(32).max(BLOCK);
        let hashes = vec![Hash::default(); results.div_ceil(block) as usize];
        Self {
            form,
            inputs,
            outcome: Outcome { results, ..Outcome::default() },
            block,
            hashes,
            spread: (results / SAMPLED_SPREAD).max(1),
        }
    }

    fn take(&mut self, first: u64, results: &Results) {
        let length = results.first().map_or(0, Vec::len);
        for i in 0..length {
            let index = first + i as u64;
            let hash = &mut self.hashes[(index / self.block) as usize];
            results.iter().for_each(|output| hash.add(output[i]));
            if index < SAMPLED_FIRST || index % self.spread == self.spread / 2 {
                // Of the widest programs the first outputs have to do.
                let bits = results.iter().take(8).map(|output| output[i]).collect();
                self.outcome.sample.push((index, bits));
            }
        }
        self.check(first, results, length);
    }

    fn check(&mut self, first: u64, results: &Results, length: usize) {
        let Some(oracle) = &self.form.oracle else { return };
        let mut warp = vec![[0; 32]; self.form.inputs.len()];
        for base in (0..length).step_by(32) {
            for (operand, register) in warp.iter_mut().enumerate() {
                for (lane, value) in register.iter_mut().enumerate() {
                    *value = self.inputs.value(first + (base + lane) as u64, operand);
                }
            }
            let expected = oracle.expect(&warp, results.len());
            for (output, (expected, got)) in expected.iter().zip(results).enumerate() {
                for (lane, expected) in expected.iter().enumerate() {
                    let got = got[base + lane];
                    self.outcome.checked += u64::from(*expected != Expected::Open);
                    let error = expected.error(got);
                    if error <= 1.0 {
                        self.outcome.worst = self.outcome.worst.max(error);
                        continue;
                    }
                    self.outcome.wrong += 1;
                    if self.outcome.mistakes.len() < MOST_WRONG {
                        self.outcome.mistakes.push(Mistake {
                            index: first + (base + lane) as u64,
                            inputs: warp.iter().map(|register| register[lane]).collect(),
                            output,
                            got,
                            expected: expected.to_string(),
                        });
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.outcome.blocks = self.hashes.iter().map(|hash| hash.value()).collect();
        self.outcome
    }
}
