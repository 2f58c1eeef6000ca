//! Strides, and views into wider tensors.

use super::case::{Case, Data};
use half::{bf16, f16};
use lookback_attention::{Inputs, Mask, Output, Outputs, Plan, Shape, Stride, Strides};
use lookback_device::{DType, Element};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{assert_close, gate},
};

/// Where rows `[B,T,H]` of a tensor are.
#[derive(Clone, Copy)]
struct Place {
    extents: [usize; 3],
    stride: Stride,
    width: usize,
}

impl Place {
    fn rows(self) -> impl Iterator<Item = usize> {
        let ([b, t, h], s) = (self.extents, self.stride);
        let at =
            move |b: usize, t: usize, h: usize| (b as i64 * s.batch + t as i64 * s.token + h as i64 * s.head) as usize;
        (0..b).flat_map(move |b| (0..t).flat_map(move |t| (0..h).map(move |h| at(b, t, h))))
    }

    fn span(self) -> usize {
        self.rows().max().map_or(0, |last| last + self.width)
    }

    /// Dense values at strides; gaps are NaN.
    fn spread(self, values: &[f64]) -> Vec<f64> {
        let mut buffer = vec![f64::NAN; self.span()];
        for (row, at) in self.rows().enumerate() {
            buffer[at..][..self.width].copy_from_slice(&values[row * self.width..][..self.width]);
        }
        buffer
    }

    /// What stands at strides, dense. Rows that share their place are those of the last that was placed.
    fn gather(self, buffer: &[f64]) -> Vec<f64> {
        self.rows().flat_map(|at| buffer[at..][..self.width].to_vec()).collect()
    }
}

fn stride(batch: usize, token: usize, head: usize) -> Stride {
    Stride { batch: batch as i64, token: token as i64, head: head as i64 }
}

/// `[q, k, v, o]`.
fn strided<T: Element, O: Element>(case: &Case, strides: [Stride; 4]) {
    let data = Data::new::<T>(case);
    let Case { batch, query_len, key_len, heads, key_heads, head_dim, value_dim, .. } = *case;
    let place = |tokens, heads, width, stride| Place { extents: [batch, tokens, heads], stride, width };
    let q = place(query_len, heads, head_dim, strides[0]);
    let k = place(key_len, key_heads, head_dim, strides[1]);
    let v = place(key_len, key_heads, value_dim, strides[2]);
    let o = place(query_len, heads, value_dim, strides[3]);
    let [q_at, k_at, v_at] = [(q, &data.q), (k, &data.k), (v, &data.v)].map(|(place, values)| place.spread(values));
    let seen = Data { q: q.gather(&q_at), k: k.gather(&k_at), v: v.gather(&v_at), ..data };
    let [sq, sk, sv, so] = strides.map(Some);
    let shape = Shape { strides: Strides { q: sq, k: sk, v: sv, o: so }, ..case.shape() };
    let plan = Plan::new(&shape, &case.options(), &device::info()).unwrap_or_else(|e| panic!("{strides:?}: {e}"));
    let [q_at, k_at, v_at] = [q_at, k_at, v_at].map(|values| upload_as::<T>(&values));
    let mut out = Guarded::<O>::poisoned(o.span(), 0);
    {
        let mut view = out.view_mut();
        let done = plan.run(&device::stream(), &Inputs::of(&q_at, &k_at, &v_at), Outputs::of(&mut view));
        done.unwrap_or_else(|e| panic!("{e}"));
    }
    let out = out.read();
    let what = format!("{strides:?}");
    assert_close(&what, &o.gather(&out), &seen.oracle(case).o, value_dim, gate(T::DTYPE));
    assert_eq!(out.iter().filter(|v| !v.is_nan()).count(), case.rows() * value_dim, "{what}: gaps are left alone");
}

#[test]
fn attention_strided_tensors() {
    let case =
        Case { heads: 4, key_heads: 2, value_dim: 32, mask: Mask::Causal, ..Case::new(DType::F16, 2, 70, 90, 64) };
    // Heads before tokens, tokens before rows, odd steps, rows that coincide.
    let head_major = |tokens, heads: usize, width| stride(heads * tokens * width, width, tokens * width);
    let time_major = |heads: usize, width| stride(heads * width, 2 * heads * width, width);
    let odd = |tokens, heads: usize, width| stride(tokens * (heads * width + 24) + 8, heads * width + 24, width + 8);
    strided::<f16, f16>(
        &case,
        [head_major(70, 4, 64), time_major(2, 64), odd(90, 2, 32), stride(70 * 168 + 8, 168, 40)],
    );
    strided::<f16, f16>(&case, [odd(70, 4, 64), stride(0, 128, 64), stride(90 * 64, 64, 0), head_major(70, 4, 32)]);
    let into_f32 = Case { output: Output::F32, dtype: DType::Bf16, ..case };
    strided::<bf16, f32>(
        &into_f32,
        [time_major(4, 64), head_major(90, 2, 64), stride(0, 0, 32), stride(70 * 168 + 8, 168, 40)],
    );
}

/// `q`, `k` and `v` are parts of one projection, `o` a part of something wider; only heads of the group are there.
#[test]
fn attention_reads_one_fused_projection() {
    for (heads, key_heads) in [(4, 4), (4, 1)] {
        let case = Case { heads, key_heads, mask: Mask::Causal, ..Case::new(DType::Bf16, 2, 75, 75, 32) };
        let data = Data::new::<bf16>(&case);
        let token = (heads + 2 * key_heads) * 32;
        let mut fused = vec![f64::NAN; 2 * 75 * token];
        for (row, part) in fused.chunks_mut(token).enumerate() {
            let (q, rest) = part.split_at_mut(heads * 32);
            let (k, v) = rest.split_at_mut(key_heads * 32);
            q.copy_from_slice(&data.q[row * heads * 32..][..heads * 32]);
            k.copy_from_slice(&data.k[row * key_heads * 32..][..key_heads * 32]);
            v.copy_from_slice(&data.v[row * key_heads * 32..][..key_heads * 32]);
        }
        let fused = upload_as::<bf16>(&fused);
        let of = Some(stride(75 * token, token, 32));
        let strides = Strides { q: of, k: of, v: of, o: Some(stride(75 * 200, 200, 40)) };
        let shape = Shape { strides, ..case.shape() };
        let plan = Plan::new(&shape, &case.options(), &device::info()).expect("good");
        let (q, k, v) = (fused.slice(0..), fused.slice(heads * 32..), fused.slice((heads + key_heads) * 32..));
        let place = Place { extents: [2, 75, heads], stride: stride(75 * 200, 200, 40), width: 32 };
        let mut out = Guarded::<bf16>::poisoned(place.span(), 8);
        {
            let mut view = out.view_mut();
            plan.run(&device::stream(), &Inputs::of(&q, &k, &v), Outputs::of(&mut view)).expect("runs");
        }
        let out = out.read();
        assert_close("o", &place.gather(&out), &data.oracle(&case).o, 32, gate(DType::Bf16));
        assert_eq!(out.iter().filter(|v| !v.is_nan()).count(), case.rows() * 32);
    }
}

/// Packed sequences of a fused projection, with room after each token.
#[test]
fn attention_packed_and_strided() {
    let mut case = Case::packed(DType::F16, &[[30, 30], [0, 0], [70, 70]], 64);
    (case.mask, case.key_heads) = (Mask::Causal, 1);
    let strides = [stride(0, 160, 72), stride(7, 96, 64), stride(0, 64, 64), stride(0, 256, 128)];
    let data = Data::new::<f16>(&case);
    let place = |heads, stride| Place { extents: [1, 100, heads], stride, width: 64 };
    let at = [place(2, strides[0]), place(1, strides[1]), place(1, strides[2])];
    let [q, k, v] = [(at[0], &data.q), (at[1], &data.k), (at[2], &data.v)]
        .map(|(place, values)| upload_as::<f16>(&place.spread(values)));
    let [sq, sk, sv, so] = strides.map(Some);
    let shape = Shape { strides: Strides { q: sq, k: sk, v: sv, o: so }, ..case.shape() };
    let plan = Plan::new(&shape, &case.options(), &device::info()).expect("good");
    let starts = lookback_suite::buffer::upload(&[0, 30, 30, 100]);
    let o = place(2, strides[3]);
    let mut out = Guarded::<f16>::poisoned(o.span(), 0);
    {
        let mut view = out.view_mut();
        let inputs = Inputs { cu_seqlens_q: Some(&starts), cu_seqlens_k: Some(&starts), ..Inputs::of(&q, &k, &v) };
        plan.run(&device::stream(), &inputs, Outputs::of(&mut view)).expect("runs");
    }
    assert_close("o", &o.gather(&out.read()), &data.oracle(&case).o, 64, gate(DType::F16));
}
