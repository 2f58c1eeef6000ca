//! The Gated SSM: a prompt in one pass, then an answer token by token; or whole samples, packed into one row.

use crate::block::{Block, Carry, upload};
use crate::config::Config;
use crate::flags::{self, RESET_FORWARD, RESET_REVERSE, Segment};
use crate::pass::{LogitsAfter, Pass};
use crate::phonebook::{DIGITS, IDS_PER_TOKEN, Prompt, TABLE_ROWS, Token, digit_token};
use crate::weights::{CLASSES, Weights};
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DeviceInfo, Error, Result};
use std::sync::Arc;

const OP: &str = "gated_ssm";
/// A token that adds nothing, in front of rows shorter than the longest.
const PADDING: Token = [-1; IDS_PER_TOKEN];

/// A model on a device.
pub struct GatedSsm {
    config: Config,
    device: DeviceInfo,
    stream: Arc<CudaStream>,
    table: CudaSlice<f32>,
    blocks: Vec<Block>,
    norm: CudaSlice<f32>,
    head: CudaSlice<f32>,
}

/// Rows that are being written to. Its memory does not grow with what was read or written.
pub struct Generation {
    rows: usize,
    pass: Pass,
    carries: Vec<Carry>,
    spare: Vec<Carry>,
}

impl Generation {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl GatedSsm {
    /// Copies weights to the stream's device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and other errors of the driver.
    pub fn load(stream: &Arc<CudaStream>, weights: &Weights) -> Result<Self> {
        let names = weights.tensor("embed.names.weight")?;
        let table = [weights.tensor("embed.weight")?, names].concat();
        let blocks = 0..weights.config().half_reversed.len();
        Ok(Self {
            config: weights.config().clone(),
            device: DeviceInfo::of(stream.context())?,
            stream: stream.clone(),
            table: stream.clone_htod(&table).map_err(|e| lookback_device::driver(e, "copy weights"))?,
            blocks: blocks.map(|block| Block::load(stream, weights, block)).collect::<Result<_>>()?,
            norm: upload(stream, weights, "norm.weight")?,
            head: upload(stream, weights, "head.weight")?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads samples of any lengths, packed one after another into one row without padding. Gives the logits that follow
    /// every token of every sample, `[tokens, CLASSES]` in the order of the samples. No sample sees another.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill).
    pub fn logits(&self, samples: &[Prompt]) -> Result<Vec<f32>> {
        check_prompts(samples)?;
        let tokens: Vec<Token> = samples.iter().flat_map(|sample| &sample.tokens).copied().collect();
        let segments: Vec<Segment> = samples.iter().map(Prompt::segment).collect();
        let flags = flags::build(&segments, self.config.hard_seam);
        let mut pass = self.pass(1, tokens.len(), LogitsAfter::EveryToken)?;
        let mut carries = self.carries(&pass)?;
        self.run(&mut pass, &tokens, &flags, None, &mut carries)
    }

    /// Reads prompts of any lengths together in one pass. Gives the logits that follow each prompt's last token,
    /// `[prompts, CLASSES]`, and what is needed to go on.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no prompt, an empty prompt, or a prefix longer than its prompt; [`Error::Range`] ← an id that is
    /// not in the table; and those of the operations.
    pub fn prefill(&self, prompts: &[Prompt]) -> Result<(Vec<f32>, Generation)> {
        check_prompts(prompts)?;
        let rows = prompts.len();
        let len = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let (tokens, flags) = pack(prompts, len, self.config.hard_seam);
        let mut pass = self.pass(rows, len, LogitsAfter::LastTokens)?;
        let mut carries = self.carries(&pass)?;
        let logits = self.run(&mut pass, &tokens, &flags, None, &mut carries)?;
        let pass = self.pass(rows, 1, LogitsAfter::LastTokens)?;
        let spare = self.carries(&pass)?;
        Ok((logits, Generation { rows, pass, carries, spare }))
    }

    /// Reads one more, causal, token of every row: reverse channels see this token alone, and carry nothing.
    /// Gives the logits that follow, `[rows, CLASSES]`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← not one token a row; [`Error::Range`] ← an id that is not in the table; and those of the
    /// operations.
    pub fn step(&self, generation: &mut Generation, tokens: &[Token]) -> Result<Vec<f32>> {
        let Generation { rows, pass, carries, spare } = generation;
        if tokens.len() != *rows {
            let got = vec![tokens.len() as u64];
            return Err(Error::Shape { op: OP, arg: "tokens", want: format!("{rows} long, one a row"), got });
        }
        check_ids(tokens)?;
        let flags = vec![RESET_REVERSE; *rows];
        let logits = self.run(pass, tokens, &flags, Some(carries), spare)?;
        std::mem::swap(carries, spare);
        Ok(logits)
    }

    /// The likeliest digits after each prompt.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill).
    pub fn answer(&self, prompts: &[Prompt]) -> Result<Vec<[u8; DIGITS]>> {
        let (mut logits, mut generation) = self.prefill(prompts)?;
        let mut answers = vec![[0; DIGITS]; prompts.len()];
        for place in 0..DIGITS {
            let digits: Vec<u8> = logits.chunks_exact(CLASSES).map(likeliest).collect();
            answers.iter_mut().zip(&digits).for_each(|(answer, &digit)| answer[place] = digit);
            if place + 1 < DIGITS {
                let tokens: Vec<Token> = digits.into_iter().map(digit_token).collect();
                logits = self.step(&mut generation, &tokens)?;
            }
        }
        Ok(answers)
    }

    fn pass(&self, rows: usize, len: usize, logits_after: LogitsAfter) -> Result<Pass> {
        Pass::new(&self.stream, &self.config, &self.device, rows, len, logits_after)
    }

    fn carries(&self, pass: &Pass) -> Result<Vec<Carry>> {
        self.blocks.iter().map(|_| pass.carry(&self.stream)).collect()
    }

    /// Tokens to the logits that the pass was made for.
    fn run(
        &self,
        pass: &mut Pass,
        tokens: &[Token],
        flags: &[u8],
        before: Option<&[Carry]>,
        after: &mut [Carry],
    ) -> Result<Vec<f32>> {
        pass.read(&self.stream, &self.table, tokens, flags)?;
        for (number, (block, after)) in self.blocks.iter().zip(after).enumerate() {
            block.run(&self.stream, pass, before.map(|carries| &carries[number]), after)?;
        }
        pass.logits(&self.stream, &self.norm, &self.head)
    }
}

/// Prompts as rows of `len` tokens, the shorter ones padded in front, with their flags. Every carry between padding and
/// prompt is cut.
fn pack(prompts: &[Prompt], len: usize, hard_seam: bool) -> (Vec<Token>, Vec<u8>) {
    let mut tokens = Vec::with_capacity(prompts.len() * len);
    let mut flags = Vec::with_capacity(prompts.len() * len);
    for prompt in prompts {
        let padding = len - prompt.tokens.len();
        tokens.extend(std::iter::repeat_n(PADDING, padding));
        flags.extend(std::iter::repeat_n(RESET_FORWARD | RESET_REVERSE, padding));
        tokens.extend_from_slice(&prompt.tokens);
        flags.extend(flags::build(&[prompt.segment()], hard_seam));
    }
    (tokens, flags)
}

fn check_prompts(prompts: &[Prompt]) -> Result<()> {
    let shape = |arg, want: &str, got: usize| Error::Shape { op: OP, arg, want: want.into(), got: vec![got as u64] };
    if prompts.is_empty() {
        return Err(shape("prompts", "at least 1 long", 0));
    }
    for prompt in prompts {
        if prompt.tokens.is_empty() {
            return Err(shape("tokens", "at least 1 long", 0));
        }
        if prompt.prefix_len > prompt.tokens.len() {
            return Err(shape("prefix_len", &format!("at most {}", prompt.tokens.len()), prompt.prefix_len));
        }
        check_ids(&prompt.tokens)?;
    }
    Ok(())
}

fn check_ids(tokens: &[Token]) -> Result<()> {
    let wrong = tokens.as_flattened().iter().position(|id| !(-1..TABLE_ROWS as i32).contains(id));
    wrong.map_or(Ok(()), |at| {
        let (lo, hi, got) = (-1, TABLE_ROWS as i64 - 1, i64::from(tokens.as_flattened()[at]));
        Err(Error::Range { op: OP, arg: "ids", at: Some(at as u64), lo, hi, got })
    })
}

/// The first of the greatest logits.
fn likeliest(logits: &[f32]) -> u8 {
    (0..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best }) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phonebook::Book;

    #[test]
    fn shorter_prompts_are_padded_in_front() {
        let book = Book::parse("Ada 1815").unwrap();
        let long = book.prompt("Ada").unwrap();
        let short = Prompt { tokens: long.tokens[5..].to_vec(), prefix_len: 2 };
        let (tokens, flags) = pack(&[long.clone(), short], 8, false);
        assert_eq!(tokens[..8], long.tokens[..]);
        assert_eq!(tokens[8..13], [PADDING; 5]);
        assert_eq!(tokens[13..], long.tokens[5..]);
        assert_eq!(flags, [1, 0, 0, 0, 0, 0, 0, 2, 3, 3, 3, 3, 3, 1, 0, 2]);
    }

    #[test]
    fn wrong_prompts_are_the_callers_errors() {
        let token = digit_token(1);
        let prompt = |tokens: Vec<Token>, prefix_len| [Prompt { tokens, prefix_len }];
        let error = |prompts: &[Prompt]| check_prompts(prompts).unwrap_err();
        assert!(matches!(error(&[]), Error::Shape { arg: "prompts", .. }));
        assert!(matches!(error(&prompt(vec![], 0)), Error::Shape { arg: "tokens", .. }));
        assert!(matches!(error(&prompt(vec![token], 2)), Error::Shape { arg: "prefix_len", .. }));
        let outside = [token, [0, -1, TABLE_ROWS as i32, -1, -1]];
        assert!(matches!(error(&prompt(outside.to_vec(), 1)), Error::Range { at: Some(7), got: 269, .. }));
        assert!(check_prompts(&prompt(vec![token], 1)).is_ok());
    }
}
