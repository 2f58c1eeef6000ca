use crate::support::{
    KERNELS, clear_fault, code, context, counters, keep_launches, kept_launches, kernel, last_fault, own_context,
    reset_counters, set_option, unset_options,
};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult};
use cudarc::driver::{CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use std::ffi::c_void;
use std::time::{Duration, Instant};

fn shape(grid: u32, block: u32, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes }
}

fn launch_empty(stream: &CudaStream, function: &CudaFunction, config: LaunchConfig) -> CUresult {
    // SAFETY: the kernel takes no arguments and touches no memory.
    code(unsafe { stream.launch_builder(function).launch(config) })
}

#[test]
fn a_kernel_computes() {
    let context = context();
    let stream = context.default_stream();
    let scale = kernel(&context, "scale");
    let input: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let device = stream.clone_htod(&input).unwrap();
    let mut output = stream.alloc_zeros::<f32>(1000).unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut output).arg(&device).arg(&2.5_f32).arg(&1000_u32);
    // SAFETY: the arguments are those of the kernel and both slices have 1000 elements.
    unsafe { launch.launch(shape(4, 256, 0)) }.unwrap();
    let expected: Vec<f32> = input.iter().map(|x| x * 2.5).collect();
    assert!(stream.clone_dtoh(&output).unwrap() == expected);
}

#[test]
fn arguments_may_come_in_one_buffer() {
    let context = context();
    let stream = context.default_stream();
    let function = kernel(&context, "scale");
    let scale = function.cu_function();
    let device = stream.clone_htod(&[1.0_f32, 2.0]).unwrap();
    let at = device.device_ptr(&stream).0;
    let mut buffer = [0_u8; 24];
    buffer[..8].copy_from_slice(&at.to_le_bytes());
    buffer[8..16].copy_from_slice(&at.to_le_bytes());
    buffer[16..20].copy_from_slice(&3.0_f32.to_le_bytes());
    buffer[20..].copy_from_slice(&2_u32.to_le_bytes());
    let launch = |mut size: usize, with_pointers: bool| {
        let (pointer, bytes): (*const c_void, *mut c_void) = (buffer.as_ptr().cast(), (&raw mut size).cast());
        let end = std::ptr::null_mut();
        let key = |key: usize| std::ptr::without_provenance_mut::<c_void>(key);
        let mut extra = [key(1), pointer.cast_mut(), key(2), bytes, end];
        let mut pointers = [end];
        let pointers = if with_pointers { pointers.as_mut_ptr() } else { std::ptr::null_mut() };
        // SAFETY: the list is that of the header, and names a buffer of `size` bytes at most.
        unsafe { sys::cuLaunchKernel(scale, 1, 1, 1, 32, 1, 1, 0, std::ptr::null_mut(), pointers, extra.as_mut_ptr()) }
    };
    assert_eq!(launch(24, false), CUresult::CUDA_SUCCESS);
    assert_eq!(stream.clone_dtoh(&device).unwrap(), [3.0, 6.0]);
    assert_eq!(launch(16, false), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(24, true), CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: missing arguments are an error that is answered.
    let none = unsafe {
        let (pointers, extra) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuLaunchKernel(scale, 1, 1, 1, 32, 1, 1, 0, std::ptr::null_mut(), pointers, extra)
    };
    assert_eq!(none, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn impossible_shapes_are_refused_with_a_reason() {
    let context = context();
    let stream = context.default_stream();
    let empty = kernel(&context, "empty");
    let exact = kernel(&context, "exact");
    let scale = kernel(&context, "scale");
    for (function, config, reason) in [
        (&empty, shape(0, 32, 0), "grid"),
        (&empty, shape(1, 0, 0), "block"),
        (&empty, shape(1, 1025, 0), "block"),
        (&empty, LaunchConfig { grid_dim: (1, 65_536, 1), ..shape(1, 32, 0) }, "grid"),
        (&empty, LaunchConfig { block_dim: (1, 1, 65), ..shape(1, 32, 0) }, "block"),
        (&empty, LaunchConfig { block_dim: (64, 32, 1), ..shape(1, 32, 0) }, "2048 threads"),
        (&empty, shape(1, 32, 48 * 1024 + 1), "dynamic shared memory"),
        (&exact, shape(1, 32, 0), ".reqntid"),
        (&scale, shape(1, 288, 0), ".maxntid"),
    ] {
        assert_eq!(launch_empty(&stream, function, config), CUresult::CUDA_ERROR_INVALID_VALUE, "{config:?}");
        assert!(last_fault().contains(reason), "{config:?}: {}", last_fault());
    }
    assert_eq!(launch_empty(&stream, &exact, shape(1, 64, 0)), CUresult::CUDA_SUCCESS);
    let blocks = LaunchConfig { grid_dim: (3, 2, 2), block_dim: (8, 4, 2), shared_mem_bytes: 0 };
    assert_eq!(launch_empty(&stream, &empty, blocks), CUresult::CUDA_SUCCESS);
}

#[test]
fn dynamic_shared_memory_must_be_asked_for() {
    let context = context();
    let stream = context.default_stream();
    let function = kernel(&context, "through_shared");
    let mut output = stream.alloc_zeros::<u32>(64).unwrap();
    let mut run = |bytes| {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut output);
        // SAFETY: 64 threads write an element each.
        code(unsafe { launch.launch(shape(1, 64, bytes)) })
    };
    assert_eq!(run(256), CUresult::CUDA_SUCCESS);
    assert_eq!(run(100 * 1024), CUresult::CUDA_ERROR_INVALID_VALUE);
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, 100 * 1024).unwrap();
    assert_eq!(run(100 * 1024), CUresult::CUDA_SUCCESS);
    assert_eq!(stream.clone_dtoh(&output).unwrap(), (0..64).collect::<Vec<u32>>());
}

#[test]
fn a_fault_breaks_the_context_for_good() {
    let context = own_context();
    let stream = context.default_stream();
    let poke = kernel(&context, "poke");
    let mut memory = stream.alloc_zeros::<u32>(1).unwrap();
    // The one store after the head of the kernel.
    let mut lines = (1..).zip(KERNELS.lines()).skip_while(|(_, text)| !text.contains(".entry poke"));
    let (line, _) = lines.find(|(_, text)| text.contains("st.global")).unwrap();
    let mut launch = stream.launch_builder(&poke);
    launch.arg(&0x1000_u64);
    // SAFETY: the kernel writes to an address that is not mapped, which the emulator notices.
    let launched = unsafe { launch.launch(shape(1, 1, 0)) };
    // The launch itself succeeds, as on hardware; whatever comes next does not.
    assert_eq!(code(launched), CUresult::CUDA_SUCCESS);
    let broken = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(code(context.synchronize()), broken);
    assert_eq!(code(stream.synchronize()), broken);
    assert_eq!(code(stream.clone_htod(&[1_u8])), broken);
    assert_eq!(code(stream.memset_zeros(&mut memory)), broken);
    assert_eq!(code(context.new_event(None)), broken);
    assert_eq!(launch_empty(&stream, &poke, shape(1, 1, 0)), broken);
    let story = last_fault();
    assert!(story.contains("illegal address in kernel poke"), "{story}");
    assert!(story.contains("0x1000") && story.contains("thread (0, 0, 0)"), "{story}");
    assert!(story.contains(&format!("line {line},")), "{story}");
    // Another thread that meets the same broken context can read the story too.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let raw = context.cu_ctx();
            // SAFETY: the context lives.
            assert_eq!(unsafe { sys::cuCtxSetCurrent(raw) }, CUresult::CUDA_SUCCESS);
            assert_eq!(last_fault(), story);
        });
    });
    // Other contexts go on.
    let other = own_context();
    other.default_stream().alloc_zeros::<u32>(1).unwrap();
    drop(other);
    context.bind_to_thread().unwrap();
    clear_fault();
    assert_eq!(last_fault(), "");
    context.synchronize().unwrap();
    stream.memset_zeros(&mut memory).unwrap();
}

#[test]
fn freed_memory_is_a_fault() {
    let context = own_context();
    let stream = context.default_stream();
    let poke = kernel(&context, "poke");
    let slice = stream.alloc_zeros::<u32>(1).unwrap();
    let at = slice.device_ptr(&stream).0;
    drop(slice);
    let mut launch = stream.launch_builder(&poke);
    launch.arg(&at);
    // SAFETY: the kernel writes to freed memory, which the emulator notices.
    unsafe { launch.launch(shape(1, 1, 0)) }.unwrap();
    assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(last_fault().contains("freed"), "{}", last_fault());
}

fn config_with(attributes: &mut [sys::CUlaunchAttribute], grid: u32, block: u32) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: std::ptr::null_mut(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

#[test]
fn launch_attributes_are_honoured_or_refused() {
    use sys::CUlaunchAttributeID as Id;
    let context = context();
    context.bind_to_thread().unwrap();
    let function = kernel(&context, "empty");
    let empty = function.cu_function();
    let attribute = |id, words: [u32; 3]| {
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: words[0], y: words[1], z: words[2] };
        sys::CUlaunchAttribute { id, pad: [0; 4], value }
    };
    let run = |attributes: &mut [sys::CUlaunchAttribute], grid| {
        let config = config_with(attributes, grid, 32);
        // SAFETY: the configuration and its attributes live through the call; the kernel takes no arguments.
        unsafe { sys::cuLaunchKernelEx(&raw const config, empty, std::ptr::null_mut(), std::ptr::null_mut()) }
    };
    let cluster = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    let cooperative = attribute(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, [1, 0, 0]);
    assert_eq!(run(&mut [], 1), CUresult::CUDA_SUCCESS);
    assert_eq!(run(&mut [attribute(cluster, [1, 1, 1]), cooperative], 4), CUresult::CUDA_SUCCESS);
    assert_eq!(run(&mut [attribute(cluster, [2, 1, 1])], 4), CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert!(last_fault().contains("clusters"), "{}", last_fault());
    assert_eq!(run(&mut [cooperative], 1_000_000), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    let event = attribute(Id::CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT, [0; 3]);
    assert_eq!(run(&mut [event], 1), CUresult::CUDA_ERROR_NOT_SUPPORTED);
}

#[test]
fn a_cooperative_grid_must_fit() {
    let context = context();
    let stream = context.default_stream();
    let empty = kernel(&context, "empty");
    let per_sm = empty.occupancy_max_active_blocks_per_multiprocessor(1024, 0, None).unwrap();
    assert_eq!(per_sm, 2);
    let cooperative = |grid| {
        // SAFETY: the kernel takes no arguments and touches no memory.
        code(unsafe { stream.launch_builder(&empty).launch_cooperative(shape(grid, 1024, 0)) })
    };
    assert_eq!(cooperative(2 * 132), CUresult::CUDA_SUCCESS);
    assert_eq!(cooperative(2 * 132 + 1), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    assert!(set_option("residency", "5"));
    assert_eq!(cooperative(6), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    assert_eq!(cooperative(5), CUresult::CUDA_SUCCESS);
    unset_options();
    context.synchronize().unwrap();
}

#[test]
fn launches_are_counted_by_kernel() {
    let context = context();
    let stream = context.default_stream();
    let (empty, count) = (kernel(&context, "empty"), kernel(&context, "count"));
    let mut at = stream.alloc_zeros::<u32>(1).unwrap();
    reset_counters();
    for _ in 0..3 {
        launch_empty(&stream, &empty, shape(2, 32, 0));
    }
    let mut launch = stream.launch_builder(&count);
    launch.arg(&mut at);
    // SAFETY: one thread changes the one element.
    unsafe { launch.launch(shape(1, 1, 0)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&at).unwrap(), [7]);
    let json = counters();
    for part in ["{\"total\":{", "\"kernels\":{\"count\":{", "\"empty\":{", "\"launches\":4", "\"launches\":3"] {
        assert!(json.replace(": ", ":").contains(part), "{part} in {json}");
    }
    std::thread::spawn(|| assert!(!counters().contains("empty"))).join().unwrap();
    reset_counters();
    assert!(!counters().contains("empty"));
}

#[test]
fn a_launch_costs_little() {
    let context = context();
    let stream = context.per_thread_stream();
    let empty = kernel(&context, "empty");
    let config = shape(1, 32, 0);
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..50 {
            assert_eq!(launch_empty(&stream, &empty, config), CUresult::CUDA_SUCCESS);
        }
        best = best.min(start.elapsed() / 50);
    }
    println!("launch of an empty kernel: {best:?}");
    assert!(best < Duration::from_micros(50), "{best:?}");
}

#[test]
fn a_kept_launch_runs_again_as_it_was() {
    use lookback_emulator::{decode, launch, ptx, snapshot::snapshots};
    let context = context();
    let stream = context.default_stream();
    let scale = kernel(&context, "scale");
    // In place: what is kept is what the launch found, not what it left.
    let device = stream.clone_htod(&[1.0_f32, 2.0, 3.0]).unwrap();
    let run = || {
        let mut launch = stream.launch_builder(&scale);
        launch.arg(&device).arg(&device).arg(&3.0_f32).arg(&3_u32);
        // SAFETY: the arguments are those of the kernel and the slice has 3 elements.
        unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
    };
    run();
    assert!(kept_launches().is_empty(), "nobody has asked yet");
    keep_launches(true);
    run();
    run();
    let kept = snapshots(&kept_launches()).unwrap();
    keep_launches(false);
    assert!(kept_launches().is_empty());
    assert_eq!(stream.clone_dtoh(&device).unwrap(), [27.0, 54.0, 81.0]);
    let module = ptx::parse(KERNELS).unwrap();
    let program = decode::decode(&module, module.entry("scale").unwrap(), &[]).unwrap();
    assert_eq!(kept.len(), 2);
    for (launched, wanted) in kept.iter().zip([9.0_f32, 27.0]) {
        assert_eq!(launched.kernel, "scale");
        let memory = launched.memory().unwrap();
        launch::launch(&program, &memory, &launched.config, &launched.parameters, &Default::default()).unwrap();
        let mut first = [0; 4];
        memory.copy_to_host(&mut first, device.device_ptr(&stream).0).unwrap();
        assert_eq!(f32::from_le_bytes(first), wanted);
    }
}
