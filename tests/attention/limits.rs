//! Offsets past 2^31 elements, and positions at the ends of what 32 bits hold.

use super::case::{Case, Computed, Data, run};
use cudarc::driver::{CudaSlice, DevicePtr};
use half::f16;
use lookback_attention::{Mask, Output, Outputs, Plan, RawInputs, RawOutputs, Shape, Stride, Strides};
use lookback_device::{DType, Element};
use lookback_suite::{
    buffer::{Guarded, download, upload},
    device,
    measure::{assert_close, gate},
};

/// Rows `[2,2,2]` of `q`, `k`, `v` and `o` in two allocations, one for each place along `axis`: the step from one to the other is what lies
/// between their addresses.
fn far(axis: usize) -> i64 {
    const DIM: usize = 16;
    let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 2, 2, 2, DIM) };
    let data = Data::new::<f16>(&case);
    // Along the other two axes rows are neighbours; tensors have 64 elements of an allocation each.
    let place = |row: usize| {
        let at = [row / 4, row / 2 % 2, row % 2];
        let [outer, inner] = [0, 1, 2].into_iter().filter(|i| *i != axis).collect::<Vec<_>>()[..] else { panic!() };
        (at[axis], (2 * at[outer] + at[inner]) * DIM)
    };
    let mut host = [vec![f16::NAN; 256], vec![f16::NAN; 256]];
    for (tensor, values) in [&data.q, &data.k, &data.v].into_iter().enumerate() {
        for (row, values) in values.chunks(DIM).enumerate() {
            let (half, at) = place(row);
            let elements = values.iter().map(|v| <f16 as Element>::from_f64(*v)).collect::<Vec<_>>();
            host[half][tensor * 64 + at..][..DIM].copy_from_slice(&elements);
        }
    }
    let stream = device::stream();
    let mut memory = [upload(&[f16::NAN; 256]), upload(&[f16::NAN; 256])];
    memory.sort_by_key(|slice| slice.device_ptr(&stream).0);
    for (slice, host) in memory.iter_mut().zip(&host) {
        stream.memcpy_htod(host, slice).expect("copy");
    }
    let [low, high] = [0, 1].map(|half: usize| memory[half].device_ptr(&stream).0);
    let step = ((high - low) / 2) as i64;
    let mut steps = vec![2 * DIM as i64, DIM as i64];
    steps.insert(axis, step);
    let [batch, token, head] = steps[..] else { panic!() };
    let of = Some(Stride { batch, token, head });
    let shape = Shape { strides: Strides { q: of, k: of, v: of, o: of }, ..case.shape() };
    let plan = Plan::new(&shape, &case.options(), &device::info()).expect("good");
    let inputs = RawInputs { q: low, k: low + 128, v: low + 256, ..RawInputs::default() };
    // SAFETY: every row lies in one of the two allocations, which outlive the copies below.
    unsafe { plan.run_raw(&stream, &inputs, &RawOutputs { o: low + 384, lse: 0 }) }.expect("runs");
    let halves = [0, 1].map(|half: usize| download(&memory[half]));
    let rows = (0..8).map(place).flat_map(|(half, at)| halves[half][192 + at..][..DIM].to_vec());
    let got: Vec<f64> = rows.map(Element::to_f64).collect();
    assert_close(&format!("axis {axis}"), &got, &data.oracle(&case).o, DIM, gate(DType::F16));
    step
}

/// An offset of 32 bits, in elements or bytes, would end elsewhere.
#[test]
fn attention_offsets_past_2_31_elements() {
    for axis in 0..3 {
        let step = far(axis);
        assert!(step > 1 << 31 || !device::info().emulated, "allocations of the emulator are 2^35 elements apart");
    }
}

#[test]
fn attention_spans_are_counted_in_64_bits() {
    let shape = Shape::dense(1 << 20, 1 << 12, 1 << 12, 1, 64);
    let options = lookback_attention::Options::new::<f16>(&shape);
    let plan = Plan::new(&shape, &options, &device::info()).expect("good");
    assert_eq!(plan.bytes_moved(), (1 << 32) * (4 * 64 * 2 + 4));
    assert_eq!(plan.flops(), (1 << 20) * (1 << 24) * 2 * 128);
}

/// Positions as far from the keys as they may be.
#[test]
fn attention_positions_far_out() {
    const FAR: i32 = 1 << 29;
    let reach = |left, right| Mask::Window { left: Some(left), right: Some(right), sink_tokens: 0 };
    for offset in [-FAR, -FAR + 20, FAR - 40, FAR] {
        for mask in [
            Mask::Full,
            Mask::Causal,
            Mask::AntiCausal,
            reach(FAR as u32, 0),
            reach(0, FAR as u32 - 10),
            reach(FAR as u32 - 20, FAR as u32),
            reach(u32::MAX, u32::MAX),
            Mask::Window { left: Some(0), right: Some(0), sink_tokens: u32::MAX },
        ] {
            let case = Case { mask, heads: 1, key_heads: 1, ..Case::new(DType::F16, 1, 40, 70, 8) };
            Case { offset: Some(offset), ..case }.check();
        }
    }
}

/// No output for `lse` is fine, and an output of `o` is then the same.
#[test]
fn attention_without_lse() {
    let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 2, 70, 40, 32) };
    let data = Data::new::<f16>(&case);
    let Computed { o: want, .. } = run::<f16>(&case, &data);
    let on = super::case::Uploaded::<f16>::new(&case, &data);
    let mut o = Guarded::<f16>::poisoned(case.rows() * 32, 0);
    {
        let mut view = o.view_mut();
        case.plan().run(&device::stream(), &on.inputs(), Outputs::of(&mut view)).expect("runs");
    }
    assert_eq!(o.read(), want);
}

/// `run_raw` takes addresses of any owner.
#[test]
fn attention_on_addresses() {
    let case = Case { output: Output::F32, ..Case::new(DType::F16, 1, 20, 30, 32) };
    let data = Data::new::<f16>(&case);
    let on = super::case::Uploaded::<f16>::new(&case, &data);
    let stream = device::stream();
    let (o, lse) = (upload(&vec![0_f32; case.rows() * 32]), upload(&vec![0_f32; case.rows()]));
    {
        let address = |slice: &CudaSlice<f16>| slice.device_ptr(&stream).0;
        let inputs = RawInputs { q: address(&on.q), k: address(&on.k), v: address(&on.v), ..RawInputs::default() };
        let outputs = RawOutputs { o: o.device_ptr(&stream).0, lse: lse.device_ptr(&stream).0 };
        // SAFETY: the slices have the plan's extents, and outlive the copies below, which wait.
        unsafe { case.plan().run_raw(&stream, &inputs, &outputs) }.expect("runs");
    }
    let read = |slice: &CudaSlice<f32>| download(slice).into_iter().map(f64::from).collect::<Vec<f64>>();
    case.compare(&Computed { o: read(&o), lse: read(&lse) }, &data.oracle(&case));
}
