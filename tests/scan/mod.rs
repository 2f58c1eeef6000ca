//! The gated scan and its look-back.

mod budgets;
pub mod case;
mod determinism;
mod edges;
mod golden;
mod layout;
mod limits;
pub mod log_cumsum_exp;
mod mutants;
mod oracle;
mod poison;
mod properties;
pub mod protocol;
