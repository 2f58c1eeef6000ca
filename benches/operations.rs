//! Every operation by criterion, which keeps the run before and says what became slower; without a GPU, what the emulator counts.
//!
//! Cases, their work and their tensors are those of `lookback bench`, which makes the records: see `benches/README.md`. Times are
//! those of CUDA events. The share of the floor is by the copy and the products that this run measured first, whichever takes
//! longer: a slow card or a shared one does not pass for a slow kernel.

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use lookback_bench::{Case, Ceilings, Counts, Facts, Scale, Work, cases, ceilings};
use lookback_device::{DeviceInfo, Error, cudarc::driver::sys::CUevent_flags};
use lookback_suite::device;
use std::time::Duration;

fn main() {
    let info = device::info();
    println!("device: {}", info.name);
    if info.emulated {
        println!("emulated: counters, no times");
        let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
        let all = ceilings(&info, Scale::Small).chain(cases(&info, Scale::Small));
        all.filter(|case| case.facts.name.contains(&wanted)).for_each(count);
        return;
    }
    // Some hundred cases, in minutes.
    let (before, during) = (Duration::from_millis(500), Duration::from_millis(1500));
    let criterion = Criterion::default().warm_up_time(before).measurement_time(during).sample_size(30);
    time(&info, &mut criterion.configure_from_args());
}

/// A case with its tensors; `None`, and said so, where this device is too small or too old for it.
fn made(case: Case, sets: usize) -> Option<Work> {
    let name = case.facts.name.clone();
    match case.make(&device::stream(), sets) {
        Ok(work) => Some(work),
        Err(error @ (Error::OutOfMemory { .. } | Error::Arch { .. } | Error::NoKernel { .. })) => {
            println!("{name:<64} not run: {error}");
            None
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

/// Counters instead of a time: the interpreter's speed says nothing about a GPU's.
fn count(case: Case) {
    let Some(mut work) = made(case, 1) else { return };
    let counts = Counts::of(&mut work).expect("good launches").expect("the emulator counts");
    let Facts { name, bytes, flops, .. } = &work.facts;
    let products = match *flops {
        0 => String::new(),
        flops => format!(", products {:.3} of it", counts.number("tensor_flops") as f64 / flops as f64),
    };
    println!(
        "{name:<64} {:>9} warp instructions, unique bytes {:.3} of the floor{products}, sectors {:.3} of ideal, {} bank conflicts",
        counts.number("warp_instructions"),
        counts.unique_bytes() as f64 / *bytes as f64,
        counts.sector_ratio(),
        counts.number("bank_conflicts"),
    );
}

/// Ceilings first, which are not filtered out: all others are compared with them.
fn time(info: &DeviceInfo, criterion: &mut Criterion) {
    let mut rates = Ceilings { copy: f64::INFINITY, read: f64::INFINITY, products: f64::INFINITY };
    let mut group = criterion.benchmark_group("operations");
    for case in ceilings(info, Scale::Full) {
        let Some(mut work) = made(case, 1) else { continue };
        let Some(seconds) = median(&mut group, &mut work) else { continue };
        let Facts { operation, bytes, flops, .. } = work.facts;
        match operation {
            "copy" => rates.copy = bytes as f64 / seconds,
            "products" => rates.products = flops as f64 / seconds,
            _ => rates.read = bytes as f64 / seconds,
        }
    }
    for case in cases(info, Scale::Full) {
        let sets = case.facts.sets();
        let Some(mut work) = made(case, sets) else { continue };
        let Some(seconds) = median(&mut group, &mut work) else { continue };
        let Facts { name, bytes, flops, .. } = &work.facts;
        println!(
            "{name:<64} {:>9.1} us  {:>7.1} GB/s  {:>6.1} TFLOP/s  {:>5.1} % of the floor",
            seconds * 1e6,
            *bytes as f64 / seconds / 1e9,
            *flops as f64 / seconds / 1e12,
            100.0 * rates.floor(*bytes, *flops) / seconds
        );
    }
    group.finish();
}

/// Seconds of a launch; `None` where the filter leaves it out.
fn median(group: &mut BenchmarkGroup<'_, WallTime>, work: &mut Work) -> Option<f64> {
    let stream = device::stream();
    let mut samples = Vec::new();
    group.throughput(Throughput::Bytes(work.facts.bytes));
    let name = work.facts.name.clone();
    group.bench_function(&name, |bencher| {
        bencher.iter_custom(|iterations| {
            let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("event");
            let (start, end) = (event(), event());
            start.record(&stream).expect("record");
            for i in 0..iterations {
                work.launch(i as usize).expect("launch");
            }
            end.record(&stream).expect("record");
            let seconds = f64::from(start.elapsed_ms(&end).expect("elapsed")) / 1e3;
            samples.push(seconds / iterations.max(1) as f64);
            Duration::from_secs_f64(seconds)
        });
    });
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
