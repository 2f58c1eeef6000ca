//! Private: the top-level tests and benches, and their helpers
