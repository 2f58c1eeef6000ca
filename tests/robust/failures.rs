//! An allocator that fails: at the first allocation of a call, then at the second, and so on until the call succeeds. Every failure is an
//! error of its own type, gives back what was allocated, and leaves inputs, models and generations as they were.

use crate::model::{bert, hydra, jrt, linear_block, llama_case, mamba2, support::Draft};
use half::f16;
use lookback_attention::{self as attention, BackwardOptions};
use lookback_decode as decode;
use lookback_device::{Error, Result, cudarc::driver::DevicePtr, emulator};
use lookback_linear as linear;
use lookback_model::{
    bert::Bert, gated_ssm::GatedSsm, hydra::Hydra, jrt::Jrt, linear_block::LinearModel, llama, mamba2::Mamba2,
};
use lookback_nn::{Activation, Param, gemm};
use lookback_scan as scan;
use lookback_suite::{
    buffer::{download, upload, upload_as},
    counters::Switch,
    device::{self, stream},
};

/// Bytes that this thread has allocated.
fn used() -> usize {
    let (free, total) = device::context().mem_get_info().expect("how much memory is free");
    total - free
}

/// What `call` gives once nothing fails any more, and how many allocations it makes.
fn every_allocation<R>(what: &str, mut call: impl FnMut() -> Result<R>) -> (R, usize) {
    if !device::info().emulated {
        // A GPU does not fail when it is told to.
        return (call().unwrap_or_else(|e| panic!("{what}: {e}")), 0);
    }
    let _memory = Switch::set("memory_mib", "1024", "4096");
    for n in 1..2000 {
        let before = used();
        let failing = Switch::set("fail_allocation", &n.to_string(), "off");
        // A switch that there is not: its refusal stands where the last reason was.
        emulator::set_option("nothing", "");
        let result = call();
        let failed = emulator::last_fault().is_some_and(|reason| reason.contains("told to fail"));
        drop(failing);
        match result {
            Ok(result) => {
                assert!(!failed, "{what}: allocation {n} failed and nobody noticed");
                return (result, n - 1);
            }
            Err(error) => {
                assert!(failed && matches!(error, Error::OutOfMemory { .. }), "{what}: allocation {n}: {error}");
                assert!(error.outputs_untouched());
                assert_eq!(used(), before, "{what}: allocation {n} failed and others were kept");
            }
        }
    }
    panic!("{what}: no end of allocations");
}

/// Inputs of all operations here: floats that nobody may change.
const N: usize = 2 * 8 * 2 * 16;

#[test]
fn operations_survive_every_allocation() {
    let x: Vec<f64> = (0..N).map(|i| ((i * 7 % 13) as f64 - 6.0) / 8.0).collect();
    let (halves, floats) = (upload_as::<f16>(&x), upload_as::<f32>(&x));
    let (before, stream) = ((download(&halves), download(&floats)), stream());
    let mut made = Vec::new();
    let mut check = |what: &str, call: &mut dyn FnMut() -> Result<()>| {
        made.push((what.to_string(), every_allocation(what, call).1));
        assert!((download(&halves), download(&floats)) == before, "{what}: an input changed");
    };
    let h: &dyn DevicePtr<f16> = &halves;
    let f: &dyn DevicePtr<f32> = &floats;

    let shape = scan::Shape::dense(2, 8, 32);
    let options = scan::Options::new::<f16>(scan::Source::Tensor, &shape);
    let inputs = || scan::Inputs::of(scan::Gates::tensor(h, h));
    check("gated_scan", &mut || scan::gated_scan(&stream, &shape, &options, &inputs()).map(drop));
    let adjoint = || scan::BackwardInputs { forward: inputs(), h, dh: h, d_last: None };
    check("gated_scan_backward", &mut || scan::gated_scan_backward(&stream, &shape, &options, &adjoint()).map(drop));

    let shape = linear::Shape::dense(2, 8, 2, 16, 16);
    let options = linear::Options { decay: linear::Decay::Scalar, ..linear::Options::new::<f16>(&shape) };
    let inputs = || linear::Inputs { g: Some(f), ..linear::Inputs::of(h, h, h) };
    check("linear_attention", &mut || linear::linear_attention(&stream, &shape, &options, &inputs()).map(drop));
    let adjoint = || linear::BackwardInputs::of(inputs(), h);
    check("linear_attention_backward", &mut || {
        linear::linear_attention_backward(&stream, &shape, &options, &adjoint()).map(drop)
    });
    let flow = linear::flow::Shape::causal(2, 8, 2, 16, 16);
    let options = linear::flow::Options::new::<f16>();
    check("flow_attention", &mut || {
        linear::flow::flow_attention(&stream, &flow, &options, &halves, &halves, &halves).map(drop)
    });

    let shape = attention::Shape::dense(2, 8, 8, 2, 16);
    let options = attention::Options::new::<f16>(&shape);
    check("attention", &mut || {
        attention::attention::<f16, f16>(&stream, &shape, &options, &attention::Inputs::of(h, h, h)).map(drop)
    });
    let adjoint = || {
        let rows = attention::backward::Rows::Final(attention::backward::Final { o: h, lse: f, d_lse: None });
        let adjoint = attention::backward::Adjoint { d_o: h, rows };
        attention::BackwardInputs { inputs: attention::Inputs::of(h, h, h), adjoint }
    };
    let options = BackwardOptions::new(options);
    check("attention_backward", &mut || {
        attention::attention_backward::<f16, f16, f16>(&stream, &shape, &options, &adjoint()).map(drop)
    });

    let shape = decode::Shape::new(2, 2, 2, 16, decode::Cache::Dense { capacity: 8 });
    let (options, lengths) = (decode::Options::new::<f16>(&shape), upload(&[8_i32, 3]));
    let inputs = || decode::Inputs::of(h, h, h, decode::Lengths::dense(&lengths));
    check("lean_decode", &mut || decode::lean_decode::<f16, f16>(&stream, &shape, &options, &inputs()).map(drop));

    check("gemm", &mut || {
        gemm::linear(&stream, &halves, &halves, Param::None, (16, 16, 32), Activation::None).map(drop)
    });
    println!("allocations: {made:?}");
    assert!(!device::info().emulated || made.iter().all(|(_, count)| *count > 0), "{made:?}");
}

/// Loads, and reads twice: the first results and those of a call after one that failed are the same.
fn survives<M, R: PartialEq>(
    what: &str,
    mut load: impl FnMut() -> Result<M>,
    mut read: impl FnMut(&mut M) -> Result<R>,
) {
    let (mut model, loads) = every_allocation(&format!("{what} load"), &mut load);
    let wanted = read(&mut load().expect("a model")).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (found, reads) = every_allocation(&format!("{what} read"), || read(&mut model));
    assert!(found == wanted, "{what}: another result after a failure");
    println!("{what}: {loads} allocations to load, {reads} to read");
}

const FIRST: [i32; 5] = [3, 7, 1, 12, 4];
const SECOND: [i32; 2] = [9, 2];

#[test]
fn recurrent_models_survive_every_allocation() {
    let draft = Draft::random(8, 12, &[true, false]);
    let book = lookback_model::phonebook::Book::parse("Ada 1815").expect("a book");
    let prompt = [book.prompt("Ada").expect("a prompt")];
    let weights = draft.weights();
    survives("gated_ssm", || GatedSsm::load(&stream(), &weights), |model| model.logits(&prompt));

    let config = mamba2::small();
    let file = mamba2::draft::<f16>(&config).checkpoint();
    survives(
        "mamba2",
        || Mamba2::<f16>::load(&stream(), &file, &config),
        |model| model.prefill(&[&FIRST, &SECOND]).map(|(logits, _)| logits),
    );
    let config = linear_block::gla();
    let file = linear_block::draft::<f16>(&config).checkpoint();
    survives(
        "linear_block",
        || LinearModel::<f16>::load(&stream(), &file, &config),
        |model| model.prefill(&[&FIRST, &SECOND]).map(|(logits, _)| logits),
    );
    let config = jrt::small();
    let file = jrt::draft::<f16>(&config, false).checkpoint();
    survives(
        "jrt",
        || Jrt::<f16>::load(&stream(), &file, &config),
        |model| model.prefill(&[&FIRST]).map(|(logits, _)| logits),
    );
}

#[test]
fn other_models_survive_every_allocation() {
    let config = bert::small();
    let file = bert::draft::<f16>(&config, bert::NEW).checkpoint();
    survives(
        "bert",
        || Bert::<f16>::load(&stream(), &file, &config),
        |model| model.encode(&[lookback_model::bert::Sequence { ids: &FIRST, types: None }]),
    );
    let config = hydra::small();
    let file = hydra::draft::<f16>(&config).checkpoint();
    survives("hydra", || Hydra::<f16>::load(&stream(), &file, &config), |model| model.encode(&[&FIRST, &SECOND]));

    let (config, draft) = llama_case::small::<f16>();
    let file = draft.checkpoint();
    let load = || {
        let model = llama::Llama::<f16>::load(&stream(), &file, &config)?;
        let cache = model.cache(4, 4)?;
        Ok((model, cache))
    };
    survives("llama", load, |(model, cache)| {
        // A failure must not keep pages: there are few.
        model.prefill(cache, &[llama::Prompt::causal(&FIRST), llama::Prompt::causal(&SECOND)]).map(|(logits, _)| logits)
    });
}

#[test]
fn a_step_that_failed_can_be_made_again() {
    let config = mamba2::small();
    let file = mamba2::draft::<f16>(&config).checkpoint();
    let model = Mamba2::<f16>::load(&stream(), &file, &config).expect("a model");
    let (_, mut untouched) = model.prefill(&[&FIRST, &SECOND]).expect("a generation");
    let wanted = [[5, 6], [7, 8]].map(|tokens| model.step(&mut untouched, &tokens).expect("a step"));
    let (_, mut generation) = model.prefill(&[&FIRST, &SECOND]).expect("a generation");
    for (tokens, wanted) in [[5, 6], [7, 8]].iter().zip(&wanted) {
        let (logits, count) = every_allocation("step", || model.step(&mut generation, tokens));
        assert!(logits == *wanted, "after {count} failures a step gives something else");
    }
}
