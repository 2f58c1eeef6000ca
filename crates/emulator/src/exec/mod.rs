//! The interpreter: 32 lanes per instruction.
//!
//! [`run::turn`] is the loop; it knows the small operations itself and calls the other modules for the rest. A warp's
//! registers are slots of 32 words ([`warp::Row`]); lanes that stand at different instructions form groups
//! ([`warp::Group`]), of which the lowest program counter runs first and equal ones merge.

pub(crate) mod address;
mod asynchronous;
mod atomic;
pub(crate) mod barrier;
mod collective;
mod compare;
mod element;
mod elementwise;
mod generic;
mod global;
pub(crate) mod machine;
pub(crate) mod mbarrier;
pub(crate) mod random;
mod rare;
pub(crate) mod run;
mod shared;
pub(crate) mod tensor;
pub(crate) mod warp;

pub(crate) use collective::sources as shuffle_sources;
