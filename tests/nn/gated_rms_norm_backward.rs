use super::support::{Input, Layout, Output, address, address_mut};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error};
use lookback_nn::{
    Param,
    gated_rms_norm::{BackwardInputs, BackwardPlan, BackwardShape, Gate as Function, Gradients, Options, RawGradients},
};
use lookback_reference::{
    activation::Activation,
    gated_rms_norm::{Norm, backward, forward},
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
    pub silu: bool,
    pub norm_before_gate: bool,
    /// Few multiprocessors make few slices of rows.
    pub sm_count: u32,
}

pub fn case(rows: usize, width: usize, group: usize) -> Case {
    Case {
        rows,
        width,
        group,
        gap: 0,
        shift: 0,
        weight: Weight::Same,
        silu: true,
        norm_before_gate: true,
        sm_count: 132,
    }
}

impl Case {
    fn options(&self, dtype: DType) -> Options {
        let gate = if self.silu { Function::Silu } else { Function::Sigmoid };
        Options { dtype, gate, norm_before_gate: self.norm_before_gate, eps: EPS }
    }

    fn norm<'a>(&self, weight: &'a [f64]) -> Norm<'a> {
        Norm {
            width: self.width,
            group: self.group,
            weight: (self.weight != Weight::None).then_some(weight),
            eps: f64::from(EPS),
            gate: if self.silu { Activation::Silu } else { Activation::Sigmoid },
            norm_before_gate: self.norm_before_gate,
        }
    }

    fn shape(&self) -> BackwardShape {
        let stride = |times: usize| (self.width + times * self.gap) as i64;
        BackwardShape {
            y_stride: stride(1),
            z_stride: stride(2),
            dout_stride: stride(3),
            dy_stride: stride(4),
            dz_stride: stride(1),
            ..BackwardShape::dense(self.rows, self.width).groups_of(self.group)
        }
    }

    /// In both orders, one with each gate.
    pub fn both(self, check: fn(Case)) {
        check(Case { norm_before_gate: true, silu: false, ..self });
        check(Case { norm_before_gate: false, silu: true, ..self });
    }
}

pub fn check<T: Element>(case: Case) {
    let Case { rows, width, group, gap, shift, .. } = case;
    let mut random = Random::new((rows * 1000 + width + group) as u64);
    let [y, z, dout] = [0; 3].map(|_| random.normals::<T>(rows * width));
    let layout = |times: usize| Layout::dense(rows, width).gap(times * gap).shift(shift);
    let y_in = Input::<T>::new(&y, layout(1));
    let z_in = Input::<T>::new(&z, layout(2));
    let dout_in = Input::<T>::new(&dout, layout(3));
    let weight = random.uniforms::<T>(width, 0.5, 1.5);
    let same = Input::<T>::new(&weight, Layout::dense(1, width).shift(shift));
    let wide = Input::<f32>::new(&weight, Layout::dense(1, width).shift(shift));
    let (same, wide) = (same.view(), wide.view());
    let param = match case.weight {
        Weight::None => Param::None,
        Weight::Same => Param::Same(&same),
        Weight::F32 => Param::F32(&wide),
    };
    let norm = case.norm(&weight);
    let rstd = Input::<f32>::dense(&forward(&norm, &y, &z).rstd);
    let (mut dy, mut dz) = (Output::<T>::new(layout(4)), Output::<T>::new(layout(1)));
    let mut dweight = Output::<f32>::new(Layout::dense(1, width));
    let info = DeviceInfo { sm_count: case.sm_count, ..device::info() };
    let plan = BackwardPlan::new(&case.shape(), &case.options(T::DTYPE), &info).unwrap();
    let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
    let (mut dy_view, mut dz_view, mut dweight_view) = (dy.view_mut(), dz.view_mut(), dweight.view_mut());
    let (y_view, z_view, dout_view, rstd_view) = (y_in.view(), z_in.view(), dout_in.view(), rstd.view());
    let inputs = BackwardInputs { y: &y_view, z: &z_view, dout: &dout_view, weight: param, rstd: &rstd_view };
    let outputs = Gradients { dy: &mut dy_view, dz: &mut dz_view, dweight: Some(&mut dweight_view) };
    plan.run(&device::stream(), inputs, outputs, &mut workspace.view_mut()).unwrap();
    device::finish();
    let expected = backward(&norm, &y, &z, &dout);
    let what = format!("gated_rms_norm backward {} {case:?}", T::DTYPE);
    let row = width.max(1);
    assert_close(&format!("{what} dy"), &dy.read(), &expected.dy, row, gate(T::DTYPE));
    assert_close(&format!("{what} dz"), &dz.read(), &expected.dz, row, gate(T::DTYPE));
    assert_close(&format!("{what} dweight"), &dweight.read(), &expected.dweight, row, Gate::F32);
    workspace.read();
}

/// From parts of a warp to a group to more than a block keeps in registers; one slice of rows and several.
fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (rows, width, group) in [
        (0, 8, 8),
        (8, 0, 0),
        (70, 3 * vec, vec),
        (9, 6 * vec, 2 * vec),
        (37, 15, 5),
        (5, 32 * vec, 32 * vec),
        (11, 72 * vec, 36 * vec),
        (5, 129 * vec, 129 * vec),
    ] {
        case(rows, width, group).both(check::<T>);
        Case { gap: vec, weight: Weight::F32, sm_count: 1, ..case(rows, width, group) }.both(check::<T>);
        Case { gap: 1, shift: 1, weight: Weight::None, ..case(rows, width, group) }.both(check::<T>);
    }
    // With slices of several rows, so that the parts of the columns that are not held add up.
    let wide = 256 * 4 * vec + 3 * vec;
    Case { sm_count: 1, ..case(5, wide, wide) }.both(check::<T>);
    let odd = Case { sm_count: 1, weight: Weight::F32, shift: 1, ..case(3, 256 * 4 + 77, 256 * 4 + 77) };
    odd.both(check::<T>);
}

#[test]
fn gated_rms_norm_backward__f32() {
    sizes::<f32>();
}

#[test]
fn gated_rms_norm_backward__f16() {
    sizes::<f16>();
}

#[test]
fn gated_rms_norm_backward__bf16() {
    sizes::<bf16>();
}

#[test]
fn gated_rms_norm_backward__in_place() {
    // dy onto z and dz onto dout; wide enough that some columns are read twice.
    let case = Case { norm_before_gate: false, weight: Weight::None, ..case(3, 256 * 4 + 5, 256 * 4 + 5) };
    let Case { rows, width, .. } = case;
    let mut random = Random::new(8);
    let [y, z, dout] = [0; 3].map(|_| random.normals::<f32>(rows * width));
    let expected = backward(&case.norm(&[]), &y, &z, &dout);
    let rstd = Input::<f32>::dense(&forward(&case.norm(&[]), &y, &z).rstd);
    let [y, z, dout] = [&y, &z, &dout].map(|values| Input::<f32>::dense(values));
    let plan = BackwardPlan::new(&case.shape(), &case.options(DType::F32), &device::info()).unwrap();
    let [y_at, z_at, dout_at] = [&y, &z, &dout].map(|i| address(&i.view()));
    let mut dweight = Output::<f32>::new(Layout::dense(1, width));
    let raw = RawGradients {
        y: y_at,
        z: z_at,
        dout: dout_at,
        weight: (0, None),
        rstd: address(&rstd.view()),
        dy: z_at,
        dz: dout_at,
        dweight: 0,
        workspace: 0,
    };
    // SAFETY: the tensors live until the synchronisation below, and nothing else uses them; the others are refused.
    let (same, shifted, inside) = unsafe {
        plan.run_raw(&device::stream(), raw).unwrap();
        (
            plan.run_raw(&device::stream(), RawGradients { dz: z_at, ..raw }),
            plan.run_raw(&device::stream(), RawGradients { dy: y_at + 4, ..raw }),
            plan.run_raw(&device::stream(), RawGradients { dweight: address_mut(&mut dweight.view_mut()), ..raw }),
        )
    };
    assert!(matches!(same, Err(Error::Alias { a: "dz", b: "dy", .. })), "{same:?}");
    assert!(matches!(shifted, Err(Error::Alias { a: "dy", b: "y", .. })), "{shifted:?}");
    assert!(matches!(inside, Err(Error::Align { arg: "workspace", .. })), "{inside:?}");
    device::finish();
    for (found, expected) in [(z, expected.dy), (dout, expected.dz)] {
        let found = download(&device::stream().clone_dtod(&found.view()).unwrap());
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        assert_close("in place", &found, &expected, width, Gate::F32);
    }
}

#[test]
fn gated_rms_norm_backward__bad_calls_are_refused() {
    let info = device::info();
    let case = case(70, 16, 8);
    let options = case.options(DType::F32);
    let near = BackwardShape { dz_stride: 15, ..case.shape() };
    let error = BackwardPlan::new(&near, &options, &info).unwrap_err();
    assert!(matches!(error, Error::Layout { arg: "dz", .. }), "{error}");
    let error = BackwardPlan::new(&case.shape().groups_of(5), &options, &info).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "group", .. }), "{error}");
    let plan = BackwardPlan::new(&case.shape(), &options, &DeviceInfo { sm_count: 1, ..info }).unwrap();
    // Groups of two accesses: 128 teams, so that 70 rows are one slice.
    assert_eq!(plan.workspace_bytes(), 16 * 4);
    let x = Input::<f32>::dense(&vec![1.0; 70 * 16]);
    let x = x.view();
    let (mut dy, mut dz) = (Output::<f32>::new(Layout::dense(70, 16)), Output::<f32>::new(Layout::dense(70, 16)));
    let mut dweight = Output::<f32>::new(Layout::dense(1, 16));
    let mut workspace = Output::<f32>::new(Layout::dense(1, 15));
    let (mut dy_view, mut dz_view, mut dweight_view) = (dy.view_mut(), dz.view_mut(), dweight.view_mut());
    let inputs = BackwardInputs { y: &x, z: &x, dout: &x, weight: Param::None, rstd: &x };
    let outputs = Gradients { dy: &mut dy_view, dz: &mut dz_view, dweight: Some(&mut dweight_view) };
    let error = plan.run(&device::stream(), inputs, outputs, &mut workspace.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Workspace { need: 64, got: 60, .. }), "{error}");
    device::finish();
    assert!(dy.read().iter().chain(&dz.read()).all(|v| v.is_nan()), "nothing may be written on an error");
}

fn streams<T: Element>() {
    let mut random = Random::new(2);
    // A part of a warp to a group, a warp, a block that holds its row.
    for (rows, width, group) in [(64, 512, 64), (64, 512, 512), (16, 2048, 2048)] {
        for norm_before_gate in [true, false] {
            let case = Case { norm_before_gate, sm_count: 1, ..case(rows, width, group) };
            let [y, z, dout] = [0; 3].map(|_| Input::<T>::dense(&random.normals::<T>(rows * width)));
            let weight = Input::<T>::dense(&random.normals::<T>(width));
            let rstd = Input::<f32>::dense(&vec![1.0; rows * width / group]);
            let (mut dy, mut dz) =
                (Output::<T>::new(Layout::dense(rows, width)), Output::<T>::new(Layout::dense(rows, width)));
            let mut dweight = Output::<f32>::new(Layout::dense(1, width));
            let info = DeviceInfo { sm_count: case.sm_count, ..device::info() };
            let plan = BackwardPlan::new(&case.shape(), &case.options(T::DTYPE), &info).unwrap();
            let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
            let (y_view, z_view, dout_view) = (y.view(), z.view(), dout.view());
            let (weight, rstd_view) = (weight.view(), rstd.view());
            let run = || {
                let (mut dy_view, mut dz_view, mut dweight_view) = (dy.view_mut(), dz.view_mut(), dweight.view_mut());
                let weight = Param::Same(&weight);
                let inputs = BackwardInputs { y: &y_view, z: &z_view, dout: &dout_view, weight, rstd: &rstd_view };
                let outputs = Gradients { dy: &mut dy_view, dz: &mut dz_view, dweight: Some(&mut dweight_view) };
                plan.run(&device::stream(), inputs, outputs, &mut workspace.view_mut()).unwrap();
            };
            let Some(counters) = Counters::of(run) else { return };
            let what = format!("gated_rms_norm backward {} {case:?}", T::DTYPE);
            // Of the parts a thread writes eight floats in two accesses, which part a sector; all else is coalesced.
            let excess = |kind: &str| {
                let of = |name: &str| counters.number(&format!("global_{kind}/{name}"));
                of("sectors") - of("ideal_sectors")
            };
            assert_eq!(excess("loads"), 0, "{what}");
            assert!(excess("stores") <= plan.workspace_bytes() / 32, "{what}");
            // The parts go out and come back; weight, its gradient and rstd.
            let small = 2 * plan.workspace_bytes() + (width * (T::DTYPE.size() + 4) + rows * width / group * 4) as u64;
            counters.assert_streams(&what, plan.bytes_moved() + small);
        }
    }
}

#[test]
fn gated_rms_norm_backward__counters_are_at_the_floor() {
    streams::<f32>();
    streams::<bf16>();
}
