//! Calls that are refused: nothing is sent, and nothing written.

use super::case::{Case, PATIENCE};
use half::{bf16, f16};
use lookback_device::{
    DType, Element, Error, Result,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_ring::{
    Partition, Visible,
    attention::{BackwardOptions, BackwardPlan, Inputs, Options, Outputs, Plan, Shape},
    schedule::Kind,
    transport::local,
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};

fn case() -> Case {
    Case::new(Kind::Ring, Partition::Zigzag, 2, Visible::causal(24))
}

fn plan(case: &Case, change: impl Fn(&mut Shape, &mut Options)) -> Result<Plan> {
    let mut shape = case.shape();
    let mut options = Options { kind: case.kind, ..Options::new(&shape, DType::Bf16) };
    change(&mut shape, &mut options);
    Plan::new(&shape, &options, &case.layout, &case.visible, 0, &device::info())
}

#[test]
fn plans_name_what_is_wrong() {
    let refused = |case: &Case, change: fn(&mut Shape, &mut Options)| plan(case, change).unwrap_err();
    let error = refused(&case(), |_, options| options.dtype = DType::F32);
    assert!(matches!(error, Error::NoKernel { .. }), "{error}");
    let error = refused(&case(), |shape, _| shape.key_heads = 3);
    assert!(matches!(error, Error::Shape { arg: "key_heads", .. }), "{error}");
    let error = refused(&case(), |shape, _| shape.head_dim = 12);
    assert!(matches!(error, Error::Shape { arg: "head_dim", .. }), "{error}");
    let error = refused(&case(), |_, options| options.scale = f32::NAN);
    assert!(matches!(error, Error::NoKernel { .. }), "{error}");
    let error = refused(&case(), |shape, options| (shape.key_heads, options.kind) = (1, Kind::Bidirectional));
    assert!(matches!(error, Error::Range { arg: "key_heads", .. }), "{error}");
    // Four query heads on two ranks are two each, of which three would share a key head.
    let uneven =
        Case { heads: 6, key_heads: 2, ..Case::new(Kind::Ulysses, Partition::Contiguous, 3, Visible::full(24)) };
    assert!(plan(&uneven, |_, _| ()).is_ok(), "two heads of one key head, one of each, two of the other");
    let uneven =
        Case { heads: 8, key_heads: 2, ..Case::new(Kind::Ulysses, Partition::Contiguous, 8, Visible::full(24)) };
    assert!(plan(&uneven, |_, _| ()).is_ok());
    for documents in [vec![0, 20], vec![1, 24], vec![0, 13, 12, 24], vec![24], vec![]] {
        let visible = Visible { documents, ..Visible::causal(24) };
        let error = plan(&Case { visible, ..case() }, |_, _| ()).unwrap_err();
        assert!(matches!(error, Error::Shape { arg: "documents", .. }), "{error}");
    }
    let case = case();
    let options = BackwardOptions::new(Options::new(&case.shape(), DType::F32));
    let error =
        BackwardPlan::new(&case.shape(), &options, &case.layout, &case.visible, 0, &device::info()).unwrap_err();
    assert!(matches!(error, Error::NoKernel { .. }), "{error}");
}

/// What a run on one rank says to changed tensors.
fn run<T: Element, O: Element>(tokens: [usize; 5], rank: usize, foreign: bool) -> (Error, bool) {
    let case = case();
    let plan = plan(&case, |_, _| ()).unwrap();
    let other = Case { visible: Visible::causal(8), ..Case::new(Kind::Ring, Partition::Zigzag, 2, Visible::causal(8)) };
    let small = self::plan(&other, |_, _| ()).unwrap();
    let stream = device::stream();
    let mut workspace = if foreign { &small } else { &plan }.workspace(&stream).unwrap();
    let ones = |tokens: usize, heads: usize| upload_as::<T>(&vec![1.0; tokens * heads * 32]);
    let (q, k, v) = (ones(tokens[0], 4), ones(tokens[1], 2), ones(tokens[2], 2));
    let mut o = Guarded::<O>::poisoned(tokens[3] * 4 * 32, 0);
    let mut lse = Guarded::<f32>::poisoned(tokens[4] * 4, 0);
    let mut end = local(2, PATIENCE).swap_remove(rank);
    let error = {
        let (mut o, mut lse) = (o.view_mut(), lse.view_mut());
        let inputs = Inputs { q: &q as &dyn DevicePtr<T>, k: &k, v: &v };
        let outputs = Outputs { o: &mut o as &mut dyn DevicePtrMut<O>, lse: &mut lse };
        plan.run(&stream, &inputs, outputs, &mut workspace, &mut end).unwrap_err()
    };
    device::finish();
    (error, o.read().iter().chain(&lse.read()).all(|v| v.is_nan()))
}

#[test]
fn runs_name_what_is_wrong_and_write_nothing() {
    for (at, arg) in ["q", "k", "v", "o", "lse"].into_iter().enumerate() {
        let mut tokens = [12; 5];
        tokens[at] = 11;
        let (error, untouched) = run::<bf16, bf16>(tokens, 0, false);
        assert!(matches!(&error, Error::Shape { arg: named, .. } if *named == arg) && untouched, "{arg}: {error}");
    }
    let (error, untouched) = run::<f16, bf16>([12; 5], 0, false);
    assert!(matches!(error, Error::Dtype { arg: "inputs", .. }) && untouched, "{error}");
    let (error, untouched) = run::<bf16, f32>([12; 5], 0, false);
    assert!(matches!(error, Error::Dtype { arg: "o", .. }) && untouched, "{error}");
    let (error, untouched) = run::<bf16, bf16>([12; 5], 1, false);
    assert!(matches!(error, Error::Shape { arg: "transport", .. }) && untouched, "{error}");
    let (error, untouched) = run::<bf16, bf16>([12; 5], 0, true);
    assert!(matches!(error, Error::Workspace { .. }) && untouched, "{error}");
}

#[test]
fn bytes_sent_are_those_of_the_formula() {
    let tokens = 64;
    for (kind, want) in [
        // Three hops of 16 tokens, two key heads of 32 + 32 entries.
        (Kind::Ring, 3 * 16 * 2 * 64 * 2),
        (Kind::Bidirectional, 3 * 16 * 2 * 64 * 2),
        // The same hops of four query heads of 32, and results with their lse.
        (Kind::TokenRing, 3 * 16 * 4 * (32 * 2 + 32 * 2 + 4)),
        (Kind::AllGather { groups: 2 }, 3 * 16 * 2 * 64 * 2),
        // Three quarters of q and o with lse, and of k and v, where two query heads share a key head that goes to both.
        (Kind::Ulysses, 3 * 16 * (32 * 2 + 64 * 2 + 32 * 2 + 4)),
    ] {
        let case = Case::new(kind, Partition::Zigzag, 4, Visible::full(tokens));
        let plan = plan(&case, |_, _| ()).unwrap();
        assert_eq!(plan.bytes_sent(), want, "{kind:?}");
        assert!(plan.workspace_bytes() > 0);
    }
}
