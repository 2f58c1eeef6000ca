//! Memory pools. Memory goes back to the device as soon as it is freed, so a pool only counts and remembers settings.

use super::api::api;
use super::args::{In, Out, Plain};
use super::capture;
use super::context;
use super::device::{self, CUdevice};
use super::errors::{CUresult, Outcome};
use super::handles::{Handle, Kind, Table, lock};
use super::memory::{self, Origin};
use super::stream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

static POOLS: Table<Pool> = Table::new(Kind::Pool);

/// Stands for the device's default pool before anybody has asked for its handle.
pub(super) const DEFAULT: Handle = 0;

static DEFAULT_HANDLE: AtomicUsize = AtomicUsize::new(0);
/// The pool that `cuDeviceSetMemPool` chose, or 0 for the default one.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// `CUmemPool_attribute`
const REUSE_FOLLOW_EVENTS: u32 = 1;
const REUSE_INTERNAL: u32 = 3;
const RELEASE_THRESHOLD: u32 = 4;
const RESERVED: u32 = 5;
const RESERVED_HIGH: u32 = 6;
const USED: u32 = 7;
const USED_HIGH: u32 = 8;

#[derive(Debug, Default)]
struct State {
    used: u64,
    high: u64,
    threshold: u64,
    reuse: [i32; 3],
}

#[derive(Debug)]
struct Pool {
    is_default: bool,
    state: Mutex<State>,
}

/// `CUmemLocation`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct CUmemLocation {
    kind: u32,
    id: i32,
}

// SAFETY: two integers.
unsafe impl Plain for CUmemLocation {}

/// The head of `CUmemPoolProps`; what follows says nothing that this emulator could do.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct CUmemPoolProps {
    allocation: u32,
    handles: u32,
    location: CUmemLocation,
}

// SAFETY: four integers.
unsafe impl Plain for CUmemPoolProps {}

/// `CUmemAccessDesc`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct CUmemAccessDesc {
    location: CUmemLocation,
    flags: u32,
}

// SAFETY: three integers.
unsafe impl Plain for CUmemAccessDesc {}

fn create(is_default: bool) -> Handle {
    let handle = POOLS.reserve();
    let state = Mutex::new(State { reuse: [1; 3], ..State::default() });
    POOLS.insert(handle, Pool { is_default, state });
    handle
}

/// The device's default pool.
fn default_pool() -> Handle {
    let known = DEFAULT_HANDLE.load(Ordering::Acquire);
    if known != 0 {
        return known;
    }
    let created = create(true);
    match DEFAULT_HANDLE.compare_exchange(0, created, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => created,
        Err(first) => {
            POOLS.remove(created);
            first
        }
    }
}

/// The pool that allocations without a pool come from.
fn chosen_pool() -> Handle {
    match CHOSEN.load(Ordering::Acquire) {
        0 => default_pool(),
        chosen => chosen,
    }
}

/// Memory of `pool` was freed.
pub(super) fn returned(pool: Handle, bytes: u64) {
    if let Some(pool) = POOLS.get(pool) {
        let mut state = lock(&pool.state);
        state.used = state.used.saturating_sub(bytes);
    }
}

/// Allocate in the order of a stream. Zero bytes give a null pointer, which may be freed.
pub(super) fn allocate_async(pointer: Out<u64>, bytes: usize, pool: Handle, stream: Handle) -> Outcome {
    pointer.wanted()?;
    let context = context::current()?;
    let stream = stream::find(stream, &context)?;
    let handle = if pool == DEFAULT { chosen_pool() } else { pool };
    let pool = POOLS.get(handle).ok_or(CUresult::INVALID_VALUE)?;
    capture::forbid_on_stream(&stream)?;
    if bytes == 0 {
        return pointer.set(0);
    }
    let bytes = bytes as u64;
    let address = memory::allocate(&context, bytes, Origin::Pool(handle))?;
    let mut state = lock(&pool.state);
    state.used += bytes;
    state.high = state.high.max(state.used);
    pointer.set(address)
}

fn check_location(location: CUmemLocation) -> Outcome {
    // CU_MEM_LOCATION_TYPE_DEVICE
    if location.kind == 1 { device::check(location.id) } else { Err(CUresult::NOT_SUPPORTED) }
}

/// An attribute has the type that its number says: 32 bits below `RELEASE_THRESHOLD`, 64 from there.
fn is_small(attribute: u32) -> bool {
    attribute < RELEASE_THRESHOLD
}

api! {
    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: CUdevice) {
        device::check(device)?;
        pool.set(default_pool())
    }

    fn cuDeviceGetMemPool(pool: Out<Handle>, device: CUdevice) {
        device::check(device)?;
        pool.set(chosen_pool())
    }

    fn cuDeviceSetMemPool(device: CUdevice, pool: Handle) {
        device::check(device)?;
        POOLS.get(pool).ok_or(CUresult::INVALID_VALUE)?;
        CHOSEN.store(pool, Ordering::Release);
        Ok(())
    }

    fn cuMemPoolCreate(pool: Out<Handle>, properties: In<CUmemPoolProps>) {
        pool.wanted()?;
        let properties = properties.get()?;
        // CU_MEM_ALLOCATION_TYPE_PINNED is the only kind of pool memory.
        if properties.allocation != 1 {
            return Err(CUresult::INVALID_VALUE);
        }
        check_location(properties.location)?;
        if properties.handles != 0 {
            return Err(CUresult::NOT_SUPPORTED);
        }
        pool.set(create(false))
    }

    fn cuMemPoolDestroy(pool: Handle) {
        let found = POOLS.get(pool).filter(|pool| !pool.is_default).ok_or(CUresult::INVALID_VALUE)?;
        POOLS.remove(pool);
        // What was allocated from it stays valid until it is freed.
        drop(found);
        // A destroyed pool is chosen no more; if it was not chosen, nothing changes.
        let _ = CHOSEN.compare_exchange(pool, 0, Ordering::AcqRel, Ordering::Acquire);
        Ok(())
    }

    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        POOLS.get(pool).map(drop).ok_or(CUresult::INVALID_VALUE)
    }

    fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: Out<u8>) {
        value.wanted()?;
        let pool = POOLS.get(pool).ok_or(CUresult::INVALID_VALUE)?;
        let state = lock(&pool.state);
        let number = match attribute {
            REUSE_FOLLOW_EVENTS..=REUSE_INTERNAL => state.reuse[attribute as usize - 1] as u64,
            RELEASE_THRESHOLD => state.threshold,
            RESERVED | USED => state.used,
            RESERVED_HIGH | USED_HIGH => state.high,
            _ => return Err(CUresult::INVALID_VALUE),
        };
        let size = if is_small(attribute) { 4 } else { 8 };
        (0..size).try_for_each(|index| value.set_at(index, number.to_le_bytes()[index]))
    }

    fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: In<u8>) {
        let pool = POOLS.get(pool).ok_or(CUresult::INVALID_VALUE)?;
        if !(REUSE_FOLLOW_EVENTS..=USED_HIGH).contains(&attribute) {
            return Err(CUresult::INVALID_VALUE);
        }
        let mut bytes = [0; 8];
        let size = if is_small(attribute) { 4 } else { 8 };
        for (index, byte) in bytes.iter_mut().enumerate().take(size) {
            *byte = value.get_at(index)?;
        }
        let number = u64::from_le_bytes(bytes);
        let mut state = lock(&pool.state);
        match attribute {
            REUSE_FOLLOW_EVENTS..=REUSE_INTERNAL => state.reuse[attribute as usize - 1] = number as i32,
            RELEASE_THRESHOLD => state.threshold = number,
            // A high-water mark can only be reset.
            RESERVED_HIGH | USED_HIGH if number == 0 => state.high = state.used,
            _ => return Err(CUresult::INVALID_VALUE),
        }
        Ok(())
    }

    fn cuMemPoolSetAccess(pool: Handle, accesses: In<CUmemAccessDesc>, count: usize) {
        POOLS.get(pool).ok_or(CUresult::INVALID_VALUE)?;
        for access in accesses.list(count.min(64))? {
            check_location(access.location)?;
            // CU_MEM_ACCESS_FLAGS_PROT_READWRITE is what the owning device always has.
            if access.flags != 3 {
                return Err(CUresult::INVALID_VALUE);
            }
        }
        Ok(())
    }

    fn cuMemPoolGetAccess(flags: Out<u32>, pool: Handle, location: In<CUmemLocation>) {
        flags.wanted()?;
        POOLS.get(pool).ok_or(CUresult::INVALID_VALUE)?;
        check_location(location.get()?)?;
        flags.set(3)
    }
}
