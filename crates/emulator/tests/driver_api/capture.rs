use crate::support::{code, kernel, own_context};
use cudarc::driver::sys::{
    self, CUgraphInstantiate_flags as Flags, CUresult, CUstreamCaptureMode as Mode, CUstreamCaptureStatus as Status,
};
use cudarc::driver::{CudaContext, CudaStream, LaunchConfig, PushKernelArg, result};
use std::sync::Arc;

const ONE: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
const MODE: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// A stream in a context of its own, without cudarc's event tracking, which capture does not allow.
fn stream() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = own_context();
    // SAFETY: every test uses its slices in the order of one stream, or joins streams itself.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (context, stream)
}

#[test]
fn a_graph_replays_copies_fills_and_kernels() {
    let (context, stream) = stream();
    let count = kernel(&context, "count");
    let mut data = stream.clone_htod(&[5_u32, 6]).unwrap();
    let mut copy = stream.alloc_zeros::<u32>(2).unwrap();
    stream.begin_capture(MODE).unwrap();
    assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let mut pointer = 0_u64;
    {
        let mut launch = stream.launch_builder(&count);
        let (at, _guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut data, &stream);
        pointer = pointer.max(at);
        launch.arg(&pointer);
        // SAFETY: the kernel changes the first element of a slice that outlives the graph.
        unsafe { launch.launch(ONE) }.unwrap();
    }
    // The argument was copied: what becomes of the variable does not matter.
    pointer = 0;
    assert_eq!(pointer, 0);
    stream.memcpy_dtod(&data, &mut copy).unwrap();
    stream.memset_zeros(&mut data.slice_mut(1..2)).unwrap();
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [5, 6], "nothing ran while capturing");
    let mut kinds = vec![];
    let mut nodes = [std::ptr::null_mut(); 8];
    let mut number = nodes.len();
    // SAFETY: the arrays have the stated sizes.
    unsafe {
        let listed = sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &raw mut number);
        assert_eq!(listed, CUresult::CUDA_SUCCESS);
        for node in &nodes[..number] {
            let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            assert_eq!(sys::cuGraphNodeGetType(*node, &raw mut kind), CUresult::CUDA_SUCCESS);
            kinds.push(kind);
        }
    }
    use sys::CUgraphNodeType as Node;
    assert_eq!(
        kinds,
        [Node::CU_GRAPH_NODE_TYPE_KERNEL, Node::CU_GRAPH_NODE_TYPE_MEMCPY, Node::CU_GRAPH_NODE_TYPE_MEMSET]
    );
    graph.upload().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&copy).unwrap(), [12, 6]);
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [12, 0]);
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&copy).unwrap(), [19, 0]);
    drop(graph);
    context.check_err().unwrap();
}

#[test]
fn a_second_stream_joins_through_events() {
    let (context, stream) = stream();
    let other = context.new_stream().unwrap();
    let mut a = stream.clone_htod(&[1_u8; 4]).unwrap();
    let mut b = stream.clone_htod(&[2_u8; 4]).unwrap();
    let fork = context.new_event(None).unwrap();
    let join = context.new_event(None).unwrap();
    stream.begin_capture(MODE).unwrap();
    stream.memset_zeros(&mut a).unwrap();
    fork.record(&stream).unwrap();
    other.wait(&fork).unwrap();
    assert_eq!(other.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    other.memcpy_dtod(&a, &mut b).unwrap();
    join.record(&other).unwrap();
    stream.wait(&join).unwrap();
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    assert_eq!(other.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&b).unwrap(), [0; 4]);
    // An event of the capture means nothing outside.
    assert_eq!(code(stream.wait(&join)), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    join.record(&other).unwrap();
    stream.wait(&join).unwrap();
}

#[test]
fn work_that_does_not_lead_back_is_an_error() {
    let (context, stream) = stream();
    let other = context.new_stream().unwrap();
    let mut a = stream.clone_htod(&[1_u8; 4]).unwrap();
    let fork = context.new_event(None).unwrap();
    stream.begin_capture(MODE).unwrap();
    fork.record(&stream).unwrap();
    other.wait(&fork).unwrap();
    other.memset_zeros(&mut a).unwrap();
    // SAFETY: the stream lives.
    let ended = unsafe { result::stream::end_capture(other.cu_stream()) };
    assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    assert_eq!(code(stream.end_capture(Flags(0))), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    stream.begin_capture(MODE).unwrap();
    fork.record(&stream).unwrap();
    other.wait(&fork).unwrap();
    other.memset_zeros(&mut a).unwrap();
    assert_eq!(code(stream.end_capture(Flags(0))), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    other.memset_zeros(&mut a).unwrap();
    assert_eq!(stream.clone_dtoh(&a).unwrap(), [0; 4]);
}

#[test]
fn what_needs_finished_work_ends_a_capture() {
    let (context, stream) = stream();
    let outside = context.new_event(None).unwrap();
    outside.record(&stream).unwrap();
    let inside = context.new_event(None).unwrap();
    let never = context.new_event(None).unwrap();
    type Forbidden<'a> = (&'a str, CUresult, Box<dyn Fn() -> CUresult + 'a>);
    let forbidden: Vec<Forbidden> = vec![
        ("synchronize", CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, Box::new(|| code(stream.synchronize()))),
        ("context", CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, Box::new(|| code(context.synchronize()))),
        ("allocation", CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, Box::new(|| code(stream.alloc_zeros::<u8>(1)))),
        (
            "malloc",
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            Box::new(|| {
                // SAFETY: the pointer is not used.
                code(unsafe { result::malloc_sync(1) })
            }),
        ),
        ("outside event", CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION, Box::new(|| code(stream.wait(&outside)))),
        (
            "inside event",
            CUresult::CUDA_ERROR_CAPTURED_EVENT,
            Box::new(|| {
                inside.record(&stream).unwrap();
                code(inside.synchronize())
            }),
        ),
        (
            "query",
            CUresult::CUDA_ERROR_CAPTURED_EVENT,
            Box::new(|| {
                inside.record(&stream).unwrap();
                code(inside.try_is_complete())
            }),
        ),
    ];
    for (what, expected, call) in forbidden {
        stream.begin_capture(MODE).unwrap();
        stream.wait(&never).unwrap();
        assert_eq!(call(), expected, "{what}");
        let status = stream.capture_status().unwrap();
        assert_eq!(status, Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED, "{what}");
        let ended = code(stream.end_capture(Flags(0)));
        assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{what}");
    }
    assert_eq!(code(stream.end_capture(Flags(0))), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    let default = context.default_stream();
    assert_eq!(code(default.begin_capture(MODE)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

#[test]
fn the_legacy_stream_stays_out() {
    let (context, _) = stream();
    let default = context.default_stream();
    let mut data = default.clone_htod(&[1_u8]).unwrap();
    let blocking = context.per_thread_stream();
    blocking.begin_capture(MODE).unwrap();
    assert_eq!(code(default.memset_zeros(&mut data)), CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    assert_eq!(code(blocking.end_capture(Flags(0))), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn flags_and_updates() {
    let (_context, stream) = stream();
    let mut data = stream.clone_htod(&[1_u8; 8]).unwrap();
    let both =
        Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | Flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    stream.begin_capture(MODE).unwrap();
    assert_eq!(code(stream.end_capture(both)), CUresult::CUDA_ERROR_INVALID_VALUE);
    stream.begin_capture(MODE).unwrap();
    stream.memset_zeros(&mut data.slice_mut(..2)).unwrap();
    let first = stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap();
    stream.begin_capture(MODE).unwrap();
    stream.memset_zeros(&mut data.slice_mut(6..)).unwrap();
    let second = stream.end_capture(Flags(0)).unwrap().unwrap();
    stream.begin_capture(MODE).unwrap();
    let third = stream.end_capture(Flags(0)).unwrap().unwrap();
    let mut info = sys::CUgraphExecUpdateResultInfo {
        result: sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR,
        errorNode: std::ptr::null_mut(),
        errorFromNode: std::ptr::null_mut(),
    };
    // SAFETY: both graphs live and the record is valid for the write.
    unsafe {
        let updated = sys::cuGraphExecUpdate_v2(first.cu_graph_exec(), second.cu_graph(), &raw mut info);
        assert_eq!(updated, CUresult::CUDA_SUCCESS);
        assert_eq!(info.result, sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS);
        let refused = sys::cuGraphExecUpdate_v2(first.cu_graph_exec(), third.cu_graph(), &raw mut info);
        assert_eq!(refused, CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        assert_eq!(info.result, sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
    }
    first.launch().unwrap();
    third.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [1, 1, 1, 1, 1, 1, 0, 0]);
}
