//! Launches of the decode kernel by hand, with a schedule made on the host, and what its oracle says of them.

pub use super::kernel_data::{Case, Data, Factors, Place};
use super::kernel_data::{pitch, strides};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_device::{DType, Element, launch};
use lookback_kernels::{Kernel, args::LeanDecode, find};
use lookback_reference::lean_decode::Output;
use lookback_suite::{
    buffer::{Guarded, download, upload},
    device,
    measure::{Gate, assert_close, errors},
};

/// The kernel of a case.
pub fn kernel(case: &Case, dtype: DType) -> &'static Kernel {
    let (dim, rows) = (case.dim.to_string(), case.rows.to_string());
    let cache = if case.e4m3 { "e4m3" } else { "same" };
    let variant = [("dtype", dtype.name()), ("cache", cache), ("dim", dim.as_str()), ("rows", rows.as_str())];
    find("lean_decode", &variant).expect("every variant is built")
}

/// Everything but pointers.
pub fn sizes(case: &Case, data: &Data) -> LeanDecode {
    let (h, kd, vd) = (case.heads as i64, case.head_dim as i64, case.value_dim as i64);
    let queries = if case.packed.is_some() { 0 } else { case.query_len as i64 };
    let logits = case.logits_stride() as i64;
    let [kp, kt, kh] = strides(case, data.places, pitch(case, case.head_dim));
    let [vp, vt, vh] = strides(case, data.places, pitch(case, case.value_dim));
    let [sp, st, sh] = if case.factors == Factors::Token { strides(case, data.places, 1) } else { [0; 3] };
    let page_size = match case.place {
        Place::Ragged => i32::MAX as u32,
        _ => data.places as u32,
    };
    let shift = 31 + page_size.next_power_of_two().trailing_zeros();
    LeanDecode {
        q_stride_batch: queries * h * kd,
        q_stride_token: h * kd,
        q_stride_head: kd,
        o_stride_batch: queries * h * vd,
        o_stride_token: h * vd,
        o_stride_head: vd,
        lse_stride_batch: queries * h,
        lse_stride_token: h,
        lse_stride_head: 1,
        logits_stride_batch: if queries > 0 { h * queries * logits } else { 0 },
        logits_stride_token: if queries > 0 { logits } else { h * logits },
        logits_stride_head: if queries > 0 { queries * logits } else { logits },
        k_stride_page: kp,
        k_stride_place: kt,
        k_stride_head: kh,
        v_stride_page: vp,
        v_stride_place: vt,
        v_stride_head: vh,
        k_scale_stride_page: sp,
        k_scale_stride_place: st,
        k_scale_stride_head: sh,
        v_scale_stride_page: sp,
        v_scale_stride_place: st,
        v_scale_stride_head: sh,
        list_stride_batch: (case.key_heads * case.list_stride()) as i64,
        list_stride_head: case.list_stride() as i64,
        requests: case.batch() as u32,
        m_tiles: case.m_tiles() as u32,
        key_heads: case.key_heads as u32,
        group: case.group() as u32,
        head_dim: case.head_dim as u32,
        value_dim: case.value_dim as u32,
        dense: u32::from(matches!(case.place, Place::Dense(_))),
        num_pages: data.pages as u32,
        num_indices: data.indices.len() as u32,
        places: data.places as u32,
        page_size,
        page_magic: (1_u64 << shift).div_ceil(u64::from(page_size)) as u32,
        page_shift: shift,
        out_f32: u32::from(case.out_f32),
        left: case.left.map_or(1 << 30, |left| left as i32),
        first: case.first,
        scale: data.scale as f32,
        softcap: case.softcap.unwrap_or(0.0) as f32,
        ..Zeroable::zeroed()
    }
}

/// What a launch left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Out {
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    pub logits: Vec<f64>,
    pub status: u32,
}

/// What logits hold that nobody wrote.
pub const UNTOUCHED: f32 = 12345.0;

/// Runs a case; counters must come back as zeros.
pub fn run<T: Element>(case: &Case, data: &Data) -> Out {
    run_with::<T>(case, data, |_| ())
}

/// Arguments of a case with everything that it reads, each where `place` puts it.
pub fn inputs<T: Element>(case: &Case, data: &Data, mut place: impl FnMut(Vec<u8>) -> u64) -> LeanDecode {
    fn bytes<V: bytemuck::Pod>(values: &[V]) -> Vec<u8> {
        bytemuck::cast_slice(values).to_vec()
    }
    fn elements<V: Element>(values: &[f64]) -> Vec<u8> {
        bytes(&values.iter().map(|v| V::from_f64(*v)).collect::<Vec<V>>())
    }
    let mut args = sizes(case, data);
    args.p_q = place(elements::<T>(&data.q));
    args.p_schedule = place(bytes(&data.schedule(case).1));
    let tensors = [(&data.k, &data.k_codes, case.head_dim), (&data.v, &data.v_codes, case.value_dim)];
    [args.p_k, args.p_v] = tensors.map(|(values, codes, columns)| {
        let pitch = pitch(case, columns);
        place(if case.e4m3 {
            data.place(case, codes, columns, pitch, 0x7e)
        } else {
            elements::<T>(&data.place(case, values, columns, pitch, f64::NAN))
        })
    });
    [args.p_k_scale, args.p_v_scale] = [&data.k_scale, &data.v_scale].map(|scales| match case.factors {
        Factors::None => 0,
        Factors::Tensor => place(bytes(&[0.031_f32])),
        Factors::Token => place(elements::<f32>(&data.place(case, scales, 1, 1, f64::NAN))),
    });
    if matches!(case.place, Place::Paged(_)) {
        args.p_kv_indices = place(bytes(if data.indices.is_empty() { &[0] } else { &data.indices }));
    }
    if case.lists.is_some() {
        args.p_list = place(bytes(&data.positions));
    }
    if case.alibi {
        args.p_alibi_slopes = place(elements::<f32>(&data.slopes));
    }
    if case.sink {
        args.p_sink = place(elements::<f32>(&data.sink));
    }
    args.p_partials = place(bytes(&vec![f32::NAN; 2 * case.slots * case.rows * (case.dim + 2)]));
    args
}

/// Rows of the schedule.
pub fn rows(case: &Case) -> usize {
    case.batch() * case.m_tiles() * case.key_heads
}

/// The same, with other arguments than a host would give.
pub fn run_with<T: Element>(case: &Case, data: &Data, change: impl Fn(&mut LeanDecode)) -> Out {
    let stream = device::stream();
    let tokens = data.cu_seqlens_q[case.batch()] as usize;
    let mut held: Vec<CudaSlice<u8>> = Vec::new();
    let mut args = inputs::<T>(case, data, |bytes| {
        held.push(upload(&bytes));
        held[held.len() - 1].device_ptr(&stream).0
    });
    let (counters, status) = (upload(&vec![0_u32; rows(case)]), upload(&[0_u32]));
    let mut o = Guarded::<T>::poisoned(tokens * case.heads * case.value_dim, 8);
    let mut wide = Guarded::<f32>::poisoned(tokens * case.heads * case.value_dim, 8);
    let mut lse = Guarded::<f32>::poisoned(tokens * case.heads, 1);
    let mut logits = Guarded::<f32>::filled(tokens * case.heads * case.logits_stride(), 1, UNTOUCHED);
    {
        let ((counters, _counters), (status, _status)) = (counters.device_ptr(&stream), status.device_ptr(&stream));
        let (mut o, mut wide) = (o.view_mut(), wide.view_mut());
        let (mut lse, mut logits) = (lse.view_mut(), logits.view_mut());
        args.p_o = if case.out_f32 { wide.device_ptr_mut(&stream).0 } else { o.device_ptr_mut(&stream).0 };
        args.p_lse = lse.device_ptr_mut(&stream).0;
        args.p_logits = if case.logits { logits.device_ptr_mut(&stream).0 } else { 0 };
        (args.p_counters, args.p_status) = (counters, status);
        change(&mut args);
        // SAFETY: all buffers have the extents that the kernel's contract names, and live until their contents are read back.
        unsafe { launch(&stream, kernel(case, T::DTYPE), [case.slots as u32, 1, 1], &args) }
            .unwrap_or_else(|e| panic!("{case:?}: {e}"));
        device::finish();
    }
    assert!(download(&counters).iter().all(|count| *count == 0), "{case:?}: a counter is left");
    let o = if case.out_f32 { wide.read() } else { o.read() };
    Out { o, lse: lse.read(), logits: logits.read(), status: download(&status)[0] }
}

/// The gate of an element type.
pub fn gate<T: Element>() -> Gate {
    lookback_suite::measure::gate(T::DTYPE)
}

/// What is wrong with a result, if anything.
pub fn wrong<T: Element>(case: &Case, data: &Data, out: &Out) -> Option<String> {
    let want = data.want(case);
    match errors(&out.o, &want.o, case.value_dim) {
        Ok(e) if e.within(gate::<T>()) => {}
        e => return Some(format!("o: {e:?}")),
    }
    for (at, (got, want)) in out.lse.iter().zip(&want.lse).enumerate() {
        if !((got - want).abs() <= 1e-4 || got == want) {
            return Some(format!("lse {at}: {got}, the oracle has {want}"));
        }
    }
    for (at, (got, want)) in out.logits.iter().zip(&logits(case, data, &want)).enumerate() {
        let is_unseen = *want == f64::NEG_INFINITY && (*got == *want || *got == f64::from(UNTOUCHED));
        if !((got - want).abs() <= 2e-4 || is_unseen) {
            return Some(format!("logit {at}: {got}, the oracle has {want}"));
        }
    }
    None
}

/// The oracle's logits in the order of the kernel's: by tokens where queries are packed.
fn logits(case: &Case, data: &Data, want: &Output) -> Vec<f64> {
    let (heads, stride) = (case.heads, case.logits_stride());
    if case.packed.is_none() || stride == 0 {
        return want.logits.clone();
    }
    let mut packed = Vec::new();
    for b in 0..case.batch() {
        for i in 0..(data.cu_seqlens_q[b + 1] - data.cu_seqlens_q[b]) as usize {
            for h in 0..heads {
                packed.extend(&want.logits[((b * heads + h) * case.query_len + i) * stride..][..stride]);
            }
        }
    }
    packed
}

/// Runs a case against its oracle; the status must be `status`.
pub fn check_status<T: Element>(case: &Case, data: &Data, status: u32) -> Out {
    let out = run::<T>(case, data);
    if let Some(wrong) = wrong::<T>(case, data, &out) {
        let want = data.want(case);
        assert_close(&format!("{wrong}: {case:?}"), &out.o, &want.o, case.value_dim, gate::<T>());
        panic!("{wrong}: {case:?}");
    }
    assert_eq!(out.status, status, "{case:?}: status");
    out
}

/// Runs a case on fresh data in both types.
pub fn check(case: &Case) {
    check_status::<bf16>(case, &Data::new::<bf16>(case, 11), 0);
    check_status::<f16>(case, &Data::new::<f16>(case, 12), 0);
}
