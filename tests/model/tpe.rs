//! Toeplitz positional encoding on a device against the double sum.

use super::support::Draft;
use lookback_device::Error;
use lookback_model::tpe::{Toeplitz, Tpe};
use lookback_reference::{layers, lightnet::toeplitz};
use lookback_suite::{
    buffer::{download, upload_as},
    device::stream,
    measure::{Gate, assert_close},
    random::Random,
};

/// Rows along an axis of a grid, taken out, mixed and put back.
fn along(extents: &[usize], axis: usize, x: &[f64], channels: usize, mix: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let after: usize = extents[axis + 1..].iter().product();
    let before: usize = extents[..axis].iter().product();
    let mut y = vec![0.0; x.len()];
    for outer in 0..before {
        for inner in 0..after {
            let token = |t: usize| ((outer * extents[axis] + t) * after + inner) * channels;
            let row: Vec<f64> = (0..extents[axis]).flat_map(|t| &x[token(t)..][..channels]).copied().collect();
            for (t, mixed) in mix(&row).chunks_exact(channels).enumerate() {
                y[token(t)..][..channels].copy_from_slice(mixed);
            }
        }
    }
    y
}

fn widened(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

#[test]
fn every_channel_has_its_own_exponentials() {
    let (channels, terms, tokens) = (6, 3, 41);
    let mut random = Random::new(11);
    let (b, log_decay) =
        (random.normals::<f32>(channels * terms), random.uniforms::<f32>(channels * terms, -1.5, -1e-3));
    let x = random.normals::<f32>(tokens * channels);
    let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let mixer = Toeplitz::<f32>::new(&stream(), &narrow(&b), &narrow(&log_decay), channels, 1).unwrap();
    let decay: Vec<f64> = log_decay.iter().map(|g| g.exp()).collect();
    for (extents, axis) in [(vec![tokens], 0), (vec![4, 5, 2], 0), (vec![4, 5, 2], 1), (vec![4, 5, 2], 2)] {
        let count = extents.iter().product::<usize>() * channels;
        let (from, mut to) = (upload_as::<f32>(&x[..count]), upload_as::<f32>(&vec![f64::NAN; count]));
        mixer.mix(&stream(), &extents, axis, &from, &mut to).unwrap();
        let wanted = along(&extents, axis, &x[..count], channels, |row| toeplitz(row, &b, &decay, channels));
        assert_close(&format!("{extents:?} {axis}"), &widened(download(&to)), &wanted, channels, Gate::F32);
    }
}

#[test]
fn axes_with_their_norms_and_projections_add_up() {
    let (width, heads, extents) = (24, 3, [5, 8]);
    let names = |axis: usize| {
        [("q", vec![width]), ("k", vec![width]), ("log_decay", vec![heads]), ("norm.weight", vec![width])]
            .into_iter()
            .chain([("o_proj.weight", vec![width, width])])
            .map(move |(name, shape)| (format!("tpe.{axis}.{name}"), shape))
    };
    let shapes: Vec<(String, Vec<usize>)> = names(0).chain(names(1)).collect();
    let draft = Draft::of::<f32>(12, &shapes, |_, random| random.normal());
    let x = Random::new(13).normals::<f32>(40 * width);
    let (from, mut out) = (upload_as::<f32>(&x), upload_as::<f32>(&x));
    let mut wanted = x.clone();
    for axis in 0..2 {
        let name = format!("tpe.{axis}");
        let tpe = Tpe::<f32>::load(&stream(), &draft.checkpoint(), &name, (width, heads), 1e-5).unwrap();
        tpe.add(&stream(), &extents, axis, &from, &mut out).unwrap();
        let take = |tensor: &str| draft.values(&format!("{name}.{tensor}"));
        let products = layers::product(&take("q"), &take("k"));
        let dim = width / heads;
        let of_head = |head: usize| products[head * dim..][..dim].iter().sum::<f64>();
        let b: Vec<f64> = (0..width).map(|channel| of_head(channel / dim)).collect();
        let decay: Vec<f64> = (0..width).map(|channel| layers::sigmoid(take("log_decay")[channel / dim])).collect();
        let mixed = along(&extents, axis, &x, width, |row| toeplitz(row, &b, &decay, width));
        let normed = layers::rms_norm(&mixed, dim, &take("norm.weight"), 1e-5);
        layers::add(&mut wanted, &layers::project(&normed, &take("o_proj.weight"), None, width));
    }
    assert_close("both axes", &widened(download(&out)), &wanted, width, Gate::F32);
}

#[test]
fn wrong_sizes_are_errors() {
    let new = |b: usize, decays: usize, heads: usize| {
        Toeplitz::<f32>::new(&stream(), &vec![1.0; b], &vec![-1.0; decays], heads, 2).map(|_| ())
    };
    assert!(matches!(new(5, 5, 2), Err(Error::Shape { arg: "b", .. })));
    assert!(matches!(new(0, 0, 2), Err(Error::Shape { arg: "b", .. })));
    assert!(matches!(new(4, 6, 2), Err(Error::Shape { arg: "log_decay", .. })));
    let mixer = Toeplitz::<f32>::new(&stream(), &[1.0; 4], &[-1.0; 4], 2, 2).unwrap();
    let (x, mut y) = (upload_as::<f32>(&[0.0; 12]), upload_as::<f32>(&[0.0; 12]));
    let mut mix = |extents: &[usize], axis: usize| mixer.mix(&stream(), extents, axis, &x, &mut y);
    assert!(mix(&[3], 0).is_ok());
    assert!(matches!(mix(&[3], 1), Err(Error::Shape { arg: "axis", .. })));
    assert!(matches!(mix(&[4], 0), Err(Error::Shape { arg: "x", .. })));
    let draft = Draft::of::<f32>(1, &[("other".into(), vec![1])], |_, _| 0.0);
    let load = |sizes| Tpe::<f32>::load(&stream(), &draft.checkpoint(), "tpe", sizes, 1e-5).map(|_| ());
    assert!(matches!(load((10, 3)), Err(Error::Shape { arg: "heads", .. })));
    assert!(matches!(load((9, 3)), Err(Error::Weights { tensor: Some(name), .. }) if name == "tpe.q"));
}
