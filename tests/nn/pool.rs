use super::support::{Input, Layout, Output};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::pool::{Inputs, Options, Plan, Pooling, Shape, pool};
use lookback_reference::pool::{self as oracle, Pool};
use lookback_suite::{
    buffer::{download, upload},
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Where packed sequences begin; without them 3 sequences of 7 tokens.
    pub starts: Option<&'a [i32]>,
    pub width: usize,
    pub gap: usize,
    pub shift: usize,
    pub masked: bool,
    pub pooling: Pooling,
    pub normalize: bool,
}

pub const PACKED: Case<'_> = Case {
    starts: Some(&[0, 1, 1, 6, 40]),
    width: 48,
    gap: 0,
    shift: 0,
    masked: true,
    pooling: Pooling::Mean,
    normalize: false,
};

pub fn check<T: Element>(case: Case<'_>) {
    let Case { starts, width, gap, shift, masked, pooling, normalize } = case;
    let what = format!("pool {} {case:?}", T::DTYPE);
    let places: Vec<usize> =
        starts.map_or_else(|| vec![0, 7, 14, 21], |starts| starts.iter().map(|s| *s as usize).collect());
    let (sequences, tokens) = (places.len() - 1, places[places.len() - 1]);
    let mut random = Random::new((width * 10 + gap + shift) as u64);
    // A mean beside which the spread is small: a wrong count shows.
    let mut x: Vec<f64> =
        random.normals::<T>(tokens * width).iter().map(|v| lookback_suite::random::round::<T>(v + 2.0)).collect();
    // The one token of the first sequence does not count.
    let marks: Vec<u8> = (0..tokens).map(|t| if t == 0 || t % 5 == 3 { 0 } else { 1 + (t % 7) as u8 }).collect();
    let counts: Vec<bool> = marks.iter().map(|mark| *mark != 0).collect();
    let pool = Pool { width, starts: &places, mask: masked.then_some(&counts), limit: usize::MAX, normalize };
    let pool = if pooling == Pooling::First { Pool { limit: 1, ..pool } } else { pool };
    let expected = oracle::forward(&pool, &x);
    if masked {
        // What does not count is not read.
        for (t, row) in x.chunks_exact_mut(width.max(1)).enumerate().filter(|(t, _)| !counts[*t]) {
            row.fill(if t % 2 == 0 { f64::NAN } else { f64::INFINITY });
        }
    }
    let x_in = Input::<T>::new(&x, Layout::dense(tokens, width).gap(gap).shift(shift));
    let mut out = Output::<f32>::new(Layout::dense(sequences, width).gap(2 * gap).shift(shift));
    let shape = match starts {
        Some(_) => Shape::packed(sequences, tokens, width),
        None => Shape::dense(sequences, 7, width),
    };
    let shape = Shape { x_stride: (width + gap) as i64, out_stride: (width + 2 * gap) as i64, ..shape };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE, pooling, normalize }, &device::info()).unwrap();
    let (marks, starts) = (upload(&marks), starts.map(upload));
    let inputs = Inputs { mask: masked.then_some(&marks as _), cu_seqlens: starts.as_ref().map(|starts| starts as _) };
    plan.run(&device::stream(), &x_in.view(), inputs, &mut out.view_mut()).unwrap();
    device::finish();
    assert_close(&what, &out.read(), &expected, width.max(1), gate(DType::F32));
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for normalize in [false, true] {
        for width in [0, 1, 5, vec, 48, 33 * vec] {
            check::<T>(Case { width, normalize, ..PACKED });
            check::<T>(Case { width, normalize, masked: false, starts: None, gap: vec, ..PACKED });
            check::<T>(Case { width, normalize, pooling: Pooling::First, gap: 1, shift: 1, ..PACKED });
        }
        // Rows that no block reads in one go, and a token alone.
        check::<T>(Case { width: 256 * vec + vec, normalize, ..PACKED });
        check::<T>(Case { width: 513, normalize, shift: 1, ..PACKED });
        check::<T>(Case { starts: Some(&[0, 1]), masked: false, normalize, ..PACKED });
        check::<T>(Case { starts: Some(&[0]), normalize, masked: false, ..PACKED });
    }
    // More tokens than a round of loads has, in one team and in many.
    check::<T>(Case { starts: Some(&[0, 300, 517]), width: 8, ..PACKED });
    check::<T>(Case { starts: Some(&[0, 23]), width: 256 * vec, masked: false, ..PACKED });
}

#[test]
fn pool__f32() {
    sizes::<f32>();
}

#[test]
fn pool__f16() {
    sizes::<f16>();
}

#[test]
fn pool__bf16() {
    sizes::<bf16>();
}

#[test]
fn pool__special_values() {
    let x = Input::<f32>::dense(&[f64::NAN, 1.0, 2.0, 3.0, 0.0, 0.0, 1e-30, 0.0, 1e20, 0.0]);
    let starts = upload(&[0, 1, 2, 3, 4, 5]);
    let of = |normalize| {
        let out = pool(&device::stream(), &x.view(), &starts, (5, 2), Pooling::Mean, normalize).unwrap();
        download(&out)
    };
    let plain = of(false);
    assert!(plain[0].is_nan() && plain[1..] == [1.0, 2.0, 3.0, 0.0, 0.0, 1e-30, 0.0, 1e20, 0.0], "{plain:?}");
    let normed = of(true);
    assert!(normed[0].is_nan() && normed[1].is_nan(), "a NaN is the whole row's: {normed:?}");
    assert_eq!(normed[4..6], [0.0, 0.0], "no direction");
    assert!((normed[6] / 1e-18 - 1.0).abs() < 1e-6, "no more than by 1e12: {normed:?}");
    assert_eq!(normed[8..], [0.0, 0.0], "squares that overflow");
}

#[test]
fn pool__any_starts_are_safe() {
    let (tokens, width) = (9, 16);
    let x = Input::<f32>::dense(&vec![1.0; tokens * width]);
    for starts in [[-5, 4, 2, 9], [0, 100, i32::MAX, i32::MIN], [9, 9, 9, 10]] {
        let mut out = Output::<f32>::new(Layout::dense(3, width));
        let options = Options { dtype: DType::F32, pooling: Pooling::Mean, normalize: false };
        let plan = Plan::new(&Shape::packed(3, tokens, width), &options, &device::info()).unwrap();
        let starts = upload(&starts);
        let inputs = Inputs { mask: None, cu_seqlens: Some(&starts) };
        plan.run(&device::stream(), &x.view(), inputs, &mut out.view_mut()).unwrap();
        device::finish();
        assert!(out.read().iter().all(|v| *v == 0.0 || *v == 1.0));
    }
}

#[test]
fn pool__counters_are_at_the_floor() {
    let (tokens, width) = (96, 384);
    let x = Input::<bf16>::dense(&Random::new(1).normals::<bf16>(tokens * width));
    let starts = upload(&[0, 40, 41, 96]);
    for normalize in [false, true] {
        let options = Options { dtype: DType::Bf16, pooling: Pooling::Mean, normalize };
        let plan = Plan::new(&Shape::packed(3, tokens, width), &options, &device::info()).unwrap();
        let mut out = Output::<f32>::new(Layout::dense(3, width));
        let inputs = Inputs { mask: None, cu_seqlens: Some(&starts) };
        let run = || plan.run(&device::stream(), &x.view(), inputs, &mut out.view_mut()).unwrap();
        let Some(counters) = Counters::of(run) else { return };
        counters.assert_streams("pool", plan.bytes_moved());
        // Threads of a block of 256 read two starts of four bytes each.
        let read = counters.number("global_loads/bytes");
        assert_eq!(read, (tokens * width * 2 + 3 * 256 * 8) as u64, "x is read once");
    }
}

#[test]
fn pool__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, pooling: Pooling::Mean, normalize: false };
    let shape = Shape::packed(2, 4, 8);
    let refused = |shape: Shape| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { tokens: 1 << 40, ..shape }), Error::Range { arg: "tokens", .. }));
    assert!(matches!(refused(Shape { x_stride: -1, ..shape }), Error::Layout { arg: "x", .. }));
    assert!(matches!(refused(Shape { out_stride: 7, ..shape }), Error::Layout { arg: "out", .. }));
    let plan = Plan::new(&shape, &options, &info).unwrap();
    let (x, starts, mask) = (upload(&[1_f32; 32]), upload(&[0, 1, 4]), upload(&[1_u8; 3]));
    let mut out = Output::<f32>::new(Layout::dense(2, 8));
    let stream = device::stream();
    let mut run = |inputs: Inputs<'_>| plan.run(&stream, &x, inputs, &mut out.view_mut()).unwrap_err();
    assert!(matches!(run(Inputs::default()), Error::Shape { arg: "cu_seqlens", .. }));
    let packed = Inputs { mask: None, cu_seqlens: Some(&starts) };
    assert!(matches!(run(Inputs { mask: Some(&mask), ..packed }), Error::Shape { arg: "mask", .. }));
    let two = starts.slice(..2);
    assert!(matches!(run(Inputs { mask: None, cu_seqlens: Some(&two) }), Error::Shape { arg: "cu_seqlens", .. }));
    let error = plan.run(&stream, &upload(&[f16::ONE; 32]), packed, &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Dtype { arg: "x", .. }), "{error}");
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
