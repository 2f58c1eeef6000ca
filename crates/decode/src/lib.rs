//! Decode attention over key-value caches of any lengths, in one launch with equal work for every block.

pub mod pages;
