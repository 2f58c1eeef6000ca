//! The linear attention family.
pub mod case;
mod chain;
mod chain_case;
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
