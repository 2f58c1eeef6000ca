//! Strides, and addresses off the natural alignment.

use super::case::{Case, Data};
use cudarc::driver::DevicePtr;
use half::f16;
use lookback_device::{DType, Element};
use lookback_linear::{Decay, Inputs, Mode, Outputs, Plan, Shape, Stride, Strides};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{assert_close, gate},
};

#[test]
fn linear_attention_output_off_the_natural_alignment() {
    for shift in [1, 3] {
        Case { shift, decay: Decay::Scalar, ..Case::new(DType::F16, 2, 9, 16, 8) }.check();
        Case { shift, mode: Mode::Bidirectional, ..Case::new(DType::F16, 2, 9, 16, 5) }.check();
    }
}

const B: usize = 2;
const T: usize = 11;
const H: usize = 2;

/// Elements from the first to the last of a tensor of rows of `width`.
fn span(s: Stride, width: usize) -> usize {
    ((B - 1) as i64 * s.batch + (T - 1) as i64 * s.token + (H - 1) as i64 * s.head) as usize + width
}

fn at(s: Stride, b: usize, t: usize, h: usize) -> usize {
    (b as i64 * s.batch + t as i64 * s.token + h as i64 * s.head) as usize
}

fn rows() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..B).flat_map(|b| (0..T).flat_map(move |t| (0..H).map(move |h| (b, t, h))))
}

/// Dense values at strides; gaps are NaN.
fn place(values: &[f64], s: Stride, width: usize) -> Vec<f64> {
    let mut buffer = vec![f64::NAN; span(s, width)];
    for (row, (b, t, h)) in rows().enumerate() {
        buffer[at(s, b, t, h)..][..width].copy_from_slice(&values[row * width..][..width]);
    }
    buffer
}

/// What stands at strides, dense. Rows that share their place are those of the last that was placed.
fn take(buffer: &[f64], s: Stride, width: usize) -> Vec<f64> {
    rows().flat_map(|(b, t, h)| buffer[at(s, b, t, h)..][..width].to_vec()).collect()
}

fn strided<T: Element>(decay: Decay, [q, k, v, g, o]: [Stride; 5]) {
    let case = Case { decay, states: false, mode: Mode::Bidirectional, ..Case::new(T::DTYPE, B, self::T, 12, 6) };
    let data = Data::new::<T>(&case);
    let gate_width = if decay == Decay::Vector { 12 } else { 1 };
    let [q_at, k_at] = [(&data.own.q, q), (&data.own.k, k)].map(|(values, s)| place(values, s, 12));
    let (v_at, g_at) = (place(&data.v, v, 6), place(&data.own.g, g, gate_width));
    let mut seen = data.clone();
    (seen.own.q, seen.own.k) = (take(&q_at, q, 12), take(&k_at, k, 12));
    (seen.v, seen.own.g) = (take(&v_at, v, 6), take(&g_at, g, gate_width));
    let strides = Strides { q: Some(q), k: Some(k), v: Some(v), g: Some(g), o: Some(o) };
    let shape = Shape { strides, ..case.shape() };
    let plan = Plan::new(&shape, &case.options(), &device::info()).unwrap_or_else(|e| panic!("{strides:?}: {e}"));
    let [q_at, k_at, v_at] = [q_at, k_at, v_at].map(|values| upload_as::<T>(&values));
    let g_at = upload_as::<f32>(&g_at);
    let mut out = Guarded::<T>::poisoned(span(o, 6), 0);
    {
        let mut view = out.view_mut();
        let inputs = Inputs { g: Some(&g_at as &dyn DevicePtr<f32>), ..Inputs::of(&q_at, &k_at, &v_at) };
        plan.run(&device::stream(), &inputs, Outputs::of(&mut view), None).unwrap_or_else(|e| panic!("{e}"));
    }
    let out = out.read();
    let what = format!("{strides:?}");
    assert_close(&what, &take(&out, o, 6), &seen.oracle(&case).o, 6, gate(T::DTYPE));
    assert_eq!(out.iter().filter(|v| !v.is_nan()).count(), B * self::T * H * 6, "{what}: gaps are left alone");
}

#[test]
fn linear_attention_strided_tensors() {
    let stride = |batch: usize, token: usize, head: usize| Stride {
        batch: batch as i64,
        token: token as i64,
        head: head as i64,
    };
    // Parts of one projection, heads before tokens, tokens before rows, odd steps, one row for all heads or tokens.
    let fused = stride(T * 60, 60, 12);
    let head_major = |width: usize| stride(H * T * width, width, T * width);
    let time_major = |width: usize| stride(H * width, B * H * width, width);
    let odd = |width: usize| stride(T * (H * width + 3) + 1, H * width + 3, width + 1);
    let scalar = [fused, head_major(12), time_major(6), time_major(1), odd(6)];
    strided::<f32>(Decay::Scalar, scalar);
    strided::<f16>(Decay::Scalar, scalar);
    strided::<f32>(Decay::Vector, [odd(12), fused, head_major(6), odd(12), head_major(6)]);
    strided::<f32>(
        Decay::Vector,
        [stride(0, 24, 12), stride(132, 12, 0), stride(T * 60, 60, 6), stride(0, 0, 12), fused_output()],
    );
}

/// The output beside something else.
fn fused_output() -> Stride {
    Stride { batch: (T * 40) as i64, token: 40, head: 7 }
}
