//! `kv_append`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Kind, Tensor, Tensors},
};
use lookback_decode::{
    Cache, CacheType, Scales,
    append::{self, Options, Outputs, Place, Plan, Rotary, Shape, Style},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_reference::{
    e4m3,
    kv_append::{self as oracle_of, Append, Turn},
    lean_decode, rotary,
};

/// New keys and values to their places in a cache.
pub static KV_APPEND: Operation = Operation {
    name: "kv_append",
    about: "new keys, turned by their positions, and values into a dense, ragged or paged cache, rounded to e4m3 where that is its type",
    inputs: INPUTS,
    attributes: ATTRIBUTES,
    outputs: &[
        required("k", "T/e4m3", "as the cache that came in", "or k_pages: keys with the new ones"),
        required("v", "T/e4m3", "as the cache that came in", "or v_pages: values with the new ones"),
        optional("k_scale", "f32", "[P,X,Y]|[L,Y]", "scales that were computed; 0 where nothing was stored"),
        optional("v_scale", "f32", "[P,X,Y]|[L,Y]", "likewise"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

const INPUTS: &[TensorSpec] = &[
    required("k_new", "T", "[N,Y,D]", "new keys of Y heads"),
    required("v_new", "T", "[N,Y,V]", "new values"),
    optional("slot_map", "i32", "[N]", "where each token belongs, page times places of a page plus place; -1: nowhere"),
    optional("kv_len", "i32", "[B]", "without slot_map: tokens of each request, the last of which are the new ones"),
    optional("cu_seqlens", "i32", "[B+1]", "starts of the requests' new tokens; without, all have as many"),
    optional("k", "T/e4m3", "[B,X,Z,D]|[L,Y,D]", "dense keys, X places of heads (NHD); ragged ones, with cu_seqlens_k"),
    optional("v", "T/e4m3", "[B,X,Z,V]|[L,Y,V]", "values, like k"),
    optional("cu_seqlens_k", "i32", "[B+1]", "starts of the requests in a ragged cache"),
    optional("k_pages", "T/e4m3", "[P,X,Z,D]", "pages of keys, X places of heads (NHD)"),
    optional("v_pages", "T/e4m3", "[P,X,Z,V]", "values, like k_pages"),
    optional("kv_indptr", "i32", "[B+1]", "starts of the requests' page tables"),
    optional("kv_indices", "i32", "[I]", "page tables"),
    optional("positions", "i32", "[N]", "for the angles; without, places in the request"),
    optional(
        "k_scale",
        "f32",
        "[S]",
        "of e4m3 keys, one or one for each head; without, they are computed for each row",
    ),
    optional("v_scale", "f32", "[S]", "of e4m3 values"),
];

const ATTRIBUTES: &[AttributeSpec] = &[
    AttributeSpec {
        name: "layout",
        values: "NHD|HND",
        default: "NHD",
        about: "places before heads, or heads before places",
    },
    AttributeSpec {
        name: "rotary",
        values: "none|half|interleaved",
        default: "none",
        about: "pairs of a key that turn: (i, i+r/2) or (2i, 2i+1)",
    },
    AttributeSpec { name: "base", values: "a number from 1", default: "10000", about: "of the frequencies" },
    AttributeSpec { name: "rotary_dim", values: "up to D", default: "0", about: "first elements that turn; 0: all" },
    AttributeSpec {
        name: "theta_dim",
        values: "a number",
        default: "0",
        about: "angle i is position base^(-2i/theta_dim); 0: rotary_dim",
    },
];

/// What the user's tensors and attributes say.
struct Setting {
    shape: Shape,
    options: Options,
    /// Names of the cache.
    names: [&'static str; 2],
    heads_first: bool,
    pages: usize,
    places: usize,
}

fn setting(inputs: &Inputs) -> Result<Setting> {
    let paged = inputs.optional("k_pages").is_some();
    let names = if paged { ["k_pages", "v_pages"] } else { ["k", "v"] };
    let (k, v) = (inputs.tensor(names[0])?, inputs.tensor(names[1])?);
    if k.kind != v.kind || k.shape.len() != v.shape.len() {
        return Err(inputs.wrong(names[1], format!("must have the type and dimensions of `{}`", names[0])));
    }
    let heads_first = inputs.choose("layout", &[("NHD", false), ("HND", true)])?;
    let [tokens, batch, key_heads] = ['N', 'B', 'Y'].map(|letter| inputs.extent(letter));
    let (mut places, mut heads) = (inputs.extent('X'), inputs.extent('Z'));
    if heads_first {
        std::mem::swap(&mut places, &mut heads);
    }
    let slots = inputs.optional("slot_map").is_some();
    for name in ["kv_len", "cu_seqlens", "cu_seqlens_k", "kv_indptr", "kv_indices"] {
        if slots && inputs.optional(name).is_some() {
            return Err(inputs.wrong(name, "has no meaning beside `slot_map`".into()));
        }
    }
    let (cache, pages) = match (paged, k.shape.len()) {
        (true, _) => {
            let table = if slots { 0 } else { inputs.tensor("kv_indices")?.len() };
            (Cache::Paged { pages: inputs.extent('P'), page_size: places, table }, inputs.extent('P'))
        }
        (false, 4) => (Cache::Dense { capacity: places }, batch),
        _ => {
            if !slots {
                inputs.tensor("cu_seqlens_k")?;
            }
            (places, heads) = (inputs.extent('L'), key_heads);
            (Cache::Ragged { tokens: places }, 1)
        }
    };
    if heads != key_heads {
        return Err(inputs.wrong(names[0], format!("must have {key_heads} heads as `k_new` has, got {heads}")));
    }
    let place = match (inputs.optional("slot_map"), inputs.optional("cu_seqlens")) {
        (Some(_), _) => Place::Slots,
        (None, Some(_)) => Place::Packed,
        (None, None) => Place::Requests { query_len: tokens.checked_div(batch).unwrap_or(0) },
    };
    let head_dim = inputs.extent('D');
    let packed = Shape::packed(tokens, batch, key_heads, head_dim, cache);
    let mut shape = Shape { place, value_dim: inputs.extent('V'), ..packed };
    if heads_first {
        shape = shape.heads_first();
    }
    let given = |name: &str| match inputs.optional(name).map(Tensor::len) {
        None => Ok(Scales::Token),
        Some(1) => Ok(Scales::Tensor),
        Some(n) if n == key_heads => Ok(Scales::Head),
        Some(n) => Err(inputs.wrong(name, format!("must have 1 or {key_heads} elements, got {n}"))),
    };
    let scales = given("k_scale")?;
    if given("v_scale")? != scales {
        return Err(inputs.wrong("v_scale", "must have the shape of `k_scale`".into()));
    }
    let cache = if k.kind == Kind::E4m3 { CacheType::E4m3(scales) } else { CacheType::Same };
    if cache == CacheType::Same && inputs.optional("k_scale").is_some() {
        return Err(inputs.wrong("k_scale", "goes with a cache of e4m3".into()));
    }
    let styles = [("none", None), ("half", Some(Style::Half)), ("interleaved", Some(Style::Interleaved))];
    let or = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
    let rotary_dim = or(inputs.parse("rotary_dim")?, head_dim);
    let (base, theta_dim) = (inputs.parse("base")?, or(inputs.parse("theta_dim")?, rotary_dim));
    let rotary = inputs.choose("rotary", &styles)?.map(|style| Rotary { style, base, rotary_dim, theta_dim });
    let options = Options { dtype: inputs.dtype, cache, rotary };
    Ok(Setting { shape, options, names, heads_first, pages, places })
}

impl Setting {
    /// Where a row of a slot begins in the user's tensor.
    fn at(&self, slot: usize, head: usize, width: usize) -> usize {
        let (heads, places) = (self.shape.key_heads, self.places);
        let (page, place) = (slot / places.max(1), slot % places.max(1));
        let row = if self.heads_first {
            (page * heads + head) * places + place
        } else {
            (page * places + place) * heads + head
        };
        row * width
    }

    /// Extents of the scales of tokens, and their number.
    fn scales(&self, k: &Tensor) -> (Vec<usize>, usize) {
        let extents = k.shape[..k.shape.len() - 1].to_vec();
        let len = extents.iter().product();
        (extents, len)
    }
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let setting = setting(inputs)?;
    let Setting { shape, options, names, .. } = &setting;
    let plan = Plan::new(shape, options, &session.info)?;
    let numbers = |name| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
    fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
        slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
    }
    let [k_new, v_new] = ["k_new", "v_new"].map(|name| inputs.tensor(name).map(Tensor::as_elements::<T>));
    let (k_new, v_new) = (session.upload(&k_new?)?, session.upload(&v_new?)?);
    let slots = inputs.optional("slot_map").map(|t| t.as_indices().into_iter().map(i64::from).collect::<Vec<i64>>());
    let slots = slots.map(|s| session.upload(&s)).transpose()?;
    let starts = numbers(if matches!(shape.cache, Cache::Ragged { .. }) { "cu_seqlens_k" } else { "kv_indptr" })?;
    let (kv_len, cu_seqlens) = (numbers("kv_len")?, numbers("cu_seqlens")?);
    let (indices, positions) = (numbers("kv_indices")?, numbers("positions")?);
    let tensors = append::Inputs {
        k_new: &k_new,
        v_new: &v_new,
        slot_map: some(&slots),
        kv_len: some(&kv_len),
        cu_seqlens: some(&cu_seqlens),
        kv_indptr: some(&starts),
        kv_indices: some(&indices),
        positions: some(&positions),
    };
    let (k_in, v_in) = (inputs.tensor(names[0])?, inputs.tensor(names[1])?);
    let mut status = session.zeros::<u32>(1)?;
    let mut out = Tensors::new();
    if options.cache == CacheType::Same {
        let mut k = session.upload(&k_in.as_elements::<T>())?;
        let mut v = session.upload(&v_in.as_elements::<T>())?;
        plan.run(&session.stream, &tensors, Outputs::Same { k: &mut k, v: &mut v }, Some(&mut status))?;
        out.insert(names[0].into(), Tensor::elements(&k_in.shape, &session.download::<T>(&k)?));
        out.insert(names[1].into(), Tensor::elements(&v_in.shape, &session.download::<T>(&v)?));
    } else {
        let (mut k, mut v) = (session.upload(k_in.as_flags())?, session.upload(v_in.as_flags())?);
        if let CacheType::E4m3(Scales::Token) = options.cache {
            let (extents, len) = setting.scales(k_in);
            let (mut k_scale, mut v_scale) = (session.zeros::<f32>(len)?, session.zeros::<f32>(len)?);
            let outputs = Outputs::Computed { k: &mut k, v: &mut v, k_scale: &mut k_scale, v_scale: &mut v_scale };
            plan.run(&session.stream, &tensors, outputs, Some(&mut status))?;
            out.insert("k_scale".into(), Tensor::elements(&extents, &session.download::<f32>(&k_scale)?));
            out.insert("v_scale".into(), Tensor::elements(&extents, &session.download::<f32>(&v_scale)?));
        } else {
            let singles = |name| session.upload(&inputs.tensor(name)?.as_elements::<f32>());
            let (k_scale, v_scale) = (singles("k_scale")?, singles("v_scale")?);
            let outputs = Outputs::Given { k: &mut k, v: &mut v, k_scale: &k_scale, v_scale: &v_scale };
            plan.run(&session.stream, &tensors, outputs, Some(&mut status))?;
        }
        let codes = |extents: &[usize], k| session.download::<u8>(k).map(|k| Tensor::written_codes(extents, &k));
        out.insert(names[0].into(), codes(&k_in.shape, &k)?);
        out.insert(names[1].into(), codes(&v_in.shape, &v)?);
    }
    append::masked(&session.stream, &mut status)?;
    Ok(out)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let setting = setting(inputs)?;
    let Setting { shape, options, names, pages, places, .. } = &setting;
    let numbers = |name: &str| inputs.optional(name).map(Tensor::as_indices).unwrap_or_default();
    let slots: Vec<i64> = numbers("slot_map").into_iter().map(i64::from).collect();
    let starts = numbers(if matches!(shape.cache, Cache::Ragged { .. }) { "cu_seqlens_k" } else { "kv_indptr" });
    let (kv_len, cu_seqlens, indices) = (numbers("kv_len"), numbers("cu_seqlens"), numbers("kv_indices"));
    let positions = inputs.optional("positions").map(Tensor::as_indices);
    let cache = match shape.cache {
        Cache::Dense { capacity } => lean_decode::Cache::Dense { capacity },
        Cache::Ragged { .. } => lean_decode::Cache::Ragged { starts: &starts },
        Cache::Paged { page_size, .. } => lean_decode::Cache::Paged { page_size, indptr: &starts, indices: &indices },
    };
    let cu_seqlens = (shape.place == Place::Packed).then_some(&cu_seqlens[..]);
    let append = Append {
        heads: shape.key_heads,
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
        slots: pages * places,
        place: match shape.place {
            Place::Slots => oracle_of::Place::Slots(&slots),
            _ => oracle_of::Place::Requests { kv_len: &kv_len, cu_seqlens, cache },
        },
        turn: options.rotary.map(|r| Turn {
            style: if r.style == Style::Half { rotary::Style::Half } else { rotary::Style::Interleaved },
            base: r.base,
            rotary_dim: r.rotary_dim,
            theta_dim: r.theta_dim,
        }),
        positions: positions.as_deref(),
    };
    let located = append.locate(shape.tokens);
    let mut values = Values::new();
    let (k_new, v_new) = (inputs.tensor("k_new")?.to_f64(), inputs.tensor("v_new")?.to_f64());
    let k_new = append.turned(&k_new, &located);
    for (i, (new, width)) in [(k_new, shape.head_dim), (v_new, shape.value_dim)].into_iter().enumerate() {
        let name = ["k_scale", "v_scale"][i];
        let given: Vec<f64> = inputs.values(name).unwrap_or_default().repeat(shape.key_heads.max(1));
        let scales = match options.cache {
            CacheType::Same => oracle_of::Scales::None,
            CacheType::E4m3(Scales::Token) => oracle_of::Scales::Computed,
            CacheType::E4m3(_) => oracle_of::Scales::Given(&given),
        };
        let stored = oracle_of::append(&new, shape.key_heads, append.slots, &located, scales);
        let mut cache = inputs.tensor(names[i])?.to_f64();
        let mut row_scales = vec![0.0; append.slots * shape.key_heads];
        for slot in located.iter().filter_map(|l| l.slot) {
            for head in 0..shape.key_heads {
                let row = slot * shape.key_heads + head;
                let to = &mut cache[setting.at(slot, head, width)..][..width];
                to.copy_from_slice(&stored.values[row * width..][..width]);
                if options.cache != CacheType::Same {
                    let codes = stored.codes[row * width..][..width].iter();
                    to.iter_mut().zip(codes).for_each(|(to, code)| *to = e4m3::decode(*code));
                }
                row_scales[setting.at(slot, head, 1)] = stored.scales[row];
            }
        }
        values.insert(names[i].into(), cache);
        if options.cache == CacheType::E4m3(Scales::Token) {
            values.insert(name.into(), row_scales);
        }
    }
    Ok(values)
}

/// Slots and requests, every cache, turned keys, and 8 bits.
fn cases(dtype: DType) -> Vec<Case> {
    let (heads, dim) = (2, 64);
    let case = |name: &str, tensors: Vec<(&str, Tensor)>, attributes: &[&str]| {
        let new = |phase| Tensor::floats(dtype, &[6, heads, dim], &wave(phase, 6 * heads * dim));
        let mut all = Tensors::from([("k_new".into(), new(1.0)), ("v_new".into(), new(2.0))]);
        all.extend(tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)));
        Case { name: name.into(), tensors: all, attributes: attributes.iter().map(|a| (*a).into()).collect() }
    };
    let old = |phase: f64, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
    let codes = |phase: f64, shape: &[usize]| Tensor::codes(shape, &wave(phase, shape.iter().product()));
    let slots = || ("slot_map", Tensor::indices(&[6], &[31, 0, -1, 7, 12, 8]));
    let lengths = || {
        [
            ("kv_len", Tensor::indices(&[3], &[9, 0, 7])),
            ("cu_seqlens", Tensor::indices(&[4], &[0, 2, 2, 6])),
            ("kv_indptr", Tensor::indices(&[4], &[0, 3, 3, 5])),
            ("kv_indices", Tensor::indices(&[5], &[6, 1, 4, 7, 0])),
        ]
    };
    let pages = |heads_first: bool| if heads_first { [8, heads, 4, dim] } else { [8, 4, heads, dim] };
    let scales = |phase: f64| {
        let values: Vec<f64> = wave(phase, heads).iter().map(|x| 0.02 + 0.01 * x).collect();
        Tensor::floats(DType::F32, &[heads], &values)
    };
    let mut by_head = vec![("k_pages", codes(3.0, &pages(true))), ("v_pages", codes(4.0, &pages(true)))];
    by_head.extend([("k_scale", scales(5.0)), ("v_scale", scales(6.0)), slots()]);
    let mut by_token = vec![("k_pages", codes(3.0, &pages(false))), ("v_pages", codes(4.0, &pages(false)))];
    by_token.extend(lengths());
    let mut all = vec![
        case("slots, scales of heads, HND", by_head, &["layout=HND"]),
        case("pages, scales of tokens", by_token, &[]),
    ];
    if dtype == DType::F32 {
        return all;
    }
    let mut paged = vec![("k_pages", old(3.0, &pages(false))), ("v_pages", old(4.0, &pages(false)))];
    paged.extend(lengths());
    let dense = vec![
        ("k", old(3.0, &[3, heads, 9, dim])),
        ("v", old(4.0, &[3, heads, 9, dim])),
        ("kv_len", Tensor::indices(&[3], &[9, 2, 5])),
    ];
    let ragged = vec![
        ("k", old(3.0, &[32, heads, dim])),
        ("v", old(4.0, &[32, heads, dim])),
        ("positions", Tensor::indices(&[6], &[5, 0, 9, 100_000, 1, 2])),
        slots(),
    ];
    all.push(case("pages, halves turned", paged, &["rotary=half", "rotary_dim=32"]));
    all.push(case("dense, neighbours turned, HND", dense, &["rotary=interleaved", "layout=HND", "base=500"]));
    all.push(case("slots and positions", ragged, &["rotary=half"]));
    all
}
