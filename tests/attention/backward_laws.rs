//! Gradients of blocks add up, from the final log-sum-exp; rows and keys without a share have none.

use super::{
    backward_case::gate,
    forward_case::{Case, Data},
};
use cudarc::driver::CudaSlice;
use half::bf16;
use lookback_attention::{
    Inputs, Mask, Options, Output, Shape,
    backward::{Adjoint, BackwardInputs, BackwardOptions, BackwardPlan, Final, Gradient, Gradients, Rows},
};
use lookback_device::DType;
use lookback_reference::attention as reference;
use lookback_suite::{
    buffer::{Guarded, download, upload_as},
    device,
    measure::assert_close,
    random::Random,
};

const HEADS: usize = 2;
const DIM: usize = 64;
/// Elements of a token.
const ROW: usize = HEADS * DIM;

struct Whole {
    case: Case,
    data: Data,
    d_o: Vec<f64>,
    o: Vec<f64>,
    lse: Vec<f64>,
    want: reference::Gradients,
}

impl Whole {
    fn new(queries: usize, keys: usize) -> Self {
        let case = Case::causal(queries, keys, HEADS, DIM, DIM);
        let data = Data::new::<bf16>(&case, 5);
        let forward = case.forward(&data);
        let d_o = Random::new(6).normals::<bf16>(forward.o.len());
        let delta = reference::delta(&forward.o, &d_o, None, DIM);
        let inputs = reference::Inputs { q: &data.q, k: &data.k, v: &data.v };
        let adjoint = reference::Adjoint { d_o: &d_o, lse: &forward.lse, delta: &delta };
        let want = reference::backward(&case.attention(&data), &inputs, &adjoint);
        Self { case, data, d_o, o: forward.o, lse: forward.lse, want }
    }

    /// The plan of a block of queries and one of keys, whose first query stands where it stood.
    fn plan(
        &self,
        queries: &std::ops::Range<usize>,
        keys: &std::ops::Range<usize>,
        gradient: Gradient,
    ) -> BackwardPlan {
        let shape = Shape::dense(1, queries.len(), keys.len(), HEADS, DIM);
        let offset = self.case.key_len as i32 - self.case.query_len as i32 + queries.start as i32 - keys.start as i32;
        let attention =
            Options { mask: Mask::Causal, offset: Some(offset), output: Output::F32, ..Options::new::<bf16>(&shape) };
        let options = BackwardOptions { gradient, ..BackwardOptions::new(attention) };
        BackwardPlan::new(&shape, &options, &device::info()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The rows of a block on the device.
    fn block(x: &[f64], tokens: &std::ops::Range<usize>, row: usize) -> Vec<f64> {
        x[tokens.start * row..tokens.end * row].to_vec()
    }
}

fn zeros(len: usize) -> CudaSlice<f32> {
    upload_as::<f32>(&vec![0.0; len])
}

fn read(slice: &CudaSlice<f32>) -> Vec<f64> {
    download(slice).into_iter().map(f64::from).collect()
}

fn close(what: &str, out: &[f64], want: &[f64]) {
    assert_close(what, out, want, DIM, gate(DType::Bf16));
}

/// Blocks of keys one after the other: rows are prepared once, dq is added up, dk and dv are of the block.
#[test]
fn backward_blocks_of_keys_add_up() {
    let whole = Whole::new(90, 200);
    let stream = device::stream();
    let queries = 0..90;
    let (q, d_o) = (upload_as::<bf16>(&whole.data.q), upload_as::<bf16>(&whole.d_o));
    let (o, lse) = (upload_as::<f32>(&whole.o), upload_as::<f32>(&whole.lse));
    let mut dq = zeros(90 * ROW);
    let mut terms = Guarded::<f32>::poisoned(whole.plan(&queries, &(0..1), Gradient::Same).terms_len(), 0);
    {
        let plan = whole.plan(&queries, &(0..1), Gradient::Same);
        let rows = Final { o: &o, lse: &lse, d_lse: None };
        plan.prepare::<bf16, f32>(&stream, &d_o, &rows, &mut terms.view_mut()).expect("prepared");
    }
    let (mut dk, mut dv) = (Vec::new(), Vec::new());
    for keys in [0..70, 70..71, 71..128, 128..200] {
        let plan = whole.plan(&queries, &keys, Gradient::Accumulate);
        let (k, v) = (Whole::block(&whole.data.k, &keys, ROW), Whole::block(&whole.data.v, &keys, ROW));
        let (k, v) = (upload_as::<bf16>(&k), upload_as::<bf16>(&v));
        let (mut dk_block, mut dv_block) = (zeros(keys.len() * ROW), zeros(keys.len() * ROW));
        let terms = terms.view();
        let given = BackwardInputs {
            inputs: Inputs::of(&q, &k, &v),
            adjoint: Adjoint::<bf16, f32> { d_o: &d_o, rows: Rows::Prepared(&terms) },
        };
        // Prepared rows need no workspace.
        plan.run(&stream, &given, Gradients::of(&mut dq, &mut dk_block, &mut dv_block), &mut zeros(1)).expect("a run");
        device::finish();
        dk.extend(read(&dk_block));
        dv.extend(read(&dv_block));
    }
    close("dq", &read(&dq), &whole.want.dq);
    close("dk", &dk, &whole.want.dk);
    close("dv", &dv, &whole.want.dv);
    terms.read();
}

/// Blocks of queries: dk and dv are added up.
#[test]
fn backward_blocks_of_queries_add_up() {
    let whole = Whole::new(150, 100);
    let stream = device::stream();
    let (k, v) = (upload_as::<bf16>(&whole.data.k), upload_as::<bf16>(&whole.data.v));
    let (mut dk, mut dv, mut dq) = (zeros(100 * ROW), zeros(100 * ROW), Vec::new());
    for queries in [0..33, 33..100, 100..150] {
        let plan = whole.plan(&queries, &(0..100), Gradient::Accumulate);
        let q = upload_as::<bf16>(&Whole::block(&whole.data.q, &queries, ROW));
        let d_o = upload_as::<bf16>(&Whole::block(&whole.d_o, &queries, ROW));
        let o = upload_as::<f32>(&Whole::block(&whole.o, &queries, ROW));
        let lse = upload_as::<f32>(&Whole::block(&whole.lse, &queries, HEADS));
        let mut dq_block = zeros(queries.len() * ROW);
        let rows = Rows::Final(Final { o: &o, lse: &lse, d_lse: None });
        let given = BackwardInputs { inputs: Inputs::of(&q, &k, &v), adjoint: Adjoint { d_o: &d_o, rows } };
        let mut workspace = zeros(plan.workspace_bytes() as usize / 4);
        plan.run::<bf16, f32, f32>(&stream, &given, Gradients::of(&mut dq_block, &mut dk, &mut dv), &mut workspace)
            .expect("a run");
        device::finish();
        dq.extend(read(&dq_block));
    }
    close("dq", &dq, &whole.want.dq);
    close("dk", &read(&dk), &whole.want.dk);
    close("dv", &read(&dv), &whole.want.dv);
}

/// Only what is asked for: dq alone, dk and dv alone, and the same bits.
#[test]
fn backward_gradients_that_nobody_wants_are_not_computed() {
    let whole = Whole::new(70, 90);
    let stream = device::stream();
    let plan = whole.plan(&(0..70), &(0..90), Gradient::F32);
    let [q, k, v, d_o] = [&whole.data.q, &whole.data.k, &whole.data.v, &whole.d_o].map(|x| upload_as::<bf16>(x));
    let (o, lse) = (upload_as::<f32>(&whole.o), upload_as::<f32>(&whole.lse));
    let run = |gradients: Gradients<'_, f32>| {
        let rows = Rows::Final(Final { o: &o, lse: &lse, d_lse: None });
        let given = BackwardInputs { inputs: Inputs::of(&q, &k, &v), adjoint: Adjoint { d_o: &d_o, rows } };
        let mut workspace = zeros(plan.workspace_bytes() as usize / 4);
        plan.run::<bf16, f32, f32>(&stream, &given, gradients, &mut workspace).expect("a run");
        device::finish();
    };
    let (mut dq, mut dk, mut dv) = (zeros(70 * ROW), zeros(90 * ROW), zeros(90 * ROW));
    run(Gradients::of(&mut dq, &mut dk, &mut dv));
    close("dq", &read(&dq), &whole.want.dq);
    let mut alone = zeros(70 * ROW);
    run(Gradients { dq: Some(&mut alone), dk: None, dv: None, d_sink: None });
    assert_eq!(read(&alone), read(&dq));
    let (mut dk_alone, mut dv_alone) = (zeros(90 * ROW), zeros(90 * ROW));
    run(Gradients { dq: None, dk: Some(&mut dk_alone), dv: Some(&mut dv_alone), d_sink: None });
    assert_eq!((read(&dk_alone), read(&dv_alone)), (read(&dk), read(&dv)));
}

/// Keys that nobody sees may hold anything, as may values; rows without keys have gradients of exactly zero.
#[test]
fn backward_what_is_not_seen_reaches_nothing() {
    let case =
        Case { key_mask: (0..70).map(|j| u8::from(j % 4 != 2)).collect(), ..Case::causal(90, 70, HEADS, DIM, DIM) };
    for deterministic in [true, false] {
        let backward = super::backward_case::Backward { deterministic, ..case.clone().into() };
        let mut given = super::backward_case::Given::new::<bf16>(&backward, 9);
        let clean = super::backward_case::run::<bf16>(&backward, &given);
        super::backward_case::compare::<bf16>(&backward, &clean, &given.want(&backward));
        // 20 more queries than keys: the first see nothing.
        assert!(clean.dq[..20 * ROW].iter().all(|x| *x == 0.0));
        for j in (2..70).step_by(4) {
            assert!(clean.dk[j * ROW..][..ROW].iter().chain(&clean.dv[j * ROW..][..ROW]).all(|x| *x == 0.0));
        }
        if !deterministic {
            continue;
        }
        for j in (2..70).step_by(4) {
            given.data.v[j * ROW..][..ROW].fill(f64::INFINITY);
        }
        let dirty = super::backward_case::run::<bf16>(&backward, &given);
        assert!(dirty == clean, "a value that nobody sees");
    }
}
