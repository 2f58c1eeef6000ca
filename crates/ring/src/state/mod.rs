//! Recurrences over sequences that are dealt to ranks, a run of neighbouring tokens to each: what passes between ranks is a state,
//! whose size does not depend on the number of tokens.
//!
//! * [`linear`] is linear attention with matrix states, [`scan`] are gated scans;
//! * [`Deal`] says how many ranks there are, where documents begin and how states get from rank to rank, [`Passing`].
//!
//! A document that began on an earlier rank goes on from the state that arrives; one that begins on a rank starts from the caller's
//! initial state, or from zero. Only ranks that share a document exchange anything. Reverse walks pass states the other way.
//! States are f32, in memory and on the wire.
//!
//! | passing | a rank waits for | states that it sends | its own work |
//! |---|---|---|---|
//! | [`Passing::Serial`] | all ranks before it | one | once |
//! | [`Passing::Pipelined`] | the first blocks of all ranks before it | one, in blocks | once, in blocks |
//! | [`Passing::AllGather`] | the slowest rank's own part | one to every later rank, with its decay | twice |
//!
//! Everything is checked and laid out by the plans, on the host; a run launches and transfers.

mod dealt;
pub mod linear;
mod program;
mod room;
pub mod scan;
mod waves;

pub use dealt::{Deal, Passing};
pub use program::Workspace;
