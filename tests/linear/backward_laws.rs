//! The golden vectors of the backward pass, and laws that hold whatever the numbers are.

use super::{
    backward_case::{Adjoints, Gradients, compare, oracle, run, run_inputs},
    case::{Case, Data, Direction, run as forward},
};
use cudarc::driver::DevicePtr;
use lookback_device::DType;
use lookback_linear::{BackwardInputs, BackwardPlan, Decay, Inputs, Mode, Read, Shape, Stride, Strides};
use lookback_suite::{
    buffer::upload_as,
    device,
    random::{golden, round},
};

const T: usize = 9;
const K: usize = 4;
const V: usize = 3;

/// Inputs of the golden table; segments 0, 0, 0, 0, 1, 1, 1, 2, 2.
fn golden_case(decay: Decay, segmented: bool) -> (Case, Data, Adjoints) {
    let case = Case { heads: 1, query_heads: 1, key_heads: 1, decay, scale: 0.5, ..Case::new(DType::F32, 1, T, K, V) };
    let width = if decay == Decay::Vector { K } else { 1 };
    let single = |values: Vec<f64>| values.into_iter().map(round::<f32>).collect::<Vec<_>>();
    let decays = golden(7.0, T * width).iter().map(|x| -(1.0 + (-(x + 1.0)).exp()).ln()).collect();
    let own = Direction {
        q: single(golden(1.0, T * K)),
        k: single(golden(2.0, T * K)),
        g: single(decays),
        state: Some(single(golden(4.0, K * V))),
    };
    let flags = segmented.then(|| vec![0, 0, 0, 2, 1, 0, 2, 1, 0]);
    let data = Data { own, reverse: None, v: single(golden(3.0, T * V)), u: None, flags, normalizer: None };
    let adjoints = Adjoints {
        d_o: single(golden(5.0, T * V)),
        d_state: Some(single(golden(6.0, K * V))),
        d_reverse_state: None,
        d_normalizer: None,
        o: Vec::new(),
        denominator: Vec::new(),
    };
    (case, data, adjoints)
}

fn golden_gradients(decay: Decay, segmented: bool) -> Gradients {
    let (case, data, adjoints) = golden_case(decay, segmented);
    run::<f32>(&case, &data, &adjoints)
}

fn check(what: &str, got: &[f64], want: [f64; 3]) {
    let sums = [got.iter().sum(), got.iter().map(|v| v.abs()).sum(), *got.last().expect("some")];
    for (got, want) in sums.iter().zip(want) {
        // Inputs are rounded to f32, and so is every step.
        assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "{what}: {sums:?}, want {want}");
    }
}

#[test]
fn backward_golden_scalar_decays() {
    let got = golden_gradients(Decay::Scalar, false);
    check("dq", &got.dq, [1.457_791_808, 9.473_477_640, -0.066_981_773]);
    check("dk", &got.dk, [-0.568_926_968, 13.191_751_395, 0.930_955_087]);
    check("dv", &got.dv, [3.499_117_242, 11.207_691_163, -0.719_413_998]);
    check("dg", &got.dg, [2.758_558_832, 3.355_273_487, 0.473_340_877]);
    check("d_state", &got.d_state, [-2.007_769_332, 2.978_704_342, -0.208_487_398]);
    let got = golden_gradients(Decay::Scalar, true);
    check("dq", &got.dq, [0.410_266_948, 8.817_762_693, -0.356_279_069]);
    check("dk", &got.dk, [0.849_491_318, 12.248_348_561, 0.930_955_087]);
    check("dv", &got.dv, [4.233_184_564, 10.781_461_628, -0.719_413_998]);
    check("dg", &got.dg, [0.756_068_485, 1.975_556_605, 0.733_352_498]);
    check("d_state", &got.d_state, [-2.842_177_951, 3.621_506_555, -0.290_093_770]);
}

#[test]
fn backward_golden_vector_decays() {
    let got = golden_gradients(Decay::Vector, false);
    check("dq", &got.dq, [1.504_536_863, 10.040_945_774, -0.099_322_714]);
    check("dk", &got.dk, [-2.316_410_359, 14.655_375_890, 0.930_955_087]);
    check("dv", &got.dv, [2.663_704_138, 11.593_636_383, -0.719_413_998]);
    check("dg", &got.dg, [3.709_761_316, 11.158_481_021, -0.615_847_602]);
    check("d_state", &got.d_state, [-1.070_449_377, 2.287_866_767, -0.137_313_874]);
    let got = golden_gradients(Decay::Vector, true);
    check("dg", &got.dg, [0.547_260_423, 5.398_011_319, -0.048_623_748]);
    check("d_state", &got.d_state, [-1.838_462_908, 2.905_331_087, -0.212_251_454]);
}

/// Values of some tokens.
fn tokens(values: &[f64], seq_len: usize, from: usize, to: usize) -> Vec<f64> {
    let width = values.len() / seq_len;
    values[from * width..to * width].to_vec()
}

#[test]
fn backward_of_two_parts_with_carried_states_is_that_of_the_whole() {
    for (decay, mode) in [(Decay::Scalar, Mode::Causal), (Decay::Vector, Mode::Reverse)] {
        let whole = Case { decay, mode, ..Case::new(DType::F32, 1, 40, 12, 6) };
        let data = Data::new::<f32>(&whole);
        let adjoints = Adjoints::new::<f32>(&whole, &data);
        let all = oracle(&whole, &data, &adjoints);
        let at = 17;
        let part = |from: usize, to: usize| {
            let own = Direction {
                q: tokens(&data.own.q, 40, from, to),
                k: tokens(&data.own.k, 40, from, to),
                g: tokens(&data.own.g, 40, from, to),
                state: data.own.state.clone(),
            };
            let adjoints = Adjoints { d_o: tokens(&adjoints.d_o, 40, from, to), ..adjoints.clone() };
            (
                Case { seq_len: to - from, ..whole.clone() },
                Data { own, v: tokens(&data.v, 40, from, to), ..data.clone() },
                adjoints,
            )
        };
        let (head, tail) = (part(0, at), part(at, 40));
        let forwards = mode == Mode::Causal;
        // The part that is visited first, then the one that goes on from its state.
        let ((first, first_data, mut first_adjoints), (second, mut second_data, second_adjoints)) =
            if forwards { (head, tail) } else { (tail, head) };
        second_data.own.state = Some(forward::<f32>(&first, &first_data).state);
        let late = run::<f32>(&second, &second_data, &second_adjoints);
        first_adjoints.d_state = Some(late.d_state.clone());
        let early = run::<f32>(&first, &first_data, &first_adjoints);
        let (d_state, [a, b]) = (early.d_state.clone(), if forwards { [early, late] } else { [late, early] });
        let joined = Gradients {
            dq: [a.dq, b.dq].concat(),
            dk: [a.dk, b.dk].concat(),
            dv: [a.dv, b.dv].concat(),
            dg: [a.dg, b.dg].concat(),
            d_state,
            ..Gradients::default()
        };
        compare(&whole, &joined, &all);
    }
}

#[test]
fn backward_of_packed_sequences_is_that_of_each_alone() {
    let starts = vec![0, 7, 7, 30];
    let packed = Case {
        decay: Decay::Vector,
        read: Read::ExclusiveBonus,
        starts: Some(starts.clone()),
        ..Case::new(DType::F32, 1, 30, 12, 6)
    };
    let data = Data::new::<f32>(&packed);
    let adjoints = Adjoints::new::<f32>(&packed, &data);
    let all = run::<f32>(&packed, &data, &adjoints);
    let per_state = |values: &Option<Vec<f64>>, n: usize| {
        values.as_ref().map(|v| v[n * v.len() / 3..(n + 1) * v.len() / 3].to_vec())
    };
    for n in 0..3 {
        let (from, to) = (starts[n] as usize, starts[n + 1] as usize);
        let alone = Case { starts: None, seq_len: to - from, ..packed.clone() };
        let own = Direction {
            q: tokens(&data.own.q, 30, from, to),
            k: tokens(&data.own.k, 30, from, to),
            g: tokens(&data.own.g, 30, from, to),
            state: per_state(&data.own.state, n),
        };
        let one = Data { own, v: tokens(&data.v, 30, from, to), ..data.clone() };
        let adjoints = Adjoints {
            d_o: tokens(&adjoints.d_o, 30, from, to),
            d_state: per_state(&adjoints.d_state, n),
            ..adjoints.clone()
        };
        let got = run::<f32>(&alone, &one, &adjoints);
        assert_eq!(got.dq, tokens(&all.dq, 30, from, to), "sequence {n}");
        assert_eq!(got.dk, tokens(&all.dk, 30, from, to), "sequence {n}");
        assert_eq!(got.dv, tokens(&all.dv, 30, from, to), "sequence {n}");
        assert_eq!(got.dg, tokens(&all.dg, 30, from, to), "sequence {n}");
        assert_eq!(Some(got.d_state), per_state(&Some(all.d_state.clone()), n), "sequence {n}");
    }
}

#[test]
fn backward_reads_strided_tensors() {
    // q, k, v, o and d_o lie in rows of one wider tensor each, heads before tokens.
    let (b, t, h) = (2, 11, 2);
    for (read, normalize) in [(Read::Inclusive, None), (Read::ExclusiveBonus, None), (Read::Shifted, Some(0.5))] {
        let case = Case { decay: Decay::Scalar, read, normalize, ..Case::new(DType::F32, b, t, 12, 6) };
        let data = Data::new::<f32>(&case);
        let adjoints = Adjoints::new::<f32>(&case, &data);
        let stride = |width: usize| Stride {
            batch: (h * t * (width + 3)) as i64,
            token: (width + 3) as i64,
            head: (t * (width + 3)) as i64,
        };
        let place = |values: &[f64], width: usize| {
            let mut buffer = vec![f64::NAN; b * h * t * (width + 3)];
            for (row, values) in values.chunks(width).enumerate() {
                let (batch, token, head) = (row / h / t, row / h % t, row % h);
                buffer[((batch * h + head) * t + token) * (width + 3)..][..width].copy_from_slice(values);
            }
            upload_as::<f32>(&buffer)
        };
        let (q, k, v) = (place(&data.own.q, 12), place(&data.own.k, 12), place(&data.v, 6));
        let (g, d_o) = (place(&data.own.g, 1), place(&adjoints.d_o, 6));
        let o = normalize.map(|_| place(&adjoints.o, 6));
        let floats = |values: &Option<Vec<f64>>| values.as_ref().map(|v| upload_as::<f32>(v));
        let denominator = normalize.map(|_| upload_as::<f32>(&adjoints.denominator));
        let (u, state, normalizer) = (floats(&data.u), floats(&data.own.state), floats(&data.normalizer));
        let (d_state, d_normalizer) = (floats(&adjoints.d_state), floats(&adjoints.d_normalizer));
        let [q_at, v_at, g_at] = [stride(12), stride(6), stride(1)].map(Some);
        let strides = Strides { q: q_at, k: q_at, v: v_at, g: g_at, o: v_at };
        let shape = Shape { strides, ..case.shape() };
        let plan = BackwardPlan::new(&shape, &case.options(), &device::info()).unwrap_or_else(|e| panic!("{e}"));
        let some = super::case::some::<f32>;
        let inputs = Inputs {
            g: Some(&g as &dyn DevicePtr<f32>),
            bonus: some(&u),
            state: some(&state),
            normalizer: some(&normalizer),
            ..Inputs::of(&q, &k, &v)
        };
        let inputs = BackwardInputs {
            o: some(&o),
            denominator: some(&denominator),
            d_state: some(&d_state),
            d_normalizer: some(&d_normalizer),
            ..BackwardInputs::of(inputs, &d_o)
        };
        compare(&case, &run_inputs::<f32>(&case, &plan, &inputs), &oracle(&case, &data, &adjoints));
    }
}
