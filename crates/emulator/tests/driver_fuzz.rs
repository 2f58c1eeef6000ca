//! Every entry point with random bad arguments: whatever comes, an error code goes back and nothing crashes.
//!
//! In a process of its own, since it also takes contexts, the primary one included, away under itself.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Name and kinds of the arguments: `p` pointer to a page or null, `h` handle, `d` device pointer, `i` integer, `n` size,
/// `s` size of the page at most, `c` size that is safe for a copy between host addresses, `t` text, `f` function.
const ENTRY_POINTS: [(&str, &str); 178] = [
    ("cuCtxCreate_v2", "pii"),
    ("cuCtxCreate_v3", "ppiii"),
    ("cuCtxCreate_v4", "ppii"),
    ("cuCtxDestroy_v2", "h"),
    ("cuCtxDisablePeerAccess", "h"),
    ("cuCtxEnablePeerAccess", "hi"),
    ("cuCtxGetApiVersion", "hp"),
    ("cuCtxGetCacheConfig", "p"),
    ("cuCtxGetCurrent", "p"),
    ("cuCtxGetDevice", "p"),
    ("cuCtxGetDevice_v2", "ph"),
    ("cuCtxGetFlags", "p"),
    ("cuCtxGetId", "hp"),
    ("cuCtxGetLimit", "pi"),
    ("cuCtxGetSharedMemConfig", "p"),
    ("cuCtxGetStreamPriorityRange", "pp"),
    ("cuCtxPopCurrent_v2", "p"),
    ("cuCtxPushCurrent_v2", "h"),
    ("cuCtxResetPersistingL2Cache", ""),
    ("cuCtxSetCacheConfig", "i"),
    ("cuCtxSetCurrent", "h"),
    ("cuCtxSetFlags", "i"),
    ("cuCtxSetLimit", "in"),
    ("cuCtxSetSharedMemConfig", "i"),
    ("cuCtxSynchronize", ""),
    ("cuCtxSynchronize_v2", "h"),
    ("cuDeviceCanAccessPeer", "pii"),
    ("cuDeviceComputeCapability", "ppi"),
    ("cuDeviceGet", "pi"),
    ("cuDeviceGetAttribute", "pii"),
    ("cuDeviceGetByPCIBusId", "pt"),
    ("cuDeviceGetCount", "p"),
    ("cuDeviceGetDefaultMemPool", "pi"),
    ("cuDeviceGetMemPool", "pi"),
    ("cuDeviceGetName", "psi"),
    ("cuDeviceGetP2PAttribute", "piii"),
    ("cuDeviceGetPCIBusId", "psi"),
    ("cuDeviceGetProperties", "pi"),
    ("cuDeviceGetUuid", "pi"),
    ("cuDeviceGetUuid_v2", "pi"),
    ("cuDevicePrimaryCtxGetState", "ipp"),
    ("cuDevicePrimaryCtxRelease_v2", "i"),
    ("cuDevicePrimaryCtxReset_v2", "i"),
    ("cuDevicePrimaryCtxRetain", "pi"),
    ("cuDevicePrimaryCtxSetFlags_v2", "ii"),
    ("cuDeviceSetMemPool", "ih"),
    ("cuDeviceTotalMem_v2", "pi"),
    ("cuDriverGetVersion", "p"),
    ("cuEventCreate", "pi"),
    ("cuEventDestroy_v2", "h"),
    ("cuEventElapsedTime", "phh"),
    ("cuEventElapsedTime_v2", "phh"),
    ("cuEventQuery", "h"),
    ("cuEventRecord", "hh"),
    ("cuEventRecordWithFlags", "hhi"),
    ("cuEventSynchronize", "h"),
    ("cuFuncGetAttribute", "pih"),
    ("cuFuncGetModule", "ph"),
    ("cuFuncGetName", "ph"),
    ("cuFuncGetParamCount", "hp"),
    ("cuFuncGetParamInfo", "hnpp"),
    ("cuFuncIsLoaded", "ph"),
    ("cuFuncLoad", "h"),
    ("cuFuncSetAttribute", "hii"),
    ("cuFuncSetCacheConfig", "hi"),
    ("cuFuncSetSharedMemConfig", "hi"),
    ("cuGetErrorName", "ip"),
    ("cuGetErrorString", "ip"),
    ("cuGetExportTable", "pp"),
    ("cuGetProcAddress", "tpii"),
    ("cuGetProcAddress_v2", "tpiip"),
    ("cuGraphClone", "ph"),
    ("cuGraphCreate", "pi"),
    ("cuGraphDestroy", "h"),
    ("cuGraphExecDestroy", "h"),
    ("cuGraphExecGetFlags", "hp"),
    ("cuGraphExecUpdate", "hhpp"),
    ("cuGraphExecUpdate_v2", "hhp"),
    ("cuGraphGetNodes", "hpp"),
    ("cuGraphGetRootNodes", "hpp"),
    ("cuGraphInstantiateWithFlags", "phi"),
    ("cuGraphInstantiateWithParams", "php"),
    ("cuGraphInstantiate_v2", "phppn"),
    ("cuGraphLaunch", "hh"),
    ("cuGraphNodeGetType", "hp"),
    ("cuGraphUpload", "hh"),
    ("cuInit", "i"),
    ("cuLaunchCooperativeKernel", "hiiiiiiihp"),
    ("cuLaunchHostFunc", "hfp"),
    ("cuLaunchKernel", "hiiiiiiihpp"),
    ("cuLaunchKernelEx", "phpp"),
    ("cuMemAllocAsync", "pnh"),
    ("cuMemAllocFromPoolAsync", "pnhh"),
    ("cuMemAllocHost_v2", "pn"),
    ("cuMemAllocManaged", "pni"),
    ("cuMemAllocPitch_v2", "ppnni"),
    ("cuMemAlloc_v2", "pn"),
    ("cuMemFreeAsync", "dh"),
    ("cuMemFreeHost", "p"),
    ("cuMemFree_v2", "d"),
    ("cuMemGetAddressRange_v2", "ppd"),
    ("cuMemGetInfo_v2", "pp"),
    ("cuMemHostAlloc", "pni"),
    ("cuMemHostGetDevicePointer_v2", "ppi"),
    ("cuMemHostGetFlags", "pp"),
    ("cuMemHostRegister_v2", "pni"),
    ("cuMemHostUnregister", "p"),
    ("cuMemPoolCreate", "pp"),
    ("cuMemPoolDestroy", "h"),
    ("cuMemPoolGetAccess", "php"),
    ("cuMemPoolGetAttribute", "hip"),
    ("cuMemPoolSetAccess", "hpn"),
    ("cuMemPoolSetAttribute", "hip"),
    ("cuMemPoolTrimTo", "hn"),
    ("cuMemcpy", "ddc"),
    ("cuMemcpyAsync", "ddch"),
    ("cuMemcpyDtoDAsync_v2", "ddnh"),
    ("cuMemcpyDtoD_v2", "ddn"),
    ("cuMemcpyDtoHAsync_v2", "pdnh"),
    ("cuMemcpyDtoH_v2", "pdn"),
    ("cuMemcpyHtoDAsync_v2", "dpnh"),
    ("cuMemcpyHtoD_v2", "dpn"),
    ("cuMemcpyPeer", "dhdhn"),
    ("cuMemcpyPeerAsync", "dhdhnh"),
    ("cuMemsetD16Async", "dinh"),
    ("cuMemsetD16_v2", "din"),
    ("cuMemsetD2D16Async", "dninnh"),
    ("cuMemsetD2D16_v2", "dninn"),
    ("cuMemsetD2D32Async", "dninnh"),
    ("cuMemsetD2D32_v2", "dninn"),
    ("cuMemsetD2D8Async", "dninnh"),
    ("cuMemsetD2D8_v2", "dninn"),
    ("cuMemsetD32Async", "dinh"),
    ("cuMemsetD32_v2", "din"),
    ("cuMemsetD8Async", "dinh"),
    ("cuMemsetD8_v2", "din"),
    ("cuModuleEnumerateFunctions", "pih"),
    ("cuModuleGetFunction", "pht"),
    ("cuModuleGetFunctionCount", "ph"),
    ("cuModuleGetGlobal_v2", "ppht"),
    ("cuModuleGetLoadingMode", "p"),
    ("cuModuleLoad", "pt"),
    ("cuModuleLoadData", "pp"),
    ("cuModuleLoadDataEx", "ppipp"),
    ("cuModuleLoadFatBinary", "pp"),
    ("cuModuleUnload", "h"),
    ("cuOccupancyAvailableDynamicSMemPerBlock", "phii"),
    ("cuOccupancyMaxActiveBlocksPerMultiprocessor", "phin"),
    ("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", "phini"),
    ("cuOccupancyMaxActiveClusters", "php"),
    ("cuOccupancyMaxPotentialBlockSize", "pphfni"),
    ("cuOccupancyMaxPotentialBlockSizeWithFlags", "pphfnii"),
    ("cuOccupancyMaxPotentialClusterSize", "php"),
    ("cuPointerGetAttribute", "pid"),
    ("cuPointerGetAttributes", "ippd"),
    ("cuPointerSetAttribute", "pid"),
    ("cuProfilerStart", ""),
    ("cuProfilerStop", ""),
    ("cuStreamAddCallback", "hfpi"),
    ("cuStreamBeginCapture_v2", "hi"),
    ("cuStreamCreate", "pi"),
    ("cuStreamCreateWithPriority", "pii"),
    ("cuStreamDestroy_v2", "h"),
    ("cuStreamEndCapture", "hp"),
    ("cuStreamGetCaptureInfo", "hpp"),
    ("cuStreamGetCaptureInfo_v2", "hppppp"),
    ("cuStreamGetCaptureInfo_v3", "hpppppp"),
    ("cuStreamGetCtx", "hp"),
    ("cuStreamGetCtx_v2", "hpp"),
    ("cuStreamGetDevice", "hp"),
    ("cuStreamGetFlags", "hp"),
    ("cuStreamGetId", "hp"),
    ("cuStreamGetPriority", "hp"),
    ("cuStreamIsCapturing", "hp"),
    ("cuStreamQuery", "h"),
    ("cuStreamSynchronize", "h"),
    ("cuStreamWaitEvent", "hhi"),
    ("cuThreadExchangeStreamCaptureMode", "p"),
];

/// Bytes that every pointer argument points to.
const PAGE: usize = 8192;

/// A generator good enough to choose arguments.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = self.0 ^ (self.0 >> 33);
        mixed.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (mixed >> 29)
    }

    fn pick(&mut self, choices: &[usize]) -> usize {
        choices[(self.next() % choices.len() as u64) as usize]
    }
}

type Call = unsafe extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize, usize, usize, usize) -> u32;

struct Emulator(Library);

impl Emulator {
    fn load() -> Self {
        let beside = std::env::current_exe().unwrap().with_file_name("liblookback_emulator.so");
        // A bundle has the tests one folder below the library.
        let path =
            if beside.exists() { beside } else { beside.parent().unwrap().with_file_name("liblookback_emulator.so") };
        // SAFETY: the library has no initialisers beyond those of Rust's own runtime.
        Self(unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.unwrap())
    }

    /// Call by name. Arguments beyond those of the function are not looked at by it.
    fn call(&self, name: &str, arguments: [usize; 11]) -> u32 {
        let symbol = std::ffi::CString::new(name).unwrap();
        let [a, b, c, d, e, f, g, h, i, j, k] = arguments;
        // SAFETY: all arguments of the driver's functions are words, and the caller passes only pointers that are null or
        // good for what the function does with them.
        unsafe {
            let function = self.0.get::<Call>(symbol.as_bytes_with_nul()).unwrap_or_else(|_| panic!("{name}"));
            function(a, b, c, d, e, f, g, h, i, j, k)
        }
    }

    fn exchange_capture_mode(&self, mode: u32) {
        let mut mode = mode;
        self.call("cuThreadExchangeStreamCaptureMode", [&raw mut mode as usize, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Call with the first arguments only; the word that the function wrote to its first argument.
    fn create(&self, name: &str, rest: &[usize]) -> usize {
        let mut out = 0_usize;
        let mut arguments = [0; 11];
        arguments[0] = &raw mut out as usize;
        arguments[1..=rest.len()].copy_from_slice(rest);
        // What an earlier round has broken may fail; a zero handle is as good an argument as any.
        self.call(name, arguments);
        out
    }
}

/// Live objects of every kind.
fn create_all(emulator: &Emulator) -> Vec<usize> {
    const TEXT: &std::ffi::CStr = c"
        .version 7.0
        .target sm_80
        .address_size 64
        .visible .entry k(.param .u64 p) { ret; }
    ";
    emulator.call("cuInit", [0; 11]);
    // A capture that an earlier round left behind in some context must not hinder what follows.
    emulator.exchange_capture_mode(2);
    emulator.call("cuDevicePrimaryCtxReset_v2", [0; 11]);
    let primary = emulator.create("cuDevicePrimaryCtxRetain", &[0]);
    emulator.call("cuCtxSetCurrent", [primary, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let context = emulator.create("cuCtxCreate_v2", &[0, 0]);
    let module = emulator.create("cuModuleLoadData", &[TEXT.as_ptr() as usize]);
    let function = emulator.create("cuModuleGetFunction", &[module, c"k".as_ptr() as usize]);
    let graph = emulator.create("cuGraphCreate", &[0]);
    let objects = vec![
        primary,
        context,
        module,
        function,
        graph,
        emulator.create("cuGraphInstantiateWithFlags", &[graph, 0]),
        emulator.create("cuStreamCreate", &[0]),
        emulator.create("cuStreamCreate", &[1]),
        emulator.create("cuEventCreate", &[0]),
        emulator.create("cuDeviceGetDefaultMemPool", &[0]),
        emulator.create("cuMemAlloc_v2", &[256]),
    ];
    emulator.exchange_capture_mode(0);
    objects
}

#[test]
fn random_arguments_do_no_harm() {
    let emulator = Emulator::load();
    let mut random = Random(7);
    let mut page = vec![0_usize; PAGE / size_of::<usize>()];
    let page_at = page.as_mut_ptr() as usize;
    let mut codes = std::collections::BTreeMap::new();
    for round in 0..60 {
        let mut objects = create_all(&emulator);
        let device = objects.last().copied().unwrap_or(0);
        // Without it, what is added to it below would be host addresses.
        assert_ne!(device, 0, "round {round}");
        objects.extend([0, 1, 2, 0x1234_5670, usize::MAX]);
        for step in 0..ENTRY_POINTS.len() * 3 {
            let at = (random.next() % ENTRY_POINTS.len() as u64) as usize;
            let (name, kinds) = ENTRY_POINTS[at];
            let mut arguments = [0; 11];
            for (argument, kind) in arguments.iter_mut().zip(kinds.chars()) {
                *argument = match kind {
                    'p' => random.pick(&[0, page_at, page_at, page_at]),
                    't' => random.pick(&[0, page_at, c"k".as_ptr() as usize, c"cuInit".as_ptr() as usize]),
                    'h' => random.pick(&objects),
                    'd' => random.pick(&[0, 4096, device, device, device + 1, device + 255, device + (1 << 36)]),
                    'i' => random.pick(&[0, 0, 0, 1, 1, 2, 3, 4, 31, 64, 1024, 0x7fff_ffff, 0xffff_ffff]),
                    'n' => random.pick(&[0, 1, 4, 255, 256, 257, 4096, 1 << 36, 1 << 62, usize::MAX]),
                    's' => random.pick(&[0, 1, 8, 100, 0xffff_ffff_usize]),
                    'c' => random.pick(&[0, 1, 256, 257]),
                    'f' => 0,
                    other => panic!("{name}: kind {other}"),
                };
            }
            // A copy of nothing but the device may take any address; hosts' must be real.
            if name == "cuMemcpy" || name == "cuMemcpyAsync" {
                for argument in &mut arguments[..2] {
                    if *argument == 4096 {
                        *argument = page_at;
                    }
                }
            }
            page.fill(0);
            let code = emulator.call(name, arguments);
            assert!(code < 1000 && code != 999, "round {round} step {step}: {name}{arguments:x?} gave {code}");
            codes.entry(name).or_insert_with(std::collections::BTreeSet::new).insert(code);
        }
        // Leave no capture and no strange context behind.
        for object in &objects {
            page.fill(0);
            emulator.call("cuStreamEndCapture", [*object, page_at, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        loop {
            match emulator.create("cuCtxPopCurrent_v2", &[]) {
                0 => break,
                context => emulator.call("cuCtxDestroy_v2", [context, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            };
        }
    }
    let untouched: Vec<_> = ENTRY_POINTS.iter().filter(|(name, _)| !codes.contains_key(name)).collect();
    assert!(untouched.is_empty(), "{untouched:?}");
    let never_refused = codes.iter().filter(|(_, codes)| codes.iter().all(|code| *code == 0));
    println!("never refused: {:?}", never_refused.map(|(name, _)| *name).collect::<Vec<_>>());
}
