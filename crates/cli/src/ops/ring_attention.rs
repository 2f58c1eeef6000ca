//! `ring_attention`: the sequence dealt to several ranks, threads of this process that share the device, or, started by
//! `lookback launch`, torchrun or the like, one process each.

use super::{
    Case, Inputs, Operation, Values,
    attention::{LEFT, MASK, RIGHT, SCALE, SINK_TOKENS, SOFTCAP},
    for_dtype,
    inputs::{AttributeSpec, optional, required},
    wave,
};
use crate::{
    CliError, Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, DeviceInfo, Element, cu_seqlens, cudarc::driver::CudaContext, driver};
use lookback_reference::attention as reference;
use lookback_ring::{
    FAR, Layout, Partition, Visible, World,
    attention::{Inputs as RingInputs, Options, Outputs, Plan, Shape},
    schedule::Kind,
    transport::{Transport, local, tcp},
};
use std::{sync::Arc, thread, time::Duration};

/// How long threads of this process wait for each other.
const PATIENCE: Duration = Duration::from_secs(600);

const SCHEDULES: &str = "ring|bidirectional|two_level|tokenring|allgather|ulysses";

/// Attention of a dealt sequence.
pub static RING_ATTENTION: Operation = Operation {
    name: "ring_attention",
    about: "attention of a sequence that is dealt to several ranks; o and lse as of the whole",
    inputs: &[
        required("q", "T", "[B,T,H,D]", "queries, f16 or bf16; D and V are multiples of 8, at most 256"),
        required("k", "T", "[B,T,G,D]", "keys; G divides H, and H / G neighbouring heads share one"),
        required("v", "T", "[B,T,G,V]", "values"),
        optional("cu_seqlens", "i32", "[N+1]", "starts of documents that do not see each other, and their end, T"),
        optional(
            "prefix_len",
            "i32",
            "[N]",
            "tokens that all of a document see, with mask=prefix; N is 1 without cu_seqlens",
        ),
    ],
    attributes: &[
        AttributeSpec { name: "ranks", values: "1 to 64", default: "4", about: "ranks, if no launcher says how many" },
        AttributeSpec { name: "schedule", values: SCHEDULES, default: "ring", about: "what moves" },
        AttributeSpec {
            name: "partition",
            values: "contiguous|zigzag|striped",
            default: "zigzag",
            about: "which tokens a rank has",
        },
        AttributeSpec {
            name: "node",
            values: "a divisor of ranks",
            default: "2",
            about: "ranks of a node, with two_level",
        },
        AttributeSpec { name: "groups", values: "1 to G", default: "1", about: "sets of key heads, with allgather" },
        AttributeSpec { values: "full|causal|anti_causal|prefix|window", ..MASK },
        LEFT,
        RIGHT,
        SINK_TOKENS,
        SCALE,
        SOFTCAP,
    ],
    outputs: &[
        required("o", "T", "[B,T,H,V]", "0 where a token sees nothing"),
        required("lse", "f32", "[B,T,H]", "minus infinity where it sees nothing"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// What all ranks agree on.
struct Job {
    shape: Shape,
    options: Options,
    layout: Layout,
    visible: Visible,
}

impl Job {
    fn of(inputs: &Inputs, dtype: DType, ranks: usize) -> Result<Self> {
        let [batch, tokens, heads, key_heads, head_dim, value_dim] =
            ['B', 'T', 'H', 'G', 'D', 'V'].map(|letter| inputs.extent(letter));
        let shape = Shape { batch, heads, key_heads, head_dim, value_dim };
        let partition = inputs.choose(
            "partition",
            &[("contiguous", Partition::Contiguous), ("zigzag", Partition::Zigzag), ("striped", Partition::Striped)],
        )?;
        let kinds = [
            ("ring", Kind::Ring),
            ("bidirectional", Kind::Bidirectional),
            ("two_level", Kind::TwoLevel { node: inputs.parse("node")? }),
            ("tokenring", Kind::TokenRing),
            ("allgather", Kind::AllGather { groups: inputs.parse("groups")? }),
            ("ulysses", Kind::Ulysses),
        ];
        let default = Options::new(&shape, dtype);
        let options = Options {
            scale: if inputs.is_set("scale") { inputs.number("scale", 0.0)? } else { default.scale },
            softcap: match inputs.attribute("softcap") {
                "none" => None,
                _ => Some(inputs.number("softcap", 0.0)?),
            },
            kind: inputs.choose("schedule", &kinds)?,
            ..default
        };
        Ok(Self { shape, options, layout: Layout { partition, tokens, ranks }, visible: visible(inputs, tokens)? })
    }

    /// A rank's rows of a tensor with rows of `width`.
    fn part<T: Copy>(&self, rank: usize, all: &[T], width: usize) -> Vec<T> {
        let rows = self.places(rank).map(|row| &all[row * width..][..width]);
        rows.flatten().copied().collect()
    }

    /// A rank's rows back where they belong.
    fn put<T: Copy>(&self, rank: usize, part: &[T], all: &mut [T], width: usize) {
        for (row, part) in self.places(rank).zip(part.chunks_exact(width.max(1))) {
            all[row * width..][..width].copy_from_slice(part);
        }
    }

    /// Rows of the whole that a rank has, in order.
    fn places(&self, rank: usize) -> impl Iterator<Item = usize> {
        let Layout { tokens, .. } = self.layout;
        let layout = self.layout;
        (0..self.shape.batch)
            .flat_map(move |b| (0..layout.len(rank)).map(move |i| b * tokens + layout.position(rank, i)))
    }

    /// One rank's `o` and `lse`.
    fn rank<T: Element>(
        &self,
        context: &Arc<CudaContext>,
        [q, k, v]: [&[T]; 3],
        transport: &mut dyn Transport,
    ) -> Result<(Vec<T>, Vec<f32>)> {
        let Shape { batch, heads, key_heads, head_dim, value_dim } = self.shape;
        let rank = transport.rank();
        let info = DeviceInfo::of(context)?;
        context.bind_to_thread().map_err(|e| driver(e, "a rank's thread"))?;
        let stream = context.new_stream().map_err(|e| driver(e, "a rank's stream"))?;
        let session = Session { context: context.clone(), stream: stream.clone(), info: info.clone() };
        let plan = Plan::new(&self.shape, &self.options, &self.layout, &self.visible, rank, &info)?;
        let mut workspace = plan.workspace(&stream)?;
        let q = session.upload(&self.part(rank, q, heads * head_dim))?;
        let k = session.upload(&self.part(rank, k, key_heads * head_dim))?;
        let v = session.upload(&self.part(rank, v, key_heads * value_dim))?;
        let rows = batch * plan.tokens() * heads;
        let (mut o, mut lse) = (session.zeros::<T>(rows * value_dim)?, session.zeros::<f32>(rows)?);
        let outputs = Outputs { o: &mut o, lse: &mut lse };
        plan.run(&stream, &RingInputs { q: &q, k: &k, v: &v }, outputs, &mut workspace, transport)?;
        Ok((session.download::<T>(&o)?, session.download::<f32>(&lse)?))
    }
}

/// What a token sees.
fn visible(inputs: &Inputs, tokens: usize) -> Result<Visible> {
    let reach = |name| match inputs.attribute(name) {
        "all" => Ok(FAR),
        _ => inputs.parse::<u32>(name).map(i64::from),
    };
    let full = Visible::full(tokens);
    let causal = Visible::causal(tokens);
    let mask = inputs.attribute("mask");
    for name in ["left", "right", "sink_tokens"] {
        if inputs.is_set(name) && mask != "window" {
            return Err(inputs.wrong(name, "wants mask=window".into()));
        }
    }
    let index =
        inputs.choose("mask", &[("full", 0), ("causal", 1), ("anti_causal", 2), ("prefix", 3), ("window", 4)])?;
    for name in ["cu_seqlens", "prefix_len"] {
        if inputs.optional(name).is_some() && inputs.extent('B') != 1 {
            return Err(inputs.wrong(name, format!("wants one row, got B = {}", inputs.extent('B'))));
        }
    }
    let mut visible = match index {
        0 => full,
        1 | 3 => causal,
        2 => Visible { left: -1, ..full },
        _ => Visible {
            left: reach("left")?,
            right: reach("right")?,
            sink_tokens: inputs.parse::<u32>("sink_tokens")? as usize,
            ..full
        },
    };
    if let Some(starts) = inputs.optional("cu_seqlens") {
        let starts = starts.as_indices();
        if starts.len() < 2 {
            return Err(inputs.wrong("cu_seqlens", format!("wants at least 2 entries, got {}", starts.len())));
        }
        cu_seqlens(&starts, tokens).map_err(|error| inputs.wrong("cu_seqlens", error.to_string()))?;
        visible.documents = starts.iter().map(|start| *start as usize).collect();
    }
    let documents = visible.documents.len() - 1;
    match (inputs.optional("prefix_len"), index) {
        (Some(lengths), 3) if lengths.len() == documents => {
            let lengths = lengths.as_indices();
            if let Some(bad) = lengths.iter().find(|n| **n < 0) {
                return Err(inputs.wrong("prefix_len", format!("must be at least 0, got {bad}")));
            }
            visible.prefix_len = lengths.iter().map(|n| *n as usize).collect();
        }
        (Some(lengths), 3) => {
            let why = format!("must have {documents} entries, got {:?}", lengths.shape);
            return Err(inputs.wrong("prefix_len", why));
        }
        (Some(_), _) => return Err(inputs.wrong("prefix_len", "wants mask=prefix".into())),
        (None, 3) => return Err(inputs.wrong("prefix_len", "is missing, mask=prefix wants it".into())),
        (None, _) => {}
    }
    Ok(visible)
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [q, k, v] = ["q", "k", "v"].map(|name| inputs.tensor(name).map(Tensor::as_elements::<T>));
    let (q, k, v) = (q?, k?, v?);
    let world = World::from_env()?.filter(|world| world.ranks > 1);
    let ranks = match &world {
        Some(world) => world.ranks,
        None => inputs.parse("ranks")?,
    };
    if !(1..=64).contains(&ranks) {
        return Err(inputs.wrong("ranks", format!("must be 1 to 64, got {ranks}")));
    }
    let job = Job::of(inputs, T::DTYPE, ranks)?;
    let parts = match world {
        Some(world) => processes(session, &job, [&q, &k, &v], &world)?,
        None => threads(session, &job, [&q, &k, &v])?,
    };
    let Shape { batch, heads, value_dim, .. } = job.shape;
    let rows = [batch, job.layout.tokens, heads, value_dim];
    let mut o = vec![T::from_f64(0.0); rows.iter().product()];
    let mut lse = vec![0.0_f32; rows[..3].iter().product()];
    for (rank, (part, sums)) in parts.iter().enumerate() {
        job.put(rank, part, &mut o, heads * value_dim);
        job.put(rank, sums, &mut lse, heads);
    }
    Ok(Tensors::from([("o".into(), Tensor::elements(&rows, &o)), ("lse".into(), Tensor::elements(&rows[..3], &lse))]))
}

/// What every rank gave.
type Parts<T> = Vec<(Vec<T>, Vec<f32>)>;

fn threads<T: Element>(session: &Session, job: &Job, tensors: [&[T]; 3]) -> Result<Parts<T>> {
    let ends = local(job.layout.ranks, PATIENCE);
    thread::scope(|scope| {
        let ranks = ends.into_iter().map(|mut end| scope.spawn(move || job.rank(&session.context, tensors, &mut end)));
        let ranks: Vec<_> = ranks.collect();
        let ended = ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|_| Err(CliError::Failed("a rank panicked".into()))));
        let ended: Vec<Result<_>> = ended.collect();
        // What one rank found is the reason why the others gave up.
        let (done, failed): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
        let is_echo = |e: &CliError| matches!(e, CliError::Operation(lookback_device::Error::Peer { .. }));
        let mut failed: Vec<CliError> = failed.into_iter().filter_map(Result::err).collect();
        failed.sort_by_key(is_echo);
        match failed.into_iter().next() {
            Some(error) => Err(error),
            None => done.into_iter().collect(),
        }
    })
}

/// This process is one rank; every process ends with what all gave.
fn processes<T: Element>(session: &Session, job: &Job, tensors: [&[T]; 3], world: &World) -> Result<Parts<T>> {
    let mut transport = tcp(&world.rendezvous)?;
    let (o, lse) = job.rank(&session.context, tensors, &mut transport)?;
    let o = transport.all_gather(bytemuck::cast_slice(&o))?;
    let lse = transport.all_gather(bytemuck::cast_slice(&lse))?;
    Ok(o.iter().zip(&lse).map(|(o, lse)| (values(o), values(lse))).collect())
}

/// Numbers as they came over the wire.
fn values<V: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<V> {
    bytes.chunks_exact(size_of::<V>()).map(bytemuck::pod_read_unaligned).collect()
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let [q, k, v] = ["q", "k", "v"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
    let (q, k, v) = (q?, k?, v?);
    let job = Job::of(inputs, inputs.dtype, 1)?;
    let Shape { batch, heads, key_heads, head_dim, value_dim } = job.shape;
    let starts: Vec<i32> = job.visible.documents.iter().map(|start| *start as i32).collect();
    let prefix_len = inputs.optional("prefix_len").map(Tensor::as_indices);
    let far = |reach: i64| reach.min(reference::FAR);
    let mask = reference::Mask {
        prefix_len: prefix_len.as_deref(),
        ..reference::Mask::window(far(job.visible.left), far(job.visible.right), job.visible.sink_tokens as i64)
    };
    let packed = (batch == 1).then_some(&starts[..]);
    let attention = reference::Attention {
        key_heads,
        value_dim,
        scale: f64::from(job.options.scale),
        softcap: job.options.softcap.map(f64::from),
        mask,
        cu_seqlens_q: packed,
        cu_seqlens_k: packed,
        ..reference::Attention::dense(batch, job.layout.tokens, job.layout.tokens, heads, head_dim)
    };
    let out = reference::forward(&attention, &reference::Inputs { q: &q, k: &k, v: &v });
    Ok(Values::from([("o".into(), out.o), ("lse".into(), out.lse)]))
}

/// Every schedule and partition; there are no f32 kernels.
fn cases(dtype: DType) -> Vec<Case> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let with = |name: &str, [b, t, h, g]: [usize; 4], starts: &[i32], set: &[&str]| {
        let floats = |phase, heads: usize| {
            let shape = [b, t, heads, 64];
            Tensor::floats(dtype, &shape, &wave(phase, shape.iter().product()))
        };
        let mut tensors =
            Tensors::from([("q".into(), floats(1.0, h)), ("k".into(), floats(2.0, g)), ("v".into(), floats(3.0, g))]);
        if !starts.is_empty() {
            tensors.insert("cu_seqlens".into(), Tensor::indices(&[starts.len()], starts));
        }
        Case { name: name.into(), tensors, attributes: set.iter().map(|s| s.to_string()).collect() }
    };
    vec![
        with("ring", [1, 70, 4, 2], &[], &["mask=causal", "ranks=3"]),
        with("ring, contiguous documents", [1, 70, 2, 2], &[0, 21, 21, 70], &["mask=causal", "partition=contiguous"]),
        with("both ways, striped", [2, 33, 4, 4], &[], &["schedule=bidirectional", "partition=striped", "mask=causal"]),
        with("two levels", [1, 64, 2, 1], &[], &["schedule=two_level", "mask=causal"]),
        with("queries move", [1, 61, 4, 4], &[], &["schedule=tokenring", "mask=causal"]),
        with("all gathered", [1, 50, 4, 2], &[], &["schedule=allgather", "groups=2", "ranks=2"]),
        with(
            "heads dealt, window",
            [1, 66, 4, 4],
            &[],
            &["schedule=ulysses", "mask=window", "left=9", "sink_tokens=2", "softcap=3"],
        ),
    ]
}
