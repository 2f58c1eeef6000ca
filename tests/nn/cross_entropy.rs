use super::support::{Input, Layout, Output, Words, address, address_mut};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::cross_entropy::{IGNORED, Options, Outputs, Plan, RawOutputs, Shape, cross_entropy};
use lookback_reference::cross_entropy::forward;
use lookback_suite::{
    buffer::{download, upload},
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

pub fn check<T: Element>(x: &[f64], labels: &[i32], classes: usize, gap: usize, shift: usize, want_fault: u32) {
    let rows = labels.len();
    let layout = Layout::dense(rows, classes).gap(gap).shift(shift);
    let x_in = Input::<T>::new(x, layout);
    let labels_in = upload(&[labels, &[0]].concat());
    let mut loss = Output::<f32>::new(Layout::dense(1, rows));
    let mut lse = Output::<f32>::new(Layout::dense(1, rows));
    let mut dlogits = Output::<T>::new(layout.gap(2 * gap));
    let mut fault = Words::<u32>::new(1, 0);
    let shape = Shape { rows, classes, x_stride: (classes + gap) as i64, dx_stride: (classes + 2 * gap) as i64 };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE, scale: 0.25 }, &device::info()).unwrap();
    let outputs = Outputs {
        lse: Some(&mut lse.view_mut()),
        dlogits: Some(&mut dlogits.view_mut()),
        fault: Some(&mut fault.view_mut()),
    };
    plan.run(&device::stream(), &x_in.view(), &labels_in, &mut loss.view_mut(), outputs).unwrap();
    device::finish();
    let expected = forward(x, classes, labels, 0.25);
    let what = format!("cross_entropy {} [{rows},{classes}] gap {gap} shift {shift}", T::DTYPE);
    assert_close(&format!("{what} loss"), &loss.read(), &expected.loss, rows.max(1), Gate::F32);
    assert_close(&format!("{what} lse"), &lse.read(), &expected.lse, rows.max(1), Gate::F32);
    assert_close(&format!("{what} dlogits"), &dlogits.read(), &expected.dlogits, classes, gate(T::DTYPE));
    assert_eq!(fault.read(), [want_fault], "{what}");
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (rows, classes) in [(0, 8), (1, 1), (3, 7), (17, vec), (5, 33), (9, 512), (3, 1025), (2, 1032), (2, 3000)] {
        let mut random = Random::new((rows + classes) as u64);
        let x: Vec<f64> = random.normals::<T>(rows * classes);
        let mut labels: Vec<i32> = (0..rows).map(|_| random.below(classes) as i32).collect();
        if rows > 2 {
            labels[1] = IGNORED;
        }
        for (gap, shift) in [(0, 0), (vec, 0), (1, 1)] {
            check::<T>(&x, &labels, classes, gap, shift, 0);
        }
    }
}

#[test]
fn cross_entropy__f32() {
    sizes::<f32>();
}

#[test]
fn cross_entropy__f16() {
    sizes::<f16>();
}

#[test]
fn cross_entropy__bf16() {
    sizes::<bf16>();
}

#[test]
fn cross_entropy__special_logits() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for classes in [12, 1100] {
        let row = |at: &[(usize, f64)], fill: f64| {
            let mut row = vec![fill; classes];
            at.iter().for_each(|(d, v)| row[*d] = *v);
            row
        };
        let rows = [
            row(&[(3, nan)], 1.0),
            row(&[(3, inf)], 1.0),
            row(&[(3, -inf)], 1.0),
            row(&[], -inf),
            row(&[(0, 5.0)], -inf),
            row(&[(0, 5.0)], -6e4),
            row(&[(2, 1e30)], -1e30),
            row(&[(1, nan)], 0.0),
        ];
        let labels = [0, 1, 2, 0, 0, 0, 2, IGNORED];
        check::<f32>(&rows.concat(), &labels, classes, 0, 0, 0);
        check::<f32>(&rows.concat(), &labels, classes, 1, 1, 0);
    }
}

#[test]
fn cross_entropy__bad_labels_are_ignored_and_reported() {
    let x = Random::new(9).normals::<f32>(3 * 20);
    for bad in [20, -1, i32::MIN, i32::MAX, -101] {
        check::<f32>(&x, &[4, bad, 19], 20, 0, 0, 1);
    }
}

#[test]
fn cross_entropy__gradient_in_place() {
    for (rows, classes) in [(9, 64), (2, 2048)] {
        let mut random = Random::new(11);
        let x = random.normals::<f32>(rows * classes);
        let labels: Vec<i32> = (0..rows).map(|_| random.below(classes) as i32).collect();
        let x_in = Input::<f32>::dense(&x);
        let labels_in = upload(&labels);
        let mut loss = Output::<f32>::new(Layout::dense(1, rows));
        let plan = Plan::new(&Shape::dense(rows, classes), &Options { dtype: DType::F32, scale: 1.0 }, &device::info())
            .unwrap();
        let (logits, labels_at, loss_at) =
            (address(&x_in.view()), address(&labels_in), address_mut(&mut loss.view_mut()));
        let outputs = RawOutputs { dlogits: logits, ..RawOutputs::default() };
        // SAFETY: all tensors live until the synchronisation below, and nothing else uses them.
        unsafe { plan.run_raw(&device::stream(), logits, labels_at, loss_at, outputs) }.unwrap();
        device::finish();
        let expected = forward(&x, classes, &labels, 1.0);
        let dlogits = download(&device::stream().clone_dtod(&x_in.view()).unwrap());
        let dlogits: Vec<f64> = dlogits.into_iter().map(f64::from).collect();
        assert_close("gradient in place", &dlogits, &expected.dlogits, classes, Gate::F32);
        assert_close("loss in place", &loss.read(), &expected.loss, rows, Gate::F32);
    }
}

#[test]
fn cross_entropy__losses_alone() {
    let x = Random::new(2).normals::<bf16>(6 * 50);
    let labels = [1, 49, IGNORED, 0, 7, 7];
    let x_in = Input::<bf16>::dense(&x);
    let loss = cross_entropy(&device::stream(), &x_in.view(), &upload(&labels), (6, 50)).unwrap();
    let loss: Vec<f64> = download(&loss).into_iter().map(f64::from).collect();
    assert_close("losses", &loss, &forward(&x, 50, &labels, 1.0).loss, 6, Gate::F32);
}

#[test]
fn cross_entropy__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, scale: 1.0 };
    let dense = Shape::dense(4, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape::dense(4, 0), options), Error::Range { arg: "classes", .. }));
    assert!(matches!(refused(dense, Options { scale: f32::NAN, ..options }), Error::Range { arg: "scale", .. }));
    assert!(matches!(refused(Shape { dx_stride: 7, ..dense }, options), Error::Layout { arg: "dlogits", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let x = Input::<f32>::dense(&[1.0; 32]);
    let labels = upload(&[0; 4]);
    let mut loss = Output::<f32>::new(Layout::dense(1, 4));
    let (logits, labels_at, loss_at) = (address(&x.view()), address(&labels), address_mut(&mut loss.view_mut()));
    let run = |outputs: RawOutputs, loss: u64| {
        // SAFETY: the host refuses these calls before any launch.
        unsafe { plan.run_raw(&device::stream(), logits, labels_at, loss, outputs) }.unwrap_err()
    };
    let shifted = RawOutputs { dlogits: logits + 4, ..RawOutputs::default() };
    assert!(matches!(run(shifted, loss_at), Error::Alias { a: "dlogits", b: "logits", .. }));
    assert!(matches!(run(RawOutputs::default(), logits), Error::Alias { a: "loss", b: "logits", .. }));
    assert!(matches!(run(RawOutputs::default(), loss_at + 2), Error::Align { arg: "loss", .. }));
    let lse = RawOutputs { lse: loss_at, ..RawOutputs::default() };
    assert!(matches!(run(lse, loss_at), Error::Alias { a: "loss", b: "lse", .. }));
    device::finish();
    assert!(loss.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
