//! The attention family.
pub mod case;

mod backward_case;
mod backward_counters;
mod backward_laws;
mod backward_limits;
mod backward_mutants;
mod backward_oracle;
mod backward_schedule;
mod bad_input;
mod determinism;
mod edges;
mod forward_case;
mod forward_counters;
mod forward_mutants;
mod forward_oracle;
mod forward_schedule;
mod layout;
mod limits;
mod masks;
mod merge;
mod merge_case;
mod merge_counters;
mod merge_mutants;
mod oracle;
mod properties;
mod states;
mod varlen;
