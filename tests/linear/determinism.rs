//! The same bits whatever the order of blocks, and launches replayed from a graph.

use super::case::{Case, Data, run};
use cudarc::driver::{CudaSlice, DevicePtrMut, sys};
use half::bf16;
use lookback_device::{DType, Element};
use lookback_linear::{Decay, Mode, Path, RawInputs, RawOutputs, RawWorkspace};
use lookback_suite::{
    buffer::{download, upload, upload_as},
    counters::Switch,
    device,
};

fn case(path: Path, seq_len: usize) -> Case {
    let mode = Mode::Bidirectional;
    Case { path, mode, decay: Decay::Scalar, flags_every: 60, ..Case::new(DType::Bf16, 1, seq_len, 32, 64) }
}

#[test]
fn linear_attention_same_bits_under_every_schedule() {
    for (path, seq_len) in [(Path::Recurrent, 40), (Path::Chain, 100), (Path::Parallel, 270)] {
        let case = case(path, seq_len);
        let data = Data::new::<bf16>(&case);
        let first = run::<bf16>(&case, &data);
        if !device::info().emulated {
            assert_eq!(run::<bf16>(&case, &data), first, "{path:?}");
            continue;
        }
        for (order, residency) in [("inorder", "1"), ("reversed", "3"), ("random:1", "5")] {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            assert_eq!(run::<bf16>(&case, &data), first, "{path:?} {order}, {residency} resident");
        }
    }
}

/// Six launches without the host: segments, their states and the walk, for both directions.
#[test]
fn linear_attention_replays_from_a_graph() {
    let case = Case { states: false, flags_every: 0, ..case(Path::Parallel, 270) };
    let plan = case.plan();
    let stream = device::context().new_stream().expect("a stream");
    let rows = 270 * 2;
    let zeros = |n: usize| upload(&vec![bf16::ZERO; n]);
    let (mut q, mut k, mut v, mut o) = (zeros(rows * 32), zeros(rows * 32), zeros(rows * 64), zeros(rows * 64));
    let mut g = upload_as::<f32>(&vec![0.0; rows]);
    let mut scratch = stream.alloc_zeros::<u8>(plan.workspace_bytes() as usize).expect("memory");
    let address = |slice: &mut CudaSlice<bf16>| slice.device_ptr_mut(&stream).0;
    let inputs = RawInputs {
        q: address(&mut q),
        k: address(&mut k),
        v: address(&mut v),
        g: g.device_ptr_mut(&stream).0,
        ..RawInputs::default()
    };
    let outputs = RawOutputs { o: address(&mut o), ..RawOutputs::default() };
    let workspace = RawWorkspace { address: scratch.device_ptr_mut(&stream).0, bytes: plan.workspace_bytes() };
    stream.synchronize().expect("idle");
    // SAFETY: the buffers have the plan's extents and outlive the stream's work.
    let launch = || unsafe { plan.run_raw(&stream, &inputs, &outputs, workspace) }.unwrap_or_else(|e| panic!("{e}"));
    // The first run loads the kernels, which a capture does not allow.
    launch();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    launch();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("captured").expect("a graph");
    for seed in 0..2 {
        let data = Data::new::<bf16>(&Case { seed, ..case.clone() });
        let round = |v: &[f64]| v.iter().map(|v| <bf16 as Element>::from_f64(*v)).collect::<Vec<_>>();
        stream.memcpy_htod(&round(&data.own.q), &mut q).expect("copy");
        stream.memcpy_htod(&round(&data.own.k), &mut k).expect("copy");
        stream.memcpy_htod(&round(&data.v), &mut v).expect("copy");
        let decays: Vec<f32> = data.own.g.iter().map(|g| *g as f32).collect();
        stream.memcpy_htod(&decays, &mut g).expect("copy");
        graph.launch().expect("replayed");
        stream.synchronize().expect("done");
        let got: Vec<f64> = download(&o).into_iter().map(Element::to_f64).collect();
        assert_eq!(got, run::<bf16>(&case, &data).o, "replay {seed}");
    }
}
