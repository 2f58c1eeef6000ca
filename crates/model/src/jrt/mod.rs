//! Just Read Twice and Based: linear attention over Taylor features, whose state may begin with an encoded prefix, and short
//! convolutions and softmax attention to a window between.
//!
//! [`Jrt`] loads checkpoints in the published tensor names (`transformer.layers.{i}.mixer.proj_q.weight` ..). Models with sliding window
//! layers are for 16-bit activations, as softmax attention is.
//!
//! In 16 bits linear attention makes the features of a prompt on the chip, from queries and keys of 8 or 16 entries and values in steps
//! of 8. Elsewhere, and in steps, `nn::taylor_map` writes them out, 153 for a row; states are the same.

mod attention;
mod config;
mod convolution;
mod window;

pub use attention::Attention;
pub use config::{Config, Mixing};
pub use convolution::Convolution;
pub use window::Window;

use crate::checkpoint::Checkpoint;
use crate::decoder::{Decoder, Extent, Frame, FrameNames, Layer, Tokens};
use crate::gated_unit::{self, GatedUnit};
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DeviceInfo, Element, Error, Result};
use lookback_nn::residual_norm;
use std::sync::Arc;

/// A language model with activations of type `T`.
pub type Jrt<T> = Decoder<T, JrtLayer<T>>;

/// A layer: norm, mixer, norm, gated unit.
pub struct JrtLayer<T> {
    norm: CudaSlice<f32>,
    mixer: Mixer<T>,
    unit: GatedUnit<T>,
}

/// The mixer of a layer.
enum Mixer<T> {
    Attention(Attention<T>),
    Convolution(Convolution<T>),
    Window(Window<T>),
}

/// Plans and memory of a pass; a kind of mixer that no layer has is left out.
pub struct Work<T> {
    norm: residual_norm::Plan,
    normed: CudaSlice<T>,
    attention: Option<attention::Work<T>>,
    convolution: Option<convolution::Work<T>>,
    window: Option<window::Work<T>>,
    unit: gated_unit::Work<T>,
}

/// What a layer carries.
pub enum Carry<T> {
    /// The state, with its normaliser.
    Attention(attention::Carry),
    /// The convolution's last inputs.
    Convolution(convolution::Carry<T>),
    /// Keys and values of the last tokens.
    Window(window::Carry<T>),
}

impl<T: Element> Layer<T> for JrtLayer<T> {
    type Config = Config;
    type Work = Work<T>;
    type Carry = Carry<T>;

    fn frame(config: &Config) -> Frame {
        let Config { vocabulary, width, eps, .. } = *config;
        Frame { vocabulary, width, layers: config.layers.len(), eps }
    }

    fn names() -> FrameNames {
        FrameNames {
            embedding: "transformer.embeddings.word_embeddings.weight",
            norm: "transformer.ln_f.weight",
            head: "lm_head.weight",
        }
    }

    fn check(config: &Config) -> Result<()> {
        config.check()
    }

    fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, layer: usize) -> Result<Self> {
        let Config { width, inner, .. } = *config;
        let prefix = format!("transformer.layers.{layer}");
        let name = |tensor: &str| format!("{prefix}.{tensor}.weight");
        let mixer = format!("{prefix}.mixer");
        let mixer = match config.layers[layer] {
            Mixing::Attention => Mixer::Attention(Attention::load(stream, file, config, &mixer, false)?),
            Mixing::PrefixAttention => Mixer::Attention(Attention::load(stream, file, config, &mixer, true)?),
            Mixing::Convolution => Mixer::Convolution(Convolution::load(stream, file, config, &mixer)?),
            Mixing::SlidingWindow => Mixer::Window(Window::load(stream, file, config, &mixer)?),
        };
        let unit = GatedUnit {
            norm: file.upload(stream, &name("norm2"), &[width])?,
            both: file.upload(stream, &name("mlp.fc1"), &[2 * inner, width])?,
            gate_first: false,
            down: file.upload(stream, &name("mlp.fc2"), &[width, inner])?,
        };
        Ok(Self { norm: file.upload(stream, &name("norm1"), &[width])?, mixer, unit })
    }

    fn work(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Work<T>> {
        let Config { width, inner, eps, .. } = *config;
        let options = residual_norm::Options { dtype: T::DTYPE, eps, center: false, post: false };
        let rows = residual_norm::Shape::dense(extent.tokens(), width);
        let memory = stream.alloc_zeros::<T>(extent.tokens() * width);
        let has = |mixings: &[Mixing]| config.layers.iter().any(|mixing| mixings.contains(mixing));
        let attention = has(&[Mixing::Attention, Mixing::PrefixAttention]);
        let attention = attention.then(|| attention::Work::new(stream, device, config, extent));
        let convolution = has(&[Mixing::Convolution]).then(|| convolution::Work::new(stream, device, config, extent));
        let window = has(&[Mixing::SlidingWindow]).then(|| window::Work::new(stream, device, config, extent));
        Ok(Work {
            norm: residual_norm::Plan::new(&rows, &options, device)?,
            normed: memory.map_err(|e| lookback_device::driver(e, "allocate activations"))?,
            attention: attention.transpose()?,
            convolution: convolution.transpose()?,
            window: window.transpose()?,
            unit: gated_unit::Work::new(stream, device, (width, inner, eps), extent)?,
        })
    }

    fn carry(&self, stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Carry<T>> {
        match self.mixer {
            Mixer::Attention(_) => attention::Carry::new(stream, config, rows).map(Carry::Attention),
            Mixer::Convolution(_) => convolution::Carry::new(stream, config, rows).map(Carry::Convolution),
            Mixer::Window(_) => window::Carry::new(stream, config, rows).map(Carry::Window),
        }
    }

    fn begin(stream: &Arc<CudaStream>, work: &mut Work<T>, tokens: Tokens<'_>) -> Result<()> {
        work.window.as_mut().map_or(Ok(()), |window| window.begin(stream, tokens.lengths))
    }

    fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        residual: &mut CudaSlice<f32>,
        tokens: Tokens<'_>,
        carry: &mut Carry<T>,
    ) -> Result<()> {
        let Work { norm, normed, attention, convolution, window, unit } = work;
        let inputs = residual_norm::Inputs { residual: Some(residual), weight: Some(&self.norm), ..Default::default() };
        norm.run(stream, inputs, None, Some(normed))?;
        match (&self.mixer, carry) {
            (Mixer::Attention(mixer), Carry::Attention(carry)) => {
                mixer.run(stream, made(attention)?, normed, residual, tokens, carry)?;
            }
            (Mixer::Convolution(mixer), Carry::Convolution(carry)) => {
                mixer.run(stream, made(convolution)?, normed, residual, tokens, carry)?;
            }
            (Mixer::Window(mixer), Carry::Window(carry)) => {
                mixer.run(stream, made(window)?, normed, residual, tokens, carry)?;
            }
            _ => return Err(other_layers()),
        }
        self.unit.run(stream, unit, residual)
    }
}

/// What a pass has for a layer's kind of mixer.
fn made<W>(work: &mut Option<W>) -> Result<&mut W> {
    work.as_mut().ok_or_else(other_layers)
}

fn other_layers() -> Error {
    Error::NoKernel { op: "jrt", request: "a pass made for other layers".into() }
}
