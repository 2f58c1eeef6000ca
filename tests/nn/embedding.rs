use super::support::{Input, Layout, Output, Words};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error};
use lookback_nn::embedding::{Options, Plan, Shape, embedding};
use lookback_suite::{
    buffer::{download, upload},
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

fn case<T: Element>(tokens: usize, n_ids: usize, vocabulary: usize, width: usize, gap: usize, shift: usize) {
    let mut random = Random::new((tokens * 1000 + width) as u64);
    let table = random.normals::<T>(vocabulary * width);
    let mut ids: Vec<i32> = (0..tokens * n_ids).map(|_| random.below(vocabulary + 1) as i32 - 1).collect();
    if let Some(first) = ids.first_mut() {
        *first = vocabulary as i32 - 1;
    }
    let table_in = Input::<T>::new(&table, Layout::dense(vocabulary, width).gap(gap).shift(shift));
    let ids_in = upload(&[&ids[..], &[0]].concat());
    let mut out = Output::<T>::new(Layout::dense(tokens, width).gap(2 * gap).shift(shift));
    let mut fault = Words::<u32>::new(1, 0);
    let shape = Shape {
        table_stride: (width + gap) as i64,
        out_stride: (width + 2 * gap) as i64,
        ..Shape::dense(tokens, n_ids, vocabulary, width)
    };
    // With one multiprocessor there are few blocks, so that threads walk several columns.
    let info = DeviceInfo { sm_count: 1, ..device::info() };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE }, &info).unwrap();
    let (mut out_view, mut fault_view) = (out.view_mut(), fault.view_mut());
    plan.run(&device::stream(), &table_in.view(), &ids_in, &mut out_view, Some(&mut fault_view)).unwrap();
    device::finish();
    let expected = if n_ids == 0 {
        vec![0.0; tokens * width]
    } else {
        lookback_reference::embedding::forward(&table, width, &ids, n_ids)
    };
    let what = format!("embedding {} {shape:?} shift {shift}", T::DTYPE);
    let bound = if n_ids <= 1 { Gate::EXACT } else { gate(T::DTYPE) };
    assert_close(&what, &out.read(), &expected, width.max(1), bound);
    assert_eq!(fault.read(), [0], "{what}");
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (tokens, n_ids, width) in [(0, 1, 8), (3, 1, 0), (1, 1, 1), (5, 3, 7), (70, 2, vec), (9, 1, 64), (4, 0, 16)] {
        case::<T>(tokens, n_ids, 11, width, 0, 0);
        case::<T>(tokens, n_ids, 11, width, vec, 0);
        case::<T>(tokens, n_ids, 11, width, 3, 1);
    }
    case::<T>(2, 2, 5, 256 * vec + vec, 0, 0);
    case::<T>(2, 2, 5, 300, 0, 1);
    case::<T>(17, 1, 5, 300 * vec, 0, 0);
}

#[test]
fn embedding__f32() {
    sizes::<f32>();
}

#[test]
fn embedding__f16() {
    sizes::<f16>();
}

#[test]
fn embedding__bf16() {
    sizes::<bf16>();
}

#[test]
fn embedding__bad_ids_add_nothing_and_set_the_fault() {
    let (vocabulary, width) = (7, 24);
    let table = Random::new(1).normals::<f32>(vocabulary * width);
    let table_in = Input::<f32>::dense(&table);
    for bad in [7, 8, -2, i32::MIN, i32::MAX] {
        let ids = [3, bad, 6, -1, bad, 0];
        let plan = Plan::new(&Shape::dense(3, 2, vocabulary, width), &Options { dtype: DType::F32 }, &device::info());
        let mut out = Output::<f32>::new(Layout::dense(3, width));
        let mut fault = Words::<u32>::new(1, 0);
        let (mut out_view, mut fault_view) = (out.view_mut(), fault.view_mut());
        let ids_in = upload(&ids);
        plan.unwrap().run(&device::stream(), &table_in.view(), &ids_in, &mut out_view, Some(&mut fault_view)).unwrap();
        device::finish();
        let expected = lookback_reference::embedding::forward(&table, width, &ids, 2);
        assert_close("embedding with bad ids", &out.read(), &expected, width, Gate::F32);
        assert_eq!(fault.read(), [1], "id {bad}");
        // Without a fault word the result is the same.
        let out = embedding(&device::stream(), &table_in.view(), &upload(&[bad, 2]), (vocabulary, width)).unwrap();
        let out: Vec<f64> = download(&out).into_iter().map(f64::from).collect();
        assert_eq!(out, lookback_reference::embedding::forward(&table, width, &[bad, 2], 1));
    }
}

#[test]
fn embedding__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32 };
    let dense = Shape::dense(4, 2, 5, 8);
    let refused = |shape: Shape| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { vocabulary: 1 << 32, ..dense }), Error::Range { arg: "vocabulary", .. }));
    assert!(matches!(refused(Shape { out_stride: 7, ..dense }), Error::Layout { arg: "out", .. }));
    assert!(matches!(refused(Shape { table_stride: -8, ..dense }), Error::Layout { arg: "table", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let table = Input::<f32>::dense(&[1.0; 40]);
    let mut out = Output::<f32>::new(Layout::dense(4, 8));
    let error = plan.run(&device::stream(), &table.view(), &upload(&[0; 7]), &mut out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "ids", .. }), "{error}");
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
