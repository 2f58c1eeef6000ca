//! Gradients of dealt sequences against those of the whole.

use super::case::{Case, PATIENCE};
use half::{bf16, f16};
use lookback_device::{Element, Result, cudarc::driver::DevicePtr};
use lookback_reference::attention::{Adjoint, Inputs, backward, delta};
use lookback_ring::{
    Partition, Visible,
    attention::{BackwardInputs, BackwardOptions, BackwardPlan, Gradients, Options},
    schedule::Kind,
    transport::{Staged, Transport, local},
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{Gate, assert_close},
    random::{Random, round},
};
use std::thread;

/// Of 16-bit gradients that are rounded once.
const GATE: Gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };

/// What the gradients are made of: of all tokens.
struct Whole {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    o: Vec<f64>,
    lse: Vec<f64>,
    d_o: Vec<f64>,
    d_lse: Vec<f64>,
}

impl Whole {
    fn new<T: Element>(case: &Case) -> Self {
        let Case { heads, key_heads, dim: (head_dim, value_dim), .. } = *case;
        let q = case.tensor::<T>(1, heads, head_dim);
        let k = case.tensor::<T>(2, key_heads, head_dim);
        let v = case.tensor::<T>(3, key_heads, value_dim);
        let out = case.oracle(&q, &k, &v);
        let o: Vec<f64> = out.o.iter().map(|o| round::<T>(*o)).collect();
        let d_lse = Random::new(5).normals::<f32>(out.lse.len());
        Self { d_o: case.tensor::<T>(4, heads, value_dim), lse: out.lse, q, k, v, o, d_lse }
    }
}

/// `dq`, `dk` and `dv` of one rank.
fn rank<T: Element>(case: &Case, whole: &Whole, options: BackwardOptions, end: &mut Staged) -> Result<[Vec<f64>; 3]> {
    let Case { heads, key_heads, dim: (head_dim, value_dim), .. } = *case;
    let (rank, stream, shape) = (end.rank(), device::stream(), case.shape());
    let plan = BackwardPlan::new(&shape, &options, &case.layout, &case.visible, rank, &device::info())?;
    let mut workspace = plan.workspace(&stream)?;
    let part = |all: &[f64], row: usize| case.part(rank, all, row);
    let rows = |all: &[f64], row: usize| upload_as::<T>(&part(all, row));
    let floats = |all: &[f64]| upload_as::<f32>(&part(all, heads));
    let (q, k) = (rows(&whole.q, heads * head_dim), rows(&whole.k, key_heads * head_dim));
    let v = rows(&whole.v, key_heads * value_dim);
    let (o, d_o) = (rows(&whole.o, heads * value_dim), rows(&whole.d_o, heads * value_dim));
    let (lse, d_lse) = (floats(&whole.lse), floats(&whole.d_lse));
    let tokens = case.batch * plan.tokens();
    let mut dq = Guarded::<T>::poisoned(tokens * heads * head_dim, 0);
    let mut dk = Guarded::<T>::poisoned(tokens * key_heads * head_dim, 0);
    let mut dv = Guarded::<T>::poisoned(tokens * key_heads * value_dim, 0);
    for _ in 0..2 {
        let d_lse = Some(&d_lse as &dyn DevicePtr<f32>);
        let inputs = BackwardInputs { q: &q, k: &k, v: &v, o: &o, lse: &lse, d_o: &d_o, d_lse };
        let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        plan.run::<T, T, T>(&stream, &inputs, gradients, &mut workspace, end)?;
    }
    device::finish();
    Ok([dq.read(), dk.read(), dv.read()])
}

fn check<T: Element>(case: &Case) {
    check_with::<T>(case, true);
}

fn check_with<T: Element>(case: &Case, deterministic: bool) {
    let Case { heads, key_heads, dim: (head_dim, value_dim), .. } = *case;
    let whole = &Whole::new::<T>(case);
    let shape = case.shape();
    let attention = Options { kind: case.kind, softcap: case.softcap, ..Options::new(&shape, T::DTYPE) };
    let options = BackwardOptions { deterministic, ..BackwardOptions::new(attention) };
    let parts: Vec<[Vec<f64>; 3]> = thread::scope(|scope| {
        let ends = local(case.layout.ranks, PATIENCE).into_iter();
        let ranks: Vec<_> =
            ends.map(|mut end| scope.spawn(move || rank::<T>(case, whole, options, &mut end))).collect();
        let ended = ranks.into_iter().map(|rank| rank.join().unwrap());
        ended.collect::<Result<_>>().unwrap_or_else(|e| panic!("{case:?}: {e}"))
    });
    let intervals = case.intervals();
    let inputs = Inputs { q: &whole.q, k: &whole.k, v: &whole.v };
    let delta = delta(&whole.o, &whole.d_o, Some(&whole.d_lse), value_dim);
    let adjoint = Adjoint { d_o: &whole.d_o, lse: &whole.lse, delta: &delta };
    let want = backward(&case.attention(&intervals), &inputs, &adjoint);
    let outputs = [
        ("dq", want.dq, heads * head_dim),
        ("dk", want.dk, key_heads * head_dim),
        ("dv", want.dv, key_heads * value_dim),
    ];
    for (at, (name, want, row)) in outputs.into_iter().enumerate() {
        let mut got = vec![f64::NAN; want.len()];
        for (rank, part) in parts.iter().enumerate() {
            case.put(rank, &part[at], &mut got, row);
        }
        assert_close(&format!("{name} of {case:?}"), &got, &want, row, GATE);
    }
}

#[test]
fn every_schedule_gives_the_whole_s_gradients() {
    for ranks in [1, 2, 3, 4] {
        let mut kinds = vec![Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 2 }];
        if ranks != 3 {
            kinds.push(Kind::Ulysses);
        }
        if ranks == 4 {
            kinds.push(Kind::TwoLevel { node: 2 });
        }
        for kind in kinds {
            for partition in [Partition::Contiguous, Partition::Zigzag, Partition::Striped] {
                check::<bf16>(&Case::new(kind, partition, ranks, Visible::causal(53)));
            }
            check::<f16>(&Case::new(kind, Partition::Zigzag, ranks, Visible::full(40)));
        }
    }
}

#[test]
fn masks_groups_batches_and_documents() {
    let tokens = 45;
    let documents = vec![0, 11, 11, 30, tokens];
    let causal = Visible::causal(tokens);
    for visible in [
        Visible { left: 9, right: 0, sink_tokens: 3, ..Visible::full(tokens) },
        Visible { documents: documents.clone(), ..causal.clone() },
        Visible { documents, prefix_len: vec![4, 0, 12, 1], ..causal.clone() },
    ] {
        for kind in [Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 1 }, Kind::Ulysses] {
            check::<bf16>(&Case::new(kind, Partition::Zigzag, 2, visible.clone()));
        }
    }
    for (heads, key_heads) in [(2, 2), (4, 1), (6, 3)] {
        for kind in [Kind::Ring, Kind::TokenRing, Kind::AllGather { groups: 1 }] {
            let case = Case::new(kind, Partition::Zigzag, 3, causal.clone());
            check::<bf16>(&Case { heads, key_heads, batch: 2, ..case });
        }
    }
    let case = Case::new(Kind::Ring, Partition::Contiguous, 2, causal.clone());
    check::<f16>(&Case { dim: (64, 32), softcap: Some(3.0), ..case.clone() });
    check_with::<bf16>(&Case { dim: (64, 64), ..case }, false);
    for ranks in [8, 4] {
        let tokens = if ranks == 8 { 70 } else { 3 };
        for kind in [Kind::Ring, Kind::TokenRing, Kind::TwoLevel { node: 2 }] {
            check::<bf16>(&Case::new(kind, Partition::Zigzag, ranks, Visible::causal(tokens)));
        }
    }
}
