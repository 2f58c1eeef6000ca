//! Attention of one query a request over caches, and what fills them.

use crate::{Case, PERIOD, ROTATION_BYTES, filled, varied};
use half::bf16;
use lookback_decode::{
    Cache, CacheType, Inputs, KeyValues, Lengths, Options, Outputs, Plan, Scales, Schedule, Shape, Workspace,
    append::{self, Rotary, Style},
};
use lookback_device::{DeviceInfo, cudarc::driver::CudaSlice};
use lookback_suite::{buffer::upload, device, random::Random};

/// Tokens of a page.
const PAGE: usize = 16;
const DIM: usize = 128;

/// Where keys are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Dense,
    Ragged,
    Paged,
}

impl Kind {
    fn lengths<'a>(self, [kv_len, starts, table]: [&'a CudaSlice<i32>; 3]) -> Lengths<'a> {
        match self {
            Kind::Dense => Lengths::dense(kv_len),
            Kind::Ragged => Lengths::ragged(kv_len, starts),
            Kind::Paged => Lengths::paged(kv_len, starts, table),
        }
    }
}

/// What models are served with. One after the other is made, because some take gigabytes.
pub fn cases(info: &DeviceInfo) -> impl Iterator<Item = Case> {
    let ragged: Vec<usize> = (0..16).map(|b| 512 + b * (32_768 - 512) / 15).collect();
    of(info, [vec![131_072], vec![32_768; 8], ragged], [32, 8], [8192, 64])
}

/// The same where the emulator counts.
pub fn small_cases(info: &DeviceInfo) -> impl Iterator<Item = Case> {
    of(info, [vec![4096], vec![1024; 2], vec![100, 1500, 700]], [8, 2], [256, 4])
}

fn of(
    info: &DeviceInfo,
    [one, some, ragged]: [Vec<usize>; 3],
    heads: [usize; 2],
    [prompt, requests]: [usize; 2],
) -> impl Iterator<Item = Case> {
    let kinds = [
        (one, Kind::Dense),
        (some.clone(), Kind::Dense),
        (some, Kind::Paged),
        (ragged.clone(), Kind::Ragged),
        (ragged, Kind::Paged),
    ];
    let steps = kinds.into_iter().flat_map(move |(lengths, kind)| {
        [false, true].into_iter().map(move |is_e4m3| step(info, &lengths.clone(), heads, kind, is_e4m3))
    });
    let appends = [(prompt, false), (prompt, true), (requests, false), (requests, true)];
    steps.chain(appends.into_iter().map(move |(tokens, is_e4m3)| appended(info, tokens, heads[1], is_e4m3)))
}

/// Pages in an order that no copy ahead can guess.
fn shuffled(pages: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..pages as i32).collect();
    let mut random = Random::new(7);
    (1..pages).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    order
}

/// Every key and value of a layer, in one of two types.
struct Layer {
    q: CudaSlice<bf16>,
    wide: [CudaSlice<bf16>; 2],
    codes: [CudaSlice<u8>; 2],
    o: CudaSlice<bf16>,
}

/// One token for each request. The schedule is made before: it serves all layers of a step.
fn step(info: &DeviceInfo, lengths: &[usize], [heads, key_heads]: [usize; 2], kind: Kind, is_e4m3: bool) -> Case {
    let stream = device::stream();
    let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
    let pages_of = |len: &usize| len.div_ceil(PAGE);
    let pages = lengths.iter().map(pages_of).sum();
    let (cache, keys) = match kind {
        Kind::Dense => (Cache::Dense { capacity: longest }, batch * longest),
        Kind::Ragged => (Cache::Ragged { tokens: lengths.iter().sum() }, lengths.iter().sum()),
        Kind::Paged => (Cache::Paged { pages, page_size: PAGE, table: pages }, pages * PAGE),
    };
    let shape = Shape::new(batch, heads, key_heads, DIM, cache);
    let cache_type = if is_e4m3 { CacheType::E4m3(Scales::Head) } else { CacheType::Same };
    let options = Options { cache: cache_type, ..Options::new::<bf16>(&shape) };
    let plan = Plan::new(&shape, &options, info).expect("a good shape");
    let (bytes, flops) = (plan.bytes_moved(lengths), plan.flops(lengths));
    let sets = (ROTATION_BYTES / bytes as usize).max(1);

    let starts_of = |size: &dyn Fn(&usize) -> usize| {
        let starts = lengths.iter().scan(0, |sum, len| Some(std::mem::replace(sum, *sum + size(len)) as i32));
        let starts: Vec<i32> = starts.collect();
        let last = lengths.iter().map(size).sum::<usize>() as i32;
        upload(&[starts, vec![last]].concat())
    };
    let starts = if kind == Kind::Paged { starts_of(&pages_of) } else { starts_of(&|len: &usize| *len) };
    let table = upload(&shuffled(pages));
    let kv_len = upload(&lengths.iter().map(|len| *len as i32).collect::<Vec<_>>());
    let elements = keys * key_heads * DIM;
    let mut layers: Vec<_> = (0..sets as u64)
        .map(|set| Layer {
            q: varied(batch * heads * DIM, 3 * set),
            wide: [1, 2].map(|seed| varied(if is_e4m3 { 0 } else { elements }, 3 * set + seed)),
            codes: [1, 2].map(|seed| codes(if is_e4m3 { elements } else { 0 }, 3 * set + seed)),
            o: filled(&stream, batch * heads * DIM, 0.0),
        })
        .collect();
    let scales = [0.5, 0.5].map(|scale| filled::<f32>(&stream, key_heads, scale));
    let mut schedule = Schedule::new(&stream, plan.schedule_bytes()).expect("memory");
    let mut workspace = Workspace::new(&stream, plan.workspace_bytes()).expect("memory");
    plan.schedule(&stream, &kind.lengths([&kv_len, &starts, &table]), &mut schedule).expect("launch");
    plan.status(&stream, &mut schedule).expect("good lengths");
    let sizes = if lengths.iter().all(|len| *len == longest) {
        format!("{batch}x{longest}")
    } else {
        format!("{batch}, unequal")
    };
    let name = if is_e4m3 { "e4m3" } else { "bf16" };
    Case {
        name: format!("lean_decode {name} {kind:?} {sizes} {heads}/{key_heads}x{DIM}").to_lowercase(),
        bytes,
        flops,
        sets,
        launch: Box::new(move |i| {
            let lengths = kind.lengths([&kv_len, &starts, &table]);
            let Layer { q, wide: [k, v], codes: [k_codes, v_codes], o } = &mut layers[i];
            let [k_scale, v_scale] = &scales;
            let mut inputs = Inputs::of(q, k, v, lengths);
            if is_e4m3 {
                inputs.cache = KeyValues::E4m3 { k: k_codes, v: v_codes, k_scale, v_scale };
            }
            plan.run(&stream, &inputs, Outputs::of(o), &schedule, &mut workspace).expect("launch");
        }),
    }
}

/// Codes of any sign between 2^-6 and 3.75.
fn codes(elements: usize, seed: u64) -> CudaSlice<u8> {
    let mut random = Random::new(seed);
    let some: Vec<u8> =
        (0..elements.min(PERIOD)).map(|_| (128 * random.below(2) + 8 + random.below(64)) as u8).collect();
    upload(&some.iter().copied().cycle().take(elements).collect::<Vec<_>>())
}

/// New keys, turned, and values of so many tokens into pages all over a pool: in 8 bits with a scale for each row, or as they are.
fn appended(info: &DeviceInfo, tokens: usize, key_heads: usize, is_e4m3: bool) -> Case {
    let stream = device::stream();
    let pages = 4 * tokens.div_ceil(PAGE);
    let places = pages * PAGE;
    let shape = append::Shape::slots(tokens, 1, key_heads, DIM, Cache::Paged { pages, page_size: PAGE, table: pages });
    let cache = if is_e4m3 { CacheType::E4m3(Scales::Token) } else { CacheType::Same };
    let rotary = Some(Rotary::new(Style::Half, DIM));
    let plan = append::Plan::new(&shape, &append::Options { cache, rotary, ..append::Options::new::<bf16>() }, info)
        .expect("a good shape");
    let order = shuffled(pages);
    let slot = |t: usize| i64::from(order[t / PAGE]) * PAGE as i64 + (t % PAGE) as i64;
    let slots = upload(&(0..tokens).map(slot).collect::<Vec<_>>());
    let positions = upload(&(0..tokens as i32).collect::<Vec<_>>());
    let row = key_heads * DIM;
    let [k_new, v_new] = [1, 2].map(|seed| varied::<bf16>(tokens * row, seed));
    let elements = |wanted: bool, each: usize| if wanted { places * each } else { 0 };
    let [mut k, mut v] = [0; 2].map(|_| upload(&vec![bf16::ZERO; elements(!is_e4m3, row)]));
    let [mut k_codes, mut v_codes] = [0; 2].map(|_| upload(&vec![0_u8; elements(is_e4m3, row)]));
    let [mut k_scale, mut v_scale] = [0; 2].map(|_| upload(&vec![1_f32; elements(is_e4m3, key_heads)]));
    let name = if is_e4m3 { "e4m3" } else { "bf16" };
    Case {
        name: format!("kv_append {name} {tokens} tokens {key_heads}x{DIM}"),
        bytes: plan.bytes_moved(),
        flops: 0,
        sets: 1,
        launch: Box::new(move |_| {
            let mut inputs = append::Inputs::slots(&k_new, &v_new, &slots);
            inputs.positions = Some(&positions);
            let outputs = match is_e4m3 {
                true => append::Outputs::Computed {
                    k: &mut k_codes,
                    v: &mut v_codes,
                    k_scale: &mut k_scale,
                    v_scale: &mut v_scale,
                },
                false => append::Outputs::Same { k: &mut k, v: &mut v },
            };
            plan.run(&stream, &inputs, outputs, None).expect("launch");
        }),
    }
}
