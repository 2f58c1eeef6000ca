//! Renders and checks the kernels.
fn main() {}
