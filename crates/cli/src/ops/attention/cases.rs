//! What `lookback check` tries.

use super::super::{Case, wave};
use crate::tensor::{Tensor, Tensors};
use lookback_device::DType;

/// Extents `[B,T,S,H,G,D,V]` of a check.
type Extents = [usize; 7];

fn tensors(dtype: DType, [b, t, s, h, g, d, v]: Extents) -> Tensors {
    let floats = |phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
    Tensors::from([
        ("q".into(), floats(1.0, &[b, t, h, d])),
        ("k".into(), floats(2.0, &[b, s, g, d])),
        ("v".into(), floats(3.0, &[b, s, g, v])),
    ])
}

/// Every mask, packed sequences, and what else changes a logit. There are no f32 kernels.
pub fn cases(dtype: DType) -> Vec<Case> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let small = [2, 37, 70, 4, 2, 64, 64];
    let with = |name: &str, extents: Extents, extra: Vec<(&str, Tensor)>, set: &[&str]| {
        let mut tensors = tensors(dtype, extents);
        tensors.extend(extra.into_iter().map(|(name, tensor)| (name.into(), tensor)));
        Case { name: name.into(), tensors, attributes: set.iter().map(|s| s.to_string()).collect() }
    };
    let of_heads = |phase: f64| Tensor::floats(DType::F32, &[4], &wave(phase, 4));
    let key_mask: Vec<u8> = (0..2 * 70).map(|j| u8::from(j % 5 != 3)).collect();
    // Documents of 20 queries, which besides see the first keys.
    let documents = |i: i32| [0, 3, i / 20 * 20 + 3, (i / 20 + 1) * 20];
    let intervals: Vec<i32> = (0..2 * 37).flat_map(|row| documents(row % 37)).collect();
    let starts = |starts: &[i32]| Tensor::indices(&[starts.len()], starts);
    vec![
        with("full", small, vec![], &[]),
        with("full, f32 output", small, vec![], &["out=f32"]),
        with("causal, wide values", [1, 33, 33, 2, 1, 96, 80], vec![], &["mask=causal"]),
        with("after itself, scaled", small, vec![], &["mask=anti_causal", "scale=0.2", "offset=3"]),
        with("prefix", small, vec![("prefix_len", Tensor::indices(&[2], &[50, 0]))], &["mask=prefix"]),
        with("window, capped", small, vec![], &["mask=window", "left=9", "right=2", "sink_tokens=4", "softcap=2"]),
        with("intervals", small, vec![("intervals", Tensor::indices(&[2, 37, 4], &intervals))], &["mask=intervals"]),
        with(
            "hidden keys, slopes, sink",
            small,
            vec![
                ("key_mask", Tensor::flags(&[2, 70], &key_mask)),
                ("alibi_slopes", of_heads(4.0)),
                ("sink", of_heads(5.0)),
            ],
            &["mask=causal"],
        ),
        with(
            "packed",
            [1, 150, 90, 2, 2, 128, 128],
            vec![("cu_seqlens_q", starts(&[0, 0, 139, 140, 150])), ("cu_seqlens_k", starts(&[0, 7, 80, 80, 90]))],
            &["mask=causal"],
        ),
    ]
}
