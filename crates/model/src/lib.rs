//! Sequence models made of lookback's kernels: configuration, weights, prefill and step.
//!
//! Birdie's Gated SSM answers from a phone book: [`weights::Weights`] checks a safetensors file, [`gated_ssm::GatedSsm`] runs it on
//! the caller's stream, [`phonebook::Book`] turns text into prompts.
//!
//! The linear attention family reads the checkpoints of its authors, by their tensors' names, through
//! [`checkpoint::Checkpoint`]: [`mamba2`], [`hydra`], [`jrt`], and GLA, RetNet and LightNet as one [`linear_block`]; [`tpe`] gives
//! embeddings their positions. [`bert`] reads encoders of softmax attention: BERT, MiniLM and the models of sentence embeddings made of
//! them. [`llama`] reads decoders of it, LLaMA, Mistral, Qwen2 and their like, over a paged cache of keys and values.
//!
//! ```no_run
//! use lookback_model::{gated_ssm::GatedSsm, phonebook::Book, weights::Weights};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = lookback_device::open(lookback_device::DevicePick::Auto)?.default_stream();
//! let model = GatedSsm::load(&stream, &Weights::open("assets/phonebook.safetensors")?)?;
//! let book = Book::parse("Ada Lovelace 1815\nGrace Hopper 1906")?;
//! let answers = model.answer(&[book.prompt("Grace Hopper")?])?;
//! println!("{:?}", answers[0]);
//! # Ok(())
//! # }
//! ```

pub mod bert;
mod block;
pub mod checkpoint;
pub mod config;
pub mod decoder;
mod ends;
pub mod flags;
pub mod gated_ssm;
mod gated_unit;
pub mod hydra;
pub mod jrt;
mod layer_norm;
mod lean;
pub mod linear_block;
pub mod llama;
pub mod mamba2;
mod pass;
pub mod phonebook;
mod recurrence;
mod settings;
pub mod tpe;
pub mod weights;

pub use recurrence::Stage;
