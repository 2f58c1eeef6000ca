//! The attention family.

mod forward_case;
mod forward_oracle;
mod merge;
mod merge_case;
mod merge_counters;
mod merge_mutants;
