//! Keys and values of all layers, in pages.

use super::Config;
use super::pass::Pass;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_decode::pages::{Pages, Sequence};
use lookback_device::{Element, Error, Result, driver, strided::Stride};
use std::sync::Arc;

/// Keys and values of the sequences that a model is reading and writing.
///
/// All layers share one page table, so that a page is one number for the host and one piece of memory in every layer.
/// [`Llama::prefill`](super::Llama::prefill) opens sequences, [`Llama::extend`](super::Llama::extend) makes them longer,
/// [`close`](Self::close) gives their pages back.
pub struct Cache<T> {
    /// The sizes that it was made for.
    pub(super) config: Config,
    pub(super) pages: Pages,
    pub(super) pools: Vec<Pool<T>>,
    /// Of the last [`Llama::extend`](super::Llama::extend): the next one often has its sizes.
    pub(super) last: Option<Pass<T>>,
}

/// A layer's pages: `[pages, Hk, page_size, D]` each.
pub(super) struct Pool<T> {
    pub k: CudaSlice<T>,
    pub v: CudaSlice<T>,
}

impl<T: Element> Cache<T> {
    pub(super) fn new(stream: &Arc<CudaStream>, config: &Config, pages: usize, page_size: usize) -> Result<Self> {
        let table = Pages::new(pages, page_size)?;
        let elements = (pages * page_size).checked_mul(config.keys());
        let elements = elements.ok_or(Error::OutOfMemory { what: "allocate pages" })?;
        // Zeros: what no token was written to must be finite.
        let memory = || stream.alloc_zeros::<T>(elements).map_err(|e| driver(e, "allocate pages"));
        let pools = (0..config.layers).map(|_| Ok(Pool { k: memory()?, v: memory()? })).collect::<Result<_>>()?;
        Ok(Self { config: *config, pages: table, pools, last: None })
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open.
    pub fn len(&self, sequence: Sequence) -> Result<usize> {
        self.pages.len(sequence)
    }

    /// Whether a sequence has no token.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open.
    pub fn is_empty(&self, sequence: Sequence) -> Result<bool> {
        self.pages.is_empty(sequence)
    }

    /// Cuts a sequence back to its first `len` tokens, to go on from there in another way.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open; [`Error::Range`] ← it is shorter.
    pub fn truncate(&mut self, sequence: Sequence, len: usize) -> Result<()> {
        self.pages.truncate(sequence, len)
    }

    /// Ends a sequence and frees its pages.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open.
    pub fn close(&mut self, sequence: Sequence) -> Result<()> {
        self.pages.close(sequence)
    }

    /// Pages, free ones and all.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }
}

/// Steps in a pool: heads before places, so that a head's part of a page is one piece.
pub(super) fn pool_stride(config: &Config, page_size: usize) -> Stride {
    let head = page_size * config.head_dim;
    Stride { batch: (head * config.key_heads) as i64, token: config.head_dim as i64, head: head as i64 }
}
