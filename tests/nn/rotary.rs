use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::rotary::{Grid, Inputs, Options, Plan, Shape, Stride, Style, turns};
use lookback_reference::rotary::{self as oracle, Rotary};
use lookback_suite::{
    buffer::{download, upload},
    counters::Counters,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy)]
struct Case {
    size: [usize; 4],
    style: Style,
    rotary_dim: usize,
    extents: &'static [usize],
    prefix: usize,
    positions: Option<&'static [i32]>,
    starts: Option<&'static [i32]>,
    offset: i32,
    /// Elements between heads, and off the alignment.
    gap: usize,
    shift: usize,
}

/// Everything turns, on a line from 0 on.
fn case(size: [usize; 4], style: Style) -> Case {
    let [.., rotary_dim] = size;
    Case {
        size,
        style,
        rotary_dim,
        extents: &[],
        prefix: 0,
        positions: None,
        starts: None,
        offset: 0,
        gap: 0,
        shift: 0,
    }
}

impl Case {
    fn options(&self, dtype: DType) -> Options {
        let grid = (!self.extents.is_empty()).then(|| Grid::new(self.extents, self.prefix));
        let options = Options::new(dtype, self.style, self.size[3]);
        Options { rotary_dim: self.rotary_dim, theta_dim: self.rotary_dim.max(1), grid, offset: self.offset, ..options }
    }

    fn shape(&self, [read, written]: [usize; 2]) -> Shape {
        let [batch, tokens, heads, head_dim] = self.size;
        let gapped = |width: usize| (self.gap > 0).then(|| Stride::dense(tokens, heads, width + self.gap));
        Shape {
            packed: self.starts.map(|s| s.len() - 1),
            x_stride: gapped(read),
            out_stride: gapped(written),
            ..Shape::dense(batch, tokens, heads, head_dim)
        }
    }

    fn oracle(&self) -> Rotary<'static> {
        let [batch, tokens, heads, head_dim] = self.size;
        let style = match self.style {
            Style::Half => oracle::Style::Half,
            Style::Interleaved => oracle::Style::Interleaved,
            Style::Cosine => oracle::Style::Cosine,
        };
        Rotary {
            batch,
            tokens,
            heads,
            head_dim,
            style,
            base: 1e4,
            rotary_dim: self.rotary_dim,
            theta_dim: self.rotary_dim.max(1),
            extents: self.extents,
            prefix: self.prefix,
            positions: self.positions,
            starts: self.starts,
            offset: self.offset,
            frequencies: None,
        }
    }
}

/// Forward and backward against the oracle.
fn check<T: Element>(case: Case) {
    let [batch, tokens, heads, head_dim] = case.size;
    let rows = batch * tokens * heads;
    let wide = if case.style == Style::Cosine { 2 * head_dim } else { head_dim };
    let mut random = Random::new((rows * 1000 + head_dim) as u64);
    let (x, dout) = (random.normals::<T>(rows * head_dim), random.normals::<T>(rows * wide));
    let (positions, starts) = (case.positions.map(upload), case.starts.map(upload));
    let mut inputs = Inputs::default();
    if let Some(positions) = &positions {
        inputs.positions = Some(positions);
    }
    if let Some(starts) = &starts {
        inputs.cu_seqlens = Some(starts);
    }
    for backwards in [false, true] {
        let (values, [read, written]) = if backwards { (&dout, [wide, head_dim]) } else { (&x, [head_dim, wide]) };
        let layout = |width: usize| Layout::dense(rows, width).gap(case.gap).shift(case.shift);
        let x_in = Input::<T>::new(values, layout(read));
        let mut out = Output::<T>::new(layout(written));
        let make = if backwards { Plan::backward } else { Plan::new };
        let plan = make(&case.shape([read, written]), &case.options(T::DTYPE), &device::info()).unwrap();
        plan.run(&device::stream(), &x_in.view(), inputs, &mut out.view_mut()).unwrap();
        device::finish();
        let rotary = case.oracle();
        let expected = if backwards { oracle::backward(&rotary, values) } else { oracle::forward(&rotary, values) };
        let what = format!("rotary {} backwards {backwards} {case:?}", T::DTYPE);
        assert_close(&what, &out.read(), &expected, written, gate(T::DTYPE));
    }
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for style in [Style::Half, Style::Interleaved, Style::Cosine] {
        for size in [[2, 5, 3, 2 * vec], [1, 3, 9, 64], [2, 40, 1, 6], [1, 1, 5, 2], [0, 3, 2, 8], [1, 0, 2, 8]] {
            check::<T>(case(size, style));
            check::<T>(Case { gap: vec, offset: 1000, ..case(size, style) });
            check::<T>(Case { gap: 1, shift: 1, ..case(size, style) });
        }
        // More units than a block has threads, of single elements.
        check::<T>(Case { shift: 1, ..case([1, 2, 2, 600], style) });
        let positions: &[i32] = &[0, 7, -3, 1 << 20, (1 << 20) + 1, 999_999, i32::MAX, i32::MIN, 12, 1];
        check::<T>(Case { positions: Some(positions), ..case([2, 5, 2, 64], style) });
        // Empty sequences, and two tokens that belong to none.
        let starts: &[i32] = &[0, 0, 3, 4, 4, 11];
        check::<T>(Case { starts: Some(starts), offset: -2, ..case([1, 13, 2, 16], style) });
        // Two axes with whole accesses, three that part them, one after a prefix; positions outside the grid.
        let grid = case([1, 14, 2, 8 * vec], style);
        check::<T>(Case { extents: &[3, 4], prefix: 2, ..grid });
        check::<T>(Case { extents: &[2, 2, 3], ..grid });
        check::<T>(Case { extents: &[1, 2, 1, 7], prefix: 1, ..case([1, 14, 2, 10], style) });
        check::<T>(Case { extents: &[14], prefix: 3, ..grid });
        check::<T>(Case { extents: &[5, 4000], positions: Some(positions), ..case([2, 5, 1, 32], style) });
        if style != Style::Cosine {
            for rotary_dim in [0, 2, vec, 2 * vec] {
                check::<T>(Case { rotary_dim, ..case([2, 3, 2, 4 * vec], style) });
            }
            check::<T>(Case { rotary_dim: 2 * vec, extents: &[3, 3], ..case([2, 9, 2, 3 * vec], style) });
        }
    }
}

#[test]
fn rotary__f32() {
    sizes::<f32>();
}

#[test]
fn rotary__f16() {
    sizes::<f16>();
}

#[test]
fn rotary__bf16() {
    sizes::<bf16>();
}

#[test]
fn rotary__far_positions_are_as_exact_as_near_ones() {
    // Each row one pair (1, 0), whose image is (cos, sin): the error is that of the angle.
    let (tokens, head_dim) = (64, 128);
    let mut random = Random::new(5);
    for limit in [1 << 10, 1 << 20, 1 << 30] {
        let positions: Vec<i32> = (0..tokens).map(|_| random.below(limit) as i32).collect();
        let mut x = vec![0.0; tokens * head_dim];
        x.chunks_exact_mut(head_dim).for_each(|row| row[..head_dim / 2].fill(1.0));
        let x_in = Input::<f32>::dense(&x);
        let positions_in = upload(&positions);
        let mut out = Output::<f32>::new(Layout::dense(tokens, head_dim));
        let options = Options::new(DType::F32, Style::Half, head_dim);
        let plan = Plan::new(&Shape::dense(1, tokens, 1, head_dim), &options, &device::info()).unwrap();
        let inputs = Inputs { positions: Some(&positions_in), ..Inputs::default() };
        plan.run(&device::stream(), &x_in.view(), inputs, &mut out.view_mut()).unwrap();
        device::finish();
        let worst = out.read().chunks_exact(head_dim).zip(&positions).fold(0.0_f64, |worst, (row, p)| {
            (0..head_dim / 2).fold(worst, |worst, i| {
                let angle = f64::from(*p) * 1e4_f64.powf(-2.0 * i as f64 / head_dim as f64);
                worst.max((row[i] - angle.cos()).abs()).max((row[head_dim / 2 + i] - angle.sin()).abs())
            })
        });
        // The reference's own product of position and frequency is off by 2^-53 of itself.
        let bound = 2e-7 + f64::from(limit as u32) * 2_f64.powi(-52);
        assert!(worst < bound, "positions below {limit}: {worst:e}, want {bound:e}");
    }
}

#[test]
fn rotary__back_and_forth_in_place() {
    let (tokens, heads, head_dim) = (6, 3, 40);
    let x = Random::new(8).normals::<f32>(tokens * heads * head_dim);
    for style in [Style::Half, Style::Interleaved] {
        let options = Options { rotary_dim: 24, offset: 77, ..Options::new(DType::F32, style, head_dim) };
        let shape = Shape::dense(1, tokens, heads, head_dim);
        let there = Plan::new(&shape, &options, &device::info()).unwrap();
        let back = Plan::backward(&shape, &options, &device::info()).unwrap();
        let x_in = Input::<f32>::dense(&x);
        let at = address(&x_in.view());
        // SAFETY: the tensor lives until the synchronisation below, and nothing else uses it; the last call is refused.
        let refused = unsafe {
            there.run_raw(&device::stream(), at, 0, 0, 0, at).unwrap();
            back.run_raw(&device::stream(), at, 0, 0, 0, at).unwrap();
            there.run_raw(&device::stream(), at, 0, 0, 0, at + 16)
        };
        assert!(matches!(refused, Err(Error::Alias { a: "out", b: "x", .. })), "{refused:?}");
        device::finish();
        let again = download(&device::stream().clone_dtod(&x_in.view()).unwrap());
        let again: Vec<f64> = again.into_iter().map(f64::from).collect();
        assert_close("there and back", &again, &x, head_dim, Gate::F32);
    }
}

#[test]
fn rotary__heads_before_tokens() {
    // x as [batch, heads, tokens, head_dim], out as [batch, tokens, heads, head_dim].
    let case = case([2, 5, 3, 8], Style::Half);
    let [batch, tokens, heads, head_dim] = case.size;
    let x = Random::new(9).normals::<f32>(batch * tokens * heads * head_dim);
    let step = head_dim as i64;
    let turned = Stride { batch: 15 * step, token: step, head: 5 * step };
    let shape = Shape { x_stride: Some(turned), ..Shape::dense(batch, tokens, heads, head_dim) };
    let plan = Plan::new(&shape, &case.options(DType::F32), &device::info()).unwrap();
    let x_in = Input::<f32>::dense(&x);
    let mut out = Output::<f32>::new(Layout::dense(batch * tokens * heads, head_dim));
    plan.run(&device::stream(), &x_in.view(), Inputs::default(), &mut out.view_mut()).unwrap();
    device::finish();
    let rows =
        (0..batch).flat_map(|b| (0..tokens).flat_map(move |t| (0..heads).map(move |h| (b * heads + h) * tokens + t)));
    let plain: Vec<f64> = rows.flat_map(|row| x[row * head_dim..][..head_dim].to_vec()).collect();
    assert_close("heads first", &out.read(), &oracle::forward(&case.oracle(), &plain), head_dim, Gate::F32);
}

#[test]
fn rotary__bad_calls_are_refused() {
    let info = device::info();
    let options = Options::new(DType::F32, Style::Half, 8);
    let dense = Shape::dense(2, 4, 3, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(dense, Options { rotary_dim: 10, ..options }), Error::Range { arg: "rotary_dim", .. }));
    assert!(matches!(refused(dense, Options { rotary_dim: 3, ..options }), Error::Shape { arg: "rotary_dim", .. }));
    let cosine = Options { style: Style::Cosine, rotary_dim: 4, ..options };
    assert!(matches!(refused(dense, cosine), Error::Range { arg: "rotary_dim", .. }));
    assert!(matches!(refused(dense, Options { base: 0.5, ..options }), Error::Range { arg: "base", .. }));
    assert!(matches!(refused(dense, Options { base: f64::NAN, ..options }), Error::Range { arg: "base", .. }));
    let five = Options { grid: Some(Grid::new(&[2; 5], 0)), ..options };
    assert!(matches!(refused(dense, five), Error::Range { arg: "axes", got: 5, .. }));
    let empty = Options { grid: Some(Grid::new(&[2, 0], 0)), ..options };
    assert!(matches!(refused(dense, empty), Error::Range { arg: "extents", .. }));
    let near = Stride { head: 7, ..Stride::dense(4, 3, 8) };
    assert!(matches!(refused(Shape { out_stride: Some(near), ..dense }, options), Error::Layout { arg: "out", .. }));
    assert!(matches!(refused(Shape { packed: Some(2), ..dense }, options), Error::Range { arg: "batch", .. }));
    let x = Input::<f32>::dense(&[1.0; 192]);
    let mut out = Output::<f32>::new(Layout::dense(24, 8));
    let (stream, starts) = (device::stream(), upload(&[0, 8]));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let inputs = Inputs { cu_seqlens: Some(&starts), ..Inputs::default() };
    let error = plan.run(&stream, &x.view(), inputs, &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "cu_seqlens", .. }), "{error}");
    let inputs = Inputs { positions: Some(&starts), ..Inputs::default() };
    let error = plan.run(&stream, &x.view(), inputs, &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "positions", .. }), "{error}");
    let table = upload(&[1_u64; 3]);
    let inputs = Inputs { frequencies: Some(&table), ..Inputs::default() };
    let error = plan.run(&stream, &x.view(), inputs, &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "frequencies", .. }), "{error}");
    let packed = Plan::new(&Shape::packed(2, 8, 3, 8), &options, &info).unwrap();
    let error = packed.run(&stream, &x.view(), Inputs::default(), &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "cu_seqlens", .. }), "{error}");
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}

/// Whole accesses and single elements, two axes, positions far out: angles are as good as those of the powers.
#[test]
fn rotary__frequencies_may_be_given() {
    let radians: Vec<f64> = (0..16).map(|i| 0.9_f64.powi(i * i) / f64::from(1 + i % 3)).collect();
    let table = upload(&radians.iter().map(|f| turns(*f)).collect::<Vec<u64>>());
    let positions: &[i32] = &[0, 7, -3, 1 << 20, i32::MAX];
    for style in [Style::Half, Style::Interleaved, Style::Cosine] {
        for (gap, extents) in [(0, &[][..]), (1, &[]), (0, &[2, 3])] {
            let head_dim = 16 * extents.len().max(1) * if style == Style::Cosine { 1 } else { 2 };
            let case = Case { gap, extents, positions: Some(positions), ..case([1, 5, 3, head_dim], style) };
            let rows = 15;
            let wide = if style == Style::Cosine { 2 * head_dim } else { head_dim };
            let x = Random::new(4).normals::<f32>(rows * head_dim);
            let x_in = Input::<f32>::new(&x, Layout::dense(rows, head_dim).gap(gap));
            let mut out = Output::<f32>::new(Layout::dense(rows, wide).gap(gap));
            let plan = Plan::new(&case.shape([head_dim, wide]), &case.options(DType::F32), &device::info()).unwrap();
            let at = upload(positions);
            let inputs = Inputs { positions: Some(&at), frequencies: Some(&table), ..Inputs::default() };
            plan.run(&device::stream(), &x_in.view(), inputs, &mut out.view_mut()).unwrap();
            device::finish();
            let rotary = Rotary { frequencies: Some(&radians), ..case.oracle() };
            assert_close(&format!("{case:?}"), &out.read(), &oracle::forward(&rotary, &x), wide, Gate::F32);
        }
    }
}

fn streams<T: Element>() {
    let (batch, tokens, heads, head_dim) = (2, 24, 6, 128);
    let mut random = Random::new(2);
    for style in [Style::Half, Style::Interleaved, Style::Cosine] {
        for backwards in [false, true] {
            let options = Options::new(T::DTYPE, style, head_dim);
            let wide = if style == Style::Cosine { 2 * head_dim } else { head_dim };
            let (read, written) = if backwards { (wide, head_dim) } else { (head_dim, wide) };
            let rows = batch * tokens * heads;
            let x = Input::<T>::dense(&random.normals::<T>(rows * read));
            let mut out = Output::<T>::new(Layout::dense(rows, written));
            let make = if backwards { Plan::backward } else { Plan::new };
            let plan = make(&Shape::dense(batch, tokens, heads, head_dim), &options, &device::info()).unwrap();
            let run = || {
                plan.run(&device::stream(), &x.view(), Inputs::default(), &mut out.view_mut()).unwrap();
            };
            let Some(counters) = Counters::of(run) else { return };
            let what = format!("rotary {} {style:?} backwards {backwards}", T::DTYPE);
            counters.assert_coalesced(&what);
            counters.assert_streams(&what, plan.bytes_moved());
            assert_eq!(counters.number("global_loads/bytes"), (rows * read * T::DTYPE.size()) as u64, "{what}");
        }
    }
}

#[test]
fn rotary__counters_are_at_the_floor() {
    streams::<f32>();
    streams::<bf16>();
}
