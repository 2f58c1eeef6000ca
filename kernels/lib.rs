//! The registry of kernels.
