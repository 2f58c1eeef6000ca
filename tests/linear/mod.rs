//! The linear attention family.
pub mod case;
mod golden;
mod oracle;
mod step;
