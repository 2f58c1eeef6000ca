//! LLaMA-style models on a device against the reference: prompts, prefixes, windows, steps over a paged cache.

use super::llama_case::{BF16, F16, Pair, Rows, VOCABULARY, draft, llama, llama3, mistral, qwen, tokens, widened};
use super::support::{Draft, assert_every_tensor_is_wanted};
use half::{bf16, f16};
use lookback_device::{Element, Error, WeightsFault};
use lookback_model::llama::{Config, Llama, Prompt, Rope, Sequence};
use lookback_suite::{
    counters::Counters,
    device::stream,
    measure::{Gate, assert_close},
};

fn every_token_equals_the_reference<T: Element>(gate: Gate) {
    for (name, kind) in [("llama", llama()), ("qwen", qwen()), ("mistral", mistral())] {
        let pair = Pair::<T>::new(&kind);
        let prefixes: &[usize] = if kind.0.window.is_some() { &[0] } else { &[0, 5] };
        for (count, prefix) in
            [1, 7, 66].into_iter().flat_map(|count| prefixes.iter().map(move |p| (count, *p.min(&count))))
        {
            let row = tokens(count, count);
            let got = widened(&pair.model.logits(Prompt { tokens: &row, prefix }).unwrap());
            let what = format!("{name}, {count} tokens, prefix {prefix}");
            let e = assert_close(&what, &got, &pair.wanted(&row, prefix), VOCABULARY, gate);
            println!("{} {what}: {e:?}", T::DTYPE);
        }
    }
}

#[test]
fn every_token_equals_the_reference_f16() {
    every_token_equals_the_reference::<f16>(F16);
}

#[test]
fn every_token_equals_the_reference_bf16() {
    every_token_equals_the_reference::<bf16>(BF16);
}

/// Where they differ from what the base says, in prompts and in steps.
#[test]
fn stretched_angles_equal_the_reference() {
    let linear = (Config { rope: Rope::Linear { factor: 4.0 }, ..llama().0 }, llama().1);
    for (name, kind) in [("llama 3", llama3()), ("linear", linear)] {
        let pair = Pair::<f16>::new(&kind);
        let mut rows = Rows::new(&pair, 16, 4);
        rows.prefill(&[(tokens(0, 21), 0), (tokens(1, 3), 0)]);
        rows.extend(&[(0, 1), (1, 1)]);
        rows.extend(&[(0, 1), (1, 7)]);
        rows.check(name, F16);
    }
}

/// Prompts of different lengths, on both sides of a page's end, then steps over more ends.
fn prompts_and_their_steps_equal_the_reference<T: Element>(gate: Gate) {
    for (name, kind) in [("llama", llama()), ("qwen", qwen()), ("mistral", mistral())] {
        let pair = Pair::<T>::new(&kind);
        let prefix = |prefix: usize| if kind.0.window.is_some() { 0 } else { prefix };
        let mut rows = Rows::new(&pair, 16, 4);
        rows.prefill(&[(tokens(0, 8), prefix(0)), (tokens(1, 3), prefix(3)), (tokens(2, 13), prefix(6))]);
        for _ in 0..5 {
            rows.extend(&[(0, 1), (1, 1), (2, 1)]);
        }
        rows.check(&format!("{name}, steps"), gate);
    }
}

#[test]
fn prompts_and_their_steps_equal_the_reference_f16() {
    prompts_and_their_steps_equal_the_reference::<f16>(F16);
}

#[test]
fn prompts_and_their_steps_equal_the_reference_bf16() {
    prompts_and_their_steps_equal_the_reference::<bf16>(BF16);
}

/// A prompt in parts is the prompt, whatever the parts, and beside rows that grow by other numbers.
#[test]
fn prompts_in_parts_equal_the_reference() {
    for (name, kind) in [("llama", llama()), ("mistral", mistral())] {
        let pair = Pair::<f16>::new(&kind);
        let mut rows = Rows::new(&pair, 40, 3);
        rows.prefill(&[(tokens(0, 5), 0), (tokens(1, 1), 0)]);
        rows.extend(&[(1, 9), (0, 1)]);
        rows.extend(&[(0, 40)]);
        rows.extend(&[(0, 2), (1, 17)]);
        rows.check(&format!("{name}, parts"), F16);
    }
}

/// A prompt sees its own keys and values, later tokens see codes. Where those of the device and of the reference lie on two sides of a
/// middle, they differ by an eighth.
#[test]
fn a_cache_of_8_bits_equals_the_reference() {
    let close = Gate { rel: 1e-2, row: 3e-2, inf: 3e-2 };
    for (name, kind) in [("llama", llama()), ("mistral", mistral())] {
        let pair = Pair::<f16>::new(&kind);
        let prompts = [(tokens(0, 30), 0), (tokens(1, 4), 0)];
        let asked = prompts.each_ref().map(|(tokens, _)| Prompt::causal(tokens));
        let beside = |mut cache| pair.model.prefill(&mut cache, &asked).unwrap().0;
        assert_eq!(beside(pair.model.cache_e4m3(24, 3).unwrap()), beside(pair.model.cache(24, 3).unwrap()));
        let mut rows = Rows::coded(&pair, 24, 3);
        rows.prefill(&prompts);
        for _ in 0..3 {
            rows.extend(&[(0, 1), (1, 1)]);
        }
        rows.extend(&[(1, 6)]);
        rows.check(&format!("{name}, 8-bit cache"), close);
    }
    let odd = Pair::<f16>::new(&qwen()).model.cache_e4m3(4, 4).map(|_| ());
    assert!(matches!(odd, Err(Error::Shape { arg: "head_dim", .. })));
}

/// Pages go from sequence to sequence, and lie in no order.
#[test]
fn pages_of_closed_sequences_serve_new_ones() {
    let pair = Pair::<f16>::new(&llama());
    let mut rows = Rows::new(&pair, 8, 4);
    rows.prefill(&[(tokens(0, 9), 0), (tokens(1, 4), 2), (tokens(2, 6), 0)]);
    assert_eq!(rows.cache.pages().free(), 2);
    rows.cache.close(rows.open[0].sequence).unwrap();
    rows.extend(&[(1, 1), (2, 7)]);
    rows.prefill(&[(tokens(3, 7), 4)]);
    assert_eq!(rows.cache.pages().free(), 0);
    rows.extend(&[(3, 1), (1, 2)]);
    // The same again in another way.
    let row = &mut rows.open[2];
    rows.cache.truncate(row.sequence, 5).unwrap();
    row.tokens.truncate(5);
    rows.extend(&[(2, 3), (3, 1)]);
    rows.check("recycled pages", F16);
}

/// A step, taken back and taken again, is the same to the last bit: with the pass made anew and with the one that is kept.
#[test]
fn a_step_again_gives_the_same_bits() {
    let pair = Pair::<f16>::new(&llama());
    let mut cache = pair.model.cache(8, 8).unwrap();
    let prompts = [tokens(0, 30), tokens(1, 5)];
    let (_, rows) =
        pair.model.prefill(&mut cache, &[Prompt::causal(&prompts[0]), Prompt::causal(&prompts[1])]).unwrap();
    let mut results = Vec::new();
    for _ in 0..3 {
        results.push(pair.model.extend(&mut cache, &[(rows[0], &[7]), (rows[1], &[9])]).unwrap());
        cache.truncate(rows[0], 30).unwrap();
        cache.truncate(rows[1], 5).unwrap();
        pair.model.extend(&mut cache, &[(rows[1], &[3, 1, 4])]).unwrap();
        cache.truncate(rows[1], 5).unwrap();
        results.push(pair.model.extend(&mut cache, &[(rows[0], &[7]), (rows[1], &[9])]).unwrap());
        cache.truncate(rows[0], 30).unwrap();
        cache.truncate(rows[1], 5).unwrap();
    }
    assert!(results.iter().all(|logits| logits.iter().map(|x| x.to_bits()).eq(results[0].iter().map(|x| x.to_bits()))));
}

/// One block cuts up the work of a step for all layers, and no launch reads the whole pool.
#[test]
fn a_step_is_scheduled_once() {
    let kind = llama();
    let pair = Pair::<f16>::new(&kind);
    let mut cache = pair.model.cache(1000, 16).unwrap();
    let prompt = tokens(0, 20);
    let (_, rows) = pair.model.prefill(&mut cache, &[Prompt::causal(&prompt)]).unwrap();
    let counters = Counters::of(|| {
        pair.model.extend(&mut cache, &[(rows[0], &[1])]).unwrap();
    });
    if counters.is_none() {
        return;
    }
    let text = lookback_device::emulator::counters().unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |kernel: &str, path: &str| {
        let kernels = all["kernels"].as_object().unwrap().iter().filter(|(name, _)| name.starts_with(kernel));
        kernels.map(|(_, counters)| counters.pointer(path).and_then(serde_json::Value::as_u64).unwrap()).sum::<u64>()
    };
    assert_eq!(number("lean_plan", "/ctas"), 1);
    assert!(number("lean_decode", "/ctas") > 0 && number("kv_append", "/ctas") > 0);
    assert_eq!(number("attention_fwd", "/ctas"), 0);
    // Keys and values of 21 tokens, of 2 heads of 16, in 2 layers; queries, schedule and tables are a rest of hundreds of bytes.
    let keys = 21 * 2 * 16 * 2 * 2 * kind.0.layers as u64;
    let read = number("lean_decode", "/global_loads/unique_bytes");
    assert!((keys..2 * keys).contains(&read), "{read} bytes of {keys}");
}

#[test]
fn a_full_cache_says_so_and_goes_on() {
    let pair = Pair::<f16>::new(&llama());
    let mut rows = Rows::new(&pair, 4, 4);
    rows.prefill(&[(tokens(0, 7), 0), (tokens(1, 5), 0)]);
    let full = |result: Result<(), Error>, need: u64| match result {
        Err(Error::OutOfPages { need: got, free: 0, .. }) => assert_eq!(got, need),
        other => panic!("{other:?}"),
    };
    let five = tokens(2, 5);
    full(pair.model.prefill(&mut rows.cache, &[Prompt::causal(&five)]).map(|_| ()), 2);
    let grown = [(rows.open[0].sequence, &five[..1]), (rows.open[1].sequence, &five[..4])];
    full(pair.model.extend(&mut rows.cache, &grown).map(|_| ()), 1);
    assert_eq!((rows.cache.pages().sequences(), rows.cache.pages().free()), (2, 0));
    rows.extend(&[(0, 1), (1, 3)]);
    rows.cache.close(rows.open[0].sequence).unwrap();
    rows.extend(&[(1, 1)]);
    rows.check("a full cache", F16);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let pair = Pair::<f16>::new(&llama());
    let model = &pair.model;
    let mut cache = model.cache(8, 4).unwrap();
    let (_, open) = model.prefill(&mut cache, &[Prompt::causal(&[1, 2])]).unwrap();
    let before = (format!("{:?}", cache.pages().table(&open)), cache.pages().sequences());
    let mut prefill = |prompts: &[Prompt<'_>]| model.prefill(&mut cache, prompts).map(|_| ()).unwrap_err();
    assert!(matches!(prefill(&[]), Error::Shape { arg: "prompts", .. }));
    assert!(matches!(prefill(&[Prompt::causal(&[1]), Prompt::causal(&[])]), Error::Shape { arg: "tokens", .. }));
    assert!(matches!(prefill(&[Prompt::causal(&[1, 29])]), Error::Range { arg: "ids", at: Some(1), .. }));
    assert!(matches!(prefill(&[Prompt { tokens: &[1], prefix: 2 }]), Error::Range { arg: "prefix", got: 2, .. }));
    let mut extend = |rows: &[(Sequence, &[i32])]| model.extend(&mut cache, rows).map(|_| ()).unwrap_err();
    assert!(matches!(extend(&[]), Error::Shape { arg: "rows", .. }));
    assert!(matches!(extend(&[(open[0], &[])]), Error::Shape { arg: "tokens", .. }));
    assert!(matches!(extend(&[(open[0], &[-1])]), Error::Range { arg: "ids", .. }));
    assert!(matches!(extend(&[(open[0], &[1]), (open[0], &[1])]), Error::Shape { arg: "sequence", .. }));
    // Pages are where they were; who was refused has left nothing behind.
    assert_eq!((format!("{:?}", cache.pages().table(&open)), cache.pages().sequences()), before);
    cache.close(open[0]).unwrap();
    assert!(matches!(model.extend(&mut cache, &[(open[0], &[1])]), Err(Error::Shape { arg: "sequence", .. })));
    assert_eq!(cache.pages().free(), 8);
    // Another model's cache, and what windows and f32 cannot do.
    let other = Pair::<f16>::new(&mistral());
    let foreign = other.model.prefill(&mut cache, &[Prompt::causal(&[1])]).map(|_| ());
    assert!(matches!(foreign, Err(Error::Shape { arg: "cache", .. })));
    let prefix = other.model.logits(Prompt { tokens: &[1, 2], prefix: 1 });
    assert!(matches!(prefix, Err(Error::NoKernel { request, .. }) if request.contains("prefix")));
    let wide = Pair::<f32>::new(&llama());
    assert!(
        matches!(wide.model.logits(Prompt::causal(&[1])), Err(Error::NoKernel { request, .. }) if request.contains("f32"))
    );
    assert!(matches!(model.cache(0, 4).map(|_| ()), Err(Error::Range { arg: "pages", .. })));
}

#[test]
fn every_tensor_is_wanted() {
    for kind in [llama(), qwen()] {
        let mut draft = draft::<f16>(&kind);
        // Without it the embedding is the head.
        draft.tensors.remove("lm_head.weight");
        assert_every_tensor_is_wanted(&draft, |file| Llama::<f16>::load(&stream(), file, &kind.0).map(|_| ()));
    }
}

/// A layer with more than this block has is another model's.
#[test]
fn tensors_of_another_block_are_refused_by_name() {
    let kind = llama();
    let good = draft::<f16>(&kind);
    let load = |draft: &Draft| Llama::<f16>::load(&stream(), &draft.checkpoint(), &kind.0).map(|_| ());
    let norm = good.tensors["model.norm.weight"].clone();
    let with = |name: &str| {
        let mut draft = good.clone();
        draft.tensors.insert(name.into(), norm.clone());
        draft
    };
    for name in ["model.layers.1.self_attn.q_norm.weight", "model.layers.0.mlp.experts.0.up_proj.weight"] {
        match load(&with(name)) {
            Err(Error::Weights { tensor, why: WeightsFault::Config { .. }, .. }) => {
                assert_eq!(tensor.as_deref(), Some(name))
            }
            other => panic!("{other:?}"),
        }
    }
    for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.mlp.gate.weight", "vision.weight"] {
        load(&with(name)).unwrap();
    }
}

#[test]
fn wrong_configurations_are_errors() {
    let kind = llama();
    let draft = draft::<f16>(&kind);
    let load = |config: &Config| Llama::<f16>::load(&stream(), &draft.checkpoint(), config).map(|_| ());
    let good = kind.0;
    for (config, name) in [
        (Config { heads: 0, ..good }, "heads"),
        (Config { key_heads: 4, ..good }, "key_heads"),
        (Config { key_heads: 0, ..good }, "key_heads"),
        (Config { head_dim: 12, ..good }, "head_dim"),
        (Config { inner: 0, ..good }, "inner"),
    ] {
        assert!(matches!(load(&config), Err(Error::Shape { arg, .. }) if arg == name), "{name}");
    }
    for (rope, name) in [
        (Rope::Linear { factor: 0.0 }, "factor"),
        (Rope::Linear { factor: f64::NAN }, "factor"),
        (Rope::Llama3 { factor: 8.0, low: 4.0, high: 4.0, original: 64.0 }, "high"),
        (Rope::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: -1.0 }, "original"),
    ] {
        assert!(matches!(load(&Config { rope, ..good }), Err(Error::Range { arg, .. }) if arg == name), "{rope:?}");
    }
    for head_dim in [0, 264] {
        assert!(matches!(load(&Config { head_dim, ..good }), Err(Error::Range { arg: "head_dim", .. })), "{head_dim}");
    }
    for config in [Config { width: 48, ..good }, Config { layers: 3, ..good }, Config { head_dim: 24, ..good }] {
        assert!(matches!(load(&config), Err(Error::Weights { tensor: Some(_), .. })));
    }
    load(&Config { layers: 1, ..good }).unwrap();
}
