//! Strided matrices with poisoned gaps, and integer outputs with guards.

use lookback_device::{
    Element,
    cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, sys::CUdeviceptr},
};
use lookback_nn::Activation;
use lookback_reference::activation::Activation as Reference;
use lookback_suite::{
    buffer::{Guarded, download, upload},
    device,
};

/// The oracle's name of an activation.
pub fn reference(activation: Activation) -> Reference {
    match activation {
        Activation::None => Reference::None,
        Activation::Gelu => Reference::Gelu,
        Activation::Silu => Reference::Silu,
        Activation::Sigmoid => Reference::Sigmoid,
        Activation::Relu => Reference::Relu,
        Activation::GeluErf => Reference::GeluErf,
    }
}

/// How a matrix lies: `rows` rows of `width` elements, `stride` apart, `shift` elements off the allocation's alignment.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub rows: usize,
    pub width: usize,
    pub stride: usize,
    pub shift: usize,
}

impl Layout {
    /// No gaps, aligned.
    pub fn dense(rows: usize, width: usize) -> Self {
        Self { rows, width, stride: width, shift: 0 }
    }

    /// With `gap` elements between rows.
    pub fn gap(self, gap: usize) -> Self {
        Self { stride: self.width + gap, ..self }
    }

    /// Off the alignment.
    pub fn shift(self, shift: usize) -> Self {
        Self { shift, ..self }
    }

    fn span(&self) -> usize {
        if self.rows == 0 || self.width == 0 { 0 } else { (self.rows - 1) * self.stride + self.width }
    }
}

/// An input on the device whose gaps are NaN.
pub struct Input<T> {
    slice: CudaSlice<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Input<T> {
    /// Spreads dense `values` over the layout.
    pub fn new(values: &[f64], layout: Layout) -> Self {
        assert_eq!(values.len(), layout.rows * layout.width);
        let nan = T::from_f64(f64::NAN);
        // Nothing behind the last element, so that a read past it is out of bounds.
        let mut host = vec![nan; (layout.shift + layout.span()).max(1)];
        for (r, row) in values.chunks_exact(layout.width.max(1)).enumerate() {
            for (d, value) in row.iter().enumerate() {
                host[layout.shift + r * layout.stride + d] = T::from_f64(*value);
            }
        }
        Self { slice: upload(&host), start: layout.shift, len: layout.span() }
    }

    /// Dense and aligned.
    pub fn dense(values: &[f64]) -> Self {
        Self::new(values, Layout::dense(1, values.len()))
    }

    pub fn view(&self) -> CudaView<'_, T> {
        self.slice.slice(self.start..self.start + self.len)
    }
}

/// An output on the device, NaN before the launch.
pub struct Output<T> {
    buffer: Guarded<T>,
    layout: Layout,
}

impl<T: Element> Output<T> {
    pub fn new(layout: Layout) -> Self {
        Self { buffer: Guarded::poisoned(layout.span(), layout.shift), layout }
    }

    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.buffer.view_mut()
    }

    /// The matrix, dense. Fails if a guard or a gap was written.
    pub fn read(&self) -> Vec<f64> {
        let span = self.buffer.read();
        let Layout { rows, width, stride, .. } = self.layout;
        let mut dense = Vec::with_capacity(rows * width);
        for r in 0..if width == 0 { 0 } else { rows } {
            dense.extend_from_slice(&span[r * stride..][..width]);
            let gap = &span[r * stride + width..((r + 1) * stride).min(span.len()).max(r * stride + width)];
            assert!(gap.iter().all(|v| v.is_nan()), "the gap after row {r} was written: {gap:?}");
        }
        dense
    }
}

/// A dense integer output between guards.
pub struct Words<T> {
    slice: CudaSlice<T>,
    len: usize,
    fill: T,
}

impl<T: DeviceRepr + Copy + PartialEq + std::fmt::Debug> Words<T> {
    pub fn new(len: usize, fill: T) -> Self {
        Self { slice: upload(&vec![fill; len + 32]), len, fill }
    }

    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.slice_mut(16..16 + self.len)
    }

    /// The words. Fails if a guard was written.
    pub fn read(&self) -> Vec<T> {
        let host = download(&self.slice);
        assert!(host[..16].iter().chain(&host[16 + self.len..]).all(|v| *v == self.fill), "a guard was written");
        host[16..16 + self.len].to_vec()
    }
}

/// Device address of an input.
pub fn address<T>(slice: &impl DevicePtr<T>) -> CUdeviceptr {
    slice.device_ptr(&device::stream()).0
}

/// Device address of an output.
pub fn address_mut<T>(slice: &mut impl DevicePtrMut<T>) -> CUdeviceptr {
    slice.device_ptr_mut(&device::stream()).0
}
