use super::state::{State, merge, merge_pair};
use super::*;

fn golden(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}

/// Tensors of the sizes that `attention` asks for.
#[derive(Clone)]
struct Data {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Data {
    fn of(attention: &Attention) -> Self {
        let Attention { batch, query_len, key_len, heads, key_heads, head_dim, value_dim, .. } = *attention;
        Self {
            q: golden(0.1, batch * query_len * heads * head_dim),
            k: golden(0.7, batch * key_len * key_heads * head_dim),
            v: golden(1.3, batch * key_len * key_heads * value_dim),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { q: &self.q, k: &self.k, v: &self.v }
    }
}

/// Keys of every row, one string a row.
fn picture(attention: &Attention) -> Vec<String> {
    let of = |keys: &[usize], n| (0..n).map(|j| if keys.contains(&j) { 'x' } else { '.' }).collect();
    attention.rows().iter().map(|row| of(&row.keys, attention.key_len)).collect()
}

fn near(a: &[f64], b: &[f64], name: &str) {
    assert_eq!(a.len(), b.len(), "{name}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a == b || (a - b).abs() < 1e-12 * (1.0 + b.abs()), "{name}[{i}]: {a} is not {b}");
    }
}

#[test]
fn masks_are_intervals_of_keys() {
    let of = |m, n, mask| picture(&Attention { mask, ..Attention::dense(1, m, n, 1, 4) });
    assert_eq!(of(2, 3, Mask::FULL), ["xxx", "xxx"]);
    assert_eq!(of(2, 4, Mask::CAUSAL), ["xxx.", "xxxx"]);
    assert_eq!(of(4, 2, Mask::CAUSAL), ["..", "..", "x.", "xx"]);
    assert_eq!(of(3, 3, Mask { offset: Some(1), ..Mask::CAUSAL }), ["xx.", "xxx", "xxx"]);
    assert_eq!(of(3, 3, Mask::ANTI_CAUSAL), [".xx", "..x", "..."]);
    assert_eq!(of(4, 4, Mask { prefix_len: Some(&[2]), ..Mask::CAUSAL }), ["xx..", "xx..", "xxx.", "xxxx"]);
    assert_eq!(of(4, 4, Mask::window(1, 1, 0)), ["xx..", "xxx.", ".xxx", "..xx"]);
    assert_eq!(of(4, 4, Mask::window(1, 0, 1)), ["x...", "xx..", "xxx.", "x.xx"]);
    let intervals = [0, 1, 2, 4, -5, 2, 1, 2, 3, 3, 9, 12, 0, 0, 3, 99];
    let rows = of(4, 4, Mask { intervals: Some(&intervals), ..Mask::FULL });
    assert_eq!(rows, ["x.xx", "xx..", "....", "...x"], "clipped, and a key in both counts once");
    let hidden = Mask { key_mask: Some(&[1, 0, 255]), ..Mask::CAUSAL };
    assert_eq!(of(3, 3, hidden), ["x..", "x..", "x.x"]);
}

#[test]
fn packed_sequences_have_rows_and_tiles_of_their_own() {
    let queries = [0, 0, 130, 131];
    let tiles = TileList { starts: &[0, 0, 1, 3, 3, 4], keys: &[1, 0, 1, 0] };
    let attention = Attention {
        cu_seqlens_q: Some(&queries),
        cu_seqlens_k: Some(&[0, 5, 75, 77]),
        mask: Mask { tiles: Some(tiles), ..Mask::FULL },
        ..Attention::dense(1, 131, 77, 1, 4)
    };
    let rows = attention.rows();
    assert_eq!(rows.len(), 131);
    // Sequence 1 starts at query 0 and has slots 1 and 2, sequence 2 starts at 130 and has slot 1 + 2 = 3 of the list.
    assert_eq!((rows[0].first_key, rows[0].position), (5, -60));
    assert_eq!(rows[0].keys, (64..70).collect::<Vec<_>>());
    assert_eq!(rows[128].keys, (0..70).collect::<Vec<_>>());
    assert_eq!((rows[130].query, rows[130].first_key), (130, 75));
    assert!(rows[130].keys.is_empty());
}

#[test]
fn forward_is_the_softmax_of_two_keys() {
    let attention = Attention { scale: 1.0, value_dim: 1, ..Attention::dense(1, 1, 2, 1, 1) };
    let out = forward(&attention, &Inputs { q: &[1.0], k: &[0.0, 3f64.ln()], v: &[4.0, 8.0] });
    near(&out.o, &[7.0], "o");
    near(&out.lse, &[4f64.ln()], "lse");
    let sunk = Attention { sink: Some(&[4f64.ln()]), ..attention };
    let out = forward(&sunk, &Inputs { q: &[1.0], k: &[0.0, 3f64.ln()], v: &[4.0, 8.0] });
    near(&out.o, &[3.5], "o with a sink");
    near(&out.lse, &[8f64.ln()], "lse with a sink");
    let sloped = Attention { alibi_slopes: Some(&[3f64.ln()]), ..attention };
    let out = forward(&sloped, &Inputs { q: &[1.0], k: &[0.0, 0.0], v: &[4.0, 8.0] });
    near(&out.lse, &[(1.0 + 1.0 / 3.0_f64).ln()], "the query stands on key 1");
    let capped = Attention { softcap: Some(2.0), ..attention };
    let out = forward(&capped, &Inputs { q: &[1.0], k: &[1e6, 1e6], v: &[4.0, 8.0] });
    near(&out.lse, &[2.0 + 2f64.ln()], "capped");
}

#[test]
fn rows_without_keys_are_exact() {
    let attention = Attention { mask: Mask::CAUSAL, ..Attention::dense(2, 5, 3, 2, 4) };
    let data = Data::of(&attention);
    let out = forward(&attention, &data.inputs());
    for b in 0..2 {
        let rows = &out.lse[b * 10..][..10];
        assert!(rows[..4].iter().all(|lse| *lse == f64::NEG_INFINITY) && rows[4..].iter().all(|lse| lse.is_finite()));
        assert!(out.o[b * 40..][..16].iter().all(|o| *o == 0.0));
    }
    let sunk = forward(&Attention { sink: Some(&[-1.0, 2.0]), ..attention }, &data.inputs());
    assert_eq!(&sunk.lse[..2], &[-1.0, 2.0], "a sink alone");
    assert!(sunk.o[..8].iter().all(|o| *o == 0.0));
    let none = Attention { key_len: 0, ..Attention::dense(1, 2, 0, 1, 4) };
    let out = forward(&none, &Inputs { q: &[1.0; 8], k: &[], v: &[] });
    assert_eq!((out.lse, out.o), (vec![f64::NEG_INFINITY; 2], vec![0.0; 8]));
}

#[test]
fn groups_read_their_key_head() {
    let grouped = Attention { key_heads: 2, mask: Mask::CAUSAL, ..Attention::dense(1, 3, 4, 4, 3) };
    let data = Data::of(&grouped);
    let repeat = |x: &[f64]| x.chunks(3).flat_map(|row| [row, row].concat()).collect::<Vec<f64>>();
    let wide = Data { q: data.q.clone(), k: repeat(&data.k), v: repeat(&data.v) };
    let own = Attention { key_heads: 4, ..grouped };
    near(&forward(&grouped, &data.inputs()).o, &forward(&own, &wide.inputs()).o, "o");
}

fn states() -> Vec<State> {
    let of = |n: usize, phase: f64| {
        let values: Vec<Vec<f64>> = (0..n).map(|i| golden(phase + i as f64, 3)).collect();
        State::of(&golden(phase, n), &values.iter().map(Vec::as_slice).collect::<Vec<_>>(), 3)
    };
    vec![of(4, 0.3), State::empty(3), of(1, 1.1), of(6, 2.9), State::empty(3)]
}

#[test]
fn states_merge_in_any_order_and_grouping() {
    let all = states();
    let want = merge(&all, 3);
    let check = |got: State, name: &str| {
        near(&got.o, &want.o, name);
        near(&[got.lse], &[want.lse], name);
    };
    check(all.iter().fold(State::empty(3), |a, b| merge_pair(&a, b)), "left to right");
    check(all.iter().rev().fold(State::empty(3), |a, b| merge_pair(b, &a)), "right to left");
    check(merge(&[merge(&all[..2], 3), merge(&all[2..], 3)], 3), "in groups");
    let logits = [golden(0.3, 4), golden(1.1, 1), golden(2.9, 6)];
    let sum: f64 = logits.iter().flatten().map(|x| x.exp()).sum();
    near(&[want.lse], &[sum.ln()], "one softmax over all keys");
}

#[test]
fn states_of_no_keys_and_far_weights_stay_exact() {
    let empty = State::empty(3);
    let some = &states()[0];
    assert_eq!(merge(&[], 3), empty);
    assert_eq!(merge(&[empty.clone(), empty.clone()], 3), empty);
    assert_eq!(merge_pair(&empty, &empty), empty);
    assert_eq!(&merge_pair(some, &empty), some);
    assert_eq!(&merge_pair(&empty, some), some);
    assert_eq!(&some.with_sink(f64::NEG_INFINITY), some);
    for base in [-1e4, 0.0, 1e4] {
        for difference in [0.0, 17.0, 88.0, 200.0, 2e4] {
            let [a, b] = [base, base + difference].map(|lse: f64| State { o: vec![lse.signum(); 3], lse });
            let (n, pair) = (merge(&[a.clone(), b.clone()], 3), merge_pair(&a, &b));
            near(&n.o, &pair.o, "o");
            near(&[n.lse], &[pair.lse], "lse");
            assert!(pair.lse.is_finite() && pair.lse >= base.max(base + difference));
        }
    }
}

/// What a sum over all outputs gives, whose gradients are `d_o` and `d_lse`.
fn loss(attention: &Attention, data: &Data, d_o: &[f64], d_lse: &[f64]) -> f64 {
    let out = forward(attention, &data.inputs());
    let lse = out.lse.iter().zip(d_lse).filter(|(lse, _)| lse.is_finite()).map(|(lse, d)| lse * d);
    out.o.iter().zip(d_o).map(|(o, d)| o * d).chain(lse).sum()
}

fn gradients(attention: &Attention, data: &Data, whole: &Forward, d_o: &[f64], d_lse: &[f64]) -> Gradients {
    let delta = delta(&whole.o, d_o, Some(d_lse), attention.value_dim);
    backward(attention, &data.inputs(), &Adjoint { d_o, lse: &whole.lse, delta: &delta })
}

/// Every switch at once, with rows that see nothing.
const RICH: Attention<'static> = Attention {
    batch: 2,
    query_len: 5,
    key_len: 4,
    heads: 2,
    key_heads: 1,
    head_dim: 3,
    value_dim: 2,
    scale: 0.6,
    softcap: Some(1.5),
    alibi_slopes: Some(&[0.5, 0.25]),
    sink: Some(&[0.3, -0.4]),
    mask: Mask { key_mask: Some(&[1, 1, 0, 1, 1, 1, 1, 1]), ..Mask::window(1, 0, 1) },
    cu_seqlens_q: None,
    cu_seqlens_k: None,
};

#[test]
fn backward_is_the_slope_of_the_forward() {
    let packed = Attention {
        batch: 1,
        query_len: 6,
        key_len: 7,
        cu_seqlens_q: Some(&[0, 0, 4, 6]),
        cu_seqlens_k: Some(&[0, 2, 5, 7]),
        mask: Mask { prefix_len: Some(&[1, 2, 0]), ..Mask::CAUSAL },
        sink: None,
        softcap: None,
        ..RICH
    };
    for attention in [RICH, packed, Attention { sink: None, mask: Mask::ANTI_CAUSAL, ..RICH }] {
        let data = Data::of(&attention);
        let rows = attention.batch * attention.query_len * attention.heads;
        let (d_o, d_lse) = (golden(2.1, rows * attention.value_dim), golden(0.9, rows));
        let got = gradients(&attention, &data, &forward(&attention, &data.inputs()), &d_o, &d_lse);
        let slope = |change: &dyn Fn(f64) -> f64| (change(1e-5) - change(-1e-5)) / 2e-5;
        let near = |got: f64, want: f64, name: &str, i: usize| {
            assert!((got - want).abs() < 1e-8, "d{name}[{i}]: {got} is not {want}");
        };
        for i in 0..data.q.len().max(data.k.len()) {
            let moved = |pick: fn(&mut Data) -> &mut Vec<f64>| {
                slope(&|by| {
                    let mut data = data.clone();
                    pick(&mut data)[i] += by;
                    loss(&attention, &data, &d_o, &d_lse)
                })
            };
            if i < data.q.len() {
                near(got.dq[i], moved(|d| &mut d.q), "q", i);
            }
            if i < data.k.len() {
                near(got.dk[i], moved(|d| &mut d.k), "k", i);
            }
            if i < data.v.len() {
                near(got.dv[i], moved(|d| &mut d.v), "v", i);
            }
        }
        for h in 0..got.dsink.len() {
            let moved = slope(&|by| {
                let mut sink = attention.sink.expect("given").to_vec();
                sink[h] += by;
                loss(&Attention { sink: Some(&sink), ..attention }, &data, &d_o, &d_lse)
            });
            near(got.dsink[h], moved, "sink", h);
        }
    }
}

#[test]
fn backward_adds_up_over_blocks_of_keys_and_of_queries() {
    let attention = Attention { batch: 1, mask: Mask::window(2, 1, 0), ..RICH };
    let data = Data::of(&attention);
    let (d_o, d_lse) = (golden(2.1, 20), golden(0.9, 10));
    let whole = forward(&attention, &data.inputs());
    let want = gradients(&attention, &data, &whole, &d_o, &d_lse);
    // Keys 0..3 with the sink, then the key that is left; a position counts from the block's first key.
    let offset = attention.key_len as i64 - attention.query_len as i64;
    let mut sum = Gradients { dq: vec![0.0; 30], dk: Vec::new(), dv: Vec::new(), dsink: vec![0.0; 2] };
    let mut merged = vec![State::empty(2); 10];
    for (from, to) in [(0, 3), (3, 4)] {
        let mask = Mask { offset: Some(offset - from as i64), ..attention.mask };
        let sink = if from == 0 { attention.sink } else { None };
        let block = Attention { key_len: to - from, mask, sink, ..attention };
        let part =
            Data { q: data.q.clone(), k: data.k[from * 3..to * 3].to_vec(), v: data.v[from * 2..to * 2].to_vec() };
        let out = forward(&block, &part.inputs());
        for (i, state) in merged.iter_mut().enumerate() {
            *state = merge_pair(state, &State { o: out.o[i * 2..][..2].to_vec(), lse: out.lse[i] });
        }
        let got = gradients(&block, &part, &whole, &d_o, &d_lse);
        sum.dq.iter_mut().zip(&got.dq).for_each(|(sum, d)| *sum += d);
        sum.dsink.iter_mut().zip(&got.dsink).for_each(|(sum, d)| *sum += d);
        sum.dk.extend(got.dk);
        sum.dv.extend(got.dv);
    }
    near(&merged.iter().flat_map(|s| s.o.clone()).collect::<Vec<_>>(), &whole.o, "o of merged blocks");
    near(&merged.iter().map(|s| s.lse).collect::<Vec<_>>(), &whole.lse, "lse of merged blocks");
    near(&sum.dq, &want.dq, "dq");
    near(&sum.dk, &want.dk, "dk");
    near(&sum.dv, &want.dv, "dv");
    near(&sum.dsink, &want.dsink, "dsink");

    let split = |from: usize, to: usize| {
        let block = Attention {
            query_len: to - from,
            mask: Mask { offset: Some(offset + from as i64), ..attention.mask },
            ..attention
        };
        let part = Data { q: data.q[from * 6..to * 6].to_vec(), ..data.clone() };
        let whole = Forward { o: whole.o[from * 4..to * 4].to_vec(), lse: whole.lse[from * 2..to * 2].to_vec() };
        gradients(&block, &part, &whole, &d_o[from * 4..to * 4], &d_lse[from * 2..to * 2])
    };
    let (a, b) = (split(0, 2), split(2, 5));
    let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
    near(&[a.dq, b.dq].concat(), &want.dq, "dq of queries");
    near(&add(&a.dk, &b.dk), &want.dk, "dk of queries");
    near(&add(&a.dv, &b.dv), &want.dv, "dv of queries");
    near(&add(&a.dsink, &b.dsink), &want.dsink, "dsink of queries");
}
