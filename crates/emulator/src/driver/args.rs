//! Pointer arguments of the C interface.
//!
//! The types have the layout of plain pointers and are made only by a C caller, who promises, as for the real driver,
//! that a pointer is null or good for what the function does with it. Null is an error of the caller that is answered,
//! not a crash. Nothing assumes alignment.

use super::errors::{CUresult, Outcome};
use std::ffi::{CStr, c_char};

/// A text that never ends.
pub(super) type CText = &'static CStr;

/// `T*` that a result goes out through.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// An error if the caller gave no pointer. Ask before doing what could not be undone.
    pub(super) fn wanted(self) -> Outcome<Self> {
        if self.0.is_null() { Err(CUresult::INVALID_VALUE) } else { Ok(self) }
    }

    /// Whether the caller gave no pointer.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// An address that the C caller gave as a number.
    pub(super) fn from_address(address: usize) -> Self {
        Self(address as *mut T)
    }

    /// Hand out the result.
    pub(super) fn set(self, value: T) -> Outcome {
        self.set_at(0, value)
    }

    /// Hand out a result that the caller may leave out.
    pub(super) fn set_if_wanted(self, value: T) {
        // Null is the only way to fail, and null says that it is not wanted.
        let _ = self.set(value);
    }

    /// Hand out element `index` of an array that the caller says is long enough.
    pub(super) fn set_at(self, index: usize, value: T) -> Outcome {
        let pointer = self.wanted()?.0;
        // SAFETY: not null, so by the contract of this type valid for writes of as many elements as the caller states.
        unsafe { pointer.add(index).write_unaligned(value) };
        Ok(())
    }

    /// Read an argument that goes in and out.
    pub(super) fn get(self) -> Outcome<T>
    where
        T: Plain,
    {
        In::from_out(self).get()
    }
}

/// `const T*` that an argument comes in through.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T: Plain> In<T> {
    /// An address that the C caller gave as a number.
    pub(super) fn from_address(address: usize) -> Self {
        Self(address as *const T)
    }

    /// The other direction of an argument that goes in and out.
    pub(super) fn from_out(out: Out<T>) -> Self {
        Self(out.0.cast_const())
    }

    /// Whether the caller gave no pointer.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value.
    pub(super) fn get(self) -> Outcome<T> {
        self.get_at(0)
    }

    /// Element `index` of an array that the caller says is long enough.
    pub(super) fn get_at(self, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        // SAFETY: not null, so by the contract of this type valid for reads of as many elements as the caller states; every
        // bit pattern is a `T` because it is `Plain`.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// `count` elements.
    pub(super) fn list(self, count: usize) -> Outcome<Vec<T>> {
        (0..count).map(|index| self.get_at(index)).collect()
    }
}

/// Types for which every bit pattern is a value, so that reading what C wrote cannot go wrong.
///
/// # Safety
/// That must be true of the type.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: integers and raw pointers have no invalid bit pattern.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for usize {}
// SAFETY: as above.
unsafe impl<T> Plain for *const T {}
// SAFETY: as above.
unsafe impl<T> Plain for *mut T {}

/// `const char*` that ends in NUL.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Text(*const c_char);

impl Text {
    /// The bytes before the NUL. Copied, because nothing says how long the caller's text lives.
    pub(super) fn bytes(self) -> Outcome<Vec<u8>> {
        if self.0.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        // SAFETY: not null, so by the contract of this type a text that ends in NUL.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes().to_vec())
    }

    /// The text, if it is UTF-8.
    pub(super) fn string(self) -> Outcome<String> {
        String::from_utf8(self.bytes()?).map_err(|_| CUresult::INVALID_VALUE)
    }
}

/// Copy `text` into a C buffer of `size` bytes, cut to fit and always ended by NUL. Does nothing without a buffer.
pub(super) fn fill_text(buffer: Out<u8>, size: usize, text: &str) {
    if buffer.is_null() || size == 0 {
        return;
    }
    let kept = &text.as_bytes()[..text.len().min(size - 1)];
    for (index, byte) in kept.iter().chain([&0]).enumerate() {
        // The only failure is a null buffer, which is excluded above.
        let _ = buffer.set_at(index, *byte);
    }
}
