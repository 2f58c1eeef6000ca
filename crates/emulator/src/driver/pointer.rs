//! `cuPointerGetAttribute`: what an address is.

use super::api::api;
use super::args::{In, Out, Plain};
use super::context;
use super::errors::{CUresult, Outcome};
use super::host;
use super::memory::{self, Origin};

/// `CUpointer_attribute`
const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const DEVICE_POINTER: u32 = 3;
const HOST_POINTER: u32 = 4;
const SYNC_MEMOPS: u32 = 6;
const BUFFER_ID: u32 = 7;
const IS_MANAGED: u32 = 8;
const DEVICE_ORDINAL: u32 = 9;
const IS_LEGACY_IPC_CAPABLE: u32 = 10;
const RANGE_START: u32 = 11;
const RANGE_SIZE: u32 = 12;
const MAPPED: u32 = 13;
const ALLOWED_HANDLE_TYPES: u32 = 14;
const IS_RDMA_CAPABLE: u32 = 15;
const ACCESS_FLAGS: u32 = 16;
const MEMPOOL_HANDLE: u32 = 17;

/// `CU_MEMORYTYPE_*`
const HOST: u64 = 1;
const DEVICE: u64 = 2;

/// A value and its size in bytes.
type Value = (u64, usize);

fn attribute(attribute: u32, address: u64) -> Outcome<Value> {
    if let Some((base, allocation)) = memory::find(address) {
        let pool = if let Origin::Pool(pool) = allocation.origin { pool as u64 } else { 0 };
        return Ok(match attribute {
            CONTEXT => (allocation.context as u64, 8),
            MEMORY_TYPE => (DEVICE, 4),
            DEVICE_POINTER => (address, 8),
            BUFFER_ID => (allocation.id, 8),
            // These three are C booleans.
            IS_MANAGED | IS_LEGACY_IPC_CAPABLE | IS_RDMA_CAPABLE => (0, 1),
            SYNC_MEMOPS | MAPPED => (1, 1),
            DEVICE_ORDINAL => (0, 4),
            RANGE_START => (base, 8),
            RANGE_SIZE => (allocation.bytes, 8),
            ALLOWED_HANDLE_TYPES => (0, 8),
            // CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE
            ACCESS_FLAGS => (3, 4),
            MEMPOOL_HANDLE => (pool, 8),
            _ => return Err(CUresult::INVALID_VALUE),
        });
    }
    let (base, bytes) = usize::try_from(address).ok().and_then(host::find).ok_or(CUresult::INVALID_VALUE)?;
    Ok(match attribute {
        CONTEXT => (context::current()?.handle as u64, 8),
        MEMORY_TYPE => (HOST, 4),
        HOST_POINTER => (address, 8),
        IS_MANAGED | IS_LEGACY_IPC_CAPABLE | IS_RDMA_CAPABLE | MAPPED => (0, 1),
        DEVICE_ORDINAL => (0, 4),
        RANGE_START => (base as u64, 8),
        RANGE_SIZE => (bytes as u64, 8),
        _ => return Err(CUresult::INVALID_VALUE),
    })
}

/// What `cuPointerGetAttributes` says of an address that it does not know.
fn unknown(attribute: u32) -> Outcome<Value> {
    Ok(match attribute {
        CONTEXT | DEVICE_POINTER | HOST_POINTER | BUFFER_ID | RANGE_START | RANGE_SIZE | ALLOWED_HANDLE_TYPES
        | MEMPOOL_HANDLE => (0, 8),
        MEMORY_TYPE | ACCESS_FLAGS => (0, 4),
        // CU_DEVICE_INVALID
        DEVICE_ORDINAL => (u64::from((-2_i32) as u32), 4),
        SYNC_MEMOPS | IS_MANAGED | IS_LEGACY_IPC_CAPABLE | MAPPED | IS_RDMA_CAPABLE => (0, 1),
        _ => return Err(CUresult::INVALID_VALUE),
    })
}

fn write(out: Out<u8>, (value, size): Value) -> Outcome {
    (0..size).try_for_each(|index| out.set_at(index, value.to_le_bytes()[index]))
}

/// A result pointer that came in an array.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct OutByte(Out<u8>);

// SAFETY: the layout of a raw pointer, of which every bit pattern is a value.
unsafe impl Plain for OutByte {}

api! {
    fn cuPointerGetAttribute(data: Out<u8>, which: u32, address: u64) {
        data.wanted()?;
        context::current()?;
        write(data, attribute(which, address)?)
    }

    fn cuPointerGetAttributes(count: u32, attributes: In<u32>, data: In<OutByte>, address: u64) {
        context::current()?;
        if count == 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        for index in 0..count as usize {
            let which = attributes.get_at(index)?;
            let value = attribute(which, address).or_else(|_| unknown(which))?;
            write(data.get_at(index)?.0, value)?;
        }
        Ok(())
    }

    fn cuPointerSetAttribute(value: In<u32>, which: u32, address: u64) {
        value.get()?;
        context::current()?;
        memory::find(address).ok_or(CUresult::INVALID_VALUE)?;
        // All copies are synchronous already.
        if which == SYNC_MEMOPS { Ok(()) } else { Err(CUresult::INVALID_VALUE) }
    }
}
