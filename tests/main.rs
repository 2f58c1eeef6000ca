//! The top-level tests, a module per concern.

#[path = "../build/mod.rs"]
mod build;
mod cli;
mod contract;
mod driver;
mod registry;
