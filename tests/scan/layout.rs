//! Strides, addresses off the natural alignment, and output on top of input.

use super::case::{Case, Data, SOURCES};
use cudarc::driver::{DevicePtr, DevicePtrMut};
use lookback_device::DType;
use lookback_scan::{
    Gates, Inputs, Outputs, Plan, RawInputs, RawOutputs, RawWorkspace, Shape, Source, Stride, Strides, Workspace,
};
use lookback_suite::{
    buffer::{Guarded, download, upload_as},
    device,
    measure::{Gate, assert_close},
};

#[test]
fn gated_scan_addresses_off_the_natural_alignment() {
    for source in SOURCES {
        let case = Case::new(source, DType::F16, 1, 140, 64);
        Case { shift: 1, split: 32, ..case.clone() }.check();
        Case { shift: 2, split: 32, ..case }.check();
    }
}

/// Runs with strides; `h` comes back as a dense tensor, and its gaps must still be poison.
fn strided(strides: Strides, extents: [usize; 4]) {
    let case = Case { split: 16, ..Case::new(Source::Tensor, DType::F32, 3, 150, 32) };
    let data = Data::new::<f32>(&case);
    let at = |s: Stride, b: usize, t: usize| (b as i64 * s.batch + t as i64 * s.token) as usize;
    // Values that several places share are those of the last writer, so the oracle reads back what was placed.
    let place = |values: &[f64], s: Stride, extent: usize| {
        let mut buffer = vec![f64::NAN; extent];
        for b in 0..3 {
            for t in 0..150 {
                buffer[at(s, b, t)..at(s, b, t) + 32].copy_from_slice(&values[(b * 150 + t) * 32..][..32]);
            }
        }
        buffer
    };
    let take = |buffer: &[f64], s: Stride| -> Vec<f64> {
        (0..3 * 150).flat_map(|n| buffer[at(s, n / 150, n % 150)..][..32].to_vec()).collect()
    };
    let (a, b) = (place(&data.a, strides.a, extents[0]), place(&data.b, strides.b, extents[1]));
    let seen = Data { a: take(&a, strides.a), b: take(&b, strides.b), ..data };
    let want = seen.forward(&case);

    let shape = Shape { strides, ..case.shape() };
    let plan = Plan::new(&shape, &case.options(), &device::info()).unwrap_or_else(|e| panic!("{e}"));
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).expect("memory");
    let (a, b) = (upload_as::<f32>(&a), upload_as::<f32>(&b));
    let initial = upload_as::<f32>(seen.initial.as_ref().expect("states"));
    let mut h = Guarded::<f32>::poisoned(extents[3], 0);
    {
        let mut view = h.view_mut();
        let inputs = Inputs { initial: Some(&initial), ..Inputs::of(Gates::tensor(&a, &b)) };
        let outputs = Outputs { h: &mut view, last: None };
        plan.run(&device::stream(), &inputs, outputs, &mut workspace).unwrap_or_else(|e| panic!("{e}"));
    }
    let h = h.read();
    let what = format!("{strides:?}");
    assert_close(&what, &take(&h, strides.h), &want.h, 32, Gate::F32);
    let written = h.iter().filter(|v| !v.is_nan()).count();
    assert_eq!(written, 3 * 150 * 32, "{what}: gaps are left alone");
}

#[test]
fn gated_scan_strided_tensors() {
    let dense = Stride { batch: 150 * 32, token: 32 };
    let time_major = Stride { batch: 32, token: 96 };
    let columns = Stride { batch: 150 * 96, token: 96 };
    let odd = Stride { batch: 150 * 33 + 1, token: 33 };
    let span = |s: Stride| (2 * s.batch + 149 * s.token) as usize + 32;
    for (a, b, h) in [(time_major, dense, columns), (columns, time_major, time_major), (dense, odd, odd)] {
        let strides = Strides { a, b, h, ..Strides::all(dense) };
        strided(strides, [span(a), span(b), 0, span(h)]);
    }
    // One decay a channel for all rows, and one for all tokens.
    for a in [Stride { batch: 0, token: 32 }, Stride { batch: 32, token: 0 }, Stride { batch: 0, token: 0 }] {
        strided(Strides { a, ..Strides::all(dense) }, [span(a), span(dense), 0, span(dense)]);
    }
}

#[test]
fn gated_scan_output_on_top_of_b() {
    let case = Case { split: 16, ..Case::new(Source::Tensor, DType::F32, 1, 300, 32) };
    let data = Data { initial: None, ..Data::new::<f32>(&case) };
    let plan = Plan::new(&case.shape(), &case.options(), &device::info()).expect("good");
    let stream = device::stream();
    let (a, mut b) = (upload_as::<f32>(&data.a), upload_as::<f32>(&data.b));
    let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes() as usize).expect("memory");
    {
        let (a, _a) = a.device_ptr(&stream);
        let (b, _b) = b.device_ptr_mut(&stream);
        let (address, _workspace) = workspace.device_ptr_mut(&stream);
        let inputs = RawInputs { a, b, ..RawInputs::default() };
        let workspace = RawWorkspace { address, bytes: plan.workspace_bytes() };
        // SAFETY: the buffers have the plan's extents and are held until the launch is queued; the workspace is fresh and zero.
        let done = unsafe { plan.run_raw(&stream, &inputs, &RawOutputs { h: b, last: 0 }, workspace) };
        done.unwrap_or_else(|e| panic!("{e}"));
    }
    let h: Vec<f64> = download(&b).iter().map(|v| f64::from(*v)).collect();
    assert_close("in place", &h, &data.forward(&case).h, 32, Gate::F32);
}
