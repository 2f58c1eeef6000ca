use super::*;

fn golden(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}

fn log_sigmoid(phase: f64, n: usize) -> Vec<f64> {
    golden(phase, n).iter().map(|x| -(-(x + 1.0)).exp().ln_1p()).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Sum, sum of absolute values, last element, as the golden table lists them.
fn check(name: &str, values: &[f64], [sum, abs, last]: [f64; 3]) {
    let got = [values.iter().sum(), values.iter().map(|v| v.abs()).sum(), values[values.len() - 1]];
    for (got, want) in got.into_iter().zip([sum, abs, last]) {
        assert!((got - want).abs() < 1e-8, "{name}: {got} is not {want}");
    }
}

pub(super) const GOLDEN: Attention = Attention {
    batch: 1,
    seq_len: 9,
    heads: 1,
    q_heads: 1,
    k_heads: 1,
    key_dim: 4,
    value_dim: 3,
    mode: Mode::Causal,
    read: Read::Inclusive,
    scale: 0.5,
    normalize: None,
    flags: None,
    cu_seqlens: None,
    prefix_len: None,
};

/// Segments 0, 0, 0, 0, 1, 1, 1, 2, 2.
const SEGMENTS: [u8; 9] = [0, 0, 0, 2, 1, 0, 2, 1, 0];

/// Cuts of both directions, also next to each other and at the ends.
pub(super) fn flags_of(tokens: usize) -> Vec<u8> {
    (0..tokens).map(|t| [0, 2, 0, 3, 1, 0, 0, 1, 2][t % 9]).collect()
}

/// Every tensor of a small mixer, at the sizes that `attention` asks for.
#[derive(Clone)]
pub(super) struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub g: Vec<f64>,
    pub u: Vec<f64>,
    pub s0: Vec<f64>,
    pub z0: Vec<f64>,
    pub d_o: Vec<f64>,
    pub ds: Vec<f64>,
    pub dz: Vec<f64>,
}

pub(super) fn data(attention: &Attention, g: usize) -> Data {
    let rows = attention.batch * attention.seq_len;
    let states = attention.sequences() * attention.heads * attention.key_dim;
    Data {
        q: golden(1.0, rows * attention.q_heads * attention.key_dim),
        k: golden(2.0, rows * attention.k_heads * attention.key_dim),
        v: golden(3.0, rows * attention.heads * attention.value_dim),
        g: log_sigmoid(7.0, g),
        u: golden(8.0, attention.heads * attention.key_dim),
        s0: golden(4.0, attention.state_len()),
        z0: golden(9.0, states),
        d_o: golden(5.0, rows * attention.heads * attention.value_dim),
        ds: golden(6.0, attention.state_len()),
        dz: golden(10.0, states),
    }
}

impl Data {
    pub fn inputs<'a>(&'a self, decay: Decay<'a>) -> Inputs<'a> {
        let (u, s0, z0) = (Some(self.u.as_slice()), Some(self.s0.as_slice()), Some(self.z0.as_slice()));
        Inputs { q: &self.q, k: &self.k, v: &self.v, decay, u, s0, z0, reverse: None }
    }

    pub fn adjoint(&self) -> Adjoint<'_> {
        Adjoint { o: &self.d_o, s_final: Some(&self.ds), z_final: Some(&self.dz) }
    }
}

#[test]
fn scalar_decay_matches_the_golden_vectors() {
    let data = Data { dz: vec![0.0; 4], ..data(&GOLDEN, 9) };
    let inputs = data.inputs(Decay::Scalar(&data.g));
    let out = forward(&GOLDEN, &inputs);
    check("o", &out.o, [-1.727037742, 11.544278084, -0.384450479]);
    check("s_final", &out.s_final, [0.349957122, 9.588143365, -1.307679628]);
    let grads = backward(&GOLDEN, &inputs, &data.adjoint());
    check("dq", &grads.own.dq, [1.457791808, 9.473477640, -0.066981773]);
    check("dk", &grads.own.dk, [-0.568926968, 13.191751395, 0.930955087]);
    check("dv", &grads.dv, [3.499117242, 11.207691163, -0.719413998]);
    check("dg", &grads.own.dg, [2.758558832, 3.355273487, 0.473340877]);
    check("ds0", &grads.ds0, [-2.007769332, 2.978704342, -0.208487398]);

    let cut = Attention { flags: Some(&SEGMENTS), ..GOLDEN };
    let out = forward(&cut, &inputs);
    check("o", &out.o, [-3.903302774, 10.061789422, -0.385520347]);
    check("s_final", &out.s_final, [3.668605727, 10.262777446, -0.969857133]);
    let grads = backward(&cut, &inputs, &data.adjoint());
    check("dq", &grads.own.dq, [0.410266948, 8.817762693, -0.356279069]);
    check("dk", &grads.own.dk, [0.849491318, 12.248348561, 0.930955087]);
    check("dv", &grads.dv, [4.233184564, 10.781461628, -0.719413998]);
    check("dg", &grads.own.dg, [0.756068485, 1.975556605, 0.733352498]);
    check("ds0", &grads.ds0, [-2.842177951, 3.621506555, -0.290093770]);
}

#[test]
fn vector_decay_matches_the_golden_vectors() {
    let data = Data { dz: vec![0.0; 4], ..data(&GOLDEN, 36) };
    let inputs = data.inputs(Decay::Vector(&data.g));
    let out = forward(&GOLDEN, &inputs);
    check("o", &out.o, [-0.959527872, 12.215930705, -0.354440580]);
    check("s_final", &out.s_final, [1.102650277, 8.674451414, -1.234700806]);
    let grads = backward(&GOLDEN, &inputs, &data.adjoint());
    check("dq", &grads.own.dq, [1.504536863, 10.040945774, -0.099322714]);
    check("dk", &grads.own.dk, [-2.316410359, 14.655375890, 0.930955087]);
    check("dv", &grads.dv, [2.663704138, 11.593636383, -0.719413998]);
    check("dg", &grads.own.dg, [3.709761316, 11.158481021, -0.615847602]);
    check("ds0", &grads.ds0, [-1.070449377, 2.287866767, -0.137313874]);

    let cut = Attention { flags: Some(&SEGMENTS), ..GOLDEN };
    let out = forward(&cut, &inputs);
    check("o", &out.o, [-4.150878968, 9.974785065, -0.328285974]);
    check("s_final", &out.s_final, [3.663805671, 9.669237257, -0.938146620]);
    let grads = backward(&cut, &inputs, &data.adjoint());
    check("dg", &grads.own.dg, [0.547260423, 5.398011319, -0.048623748]);
    check("ds0", &grads.ds0, [-1.838462908, 2.905331087, -0.212251454]);
}

#[test]
fn exclusive_bonus_matches_the_golden_vector() {
    let attention = Attention { read: Read::ExclusiveBonus, scale: 1.0, ..GOLDEN };
    let data = data(&attention, 36);
    let out = forward(&attention, &data.inputs(Decay::Vector(&data.g)));
    check("o", &out.o, [11.807418534, 22.598137545, -0.638215751]);
}

/// Central differences of a weighted sum of the outputs against what a backward pass says.
fn check_gradient(name: &str, input: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-6;
    assert_eq!(input.len(), gradient.len(), "{name}");
    for n in 0..input.len() {
        let mut moved = input.to_vec();
        moved[n] = input[n] + STEP;
        let up = loss(&moved);
        moved[n] = input[n] - STEP;
        let slope = (up - loss(&moved)) / (2.0 * STEP);
        assert!((slope - gradient[n]).abs() < 1e-7, "{name}[{n}]: {} is not {slope}", gradient[n]);
    }
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    Head,
    Scalar,
    Vector,
}

fn decay(kind: Kind, g: &[f64]) -> Decay<'_> {
    match kind {
        Kind::None => Decay::None,
        Kind::Head => Decay::Head(g),
        Kind::Scalar => Decay::Scalar(g),
        Kind::Vector => Decay::Vector(g),
    }
}

fn check_gradients(name: &str, attention: &Attention, kind: Kind) {
    let rows = attention.batch * attention.seq_len * attention.heads;
    let len = match kind {
        Kind::None => 0,
        Kind::Head => attention.heads,
        Kind::Scalar => rows,
        Kind::Vector => rows * attention.key_dim,
    };
    let data = data(attention, len);
    let loss = |data: &Data| {
        let out = forward(attention, &data.inputs(decay(kind, &data.g)));
        dot(&out.o, &data.d_o) + dot(&out.s_final, &data.ds) + dot(&out.z_final, &data.dz)
    };
    let grads = backward(attention, &data.inputs(decay(kind, &data.g)), &data.adjoint());
    let at = |what: &str| format!("{what} of {name}");
    check_gradient(&at("q"), &data.q, &grads.own.dq, |q| loss(&Data { q: q.to_vec(), ..data.clone() }));
    check_gradient(&at("k"), &data.k, &grads.own.dk, |k| loss(&Data { k: k.to_vec(), ..data.clone() }));
    check_gradient(&at("v"), &data.v, &grads.dv, |v| loss(&Data { v: v.to_vec(), ..data.clone() }));
    check_gradient(&at("g"), &data.g, &grads.own.dg, |g| loss(&Data { g: g.to_vec(), ..data.clone() }));
    check_gradient(&at("u"), &data.u, &grads.du, |u| loss(&Data { u: u.to_vec(), ..data.clone() }));
    check_gradient(&at("s0"), &data.s0, &grads.ds0, |s0| loss(&Data { s0: s0.to_vec(), ..data.clone() }));
    check_gradient(&at("z0"), &data.z0, &grads.dz0, |z0| loss(&Data { z0: z0.to_vec(), ..data.clone() }));
}

const SMALL: Attention = Attention { batch: 2, seq_len: 5, heads: 2, key_dim: 3, value_dim: 2, ..GOLDEN };
const SMALL_FLAGS: [u8; 10] = [0, 2, 3, 0, 1, 1, 0, 0, 3, 2];

#[test]
fn gradients_agree_with_central_differences_in_every_mode() {
    for mode in [Mode::Causal, Mode::Reverse, Mode::Split(1), Mode::Bidirectional] {
        for read in [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted] {
            for kind in [Kind::None, Kind::Head, Kind::Scalar, Kind::Vector] {
                let attention = Attention { mode, read, flags: Some(&SMALL_FLAGS), ..SMALL };
                check_gradients(&format!("{mode:?} {read:?}"), &attention, kind);
            }
        }
    }
}

#[test]
fn gradients_agree_with_central_differences_under_a_normaliser() {
    for (mode, read) in
        [(Mode::Causal, Read::Inclusive), (Mode::Reverse, Read::Shifted), (Mode::Split(1), Read::ExclusiveBonus)]
    {
        let attention = Attention { mode, read, normalize: Some(40.0), flags: Some(&SMALL_FLAGS), ..SMALL };
        check_gradients("a normaliser", &attention, Kind::Vector);
    }
}

#[test]
fn gradients_agree_with_central_differences_in_groups_prefixes_and_packs() {
    let attention = Attention { batch: 1, seq_len: 7, heads: 4, q_heads: 2, k_heads: 1, ..SMALL };
    check_gradients("groups", &attention, Kind::Scalar);
    let cu = [0, 3, 3, 6];
    check_gradients("packs", &Attention { cu_seqlens: Some(&cu), ..attention }, Kind::Head);
    let prefix_len = [2, 0, 3];
    let prefix = Attention { prefix_len: Some(&prefix_len), cu_seqlens: Some(&cu), normalize: Some(40.0), ..attention };
    check_gradients("prefixes", &prefix, Kind::None);
}

#[test]
fn a_prefix_is_seen_by_all_and_then_it_is_causal() {
    let prefix_len = [4];
    let attention = Attention { prefix_len: Some(&prefix_len), ..GOLDEN };
    let data = data(&attention, 0);
    let causal = forward(&GOLDEN, &data.inputs(Decay::None)).o;
    let o = forward(&attention, &data.inputs(Decay::None)).o;
    for t in 4..9 {
        (0..3).for_each(|j| assert!((o[t * 3 + j] - causal[t * 3 + j]).abs() < 1e-12));
    }
    // A query in the prefix reads what the last token of the prefix reads.
    let mut same = data.clone();
    same.q.copy_within(12..16, 0);
    let o = forward(&attention, &same.inputs(Decay::None)).o;
    assert_eq!(o[0..3], o[9..12]);
}

fn flip(values: &[f64], width: usize) -> Vec<f64> {
    values.chunks(width).rev().flatten().copied().collect()
}

#[test]
fn reverse_equals_flip_forward_flip() {
    for read in [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted] {
        let causal = Attention { read, flags: Some(&SEGMENTS), ..GOLDEN };
        let data = data(&causal, 36);
        let there = forward(&causal, &data.inputs(Decay::Vector(&data.g)));
        let turned =
            Data { q: flip(&data.q, 4), k: flip(&data.k, 4), v: flip(&data.v, 3), g: flip(&data.g, 4), ..data.clone() };
        let flags: Vec<u8> = SEGMENTS.iter().rev().map(|f| f << 1 & 2).collect();
        let reverse = Attention { mode: Mode::Reverse, read, flags: Some(&flags), ..GOLDEN };
        let back = forward(&reverse, &turned.inputs(Decay::Vector(&turned.g)));
        assert_eq!(flip(&back.o, 3), there.o);
        assert_eq!(back.s_final, there.s_final);
    }
}

#[test]
fn two_halves_with_a_carried_state_equal_the_whole() {
    let whole = Attention { normalize: Some(40.0), ..GOLDEN };
    let data = data(&whole, 9);
    let all = forward(&whole, &data.inputs(Decay::Scalar(&data.g)));
    let grads = backward(&whole, &data.inputs(Decay::Scalar(&data.g)), &data.adjoint());
    let part = |from: usize, to: usize| Data {
        q: data.q[from * 4..to * 4].to_vec(),
        k: data.k[from * 4..to * 4].to_vec(),
        v: data.v[from * 3..to * 3].to_vec(),
        g: data.g[from..to].to_vec(),
        d_o: data.d_o[from * 3..to * 3].to_vec(),
        ..data.clone()
    };
    let (first, mut second) = (part(0, 4), part(4, 9));
    let (short, long) = (Attention { seq_len: 4, ..whole }, Attention { seq_len: 5, ..whole });
    let head = forward(&short, &first.inputs(Decay::Scalar(&first.g)));
    (second.s0, second.z0) = (head.s_final.clone(), head.z_final.clone());
    let tail = forward(&long, &second.inputs(Decay::Scalar(&second.g)));
    assert_eq!([head.o, tail.o].concat(), all.o);
    assert_eq!(tail.s_final, all.s_final);

    let tail = backward(&long, &second.inputs(Decay::Scalar(&second.g)), &second.adjoint());
    let adjoint = Adjoint { o: &first.d_o, s_final: Some(&tail.ds0), z_final: Some(&tail.dz0) };
    let head = backward(&short, &first.inputs(Decay::Scalar(&first.g)), &adjoint);
    assert_eq!([head.own.dq, tail.own.dq].concat(), grads.own.dq);
    assert_eq!([head.own.dg, tail.own.dg].concat(), grads.own.dg);
    assert_eq!((head.ds0, head.dz0), (grads.ds0, grads.dz0));
}

#[test]
fn the_reverse_walk_of_both_may_have_tensors_of_its_own() {
    let both = Attention { mode: Mode::Bidirectional, ..GOLDEN };
    let data = data(&both, 9);
    let (q, k, g) = (golden(11.0, 36), golden(12.0, 36), log_sigmoid(13.0, 9));
    let of = |q: &[f64], k: &[f64], g: &[f64]| {
        let reverse = Some(Direction { q, k, decay: Decay::Scalar(g) });
        dot(&forward(&both, &Inputs { reverse, ..data.inputs(Decay::Scalar(&data.g)) }).o, &data.d_o)
    };
    let reverse = Some(Direction { q: &q, k: &k, decay: Decay::Scalar(&g) });
    let grads = backward(&both, &Inputs { reverse, ..data.inputs(Decay::Scalar(&data.g)) }, &data.adjoint());
    let own = grads.reverse.expect("tensors of its own");
    check_gradient("q", &q, &own.dq, |q| of(q, &k, &g));
    check_gradient("k", &k, &own.dk, |k| of(&q, k, &g));
    check_gradient("g", &g, &own.dg, |g| of(&q, &k, g));
}
