//! Marks that are missed, for people.

use crate::{assemble, marks};

/// Prints who misses which mark, and why that is accepted.
pub fn run() -> Result<(), String> {
    println!("{}", marks::report(&assemble::measure()?)?);
    Ok(())
}
