//! Cases of merging, and the oracle's answer to them.

use lookback_attention::merge::{Inputs, Options, Outputs, Plan, Shape, StateStride, Strides};
use lookback_device::{
    Element,
    cudarc::driver::{DevicePtr, DevicePtrMut},
    strided::Stride,
};
use lookback_reference::attention::state::{State, merge};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{assert_close, gate},
    random::{Random, round},
};

#[derive(Debug, Clone)]
pub struct Case {
    pub states: usize,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub value_dim: usize,
    /// Tokens of `out` before and after those that are merged.
    pub before: usize,
    pub after: usize,
    /// States of each token, one after the other.
    pub starts: Option<Vec<i32>>,
    pub sink: bool,
    pub accumulate: bool,
    /// Elements between rows of everything.
    pub gap: usize,
    /// Elements off the alignment of `out`.
    pub shift: usize,
    /// Added to every lse.
    pub base: f64,
    /// Of the lse around the base.
    pub spread: f64,
    /// One of so many states is of no keys; 0 for none.
    pub empty_every: usize,
}

pub const CASE: Case = Case {
    states: 3,
    batch: 2,
    tokens: 5,
    heads: 3,
    value_dim: 64,
    before: 0,
    after: 0,
    starts: None,
    sink: false,
    accumulate: false,
    gap: 0,
    shift: 0,
    base: 0.0,
    spread: 4.0,
    empty_every: 0,
};

/// Dense host tensors.
#[derive(Clone)]
pub struct Data {
    /// `[states, batch, tokens, heads, value_dim]`, or without the two in the middle where tokens have their own.
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    pub sink: Vec<f64>,
    /// `[batch, all tokens, heads, value_dim]` before the launch.
    pub out: Vec<f64>,
    pub lse_out: Vec<f64>,
}

/// What a launch gave: `out` dense, `lse_out`.
pub type Merged = (Vec<f64>, Vec<f64>);

impl Case {
    pub fn shape(&self) -> Shape {
        let Case { states, batch, tokens, heads, value_dim, gap, .. } = *self;
        let all = self.all_tokens();
        let stride = |tokens: usize, width: usize| {
            let head = (width + gap) as i64;
            let token = heads as i64 * head + gap as i64;
            Stride { batch: tokens as i64 * token + gap as i64, token, head }
        };
        let states_of = |width: usize| {
            let within = stride(if self.starts.is_some() { 1 } else { tokens }, width);
            Some(StateStride { state: batch as i64 * within.batch + gap as i64, within })
        };
        let strides = Strides {
            o: states_of(value_dim),
            lse: states_of(1),
            out: Some(stride(all, value_dim)),
            lse_out: Some(stride(all, 1)),
        };
        let strides = if gap == 0 { Strides::default() } else { strides };
        let dense = match self.starts {
            Some(_) => Shape::ragged(states, tokens, heads, value_dim),
            None => Shape::dense(states, batch, tokens, heads, value_dim),
        };
        Shape { out_tokens: all, first_token: self.before, strides, ..dense }
    }

    fn all_tokens(&self) -> usize {
        self.before + self.tokens + self.after
    }

    /// Rows of a state.
    fn rows(&self) -> usize {
        if self.starts.is_some() { self.heads } else { self.batch * self.tokens * self.heads }
    }

    pub fn data<T: Element>(&self, seed: u64) -> Data {
        let mut random = Random::new(seed);
        let rows = self.states * self.rows();
        let mut o = random.normals::<T>(rows * self.value_dim);
        let mut lse: Vec<f64> =
            (0..rows).map(|_| round::<f32>(self.base + random.uniform(-self.spread, self.spread))).collect();
        let emptied = |i: usize| self.empty_every > 0 && i % self.empty_every == self.empty_every / 2;
        for i in (0..rows).filter(|i| emptied(*i)) {
            lse[i] = f64::NEG_INFINITY;
            // Nobody looks at it.
            o[i * self.value_dim..][..self.value_dim].fill(f64::NAN);
        }
        let out_rows = self.batch * self.all_tokens() * self.heads;
        let mut out = random.normals::<f32>(out_rows * self.value_dim);
        let mut lse_out: Vec<f64> =
            (0..out_rows).map(|_| round::<f32>(self.base + random.uniform(-self.spread, self.spread))).collect();
        for i in (0..out_rows).filter(|i| emptied(*i)) {
            lse_out[i] = f64::NEG_INFINITY;
            out[i * self.value_dim..][..self.value_dim].fill(f64::NAN);
        }
        let sink = (0..self.heads).map(|_| round::<f32>(self.base + random.uniform(-1.0, 1.0))).collect();
        Data { o, lse, sink, out, lse_out }
    }

    /// All of `out` and `lse_out` after the launch; what is not merged is NaN, or as it was where states run.
    pub fn oracle(&self, data: &Data) -> Merged {
        let (dv, all) = (self.value_dim, self.all_tokens());
        let state = |o: &[f64], lse: &[f64], row: usize| State { o: o[row * dv..][..dv].to_vec(), lse: lse[row] };
        let untouched = |v: &[f64]| if self.accumulate { v.to_vec() } else { vec![f64::NAN; v.len()] };
        let (mut out, mut lse_out) = (untouched(&data.out), untouched(&data.lse_out));
        for b in 0..self.batch {
            for t in 0..self.tokens {
                for h in 0..self.heads {
                    let own: Vec<usize> = match &self.starts {
                        None => {
                            let row = (b * self.tokens + t) * self.heads + h;
                            (0..self.states).map(|s| s * self.rows() + row).collect()
                        }
                        Some(starts) => {
                            let clamp = |s: i32| (s.max(0) as usize).min(self.states);
                            (clamp(starts[t])..clamp(starts[t + 1])).map(|s| s * self.heads + h).collect()
                        }
                    };
                    let to = (b * all + self.before + t) * self.heads + h;
                    let mut states = Vec::new();
                    if self.accumulate {
                        states.push(state(&data.out, &data.lse_out, to));
                    }
                    states.extend(own.into_iter().map(|row| state(&data.o, &data.lse, row)));
                    let mut merged = merge(&states, dv);
                    if self.sink {
                        merged = merged.with_sink(data.sink[h]);
                    }
                    out[to * dv..][..dv].copy_from_slice(&merged.o);
                    lse_out[to] = merged.lse;
                }
            }
        }
        (out, lse_out)
    }
}

/// Where row `i` of the extents begins.
fn place(mut i: usize, extents: [usize; 4], strides: [i64; 4]) -> usize {
    let mut at = 0;
    for d in (0..4).rev() {
        at += (i % extents[d]) * strides[d] as usize;
        i /= extents[d];
    }
    at
}

/// Dense rows by strides, NaN between.
fn spread(values: &[f64], extents: [usize; 4], strides: [i64; 4], width: usize) -> Vec<f64> {
    let rows: usize = extents.iter().product();
    let span = if rows == 0 { 0 } else { place(rows - 1, extents, strides) + width };
    let mut out = vec![f64::NAN; span];
    for i in 0..rows {
        out[place(i, extents, strides)..][..width].copy_from_slice(&values[i * width..][..width]);
    }
    out
}

/// The other way; what lies between must still be NaN.
fn gather(values: &[f64], extents: [usize; 4], strides: [i64; 4], width: usize) -> Vec<f64> {
    let rows: usize = extents.iter().product();
    let mut rest = values.to_vec();
    let mut out = Vec::with_capacity(rows * width);
    for i in 0..rows {
        let row = &mut rest[place(i, extents, strides)..][..width];
        out.extend_from_slice(row);
        row.fill(f64::NAN);
    }
    assert!(rest.iter().all(|v| v.is_nan()), "a gap was written");
    out
}

/// A buffer of these rows between guards.
fn guarded<T: Element>(values: &[f64], shift: usize) -> Guarded<T> {
    let mut buffer = Guarded::<T>::poisoned(values.len(), shift);
    let host: Vec<T> = values.iter().map(|v| T::from_f64(*v)).collect();
    if !host.is_empty() {
        device::stream().memcpy_htod(&host, &mut buffer.view_mut()).unwrap_or_else(|e| panic!("{:?}", e.0));
    }
    buffer
}

/// Runs a case. Without states that run, outputs are NaN before.
pub fn run<T: Element, U: Element>(case: &Case, data: &Data) -> Merged {
    let shape = case.shape();
    let options = Options { dtype: T::DTYPE, out: U::DTYPE, accumulate: case.accumulate };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let (heads, width, all) = (case.heads, case.value_dim, case.all_tokens());
    let tokens = if case.starts.is_some() { 1 } else { case.tokens };
    let extents = [case.states, case.batch, tokens, heads];
    let out_extents = [1, case.batch, all, heads];
    let dense = |e: [usize; 4], w: usize| {
        let (h, t) = (w as i64, (e[3] * w) as i64);
        [e[1] as i64 * e[2] as i64 * t, e[2] as i64 * t, t, h]
    };
    let of = |s: Option<StateStride>, e, w| {
        s.map_or(dense(e, w), |s| [s.state, s.within.batch, s.within.token, s.within.head])
    };
    let to = |s: Option<Stride>, e, w| s.map_or(dense(e, w), |s| [0, s.batch, s.token, s.head]);
    let (o_at, lse_at) = (of(shape.strides.o, extents, width), of(shape.strides.lse, extents, 1));
    let (out_at, lse_out_at) = (to(shape.strides.out, out_extents, width), to(shape.strides.lse_out, out_extents, 1));

    let o = upload_as::<T>(&spread(&data.o, extents, o_at, width));
    let lse = upload_as::<f32>(&spread(&data.lse, extents, lse_at, 1));
    let starts = case.starts.as_ref().map(|s| upload(s));
    let sink = upload_as::<f32>(&data.sink);
    let before = |v: &[f64]| if case.accumulate { v.to_vec() } else { vec![f64::NAN; v.len()] };
    let mut out = guarded::<U>(&spread(&before(&data.out), out_extents, out_at, width), case.shift);
    let mut lse_out = guarded::<f32>(&spread(&before(&data.lse_out), out_extents, lse_out_at, 1), case.shift);
    let inputs = Inputs {
        o: &o,
        lse: &lse,
        starts: starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
        sink: case.sink.then_some(&sink as &dyn DevicePtr<f32>),
    };
    {
        let (mut out_view, mut lse_view) = (out.view_mut(), lse_out.view_mut());
        let outputs = Outputs { out: &mut out_view, lse: Some(&mut lse_view as &mut dyn DevicePtrMut<f32>) };
        plan.run(&device::stream(), &inputs, outputs).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    device::finish();
    (gather(&out.read(), out_extents, out_at, width), gather(&lse_out.read(), out_extents, lse_out_at, 1))
}

/// The first `lse` that is not within 1e-5, or one place of f32 where it is large; infinities are exact.
pub fn far_lse(lse: &[f64], want: &[f64]) -> Option<usize> {
    let near = |(got, want): (&f64, &f64)| {
        (got - want).abs() <= 1e-5 + 1.2e-7 * want.abs() || got == want || (got.is_nan() && want.is_nan())
    };
    if lse.len() == want.len() { lse.iter().zip(want).position(|pair| !near(pair)) } else { Some(0) }
}

pub fn assert_lse(what: &str, lse: &[f64], want: &[f64]) {
    if let Some(i) = far_lse(lse, want) {
        panic!("{what}: lse {i} is {:?}, the oracle has {:?}", lse.get(i), want.get(i));
    }
}

/// Rows of no keys are exact.
pub fn check<T: Element, U: Element>(case: &Case) {
    let data = case.data::<T>(case.value_dim as u64 + 1000 * case.states as u64);
    let ((out, lse), (want, want_lse)) = (run::<T, U>(case, &data), case.oracle(&data));
    let what = format!("merge {} to {} {case:?}", T::DTYPE, U::DTYPE);
    assert_lse(&what, &lse, &want_lse);
    assert_close(&what, &out, &want, case.value_dim, gate(U::DTYPE));
    for (row, lse) in out.chunks(case.value_dim).zip(&want_lse) {
        assert!(*lse != f64::NEG_INFINITY || row.iter().all(|v| *v == 0.0), "{what}: a row of no keys is not 0");
    }
}
