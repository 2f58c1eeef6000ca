//! How parcels get from rank to rank.
//!
//! [`Transport`] moves device memory between ranks, beside what is computed. Who has failed is said by the first rank that notices, to
//! all others, so that every survivor names the same one.

mod frame;
mod local;
#[cfg(feature = "nccl")]
mod nccl;
mod patience;
mod posted;
mod staged;
mod tcp;
#[cfg(test)]
mod tests;
mod wire;

pub use local::local;
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, nccl, nccl_alone, nccl_version};
pub use staged::Staged;
pub use tcp::tcp;

use crate::{Error, Result, schedule::Parcel};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use std::sync::Arc;

/// How many bytes follow a header of the wire, if it is one. For who feeds the reader of headers.
#[doc(hidden)]
pub fn header_length(header: &[u8; 48]) -> Option<u64> {
    frame::Frame::parse(header).map(|(_, length)| length)
}

/// What a message is, so that both ends can see that they mean the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Counts the operations of these ranks.
    pub operation: u32,
    /// Step of the schedule in which it leaves.
    pub step: u32,
    /// What it holds.
    pub parcel: Parcel,
}

/// One message, leaving or arriving: bytes of device memory in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The rank at the other end.
    pub peer: usize,
    /// What it is.
    pub label: Label,
    /// Addresses and numbers of bytes.
    pub segments: Vec<(CUdeviceptr, usize)>,
    /// Steps that it may take, at least 1: it ends with step `label.step + steps - 1`.
    pub steps: u32,
}

impl Message {
    /// Bytes of all segments.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The step that it ends with.
    pub fn due(&self) -> u32 {
        self.label.step + self.steps.max(1) - 1
    }
}

/// One rank's links to all others.
///
/// After an error the transport is of no more use: every later call returns an error, too.
pub trait Transport {
    /// This rank.
    fn rank(&self) -> usize;

    /// All of them.
    fn ranks(&self) -> usize;

    /// The number of an operation that begins: the same on every rank, because all begin the same ones.
    fn next_operation(&mut self) -> u32;

    /// Begins the transfers of `step`, behind what is queued on `stream` so far.
    ///
    /// # Errors
    /// [`Error::Peer`] ← another rank has failed; those of the driver.
    ///
    /// # Safety
    /// Segments are memory of the stream's context. Until [`end`](Self::end) of the step that a message is due nobody writes what it
    /// sends, and nobody uses what it fills.
    unsafe fn begin(
        &mut self,
        step: u32,
        stream: &Arc<CudaStream>,
        send: &[Message],
        receive: &[Message],
    ) -> Result<()>;

    /// Ends the transfers that are due with `step`: what is queued on `stream` afterwards sees what came.
    ///
    /// # Errors
    /// [`Error::Peer`] ← another rank sent nothing in time, closed the connection, or sent something else; those of the driver.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    unsafe fn end(&mut self, step: u32, stream: &Arc<CudaStream>) -> Result<()>;

    /// Bytes of every rank to every rank, by rank. Also a barrier.
    ///
    /// # Errors
    /// [`Error::Peer`], also ← another rank sends more than `most` bytes.
    fn all_gather(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>>;

    /// Tells all others that this rank gives up, and why. They then return [`Error::Peer`].
    fn abort(&mut self, error: &Error);
}
