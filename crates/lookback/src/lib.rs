//! Sequence kernels in hand-written PTX for Rust: the crate that users add
