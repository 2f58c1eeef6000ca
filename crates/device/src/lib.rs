//! The only crate of lookback that talks to the CUDA driver
