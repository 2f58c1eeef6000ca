//! One token of decoding against the oracle of the whole recurrence.

use half::{bf16, f16};
use lookback_device::{
    DType, Element, Error,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_linear::{
    Decay, Mode, Options, Read, Shape, Stride, Strides,
    step::{Inputs, Outputs, Plan, Raw},
};
use lookback_reference::linear_attention as reference;
use lookback_suite::{
    buffer::{Guarded, download, upload_as},
    counters::Counters,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub query_heads: usize,
    pub key_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub decay: Decay,
    pub read: Read,
    pub bonus: bool,
    pub normalize: bool,
    /// Elements between rows of `q`, `k`, `v` and `o`.
    pub gap: usize,
}

pub const CASE: Case = Case {
    batch: 2,
    tokens: 1,
    heads: 3,
    query_heads: 3,
    key_heads: 3,
    key_dim: 64,
    value_dim: 64,
    decay: Decay::Scalar,
    read: Read::Inclusive,
    bonus: false,
    normalize: false,
    gap: 0,
};

impl Case {
    fn options(&self, dtype: DType) -> Options {
        Options {
            dtype,
            decay: self.decay,
            read: self.read,
            scale: 0.25,
            normalize: self.normalize.then_some(1e-3),
            ..Options::new::<f32>(&Shape::dense(1, 1, 1, 1, 1))
        }
    }

    fn shape(&self) -> Shape {
        let stride = |heads: usize, width: usize| {
            let head = (width + self.gap) as i64;
            Some(Stride { batch: heads as i64 * head + 4 * self.gap as i64, token: 0, head })
        };
        let strides = Strides {
            q: stride(self.query_heads, self.key_dim),
            k: stride(self.key_heads, self.key_dim),
            v: stride(self.heads, self.value_dim),
            g: None,
            o: stride(self.heads, self.value_dim),
        };
        Shape {
            query_heads: self.query_heads,
            key_heads: self.key_heads,
            strides,
            ..Shape::dense(self.batch, 1, self.heads, self.key_dim, self.value_dim)
        }
    }

    /// Token `t` of `[B,T,heads,width]`, spread over the strides with NaN between rows, or dense without a gap.
    fn token(&self, values: &[f64], t: usize, heads: usize, width: usize) -> Vec<f64> {
        let (head, batch) = (width + self.gap, heads * (width + self.gap) + 4 * self.gap);
        let mut out = vec![f64::NAN; (self.batch - 1) * batch + (heads - 1) * head + width];
        for b in 0..self.batch {
            for h in 0..heads {
                let from = &values[((b * self.tokens + t) * heads + h) * width..][..width];
                out[b * batch + h * head..][..width].copy_from_slice(from);
            }
        }
        out
    }
}

pub fn check<T: Element>(case: Case) {
    let Case { batch, tokens, heads, query_heads, key_heads, key_dim, value_dim, .. } = case;
    let mut random = Random::new((key_dim * 1000 + value_dim + tokens) as u64);
    let positive = |v: Vec<f64>| if case.normalize { v.into_iter().map(f64::abs).collect() } else { v };
    let q = positive(random.normals::<T>(batch * tokens * query_heads * key_dim));
    let k = positive(random.normals::<T>(batch * tokens * key_heads * key_dim));
    let v = random.normals::<T>(batch * tokens * heads * value_dim);
    let (s0, z0) = (random.normals::<f32>(batch * heads * key_dim * value_dim), batch * heads * key_dim);
    let z0 = positive(random.normals::<f32>(z0));
    let g_len = match case.decay {
        Decay::None => 0,
        Decay::Head => heads,
        Decay::Scalar => batch * tokens * heads,
        Decay::Vector => batch * tokens * heads * key_dim,
    };
    let g = random.uniforms::<f32>(g_len, -2.0, 0.0);
    let u = case.bonus.then(|| random.normals::<f32>(heads * key_dim));

    let shape = case.shape();
    let plan = Plan::new(&shape, &case.options(T::DTYPE), &device::info()).unwrap();
    let mut state = upload_as::<f32>(&s0);
    let mut z = upload_as::<f32>(&z0);
    let u_in = u.as_ref().map(|u| upload_as::<f32>(u));
    let (mut o_all, mut den_all) = (vec![0.0; batch * tokens * heads * value_dim], vec![0.0; batch * tokens * heads]);
    for t in 0..tokens {
        let (q, k) = (case.token(&q, t, query_heads, key_dim), case.token(&k, t, key_heads, key_dim));
        let v = case.token(&v, t, heads, value_dim);
        let dense = Case { gap: 0, ..case };
        let g = match case.decay {
            Decay::None => None,
            Decay::Head => Some(upload_as::<f32>(&g)),
            Decay::Scalar => Some(upload_as::<f32>(&dense.token(&g, t, heads, 1))),
            Decay::Vector => Some(upload_as::<f32>(&dense.token(&g, t, heads, key_dim))),
        };
        let (q_in, k_in, v_in) = (upload_as::<T>(&q), upload_as::<T>(&k), upload_as::<T>(&v));
        let mut o = Guarded::<T>::poisoned(v.len(), 1);
        let mut den = Guarded::<f32>::poisoned(batch * heads, 1);
        let inputs = Inputs {
            q: &q_in,
            k: &k_in,
            v: &v_in,
            g: g.as_ref().map(|g| g as &dyn DevicePtr<f32>),
            bonus: u_in.as_ref().map(|u| u as &dyn DevicePtr<f32>),
        };
        let (mut o_view, mut den_view) = (o.view_mut(), den.view_mut());
        let outputs = Outputs {
            state: &mut state,
            z: case.normalize.then_some(&mut z as &mut dyn DevicePtrMut<f32>),
            o: &mut o_view,
            den: case.normalize.then_some(&mut den_view as &mut dyn DevicePtrMut<f32>),
        };
        plan.run(&device::stream(), &inputs, outputs).unwrap();
        device::finish();
        let (o, den) = (o.read(), den.read());
        for b in 0..batch {
            for h in 0..heads {
                let row = (b * tokens + t) * heads + h;
                let head = value_dim + case.gap;
                let from = b * (heads * head + 4 * case.gap) + h * head;
                o_all[row * value_dim..][..value_dim].copy_from_slice(&o[from..][..value_dim]);
                den_all[row] = den[b * heads + h];
            }
        }
        let written = o.iter().filter(|v| !v.is_nan()).count();
        assert_eq!(written, batch * heads * value_dim, "{case:?}: gaps of o were written");
    }
    let attention = reference::Attention {
        batch,
        seq_len: tokens,
        heads,
        q_heads: query_heads,
        k_heads: key_heads,
        key_dim,
        value_dim,
        mode: reference::Mode::Causal,
        read: match case.read {
            Read::ExclusiveBonus => reference::Read::ExclusiveBonus,
            _ => reference::Read::Inclusive,
        },
        scale: 0.25,
        normalize: case.normalize.then_some(f64::from(1e-3_f32)),
        flags: None,
        cu_seqlens: None,
        prefix_len: None,
    };
    let tensors = reference::Inputs {
        q: &q,
        k: &k,
        v: &v,
        decay: match case.decay {
            Decay::None => reference::Decay::None,
            Decay::Head => reference::Decay::Head(&g),
            Decay::Scalar => reference::Decay::Scalar(&g),
            Decay::Vector => reference::Decay::Vector(&g),
        },
        u: u.as_deref(),
        s0: Some(&s0),
        z0: Some(&z0),
        reverse: None,
    };
    let want = reference::forward(&attention, &tensors);
    let what = format!("step {} {case:?}", T::DTYPE);
    assert_close(&what, &o_all, &want.o, value_dim, gate(T::DTYPE));
    let read = |slice: &CudaSlice<f32>| download(slice).into_iter().map(f64::from).collect::<Vec<_>>();
    assert_close(&format!("{what} state"), &read(&state), &want.s_final, value_dim, Gate::F32);
    if case.normalize {
        assert_close(&format!("{what} z"), &read(&z), &want.z_final, key_dim, Gate::F32);
        assert_close(&format!("{what} den"), &den_all, &want.den, heads, Gate::F32);
    }
}

#[test]
fn step_matches_the_oracle_for_every_decay_and_read() {
    for decay in [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector] {
        for (read, bonus) in [(Read::Inclusive, false), (Read::ExclusiveBonus, false), (Read::ExclusiveBonus, true)] {
            let case = Case { decay, read, bonus, key_dim: 40, value_dim: 36, ..CASE };
            check::<f32>(case);
            check::<bf16>(Case { normalize: true, gap: 4, ..case });
            check::<f16>(Case { query_heads: 1, normalize: decay == Decay::Vector, value_dim: 7, ..case });
        }
    }
}

#[test]
fn step_matches_the_oracle_for_every_size() {
    for (key_dim, value_dim) in [(1, 1), (16, 64), (64, 16), (65, 128), (128, 100), (129, 5), (256, 256), (7, 260)] {
        check::<f32>(Case { key_dim, value_dim, heads: 2, query_heads: 1, key_heads: 1, ..CASE });
        check::<bf16>(Case {
            key_dim,
            value_dim,
            batch: 1,
            heads: 2,
            query_heads: 2,
            key_heads: 1,
            normalize: true,
            ..CASE
        });
    }
    check::<f16>(Case { gap: 3, ..CASE });
    check::<f32>(Case { gap: 1, ..CASE });
}

#[test]
fn step_many_steps_are_the_recurrence() {
    for (decay, read, bonus) in [(Decay::Scalar, Read::Inclusive, false), (Decay::Vector, Read::ExclusiveBonus, true)] {
        let case = Case { tokens: 40, batch: 1, heads: 2, query_heads: 1, key_heads: 2, decay, read, bonus, ..CASE };
        check::<f32>(case);
        check::<bf16>(Case { normalize: true, key_dim: 32, value_dim: 24, ..case });
    }
}

#[test]
fn step_counters_are_at_the_floor() {
    fn count<T: Element>(value_dim: usize) {
        let (batch, heads, key_dim) = (2, 4, 128);
        let shape = Shape { key_heads: 1, query_heads: 1, ..Shape::dense(batch, 1, heads, key_dim, value_dim) };
        let options = Options { decay: Decay::Scalar, ..Options::new::<T>(&shape) };
        let plan = Plan::new(&shape, &options, &device::info()).unwrap();
        let mut random = Random::new(3);
        let (q, k) = (random.normals::<T>(batch * key_dim), random.normals::<T>(batch * key_dim));
        let v = random.normals::<T>(batch * heads * value_dim);
        let (q, k, v) = (upload_as::<T>(&q), upload_as::<T>(&k), upload_as::<T>(&v));
        let g = upload_as::<f32>(&vec![-0.5; batch * heads]);
        let mut state = upload_as::<f32>(&vec![1.0; batch * heads * key_dim * value_dim]);
        let mut o = upload_as::<T>(&vec![0.0; batch * heads * value_dim]);
        let run = || {
            let inputs = Inputs { q: &q, k: &k, v: &v, g: Some(&g), bonus: None };
            let outputs = Outputs { state: &mut state, z: None, o: &mut o, den: None };
            plan.run(&device::stream(), &inputs, outputs).unwrap();
        };
        let Some(counters) = Counters::of(run) else { return };
        let what = format!("step {} V = {value_dim}", T::DTYPE);
        counters.assert_streams(&what, plan.bytes_moved());
        counters.assert_coalesced(&what);
        let state_bytes = (4 * batch * heads * key_dim * value_dim) as u64;
        assert_eq!(
            counters.number("global_stores/bytes"),
            state_bytes + (batch * heads * value_dim * T::DTYPE.size()) as u64
        );
        // The state is requested once; the rest is vectors, which blocks and their row groups read again from the cache.
        let loaded = counters.number("global_loads/bytes");
        assert!(loaded < state_bytes * 5 / 4, "{what}: {loaded} of {state_bytes}");
    }
    for value_dim in [64, 128] {
        count::<f32>(value_dim);
        count::<bf16>(value_dim);
    }
}

#[test]
fn step_bad_calls_are_refused() {
    let info = device::info();
    let dense = Shape::dense(2, 1, 4, 64, 64);
    let options = Options::new::<f32>(&dense);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { seq_len: 2, ..dense }, options), Error::Range { arg: "seq_len", .. }));
    assert!(matches!(refused(Shape { key_dim: 257, ..dense }, options), Error::Range { arg: "key_dim", .. }));
    assert!(matches!(refused(Shape { key_heads: 3, ..dense }, options), Error::Shape { arg: "key_heads", .. }));
    assert!(matches!(refused(Shape { query_heads: 0, ..dense }, options), Error::Range { arg: "query_heads", .. }));
    assert!(matches!(refused(dense, Options { mode: Mode::Bidirectional, ..options }), Error::NoKernel { .. }));
    assert!(matches!(refused(dense, Options { read: Read::Shifted, ..options }), Error::NoKernel { .. }));
    let overlapping = Strides { o: Some(Stride { batch: 64, token: 0, head: 64 }), ..Strides::default() };
    assert!(matches!(refused(Shape { strides: overlapping, ..dense }, options), Error::Layout { arg: "o", .. }));

    let plan = Plan::new(&dense, &options, &info).unwrap();
    let x = upload_as::<f32>(&[0.0; 512]);
    let mut state = Guarded::<f32>::poisoned(2 * 4 * 64 * 64, 0);
    let mut o = Guarded::<f32>::poisoned(512, 0);
    let run = |g: Option<&dyn DevicePtr<f32>>, state: &mut dyn DevicePtrMut<f32>, o: &mut dyn DevicePtrMut<f32>| {
        let inputs = Inputs { q: &x, k: &x, v: &x, g, bonus: None };
        plan.run(&device::stream(), &inputs, Outputs { state, z: None, o, den: None }).unwrap_err()
    };
    let error = run(Some(&x), &mut state.view_mut(), &mut o.view_mut());
    assert!(matches!(error, Error::Shape { arg: "g", .. }), "{error}");
    let error = run(None, &mut o.view_mut(), &mut state.view_mut());
    assert!(matches!(error, Error::Shape { arg: "state", .. }), "{error}");
    let address = x.device_ptr(&device::stream()).0;
    let raw = Raw { q: address, k: address, v: address, o: address, ..Raw::default() };
    let raw = Raw { state: state.view_mut().device_ptr_mut(&device::stream()).0, ..raw };
    // SAFETY: the host refuses the call before any launch.
    let error = unsafe { plan.run_raw(&device::stream(), &raw) }.unwrap_err();
    assert!(matches!(error, Error::Alias { a: "o", b: "q", .. }), "{error}");
    device::finish();
    assert!(state.read().iter().chain(&o.read()).all(|v| v.is_nan()), "nothing may be written on an error");
}
