//! What the launches cost, as the emulator counts it: the evidence for speed that needs no GPU.

use super::support::{Input, Layout, Output, Words};
use half::bf16;
use lookback_device::Element;
use lookback_nn::{
    Activation, Param, argmax, cross_entropy, embedding, gate,
    gemm::{self, Policy, Tile},
    rms_norm, short_convolution,
};
use lookback_suite::{buffer::upload, counters::Counters, device, random::Random};

fn product<T: Element>(shape: gemm::Shape, tile: Tile, terms: u64) {
    let gemm::Shape { m, n, k, right, .. } = shape;
    let mut random = Random::new(1);
    let a = Input::<T>::dense(&random.normals::<T>(m * k));
    let b = Input::<T>::dense(&random.normals::<T>(n * k));
    let mut c = Output::<T>::new(Layout::dense(m, n));
    let options = gemm::Options { policy: Some(Policy { tile }), ..gemm::Options::new(T::DTYPE) };
    let plan = gemm::Plan::new(&shape, &options, &device::info()).unwrap();
    let run = || plan.run(&device::stream(), &a.view(), &b.view(), Param::None, &mut c.view_mut()).unwrap();
    let Some(counters) = Counters::of(run) else { return };
    let what = format!("gemm {} {right:?} {tile:?} {m} {n} {k}", T::DTYPE);
    if tile == Tile::Skinny {
        counters.assert_streams(&what, plan.bytes_moved());
        return;
    }
    counters.assert_streams(&what, plan.bytes_moved());
    if [m, n, k].iter().all(|extent| extent.is_multiple_of(64)) {
        counters.assert_coalesced(&what);
    }
    // Whole tiles, whole steps of 64 bytes.
    let (rows, columns) = tile.extents(T::DTYPE);
    let step = 64 / T::DTYPE.size();
    let padded = m.next_multiple_of(rows) * n.next_multiple_of(columns) * k.next_multiple_of(step);
    assert_eq!(counters.number("tensor_flops"), 2 * terms * padded as u64, "{what}");
}

#[test]
fn gemm__counters_are_at_the_floor() {
    for tile in [Tile::Small, Tile::Large] {
        for (m, n, k) in [(256, 256, 256), (136, 72, 104)] {
            product::<bf16>(gemm::Shape::linear(m, n, k), tile, 1);
            product::<bf16>(gemm::Shape::plain(m, n, k), tile, 1);
            product::<f32>(gemm::Shape::linear(m, n, k), tile, 3);
            product::<f32>(gemm::Shape::plain(m, n, k), tile, 3);
        }
    }
    for m in [1, 8, 16] {
        product::<bf16>(gemm::Shape::linear(m, 256, 1024), Tile::Skinny, 1);
        product::<f32>(gemm::Shape::linear(m, 256, 1024), Tile::Skinny, 3);
    }
}

fn streams<T: Element>() {
    let (rows, width) = (64, 512);
    let (info, stream) = (device::info(), device::stream());
    let mut random = Random::new(2);
    let x = Input::<T>::dense(&random.normals::<T>(rows * width));
    let y = Input::<T>::dense(&random.normals::<T>(rows * width));
    let mut out = Output::<T>::new(Layout::dense(rows, width));

    let options = gate::Options { dtype: T::DTYPE, activation: Activation::Silu };
    let plan = gate::Plan::new(&gate::Shape::dense(rows, width), &options, &info).unwrap();
    let run = || plan.run(&stream, &x.view(), &y.view(), &mut out.view_mut()).unwrap();
    let Some(counters) = Counters::of(run) else { return };
    counters.assert_coalesced("gate");
    counters.assert_streams("gate", plan.bytes_moved());

    // A warp to a row, then a block.
    for (rows, width) in [(rows, width), (8, 4096)] {
        let options = rms_norm::Options { dtype: T::DTYPE, eps: 1e-5 };
        let plan = rms_norm::Plan::new(&rms_norm::Shape::dense(rows, width), &options, &info).unwrap();
        let weight = y.view();
        let run = || plan.run(&stream, &x.view(), Param::Same(&weight), &mut out.view_mut(), None).unwrap();
        let Some(counters) = Counters::of(run) else { return };
        let weight_bytes = (width * T::DTYPE.size()) as u64;
        counters.assert_coalesced("rms_norm");
        counters.assert_streams("rms_norm", plan.bytes_moved() + weight_bytes);
        let read = counters.number("global_loads/bytes");
        assert_eq!(read, (rows * width * T::DTYPE.size()) as u64 + rows as u64 * weight_bytes, "x is read once");

        let plan = argmax::Plan::new(&argmax::Shape::dense(rows, width), &argmax::Options { dtype: T::DTYPE }, &info);
        let plan = plan.unwrap();
        let mut found = Words::<i32>::new(rows, -1);
        let Some(counters) = Counters::of(|| plan.run(&stream, &x.view(), &mut found.view_mut()).unwrap()) else {
            return;
        };
        counters.assert_coalesced("argmax");
        counters.assert_streams("argmax", plan.bytes_moved());

        let options = cross_entropy::Options { dtype: T::DTYPE, scale: 1.0 };
        let plan = cross_entropy::Plan::new(&cross_entropy::Shape::dense(rows, width), &options, &info).unwrap();
        let labels = upload(&vec![3_i32; rows]);
        let mut loss = Output::<f32>::new(Layout::dense(1, rows));
        let run = || {
            let mut dlogits = out.view_mut();
            let outputs = cross_entropy::Outputs { dlogits: Some(&mut dlogits), ..Default::default() };
            plan.run(&stream, &x.view(), &labels, &mut loss.view_mut(), outputs).unwrap();
        };
        let Some(counters) = Counters::of(run) else { return };
        counters.assert_coalesced("cross_entropy");
        counters.assert_streams("cross_entropy", plan.bytes_moved());
    }

    let plan = embedding::Plan::new(
        &embedding::Shape::dense(rows, 1, rows, width),
        &embedding::Options { dtype: T::DTYPE },
        &info,
    )
    .unwrap();
    let ids = upload(&(0..rows as i32).rev().collect::<Vec<_>>());
    let Some(counters) = Counters::of(|| plan.run(&stream, &x.view(), &ids, &mut out.view_mut(), None).unwrap()) else {
        return;
    };
    counters.assert_coalesced("embedding");
    counters.assert_streams("embedding", plan.bytes_moved());

    let options = short_convolution::Options { dtype: T::DTYPE, activation: Activation::Silu };
    let plan =
        short_convolution::Plan::new(&short_convolution::Shape::dense(1, rows, width, 4), &options, &info).unwrap();
    let flags = upload(&vec![0_u8; rows]);
    let run = || {
        let inputs = short_convolution::Inputs { flags: Some(&flags), ..Default::default() };
        plan.run(&stream, &x.view(), &y.view(), inputs, &mut out.view_mut(), None).unwrap();
    };
    let Some(counters) = Counters::of(run) else { return };
    // A thread's weights lie together, so reading them is not coalesced; they come from the cache for all runs but the first.
    let stores = |name: &str| counters.number(&format!("global_stores/{name}"));
    assert_eq!(stores("sectors"), stores("ideal_sectors"), "short_convolution");
    let states = 2 * (3 * width * T::DTYPE.size()) as u64;
    counters.assert_streams("short_convolution", plan.bytes_moved() - states);
}

#[test]
fn memory_bound__f32_counters_are_at_the_floor() {
    streams::<f32>();
}

#[test]
fn memory_bound__bf16_counters_are_at_the_floor() {
    streams::<bf16>();
}
