//! What `check` tries.

use super::super::{Case, wave};
use crate::tensor::{Tensor, Tensors};
use lookback_device::DType;

/// Every kind of cache, a window, a cap, lists, several queries, and 8 bits.
pub fn cases(dtype: DType) -> Vec<Case> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let (batch, heads, key_heads, dim) = (3, 4, 2, 64);
    let lengths = [70, 0, 130];
    let case = |name: &str, query_len: usize, cache: Vec<(&str, Tensor)>, attributes: &[&str]| {
        let q_shape = [batch, query_len, heads, dim];
        let mut tensors = Tensors::from([
            ("q".into(), Tensor::floats(dtype, &q_shape, &wave(1.0, q_shape.iter().product()))),
            ("kv_len".into(), Tensor::indices(&[batch], &lengths)),
        ]);
        tensors.extend(cache.into_iter().map(|(name, tensor)| (name.into(), tensor)));
        Case { name: name.into(), tensors, attributes: attributes.iter().map(|a| (*a).into()).collect() }
    };
    let floats = |phase: f64, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
    let dense =
        || vec![("k", floats(2.0, &[batch, 140, key_heads, dim])), ("v", floats(3.0, &[batch, 140, key_heads, dim]))];
    let ragged = vec![
        ("k", floats(2.0, &[200, key_heads, dim])),
        ("v", floats(3.0, &[200, key_heads, dim])),
        ("cu_seqlens_k", Tensor::indices(&[batch + 1], &[0, 70, 70, 200])),
    ];
    let tables = || {
        let order: Vec<i32> = (0..14).map(|i| i * 5 % 16).collect();
        [("kv_indptr", Tensor::indices(&[batch + 1], &[0, 5, 5, 14])), ("kv_indices", Tensor::indices(&[14], &order))]
    };
    let pages = [key_heads, 16].map(|n| [16, n, 18 - n, dim]);
    let mut paged = vec![("k_pages", floats(2.0, &pages[0])), ("v_pages", floats(3.0, &pages[0]))];
    paged.extend(tables());
    paged.push(("sink", Tensor::floats(DType::F32, &[heads], &wave(6.0, heads))));
    let codes = |phase: f64| {
        let values: Vec<f64> = wave(phase, 16 * 16 * key_heads * dim).iter().map(|x| 50.0 * x).collect();
        Tensor::codes(&pages[1], &values)
    };
    let scales = |phase: f64| {
        let values: Vec<f64> = wave(phase, key_heads).iter().map(|x| 0.02 + 0.01 * x).collect();
        Tensor::floats(DType::F32, &[key_heads], &values)
    };
    let mut eight =
        vec![("k_pages", codes(2.0)), ("v_pages", codes(3.0)), ("k_scale", scales(4.0)), ("v_scale", scales(5.0))];
    eight.extend(tables());
    let mut listed = dense();
    let place = |i: i32| if i % 9 == 0 { -1 } else { i * 7 % 70 };
    let list: Vec<i32> = (0..batch as i32 * key_heads as i32 * 50).map(place).collect();
    listed.push(("list", Tensor::indices(&[batch, key_heads, 50], &list)));
    listed.push(("list_len", Tensor::indices(&[batch, key_heads], &[50, 13, 0, 0, 49, 50])));
    vec![
        case("dense", 1, dense(), &["logits=true", "slots=3"]),
        case("ragged, 3 queries", 3, ragged, &["softcap=2"]),
        case("pages HND, window", 2, paged, &["layout=HND", "window=40", "sink_tokens=5"]),
        case("pages of e4m3", 1, eight, &["scale=0.2"]),
        case("lists", 1, listed, &[]),
    ]
}
