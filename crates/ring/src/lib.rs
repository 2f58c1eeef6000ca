//! Attention over sequences that are dealt to several ranks.
//!
//! * [`Partition`] and [`Layout`] say which tokens a rank has, [`Visible`] what a token sees;
//! * [`schedule`](mod@schedule) says what every rank computes, sends and receives, as data.

pub mod cost;
mod partition;
pub mod schedule;
mod visible;

pub use lookback_device::{Error, Result};
pub use partition::{Layout, Partition};
pub use visible::{Cover, FAR, Visible};
