use crate::support::{code, context, last_fault, set_option, unset_options};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DevicePtr, result};
use std::ffi::c_void;

#[test]
fn copies_go_there_and_back() {
    let stream = context().default_stream();
    let host: Vec<u32> = (0..1000).collect();
    let device = stream.clone_htod(&host).unwrap();
    assert!(stream.clone_dtoh(&device).unwrap() == host);
    let other = stream.clone_dtod(&device).unwrap();
    assert_eq!(stream.clone_dtoh(&other.slice(10..20)).unwrap(), host[10..20]);
    let mut zeros = stream.alloc_zeros::<u16>(77).unwrap();
    assert_eq!(stream.clone_dtoh(&zeros).unwrap(), vec![0; 77]);
    stream.memcpy_htod(&[5_u16, 6], &mut zeros.slice_mut(3..5)).unwrap();
    assert_eq!(stream.clone_dtoh(&zeros).unwrap()[2..6], [0, 5, 6, 0]);
}

#[test]
fn nothing_can_be_allocated_copied_and_freed() {
    let stream = context().default_stream();
    let null = stream.null::<f32>().unwrap();
    assert_eq!(stream.clone_dtoh(&null).unwrap(), []);
    drop(null);
    let empty = stream.alloc_zeros::<f32>(0).unwrap();
    drop(empty);
    stream.context().check_err().unwrap();
    // SAFETY: nothing is read or written.
    assert_eq!(code(unsafe { result::malloc_sync(0) }), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn fills_of_every_width() {
    let context = context();
    let stream = context.default_stream();
    let slice = stream.alloc_zeros::<u8>(64).unwrap();
    let at = slice.device_ptr(&stream).0;
    // SAFETY: all fills stay inside the 64 bytes.
    unsafe {
        assert_eq!(sys::cuMemsetD32_v2(at, 0x0403_0201, 2), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD16Async(at + 8, 0x0605, 2, std::ptr::null_mut()), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD8_v2(at + 12, 9, 2), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD2D8_v2(at + 16, 8, 3, 2, 3), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD16_v2(at + 1, 1, 1), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemsetD32_v2(at, 1, 17), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    assert!(last_fault().contains("past its end") || last_fault().contains("too long"), "{}", last_fault());
    let host = stream.clone_dtoh(&slice).unwrap();
    assert_eq!(host[..16], [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 5, 6, 9, 9, 0, 0]);
    assert_eq!(host[16..40], [3, 3, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_generic_copy_finds_its_direction() {
    let context = context();
    let stream = context.default_stream();
    let slice = stream.alloc_zeros::<u32>(4).unwrap();
    let device = slice.device_ptr(&stream).0;
    let source = [1_u32, 2, 3, 4];
    let mut target = [0_u32; 4];
    // SAFETY: every range has 16 bytes.
    unsafe {
        assert_eq!(sys::cuMemcpy(device, source.as_ptr() as u64, 16), CUresult::CUDA_SUCCESS);
        assert_eq!(
            sys::cuMemcpyAsync(target.as_mut_ptr() as u64, device, 16, std::ptr::null_mut()),
            CUresult::CUDA_SUCCESS
        );
        assert_eq!(target, source);
        assert_eq!(
            sys::cuMemcpyPeer(device + 8, context.cu_ctx(), device, context.cu_ctx(), 8),
            CUresult::CUDA_SUCCESS
        );
        assert_eq!(sys::cuMemcpy(device, 0, 16), CUresult::CUDA_ERROR_INVALID_VALUE);
        // A host address where a device pointer must be.
        let wrong = sys::cuMemcpyDtoD_v2(device, source.as_ptr() as u64, 16);
        assert_eq!(wrong, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(stream.clone_dtoh(&slice).unwrap(), [1, 2, 1, 2]);
}

#[test]
fn a_copy_out_of_bounds_is_refused_whole() {
    let stream = context().default_stream();
    let slice = stream.clone_htod(&[7_u8; 16]).unwrap();
    let at = slice.device_ptr(&stream).0;
    // SAFETY: the device side is checked before the host side is touched.
    let result = unsafe { sys::cuMemcpyHtoD_v2(at + 8, [0_u8; 16].as_ptr().cast(), 16) };
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(stream.clone_dtoh(&slice).unwrap(), [7; 16]);
}

#[test]
fn a_pointer_is_freed_once_and_by_its_start() {
    let context = context();
    context.bind_to_thread().unwrap();
    // SAFETY: the pointers are only given to the driver.
    unsafe {
        let pointer = result::malloc_sync(100).unwrap();
        assert_eq!(code(result::free_sync(pointer + 4)), CUresult::CUDA_ERROR_INVALID_VALUE);
        result::free_sync(pointer).unwrap();
        assert_eq!(code(result::free_sync(pointer)), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(last_fault().contains("not the start of a live allocation"));
        result::free_sync(0).unwrap();
    }
}

#[test]
fn memory_runs_out_at_the_size_that_was_set() {
    let context = context();
    let stream = context.default_stream();
    assert!(set_option("memory_mib", "1"));
    let (free, total) = context.mem_get_info().unwrap();
    assert_eq!(total, 1 << 20);
    assert_eq!(context.total_mem().unwrap(), 1 << 20);
    let half = stream.alloc_zeros::<u8>(600_000).unwrap();
    assert!(context.mem_get_info().unwrap().0 < free - 599_000);
    assert_eq!(code(stream.alloc_zeros::<u8>(600_000)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert!(last_fault().contains("600000 bytes"), "{}", last_fault());
    drop(half);
    stream.alloc_zeros::<u8>(600_000).unwrap();
    unset_options();
    assert!(context.mem_get_info().unwrap().1 > 1 << 20);
    stream.alloc_zeros::<u8>(2 << 20).unwrap();
    // SAFETY: more than any limit is never allocated.
    let result = unsafe { result::malloc_sync(usize::MAX / 2) };
    assert_eq!(code(result), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
}

#[test]
fn pools_count_what_they_gave() {
    let context = context();
    context.bind_to_thread().unwrap();
    // SAFETY: a C record of numbers and pointers, for which all zeros is a value.
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let used = |pool| {
        let mut bytes = 0_u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        // SAFETY: this attribute is a 64-bit number.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).unwrap() };
        bytes
    };
    // SAFETY: the properties are complete; the pool and the pointer are used while they live.
    unsafe {
        let pool = result::mem_pool::create(&raw const properties).unwrap();
        let pointer = result::mem_pool::alloc_async(pool, 1000, std::ptr::null_mut()).unwrap();
        assert_eq!(used(pool), 1000);
        result::free_async(pointer, std::ptr::null_mut()).unwrap();
        assert_eq!(used(pool), 0);
        let mut threshold = 4096_u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).unwrap();
        threshold = 0;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut threshold).cast()).unwrap();
        assert_eq!(threshold, 4096);
        result::mem_pool::trim_to(pool, 0).unwrap();
        result::mem_pool::destroy(pool).unwrap();
        assert_eq!(code(result::mem_pool::destroy(pool)), CUresult::CUDA_ERROR_INVALID_VALUE);
        let default = result::device::get_default_mem_pool(0).unwrap();
        assert_eq!(result::device::get_mem_pool(0).unwrap(), default);
        assert_eq!(code(result::mem_pool::destroy(default)), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn pinned_memory_can_be_used_and_freed() {
    let context = context();
    let stream = context.default_stream();
    // SAFETY: the memory is written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(8) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[3; 8]);
    let device = stream.clone_htod(&pinned).unwrap();
    assert_eq!(stream.clone_dtoh(&device).unwrap(), [3; 8]);
    let address = pinned.as_mut_ptr().unwrap();
    // SAFETY: the addresses are only looked up or registered.
    unsafe {
        let registered = sys::cuMemHostRegister_v2(address.cast(), 4, 0);
        assert_eq!(registered, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        let mut page = vec![0_u8; 64];
        let page: *mut c_void = page.as_mut_ptr().cast();
        assert_eq!(sys::cuMemHostUnregister(page), CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        assert_eq!(sys::cuMemHostRegister_v2(page, 64, 0), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemFreeHost(page), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemHostUnregister(page), CUresult::CUDA_SUCCESS);
    }
    drop(pinned);
    context.check_err().unwrap();
}

#[test]
fn a_pointer_tells_where_it_belongs() {
    let context = context();
    let stream = context.default_stream();
    let slice = stream.alloc_zeros::<u8>(100).unwrap();
    let pointer = slice.device_ptr(&stream).0 + 40;
    let (mut base, mut size) = (0, 0);
    let mut kind = 0_u32;
    let mut ordinal = -1_i32;
    let mut host = 7_u8;
    // SAFETY: all results have the types of their attributes.
    unsafe {
        use sys::CUpointer_attribute as Attribute;
        assert_eq!(sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, pointer), CUresult::CUDA_SUCCESS);
        assert_eq!((base, size), (pointer - 40, 100));
        let type_of =
            |at, out: *mut u32| sys::cuPointerGetAttribute(out.cast(), Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at);
        assert_eq!(type_of(pointer, &raw mut kind), CUresult::CUDA_SUCCESS);
        assert_eq!(kind, sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32);
        assert_eq!(type_of(&raw mut host as u64, &raw mut kind), CUresult::CUDA_ERROR_INVALID_VALUE);
        let mut attributes =
            [Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL];
        let mut data = [(&raw mut kind).cast::<c_void>(), (&raw mut ordinal).cast()];
        let all = sys::cuPointerGetAttributes(2, attributes.as_mut_ptr(), data.as_mut_ptr(), &raw mut host as u64);
        assert_eq!(all, CUresult::CUDA_SUCCESS);
    }
    assert_eq!((kind, ordinal), (0, -2));
}

#[test]
fn a_context_takes_its_memory_along() {
    let context = crate::support::own_context();
    // SAFETY: the pointer is only given to the driver.
    let pointer = unsafe { result::malloc_sync(64) }.unwrap();
    drop(context);
    crate::support::context().bind_to_thread().unwrap();
    // SAFETY: as above.
    assert_eq!(code(unsafe { result::memset_d8_sync(pointer, 0, 1) }), CUresult::CUDA_ERROR_INVALID_VALUE);
}
