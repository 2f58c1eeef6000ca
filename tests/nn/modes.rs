//! What a GPU leaves to chance must not show: order of blocks, divergence, when copies land; and the tensor cores' own arithmetic.

use super::support::{Input, Layout, Output, Words, reference};
use half::bf16;
use lookback_device::{DeviceInfo, Element};
use lookback_nn::{
    Activation, Param, argmax, cross_entropy, gated_rms_norm,
    gemm::{self, Policy, Tile},
    pool, residual_norm, rms_norm, rotary, short_convolution,
};
use lookback_reference::gemm as oracle;
use lookback_suite::{
    buffer::{download, upload},
    counters::Switch,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

fn product<T: Element>(shape: gemm::Shape, tile: Tile, (a, b): (&[f64], &[f64])) -> Vec<f64> {
    let (a, b) = (Input::<T>::dense(a), Input::<T>::dense(b));
    let mut c = Output::<T>::new(Layout::dense(shape.m, shape.n));
    let options = gemm::Options { policy: Some(Policy { tile }), ..gemm::Options::new(T::DTYPE) };
    let plan = gemm::Plan::new(&shape, &options, &device::info()).unwrap();
    plan.run(&device::stream(), &a.view(), &b.view(), Param::None, &mut c.view_mut()).unwrap();
    device::finish();
    c.read()
}

/// Every kernel with a barrier, a shuffle or an asynchronous copy, once; all outputs in one vector.
fn everything() -> Vec<f64> {
    let mut random = Random::new(21);
    let mut all = Vec::new();
    let (m, n, k) = (150, 70, 100);
    let (a, b) = (random.normals::<bf16>(m * k), random.normals::<bf16>(n * k));
    for shape in [gemm::Shape::linear(m, n, k), gemm::Shape::plain(m, n, k)] {
        for tile in [Tile::Small, Tile::Large] {
            all.extend(product::<bf16>(shape, tile, (&a, &b)));
            all.extend(product::<f32>(shape, tile, (&a, &b)));
        }
    }
    let few = gemm::Shape::linear(11, n, k - k % 8);
    all.extend(product::<bf16>(few, Tile::Skinny, (&a[..few.m * few.k], &b[..few.n * few.k])));
    all.extend(product::<f32>(few, Tile::Skinny, (&a[..few.m * few.k], &b[..few.n * few.k])));
    let stream = device::stream();
    for (rows, width) in [(11, 60), (3, 1100)] {
        let x = Input::<bf16>::dense(&a[..rows * width]);
        let mut out = Output::<bf16>::new(Layout::dense(rows, width));
        let options = rms_norm::Options { dtype: bf16::DTYPE, eps: 1e-5 };
        let plan = rms_norm::Plan::new(&rms_norm::Shape::dense(rows, width), &options, &device::info()).unwrap();
        plan.run(&stream, &x.view(), Param::None, &mut out.view_mut(), None).unwrap();

        let mut found = Words::<i32>::new(rows, -1);
        let options = argmax::Options { dtype: bf16::DTYPE };
        let plan = argmax::Plan::new(&argmax::Shape::dense(rows, width), &options, &device::info()).unwrap();
        plan.run(&stream, &x.view(), &mut found.view_mut()).unwrap();

        let labels = upload(&vec![1_i32; rows]);
        let mut loss = Output::<f32>::new(Layout::dense(1, rows));
        let mut dlogits = Output::<bf16>::new(Layout::dense(rows, width));
        let options = cross_entropy::Options { dtype: bf16::DTYPE, scale: 1.0 };
        let shape = cross_entropy::Shape::dense(rows, width);
        let plan = cross_entropy::Plan::new(&shape, &options, &device::info()).unwrap();
        let mut view = dlogits.view_mut();
        let outputs = cross_entropy::Outputs { dlogits: Some(&mut view), ..Default::default() };
        plan.run(&stream, &x.view(), &labels, &mut loss.view_mut(), outputs).unwrap();
        // The gradient's arithmetic does not care that this is no reciprocal deviation.
        let rstd = Input::<f32>::dense(&vec![0.75; rows]);
        let (mut dx, mut dweight) =
            (Output::<bf16>::new(Layout::dense(rows, width)), Output::<f32>::new(Layout::dense(1, width)));
        let plan =
            rms_norm::BackwardPlan::new(&rms_norm::BackwardShape::dense(rows, width), bf16::DTYPE, &device::info())
                .unwrap();
        let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
        let (mut dx_view, mut dweight_view, mut parts) = (dx.view_mut(), dweight.view_mut(), workspace.view_mut());
        let (x_view, rstd_view) = (x.view(), rstd.view());
        plan.run(&stream, &x_view, &x_view, Param::None, &rstd_view, &mut dx_view, Some(&mut dweight_view), &mut parts)
            .unwrap();
        device::finish();
        all.extend(dx.read());
        all.extend(dweight.read());
        all.extend(out.read());
        all.extend(found.read().into_iter().map(f64::from));
        all.extend(loss.read());
        all.extend(dlogits.read());
    }
    let (tokens, channels) = (100, 40);
    let x = Input::<bf16>::dense(&a[..tokens * channels]);
    let mut out = Output::<bf16>::new(Layout::dense(tokens, channels));
    let options = short_convolution::Options { dtype: bf16::DTYPE, activation: Activation::Silu };
    let shape = short_convolution::Shape::dense(1, tokens, channels, 4);
    let plan = short_convolution::Plan::new(&shape, &options, &device::info()).unwrap();
    let weight = Input::<bf16>::dense(&b[..4 * channels]);
    plan.run(&stream, &x.view(), &weight.view(), Default::default(), &mut out.view_mut(), None).unwrap();
    device::finish();
    all.extend(out.read());
    all
}

/// The gated norm with teams of part of a warp and of several, both ways; the gradient of a convolution; turned rows.
fn gated_convolved_and_turned() -> Vec<f64> {
    let (stream, info) = (device::stream(), device::info());
    let mut random = Random::new(22);
    let mut all = Vec::new();
    for (rows, width, group) in [(70, 48, 16), (5, 1100, 1100)] {
        let [y, z, dout] = [0; 3].map(|_| Input::<bf16>::dense(&random.normals::<bf16>(rows * width)));
        let (y, z, dout) = (y.view(), z.view(), dout.view());
        let gate = gated_rms_norm::Gate::Silu;
        let options = gated_rms_norm::Options { dtype: bf16::DTYPE, gate, norm_before_gate: false, eps: 1e-5 };
        let shape = gated_rms_norm::Shape::dense(rows, width).groups_of(group);
        let plan = gated_rms_norm::Plan::new(&shape, &options, &info).unwrap();
        let mut out = Output::<bf16>::new(Layout::dense(rows, width));
        let mut rstd = Output::<f32>::new(Layout::dense(rows, width / group));
        plan.run(&stream, &y, &z, Param::None, &mut out.view_mut(), Some(&mut rstd.view_mut())).unwrap();

        // One multiprocessor: several rows to a team.
        let one = DeviceInfo { sm_count: 1, ..info.clone() };
        let shape = gated_rms_norm::BackwardShape::dense(rows, width).groups_of(group);
        let plan = gated_rms_norm::BackwardPlan::new(&shape, &options, &one).unwrap();
        let [mut dy, mut dz] = [0; 2].map(|_| Output::<bf16>::new(Layout::dense(rows, width)));
        let mut dweight = Output::<f32>::new(Layout::dense(1, width));
        let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
        let (mut dy_view, mut dz_view, mut dweight_view) = (dy.view_mut(), dz.view_mut(), dweight.view_mut());
        let rstd_view = rstd.view_mut();
        let inputs =
            gated_rms_norm::BackwardInputs { y: &y, z: &z, dout: &dout, weight: Param::None, rstd: &rstd_view };
        let outputs =
            gated_rms_norm::Gradients { dy: &mut dy_view, dz: &mut dz_view, dweight: Some(&mut dweight_view) };
        plan.run(&stream, inputs, outputs, &mut workspace.view_mut()).unwrap();
        device::finish();
        all.extend([out.read(), dy.read(), dz.read(), dweight.read()].concat());
    }
    let (tokens, channels, taps) = (40, 24, 7);
    let [x, dout] = [0; 2].map(|_| Input::<bf16>::dense(&random.normals::<bf16>(tokens * channels)));
    let weight = Input::<bf16>::dense(&random.normals::<bf16>(channels * taps));
    let (x, dout) = (x.view(), dout.view());
    let options = short_convolution::Options { dtype: bf16::DTYPE, activation: Activation::Silu };
    let shape = short_convolution::Shape::dense(1, tokens, channels, taps).centred();
    let plan = short_convolution::BackwardPlan::dense(&shape, &options, &info).unwrap();
    let mut dx = Output::<bf16>::new(Layout::dense(tokens, channels));
    let mut dweight = Output::<f32>::new(Layout::dense(1, channels * taps));
    let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
    let (mut dx_view, mut dweight_view) = (dx.view_mut(), dweight.view_mut());
    let outputs =
        short_convolution::Gradients { dx: &mut dx_view, dweight: Some(&mut dweight_view), dbias: None, dstate: None };
    let adjoints = short_convolution::Adjoints { dout: &dout, dstate_out: None };
    let (inputs, workspace) = (short_convolution::Inputs::default(), &mut workspace.view_mut());
    plan.run(&stream, &x, &weight.view(), inputs, adjoints, outputs, workspace).unwrap();

    let options = rotary::Options::new(bf16::DTYPE, rotary::Style::Half, channels);
    let plan = rotary::Plan::new(&rotary::Shape::dense(1, 20, 2, channels), &options, &info).unwrap();
    let mut turned = Output::<bf16>::new(Layout::dense(tokens, channels));
    plan.run(&stream, &x, rotary::Inputs::default(), &mut turned.view_mut()).unwrap();
    device::finish();
    all.extend([dx.read(), dweight.read(), turned.read()].concat());
    all
}

/// Sequences pooled by many teams and by one; the norm of a residual stream, by warps and by blocks, both ways.
fn pooled_and_normed() -> Vec<f64> {
    let (stream, info) = (device::stream(), device::info());
    let mut random = Random::new(23);
    let mut all = Vec::new();
    for (rows, width) in [(60, 48), (7, 2100)] {
        let [x, dout] = [0; 2].map(|_| Input::<bf16>::dense(&random.normals::<bf16>(rows * width)));
        let residual = Input::<f32>::dense(&random.normals::<f32>(rows * width));
        let (x, dout, residual) = (x.view(), dout.view(), residual.view());
        let starts = upload(&[0, 3, 3, rows as i32]);
        let pooled = pool::pool(&stream, &x, &starts, (rows, width), pool::Pooling::Mean, true).unwrap();

        let options = residual_norm::Options { dtype: bf16::DTYPE, eps: 1e-5, center: true, post: false };
        let plan = residual_norm::Plan::new(&residual_norm::Shape::dense(rows, width), &options, &info).unwrap();
        let mut s = Output::<f32>::new(Layout::dense(rows, width));
        let mut out = Output::<bf16>::new(Layout::dense(rows, width));
        let inputs = residual_norm::Inputs { residual: Some(&residual), x: Some(&x), ..Default::default() };
        let (mut s_view, mut out_view) = (s.view_mut(), out.view_mut());
        plan.run(&stream, inputs, Some(&mut s_view), Some(&mut out_view)).unwrap();

        // One multiprocessor: several rows to a team.
        let one = DeviceInfo { sm_count: 1, ..info.clone() };
        let shape = residual_norm::BackwardShape::dense(rows, width);
        let plan = residual_norm::BackwardPlan::new(&shape, &options, &one).unwrap();
        let mut ds = Output::<f32>::new(Layout::dense(rows, width));
        let [mut dweight, mut dbias] = [0; 2].map(|_| Output::<f32>::new(Layout::dense(1, width)));
        let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
        let (mut ds_view, mut dweight_view, mut dbias_view) = (ds.view_mut(), dweight.view_mut(), dbias.view_mut());
        let inputs = residual_norm::BackwardInputs { dout: Some(&dout), ..Default::default() };
        let outputs = residual_norm::BackwardOutputs {
            ds: Some(&mut ds_view),
            dx: None,
            dweight: Some(&mut dweight_view),
            dbias: Some(&mut dbias_view),
        };
        plan.run(&stream, &s_view, inputs, outputs, &mut workspace.view_mut()).unwrap();
        device::finish();
        all.extend([s.read(), out.read(), ds.read(), dweight.read(), dbias.read()].concat());
        all.extend(download(&pooled).into_iter().map(f64::from));
    }
    all
}

#[test]
fn every_kernel__is_bitwise_the_same_in_every_mode() {
    let all = || (everything(), gated_convolved_and_turned(), pooled_and_normed());
    let expected = all();
    for (key, value, default) in [
        ("order", "reversed", "inorder"),
        ("order", "random:5", "inorder"),
        ("convergence", "random:5", "natural"),
        ("async", "eager", "late"),
        ("residency", "1", "auto"),
        ("quantum", "7", "20000"),
        ("checks", "off", "on"),
    ] {
        let _switch = Switch::set(key, value, default);
        assert!(all() == expected, "{key} = {value} changes a result");
    }
}

#[test]
fn gemm__hopper_arithmetic_keeps_the_gates() {
    let _switch = Switch::set("mma", "hopper", "fma");
    let mut random = Random::new(32);
    // All of one sign is the worst case for sums that are cut and not rounded.
    for (m, n, k, lo) in [(16, 24, 4096, 0.5), (40, 70, 200, -1.5), (16, 16, 8, -1.5)] {
        let shape = gemm::Shape::linear(m, n, k);
        let with = oracle::Shape { m, n, k, transposed: true };
        let (a, b) = (random.uniforms::<f32>(m * k, lo, 1.5), random.uniforms::<f32>(n * k, lo, 1.5));
        let expected = oracle::forward(&with, &a, &b, None, reference(Activation::None));
        let tiles = [Tile::Small, Tile::Large, Tile::Skinny];
        let tiles = &tiles[..if m <= 16 { 3 } else { 2 }];
        for &tile in tiles {
            let c = product::<f32>(shape, tile, (&a, &b));
            assert_close(&format!("f32 {m} {n} {k} {tile:?}"), &c, &expected, n, Gate::F32);
        }
        let (a, b) = (random.uniforms::<bf16>(m * k, lo, 1.5), random.uniforms::<bf16>(n * k, lo, 1.5));
        let expected = oracle::forward(&with, &a, &b, None, reference(Activation::None));
        for &tile in tiles {
            let c = product::<bf16>(shape, tile, (&a, &b));
            assert_close(&format!("bf16 {m} {n} {k} {tile:?}"), &c, &expected, n, gate(bf16::DTYPE));
        }
    }
}
