use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::{
    Param,
    gated_rms_norm::{Gate as Function, Options, Plan, Shape},
};
use lookback_reference::{
    activation::Activation,
    gated_rms_norm::{Norm, forward},
};
use lookback_suite::{
    buffer::download,
    counters::Counters,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

const EPS: f32 = 1e-5;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weight {
    None,
    Same,
    F32,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub rows: usize,
    pub width: usize,
    pub group: usize,
    pub gap: usize,
    pub shift: usize,
    pub weight: Weight,
    pub gate: Function,
    pub norm_before_gate: bool,
}

impl Case {
    fn options(&self, dtype: DType) -> Options {
        Options { dtype, gate: self.gate, norm_before_gate: self.norm_before_gate, eps: EPS }
    }

    fn norm<'a>(&self, weight: &'a [f64]) -> Norm<'a> {
        Norm {
            width: self.width,
            group: self.group,
            weight: (self.weight != Weight::None).then_some(weight),
            eps: f64::from(EPS),
            gate: if self.gate == Function::Silu { Activation::Silu } else { Activation::Sigmoid },
            norm_before_gate: self.norm_before_gate,
        }
    }

    /// In both orders, one with each gate.
    pub fn both(self, check: fn(Case)) {
        check(Case { norm_before_gate: true, gate: Function::Sigmoid, ..self });
        check(Case { norm_before_gate: false, gate: Function::Silu, ..self });
    }
}

pub fn case(rows: usize, width: usize, group: usize) -> Case {
    Case { rows, width, group, gap: 0, shift: 0, weight: Weight::Same, gate: Function::Silu, norm_before_gate: true }
}

pub fn check<T: Element>(case: Case) {
    let Case { rows, width, group, gap, shift, .. } = case;
    let mut random = Random::new((rows * 1000 + width + group) as u64);
    let (y, z) = (random.normals::<T>(rows * width), random.normals::<T>(rows * width));
    let layout = Layout::dense(rows, width).gap(gap).shift(shift);
    let (y_in, z_in) = (Input::<T>::new(&y, layout), Input::<T>::new(&z, layout.gap(3 * gap)));
    let weight = random.uniforms::<T>(width, 0.5, 1.5);
    let same = Input::<T>::new(&weight, Layout::dense(1, width).shift(shift));
    let wide = Input::<f32>::new(&weight, Layout::dense(1, width).shift(shift));
    let (same, wide) = (same.view(), wide.view());
    let param = match case.weight {
        Weight::None => Param::None,
        Weight::Same => Param::Same(&same),
        Weight::F32 => Param::F32(&wide),
    };
    let shape = Shape {
        y_stride: (width + gap) as i64,
        z_stride: (width + 3 * gap) as i64,
        out_stride: (width + 2 * gap) as i64,
        ..Shape::dense(rows, width).groups_of(group)
    };
    let mut out = Output::<T>::new(layout.gap(2 * gap));
    let mut rstd = Output::<f32>::new(Layout::dense(rows, shape.groups()));
    let plan = Plan::new(&shape, &case.options(T::DTYPE), &device::info()).unwrap();
    let (y_view, z_view) = (y_in.view(), z_in.view());
    plan.run(&device::stream(), &y_view, &z_view, param, &mut out.view_mut(), Some(&mut rstd.view_mut())).unwrap();
    device::finish();
    let expected = forward(&case.norm(&weight), &y, &z);
    let what = format!("gated_rms_norm {} {case:?}", T::DTYPE);
    assert_close(&what, &out.read(), &expected.out, width.max(1), gate(T::DTYPE));
    assert_close(&format!("{what} rstd"), &rstd.read(), &expected.rstd, 1, Gate::F32);
}

/// From parts of a warp to a group to more than a block keeps in registers; rows that do not fill the last block.
fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (rows, width, group) in [
        (0, 8, 8),
        (8, 0, 0),
        (3, 1, 1),
        (33, 3 * vec, vec),
        (9, 6 * vec, 2 * vec),
        (7, 15, 5),
        (5, 32 * vec, 32 * vec),
        (3, 72 * vec, 36 * vec),
        (2, 129 * vec, 129 * vec),
    ] {
        let base = case(rows, width, group);
        base.both(check::<T>);
        Case { gap: vec, weight: Weight::F32, ..base }.both(check::<T>);
        Case { gap: 1, shift: 1, weight: Weight::None, ..base }.both(check::<T>);
    }
    let wide = 256 * 4 * vec + 3 * vec;
    case(2, wide, wide).both(check::<T>);
    Case { weight: Weight::F32, shift: 1, ..case(2, 256 * 4 + 77, 256 * 4 + 77) }.both(check::<T>);
}

#[test]
fn gated_rms_norm__f32() {
    sizes::<f32>();
}

#[test]
fn gated_rms_norm__f16() {
    sizes::<f16>();
}

#[test]
fn gated_rms_norm__bf16() {
    sizes::<bf16>();
}

#[test]
fn gated_rms_norm__in_place_of_either_input() {
    let case = case(9, 48, 16);
    let mut random = Random::new(8);
    let (y, z) = (random.normals::<f32>(9 * 48), random.normals::<f32>(9 * 48));
    for onto_z in [false, true] {
        let (y_in, z_in) = (Input::<f32>::dense(&y), Input::<f32>::dense(&z));
        let plan = Plan::new(&Shape::dense(9, 48).groups_of(16), &case.options(DType::F32), &device::info()).unwrap();
        let (y_at, z_at) = (address(&y_in.view()), address(&z_in.view()));
        let out_at = if onto_z { z_at } else { y_at };
        // SAFETY: both live until the synchronisation below, and nothing else uses them; the second is refused.
        let refused = unsafe {
            plan.run_raw(&device::stream(), y_at, z_at, (0, None), out_at, 0).unwrap();
            plan.run_raw(&device::stream(), y_at, z_at, (0, None), z_at + 16, 0)
        };
        assert!(matches!(refused, Err(Error::Alias { a: "out", b: "z", .. })), "{refused:?}");
        device::finish();
        let out = if onto_z { z_in } else { y_in };
        let out = download(&device::stream().clone_dtod(&out.view()).unwrap());
        let out: Vec<f64> = out.into_iter().map(f64::from).collect();
        let expected = forward(&Norm { weight: None, ..case.norm(&[]) }, &y, &z).out;
        assert_close("in place", &out, &expected, 48, Gate::F32);
    }
}

#[test]
fn gated_rms_norm__nan_and_infinity_stay_in_their_group() {
    let (rows, width, group) = (6, 40, 20);
    let mut random = Random::new(3);
    let (mut y, mut z) = (random.normals::<f32>(rows * width), random.normals::<f32>(rows * width));
    y[width + 39] = f64::NAN;
    y[2 * width] = f64::INFINITY;
    z[3 * width + 1] = f64::NAN;
    z[4 * width + 1] = f64::NEG_INFINITY;
    y[5 * width..].fill(0.0);
    for norm_before_gate in [true, false] {
        let case = Case { norm_before_gate, weight: Weight::None, ..case(rows, width, group) };
        let plan = Plan::new(&Shape::dense(rows, width).groups_of(group), &case.options(DType::F32), &device::info());
        let (y_in, z_in) = (Input::<f32>::dense(&y), Input::<f32>::dense(&z));
        let mut out = Output::<f32>::new(Layout::dense(rows, width));
        plan.unwrap()
            .run(&device::stream(), &y_in.view(), &z_in.view(), Param::None, &mut out.view_mut(), None)
            .unwrap();
        device::finish();
        assert_close(&format!("{case:?}"), &out.read(), &forward(&case.norm(&[]), &y, &z).out, width, Gate::F32);
    }
}

#[test]
fn gated_rms_norm__bad_calls_are_refused() {
    let info = device::info();
    let options = case(4, 8, 8).options(DType::Bf16);
    let dense = Shape::dense(4, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { width: 1 << 40, ..dense }, options), Error::Range { arg: "width", .. }));
    assert!(matches!(refused(dense.groups_of(3), options), Error::Shape { arg: "group", .. }));
    assert!(matches!(refused(dense.groups_of(0), options), Error::Range { arg: "group", .. }));
    assert!(matches!(refused(Shape::dense(1, 1 << 17).groups_of(1), options), Error::Range { arg: "groups", .. }));
    assert!(matches!(refused(dense, Options { eps: f32::NAN, ..options }), Error::Range { arg: "eps", .. }));
    assert!(matches!(refused(Shape { z_stride: -1, ..dense }, options), Error::Layout { arg: "z", .. }));
    assert!(matches!(refused(Shape { out_stride: 7, ..dense }, options), Error::Layout { arg: "out", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let (y, z) = (Input::<bf16>::dense(&[1.0; 32]), Input::<bf16>::dense(&[1.0; 31]));
    let mut out = Output::<bf16>::new(Layout::dense(4, 8));
    let error = plan.run(&device::stream(), &y.view(), &z.view(), Param::None, &mut out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "z", .. }), "{error}");
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}

fn streams<T: Element>() {
    let mut random = Random::new(2);
    // A part of a warp to a group, a warp, several, a block.
    for (rows, width, group) in [(64, 512, 64), (64, 512, 512), (16, 2048, 2048), (8, 4096, 4096)] {
        for norm_before_gate in [true, false] {
            let case = Case { norm_before_gate, ..case(rows, width, group) };
            let y = Input::<T>::dense(&random.normals::<T>(rows * width));
            let z = Input::<T>::dense(&random.normals::<T>(rows * width));
            let weight = Input::<T>::dense(&random.normals::<T>(width));
            let weight = weight.view();
            let mut out = Output::<T>::new(Layout::dense(rows, width));
            let shape = Shape::dense(rows, width).groups_of(group);
            let plan = Plan::new(&shape, &case.options(T::DTYPE), &device::info()).unwrap();
            let (y_view, z_view) = (y.view(), z.view());
            let run = || {
                plan.run(&device::stream(), &y_view, &z_view, Param::Same(&weight), &mut out.view_mut(), None).unwrap();
            };
            let Some(counters) = Counters::of(run) else { return };
            let what = format!("gated_rms_norm {} {case:?}", T::DTYPE);
            counters.assert_coalesced(&what);
            counters.assert_streams(&what, plan.bytes_moved() + (width * T::DTYPE.size()) as u64);
            let read = counters.number("global_loads/bytes");
            let row = (width * T::DTYPE.size()) as u64;
            assert_eq!(read, 3 * rows as u64 * row, "{what}: y and z are read once, the weight once a row");
        }
    }
}

#[test]
fn gated_rms_norm__counters_are_at_the_floor() {
    streams::<f32>();
    streams::<bf16>();
}
