//! Everything that reads what nobody vouches for: a function of bytes for each reader.
//!
//! Bytes come from a fuzzer (`fuzz/`) or, on every change, from [`mutate`], which spoils [`seeds`] that are right. A function returns
//! whether the bytes were taken; it panics when something that is promised of any bytes does not hold. What is promised: an error of its
//! type that says what is wrong, no panic, memory and time in proportion to the bytes.

// The reader of contracts belongs to a build script, and not all of it is called from here.
#[allow(dead_code)]
#[path = "../../../build/mod.rs"]
mod build;
mod contract;
pub mod mutate;
mod ptx;
mod ring;
mod run;
pub mod seeds;
mod weights;

pub use contract::contract;
pub use ptx::ptx;
pub use ring::{cost, frame};
pub use run::{is_ready, run};
pub use weights::{settings, weights};

/// One of the functions, with what it is called.
pub type Reader = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const READERS: [Reader; 7] = [
    ("contract", contract),
    ("cost", cost),
    ("frame", frame),
    ("ptx", ptx),
    ("run", run),
    ("settings", settings),
    ("weights", weights),
];
