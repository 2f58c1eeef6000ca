//! The checks that CI runs.
fn main() {}
