//! The command line as its users meet it: files in, files out, one line on bad input.

mod ask;
mod attention;
mod bad_input;
mod bench;
mod files;
mod gated_scan;
mod kv_append;
#[cfg(target_os = "linux")]
mod launch;
mod launches;
mod lean_decode;
mod linear_attention;
mod listing;
mod nccl;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
mod state_passing;
