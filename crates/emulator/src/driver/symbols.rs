//! Names to addresses: `cuGetProcAddress`, by which programs ask for a function in the version that they know.

use super::api::{api, api_early};
use super::args::{Out, Text};
use super::errors::{CUresult, Outcome};
use super::report;
use super::stubs;
use super::{
    capture, context, copies, device, errors, event, function, graph, host, launch, memory, module, occupancy, pointer,
    pool, profiler, stream,
};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// `CUdriverProcAddressQueryResult`
const FOUND: u32 = 0;
const UNKNOWN: u32 = 1;
const TOO_OLD: u32 = 2;

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`
const PER_THREAD: u64 = 2;

/// Which symbol a plain name means from which version on, where it is not simply the one with the highest number.
const VERSIONS: [(&str, i32, &str); 26] = [
    ("cuCtxCreate", 3020, "cuCtxCreate_v2"),
    ("cuCtxCreate", 11_040, "cuCtxCreate_v3"),
    ("cuCtxCreate", 12_050, "cuCtxCreate_v4"),
    ("cuCtxGetDevice", 2000, "cuCtxGetDevice"),
    ("cuCtxGetDevice", 13_000, "cuCtxGetDevice_v2"),
    ("cuCtxSynchronize", 2000, "cuCtxSynchronize"),
    ("cuCtxSynchronize", 13_000, "cuCtxSynchronize_v2"),
    ("cuDeviceGetUuid", 9020, "cuDeviceGetUuid"),
    ("cuDeviceGetUuid", 11_040, "cuDeviceGetUuid_v2"),
    ("cuEventElapsedTime", 2000, "cuEventElapsedTime"),
    ("cuEventElapsedTime", 12_080, "cuEventElapsedTime_v2"),
    ("cuEventRecord", 2000, "cuEventRecord"),
    ("cuGetProcAddress", 11_030, "cuGetProcAddress"),
    ("cuGetProcAddress", 12_000, "cuGetProcAddress_v2"),
    ("cuGraphExecUpdate", 10_020, "cuGraphExecUpdate"),
    ("cuGraphExecUpdate", 12_000, "cuGraphExecUpdate_v2"),
    ("cuGraphInstantiate", 11_000, "cuGraphInstantiate_v2"),
    ("cuGraphInstantiate", 12_000, "cuGraphInstantiateWithFlags"),
    ("cuMemAdvise", 8000, "cuMemAdvise"),
    ("cuMemAdvise", 12_020, "cuMemAdvise_v2"),
    ("cuMemPrefetchAsync", 8000, "cuMemPrefetchAsync"),
    ("cuMemPrefetchAsync", 12_020, "cuMemPrefetchAsync_v2"),
    ("cuStreamGetCaptureInfo", 10_010, "cuStreamGetCaptureInfo"),
    ("cuStreamGetCaptureInfo", 11_030, "cuStreamGetCaptureInfo_v2"),
    ("cuStreamGetCaptureInfo", 12_030, "cuStreamGetCaptureInfo_v3"),
    ("cuStreamGetCtx", 9020, "cuStreamGetCtx"),
];

/// An exported function.
struct Address(*const ());

// SAFETY: the address of a function, which is never read through.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

macro_rules! symbols {
    ($($file:ident: $($name:ident)*;)*) => {
        vec![$($((stringify!($name), $file::$name as *const ())),*),*]
    };
}

static SYMBOLS: LazyLock<BTreeMap<&'static str, Address>> = LazyLock::new(|| {
    let own = vec![
        ("cuGetProcAddress", cuGetProcAddress as *const ()),
        ("cuGetProcAddress_v2", cuGetProcAddress_v2 as *const ()),
        ("cuGetExportTable", cuGetExportTable as *const ()),
    ];
    own.into_iter().chain(emulated()).chain(stubs::table()).map(|(name, address)| (name, Address(address))).collect()
});

/// Where the function of that name is, for a program built against `version`.
fn find(name: &str, version: i32) -> Result<*const (), u32> {
    let mut of_name = VERSIONS.iter().filter(|(plain, _, _)| *plain == name).peekable();
    if of_name.peek().is_some() {
        let symbol = of_name.rfind(|(_, since, _)| *since <= version);
        let symbol = symbol.ok_or(TOO_OLD)?.2;
        return SYMBOLS.get(symbol).map(|address| address.0).ok_or(UNKNOWN);
    }
    ["_v4", "_v3", "_v2", ""]
        .iter()
        .find_map(|suffix| SYMBOLS.get(format!("{name}{suffix}").as_str()))
        .map(|address| address.0)
        .ok_or(UNKNOWN)
}

fn answer(symbol: Text, address: Out<*const ()>, version: i32, flags: u64, status: Out<u32>) -> Outcome {
    address.wanted()?;
    let name = symbol.string()?;
    if flags & !(PER_THREAD | 1) != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let found = if flags & PER_THREAD != 0 {
        report::note(format!("{name}: there are no per-thread variants; pass stream 2 instead"));
        Err(UNKNOWN)
    } else {
        find(&name, version)
    };
    status.set_if_wanted(found.err().unwrap_or(FOUND));
    address.set(found.unwrap_or(std::ptr::null()))?;
    found.map(drop).map_err(|_| CUresult::NOT_FOUND)
}

api_early! {
    fn cuGetProcAddress(symbol: Text, address: Out<*const ()>, version: i32, flags: u64) {
        answer(symbol, address, version, flags, Out::from_address(0))
    }

    fn cuGetProcAddress_v2(symbol: Text, address: Out<*const ()>, version: i32, flags: u64, status: Out<u32>) {
        answer(symbol, address, version, flags, status)
    }
}

api! {
    fn cuGetExportTable(table: Out<*const ()>, _id: usize) {
        // Undocumented interfaces between NVIDIA's own libraries; there are none here.
        table.set(std::ptr::null())?;
        Err(CUresult::NOT_FOUND)
    }
}

fn emulated() -> Vec<(&'static str, *const ())> {
    symbols! {
        capture: cuStreamBeginCapture_v2 cuStreamEndCapture cuStreamIsCapturing cuStreamGetCaptureInfo
            cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v3 cuThreadExchangeStreamCaptureMode;
        context: cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
            cuDevicePrimaryCtxGetState cuDevicePrimaryCtxSetFlags_v2 cuCtxCreate_v2 cuCtxCreate_v3
            cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxPushCurrent_v2
            cuCtxPopCurrent_v2 cuCtxSynchronize cuCtxSynchronize_v2 cuCtxGetDevice cuCtxGetDevice_v2
            cuCtxGetFlags cuCtxSetFlags cuCtxGetId cuCtxGetApiVersion cuCtxGetLimit cuCtxSetLimit
            cuCtxGetCacheConfig cuCtxSetCacheConfig cuCtxGetSharedMemConfig cuCtxSetSharedMemConfig
            cuCtxGetStreamPriorityRange cuCtxResetPersistingL2Cache cuCtxEnablePeerAccess cuCtxDisablePeerAccess;
        copies: cuMemcpy cuMemcpyAsync cuMemcpyHtoD_v2 cuMemcpyHtoDAsync_v2 cuMemcpyDtoH_v2 cuMemcpyDtoHAsync_v2
            cuMemcpyDtoD_v2 cuMemcpyDtoDAsync_v2 cuMemcpyPeer cuMemcpyPeerAsync cuMemsetD8_v2 cuMemsetD8Async
            cuMemsetD16_v2 cuMemsetD16Async cuMemsetD32_v2 cuMemsetD32Async cuMemsetD2D8_v2 cuMemsetD2D8Async
            cuMemsetD2D16_v2 cuMemsetD2D16Async cuMemsetD2D32_v2 cuMemsetD2D32Async;
        device: cuInit cuDriverGetVersion cuDeviceGet cuDeviceGetCount cuDeviceGetName cuDeviceGetUuid
            cuDeviceGetUuid_v2 cuDeviceTotalMem_v2 cuDeviceGetAttribute cuDeviceComputeCapability
            cuDeviceGetProperties cuDeviceGetPCIBusId cuDeviceGetByPCIBusId cuDeviceCanAccessPeer
            cuDeviceGetP2PAttribute;
        errors: cuGetErrorName cuGetErrorString;
        event: cuEventCreate cuEventDestroy_v2 cuEventRecord cuEventRecordWithFlags cuEventQuery
            cuEventSynchronize cuEventElapsedTime cuEventElapsedTime_v2;
        function: cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuFuncSetSharedMemConfig
            cuFuncGetModule cuFuncGetName cuFuncGetParamCount cuFuncGetParamInfo cuFuncIsLoaded cuFuncLoad;
        graph: cuGraphCreate cuGraphClone cuGraphDestroy cuGraphGetNodes cuGraphGetRootNodes cuGraphNodeGetType
            cuGraphInstantiateWithFlags cuGraphInstantiate_v2 cuGraphInstantiateWithParams cuGraphExecGetFlags
            cuGraphExecDestroy cuGraphExecUpdate cuGraphExecUpdate_v2 cuGraphUpload cuGraphLaunch;
        host: cuMemHostAlloc cuMemAllocHost_v2 cuMemFreeHost cuMemHostRegister_v2 cuMemHostUnregister
            cuMemHostGetFlags cuMemHostGetDevicePointer_v2;
        launch: cuLaunchKernel cuLaunchCooperativeKernel cuLaunchKernelEx;
        memory: cuMemGetInfo_v2 cuMemAlloc_v2 cuMemAllocPitch_v2 cuMemFree_v2 cuMemAllocManaged cuMemAllocAsync
            cuMemAllocFromPoolAsync cuMemFreeAsync cuMemGetAddressRange_v2;
        module: cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary cuModuleUnload
            cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleGetFunctionCount cuModuleEnumerateFunctions
            cuModuleGetLoadingMode;
        occupancy: cuOccupancyMaxActiveBlocksPerMultiprocessor
            cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxPotentialBlockSize
            cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyAvailableDynamicSMemPerBlock
            cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialClusterSize;
        pointer: cuPointerGetAttribute cuPointerGetAttributes cuPointerSetAttribute;
        pool: cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceSetMemPool cuMemPoolCreate cuMemPoolDestroy
            cuMemPoolTrimTo cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemPoolSetAccess cuMemPoolGetAccess;
        profiler: cuProfilerStart cuProfilerStop;
        stream: cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamSynchronize cuStreamQuery
            cuStreamWaitEvent cuStreamGetPriority cuStreamGetFlags cuStreamGetId cuStreamGetCtx
            cuStreamGetCtx_v2 cuStreamGetDevice cuLaunchHostFunc cuStreamAddCallback;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_means_the_version_of_the_program() {
        let address = |name: &str| SYMBOLS.get(name).map(|address| address.0);
        for (name, version, symbol) in [
            ("cuMemAlloc", 12_000, "cuMemAlloc_v2"),
            ("cuInit", 12_000, "cuInit"),
            ("cuCtxCreate", 11_000, "cuCtxCreate_v2"),
            ("cuCtxCreate", 13_000, "cuCtxCreate_v4"),
            ("cuGraphInstantiate", 13_000, "cuGraphInstantiateWithFlags"),
            ("cuTexRefSetAddress2D", 12_000, "cuTexRefSetAddress2D_v3"),
            ("cuStreamGetCaptureInfo", 12_000, "cuStreamGetCaptureInfo_v2"),
        ] {
            assert_eq!(find(name, version).ok(), address(symbol), "{name} {version}");
            assert!(address(symbol).is_some(), "{symbol}");
        }
        assert_eq!(find("cuFly", 12_000), Err(UNKNOWN));
        assert_eq!(find("cuCtxCreate", 2000), Err(TOO_OLD));
    }

    #[test]
    fn every_versioned_name_exists() {
        for (_, _, symbol) in VERSIONS {
            assert!(SYMBOLS.contains_key(symbol), "{symbol}");
        }
    }
}
