//! New keys, turned, and values into pages all over a pool: in 8 bits with a scale for each row, or as they are.

use super::{DIM, PAGE, shuffled};
use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_decode::{
    Cache, CacheType, Scales,
    append::{Inputs, Options, Outputs, Plan, Rotary, Shape, Style},
};
use lookback_device::{DeviceInfo, Result, cudarc::driver::CudaSlice};

/// A prompt, and a token for each of many requests.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let (prompt, requests, key_heads) = match scale {
        Scale::Full => (8192, 64, 8),
        Scale::Small => (256, 4, 2),
    };
    let kinds = [(prompt, false), (prompt, true), (requests, false), (requests, true)];
    kinds.into_iter().map(|(tokens, is_e4m3)| append(info, tokens, key_heads, is_e4m3)).collect()
}

/// Where rows go.
enum Pool {
    Same([CudaSlice<bf16>; 2]),
    Codes([CudaSlice<u8>; 2], [CudaSlice<f32>; 2]),
}

fn append(info: &DeviceInfo, tokens: usize, key_heads: usize, is_e4m3: bool) -> Case {
    let pages = 4 * tokens.div_ceil(PAGE);
    let places = pages * PAGE;
    let shape = Shape::slots(tokens, 1, key_heads, DIM, Cache::Paged { pages, page_size: PAGE, table: pages });
    let cache = if is_e4m3 { CacheType::E4m3(Scales::Token) } else { CacheType::Same };
    let rotary = Some(Rotary::new(Style::Half, DIM));
    let plan = Plan::new(&shape, &Options { cache, rotary, ..Options::new::<bf16>() }, info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let order = shuffled(pages);
        let slot = |t: usize| i64::from(order[t / PAGE]) * PAGE as i64 + (t % PAGE) as i64;
        let slots = memory.values("slot_map", &(0..tokens).map(slot).collect::<Vec<_>>())?;
        let positions = memory.values("positions", &(0..tokens as i32).collect::<Vec<_>>())?;
        let (new, rows) = ([tokens, key_heads, DIM], [places, key_heads, DIM]);
        let mut sets = memory.sets(|memory| {
            let [k_new, v_new] = ["k_new", "v_new"].map(|name| memory.normal::<bf16>(name, &new));
            let pool = if is_e4m3 {
                let [k, v] = ["k", "v"].map(|name| memory.output::<u8>(name, &rows));
                let [ks, vs] = ["k_scale", "v_scale"].map(|name| memory.output::<f32>(name, &rows[..2]));
                Pool::Codes([k?, v?], [ks?, vs?])
            } else {
                let [k, v] = ["k", "v"].map(|name| memory.output::<bf16>(name, &rows));
                Pool::Same([k?, v?])
            };
            Ok((k_new?, v_new?, pool))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (k_new, v_new, pool) = &mut sets[set];
            let mut inputs = Inputs::slots(k_new, v_new, &slots);
            inputs.positions = Some(&positions);
            let outputs = match pool {
                Pool::Same([k, v]) => Outputs::Same { k, v },
                Pool::Codes([k, v], [k_scale, v_scale]) => Outputs::Computed { k, v, k_scale, v_scale },
            };
            plan.run(&stream, &inputs, outputs, None)
        }))
    };
    let dtype = if is_e4m3 { "e4m3" } else { "bf16" };
    let extents = [("tokens", tokens), ("key_heads", key_heads), ("head_dim", DIM)];
    let facts = Facts::new("decode", "kv_append", "paged", dtype, &extents);
    Case::planned(facts, plan, |plan| [plan.bytes_moved(), 0], maker)
}
