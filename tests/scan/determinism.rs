//! The same bits whatever the order of tiles, how many are resident, and how far they look back.

use super::case::{Case, Data, backward, backward_in, forward, forward_in};
use cudarc::driver::{CudaSlice, DevicePtrMut, sys};
use lookback_device::DType;
use lookback_scan::{BackwardPlan, Plan, RawInputs, RawOutputs, RawWorkspace, Source, Workspace};
use lookback_suite::{
    buffer::{download, upload_as},
    counters::Switch,
    device,
};

/// Calls `run` under several schedules of the emulator; once on a GPU.
fn under_schedules(mut run: impl FnMut(&str)) {
    run("as it comes");
    if !device::info().emulated {
        return;
    }
    let schedules = [("inorder", "1"), ("reversed", "3"), ("reversed", "64"), ("random:1", "5"), ("random:2", "64")];
    for (order, residency) in schedules {
        let _order = Switch::set("order", order, "inorder");
        let _residency = Switch::set("residency", residency, "auto");
        run(&format!("{order}, {residency} resident"));
    }
}

#[test]
fn gated_scan_same_bits_under_every_schedule() {
    for source in [Source::Tensor, Source::Channel { log: true }] {
        let case = Case { split: 64, flags_every: 150, ..Case::new(source, DType::F32, 1, 128 * 9, 128) };
        let data = Data::new::<f32>(&case);
        let first = forward::<f32>(&case, &data);
        let first_back = backward::<f32>(&case, &data, &first.h);
        under_schedules(|schedule| {
            for deterministic in [false, true] {
                let case = Case { deterministic, ..case.clone() };
                assert_eq!(forward::<f32>(&case, &data), first, "{source:?}, {schedule}");
                assert_eq!(backward::<f32>(&case, &data, &first.h), first_back, "{source:?}, {schedule}");
            }
        });
    }
}

#[test]
fn gated_scan_one_workspace_serves_many_launches_and_shapes() {
    let cases = [(300, 64, 64), (700, 6, 2), (300, 65, 0), (1000, 8, 8), (300, 64, 64)]
        .map(|(t, d, split)| Case { split, ..Case::new(Source::Tensor, DType::F32, 1, t, d) });
    let plan = |case: &Case| Plan::new(&case.shape(), &case.options(), &device::info()).expect("good");
    let back = |case: &Case| BackwardPlan::new(&case.shape(), &case.options(), &device::info()).expect("good");
    let bytes = cases.iter().map(|c| plan(c).workspace_bytes().max(back(c).workspace_bytes())).max().expect("one");
    let mut workspace = Workspace::new(&device::stream(), bytes).expect("memory");
    for _ in 0..2 {
        for case in &cases {
            let data = Data::new::<f32>(case);
            let alone = forward::<f32>(case, &data);
            assert_eq!(forward_in::<f32>(case, &data, &plan(case), &mut workspace), alone, "{}", case.name());
            let shared = backward_in::<f32>(case, &data, &alone.h, &back(case), &mut workspace);
            assert_eq!(shared, backward::<f32>(case, &data, &alone.h), "{}", case.name());
        }
    }
}

/// A graph launches without the host: flags and tickets of one replay must be stale for the next by themselves.
#[test]
fn gated_scan_replays_from_a_graph() {
    let case = Case { split: 16, ..Case::new(Source::Tensor, DType::F32, 1, 700, 32) };
    let plan = Plan::new(&case.shape(), &case.options(), &device::info()).expect("good");
    let stream = device::context().new_stream().expect("a stream");
    let n = 700 * 32;
    let (a, b) = (upload_as::<f32>(&vec![0.0; n]), upload_as::<f32>(&vec![0.0; n]));
    let (mut a, mut b, mut h) = (a, b, upload_as::<f32>(&vec![0.0; n]));
    let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes() as usize).expect("memory");
    let address = |slice: &mut CudaSlice<f32>| slice.device_ptr_mut(&stream).0;
    let inputs = RawInputs { a: address(&mut a), b: address(&mut b), ..RawInputs::default() };
    let outputs = RawOutputs { h: address(&mut h), last: 0 };
    let workspace = RawWorkspace { address: workspace.device_ptr_mut(&stream).0, bytes: plan.workspace_bytes() };
    stream.synchronize().expect("idle");
    // SAFETY: the buffers have the plan's extents and outlive the stream's work; the workspace is fresh and zero.
    let run = || unsafe { plan.run_raw(&stream, &inputs, &outputs, workspace) }.unwrap_or_else(|e| panic!("{e}"));
    // The first run loads the kernel, which a capture does not allow.
    run();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    run();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("captured").expect("a graph");
    for seed in 0..3 {
        let data = Data { initial: None, ..Data::new::<f32>(&Case { seed, ..case.clone() }) };
        let round = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
        stream.memcpy_htod(&round(&data.a), &mut a).expect("copy");
        stream.memcpy_htod(&round(&data.b), &mut b).expect("copy");
        graph.launch().expect("replayed");
        stream.synchronize().expect("done");
        let got: Vec<f64> = download(&h).into_iter().map(f64::from).collect();
        assert_eq!(got, forward::<f32>(&case, &data).h, "replay {seed}");
    }
}
