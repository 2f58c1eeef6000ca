//! Keys and values of all layers, in pages.

use super::Config;
use super::pass::Pass;
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use lookback_decode::pages::{Pages, Sequence};
use lookback_decode::{self as decode, CacheType, KeyValues, Scales, append};
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
    pub(super) kind: CacheType,
    pub(super) pages: Pages,
    pub(super) pools: Vec<Pool<T>>,
    /// Of the last [`Llama::extend`](super::Llama::extend): the next one often has its sizes.
    pub(super) last: Option<Pass<T>>,
}

/// A layer's pages, `[pages, Hk, page_size, D]`, and scales of codes, `[pages, Hk, page_size]`.
pub(super) enum Pool<T> {
    Same { k: CudaSlice<T>, v: CudaSlice<T> },
    E4m3 { k: CudaSlice<u8>, v: CudaSlice<u8>, k_scale: CudaSlice<f32>, v_scale: CudaSlice<f32> },
}

impl<T: Element> Pool<T> {
    fn new(stream: &Arc<CudaStream>, kind: CacheType, rows: usize, head_dim: usize) -> Result<Self> {
        let elements = rows.checked_mul(head_dim).ok_or(Error::OutOfMemory { what: WHAT })?;
        Ok(match kind {
            CacheType::Same => Self::Same { k: zeros(stream, elements)?, v: zeros(stream, elements)? },
            CacheType::E4m3(_) => Self::E4m3 {
                k: zeros(stream, elements)?,
                v: zeros(stream, elements)?,
                k_scale: zeros(stream, rows)?,
                v_scale: zeros(stream, rows)?,
            },
        })
    }

    /// As what an append writes.
    pub fn kept(&mut self) -> append::Outputs<'_, T> {
        match self {
            Self::Same { k, v } => append::Outputs::Same { k, v },
            Self::E4m3 { k, v, k_scale, v_scale } => append::Outputs::Computed { k, v, k_scale, v_scale },
        }
    }

    /// As what decoding reads.
    pub fn seen(&self) -> KeyValues<'_, T> {
        match self {
            Self::Same { k, v } => KeyValues::Same { k, v },
            Self::E4m3 { k, v, k_scale, v_scale } => KeyValues::E4m3 { k, v, k_scale, v_scale },
        }
    }
}

const WHAT: &str = "allocate pages";
/// Codes of 8 bits with a scale for each token and head.
pub(super) const E4M3: CacheType = CacheType::E4m3(Scales::Token);

/// Zeros: what no token was written to must be finite.
fn zeros<E: DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>, elements: usize) -> Result<CudaSlice<E>> {
    stream.alloc_zeros(elements).map_err(|e| driver(e, WHAT))
}

impl<T: Element> Cache<T> {
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        config: &Config,
        kind: CacheType,
        pages: usize,
        page_size: usize,
    ) -> Result<Self> {
        let table = Pages::new(pages, page_size)?;
        let rows = (pages * page_size).checked_mul(config.key_heads).ok_or(Error::OutOfMemory { what: WHAT })?;
        let pools = (0..config.layers).map(|_| Pool::new(stream, kind, rows, config.head_dim));
        Ok(Self { config: *config, kind, pages: table, pools: pools.collect::<Result<_>>()?, last: None })
    }

    /// What a pass must know of it.
    pub(super) fn places(&self) -> Places {
        Places { kind: self.kind, pages: self.pages.total(), page_size: self.pages.page_size() }
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

    /// Cuts a sequence back to its first `len` tokens, to go on from there in another way. Tokens of a prefix have seen one another: what
    /// is left of a prefix that was cut remembers the rest.
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

/// A cache's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub kind: CacheType,
    pub pages: usize,
    pub page_size: usize,
}

impl Places {
    pub fn cache(&self) -> decode::Cache {
        decode::Cache::Paged { pages: self.pages, page_size: self.page_size, table: self.pages }
    }

    /// Steps of rows of so many elements: heads before places, so that a head's part of a page is one piece.
    pub fn stride(&self, config: &Config, row: usize) -> Option<Stride> {
        let head = self.page_size * row;
        Some(Stride { batch: (head * config.key_heads) as i64, token: row as i64, head: head as i64 })
    }
}
