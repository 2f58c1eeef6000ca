//! The linear attention family.
mod budgets;
pub mod case;
mod chain;
mod chain_case;
mod chain_counters;
mod chain_mutants;
mod chain_poison;
mod chain_vector;
mod edges;
mod golden;
mod layout;
mod limits;
mod modes;
mod oracle;
mod paths;
mod properties;
mod step;
mod varlen;
