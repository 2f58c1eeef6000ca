//! The decode family.

mod append;
mod append_case;
mod append_counters;
mod append_e4m3;
mod append_graph;
mod append_limits;
mod append_mutants;
mod balance;
pub mod case;
mod counters;
mod determinism;
mod hostile;
pub mod kernel_case;
mod kernel_counters;
mod kernel_data;
mod kernel_limits;
mod kernel_mutants;
mod kernel_oracle;
mod layout;
mod limits;
mod oracle;
mod plan_mutants;
mod properties;
pub mod protocol;
mod schedule;
mod strides;
