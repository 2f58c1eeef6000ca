use super::support::{Input, Layout, Output, address, address_mut, reference};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::{
    Activation, Param,
    gemm::{Options, Plan, Policy, Right, Shape, Tile, linear},
};
use lookback_reference::gemm as oracle;
use lookback_suite::{
    buffer::download,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bias {
    None,
    Same,
    F32,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub right: Right,
    pub tile: Tile,
    pub gap: usize,
    pub shift: usize,
    pub bias: Bias,
    pub activation: Activation,
}

impl Case {
    pub fn new(right: Right, tile: Tile, m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, right, tile, gap: 0, shift: 0, bias: Bias::None, activation: Activation::None }
    }
}

/// Runs one product and compares; `O` is the type of `C`.
pub fn check<T: Element, O: Element>(case: Case) {
    let Case { m, n, k, right, gap, shift, activation, .. } = case;
    let mut random = Random::new((m * 10_007 + n * 101 + k) as u64);
    let (a, b) = (random.normals::<T>(m * k), random.normals::<T>(n * k));
    let bias = random.normals::<T>(n);
    let (b_rows, b_width) = if right == Right::Transposed { (n, k) } else { (k, n) };
    let lie = |rows: usize, width: usize| {
        // A gap keeps 16-byte rows when the width has them.
        let stride = if shift == 0 { (width + gap).next_multiple_of(8) } else { width + gap };
        Layout { stride, ..Layout::dense(rows, width).shift(shift) }
    };
    let (a_lies, b_lies, c_lies) = (lie(m, k), lie(b_rows, b_width), lie(m, n));
    let (a_in, b_in) = (Input::<T>::new(&a, a_lies), Input::<T>::new(&b, b_lies));
    let (same, wide) = (Input::<T>::dense(&bias), Input::<f32>::dense(&bias));
    let (same, wide) = (same.view(), wide.view());
    let param = match case.bias {
        Bias::None => Param::None,
        Bias::Same => Param::Same(&same),
        Bias::F32 => Param::F32(&wide),
    };
    let mut c = Output::<O>::new(c_lies);
    let shape =
        Shape { m, n, k, right, lda: a_lies.stride as i64, ldb: b_lies.stride as i64, ldc: c_lies.stride as i64 };
    let options =
        Options { out: O::DTYPE, activation, policy: Some(Policy { tile: case.tile }), ..Options::new(T::DTYPE) };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    plan.run(&device::stream(), &a_in.view(), &b_in.view(), param, &mut c.view_mut()).unwrap();
    device::finish();
    let shape = oracle::Shape { m, n, k, transposed: right == Right::Transposed };
    let bias = (case.bias != Bias::None).then_some(&bias[..]);
    let expected = oracle::forward(&shape, &a, &b, bias, reference(activation));
    let what = format!("gemm {} -> {} {case:?}", T::DTYPE, O::DTYPE);
    assert_close(&what, &c.read(), &expected, n.max(1), gate(O::DTYPE));
}

const EDGES: [usize; 12] = [0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 129, 200];

/// Each edge in each place, with the other two odd; then random triples of edges.
fn edges<T: Element, O: Element>(right: Right, tile: Tile, shift: usize) {
    let base = Case { shift, ..Case::new(right, tile, 0, 0, 0) };
    for edge in EDGES {
        check::<T, O>(Case { m: edge, n: 33, k: 41, ..base });
        check::<T, O>(Case { m: 33, n: edge, k: 41, bias: Bias::Same, ..base });
        check::<T, O>(Case { m: 33, n: 41, k: edge, bias: Bias::F32, ..base });
    }
    let mut random = Random::new(77);
    for _ in 0..6 {
        let mut edge = || EDGES[random.below(EDGES.len())];
        let (m, n, k) = (edge(), edge(), edge());
        let activation = Activation::ALL[random.below(Activation::ALL.len())];
        check::<T, O>(Case { m, n, k, gap: 8, bias: Bias::Same, activation, ..base });
    }
}

#[test]
fn gemm__f32_small_tiles() {
    edges::<f32, f32>(Right::Transposed, Tile::Small, 0);
    edges::<f32, f32>(Right::Plain, Tile::Small, 0);
}

#[test]
fn gemm__f32_large_tiles() {
    edges::<f32, f32>(Right::Transposed, Tile::Large, 0);
    edges::<f32, f32>(Right::Plain, Tile::Large, 0);
}

#[test]
fn gemm__f32_off_alignment() {
    edges::<f32, f32>(Right::Transposed, Tile::Small, 1);
    edges::<f32, f32>(Right::Plain, Tile::Small, 1);
}

#[test]
fn gemm__bf16_small_tiles() {
    edges::<bf16, bf16>(Right::Transposed, Tile::Small, 0);
    edges::<bf16, bf16>(Right::Plain, Tile::Small, 0);
}

#[test]
fn gemm__bf16_large_tiles() {
    edges::<bf16, bf16>(Right::Transposed, Tile::Large, 0);
    edges::<bf16, bf16>(Right::Plain, Tile::Large, 0);
}

#[test]
fn gemm__bf16_off_alignment() {
    edges::<bf16, bf16>(Right::Transposed, Tile::Small, 1);
    edges::<bf16, bf16>(Right::Plain, Tile::Small, 3);
}

/// Up to 16 rows, rows of whole 16 bytes.
fn skinny<T: Element, O: Element>() {
    let chunk = 16 / T::DTYPE.size();
    for m in [0, 1, 2, 7, 8, 9, 15, 16] {
        for (n, k) in [(1, 8), (15, 40), (16, 512), (17, 1096), (40, 0), (200, 64)] {
            let k = k / 8 * chunk;
            let case = Case { activation: Activation::Silu, ..Case::new(Right::Transposed, Tile::Skinny, m, n, k) };
            check::<T, O>(Case { bias: Bias::Same, ..case });
            if n == 17 {
                check::<T, O>(Case { gap: 8, bias: Bias::F32, ..case });
            }
        }
    }
    // Off the alignment the plan falls back to small tiles.
    check::<T, O>(Case { shift: 1, bias: Bias::Same, ..Case::new(Right::Transposed, Tile::Skinny, 3, 20, 2 * chunk) });
}

#[test]
fn gemm__skinny() {
    skinny::<f32, f32>();
    skinny::<bf16, bf16>();
    skinny::<f16, f16>();
    skinny::<bf16, f32>();
}

/// The variants that differ in conversions alone get fewer sizes.
fn few<T: Element, O: Element>() {
    for right in [Right::Transposed, Right::Plain] {
        for (tile, shift) in [(Tile::Small, 0), (Tile::Large, 0), (Tile::Small, 1)] {
            for (m, n, k) in [(1, 1, 1), (65, 129, 40), (17, 200, 96), (130, 72, 0)] {
                let case = Case { shift, bias: Bias::F32, ..Case::new(right, tile, m, n, k) };
                check::<T, O>(Case { activation: Activation::Gelu, ..case });
                check::<T, O>(Case { bias: Bias::Same, gap: 5, ..case });
            }
        }
    }
}

#[test]
fn gemm__f16() {
    few::<f16, f16>();
}

#[test]
fn gemm__f32_output() {
    few::<bf16, f32>();
    few::<f16, f32>();
}

#[test]
fn gemm__every_activation() {
    for activation in Activation::ALL {
        for (m, n, k) in [(20, 24, 32), (5, 70, 9)] {
            let case = Case { activation, bias: Bias::Same, ..Case::new(Right::Transposed, Tile::Small, m, n, k) };
            check::<f32, f32>(case);
            check::<bf16, bf16>(case);
        }
    }
}

/// `C += A B` where every element of `C` is known.
fn accumulate<T: Element, O: Element>(shape: Shape, tile: Tile, gap: usize) {
    let Shape { m, n, k, .. } = shape;
    let mut random = Random::new(41);
    let (a, b, old) = (random.normals::<T>(m * k), random.normals::<T>(n * k), random.normals::<O>(m * n));
    let (a_in, b_in) = (Input::<T>::dense(&a), Input::<T>::dense(&b));
    let lies = Layout::dense(m, n).gap(gap);
    let c = Input::<O>::new(&old, lies);
    let options = Options { out: O::DTYPE, policy: Some(Policy { tile }), ..Options::new(T::DTYPE) };
    let plan =
        Plan::new(&Shape { ldc: lies.stride as i64, ..shape }, &options, &device::info()).unwrap().accumulating();
    let (a_at, b_at, c_at) = (address(&a_in.view()), address(&b_in.view()), address(&c.view()));
    // SAFETY: all three live until the synchronisation below, and nothing else uses them.
    unsafe { plan.run_raw(&device::stream(), a_at, b_at, 0, None, c_at) }.unwrap();
    device::finish();
    let with = oracle::Shape { m, n, k, transposed: shape.right == Right::Transposed };
    let product = oracle::forward(&with, &a, &b, None, reference(Activation::None));
    let expected: Vec<f64> = product.iter().zip(&old).map(|(new, old)| new + old).collect();
    let c = download(&device::stream().clone_dtod(&c.view()).unwrap());
    let c: Vec<f64> = c.chunks(lies.stride).flat_map(|row| row[..n].iter().map(|v| v.to_f64())).collect();
    let what = format!("accumulate {} -> {} {shape:?} {tile:?} gap {gap}", T::DTYPE, O::DTYPE);
    assert_close(&what, &c, &expected, n, gate(O::DTYPE));
}

#[test]
fn gemm__accumulates() {
    for (shape, tile) in [
        (Shape::linear(70, 72, 40), Tile::Small),
        (Shape::plain(130, 72, 16), Tile::Large),
        (Shape::linear(5, 24, 64), Tile::Skinny),
        (Shape::linear(9, 24, 0), Tile::Small),
    ] {
        for gap in [0, 3, 8] {
            accumulate::<f32, f32>(shape, tile, gap);
            accumulate::<bf16, bf16>(shape, tile, gap);
            accumulate::<f16, f32>(shape, tile, gap);
        }
    }
}

#[test]
fn gemm__f32_long_sum_keeps_its_digits() {
    // 2048 products all of one sign: a sum that is cut, not rounded, would drift by more than the gate.
    let (m, n, k) = (16, 16, 2048);
    let mut random = Random::new(31);
    let (a, b) = (random.uniforms::<f32>(m * k, 0.5, 1.5), random.uniforms::<f32>(n * k, 0.5, 1.5));
    let (a_in, b_in) = (Input::<f32>::dense(&a), Input::<f32>::dense(&b));
    let c = linear(&device::stream(), &a_in.view(), &b_in.view(), Param::None, (m, n, k), Activation::None).unwrap();
    let c: Vec<f64> = download(&c).into_iter().map(f64::from).collect();
    let shape = oracle::Shape { m, n, k, transposed: true };
    let expected = oracle::forward(&shape, &a, &b, None, reference(Activation::None));
    assert_close("long sum", &c, &expected, n, Gate::F32);
}

fn special<T: Element>(m: usize, k: usize) {
    let n = 66;
    let mut random = Random::new(13);
    let (mut a, mut b) = (random.normals::<T>(m * k), random.normals::<T>(n * k));
    a[3 * k + k - 1] = f64::NAN;
    a[m / 2 * k] = f64::INFINITY;
    a[(m - 1) * k + k - 1] = f64::NEG_INFINITY;
    b[5 * k] = 0.0;
    b[65 * k + k / 2] = f64::INFINITY;
    b[7 * k + k - 1] = f64::NAN;
    for shift in [0, 1] {
        let a_in = Input::<T>::new(&a, Layout::dense(m, k).shift(shift));
        let b_in = Input::<T>::new(&b, Layout::dense(n, k).shift(shift));
        let c =
            linear(&device::stream(), &a_in.view(), &b_in.view(), Param::None, (m, n, k), Activation::None).unwrap();
        let c: Vec<f64> = download(&c).into_iter().map(Element::to_f64).collect();
        let shape = oracle::Shape { m, n, k, transposed: true };
        let expected = oracle::forward(&shape, &a, &b, None, reference(Activation::None));
        assert_close(&format!("special {} m {m} k {k} shift {shift}", T::DTYPE), &c, &expected, n, gate(T::DTYPE));
    }
}

#[test]
fn gemm__nan_and_infinities_stay_in_their_row_and_column() {
    for (m, k) in [(70, 24), (70, 67), (10, 24), (16, 40)] {
        special::<f32>(m, k);
        special::<bf16>(m, k);
    }
}

#[test]
fn gemm__bad_calls_are_refused() {
    let info = device::info();
    let options = Options::new(DType::F32);
    let dense = Shape::linear(4, 8, 16);
    let refused = |shape: Shape, options: &Options| Plan::new(&shape, options, &info).unwrap_err();
    assert!(matches!(refused(Shape { m: 1 << 40, ..dense }, &options), Error::Range { arg: "m", .. }));
    assert!(matches!(refused(Shape { n: 1 << 30, ldc: 1 << 30, ..dense }, &options), Error::Range { arg: "n", .. }));
    assert!(matches!(refused(Shape { k: 1 << 31, ..dense }, &options), Error::Range { arg: "k", .. }));
    assert!(matches!(refused(Shape { lda: -16, ..dense }, &options), Error::Layout { arg: "a", .. }));
    assert!(matches!(refused(Shape { ldb: i64::MAX, ..dense }, &options), Error::Layout { arg: "b", .. }));
    assert!(matches!(refused(Shape { ldc: 7, ..dense }, &options), Error::Layout { arg: "c", .. }));
    let halves = Options { out: DType::F16, ..Options::new(DType::Bf16) };
    assert!(matches!(refused(dense, &halves), Error::Dtype { arg: "out", .. }));

    let skinny = Options { policy: Some(Policy { tile: Tile::Skinny }), ..options };
    for shape in [Shape::linear(17, 8, 16), Shape::plain(4, 8, 16), Shape::linear(4, 8, 15)] {
        assert!(matches!(refused(shape, &skinny), Error::NoKernel { .. }));
    }

    let plan = Plan::new(&dense, &options, &info).unwrap();
    let (a, b) = (Input::<f32>::dense(&[1.0; 64]), Input::<f32>::dense(&[1.0; 128]));
    let mut c = Output::<f32>::new(Layout::dense(4, 8));
    let stream = device::stream();
    let error = plan.run(&stream, &b.view(), &a.view(), Param::None, &mut c.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "b", .. }), "{error}");
    let short = a.view();
    let short = short.slice(..7);
    let error = plan.run(&stream, &a.view(), &b.view(), Param::Same(&short), &mut c.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "bias", .. }), "{error}");
    let (a_at, b_at, c_at) = (address(&a.view()), address(&b.view()), address_mut(&mut c.view_mut()));
    let run = |a: u64, b: u64, bias: Option<DType>, c: u64| {
        // SAFETY: the host refuses these calls before any launch.
        unsafe { plan.run_raw(&stream, a, b, 0, bias, c) }.unwrap_err()
    };
    assert!(matches!(run(a_at, b_at, None, a_at + 64), Error::Alias { a: "c", b: "a", .. }));
    assert!(matches!(run(a_at, b_at, None, b_at), Error::Alias { a: "c", b: "b", .. }));
    assert!(matches!(run(a_at + 2, b_at, None, c_at), Error::Align { arg: "a", .. }));
    assert!(matches!(run(a_at, b_at, Some(DType::F32), c_at), Error::Align { arg: "bias", .. }));
    assert!(matches!(run(a_at, b_at, Some(DType::F16), c_at), Error::Dtype { arg: "bias", .. }));
    device::finish();
    assert!(c.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
