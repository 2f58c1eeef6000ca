//! The model against its oracle, and against files that are not what they should be.

mod assets;
mod bert;
mod device;
mod files;
mod golden;
mod hydra;
mod jrt;
mod jrt_windows;
mod linear_block;
mod llama;
mod llama_case;
mod mamba2;
mod minilm;
mod modes;
mod packed;
mod shards;
mod support;
mod tpe;
