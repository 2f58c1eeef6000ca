//! `lookback bench`: what a family of operations costs on canonical shapes.

mod launches;
mod ring;

use crate::Result;
use clap::Subcommand;

/// What is measured or, where that takes a machine that is not there, predicted.
#[derive(Subcommand)]
pub enum Family {
    /// Attention of a sequence that is dealt to several ranks: what every schedule moves, and its time by the model.
    Ring(ring::Arguments),
    /// Writes what the cases launch as files that are repeated elsewhere, beside other libraries.
    Launches(launches::Arguments),
}

/// Runs one family.
pub fn bench(family: &Family) -> Result<()> {
    match family {
        Family::Ring(arguments) => ring::bench(arguments),
        Family::Launches(arguments) => launches::bench(arguments),
    }
}
