//! The model against its oracle, and against files that are not what they should be.

mod assets;
pub mod bert;
mod device;
mod files;
mod golden;
pub mod hydra;
pub mod jrt;
mod jrt_windows;
pub mod linear_block;
mod llama;
pub mod llama_case;
pub mod mamba2;
mod minilm;
mod modes;
mod packed;
mod shards;
pub mod support;
mod tpe;
