//! Device memory: who allocated what, and the copies and fills that streams do.

use super::api::api;
use super::args::Out;
use super::capture;
use super::context::{self, Context};
use super::errors::{CUresult, Outcome};
use super::failure;
use super::handles::{Handle, lock};
use super::operation::Fill;
use super::options;
use super::pool;
use super::recording;
use super::report;
use super::stream;
use crate::memory::{DeviceMemory, MAX_ALLOCATION, MemoryError, OFFSET_BITS};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

/// Device pointers start here: above every address that a host process can have, so that one address says which it is.
const FIRST_POINTER: u64 = 1 << 48;

/// Unit of accounting, as in the allocator behind.
const GRANULE: u64 = 256;

static MEMORY: LazyLock<DeviceMemory> = LazyLock::new(|| {
    let memory = DeviceMemory::new(options::process_memory_bytes());
    // Pointers carry the number of their allocation: use up the numbers that would look like host addresses.
    for _ in 1..=(FIRST_POINTER >> OFFSET_BITS) {
        if let Ok(pointer) = memory.alloc(0) {
            // A fresh pointer can be freed.
            let _ = memory.free(pointer);
        }
    }
    memory
});

static ALLOCATIONS: Mutex<BTreeMap<u64, Allocation>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Bytes that this thread has allocated and nobody has freed.
    static USED: Arc<AtomicU64> = Arc::default();
}

/// How memory came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// `cuMemAlloc`
    Plain,
    /// A memory pool.
    Pool(Handle),
    /// A variable of a module; the program cannot free it.
    Module,
}

/// What is known of a live allocation.
#[derive(Debug, Clone)]
pub(super) struct Allocation {
    /// Number that no other allocation has had.
    pub(super) id: u64,
    /// Size as it was asked for.
    pub(super) bytes: u64,
    /// Handle of its context.
    pub(super) context: Handle,
    /// How it came to be.
    pub(super) origin: Origin,
    charged: Arc<AtomicU64>,
}

/// The device's memory, for launches.
pub(super) fn device() -> &'static DeviceMemory {
    &MEMORY
}

/// Whether an address is one of the device; it need not be a valid one.
pub(super) fn is_device(address: u64) -> bool {
    address >= FIRST_POINTER
}

/// Allocate for `context`.
pub(super) fn allocate(context: &Context, bytes: u64, origin: Origin) -> Outcome<u64> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    if origin != Origin::Module {
        failure::of_allocation()?;
    }
    let charge = bytes.checked_next_multiple_of(GRANULE).ok_or(CUresult::OUT_OF_MEMORY)?;
    let charged = USED.try_with(Arc::clone).unwrap_or_default();
    if let Some(limit) = options::thread_memory_bytes() {
        let used = charged.load(Ordering::Relaxed);
        if charge > limit.saturating_sub(used) {
            report::note(format!("{bytes} bytes asked for; this thread has {used} of its limit of {limit} bytes"));
            return Err(CUresult::OUT_OF_MEMORY);
        }
    }
    // Variables come with their module, wherever it is loaded.
    let is_recorded = origin != Origin::Module && recording::is_on();
    let memory = if is_recorded { MEMORY.reserve(bytes) } else { MEMORY.alloc(bytes) };
    let pointer = memory.map_err(|why| {
        report::note(why.to_string());
        CUresult::OUT_OF_MEMORY
    })?;
    if is_recorded {
        recording::allocated(pointer, bytes);
    }
    charged.fetch_add(charge, Ordering::Relaxed);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    lock(&ALLOCATIONS).insert(pointer, Allocation { id, bytes, context: context.handle, origin, charged });
    Ok(pointer)
}

/// Give an allocation back.
fn discard(pointer: u64, allocation: &Allocation) {
    allocation.charged.fetch_sub(allocation.bytes.next_multiple_of(GRANULE), Ordering::Relaxed);
    if let Origin::Pool(pool) = allocation.origin {
        pool::returned(pool, allocation.bytes);
    }
    // The table held the pointer, so the memory behind has it too.
    let _ = MEMORY.free(pointer);
}

/// Free what a program allocated. Null is allowed, as in C.
fn free(pointer: u64) -> Outcome {
    if pointer == 0 {
        return Ok(());
    }
    let allocation = {
        let mut allocations = lock(&ALLOCATIONS);
        match allocations.get(&pointer) {
            Some(allocation) if allocation.origin != Origin::Module => allocations.remove(&pointer),
            _ => None,
        }
    };
    let Some(allocation) = allocation else {
        report::note(format!("free of {pointer:#x}, which is not the start of a live allocation"));
        return Err(CUresult::INVALID_VALUE);
    };
    discard(pointer, &allocation);
    Ok(())
}

/// Free a variable of a module.
pub(super) fn free_module_variable(pointer: u64) {
    let allocation = lock(&ALLOCATIONS).remove(&pointer);
    if let Some(allocation) = allocation {
        discard(pointer, &allocation);
    }
}

/// A context is gone, and its memory with it.
pub(super) fn forget_context(context: Handle) {
    let gone: Vec<(u64, Allocation)> = {
        let mut allocations = lock(&ALLOCATIONS);
        let owned = allocations.iter().filter(|(_, allocation)| allocation.context == context);
        let pointers: Vec<u64> = owned.map(|(pointer, _)| *pointer).collect();
        pointers.into_iter().filter_map(|pointer| allocations.remove_entry(&pointer)).collect()
    };
    for (pointer, allocation) in &gone {
        discard(*pointer, allocation);
    }
}

/// The live allocation that holds `address`, and where it starts.
pub(super) fn find(address: u64) -> Option<(u64, Allocation)> {
    let allocations = lock(&ALLOCATIONS);
    let (base, allocation) = allocations.range(..=address).next_back()?;
    (address - base < allocation.bytes).then(|| (*base, allocation.clone()))
}

fn refuse(why: MemoryError) -> CUresult {
    report::note(why.to_string());
    CUresult::INVALID_VALUE
}

/// Copy between any two places; each is a device pointer or a host address that the program vouches for.
pub(super) fn copy(to: u64, from: u64, bytes: u64) -> Outcome {
    if bytes == 0 {
        return Ok(());
    }
    // No allocation is longer, and no host range of that length could be meant.
    if to == 0 || from == 0 || bytes > MAX_ALLOCATION {
        return Err(CUresult::INVALID_VALUE);
    }
    let length = usize::try_from(bytes).map_err(|_| CUresult::INVALID_VALUE)?;
    let memory = device();
    // The device's side is checked before the host's is touched.
    match (is_device(to), is_device(from)) {
        (true, true) => memory.copy_within(to, from, bytes).map_err(refuse),
        (true, false) => {
            check(to, bytes)?;
            // SAFETY: the caller of the entry point vouches for `bytes` readable bytes at this host address.
            let source = unsafe { std::slice::from_raw_parts(from as *const u8, length) };
            memory.copy_from_host(to, source).map_err(refuse)
        }
        (false, true) => {
            check(from, bytes)?;
            // SAFETY: the caller of the entry point vouches for `bytes` writable bytes at this host address; what they
            // hold is overwritten, not read.
            let target = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, length) };
            memory.copy_to_host(target, from).map_err(refuse)
        }
        (false, false) => {
            // SAFETY: the caller of the entry point vouches for both host ranges; `copy` allows them to overlap.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, length) };
            Ok(())
        }
    }
}

/// An error unless the range is inside one live allocation.
pub(super) fn check(pointer: u64, bytes: u64) -> Outcome {
    device().view().check(pointer, bytes).map_err(|why| refuse(why.into()))
}

/// What a range of the device holds.
pub(super) fn contents(pointer: u64, bytes: u64) -> Outcome<Vec<u8>> {
    let mut contents = vec![0; usize::try_from(bytes).map_err(|_| CUresult::INVALID_VALUE)?];
    device().copy_to_host(&mut contents, pointer).map_err(refuse)?;
    Ok(contents)
}

/// Bytes from the first to the last that a fill writes; an error if it is not a good one.
pub(super) fn filled_span(fill: &Fill) -> Outcome<u64> {
    if fill.columns == 0 || fill.rows == 0 {
        return Ok(0);
    }
    let width = u64::from(fill.width);
    let row = fill.columns.checked_mul(width).ok_or(CUresult::INVALID_VALUE)?;
    let last_row = (fill.rows - 1).checked_mul(fill.pitch).ok_or(CUresult::INVALID_VALUE)?;
    let span = last_row.checked_add(row).ok_or(CUresult::INVALID_VALUE)?;
    if span > MAX_ALLOCATION
        || !fill.to.is_multiple_of(width)
        || !fill.pitch.is_multiple_of(width)
        || (fill.rows > 1 && fill.pitch < row)
    {
        return Err(CUresult::INVALID_VALUE);
    }
    check(fill.to, span)?;
    Ok(span)
}

/// Fill a rectangle of device memory.
pub(super) fn fill(fill: &Fill) -> Outcome {
    if filled_span(fill)? == 0 {
        return Ok(());
    }
    let memory = device();
    let [a, b, c, d] = fill.value.to_le_bytes();
    for index in 0..fill.rows {
        let to = fill.to + index * fill.pitch;
        match fill.width {
            1 => memory.fill(to, [a], fill.columns),
            2 => memory.fill(to, [a, b], fill.columns),
            _ => memory.fill(to, [a, b, c, d], fill.columns),
        }
        .map_err(refuse)?;
    }
    Ok(())
}

/// Bytes free and bytes in total, as the calling thread sees them.
fn info() -> (u64, u64) {
    let (free, total) = MEMORY.info();
    match options::thread_memory_bytes() {
        Some(limit) => {
            let used = USED.try_with(|used| used.load(Ordering::Relaxed)).unwrap_or(0);
            (limit.saturating_sub(used), limit)
        }
        None => (free, total),
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

api! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        free.wanted()?;
        total.wanted()?;
        context::current()?;
        let (left, all) = info();
        free.set(to_usize(left))?;
        total.set(to_usize(all))
    }

    fn cuMemAlloc_v2(pointer: Out<u64>, bytes: usize) {
        pointer.wanted()?;
        let context = context::current()?;
        if bytes == 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        capture::forbid_unsafe_call()?;
        pointer.set(allocate(&context, bytes as u64, Origin::Plain)?)
    }

    fn cuMemAllocPitch_v2(pointer: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        pointer.wanted()?;
        pitch.wanted()?;
        let context = context::current()?;
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(CUresult::INVALID_VALUE);
        }
        capture::forbid_unsafe_call()?;
        let row = width.checked_next_multiple_of(512).ok_or(CUresult::OUT_OF_MEMORY)?;
        let bytes = row.checked_mul(height).ok_or(CUresult::OUT_OF_MEMORY)?;
        pointer.set(allocate(&context, bytes as u64, Origin::Plain)?)?;
        pitch.set(row)
    }

    fn cuMemFree_v2(pointer: u64) {
        let context = context::current_even_broken()?;
        capture::forbid_unsafe_call()?;
        // Freeing waits for what runs in every stream that the legacy stream waits for.
        context.legacy.in_order(&context, || free(pointer))?;
        context.check()
    }

    fn cuMemAllocManaged(pointer: Out<u64>, _bytes: usize, _flags: u32) {
        pointer.wanted()?;
        report::note("cuMemAllocManaged: device pointers of the emulator are no host addresses".into());
        Err(CUresult::NOT_SUPPORTED)
    }

    fn cuMemAllocAsync(pointer: Out<u64>, bytes: usize, stream: Handle) {
        pool::allocate_async(pointer, bytes, pool::DEFAULT, stream)
    }

    fn cuMemAllocFromPoolAsync(pointer: Out<u64>, bytes: usize, pool: Handle, stream: Handle) {
        pool::allocate_async(pointer, bytes, pool, stream)
    }

    fn cuMemFreeAsync(pointer: u64, stream: Handle) {
        let context = context::current_even_broken()?;
        let stream = stream::find(stream, &context)?;
        capture::forbid_on_stream(&stream)?;
        stream.in_order(&context, || free(pointer))?;
        context.check()
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, pointer: u64) {
        context::current()?;
        let (start, allocation) = find(pointer).ok_or(CUresult::NOT_FOUND)?;
        base.set_if_wanted(start);
        size.set_if_wanted(to_usize(allocation.bytes));
        Ok(())
    }
}
