//! The same bits whatever the order of blocks, and launches replayed from a graph.

use super::case::{Case, Data, run};
use cudarc::driver::{CudaSlice, DevicePtrMut, sys};
use half::bf16;
use lookback_attention::{Mask, Output, RawInputs, RawOutputs};
use lookback_device::{DType, Element};
use lookback_suite::{
    buffer::{download, upload, upload_as},
    counters::Switch,
    device,
};

#[test]
fn attention_same_bits_under_every_schedule() {
    let packed = Case::packed(DType::Bf16, &[[150, 100], [0, 9], [70, 130]], 64);
    for case in [
        Case { mask: Mask::Causal, sink: true, ..packed },
        Case { key_heads: 1, output: Output::F32, alibi: true, ..Case::new(DType::Bf16, 2, 140, 100, 192) },
    ] {
        let data = Data::new::<bf16>(&case);
        let first = run::<bf16>(&case, &data).bits();
        if !device::info().emulated {
            (0..10).for_each(|_| assert_eq!(run::<bf16>(&case, &data).bits(), first, "{case:?}"));
            continue;
        }
        for (order, residency, convergence, copies) in [
            ("inorder", "1", "natural", "eager"),
            ("reversed", "3", "random:7", "late"),
            ("random:1", "5", "random:2", "eager"),
        ] {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            let _convergence = Switch::set("convergence", convergence, "natural");
            let _copies = Switch::set("async", copies, "late");
            assert_eq!(
                run::<bf16>(&case, &data).bits(),
                first,
                "{order}, {residency} resident, {convergence}, {copies}"
            );
        }
    }
}

/// A launch without the host, on inputs that change between replays.
#[test]
fn attention_replays_from_a_graph() {
    let case = Case { mask: Mask::Causal, ..Case::new(DType::Bf16, 1, 150, 150, 32) };
    let plan = case.plan();
    let stream = device::context().new_stream().expect("a stream");
    let n = case.rows() * 32;
    let zeros = || upload(&vec![bf16::ZERO; n]);
    let (mut q, mut k, mut v, mut o) = (zeros(), zeros(), zeros(), zeros());
    let mut lse = upload_as::<f32>(&vec![0.0; case.rows()]);
    let address = |slice: &mut CudaSlice<bf16>| slice.device_ptr_mut(&stream).0;
    let inputs = RawInputs { q: address(&mut q), k: address(&mut k), v: address(&mut v), ..RawInputs::default() };
    let outputs = RawOutputs { o: address(&mut o), lse: lse.device_ptr_mut(&stream).0 };
    stream.synchronize().expect("idle");
    // SAFETY: the buffers have the plan's extents and outlive the stream's work.
    let launch = || unsafe { plan.run_raw(&stream, &inputs, &outputs) }.unwrap_or_else(|e| panic!("{e}"));
    // The first run loads the kernel, which a capture does not allow.
    launch();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    launch();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("captured").expect("a graph");
    for seed in 0..2 {
        let data = Data::new::<bf16>(&Case { seed, ..case.clone() });
        let round = |v: &[f64]| v.iter().map(|v| <bf16 as Element>::from_f64(*v)).collect::<Vec<_>>();
        stream.memcpy_htod(&round(&data.q), &mut q).expect("copy");
        stream.memcpy_htod(&round(&data.k), &mut k).expect("copy");
        stream.memcpy_htod(&round(&data.v), &mut v).expect("copy");
        graph.launch().expect("replayed");
        stream.synchronize().expect("done");
        let got: Vec<f64> = download(&o).into_iter().map(Element::to_f64).collect();
        assert_eq!(got, run::<bf16>(&case, &data).o, "replay {seed}");
    }
}
