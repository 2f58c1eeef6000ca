//! Page-locked host memory. All host memory is the same to the emulator, so this only allocates and keeps account.

use super::api::api;
use super::args::Out;
use super::capture;
use super::context;
use super::errors::{CUresult, Outcome};
use super::handles::lock;
use super::memory;
use super::report;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// What page-locked memory is aligned to.
const PAGE: usize = 4096;

/// `CU_MEMHOSTALLOC_*`: portable, device map, write-combined.
const ALLOC_FLAGS: u32 = 7;

/// `CU_MEMHOSTREGISTER_*`: portable, device map, I/O memory, read-only.
const REGISTER_FLAGS: u32 = 15;

static BLOCKS: Mutex<BTreeMap<usize, Block>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: usize,
    flags: u32,
    /// Allocated here, and not only registered.
    layout: Option<Layout>,
}

/// Start and size of the page-locked block that holds `address`.
pub(super) fn find(address: usize) -> Option<(usize, usize)> {
    let blocks = lock(&BLOCKS);
    let (base, block) = blocks.range(..=address).next_back()?;
    (address - base < block.bytes).then_some((*base, block.bytes))
}

fn allocate(out: Out<usize>, bytes: usize, flags: u32) -> Outcome {
    out.wanted()?;
    context::current()?;
    if bytes == 0 || flags & !ALLOC_FLAGS != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    capture::forbid_unsafe_call()?;
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| CUresult::OUT_OF_MEMORY)?;
    // SAFETY: the layout has a size above 0.
    let address = unsafe { alloc_zeroed(layout) } as usize;
    if address == 0 {
        return Err(CUresult::OUT_OF_MEMORY);
    }
    lock(&BLOCKS).insert(address, Block { bytes, flags, layout: Some(layout) });
    out.set(address)
}

api! {
    fn cuMemHostAlloc(address: Out<usize>, bytes: usize, flags: u32) {
        allocate(address, bytes, flags)
    }

    fn cuMemAllocHost_v2(address: Out<usize>, bytes: usize) {
        allocate(address, bytes, 0)
    }

    fn cuMemFreeHost(address: usize) {
        if address == 0 {
            return Ok(());
        }
        let context = context::current_even_broken()?;
        let block = {
            let mut blocks = lock(&BLOCKS);
            match blocks.get(&address) {
                Some(Block { layout: Some(_), .. }) => blocks.remove(&address),
                _ => None,
            }
        };
        let layout = block.and_then(|block| block.layout).ok_or(CUresult::INVALID_VALUE)?;
        // SAFETY: the block came from `alloc_zeroed` with this layout, and taking it off the list makes this the only free.
        unsafe { dealloc(address as *mut u8, layout) };
        context.check()
    }

    fn cuMemHostRegister_v2(address: usize, bytes: usize, flags: u32) {
        context::current()?;
        let end = address.checked_add(bytes).ok_or(CUresult::INVALID_VALUE)?;
        if address == 0 || bytes == 0 || flags & !REGISTER_FLAGS != 0 || memory::is_device(address as u64) {
            return Err(CUresult::INVALID_VALUE);
        }
        let mut blocks = lock(&BLOCKS);
        if blocks.range(..end).next_back().is_some_and(|(base, block)| base + block.bytes > address) {
            return Err(CUresult::HOST_MEMORY_ALREADY_REGISTERED);
        }
        blocks.insert(address, Block { bytes, flags, layout: None });
        Ok(())
    }

    fn cuMemHostUnregister(address: usize) {
        context::current()?;
        let mut blocks = lock(&BLOCKS);
        match blocks.get(&address) {
            Some(Block { layout: None, .. }) => {
                blocks.remove(&address);
                Ok(())
            }
            Some(_) => Err(CUresult::INVALID_VALUE),
            None => Err(CUresult::HOST_MEMORY_NOT_REGISTERED),
        }
    }

    fn cuMemHostGetFlags(flags: Out<u32>, address: usize) {
        flags.wanted()?;
        context::current()?;
        let (base, _) = find(address).ok_or(CUresult::INVALID_VALUE)?;
        let block = lock(&BLOCKS).get(&base).copied().ok_or(CUresult::INVALID_VALUE)?;
        flags.set(block.flags)
    }

    fn cuMemHostGetDevicePointer_v2(pointer: Out<u64>, _address: usize, _flags: u32) {
        pointer.wanted()?;
        context::current()?;
        report::note("cuMemHostGetDevicePointer: kernels of the emulator cannot reach host memory".into());
        Err(CUresult::NOT_SUPPORTED)
    }
}
