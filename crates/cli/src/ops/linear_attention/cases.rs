//! What `lookback check` tries.

use super::super::{Case, wave};
use crate::tensor::{Tensor, Tensors};
use lookback_device::DType;

/// Sizes of a check.
pub struct Sizes {
    /// `[B,T,H,K,V]`.
    pub extents: [usize; 5],
    /// Heads of `q` and `k`.
    pub shared: [usize; 2],
}

/// Tensors of a check, with decays of the named kind.
pub fn tensors(dtype: DType, sizes: &Sizes, decay: &str) -> Tensors {
    let [b, t, h, k, v] = sizes.extents;
    let [query_heads, key_heads] = sizes.shared;
    let floats = |dtype, shape: &[usize], phase: f64, size: f64, middle: f64| {
        let values = wave(phase, shape.iter().product());
        Tensor::floats(dtype, shape, &values.iter().map(|x| middle + size * x).collect::<Vec<_>>())
    };
    let mut all = Tensors::from([
        ("q".into(), floats(dtype, &[b, t, query_heads, k], 1.0, 1.0, 0.2)),
        ("k".into(), floats(dtype, &[b, t, key_heads, k], 2.0, 1.0, 0.2)),
        ("v".into(), floats(dtype, &[b, t, h, v], 3.0, 1.0, 0.1)),
    ]);
    let shape: &[usize] = match decay {
        "head" => &[h],
        "scalar" => &[b, t, h],
        "vector" => &[b, t, h, k],
        _ => return all,
    };
    all.insert("g".into(), floats(DType::F32, shape, 7.0, 0.1, -0.11));
    all
}

/// Every mode, read and kind of decay.
pub fn cases(dtype: DType) -> Vec<Case> {
    let small = Sizes { extents: [2, 21, 2, 24, 12], shared: [2, 1] };
    let with = |name: &str, decay: &str, extra: Vec<(&str, Tensor)>, set: &[&str]| {
        let mut tensors = tensors(dtype, &small, decay);
        tensors.extend(extra.into_iter().map(|(name, tensor)| (name.into(), tensor)));
        Case { name: name.into(), tensors, attributes: set.iter().map(|s| s.to_string()).collect() }
    };
    let [b, t, h, k, v] = small.extents;
    let single = |phase: f64, shape: &[usize]| Tensor::floats(DType::F32, shape, &wave(phase, shape.iter().product()));
    let states = || ("s0", single(4.0, &[b, h, k, v]));
    let flags =
        || ("flags", Tensor::flags(&[b, t], &(0..b * t).map(|i| [0, 0, 1, 0, 2, 0, 0][i % 7]).collect::<Vec<_>>()));
    let sums = || {
        let positive: Vec<f64> = wave(5.0, b * h * k).iter().map(|x| 1.5 + x).collect();
        ("z0", Tensor::floats(DType::F32, &[b, h, k], &positive))
    };
    // Keys and queries of a normaliser are positive, or its sum may be near zero; those of features, too, which are rounded before
    // they are summed: what a key of the state keeps of tokens that cancel is no measure.
    let positive = |case: Case, sizes: &Sizes| {
        let mut case = case;
        let [b, t, _, k, _] = sizes.extents;
        for (name, heads) in [("q", sizes.shared[0]), ("k", sizes.shared[1])] {
            let values: Vec<f64> = wave(6.0, b * t * heads * k).iter().map(|x| 1.2 + x).collect();
            case.tensors.insert(name.into(), Tensor::floats(dtype, &[b, t, heads, k], &values));
        }
        case
    };
    let mut all = vec![
        with("causal", "none", vec![], &["path=recurrent"]),
        with("scalar decay, flags, state", "scalar", vec![states(), flags()], &["path=recurrent"]),
        with(
            "vector decay, reverse, bonus",
            "vector",
            vec![("u", single(8.0, &[h, k])), flags()],
            &["mode=reverse", "read=exclusive_bonus", "path=recurrent"],
        ),
        with("both ways, shifted", "head", vec![flags()], &["mode=bidirectional", "read=shifted", "path=recurrent"]),
        with("split", "scalar", vec![flags()], &["mode=split", "split=1", "path=recurrent"]),
        positive(
            with(
                "prefix state, normalized",
                "none",
                vec![states(), sums()],
                &["mode=prefix_state", "normalize=0.5", "path=recurrent"],
            ),
            &small,
        ),
        with(
            "prefix read",
            "none",
            vec![("prefix_len", Tensor::indices(&[b], &[9, 0]))],
            &["mode=prefix_read", "scale=0.5", "path=recurrent"],
        ),
        with(
            "dealt, states in turn",
            "scalar",
            vec![states(), flags()],
            &["ranks=3", "schedule=serial", "mode=split", "split=1", "path=recurrent"],
        ),
        with(
            "dealt, states to all",
            "vector",
            vec![("u", single(8.0, &[h, k])), states()],
            &["ranks=4", "schedule=allgather", "read=exclusive_bonus", "path=recurrent"],
        ),
        with(
            "dealt, both ways in blocks",
            "head",
            vec![flags()],
            &["ranks=2", "schedule=pipelined", "mode=bidirectional", "path=recurrent"],
        ),
    ];
    // Tensor cores take 16-bit elements.
    if dtype != DType::F32 {
        let sizes = Sizes { extents: [1, 37, 2, 16, 24], shared: [1, 2] };
        let set = ["features=taylor", "normalize=1e-6", "scale=1"].map(String::from).into();
        let case = Case { name: "Taylor features".into(), tensors: tensors(dtype, &sizes, "none"), attributes: set };
        all.push(positive(case, &sizes));
        for (name, path, mode, tokens) in
            [("in one pass", "path=chain", "mode=causal", 50), ("in segments", "path=parallel", "mode=reverse", 150)]
        {
            let sizes = Sizes { extents: [1, tokens, 2, 64, 64], shared: [1, 1] };
            let tensors = tensors(dtype, &sizes, "scalar");
            all.push(Case { name: name.into(), tensors, attributes: vec![path.into(), mode.into()] });
        }
    }
    all
}
