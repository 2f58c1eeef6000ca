//! Softmax attention in blocks, for cudarc: forward with log-sum-exp, backward from a final log-sum-exp, and the merging of
//! partial results.

pub mod merge;
