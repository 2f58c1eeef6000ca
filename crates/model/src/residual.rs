//! The residual stream, to which blocks add.

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut};
use lookback_device::{DType, DeviceInfo, Result, driver};
use lookback_nn::embedding;
use std::sync::Arc;

/// `tokens` rows, and the rows of what comes next to be added to them.
///
/// Both lie in one table, the change after the residual, so that their sum is a look-up of two rows a token: the sum goes
/// into a second table, and the two change places.
pub(crate) struct Residual {
    elements: usize,
    table: CudaSlice<f32>,
    other: CudaSlice<f32>,
    pairs: CudaSlice<i32>,
    sum: embedding::Plan,
}

impl Residual {
    /// Memory for a residual stream, all zero.
    pub fn new(stream: &Arc<CudaStream>, tokens: usize, width: usize, device: &DeviceInfo) -> Result<Self> {
        let elements = tokens * width;
        let table = || stream.alloc_zeros::<f32>(2 * elements).map_err(|e| driver(e, "allocate the residual"));
        let pairs: Vec<i32> = (0..tokens).flat_map(|token| [token as i32, (tokens + token) as i32]).collect();
        let shape = embedding::Shape::dense(tokens, 2, 2 * tokens, width);
        Ok(Self {
            elements,
            table: table()?,
            other: table()?,
            pairs: stream.clone_htod(&pairs).map_err(|e| driver(e, "copy row numbers"))?,
            sum: embedding::Plan::new(&shape, &embedding::Options { dtype: DType::F32 }, device)?,
        })
    }

    /// The residual.
    pub fn now(&self) -> &CudaSlice<f32> {
        &self.table
    }

    /// Where a first value goes.
    pub fn now_mut(&mut self) -> CudaViewMut<'_, f32> {
        self.table.slice_mut(..self.elements)
    }

    /// The residual from this element on.
    pub fn from(&self, element: usize) -> CudaView<'_, f32> {
        self.table.slice(element..self.elements)
    }

    /// Where a block writes what it adds.
    pub fn change(&mut self) -> CudaViewMut<'_, f32> {
        self.table.slice_mut(self.elements..)
    }

    /// residual += change
    pub fn add_change(&mut self, stream: &CudaStream) -> Result<()> {
        self.sum.run(stream, &self.table, &self.pairs, &mut self.other.slice_mut(..self.elements), None)?;
        std::mem::swap(&mut self.table, &mut self.other);
        Ok(())
    }
}
