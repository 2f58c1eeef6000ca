//! Device buffers that notice a stray write.

use crate::device;
use lookback_device::{
    Element,
    cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DeviceRepr},
};

/// Elements on each side of a guarded buffer.
const GUARD: usize = 64;

/// A poisoned output between two guards, `shift` elements off the allocation's alignment.
pub struct Guarded<T> {
    slice: CudaSlice<T>,
    start: usize,
    len: usize,
    fill: T,
}

impl<T: DeviceRepr + Copy> Guarded<T> {
    /// A buffer of `len` elements, all of them and the guards set to `fill`.
    pub fn filled(len: usize, shift: usize, fill: T) -> Self {
        let host = vec![fill; len + 2 * GUARD + shift];
        Self { slice: upload(&host), start: GUARD + shift, len, fill }
    }

    /// The buffer to give to an operation.
    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.slice_mut(self.start..self.start + self.len)
    }

    /// The buffer as an input.
    pub fn view(&self) -> CudaView<'_, T> {
        self.slice.slice(self.start..self.start + self.len)
    }
}

impl<T: Element> Guarded<T> {
    /// A buffer full of NaN.
    pub fn poisoned(len: usize, shift: usize) -> Self {
        Self::filled(len, shift, T::from_f64(f64::NAN))
    }

    /// What the operation wrote.
    ///
    /// # Panics
    /// When a guard changed.
    pub fn read(&self) -> Vec<f64> {
        let host = download(&self.slice);
        let same = |a: T, b: T| bytemuck::bytes_of(&a) == bytemuck::bytes_of(&b);
        let outside = (0..self.start).chain(self.start + self.len..host.len());
        for i in outside {
            let at = i as i64 - self.start as i64;
            assert!(same(host[i], self.fill), "element {at} outside of 0..{} was written", self.len);
        }
        host[self.start..self.start + self.len].iter().map(|v| v.to_f64()).collect()
    }
}

/// Copies to the device.
pub fn upload<T: DeviceRepr>(host: &[T]) -> CudaSlice<T> {
    let copied = if host.is_empty() { device::stream().null::<T>() } else { device::stream().clone_htod(host) };
    copied.unwrap_or_else(|e| panic!("upload: {:?}", e.0))
}

/// Copies f64 values to the device as elements.
pub fn upload_as<T: Element>(host: &[f64]) -> CudaSlice<T> {
    upload(&host.iter().map(|v| T::from_f64(*v)).collect::<Vec<_>>())
}

/// Copies from the device.
pub fn download<T: DeviceRepr + Clone>(slice: &CudaSlice<T>) -> Vec<T> {
    device::stream().clone_dtoh(slice).unwrap_or_else(|e| panic!("download: {:?}", e.0))
}
