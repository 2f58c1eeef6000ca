//! Where tensors may lie: pages that requests share, parts of wider tensors, offsets beyond 32 bits.

use super::case::{Case, Data, Kind, On, Tables};
use cudarc::driver::DevicePtr;
use half::bf16;
use lookback_decode::{
    Cache, CacheType, Inputs, KeyValues, Lengths, Outputs, Plan, RawInputs, RawLengths, RawMemory, RawOutputs, Scales,
    Schedule, Shape, Stride, Strides, Workspace,
};
use lookback_reference::e4m3;
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
};

/// Pages of one prompt under several requests, in another order for each of the rest.
#[test]
fn lean_decode_requests_share_pages() {
    for page_size in [1, 3, 16, 64] {
        let case = Case { kind: Kind::Paged(page_size), ..Case::new(&[150, 150, 130]) };
        let mut tables = Tables::new(&case);
        let starts = tables.kv_indptr.clone().expect("starts");
        let indices = tables.kv_indices.as_mut().expect("a table");
        // The second request has the pages of the first; the third those but its last.
        let own = 150_usize.div_ceil(page_size);
        indices.copy_within(..own, own);
        let shared = (starts[3] - starts[2]) as usize - 1;
        indices.copy_within(..shared, 2 * own);
        case.check_data::<bf16>(&tables, &Data::new::<bf16>(&case, &tables));
    }
}

/// `values` of rows of `width` with `gap` NaN behind each.
fn spread(values: &[f64], width: usize, gap: usize) -> Vec<f64> {
    values.chunks(width).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(f64::NAN, gap))).collect()
}

/// Queries inside of a fused projection, outputs with gaps, keys and values in one pool of `[pages, 2, places, Hk, D]`.
#[test]
fn lean_decode_parts_of_wider_tensors() {
    let (page_size, heads, key_heads, dim) = (16, 4, 2, 64);
    let case = Case { kind: Kind::Paged(page_size), query_len: 3, ..Case::new(&[90, 33]) };
    let tables = Tables::new(&case);
    let data = Data::new::<bf16>(&case, &tables);
    let Cache::Paged { pages, .. } = tables.cache else { panic!("pages") };
    let page = page_size * key_heads * dim;
    let pool: Vec<f64> =
        (0..pages).flat_map(|p| [&data.k[p * page..][..page], &data.v[p * page..][..page]].concat()).collect();
    let pool = upload_as::<bf16>(&pool);
    let (gap, token) = (8_usize, heads * dim + 40);
    let q = upload_as::<bf16>(&spread(&data.q, heads * dim, token - heads * dim));
    let cache = Some(Stride { batch: 2 * page as i64, token: (key_heads * dim) as i64, head: dim as i64 });
    let o_head = (dim + gap) as i64;
    let strides = Strides {
        q: Some(Stride { batch: 3 * token as i64, token: token as i64, head: dim as i64 }),
        k: cache,
        v: cache,
        o: Some(Stride { batch: 12 * o_head, token: 4 * o_head, head: o_head }),
        ..Strides::default()
    };
    let shape = Shape { strides, ..case.shape(&tables) };
    let plan = Plan::new(&shape, &case.options(), &device::info()).expect("good");
    let stream = device::stream();
    let mut schedule = Schedule::new(&stream, plan.schedule_bytes()).expect("memory");
    let mut workspace = Workspace::new(&stream, plan.workspace_bytes()).expect("memory");
    let (kv_len, kv_indptr) = (upload(&tables.kv_len), upload(tables.kv_indptr.as_ref().expect("starts")));
    let kv_indices = upload(tables.kv_indices.as_ref().expect("a table"));
    let lengths = Lengths::paged(&kv_len, &kv_indptr, &kv_indices);
    plan.schedule(&stream, &lengths, &mut schedule).expect("good");
    let rows = 2 * 3 * heads;
    let mut o = Guarded::<bf16>::poisoned(rows * (dim + gap) - gap, 0);
    {
        let (k, v) = (pool.slice(..pages * 2 * page - page), pool.slice(page..));
        let mut o = o.view_mut();
        plan.run(&stream, &Inputs::of(&q, &k, &v, lengths), Outputs::of(&mut o), &schedule, &mut workspace)
            .expect("good");
    }
    device::finish();
    let got = o.read();
    assert_eq!(got.iter().filter(|v| v.is_nan()).count(), (rows - 1) * gap, "gaps of o stay as they are");
    let got: Vec<f64> = got.chunks(dim + gap).flat_map(|row| row[..dim].to_vec()).collect();
    let alone = On::<bf16>::new(&case, &tables, &data).run();
    assert_eq!(got, alone.o);
}

/// The cache of a request begins 2^32 elements behind the address that the launch is given, which names nothing: pages and places with
/// high numbers are there. Only the emulator has room between allocations for such an address.
#[test]
fn lean_decode_offsets_beyond_32_bits() {
    if !device::info().emulated {
        return;
    }
    for (kind, cache) in [
        (Kind::Paged(16), CacheType::Same),
        (Kind::Paged(3), CacheType::E4m3(Scales::Token)),
        (Kind::Ragged, CacheType::Same),
        (Kind::Ragged, CacheType::E4m3(Scales::Token)),
    ] {
        let case = Case { kind, cache, ..Case::new(&[100, 37]) }.slots(3).min_tiles(1);
        let tables = Tables::new(&case);
        let data = Data::new::<bf16>(&case, &tables);
        let want = On::<bf16>::new(&case, &tables, &data).run();
        let width = case.key_heads * case.head_dim;
        // So many pages, or places, lie before.
        let (mut far, slots_before, starts_before) = match tables.cache {
            Cache::Paged { pages, page_size, table } => {
                let before = (1_usize << 32) / (page_size * width) + 1;
                let far = Cache::Paged { pages: pages + before, page_size, table };
                (Tables { cache: far, ..tables.clone() }, before * page_size, (0, before as i32))
            }
            Cache::Ragged { tokens } => {
                let before = (1_usize << 32) / width + 1;
                (
                    Tables { cache: Cache::Ragged { tokens: tokens + before }, ..tables.clone() },
                    before,
                    (before as i32, 0),
                )
            }
            Cache::Dense { .. } => panic!("no table"),
        };
        far.kv_indptr.iter_mut().flatten().for_each(|start| *start += starts_before.0);
        far.kv_indices.iter_mut().flatten().for_each(|page| *page += starts_before.1);
        let plan = case.plan(&far);
        let stream = device::stream();
        let (same_k, same_v) = (upload_as::<bf16>(&data.k), upload_as::<bf16>(&data.v));
        let codes = |values: &[f64], scales: &[f64]| -> Vec<u8> {
            values.iter().enumerate().map(|(i, v)| e4m3::encode(v / scales[i / case.head_dim])).collect()
        };
        let (code_k, code_v) = (upload(&codes(&data.k, &data.k_scale)), upload(&codes(&data.v, &data.v_scale)));
        let scales = (upload_as::<f32>(&data.k_scale), upload_as::<f32>(&data.v_scale));
        let q = upload_as::<bf16>(&data.q);
        let (kv_len, starts) = (upload(&far.kv_len), upload(far.kv_indptr.as_ref().expect("starts")));
        let indices = far.kv_indices.as_ref().map(|t| upload(t));
        let before = |bytes: usize| (slots_before * bytes) as u64;
        let address = |slice: &dyn DevicePtr<bf16>| slice.device_ptr(&stream).0;
        let single = |slice: &dyn DevicePtr<f32>| slice.device_ptr(&stream).0;
        let byte = |slice: &dyn DevicePtr<u8>| slice.device_ptr(&stream).0;
        let number = |slice: &dyn DevicePtr<i32>| slice.device_ptr(&stream).0;
        let (k, v) = match cache {
            CacheType::Same => (address(&same_k) - before(2 * width), address(&same_v) - before(2 * width)),
            CacheType::E4m3(_) => (byte(&code_k) - before(width), byte(&code_v) - before(width)),
        };
        let (k_scale, v_scale) = match cache {
            CacheType::Same => (0, 0),
            CacheType::E4m3(_) => {
                (single(&scales.0) - before(4 * case.key_heads), single(&scales.1) - before(4 * case.key_heads))
            }
        };
        let lengths = RawLengths {
            kv_len: number(&kv_len),
            kv_indptr: number(&starts),
            kv_indices: indices.as_ref().map_or(0, |t| number(t)),
            ..RawLengths::default()
        };
        let inputs = RawInputs { q: address(&q), k, v, k_scale, v_scale, lengths, ..RawInputs::default() };
        let mut o = Guarded::<bf16>::poisoned(want.o.len(), 0);
        let memory = [plan.schedule_bytes(), plan.workspace_bytes()].map(|bytes| upload(&vec![0_u8; bytes as usize]));
        let [schedule, workspace] =
            memory.each_ref().map(|slice| RawMemory { address: byte(slice), bytes: slice.len() as u64 });
        {
            let view = o.view_mut();
            let outputs = RawOutputs { o: address(&view), ..RawOutputs::default() };
            // SAFETY: everything that lengths and tables name is there, and kernels touch nothing else.
            unsafe {
                plan.schedule_raw(&stream, &lengths, schedule).expect("good");
                plan.run_raw(&stream, &inputs, &outputs, schedule, workspace).expect("good");
            }
        }
        device::finish();
        assert_eq!(o.read(), want.o, "{case:?}");
    }
}

/// Any number of key heads under one step: strides of zero are heads that share keys.
#[test]
fn lean_decode_heads_of_a_cache_may_coincide() {
    let case = Case { key_heads: 1, heads: 4, ..Case::new(&[70, 20]) };
    let tables = Tables::new(&case);
    let data = Data::new::<bf16>(&case, &tables);
    let want = On::<bf16>::new(&case, &tables, &data).run();
    let doubled = Case { key_heads: 2, ..case.clone() };
    let Cache::Dense { capacity } = tables.cache else { panic!("dense") };
    let step = Some(Stride { batch: (capacity * 64) as i64, token: 64, head: 0 });
    let strides = Strides { k: step, v: step, ..Strides::default() };
    let shape = Shape { strides, ..doubled.shape(&tables) };
    let plan = Plan::new(&shape, &doubled.options(), &device::info()).expect("good");
    let stream = device::stream();
    let mut schedule = Schedule::new(&stream, plan.schedule_bytes()).expect("memory");
    let mut workspace = Workspace::new(&stream, plan.workspace_bytes()).expect("memory");
    let (q, k, v) = (upload_as::<bf16>(&data.q), upload_as::<bf16>(&data.k), upload_as::<bf16>(&data.v));
    let kv_len = upload(&tables.kv_len);
    let mut o = Guarded::<bf16>::poisoned(want.o.len(), 0);
    {
        let mut o = o.view_mut();
        let inputs =
            Inputs { cache: KeyValues::Same { k: &k, v: &v }, ..Inputs::of(&q, &k, &v, Lengths::dense(&kv_len)) };
        plan.schedule(&stream, &inputs.lengths, &mut schedule).expect("good");
        plan.run(&stream, &inputs, Outputs::of(&mut o), &schedule, &mut workspace).expect("good");
    }
    device::finish();
    assert_eq!(o.read(), want.o);
}
