use super::*;
use crate::linear_attention;

const REDUCE: Reduce<'_> = Reduce {
    batch: 1,
    seq_len: 9,
    heads: 1,
    q_heads: 1,
    k_heads: 1,
    key_dim: 4,
    value_dim: 3,
    map: Map::Identity,
    scale: 1.0,
    normalize: None,
    cu_seqlens: None,
    prefix_len: None,
};

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}

fn assert_row(values: &[f64], sum: f64, absolute: f64, last: f64) {
    let got = (values.iter().sum::<f64>(), values.iter().map(|v| v.abs()).sum::<f64>(), values[values.len() - 1]);
    let near = |a: f64, b: f64| (a - b).abs() < 2e-9;
    assert!(near(got.0, sum) && near(got.1, absolute) && near(got.2, last), "{got:?}");
}

#[test]
fn golden_light_net_both_ways() {
    let keys: Vec<f64> = wave(2.0, 36).iter().map(|x| 2.0 * x).collect();
    let out = forward(&Reduce { map: Map::Softmax, ..REDUCE }, &wave(1.0, 36), &keys, &wave(3.0, 27));
    assert_row(&out.o, -0.601144282, 6.817033485, -0.132655940);
}

#[test]
fn golden_encoder_state_of_prefix_linear_attention() {
    let encoder = Reduce { seq_len: 4, map: Map::Taylor, ..REDUCE };
    let state = forward(&encoder, &wave(0.0, 16), &wave(7.0, 16), &wave(8.0, 12));
    let features = |x: &[f64]| x.chunks(4).flat_map(|x| Map::Taylor.of(x)).collect::<Vec<_>>();
    let (q, k, v) = (features(&wave(1.0, 36)), features(&wave(2.0, 36)), wave(3.0, 27));
    let attention = linear_attention::Attention {
        batch: 1,
        seq_len: 9,
        heads: 1,
        q_heads: 1,
        k_heads: 1,
        key_dim: 153,
        value_dim: 3,
        mode: linear_attention::Mode::Causal,
        read: linear_attention::Read::Inclusive,
        scale: 1.0,
        normalize: Some(1e-12),
        flags: None,
        cu_seqlens: None,
        prefix_len: None,
    };
    let inputs = linear_attention::Inputs {
        q: &q,
        k: &k,
        v: &v,
        decay: linear_attention::Decay::None,
        u: None,
        s0: Some(&state.kv),
        z0: Some(&state.ksum),
        reverse: None,
    };
    assert_row(&linear_attention::forward(&attention, &inputs).o, -1.203347486, 4.163235784, -0.034237616);
}

#[test]
fn taylor_features_have_the_series_as_inner_product() {
    for d in [1, 4, 16] {
        let (x, y) = (wave(1.0, d), wave(2.0, d));
        let s = x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>() / (d as f64).sqrt();
        let product: f64 = Map::Taylor.of(&x).iter().zip(Map::Taylor.of(&y)).map(|(x, y)| x * y).sum();
        assert!((product - (1.0 + s + s * s / 2.0)).abs() < 1e-12);
    }
}

#[test]
fn normalised_constants_are_themselves() {
    for map in [Map::EluPlusOne, Map::Exp, Map::Taylor] {
        let p = Reduce { map, normalize: Some(0.0), ..REDUCE };
        let out = forward(&p, &wave(1.0, 36), &wave(2.0, 36), &[2.5; 27]);
        assert!(out.o.iter().all(|o| (o - 2.5).abs() < 1e-12), "{map:?}");
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    const CU: [i32; 5] = [0, 3, 3, 8, 10];
    const PREFIX: [i32; 4] = [2, 4, 0, 9];
    for map in [Map::Identity, Map::EluPlusOne, Map::Relu, Map::Exp, Map::Softmax, Map::Taylor] {
        for packed in [false, true] {
            let p = Reduce {
                batch: if packed { 1 } else { 2 },
                seq_len: if packed { 10 } else { 5 },
                heads: 4,
                q_heads: 2,
                k_heads: 1,
                key_dim: 3,
                value_dim: 2,
                map,
                scale: 0.7,
                normalize: (packed && map != Map::Softmax).then_some(3.0),
                cu_seqlens: packed.then_some(&CU),
                prefix_len: packed.then_some(&PREFIX),
            };
            let (n, f) = (p.sequences() * 4, p.features());
            let inputs = [wave(1.0, 10 * 2 * 3), wave(2.0, 10 * 3), wave(3.0, 10 * 4 * 2)];
            let (d_o, d_kv, d_ksum) = (wave(4.0, 80), wave(5.0, n * f * 2), wave(6.0, n * f));
            let has_sum = map != Map::Softmax;
            let loss = |x: &[Vec<f64>; 3]| {
                let out = forward(&p, &x[0], &x[1], &x[2]);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                dot(&out.o, &d_o) + dot(&out.kv, &d_kv) + if has_sum { dot(&out.ksum, &d_ksum) } else { 0.0 }
            };
            let out = forward(&p, &inputs[0], &inputs[1], &inputs[2]);
            let adjoint = Adjoint { o: &d_o, kv: Some(&d_kv), ksum: has_sum.then_some(&d_ksum) };
            let got = backward(&p, &inputs[0], &inputs[1], &inputs[2], &out, &adjoint);
            for (which, got) in [got.q, got.k, got.v].into_iter().enumerate() {
                for (i, got) in got.into_iter().enumerate() {
                    let mut moved = [inputs.clone(), inputs.clone()];
                    moved[0][which][i] += 1e-5;
                    moved[1][which][i] -= 1e-5;
                    let want = (loss(&moved[0]) - loss(&moved[1])) / 2e-5;
                    let near = (got - want).abs() < 1e-6 * (1.0 + want.abs());
                    assert!(near, "{map:?} packed {packed} input {which}[{i}]: {got} for {want}");
                }
            }
        }
    }
}
