//! One query a request over its cache. The schedule is made before: it serves all layers of a step.

use super::{DIM, PAGE, code, shuffled};
use crate::{Case, Facts, Launch, Memory, Role, Scale};
use half::bf16;
use lookback_decode::{
    Cache, CacheType, Inputs, KeyValues, Lengths, Options, Outputs, Plan, Scales, Schedule, Shape, Workspace,
};
use lookback_device::{DeviceInfo, Result, cudarc::driver::CudaSlice};

/// Where keys are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Dense,
    Ragged,
    Paged,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Dense => "dense",
            Kind::Ragged => "ragged",
            Kind::Paged => "paged",
        }
    }

    fn lengths<'a>(self, [kv_len, starts, table]: [&'a CudaSlice<i32>; 3]) -> Lengths<'a> {
        match self {
            Kind::Dense => Lengths::dense(kv_len),
            Kind::Ragged => Lengths::ragged(kv_len, starts),
            Kind::Paged => Lengths::paged(kv_len, starts, table),
        }
    }
}

/// What models are served with, in bf16 and in 8 bits.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let steps: Vec<(Vec<usize>, [usize; 2], Kind)> = match scale {
        Scale::Full => {
            let unequal: Vec<usize> = (0..16).map(|b| 512 + b * (32_768 - 512) / 15).collect();
            vec![
                (vec![8192], [32, 4], Kind::Dense),
                (vec![32_768], [32, 4], Kind::Dense),
                (vec![131_072], [32, 4], Kind::Dense),
                (vec![131_072], [32, 8], Kind::Dense),
                (vec![131_072], [16, 2], Kind::Dense),
                (vec![51_200; 3], [32, 8], Kind::Dense),
                (vec![32_768; 8], [32, 8], Kind::Dense),
                (vec![4096; 32], [32, 8], Kind::Dense),
                (vec![8192; 64], [64, 8], Kind::Dense),
                (vec![4096; 16], [32, 32], Kind::Dense),
                (vec![32_768; 8], [32, 8], Kind::Paged),
                (unequal.clone(), [32, 8], Kind::Ragged),
                (unequal, [32, 8], Kind::Paged),
            ]
        }
        Scale::Small => vec![
            (vec![1024], [8, 2], Kind::Dense),
            (vec![512; 2], [8, 2], Kind::Paged),
            (vec![100, 700, 400], [8, 2], Kind::Ragged),
            (vec![100, 700, 400], [8, 2], Kind::Paged),
        ],
    };
    let both = |(lengths, heads, kind): (Vec<usize>, _, _)| {
        [false, true].map(|is_e4m3| step(info, lengths.clone(), heads, kind, is_e4m3))
    };
    steps.into_iter().flat_map(both).collect()
}

fn facts(lengths: &[usize], [heads, key_heads]: [usize; 2], kind: Kind, is_e4m3: bool) -> Facts {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let unequal = if lengths.iter().any(|len| *len != longest) { ", unequal" } else { "" };
    let extents =
        [("batch", lengths.len()), ("kv_len", longest), ("heads", heads), ("key_heads", key_heads), ("head_dim", DIM)];
    let dtype = if is_e4m3 { "e4m3" } else { "bf16" };
    Facts::new("decode", "lean_decode", &format!("{}{unequal}", kind.name()), dtype, &extents)
}

/// Keys and values, in one of two types.
enum Stored {
    Wide([CudaSlice<bf16>; 2]),
    Codes([CudaSlice<u8>; 2]),
}

impl Stored {
    fn new(memory: &mut Memory, shape: &[usize], is_e4m3: bool) -> Result<Self> {
        Ok(match is_e4m3 {
            true => Self::Codes([memory.made("k", shape, code)?, memory.made("v", shape, code)?]),
            false => Self::Wide([memory.normal("k", shape)?, memory.normal("v", shape)?]),
        })
    }
}

/// Where each request begins, and where the last ends.
fn starts(lengths: &[usize], size: impl Fn(usize) -> usize) -> Vec<i32> {
    let mut starts = vec![0];
    for length in lengths {
        starts.push(starts.last().copied().unwrap_or(0) + size(*length) as i32);
    }
    starts
}

fn step(info: &DeviceInfo, lengths: Vec<usize>, heads: [usize; 2], kind: Kind, is_e4m3: bool) -> Case {
    let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
    let pages = lengths.iter().map(|len| len.div_ceil(PAGE)).sum();
    let (cache, keys) = match kind {
        Kind::Dense => (Cache::Dense { capacity: longest }, batch * longest),
        Kind::Ragged => (Cache::Ragged { tokens: lengths.iter().sum() }, lengths.iter().sum()),
        Kind::Paged => (Cache::Paged { pages, page_size: PAGE, table: pages }, pages * PAGE),
    };
    let facts = facts(&lengths, heads, kind, is_e4m3);
    let [heads, key_heads] = heads;
    let shape = Shape::new(batch, heads, key_heads, DIM, cache);
    let cache_type = if is_e4m3 { CacheType::E4m3(Scales::Head) } else { CacheType::Same };
    let plan = Plan::new(&shape, &Options { cache: cache_type, ..Options::new::<bf16>(&shape) }, info);
    let requests = lengths.clone();
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let lens: Vec<i32> = lengths.iter().map(|len| *len as i32).collect();
        let kv_len = memory.values("kv_len", &lens)?;
        let starts = match kind {
            Kind::Paged => memory.values("kv_indptr", &starts(&lengths, |len| len.div_ceil(PAGE)))?,
            _ => memory.values("cu_seqlens_k", &starts(&lengths, |len| len))?,
        };
        let table = memory.values("kv_indices", &shuffled(pages))?;
        let rows = [batch, heads, DIM];
        let mut sets = memory.sets(|memory| {
            let q = memory.normal::<bf16>("q", &rows)?;
            let stored = Stored::new(memory, &[keys, key_heads, DIM], is_e4m3)?;
            Ok((q, stored, memory.output::<bf16>("o", &rows)?))
        })?;
        let scales = ["k_scale", "v_scale"].map(|name| memory.made(name, &[key_heads], |_| 0.5_f32));
        let [k_scale, v_scale] = scales;
        let (k_scale, v_scale) = (k_scale?, v_scale?);
        let stream = memory.stream();
        let mut schedule = Schedule::new(&stream, plan.schedule_bytes())?;
        let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
        memory.describe("schedule", Role::Input, schedule.slice(), &[schedule.slice().len()]);
        memory.describe("workspace", Role::Scratch, workspace.slice(), &[workspace.slice().len()]);
        plan.schedule(&stream, &kind.lengths([&kv_len, &starts, &table]), &mut schedule)?;
        plan.status(&stream, &mut schedule)?;
        Ok(Box::new(move |set| {
            let lengths = kind.lengths([&kv_len, &starts, &table]);
            let (q, stored, o) = &mut sets[set];
            let inputs = match stored {
                Stored::Wide([k, v]) => Inputs::of(q, k, v, lengths),
                Stored::Codes([k, v]) => {
                    let cache = KeyValues::E4m3 { k, v, k_scale: &k_scale, v_scale: &v_scale };
                    Inputs { cache, ..Inputs::of(q, q, q, lengths) }
                }
            };
            plan.run(&stream, &inputs, Outputs::of(o), &schedule, &mut workspace)
        }))
    };
    Case::planned(facts, plan, move |plan| [plan.bytes_moved(&requests), plan.flops(&requests)], maker)
}
