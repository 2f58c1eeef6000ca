use super::support::{Input, Layout, Words};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::argmax::{Options, Plan, Shape};
use lookback_suite::{device, random::Random};

fn run<T: Element>(x: &[f64], rows: usize, width: usize, gap: usize, shift: usize) -> Vec<i32> {
    let x_in = Input::<T>::new(x, Layout::dense(rows, width).gap(gap).shift(shift));
    let mut out = Words::<i32>::new(rows, -7);
    let shape = Shape { rows, width, x_stride: (width + gap) as i64 };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE }, &device::info()).unwrap();
    plan.run(&device::stream(), &x_in.view(), &mut out.view_mut()).unwrap();
    device::finish();
    out.read()
}

pub fn check<T: Element>(x: &[f64], rows: usize, width: usize) {
    let expected: Vec<i32> = lookback_reference::argmax::forward(x, width).into_iter().map(|d| d as i32).collect();
    let vec = 16 / T::DTYPE.size();
    for (gap, shift) in [(0, 0), (vec, 0), (1, 1)] {
        let what = format!("argmax {} [{rows},{width}] gap {gap} shift {shift}", T::DTYPE);
        assert_eq!(run::<T>(x, rows, width, gap, shift), expected, "{what}");
    }
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (rows, width) in [(0, 8), (1, 1), (3, 7), (17, vec), (5, 33), (9, 256), (3, 1025), (2, 1032), (2, 5000)] {
        let mut random = Random::new((rows + width) as u64);
        check::<T>(&random.normals::<T>(rows * width), rows, width);
        // Few values, so that most rows have ties.
        let ties: Vec<f64> = (0..rows * width).map(|_| random.below(3) as f64 - 1.0).collect();
        check::<T>(&ties, rows, width);
    }
}

#[test]
fn argmax__f32() {
    sizes::<f32>();
}

#[test]
fn argmax__f16() {
    sizes::<f16>();
}

#[test]
fn argmax__bf16() {
    sizes::<bf16>();
}

#[test]
fn argmax__nan_infinity_and_zeros() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for width in [40, 2000] {
        let row = |at: &[(usize, f64)], fill: f64| {
            let mut row = vec![fill; width];
            at.iter().for_each(|(d, v)| row[*d] = *v);
            row
        };
        let rows = [
            row(&[(33, nan), (35, nan), (3, inf)], 1.0),
            row(&[(0, -nan)], inf),
            row(&[], -inf),
            row(&[], nan),
            row(&[(5, -0.0), (6, 0.0)], -1.0),
            row(&[(7, 1e-40), (8, 1e-40)], 0.0),
            row(&[(width - 1, -1.0)], -2.0),
            row(&[(width - 1, inf)], 3e38),
        ];
        check::<f32>(&rows.concat(), rows.len(), width);
        check::<bf16>(&rows.concat(), rows.len(), width);
    }
}

#[test]
fn argmax__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32 };
    let refused = |shape: Shape| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape::dense(4, 0)), Error::Range { arg: "width", .. }));
    assert!(matches!(refused(Shape { x_stride: -8, ..Shape::dense(4, 8) }), Error::Layout { arg: "x", .. }));
    let plan = Plan::new(&Shape::dense(4, 8), &options, &info).unwrap();
    let mut out = Words::<i32>::new(3, -7);
    let error = plan.run(&device::stream(), &Input::<f32>::dense(&[1.0; 32]).view(), &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "out", .. }), "{error}");
    device::finish();
    assert_eq!(out.read(), [-7; 3], "nothing may be written on an error");
}
