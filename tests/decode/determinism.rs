//! The same bits every time: run after run, whatever the order of blocks, beside other plans, and replayed from a graph.

use super::case::{Case, Computed, Data, Kind, On, Tables};
use cudarc::driver::{CudaSlice, DevicePtrMut, sys};
use half::bf16;
use lookback_decode::{Outputs, RawInputs, RawLengths, RawMemory, RawOutputs, Workspace};
use lookback_device::Element;
use lookback_suite::{
    buffer::{download, upload},
    counters::Switch,
    device,
};

fn bits(got: &Computed) -> Vec<u64> {
    got.o.iter().chain(&got.lse).map(|v| v.to_bits()).collect()
}

/// Every row in several blocks.
fn split() -> Case {
    Case { kind: Kind::Paged(16), query_len: 2, ..Case::new(&[400, 64, 0, 190]) }.slots(9).min_tiles(1)
}

#[test]
fn lean_decode_a_hundred_runs_in_any_order_give_the_same_bits() {
    let case = split();
    let tables = Tables::new(&case);
    let mut on = On::<bf16>::new(&case, &tables, &Data::new::<bf16>(&case, &tables));
    let first = bits(&on.run());
    for run in 0..100 {
        let order = match run % 3 {
            0 => "inorder".into(),
            1 => "reversed".into(),
            _ => format!("random:{run}"),
        };
        let _order = Switch::set("order", &order, "inorder");
        let _residency = Switch::set("residency", ["1", "2", "5", "auto"][run % 4], "auto");
        assert_eq!(bits(&on.attend()), first, "run {run}, {order}");
    }
}

#[test]
fn lean_decode_plans_share_a_workspace() {
    let small = Case::new(&[130, 20]).slots(4).min_tiles(1);
    let large = Case { head_dim: 128, value_dim: 128, query_len: 9, ..split() }.slots(30);
    let mut plans: Vec<On<bf16>> = [&small, &large]
        .into_iter()
        .map(|case| {
            let tables = Tables::new(case);
            On::new(case, &tables, &Data::new::<bf16>(case, &tables))
        })
        .collect();
    let alone: Vec<Vec<u64>> = plans.iter_mut().map(|on| bits(&on.run())).collect();
    let bytes = plans.iter().map(|on| on.plan.workspace_bytes()).max().unwrap_or(0);
    let mut shared = Workspace::new(&device::stream(), bytes).expect("memory");
    for at in [0, 1, 0, 1, 1, 0] {
        std::mem::swap(&mut plans[at].workspace, &mut shared);
        assert_eq!(bits(&plans[at].run()), alone[at]);
        std::mem::swap(&mut plans[at].workspace, &mut shared);
    }
}

#[test]
fn lean_decode_layers_of_other_widths_share_a_schedule() {
    let tables = Tables::new(&split());
    let other = Case { head_dim: 128, value_dim: 32, softcap: Some(2.0), ..split() };
    let mut on = On::<bf16>::new(&split(), &tables, &Data::new::<bf16>(&split(), &tables));
    let data = Data::new::<bf16>(&other, &tables);
    let mut layer = On::<bf16>::new(&other, &tables, &data);
    on.schedule();
    std::mem::swap(&mut on.schedule, &mut layer.schedule);
    other.compare(&layer.attend(), &data.oracle(&other, &tables));
}

/// Two launches without the host, whose lengths grow from one replay to the next.
#[test]
fn lean_decode_replays_from_a_graph_as_lengths_change() {
    let case = Case { kind: Kind::Dense(300), ..Case::new(&[1, 1, 1]) }.slots(5).min_tiles(1);
    let tables = Tables::new(&case);
    let plan = case.plan(&tables);
    let stream = device::context().new_stream().expect("a stream");
    let zeros = |n: usize| upload(&vec![bf16::ZERO; n]);
    let cache = 3 * 300 * case.key_heads * 64;
    let rows = 3 * case.heads;
    let (mut q, mut k, mut v, mut o) = (zeros(rows * 64), zeros(cache), zeros(cache), zeros(rows * 64));
    let mut kv_len = upload(&[0_i32; 3]);
    let mut memory = [plan.schedule_bytes(), plan.workspace_bytes()]
        .map(|bytes| stream.alloc_zeros::<u8>(bytes as usize).expect("memory"));
    let address = |slice: &mut CudaSlice<bf16>| slice.device_ptr_mut(&stream).0;
    let lengths = RawLengths { kv_len: kv_len.device_ptr_mut(&stream).0, ..RawLengths::default() };
    let inputs =
        RawInputs { q: address(&mut q), k: address(&mut k), v: address(&mut v), lengths, ..RawInputs::default() };
    let outputs = RawOutputs { o: address(&mut o), ..RawOutputs::default() };
    let [schedule, workspace] = &mut memory;
    let [schedule, workspace] = [schedule, workspace]
        .map(|slice| RawMemory { bytes: slice.len() as u64, address: slice.device_ptr_mut(&stream).0 });
    stream.synchronize().expect("idle");
    let launch = || {
        // SAFETY: the buffers have the plan's extents and outlive the stream's work; both memories are fresh and zero, and the schedule
        // is the one that the launch before it makes.
        unsafe {
            plan.schedule_raw(&stream, &lengths, schedule).unwrap_or_else(|e| panic!("{e}"));
            plan.run_raw(&stream, &inputs, &outputs, schedule, workspace).unwrap_or_else(|e| panic!("{e}"));
        }
    };
    // The first run loads the kernels, which a capture does not allow.
    launch();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    launch();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("captured").expect("a graph");
    for (seed, keys) in [[1, 1, 1], [64, 0, 300], [65, 299, 2], [0, 0, 0], [300, 300, 300]].into_iter().enumerate() {
        let case = Case { keys: keys.to_vec(), seed: seed as u64, ..case.clone() };
        let tables = Tables::new(&case);
        let data = Data::new::<bf16>(&case, &tables);
        let round = |v: &[f64]| v.iter().map(|v| <bf16 as Element>::from_f64(*v)).collect::<Vec<_>>();
        stream.memcpy_htod(&round(&data.q), &mut q).expect("copy");
        stream.memcpy_htod(&round(&data.k), &mut k).expect("copy");
        stream.memcpy_htod(&round(&data.v), &mut v).expect("copy");
        stream.memcpy_htod(&tables.kv_len, &mut kv_len).expect("copy");
        graph.launch().expect("replayed");
        stream.synchronize().expect("done");
        let got: Vec<f64> = download(&o).into_iter().map(Element::to_f64).collect();
        let alone = On::<bf16>::new(&case, &tables, &data).run();
        assert_eq!(got, alone.o, "replay {seed}");
        case.compare(&alone, &data.oracle(&case, &tables));
    }
}

/// A run alone, without `lse`, writes the same outputs.
#[test]
fn lean_decode_writes_only_what_is_asked_for() {
    let case = split();
    let tables = Tables::new(&case);
    let mut on = On::<bf16>::new(&case, &tables, &Data::new::<bf16>(&case, &tables));
    let want = on.run().o;
    let mut o = upload(&vec![bf16::ZERO; want.len()]);
    let mut workspace = Workspace::new(&device::stream(), on.plan.workspace_bytes()).expect("memory");
    let outputs = Outputs::of(&mut o);
    on.plan.run(&device::stream(), &on.inputs(), outputs, &on.schedule, &mut workspace).expect("good");
    device::finish();
    let got: Vec<f64> = download(&o).into_iter().map(Element::to_f64).collect();
    assert_eq!(got, want);
}
