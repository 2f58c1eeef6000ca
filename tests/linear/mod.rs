//! The linear attention family.
mod step;
