//! Appending from a graph: the same launch, whose lengths grow in memory.

use super::append_case::{Case, paged, turn};
use half::bf16;
use lookback_decode::append::{Plan, Raw, Style};
use lookback_device::cudarc::driver::{DevicePtr, DevicePtrMut, sys};
use lookback_suite::{
    buffer::{download, upload, upload_as},
    device,
};

#[test]
fn append_replays_from_a_graph_as_lengths_grow() {
    // One new token of each of three requests, step by step over the borders of their pages.
    let case = |lengths: Vec<i32>| Case {
        tokens: 3,
        kv_len: lengths,
        cu_seqlens: None,
        kv_indptr: vec![0, 2, 4, 6],
        kv_indices: vec![6, 1, 4, 7, 0, 2],
        rotary: turn(Style::Half, 64),
        ..paged()
    };
    let first = case(vec![1, 3, 4]);
    let plan = Plan::new(&first.shape(), &first.options::<bf16>(), &device::info()).unwrap();
    let stream = device::context().new_stream().expect("a stream");
    let rows = first.new_rows::<bf16>(4);
    let [k_new, v_new] = [0, 1].map(|i: usize| upload_as::<bf16>(&rows[i]));
    let mut kv_len = upload(&first.kv_len);
    let (indptr, indices) = (upload(&first.kv_indptr), upload(&first.kv_indices));
    let [mut k, mut v] = [(); 2].map(|()| upload(&vec![bf16::NAN; 8 * 4 * 3 * 64]));
    let raw = Raw {
        k_new: k_new.device_ptr(&stream).0,
        v_new: v_new.device_ptr(&stream).0,
        kv_len: kv_len.device_ptr(&stream).0,
        kv_indptr: indptr.device_ptr(&stream).0,
        kv_indices: indices.device_ptr(&stream).0,
        k: k.device_ptr_mut(&stream).0,
        v: v.device_ptr_mut(&stream).0,
        ..Raw::default()
    };
    stream.synchronize().expect("idle");
    // SAFETY: the buffers have the plan's extents and outlive the stream's work.
    let launch = || unsafe { plan.run_raw(&stream, &raw) }.unwrap_or_else(|e| panic!("{e}"));
    // Once outside of the capture, so that the kernel is loaded.
    launch();
    stream.synchronize().expect("the launch ends");
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    launch();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    let graph = graph.expect("end of capture").expect("a graph");
    for step in 0..4 {
        let case = case(first.kv_len.iter().map(|n| n + step).collect());
        stream.memcpy_htod(&case.kv_len, &mut kv_len).expect("lengths");
        graph.launch().expect("replay");
        stream.synchronize().expect("the replay ends");
        let (want, located) = case.oracle(&rows);
        let (k, v) = (download(&k), download(&v));
        for at in located.iter().map(|l| l.slot.expect("a place") * 3 * 64) {
            for i in at..at + 3 * 64 {
                let near = (f64::from(k[i]) - want.k.values[i]).abs() <= 4e-3 * want.k.values[i].abs() + 1e-5;
                assert!(near && f64::from(v[i]) == want.v.values[i], "step {step}, element {i}");
            }
        }
    }
    // Four steps of three tokens, each where no other is.
    assert_eq!(download(&v).iter().filter(|v| !v.is_nan()).count(), 12 * 3 * 64);
}
