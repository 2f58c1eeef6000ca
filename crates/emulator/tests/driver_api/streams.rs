use crate::support::{code, context, kernel};
use cudarc::driver::sys::{self, CUevent_flags as EventFlags, CUresult};
use cudarc::driver::{CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, result};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

const ONE: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

fn spin(stream: &CudaStream, function: &CudaFunction, at: u64, rounds: u32) {
    let mut launch = stream.launch_builder(function);
    launch.arg(&at).arg(&rounds);
    // SAFETY: one thread writes one element at an address that the caller allocated.
    unsafe { launch.launch(ONE) }.unwrap();
}

#[test]
fn events_measure_time() {
    let context = context();
    let stream = context.per_thread_stream();
    let function = kernel(&context, "spin");
    let slice = stream.alloc_zeros::<u32>(1).unwrap();
    let start = context.new_event(Some(EventFlags::CU_EVENT_DEFAULT)).unwrap();
    let end = context.new_event(Some(EventFlags::CU_EVENT_DEFAULT)).unwrap();
    assert_eq!(code(start.elapsed_ms(&end)), CUresult::CUDA_ERROR_INVALID_HANDLE);
    let clock = Instant::now();
    start.record(&stream).unwrap();
    spin(&stream, &function, slice.device_ptr(&stream).0, 50_000);
    end.record(&stream).unwrap();
    let outside = clock.elapsed().as_secs_f32() * 1e3;
    let inside = start.elapsed_ms(&end).unwrap();
    assert!(inside > 0.0 && inside <= outside, "{inside} of {outside}");
    assert!(end.elapsed_ms(&start).unwrap() < 0.0);
    assert!(end.is_complete());
    let untimed = context.new_event(None).unwrap();
    untimed.record(&stream).unwrap();
    assert_eq!(code(start.elapsed_ms(&untimed)), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn streams_fork_join_and_have_priorities() {
    let context = context();
    let first = context.new_stream().unwrap();
    let second = first.fork().unwrap();
    second.join(&first).unwrap();
    let urgent = context.new_stream_with_priority(-100).unwrap();
    assert_eq!(result::stream::get_priority_range().unwrap(), (0, -5));
    let mut priority = 1;
    let mut flags = 7;
    let mut owner = std::ptr::null_mut();
    // SAFETY: the results go to variables of their types.
    unsafe {
        assert_eq!(sys::cuStreamGetPriority(urgent.cu_stream(), &raw mut priority), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuStreamGetFlags(urgent.cu_stream(), &raw mut flags), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuStreamGetCtx(urgent.cu_stream(), &raw mut owner), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuStreamQuery(urgent.cu_stream()), CUresult::CUDA_SUCCESS);
    }
    assert_eq!((priority, flags, owner), (-5, 1, context.cu_ctx()));
    let slice = first.clone_htod(&[1_u8; 9]).unwrap();
    assert_eq!(second.clone_dtoh(&slice).unwrap(), [1; 9]);
    for default in [context.default_stream(), context.per_thread_stream()] {
        default.synchronize().unwrap();
    }
}

/// Whether something runs in the stream now.
fn is_busy(stream: &CudaStream) -> bool {
    // SAFETY: the stream lives.
    unsafe { sys::cuStreamQuery(stream.cu_stream()) == CUresult::CUDA_ERROR_NOT_READY }
}

/// Start a kernel in `stream` on another thread, and when it is seen running do `meanwhile`. Gives the answer of an attempt
/// whose kernel was still running afterwards; a slow machine needs longer kernels.
fn while_busy<T>(stream: &Arc<CudaStream>, meanwhile: impl Fn() -> T) -> T {
    let context = stream.context();
    let function = kernel(context, "spin");
    let memory = stream.alloc_zeros::<u32>(1).unwrap();
    let at = memory.device_ptr(stream).0;
    for rounds in (18..30).map(|power| 1 << power) {
        let (stream, function) = (Arc::clone(stream), function.clone());
        let worker = std::thread::spawn({
            let stream = Arc::clone(&stream);
            move || spin(&stream, &function, at, rounds)
        });
        while !is_busy(&stream) && !worker.is_finished() {
            std::thread::yield_now();
        }
        let answer = meanwhile();
        let busy = is_busy(&stream);
        worker.join().unwrap();
        assert!(!is_busy(&stream));
        assert_eq!(stream.clone_dtoh(&memory).unwrap(), [rounds]);
        if busy {
            return answer;
        }
    }
    panic!("no attempt ended before the kernel in the other stream did");
}

#[test]
fn two_threads_run_side_by_side() {
    let context = context();
    let function = kernel(&context, "spin");
    let (slow, quick) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let memory = quick.alloc_zeros::<u32>(1).unwrap();
    let at = memory.device_ptr(&quick).0;
    let answer = while_busy(&slow, || {
        spin(&quick, &function, at, 100);
        quick.synchronize().unwrap();
        quick.clone_dtoh(&memory).unwrap()
    });
    assert_eq!(answer, [100]);
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams() {
    let context = context();
    let mut raw = std::ptr::null_mut();
    context.bind_to_thread().unwrap();
    // SAFETY: the handle goes to a variable of its type; the stream is destroyed below, after its last use.
    let blocking = unsafe {
        assert_eq!(sys::cuStreamCreate(&raw mut raw, 0), CUresult::CUDA_SUCCESS);
        context.wrap_borrowed_stream(raw)
    };
    // What is left behind in the legacy stream cannot end before the kernel that was there first.
    let legacy = context.default_stream();
    let function = kernel(&context, "spin");
    let memory = legacy.alloc_zeros::<u32>(1).unwrap();
    let at = memory.device_ptr(&legacy).0;
    let rounds = 1 << 20;
    let worker = std::thread::spawn({
        let blocking = Arc::clone(&blocking);
        move || spin(&blocking, &function, at, rounds)
    });
    while !is_busy(&blocking) && !worker.is_finished() {
        std::thread::yield_now();
    }
    assert_eq!(legacy.clone_dtoh(&memory).unwrap(), [rounds]);
    worker.join().unwrap();
    // SAFETY: the stream is idle and not used again.
    assert_eq!(unsafe { sys::cuStreamDestroy_v2(raw) }, CUresult::CUDA_SUCCESS);
}

#[test]
fn one_stream_serialises_its_threads() {
    let context = context();
    let count = kernel(&context, "count");
    let stream = context.new_stream().unwrap();
    let memory = stream.alloc_zeros::<u32>(1).unwrap();
    let at = memory.device_ptr(&stream).0;
    let threads = [(); 4].map(|()| {
        let (stream, count) = (Arc::clone(&stream), count.clone());
        std::thread::spawn(move || {
            for _ in 0..50 {
                let mut launch = stream.launch_builder(&count);
                launch.arg(&at);
                // SAFETY: one thread changes one element, and the stream orders the launches.
                unsafe { launch.launch(ONE) }.unwrap();
            }
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(stream.clone_dtoh(&memory).unwrap(), [4 * 50 * 7]);
}

/// Adds one to the counter that `data` points to, and tries what is not allowed.
unsafe extern "C" fn bump(data: *mut c_void) {
    // SAFETY: the caller passes a counter that outlives the stream's work.
    let counter = unsafe { &*data.cast::<AtomicU32>() };
    counter.fetch_add(1, Ordering::SeqCst);
    // SAFETY: takes no arguments.
    if unsafe { sys::cuCtxSynchronize() } == CUresult::CUDA_ERROR_NOT_PERMITTED {
        counter.fetch_add(100, Ordering::SeqCst);
    }
}

unsafe extern "C" fn bump_with_status(_: sys::CUstream, status: CUresult, data: *mut c_void) {
    assert_eq!(status, CUresult::CUDA_SUCCESS);
    // SAFETY: as for the other.
    unsafe { bump(data) };
}

#[test]
fn host_functions_run_in_order_and_may_not_call_back() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let counter = AtomicU32::new(0);
    let data = (&raw const counter).cast_mut().cast::<c_void>();
    // SAFETY: the counter outlives the synchronised stream.
    unsafe {
        result::stream::launch_host_function(stream.cu_stream(), bump, data).unwrap();
        let added = sys::cuStreamAddCallback(stream.cu_stream(), Some(bump_with_status), data, 0);
        assert_eq!(added, CUresult::CUDA_SUCCESS);
    }
    stream.synchronize().unwrap();
    assert_eq!(counter.load(Ordering::SeqCst), 202);
}

#[test]
fn a_busy_stream_says_so_and_can_be_waited_for() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let event = context.new_event(None).unwrap();
    while_busy(&stream, || event.is_complete());
    stream.synchronize().unwrap();
    assert!(!is_busy(&stream));
}
