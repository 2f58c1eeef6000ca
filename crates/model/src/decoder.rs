//! Causal language models: an embedding, layers that add to a residual in `f32`, a norm and a head. What a layer is, is its own
//! business; prompts, passes and steps are the same for all.

use crate::checkpoint::Checkpoint;
use crate::ends::{self, Asked, Ends};
use crate::flags::{RESET_FORWARD, RESET_REVERSE};
use crate::recurrence::Stage;
use cudarc::driver::{CudaSlice, CudaStream, CudaView};
use lookback_device::{DeviceInfo, Element, Error, Result, driver};
use std::sync::Arc;

const OP: &str = "decoder";

/// Sizes of a model, and what every model has around its layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Added to mean squares by the norms.
    pub eps: f32,
}

/// Names of the tensors around the layers.
#[derive(Debug, Clone, Copy)]
pub struct FrameNames {
    /// `[vocabulary, width]`.
    pub embedding: &'static str,
    /// `[width]`.
    pub norm: &'static str,
    /// `[vocabulary, width]`; the embedding where the file has none.
    pub head: &'static str,
}

/// Rows of tokens that one pass works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Rows.
    pub rows: usize,
    /// Tokens of a row.
    pub len: usize,
    /// Whether rows begin here, or go on by one token.
    pub stage: Stage,
}

impl Extent {
    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.rows * self.len
    }
}

/// What is known of the tokens of a pass besides their rows of the residual.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// `[tokens]`: bit 0 cuts every carry into a token. Absent where rows are whole sequences.
    pub flags: Option<&'a CudaSlice<u8>>,
    /// `[tokens]` where rows go on; absent at the start, where they count from 0.
    pub positions: Option<&'a CudaView<'a, i32>>,
    /// `[rows]`: tokens of each row's sequence, those of this pass included and padding not.
    pub lengths: &'a [usize],
}

/// A layer of a model whose activations are of type `T`.
pub trait Layer<T: Element>: Sized {
    /// Sizes and constants, the same for all layers.
    type Config: Clone;
    /// Plans and memory of a pass, shared by all layers.
    type Work;
    /// What goes from one pass to the next.
    type Carry;

    /// Sizes of the model.
    fn frame(config: &Self::Config) -> Frame;
    /// Names of the tensors around the layers.
    fn names() -> FrameNames;
    /// Checks a configuration that came from outside.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Range`] names what does not fit.
    fn check(config: &Self::Config) -> Result<()>;
    /// Copies a layer's weights to the device.
    ///
    /// # Errors
    /// [`Error::Weights`] names the tensor.
    fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Self::Config, layer: usize) -> Result<Self>;
    /// Makes the plans of a pass and allocates its memory.
    ///
    /// # Errors
    /// Those of the operations.
    fn work(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Self::Config, extent: Extent)
    -> Result<Self::Work>;
    /// Allocates what the layer carries for so many rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn carry(&self, stream: &Arc<CudaStream>, config: &Self::Config, rows: usize) -> Result<Self::Carry>;
    /// What all layers share of a pass, before the first of them runs.
    ///
    /// # Errors
    /// Those of the operations.
    fn begin(_stream: &Arc<CudaStream>, _work: &mut Self::Work, _tokens: Tokens<'_>) -> Result<()> {
        Ok(())
    }
    /// Adds the layer's output to `residual`, `[tokens, width]`.
    ///
    /// # Errors
    /// Those of the operations.
    fn run(
        &self,
        stream: &CudaStream,
        work: &mut Self::Work,
        residual: &mut CudaSlice<f32>,
        tokens: Tokens<'_>,
        carry: &mut Self::Carry,
    ) -> Result<()>;
}

/// A model on a device.
pub struct Decoder<T: Element, L: Layer<T>> {
    stream: Arc<CudaStream>,
    device: DeviceInfo,
    config: L::Config,
    ends: Ends<T>,
    layers: Vec<L>,
}

/// Rows that are being written to. Its memory does not grow with what was read or written.
pub struct Generation<T: Element, L: Layer<T>> {
    pass: Pass<T, L>,
    carries: Vec<L::Carry>,
    /// Tokens read of a row, padding included.
    read: usize,
    /// Tokens read of each row, without.
    lengths: Vec<usize>,
}

impl<T: Element, L: Layer<T>> Generation<T, L> {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.pass.extent.rows
    }
}

/// Plans and memory of one pass.
struct Pass<T: Element, L: Layer<T>> {
    extent: Extent,
    ends: ends::Work<T>,
    work: L::Work,
    /// Ids, and positions where rows go on.
    ids: CudaSlice<i32>,
    flags: Option<CudaSlice<u8>>,
}

impl<T: Element, L: Layer<T>> Pass<T, L> {
    fn new(model: &Decoder<T, L>, extent: Extent, asked: Asked, flags: Option<&[u8]>) -> Result<Self> {
        let Decoder { stream, device, config, .. } = model;
        let tokens = extent.tokens();
        Ok(Self {
            extent,
            ends: ends::Work::new(stream, device, &L::frame(config), tokens, asked)?,
            work: L::work(stream, device, config, extent)?,
            ids: stream.alloc_zeros(2 * tokens).map_err(|e| driver(e, "allocate ids"))?,
            flags: flags.map(|flags| stream.clone_htod(flags)).transpose().map_err(|e| driver(e, "copy flags"))?,
        })
    }

    /// Tokens, the first of them at `position` of its row, to the logits that the pass was made for. `lengths` are those of
    /// [`Tokens::lengths`].
    fn run(
        &mut self,
        model: &Decoder<T, L>,
        tokens: &[i32],
        position: usize,
        lengths: &[usize],
        carries: &mut [L::Carry],
    ) -> Result<Vec<f32>> {
        let Decoder { stream, layers, .. } = model;
        let goes_on = self.extent.stage == Stage::Step;
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        let positions = std::iter::repeat_n(position, if goes_on { tokens.len() } else { 0 });
        let words: Vec<i32> = tokens.iter().copied().chain(positions).collect();
        stream.memcpy_htod(&words, &mut self.ids).map_err(|e| driver(e, "copy tokens"))?;
        let positions = self.ids.slice(tokens.len()..);
        let about = Tokens { flags: self.flags.as_ref(), positions: goes_on.then_some(&positions), lengths };
        self.ends.begin(stream, &model.ends, &self.ids)?;
        L::begin(stream, &mut self.work, about)?;
        for (layer, carry) in layers.iter().zip(carries) {
            layer.run(stream, &mut self.work, &mut self.ends.residual, about, carry)?;
        }
        self.ends.finish(stream, &model.ends, &self.ids)
    }
}

impl<T: Element, L: Layer<T>> Decoder<T, L> {
    /// Checks every tensor that the model needs and copies it to the stream's device, matrices as `T`, parameters of norms and
    /// decays as `f32`.
    ///
    /// # Errors
    /// [`Error::Weights`] names the file, the tensor, what was wanted and what was found; [`Error::Shape`] and [`Error::Range`] ← a
    /// configuration that contradicts itself; [`Error::OutOfMemory`] and other errors of the driver.
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &L::Config) -> Result<Self> {
        L::check(config)?;
        let frame = L::frame(config);
        Ok(Self {
            device: DeviceInfo::of(stream.context())?,
            stream: stream.clone(),
            config: config.clone(),
            ends: Ends::load(stream, file, &frame, &L::names())?,
            layers: (0..frame.layers).map(|layer| L::load(stream, file, config, layer)).collect::<Result<_>>()?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &L::Config {
        &self.config
    }

    /// The logits that follow every token of one sequence, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no token; [`Error::Range`] ← an id that is not in the vocabulary; and those of the operations.
    pub fn logits(&self, tokens: &[i32]) -> Result<Vec<f32>> {
        self.check(&[tokens])?;
        let extent = Extent { rows: 1, len: tokens.len(), stage: Stage::Start };
        let mut pass = Pass::new(self, extent, Asked::LastOf(1), None)?;
        pass.run(self, tokens, 0, &[tokens.len()], &mut self.carries(1)?)
    }

    /// Reads prompts of any lengths together in one pass. Gives the logits that follow each prompt's last token,
    /// `[prompts, vocabulary]`, and what is needed to go on.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no prompt, or an empty one; [`Error::Range`] ← an id that is not in the vocabulary; and those of the
    /// operations.
    pub fn prefill(&self, prompts: &[&[i32]]) -> Result<(Vec<f32>, Generation<T, L>)> {
        self.check(prompts)?;
        let rows = prompts.len();
        let len = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let (tokens, flags) = pack(prompts, len);
        let extent = Extent { rows, len, stage: Stage::Start };
        let mut carries = self.carries(rows)?;
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        let mut pass = Pass::new(self, extent, Asked::LastOf(len), flags.as_deref())?;
        let logits = pass.run(self, &tokens, 0, &lengths, &mut carries)?;
        let extent = Extent { rows, len: 1, stage: Stage::Step };
        let pass = Pass::new(self, extent, Asked::LastOf(1), None)?;
        Ok((logits, Generation { pass, carries, read: len, lengths }))
    }

    /// Reads one more token of every row. Gives the logits that follow, `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← not one token a row; [`Error::Range`] ← an id that is not in the vocabulary. Nothing changes on these. And
    /// those of the operations, after which the rows cannot go on.
    pub fn step(&self, generation: &mut Generation<T, L>, tokens: &[i32]) -> Result<Vec<f32>> {
        let rows = generation.rows();
        if tokens.len() != rows {
            let got = vec![tokens.len() as u64];
            return Err(Error::Shape { op: OP, arg: "tokens", want: format!("{rows} long, one a row"), got });
        }
        self.check(&[tokens])?;
        let Generation { pass, carries, read, lengths } = generation;
        lengths.iter_mut().for_each(|len| *len += 1);
        let logits = pass.run(self, tokens, *read, lengths, carries)?;
        *read += 1;
        Ok(logits)
    }

    fn carries(&self, rows: usize) -> Result<Vec<L::Carry>> {
        self.layers.iter().map(|layer| layer.carry(&self.stream, &self.config, rows)).collect()
    }

    fn check(&self, prompts: &[&[i32]]) -> Result<()> {
        check_rows(OP, "prompts", prompts, L::frame(&self.config).vocabulary)
    }
}

/// Rows of ids, none of them empty, each id in the vocabulary.
pub(crate) fn check_rows(op: &'static str, what: &'static str, rows: &[&[i32]], vocabulary: usize) -> Result<()> {
    let empty = |arg| Error::Shape { op, arg, want: "at least 1 long".into(), got: vec![0] };
    if rows.is_empty() {
        return Err(empty(what));
    }
    for row in rows {
        if row.is_empty() {
            return Err(empty("tokens"));
        }
        if let Some(at) = row.iter().position(|id| !usize::try_from(*id).is_ok_and(|id| id < vocabulary)) {
            let (hi, got) = (vocabulary as i64 - 1, i64::from(row[at]));
            return Err(Error::Range { op, arg: "ids", at: Some(at as u64), lo: 0, hi, got });
        }
    }
    Ok(())
}

/// Prompts as rows of `len` tokens, the shorter ones behind padding that is cut off; flags only where there is padding.
fn pack(prompts: &[&[i32]], len: usize) -> (Vec<i32>, Option<Vec<u8>>) {
    let mut tokens = Vec::with_capacity(prompts.len() * len);
    let mut flags = Vec::with_capacity(prompts.len() * len);
    for prompt in prompts {
        let padding = len - prompt.len();
        // No id: an embedding of zeros.
        tokens.extend(std::iter::repeat_n(-1, padding));
        tokens.extend_from_slice(prompt);
        flags.extend(std::iter::repeat_n(RESET_FORWARD | RESET_REVERSE, padding));
        flags.extend((0..prompt.len()).map(|t| if t == 0 { RESET_FORWARD } else { 0 }));
    }
    let is_padded = prompts.iter().any(|prompt| prompt.len() < len);
    (tokens, is_padded.then_some(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_prompts_are_padded_in_front() {
        assert_eq!(pack(&[&[5, 6], &[7, 8]], 2), (vec![5, 6, 7, 8], None));
        let (tokens, flags) = pack(&[&[5, 6, 7], &[8]], 3);
        assert_eq!(tokens, [5, 6, 7, -1, -1, 8]);
        assert_eq!(flags.unwrap(), [1, 0, 0, 3, 3, 1]);
    }
}
