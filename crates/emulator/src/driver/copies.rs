//! `cuMemcpy*` and `cuMemset*`: from C arguments to operations of a stream.

use super::api::api;
use super::capture;
use super::context;
use super::errors::{CUresult, Outcome};
use super::handles::Handle;
use super::memory;
use super::operation::{Fill, Operation};
use super::stream;
use std::sync::Arc;

/// When the caller wants it done.
enum Order {
    /// Before the call returns: in the legacy stream.
    Now,
    /// In this stream.
    In(Handle),
}

fn enqueue(order: Order, operation: Operation) -> Outcome {
    let context = context::current()?;
    let stream = match order {
        Order::Now => {
            capture::forbid_unsafe_call()?;
            Arc::clone(&context.legacy)
        }
        Order::In(stream) => stream::find(stream, &context)?,
    };
    stream::submit(&context, &stream, operation)
}

/// What a call says about an address.
enum Side {
    /// It must be a device pointer.
    Device(u64),
    /// It should be a host address, but with unified addressing a device pointer is as good.
    Host(usize),
    /// It may be either.
    Any(u64),
}

impl Side {
    /// The address; an error for a host address where a device pointer is wanted. A copy of nothing may name anything.
    fn address(self, bytes: usize) -> Outcome<u64> {
        match self {
            Self::Device(address) if bytes > 0 && !memory::is_device(address) => Err(CUresult::INVALID_VALUE),
            Self::Device(address) | Self::Any(address) => Ok(address),
            Self::Host(address) => Ok(address as u64),
        }
    }
}

fn copy(order: Order, to: Side, from: Side, bytes: usize) -> Outcome {
    let (to, from) = (to.address(bytes)?, from.address(bytes)?);
    enqueue(order, Operation::Copy { to, from, bytes: bytes as u64 })
}

fn peer_copy(order: Order, to: (u64, Handle), from: (u64, Handle), bytes: usize) -> Outcome {
    context::check_handle(to.1)?;
    context::check_handle(from.1)?;
    copy(order, Side::Device(to.0), Side::Device(from.0), bytes)
}

fn set(order: Order, to: u64, value: u32, width: u8, columns: usize) -> Outcome {
    let (columns, width_bytes) = (columns as u64, u64::from(width));
    if columns > 0 && !to.is_multiple_of(width_bytes) {
        return Err(CUresult::INVALID_VALUE);
    }
    enqueue(order, Operation::Fill(Fill { to, value, width, columns, rows: 1, pitch: 0 }))
}

fn set_rectangle(order: Order, to: u64, pitch: usize, value: u32, width: u8, size: (usize, usize)) -> Outcome {
    let (columns, rows) = (size.0 as u64, size.1 as u64);
    enqueue(order, Operation::Fill(Fill { to, value, width, columns, rows, pitch: pitch as u64 }))
}

api! {
    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        copy(Order::Now, Side::Any(to), Side::Any(from), bytes)
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) {
        copy(Order::In(stream), Side::Any(to), Side::Any(from), bytes)
    }

    fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) {
        copy(Order::Now, Side::Device(to), Side::Host(from), bytes)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, stream: Handle) {
        copy(Order::In(stream), Side::Device(to), Side::Host(from), bytes)
    }

    fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) {
        copy(Order::Now, Side::Host(to), Side::Device(from), bytes)
    }

    fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, stream: Handle) {
        copy(Order::In(stream), Side::Host(to), Side::Device(from), bytes)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        copy(Order::Now, Side::Device(to), Side::Device(from), bytes)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        copy(Order::In(stream), Side::Device(to), Side::Device(from), bytes)
    }

    fn cuMemcpyPeer(to: u64, to_context: Handle, from: u64, from_context: Handle, bytes: usize) {
        peer_copy(Order::Now, (to, to_context), (from, from_context), bytes)
    }

    fn cuMemcpyPeerAsync(
        to: u64,
        to_context: Handle,
        from: u64,
        from_context: Handle,
        bytes: usize,
        stream: Handle,
    ) {
        peer_copy(Order::In(stream), (to, to_context), (from, from_context), bytes)
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        set(Order::Now, to, value.into(), 1, count)
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) {
        set(Order::In(stream), to, value.into(), 1, count)
    }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        set(Order::Now, to, value.into(), 2, count)
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) {
        set(Order::In(stream), to, value.into(), 2, count)
    }

    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        set(Order::Now, to, value, 4, count)
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) {
        set(Order::In(stream), to, value, 4, count)
    }

    fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: u8, columns: usize, rows: usize) {
        set_rectangle(Order::Now, to, pitch, value.into(), 1, (columns, rows))
    }

    fn cuMemsetD2D8Async(to: u64, pitch: usize, value: u8, columns: usize, rows: usize, stream: Handle) {
        set_rectangle(Order::In(stream), to, pitch, value.into(), 1, (columns, rows))
    }

    fn cuMemsetD2D16_v2(to: u64, pitch: usize, value: u16, columns: usize, rows: usize) {
        set_rectangle(Order::Now, to, pitch, value.into(), 2, (columns, rows))
    }

    fn cuMemsetD2D16Async(to: u64, pitch: usize, value: u16, columns: usize, rows: usize, stream: Handle) {
        set_rectangle(Order::In(stream), to, pitch, value.into(), 2, (columns, rows))
    }

    fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: u32, columns: usize, rows: usize) {
        set_rectangle(Order::Now, to, pitch, value, 4, (columns, rows))
    }

    fn cuMemsetD2D32Async(to: u64, pitch: usize, value: u32, columns: usize, rows: usize, stream: Handle) {
        set_rectangle(Order::In(stream), to, pitch, value, 4, (columns, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_address_is_refused_as_a_device_pointer() {
        assert_eq!(Side::Device(0x5555_0000_0000).address(4), Err(CUresult::INVALID_VALUE));
        assert_eq!(Side::Device(0).address(0), Ok(0));
        assert_eq!(Side::Any(0x5555_0000_0000).address(4), Ok(0x5555_0000_0000));
    }
}
