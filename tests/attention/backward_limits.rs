//! What a caller can get wrong is an error that names it; nothing is launched and nothing written.

use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use lookback_attention::{
    Inputs, Options, Output, RawInputs, Shape, Stride, attention_backward,
    backward::{
        Adjoint, BackwardInputs, BackwardOptions, BackwardPlan, BackwardStrides, Final, Gradient, Gradients,
        RawBackward, Rows,
    },
};
use lookback_device::{DType, Error};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    counters::Counters,
    device,
};

/// `[1, 10 queries, 12 keys, 2 heads, 16]`.
fn shape() -> Shape {
    Shape::dense(1, 10, 12, 2, 16)
}

fn options() -> BackwardOptions {
    BackwardOptions::new(Options::new::<bf16>(&shape()))
}

fn plan(options: &BackwardOptions) -> Result<BackwardPlan, Error> {
    BackwardPlan::new(&shape(), options, &device::info())
}

const Q: usize = 10 * 2 * 16;
const K: usize = 12 * 2 * 16;

/// Lengths of what is given, and what comes of it.
fn error(options: &BackwardOptions, lengths: [usize; 9]) -> Error {
    let [q, k, v, d_o, o, lse, dq, dk, dv] = lengths;
    let [q, k, v, d_o, o] = [q, k, v, d_o, o].map(|n| upload_as::<bf16>(&vec![0.0; n]));
    let lse = upload_as::<f32>(&vec![0.0; lse]);
    let mut out = [dq, dk, dv].map(|n| Guarded::<bf16>::poisoned(n, 0));
    let plan = plan(options).expect("a plan");
    let mut workspace = upload_as::<f32>(&vec![0.0; plan.workspace_bytes() as usize / 4]);
    let found = {
        let [dq, dk, dv] = &mut out;
        let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        let rows = Rows::Final(Final { o: &o, lse: &lse, d_lse: None });
        let given = BackwardInputs { inputs: Inputs::of(&q, &k, &v), adjoint: Adjoint { d_o: &d_o, rows } };
        plan.run::<bf16, bf16, bf16>(
            &device::stream(),
            &given,
            Gradients::of(&mut dq, &mut dk, &mut dv),
            &mut workspace,
        )
    };
    assert!(out.iter().all(|out| out.read().iter().all(|x| x.is_nan())), "nothing is written on an error");
    found.expect_err("an error")
}

#[test]
fn backward_short_tensors_are_named() {
    let whole = [Q, K, K, Q, Q, 20, Q, K, K];
    for (i, name) in ["q", "k", "v", "d_o", "o", "lse", "dq", "dk", "dv"].into_iter().enumerate() {
        let mut lengths = whole;
        lengths[i] -= 1;
        match error(&options(), lengths) {
            Error::Shape { arg, .. } => assert_eq!(arg, name),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn backward_element_types_are_the_plans() {
    let stream = device::stream();
    let [q, k, v, d_o] = [Q, K, K, Q].map(|n| upload_as::<bf16>(&vec![0.0; n]));
    let lse = upload_as::<f32>(&[0.0; 20]);
    let narrow = upload_as::<bf16>(&[0.0; Q]);
    let wide = upload_as::<f32>(&[0.0; Q]);
    let given = || {
        let rows = Rows::Final(Final { o: &narrow, lse: &lse, d_lse: None });
        BackwardInputs { inputs: Inputs::of(&q, &k, &v), adjoint: Adjoint { d_o: &d_o, rows } }
    };
    let f32s = BackwardOptions { gradient: Gradient::F32, ..options() };
    let got = attention_backward::<bf16, bf16, bf16>(&stream, &shape(), &f32s, &given()).map(drop);
    assert!(matches!(got, Err(Error::Dtype { want: DType::F32, got: DType::Bf16, .. })), "{got:?}");
    let rows = Rows::Final(Final { o: &wide, lse: &lse, d_lse: None });
    let wrong = BackwardInputs { inputs: Inputs::of(&q, &k, &v), adjoint: Adjoint { d_o: &d_o, rows } };
    let got = attention_backward::<bf16, f32, bf16>(&stream, &shape(), &options(), &wrong).map(drop);
    assert!(matches!(got, Err(Error::Dtype { arg: "o", want: DType::Bf16, .. })), "{got:?}");
    let other = BackwardOptions::new(Options::new::<f16>(&shape()));
    let got = attention_backward::<bf16, bf16, bf16>(&stream, &shape(), &other, &given()).map(drop);
    assert!(matches!(got, Err(Error::Dtype { arg: "inputs", want: DType::F16, .. })), "{got:?}");
    let adding = BackwardOptions { gradient: Gradient::Accumulate, ..options() };
    let got = attention_backward::<bf16, bf16, f32>(&stream, &shape(), &adding, &given()).map(drop);
    assert!(matches!(got, Err(Error::NoKernel { .. })), "{got:?}");
    assert!(attention_backward::<bf16, bf16, bf16>(&stream, &shape(), &options(), &given()).is_ok());
}

#[test]
fn backward_strides_and_sizes_are_errors_of_the_plan() {
    let with = |strides: BackwardStrides| plan(&BackwardOptions { strides, ..options() }).map(drop);
    let stride = |token, head| Some(Stride { batch: 320, token, head });
    let got = with(BackwardStrides { dq: stride(36, 18), ..BackwardStrides::default() });
    assert!(matches!(got, Err(Error::Layout { arg: "dq", .. })), "{got:?}");
    let got = with(BackwardStrides { dk: stride(16, 16), ..BackwardStrides::default() });
    assert!(matches!(got, Err(Error::Layout { arg: "dk", .. })), "{got:?}");
    let got = with(BackwardStrides { d_o: stride(-32, 16), ..BackwardStrides::default() });
    assert!(matches!(got, Err(Error::Layout { arg: "d_o", .. })), "{got:?}");
    assert!(with(BackwardStrides { dv: stride(40, 16), ..BackwardStrides::default() }).is_ok());
    let wide = Shape { head_dim: 264, ..shape() };
    let got = BackwardPlan::new(&wide, &options(), &device::info()).map(drop);
    assert!(matches!(got, Err(Error::Range { arg: "head_dim", .. })), "{got:?}");
    let single = BackwardOptions::new(Options::new::<f32>(&shape()));
    assert!(matches!(plan(&single), Err(Error::NoKernel { .. })));
}

#[test]
fn backward_addresses_are_checked() {
    let memory = upload_as::<f32>(&[0.0; 8000]);
    let stream = device::stream();
    let (base, _guard) = memory.device_ptr(&stream);
    let options = BackwardOptions { deterministic: false, ..options() };
    let plan = plan(&options).expect("a plan");
    // Tensors of 640 or 768 bytes, lse of 80, the workspace of 256 + 1280 from 16384 on.
    assert_eq!(plan.workspace_bytes(), 256 + 1280, "two numbers a row, and sums of dq");
    let at = |i: u64| base + 1024 * i;
    let good = RawBackward {
        inputs: RawInputs { q: at(0), k: at(1), v: at(2), ..RawInputs::default() },
        d_o: at(3),
        o: at(4),
        lse: at(5),
        dq: at(6),
        dk: at(7),
        dv: at(8),
        workspace: at(16),
        workspace_bytes: plan.workspace_bytes(),
        ..RawBackward::default()
    };
    // SAFETY: what is not refused has room in the memory.
    let run = |raw: RawBackward| unsafe { plan.run_raw(&stream, &raw) };
    assert!(run(good).is_ok());
    let alias = |raw: RawBackward, one: &str, other: &str| match run(raw) {
        Err(Error::Alias { a, b, .. }) => assert_eq!((a, b), (one, other)),
        got => panic!("{one} and {other}: {got:?}"),
    };
    alias(RawBackward { dq: at(0) + 624, ..good }, "dq", "q");
    alias(RawBackward { dk: at(3), ..good }, "dk", "d_o");
    alias(RawBackward { dv: at(7) + 16, ..good }, "dk", "dv");
    alias(RawBackward { dq: at(5), ..good }, "dq", "lse");
    alias(RawBackward { dv: at(16) + 1024, ..good }, "dv", "workspace");
    alias(RawBackward { workspace: at(4), ..good }, "workspace", "o");
    let refused = run(RawBackward { workspace_bytes: plan.workspace_bytes() - 1, ..good });
    assert!(matches!(refused, Err(Error::Workspace { got: 1535, need: 1536, .. })), "{refused:?}");
    let align = |raw: RawBackward, name: &str| match run(raw) {
        Err(Error::Align { arg, .. }) => assert_eq!(arg, name),
        got => panic!("{name}: {got:?}"),
    };
    align(RawBackward { d_o: at(3) + 8, ..good }, "d_o");
    align(RawBackward { o: 0, ..good }, "o");
    align(RawBackward { lse: 0, ..good }, "lse");
    align(RawBackward { dq: at(6) + 4, ..good }, "dq");
    align(RawBackward { workspace: at(16) + 4, ..good }, "workspace");
    align(RawBackward { prepared: at(9) + 4, ..good }, "prepared");
    let missing = |raw: RawBackward, name: &str| match run(raw) {
        Err(Error::Shape { arg, .. }) => assert_eq!(arg, name),
        got => panic!("{name}: {got:?}"),
    };
    missing(RawBackward { dv: 0, ..good }, "dv");
    missing(RawBackward { d_sink: at(9), ..good }, "sink");
    missing(RawBackward { inputs: RawInputs { intervals: at(10), ..good.inputs }, ..good }, "intervals");
    // Prepared rows and no sums: no workspace at all.
    let alone = RawBackward { prepared: at(9), dq: 0, workspace: 0, workspace_bytes: 0, ..good };
    assert!(run(alone).is_ok());
    device::finish();
}

#[test]
fn backward_counts_its_work() {
    let shape = Shape { value_dim: 32, ..Shape::dense(2, 100, 100, 4, 64) };
    let of = |gradient, deterministic, output| {
        let attention = Options { output, ..Options::new::<bf16>(&shape) };
        let options = BackwardOptions { gradient, deterministic, ..BackwardOptions::new(attention) };
        BackwardPlan::new(&shape, &options, &device::info()).expect("a plan")
    };
    let plan = of(Gradient::Same, true, Output::Same);
    let rows = 2 * 100 * 4_u64;
    assert_eq!(plan.flops(), rows * 100 * 2 * (3 * 64 + 2 * 32));
    // q, k, dq, dk; v, o, d_o, dv; lse.
    assert_eq!(plan.bytes_moved(), rows * (2 * (4 * 64 + 4 * 32) + 4));
    assert_eq!(plan.workspace_bytes(), (rows * 8).next_multiple_of(256));
    assert_eq!(plan.terms_len() as u64, rows * 2);
    let adding = of(Gradient::F32, false, Output::Same);
    assert_eq!(adding.workspace_bytes(), plan.workspace_bytes() + rows * 64 * 4);
    assert_eq!(of(Gradient::Accumulate, false, Output::F32).workspace_bytes(), plan.workspace_bytes());
}

#[test]
fn backward_without_query_heads_leaves_zeros_in_those_of_keys() {
    for (key_heads, packed, deterministic) in [(2, false, true), (2, false, false), (3, true, true), (0, false, true)] {
        let dense = if packed { Shape::packed(2, 10, 12, 0, 16) } else { Shape::dense(2, 10, 12, 0, 16) };
        let shape = Shape { key_heads, ..dense };
        let options = BackwardOptions { deterministic, ..BackwardOptions::new(Options::new::<bf16>(&shape)) };
        let plan = BackwardPlan::new(&shape, &options, &device::info()).expect("a plan");
        let len = shape.batch * 12 * key_heads * 16;
        let keys = upload_as::<bf16>(&vec![1.0; len.max(1)]);
        let (none, lse) = (upload_as::<bf16>(&[1.0]), upload_as::<f32>(&[1.0]));
        let (query_starts, key_starts) = (upload(&[0_i32, 4, 10]), upload(&[0_i32, 7, 12]));
        let mut inputs = Inputs::of(&none, &keys, &keys);
        if packed {
            inputs.cu_seqlens_q = Some(&query_starts);
            inputs.cu_seqlens_k = Some(&key_starts);
        }
        let rows = Rows::Final(Final { o: &none, lse: &lse, d_lse: None });
        let given = BackwardInputs { inputs, adjoint: Adjoint { d_o: &none, rows } };
        let mut gradients = [0, len, len].map(|n| Guarded::<bf16>::poisoned(n, 0));
        let mut workspace = upload_as::<f32>(&[0.0; 64]);
        let counters = Counters::of(|| {
            let [dq, dk, dv] = &mut gradients;
            let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
            let to = Gradients::of(&mut dq, &mut dk, &mut dv);
            plan.run::<bf16, bf16, bf16>(&device::stream(), &given, to, &mut workspace).expect("a run");
        });
        assert!(gradients.iter().all(|g| g.read().iter().all(|x| *x == 0.0)), "{key_heads} {packed} {deterministic}");
        let launches = counters.map_or(u64::from(key_heads > 0), |counters| counters.number("launches"));
        assert_eq!(launches, u64::from(key_heads > 0), "no launch when there is nothing to write");
    }
}
