//! The linear attention family.
