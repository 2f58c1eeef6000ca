//! `lean_decode`.

mod cases;

use super::{
    Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
};
use crate::{
    Result,
    session::Session,
    tensor::{Kind, Tensor, Tensors},
};
use lookback_decode::{
    Cache, CacheType, Inputs as Step, KeyValues, Lengths, Options, Output, Outputs, Plan, Scales, Schedule, Shape,
    Tuning, Workspace,
};
use lookback_device::{
    Element,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_reference::lean_decode as reference;

/// Few queries of each request over all of its cache.
pub static LEAN_DECODE: Operation = Operation {
    name: "lean_decode",
    about: "o = softmax(scale q.k) v over each request's cache, dense, ragged or paged; query i of m sees keys up to i + kv_len - m",
    inputs: INPUTS,
    attributes: ATTRIBUTES,
    outputs: &[
        required("o", "T", "[B,Q,H,V]|[N,H,V]", "0 where a query sees nothing"),
        required("lse", "f32", "[B,Q,H]|[N,H]", "natural logarithm of the sum"),
        optional(
            "logits",
            "f32",
            "[B,H,Q,C]",
            "with logits=true, by key or list entry; -inf for keys that are not seen",
        ),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases: cases::cases,
};

const INPUTS: &[TensorSpec] = &[
    required("q", "T", "[B,Q,H,D]|[N,H,D]", "queries; of 3 dimensions they are packed, with cu_seqlens_q. f16 or bf16"),
    required("kv_len", "i32", "[B]", "keys of each request"),
    optional("cu_seqlens_q", "i32", "[B+1]", "starts of packed queries"),
    optional(
        "k",
        "T/e4m3",
        "[B,X,Y,D]|[L,Y,D]",
        "dense keys, X places of Y heads (NHD); ragged ones, with cu_seqlens_k",
    ),
    optional("v", "T/e4m3", "[B,X,Y,V]|[L,Y,V]", "values, like k"),
    optional("cu_seqlens_k", "i32", "[B+1]", "starts of the requests in ragged keys"),
    optional("k_pages", "T/e4m3", "[P,X,Y,D]", "pages of keys, X places of Y heads (NHD)"),
    optional("v_pages", "T/e4m3", "[P,X,Y,V]", "values, like k_pages"),
    optional("kv_indptr", "i32", "[B+1]", "starts of the requests' page tables"),
    optional("kv_indices", "i32", "[I]", "page tables"),
    optional("k_scale", "f32", "[S]|[L,Y]|[P,X,Y]", "of e4m3 keys: one, one for each head, or like k without D"),
    optional("v_scale", "f32", "[S]|[L,Y]|[P,X,Y]", "of e4m3 values"),
    optional("list", "i32", "[B,G,E]", "positions of the only keys that a key head reads; -1 for none"),
    optional("list_len", "i32", "[B,G]", "entries in use"),
    optional("alibi_slopes", "f32", "[H]", "slope (j - p) is added to the logit of key j at position p"),
    optional("sink", "f32", "[H]", "logits of a key without a value"),
];

const ATTRIBUTES: &[AttributeSpec] = &[
    AttributeSpec {
        name: "layout",
        values: "NHD|HND",
        default: "NHD",
        about: "places before heads, or heads before places",
    },
    AttributeSpec { name: "scale", values: "a number", default: "1/sqrt(D)", about: "factor of every product" },
    AttributeSpec { name: "softcap", values: "a number", default: "0", about: "greatest magnitude of logits; 0: none" },
    AttributeSpec {
        name: "window",
        values: "an integer",
        default: "-1",
        about: "keys before its own that a query sees; -1: all",
    },
    AttributeSpec {
        name: "sink_tokens",
        values: "an integer",
        default: "0",
        about: "first keys that every query sees",
    },
    AttributeSpec { name: "logits", values: "true|false", default: "false", about: "whether logits are wanted" },
    AttributeSpec { name: "out", values: "same|f32", default: "same", about: "type of o" },
    AttributeSpec {
        name: "slots",
        values: "an integer",
        default: "0",
        about: "blocks of the launch; 0: as many as are resident",
    },
];

/// Which tensors hold the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Names {
    k: &'static str,
    v: &'static str,
    starts: Option<&'static str>,
}

/// What the user's tensors and attributes say.
struct Setting {
    shape: Shape,
    options: Options,
    names: Names,
    heads_first: bool,
}

/// The most that one of the packed sequences has.
fn longest(starts: &[i32]) -> usize {
    starts.windows(2).map(|w| i64::from(w[1]) - i64::from(w[0])).max().unwrap_or(0).max(0) as usize
}

fn setting(inputs: &Inputs) -> Result<Setting> {
    let paged = inputs.optional("k_pages").is_some();
    let names = match (paged, inputs.optional("cu_seqlens_k").is_some()) {
        (true, _) => Names { k: "k_pages", v: "v_pages", starts: Some("kv_indptr") },
        (false, true) => Names { k: "k", v: "v", starts: Some("cu_seqlens_k") },
        (false, false) => Names { k: "k", v: "v", starts: None },
    };
    let others: &[&str] = if paged { &["k", "v", "cu_seqlens_k"] } else { &["v_pages", "kv_indptr", "kv_indices"] };
    if let Some(name) = others.iter().find(|name| inputs.optional(name).is_some()) {
        return Err(inputs.wrong(name, format!("has no meaning beside `{}`", names.k)));
    }
    let (k, v) = (inputs.tensor(names.k)?, inputs.tensor(names.v)?);
    if k.kind != v.kind || k.shape.len() != v.shape.len() {
        return Err(inputs.wrong(names.v, format!("must have the type and dimensions of `{}`", names.k)));
    }
    let heads_first = inputs.choose("layout", &[("NHD", false), ("HND", true)])?;
    let (mut places, mut key_heads) = (inputs.extent('X'), inputs.extent('Y'));
    if heads_first {
        std::mem::swap(&mut places, &mut key_heads);
    }
    let cache = match (names.starts, k.shape.len()) {
        (None, 4) => Cache::Dense { capacity: places },
        (Some("cu_seqlens_k"), 3) if !heads_first => Cache::Ragged { tokens: inputs.extent('L') },
        (Some("kv_indptr"), _) => {
            let table = inputs.tensor("kv_indices")?.len();
            Cache::Paged { pages: inputs.extent('P'), page_size: places, table }
        }
        (None, _) => return Err(inputs.wrong("cu_seqlens_k", "is missing: keys of 3 dimensions are ragged".into())),
        _ => return Err(inputs.wrong(names.k, "of ragged requests must be [L,Y,D], with layout=NHD".into())),
    };
    let q = inputs.tensor("q")?;
    let (query_len, packed) = match (q.shape.len(), inputs.optional("cu_seqlens_q")) {
        (4, None) => (inputs.extent('Q'), None),
        (3, Some(starts)) => (longest(&starts.as_indices()), Some(inputs.extent('N'))),
        _ => {
            return Err(
                inputs.wrong("cu_seqlens_q", "goes with packed queries, of 3 dimensions, and only with them".into())
            );
        }
    };
    let dense = Shape::new(inputs.extent('B'), inputs.extent('H'), key_heads, inputs.extent('D'), cache);
    let mut shape = Shape { query_len, packed, value_dim: inputs.extent('V'), ..dense };
    if heads_first {
        shape = shape.heads_first();
    }
    let scales = |name: &str| match inputs.optional(name).map(|t| t.shape.as_slice()) {
        Some([1]) => Ok(Scales::Tensor),
        Some([heads]) if *heads == key_heads => Ok(Scales::Head),
        Some(shape) if !shape.is_empty() && *shape == k.shape[..k.shape.len() - 1] => Ok(Scales::Token),
        Some(shape) => Err(inputs.wrong(
            name,
            format!("must have 1, {key_heads} or {:?} elements, got {shape:?}", &k.shape[..k.shape.len() - 1]),
        )),
        None => Err(inputs.wrong(name, "is missing: a cache of e4m3 has scales".into())),
    };
    let cache_type = match k.kind {
        Kind::E4m3 => {
            let of_keys = scales("k_scale")?;
            if scales("v_scale")? != of_keys {
                return Err(inputs.wrong("v_scale", "must have the shape of `k_scale`".into()));
            }
            CacheType::E4m3(of_keys)
        }
        _ => match ["k_scale", "v_scale"].into_iter().find(|name| inputs.optional(name).is_some()) {
            Some(name) => return Err(inputs.wrong(name, "goes with a cache of e4m3".into())),
            None => CacheType::Same,
        },
    };
    let list = inputs.optional("list").map(|_| inputs.extent('E'));
    if list.is_some() && inputs.extent('G') != key_heads {
        return Err(inputs.wrong("list", format!("must be of {key_heads} key heads, got {}", inputs.extent('G'))));
    }
    let left: i64 = inputs.parse("window")?;
    let softcap = inputs.number("softcap", 0.0)?;
    let slots: u32 = inputs.parse("slots")?;
    let columns = list.unwrap_or_else(|| {
        let keys = inputs.optional("kv_len").map(Tensor::as_indices).unwrap_or_default();
        // A length that no cache holds is the kernel's to report, and needs no room.
        (keys.into_iter().max().unwrap_or(0).max(1) as usize).min(cache.capacity().max(1))
    });
    let plain = Options::new::<f32>(&shape);
    let options = Options {
        dtype: inputs.dtype,
        cache: cache_type,
        output: inputs.choose("out", &[("same", Output::Same), ("f32", Output::F32)])?,
        scale: if inputs.is_set("scale") { inputs.number("scale", f32::MIN)? } else { plain.scale },
        softcap: (softcap > 0.0).then_some(softcap),
        left: u32::try_from(left).ok(),
        sink_tokens: inputs.parse("sink_tokens")?,
        list,
        logits: inputs.parse::<bool>("logits")?.then_some(columns.max(1)),
        tuning: Tuning { slots: (slots > 0).then_some(slots), ..Tuning::default() },
    };
    Ok(Setting { shape, options, names, heads_first })
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    match setting(inputs)?.options.output {
        Output::Same => run_into::<T, T>(session, inputs),
        Output::F32 => run_into::<T, f32>(session, inputs),
    }
}

fn run_into<T: Element, O: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let Setting { shape, options, names, .. } = setting(inputs)?;
    let plan = Plan::new(&shape, &options, &session.info)?;
    let numbers = |name| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
    let singles = |name| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
    let kv_len = session.upload(&inputs.tensor("kv_len")?.as_indices())?;
    let starts = names.starts.map(|name| inputs.tensor(name)).transpose()?;
    let starts = starts.map(|t| session.upload(&t.as_indices())).transpose()?;
    let (cu_seqlens_q, kv_indices) = (numbers("cu_seqlens_q")?, numbers("kv_indices")?);
    let (list, list_len) = (numbers("list")?, numbers("list_len")?);
    let (slopes, sink) = (singles("alibi_slopes")?, singles("sink")?);
    fn some<T>(slice: &Option<CudaSlice<T>>) -> Option<&dyn DevicePtr<T>> {
        slice.as_ref().map(|s| s as &dyn DevicePtr<T>)
    }
    let lengths = Lengths {
        kv_len: &kv_len,
        cu_seqlens_q: some(&cu_seqlens_q),
        kv_indptr: some(&starts),
        kv_indices: some(&kv_indices),
        list: some(&list),
        list_len: some(&list_len),
    };
    let q = session.upload(&inputs.tensor("q")?.as_elements::<T>())?;
    let (k, v) = (inputs.tensor(names.k)?, inputs.tensor(names.v)?);
    let same = (session.upload(&k.as_elements::<T>())?, session.upload(&v.as_elements::<T>())?);
    let codes = match options.cache {
        CacheType::Same => None,
        CacheType::E4m3(_) => Some((session.upload(k.as_flags())?, session.upload(v.as_flags())?)),
    };
    let (k_scale, v_scale) = (singles("k_scale")?, singles("v_scale")?);
    let cache = match (&codes, &k_scale, &v_scale) {
        (Some((k, v)), Some(k_scale), Some(v_scale)) => KeyValues::E4m3 { k, v, k_scale, v_scale },
        _ => KeyValues::Same { k: &same.0, v: &same.1 },
    };
    let step = Step { q: &q, cache, lengths, alibi_slopes: some(&slopes), sink: some(&sink) };

    let rows = inputs.tensor("q")?.len().checked_div(shape.head_dim).unwrap_or(0);
    let mut o = session.zeros::<O>(rows * shape.value_dim)?;
    let mut lse = session.zeros::<f32>(rows)?;
    // Tiles that nobody sees are not written.
    let columns = options.logits.unwrap_or(0);
    let mut logits = session.upload(&vec![f32::NEG_INFINITY; rows * columns])?;
    let mut schedule = Schedule::new(&session.stream, plan.schedule_bytes())?;
    let mut workspace = Workspace::new(&session.stream, plan.workspace_bytes())?;
    plan.schedule(&session.stream, &lengths, &mut schedule)?;
    let outputs = Outputs {
        o: &mut o,
        lse: Some(&mut lse),
        logits: options.logits.map(|_| &mut logits as &mut dyn DevicePtrMut<f32>),
    };
    plan.run(&session.stream, &step, outputs, &schedule, &mut workspace)?;
    plan.status(&session.stream, &mut schedule)?;

    let q_shape = &inputs.tensor("q")?.shape;
    let (tokens, heads) = (&q_shape[..q_shape.len() - 2], shape.heads);
    let mut out = Tensors::from([
        ("o".into(), Tensor::elements(&[tokens, &[heads, shape.value_dim]].concat(), &session.download::<O>(&o)?)),
        ("lse".into(), Tensor::elements(&[tokens, &[heads]].concat(), &session.download::<f32>(&lse)?)),
    ]);
    if options.logits.is_some() {
        let extents = match shape.packed {
            Some(tokens) => vec![tokens, heads, columns],
            None => vec![shape.batch, heads, shape.query_len, columns],
        };
        out.insert("logits".into(), Tensor::elements(&extents, &session.download::<f32>(&logits)?));
    }
    Ok(out)
}

/// `[pages, Hk, places, width]` as `[pages, places, Hk, width]`.
fn places_first(values: &[f64], heads: usize, width: usize, places: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    for page in values.chunks_exact((places * heads * width).max(1)) {
        for place in 0..places {
            for head in 0..heads {
                out.extend_from_slice(&page[(head * places + place) * width..][..width]);
            }
        }
    }
    out
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let Setting { shape, options, names, heads_first } = setting(inputs)?;
    let places = match shape.cache {
        Cache::Dense { capacity } => capacity,
        Cache::Ragged { tokens } => tokens,
        Cache::Paged { page_size, .. } => page_size,
    };
    let (heads, dims) = (shape.key_heads, [shape.head_dim, shape.value_dim]);
    let turned =
        |values: Vec<f64>, width| if heads_first { places_first(&values, heads, width, places) } else { values };
    let cache = |name, scale, width: usize| -> Result<Vec<f64>> {
        let mut values = turned(inputs.tensor(name)?.to_f64(), width);
        let scales = inputs.values(scale).unwrap_or_default();
        let scales = if let CacheType::E4m3(Scales::Token) = options.cache { turned(scales, 1) } else { scales };
        for (row, values) in values.chunks_exact_mut(width.max(1)).enumerate() {
            let scale = match options.cache {
                CacheType::Same => 1.0,
                CacheType::E4m3(Scales::Tensor) => scales[0],
                CacheType::E4m3(Scales::Head) => scales[row % heads],
                CacheType::E4m3(Scales::Token) => scales[row],
            };
            values.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(values)
    };
    let (k, v) = (cache(names.k, "k_scale", dims[0])?, cache(names.v, "v_scale", dims[1])?);
    let q = inputs.tensor("q")?.to_f64();
    let numbers = |name: Option<&'static str>| name.and_then(|name| inputs.optional(name)).map(Tensor::as_indices);
    let (kv_len, starts) = (inputs.tensor("kv_len")?.as_indices(), numbers(names.starts).unwrap_or_default());
    let [cu_seqlens_q, indices, list, list_len] =
        ["cu_seqlens_q", "kv_indices", "list", "list_len"].map(|name| numbers(Some(name)));
    let (slopes, sink) = (inputs.values("alibi_slopes"), inputs.values("sink"));
    let attention = reference::Attention {
        batch: shape.batch,
        query_len: shape.query_len,
        heads: shape.heads,
        key_heads: heads,
        head_dim: dims[0],
        value_dim: dims[1],
        cu_seqlens_q: cu_seqlens_q.as_deref(),
        kv_len: &kv_len,
        cache: match shape.cache {
            Cache::Dense { capacity } => reference::Cache::Dense { capacity },
            Cache::Ragged { .. } => reference::Cache::Ragged { starts: &starts },
            Cache::Paged { page_size, .. } => {
                reference::Cache::Paged { page_size, indptr: &starts, indices: indices.as_deref().unwrap_or(&[]) }
            }
        },
        scale: f64::from(options.scale),
        softcap: options.softcap.map(f64::from),
        left: options.left,
        sink_tokens: options.sink_tokens,
        list: match (&list, &list_len) {
            (Some(positions), Some(len)) => Some(reference::List { positions, len, stride: options.list.unwrap_or(0) }),
            _ => None,
        },
        alibi_slopes: slopes.as_deref(),
        sink: sink.as_deref(),
        logits_stride: options.logits.unwrap_or(0),
    };
    let out = reference::forward(&attention, &reference::Inputs { q: &q, k: &k, v: &v });
    let mut values = Values::from([("o".into(), out.o), ("lse".into(), out.lse)]);
    if options.logits.is_some() {
        values.insert("logits".into(), out.logits);
    }
    Ok(values)
}
