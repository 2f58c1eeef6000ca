//! Time of every operation by CUDA events against the floor of its bytes, on a GPU. Without one, what the emulator counts.
//!
//! Inputs rotate over more memory than the L2 cache holds. The floor is the plan's bytes over the copy bandwidth that this
//! run measures first, so a slow card or a shared one does not pass for a slow kernel.

use criterion::{Criterion, Throughput};
use half::bf16;
use lookback_device::{
    DeviceInfo, Element,
    cudarc::driver::{CudaSlice, CudaStream, sys::CUevent_flags},
};
use lookback_scan::{Gates, Inputs, Options, Outputs, Plan, Shape, Source, Workspace};
use lookback_suite::{counters::Counters, device};
use std::{sync::Arc, time::Duration};

/// Bytes that the rotating inputs of one bench take together: more than three times the L2 cache of an H200.
const ROTATION_BYTES: usize = 200 << 20;

/// One launch of an operation on one of several sets of tensors.
struct Case {
    name: String,
    bytes: u64,
    sets: usize,
    launch: Box<dyn FnMut(usize)>,
}

fn main() {
    let info = device::info();
    println!("device: {}", info.name);
    let mut criterion = Criterion::default().configure_from_args();
    if info.emulated {
        scan_cases(&info, 1, 1024, 256).into_iter().for_each(count);
        return;
    }
    let (batch, tokens, channels) = (8, 4096, 2048);
    time(&mut criterion, copy::<f32>(batch * tokens * channels));
    for case in scan_cases(&info, batch, tokens, channels) {
        time(&mut criterion, case);
    }
}

/// Counters instead of a time: the interpreter's speed says nothing about a GPU's.
fn count(mut case: Case) {
    let counters = Counters::of(|| (case.launch)(0)).expect("the emulator counts");
    let ratio = |path: &str| {
        let ideal = counters.number(&format!("{path}/ideal_sectors")).max(1);
        counters.number(&format!("{path}/sectors")) as f64 / ideal as f64
    };
    println!(
        "{:<32} {:>9} warp instructions, unique bytes {:.3} of the floor, sectors {:.3} / {:.3} of ideal, {} bank conflicts",
        case.name,
        counters.number("warp_instructions"),
        counters.unique_bytes() as f64 / case.bytes as f64,
        ratio("global_loads"),
        ratio("global_stores"),
        counters.number("bank_conflicts"),
    );
}

fn time(criterion: &mut Criterion, mut case: Case) {
    let stream = device::stream();
    let mut group = criterion.benchmark_group("operations");
    group.throughput(Throughput::Bytes(case.bytes));
    group.bench_function(&case.name, |bencher| {
        bencher.iter_custom(|iterations| {
            let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("event");
            let (start, end) = (event(), event());
            start.record(&stream).expect("record");
            for i in 0..iterations {
                (case.launch)(i as usize % case.sets);
            }
            end.record(&stream).expect("record");
            Duration::from_secs_f64(f64::from(start.elapsed_ms(&end).expect("elapsed")) / 1e3)
        });
    });
    group.finish();
}

fn scan_cases(info: &DeviceInfo, batch: usize, tokens: usize, channels: usize) -> Vec<Case> {
    let shape = Shape::dense(batch, tokens, channels);
    vec![
        scan::<f32>(info, &shape, "gated_scan f32", Source::Tensor),
        scan::<bf16>(info, &shape, "gated_scan bf16", Source::Tensor),
        scan::<f32>(info, &shape, "cumulative sum f32", Source::Cumsum),
        scan::<bf16>(info, &shape, "gated_ssm_scan bf16", Source::GatedSsm { normalize: true }),
    ]
}

fn filled<T: Element>(stream: &Arc<CudaStream>, elements: usize, value: f64) -> CudaSlice<T> {
    stream.clone_htod(&vec![T::from_f64(value); elements]).expect("upload")
}

/// The ceiling: a copy of as many bytes as one tensor has.
fn copy<T: Element>(elements: usize) -> Case {
    let stream = device::stream();
    let sets = (ROTATION_BYTES / (2 * elements * size_of::<T>())).max(1);
    let mut pairs: Vec<_> =
        (0..sets).map(|_| (filled::<T>(&stream, elements, 1.0), filled::<T>(&stream, elements, 0.0))).collect();
    Case {
        name: "copy".into(),
        bytes: 2 * (elements * size_of::<T>()) as u64,
        sets,
        launch: Box::new(move |i| {
            let (from, to) = &mut pairs[i];
            stream.memcpy_dtod(from, to).expect("copy");
        }),
    }
}

fn scan<T: Element>(info: &DeviceInfo, shape: &Shape, name: &str, source: Source) -> Case {
    let stream = device::stream();
    let elements = shape.batch * shape.seq_len * shape.channels;
    let plan = Plan::new(shape, &Options::new::<T>(source, shape), info).expect("a good shape");
    let sets = (ROTATION_BYTES / plan.bytes_moved() as usize).max(1);
    let mut tensors: Vec<_> = (0..sets)
        .map(|_| {
            let inputs = [0.5, 1.0, 0.25].map(|value| filled::<T>(&stream, elements, value));
            (inputs, filled::<T>(&stream, elements, 0.0))
        })
        .collect();
    let mut workspace = Workspace::new(&stream, plan.workspace_bytes()).expect("workspace");
    Case {
        name: name.into(),
        bytes: plan.bytes_moved(),
        sets,
        launch: Box::new(move |i| {
            let ([a, b, x], h) = &mut tensors[i];
            let gates = match source {
                Source::Cumsum => Gates::cumsum(b),
                Source::GatedSsm { .. } => Gates::gated_ssm(a, b, x),
                _ => Gates::tensor(a, b),
            };
            plan.run(&stream, &Inputs::of(gates), Outputs { h, last: None }, &mut workspace).expect("launch");
        }),
    }
}
