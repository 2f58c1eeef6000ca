//! Attention and recurrences over sequences that are dealt to several ranks.
//!
//! * [`Partition`] and [`Layout`] say which tokens a rank has, [`Visible`] what a token sees;
//! * [`schedule`](mod@schedule) says what every rank computes, sends and receives, as data;
//! * [`attention`] is softmax attention, [`state`] are linear attention and gated scans, whose states are handed from rank to rank.

pub mod attention;
pub mod cost;
mod partition;
mod rendezvous;
pub mod schedule;
pub mod state;
pub mod transport;
mod visible;
mod world;

pub use lookback_device::{DeviceInfo, Error, Result};
pub use partition::{Layout, Partition};
pub use rendezvous::{Place, Rendezvous};
pub use visible::{Cover, FAR, Visible};
pub use world::World;
