//! Every operation on a GPU, timed by CUDA events; without one, what the emulator counts for it.
//!
//! The throughput that is printed is the bytes that must move at least over the time, so it compares with the first line, a
//! copy measured in the same run: a slow card or a shared one does not pass for a slow kernel. What is bound by tensor cores
//! compares with the second line, products of registers by the instruction that kernels here use (on Hopper not its fastest). The
//! share of the floor is by whichever of the two takes longer. Tensors of a case are larger than the L2 cache, or rotate over
//! more memory than it holds.

mod attention;
mod decode;
mod linear;
mod nn;
mod products;

use criterion::{Criterion, Throughput};
use half::bf16;
use lookback_device::{
    DeviceInfo, Element,
    cudarc::driver::{CudaSlice, CudaStream, sys::CUevent_flags},
};
use lookback_nn::{Activation, Param, argmax, cross_entropy, embedding, gate, gemm, rms_norm, short_convolution};
use lookback_scan::{
    BackwardInputs, BackwardOutputs, BackwardPlan, GateGradients, Gates, Inputs, Options, Outputs, Plan, Shape, Source,
    Workspace,
};
use lookback_suite::{buffer::upload, counters::Counters, device, random::Random};
use std::{
    iter::once_with,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// Bytes that the rotating inputs of one bench take together: more than three times the L2 cache of an H200.
const ROTATION_BYTES: usize = 200 << 20;
/// Elements after which varied data repeats: a prime, so that rows never begin alike.
const PERIOD: usize = 65_521;

/// One launch of an operation on one of several sets of tensors.
struct Case {
    name: String,
    /// That must move at least.
    bytes: u64,
    /// On tensor cores, at least; 0 where bytes alone are looked at.
    flops: u64,
    sets: usize,
    launch: Box<dyn FnMut(usize)>,
}

fn main() {
    let info = device::info();
    println!("device: {}", info.name);
    // Some seventy cases, in minutes.
    let (before, during) = (Duration::from_millis(500), Duration::from_millis(1500));
    let criterion = Criterion::default().warm_up_time(before).measurement_time(during).sample_size(30);
    let mut criterion = criterion.configure_from_args();
    if info.emulated {
        let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
        let cases = scan_cases(&info, 1, 1024, 256).into_iter().chain(nn_cases(&info, 256, 512));
        let cases = cases.chain(nn::cases(&info, 256, 512)).chain(linear::cases(&info, [1, 512, 2, 128]));
        let cases = cases.chain(attention::small_cases(&info)).chain(decode::small_cases(&info));
        let cases = cases.chain(once_with(|| products::case(&info, 4)));
        cases.filter(|case| case.name.contains(&wanted)).for_each(count);
        return;
    }
    let (batch, tokens, channels) = (8, 4096, 2048);
    let mut ceilings = Ceilings::default();
    ceilings.time(&mut criterion, copy::<f32>(batch * tokens * channels));
    ceilings.time(&mut criterion, products::case(&info, 1 << 14));
    let cases = scan_cases(&info, batch, tokens, channels).into_iter().chain(nn_cases(&info, 8192, 4096));
    let cases = cases.chain(nn::cases(&info, 8192, 4096)).chain(linear::cases(&info, [4, 4096, 64, 128]));
    for case in cases.chain(attention::cases(&info)).chain(decode::cases(&info)) {
        ceilings.time(&mut criterion, case);
    }
}

/// Counters instead of a time: the interpreter's speed says nothing about a GPU's.
fn count(mut case: Case) {
    let counters = Counters::of(|| (case.launch)(0)).expect("the emulator counts");
    let ratio = |path: &str| {
        let ideal = counters.number(&format!("{path}/ideal_sectors")).max(1);
        counters.number(&format!("{path}/sectors")) as f64 / ideal as f64
    };
    let products = match case.flops {
        0 => String::new(),
        flops => format!(", products {:.3} of it", counters.number("tensor_flops") as f64 / flops as f64),
    };
    println!(
        "{:<48} {:>9} warp instructions, unique bytes {:.3} of the floor{products}, sectors {:.3} / {:.3} of ideal, {} bank conflicts",
        case.name,
        counters.number("warp_instructions"),
        counters.unique_bytes() as f64 / case.bytes as f64,
        ratio("global_loads"),
        ratio("global_stores"),
        counters.number("bank_conflicts"),
    );
}

/// The best rates of this run so far, which the first two cases are there for; 0 where they were not wanted.
#[derive(Default)]
struct Ceilings {
    bytes_per_second: f64,
    flops_per_second: f64,
}

impl Ceilings {
    fn time(&mut self, criterion: &mut Criterion, mut case: Case) {
        let stream = device::stream();
        let mut samples = Vec::new();
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
                let seconds = f64::from(start.elapsed_ms(&end).expect("elapsed")) / 1e3;
                samples.push(seconds / iterations.max(1) as f64);
                Duration::from_secs_f64(seconds)
            });
        });
        group.finish();
        samples.sort_by(f64::total_cmp);
        if let Some(seconds) = samples.get(samples.len() / 2) {
            self.report(&case, *seconds);
        }
    }

    /// What the case would take at the best rates, over what it took.
    fn report(&mut self, case: &Case, seconds: f64) {
        let (bytes, flops) = (case.bytes as f64, case.flops as f64);
        match case.name.as_str() {
            "copy" => self.bytes_per_second = bytes / seconds,
            "products bf16" => self.flops_per_second = flops / seconds,
            _ => (),
        }
        let share = |work: f64, rate: f64| if rate > 0.0 { 100.0 * work / rate / seconds } else { 0.0 };
        let (moved, multiplied) = (share(bytes, self.bytes_per_second), share(flops, self.flops_per_second));
        let (gigabytes, teraflops) = (bytes / seconds / 1e9, flops / seconds / 1e12);
        println!(
            "{:<48} {:>9.1} us  {gigabytes:>7.1} GB/s  {teraflops:>6.1} TFLOP/s  {:>5.1} % of the floor ({moved:.1} % of the copy, {multiplied:.1} % of the products)",
            case.name,
            seconds * 1e6,
            moved.max(multiplied),
        );
    }
}

fn scan_cases(info: &DeviceInfo, batch: usize, tokens: usize, channels: usize) -> Vec<Case> {
    let shape = Shape::dense(batch, tokens, channels);
    vec![
        scan::<f32>(info, &shape, "gated_scan f32", Source::Tensor),
        scan::<bf16>(info, &shape, "gated_scan bf16", Source::Tensor),
        scan::<f32>(info, &shape, "cumulative sum f32", Source::Cumsum),
        scan::<bf16>(info, &shape, "gated_ssm_scan bf16", Source::GatedSsm { normalize: true }),
        scan_backward::<bf16>(info, &shape, "gated_scan_backward bf16", Source::Tensor),
        scan_backward::<bf16>(info, &shape, "gated_ssm_backward bf16", Source::GatedSsm { normalize: true }),
    ]
}

fn filled<T: Element>(stream: &Arc<CudaStream>, elements: usize, value: f64) -> CudaSlice<T> {
    stream.clone_htod(&vec![T::from_f64(value); elements]).expect("upload")
}

/// Normal data, or nothing. Seeds begin at different places of the same period.
fn varied<T: Element>(elements: usize, seed: u64) -> CudaSlice<T> {
    static NORMALS: OnceLock<Vec<f64>> = OnceLock::new();
    let normals = NORMALS.get_or_init(|| {
        let mut random = Random::new(1);
        (0..PERIOD).map(|_| random.normal()).collect()
    });
    let (before, after) = normals.split_at(seed as usize * 9973 % PERIOD);
    let some: Vec<T> = after.iter().chain(before).map(|value| T::from_f64(*value)).collect();
    upload(&some.into_iter().cycle().take(elements).collect::<Vec<_>>())
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
        flops: 0,
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
        flops: 0,
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

fn scan_backward<T: Element>(info: &DeviceInfo, shape: &Shape, name: &str, source: Source) -> Case {
    let stream = device::stream();
    let elements = shape.batch * shape.seq_len * shape.channels;
    let plan = BackwardPlan::new(shape, &Options::new::<T>(source, shape), info).expect("a good shape");
    let inputs = [0.5, 0.75, 0.5, 1.0, 0.25].map(|value| filled::<T>(&stream, elements, value));
    let mut outputs = [0; 3].map(|_| filled::<T>(&stream, elements, 0.0));
    let mut workspace = Workspace::new(&stream, plan.workspace_bytes()).expect("workspace");
    let bytes = plan.bytes_moved();
    let launch = move |_| {
        let ([a, b, x, h, dh], [da, db, dx]) = (&inputs, &mut outputs);
        let (gates, gradients) = match source {
            Source::GatedSsm { .. } => {
                (Gates::gated_ssm(a, b, x), GateGradients { a: Some(da), b: Some(db), x: Some(dx), channel: None })
            }
            _ => (
                Gates { a: Some(a), b: None, x: None, channel: None },
                GateGradients { a: Some(da), b: Some(db), x: None, channel: None },
            ),
        };
        let inputs = BackwardInputs { forward: Inputs::of(gates), h, dh, d_last: None };
        let outputs = BackwardOutputs { gates: gradients, d_initial: None };
        plan.run(&stream, &inputs, outputs, &mut workspace).expect("launch");
    };
    Case { name: name.into(), bytes, flops: 0, sets: 1, launch: Box::new(launch) }
}

/// The operations around the scans over `rows` tokens of `width`, in bf16. One set of tensors: together they exceed the cache.
fn nn_cases(info: &DeviceInfo, rows: usize, width: usize) -> Vec<Case> {
    let dtype = bf16::DTYPE;
    let case = |name: &str, bytes, launch: Box<dyn FnMut(usize)>| Case {
        name: format!("{name} bf16"),
        bytes,
        flops: 0,
        sets: 1,
        launch,
    };
    let tensor = |elements, value| filled::<bf16>(&device::stream(), elements, value);
    let (x, y) = (|| tensor(rows * width, 0.5), || tensor(rows * width, 0.0));
    let stream = device::stream;

    let plan =
        gemm::Plan::new(&gemm::Shape::linear(rows, width, width), &gemm::Options::new(dtype), info).expect("good");
    let (a, b, mut c) = (x(), tensor(width * width, 0.25), y());
    let flops = plan.flops();
    let gemm = case(
        "gemm",
        plan.bytes_moved(),
        Box::new(move |_| plan.run(&stream(), &a, &b, Param::None, &mut c).expect("launch")),
    );
    let gemm = Case { flops, ..gemm };

    let options = rms_norm::Options { dtype, eps: 1e-6 };
    let plan = rms_norm::Plan::new(&rms_norm::Shape::dense(rows, width), &options, info).expect("good");
    let (a, w, mut c) = (x(), tensor(width, 1.0), y());
    let launch = move |_| plan.run(&stream(), &a, Param::Same(&w), &mut c, None).expect("launch");
    let norm = case("rms_norm", tensor_bytes(rows, width, 2), Box::new(launch));

    let options = gate::Options { dtype, activation: Activation::Gelu };
    let plan = gate::Plan::new(&gate::Shape::dense(rows, width), &options, info).expect("good");
    let (a, b, mut c) = (x(), x(), y());
    let gated =
        case("gate", plan.bytes_moved(), Box::new(move |_| plan.run(&stream(), &a, &b, &mut c).expect("launch")));

    let options = short_convolution::Options { dtype, activation: Activation::Silu };
    let plan = short_convolution::Plan::new(&short_convolution::Shape::dense(1, rows, width, 4), &options, info)
        .expect("good");
    let (a, w, mut c) = (x(), tensor(width * 4, 0.25), y());
    let launch =
        move |_| plan.run(&stream(), &a, &w, short_convolution::Inputs::default(), &mut c, None).expect("launch");
    let conv = case("short_convolution", tensor_bytes(rows, width, 2), Box::new(launch));

    let shape = embedding::Shape::dense(rows, 1, rows, width);
    let plan = embedding::Plan::new(&shape, &embedding::Options { dtype }, info).expect("good");
    let (table, mut c) = (x(), y());
    let ids = stream().clone_htod(&(0..rows as i32).rev().collect::<Vec<_>>()).expect("upload");
    let launch = move |_| plan.run(&stream(), &table, &ids, &mut c, None).expect("launch");
    let embedded = case("embedding", tensor_bytes(rows, width, 2), Box::new(launch));

    let plan = argmax::Plan::new(&argmax::Shape::dense(rows, width), &argmax::Options { dtype }, info).expect("good");
    let (a, mut found) = (x(), stream().alloc_zeros::<i32>(rows).expect("allocate"));
    let largest =
        case("argmax", plan.bytes_moved(), Box::new(move |_| plan.run(&stream(), &a, &mut found).expect("launch")));

    let options = cross_entropy::Options { dtype, scale: 1.0 };
    let plan = cross_entropy::Plan::new(&cross_entropy::Shape::dense(rows, width), &options, info).expect("good");
    let (a, mut dlogits) = (x(), y());
    let (labels, mut loss) =
        (stream().alloc_zeros(rows).expect("allocate"), stream().alloc_zeros(rows).expect("allocate"));
    let launch = move |_| {
        let outputs = cross_entropy::Outputs { dlogits: Some(&mut dlogits), ..Default::default() };
        plan.run(&stream(), &a, &labels, &mut loss, outputs).expect("launch");
    };
    let entropy = case("cross_entropy", tensor_bytes(rows, width, 2), Box::new(launch));
    vec![gemm, norm, gated, conv, embedded, largest, entropy]
}

/// Bytes of that many dense bf16 tensors: what is small beside them is left out.
fn tensor_bytes(rows: usize, width: usize, tensors: usize) -> u64 {
    (tensors * rows * width * size_of::<bf16>()) as u64
}
