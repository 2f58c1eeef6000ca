//! Weights files that are not what the model needs: an error that names the culprit, never a panic.

use super::support::Draft;
use lookback_device::{Class, Error, WeightsFault};
use lookback_model::weights::Weights;
use safetensors::Dtype;

fn draft() -> Draft {
    Draft::random(4, 6, &[true, false])
}

fn fault(draft: &Draft) -> (Option<String>, WeightsFault) {
    match Weights::from_bytes("draft", draft.bytes()) {
        Err(Error::Weights { tensor, why, .. }) => (tensor, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_file_gives_its_values() {
    let draft = draft();
    let weights = draft.weights();
    let bytes: Vec<u8> = weights.tensor("norm.weight").unwrap().into_iter().flat_map(f32::to_le_bytes).collect();
    assert_eq!(bytes, draft.tensors["norm.weight"].bytes);
    assert!(matches!(weights.tensor("norm.bias"), Err(Error::Weights { why: WeightsFault::Missing, .. })));
}

#[test]
fn every_tensor_is_wanted_in_its_shape_and_type() {
    let good = draft();
    for name in good.tensors.keys() {
        let mut without = good.clone();
        without.tensors.remove(name);
        assert_eq!(fault(&without), (Some(name.clone()), WeightsFault::Missing));
        let mut flat = good.clone();
        let tensor = flat.tensors.get_mut(name).unwrap();
        tensor.shape = vec![1, tensor.shape.iter().product()];
        let (blamed, why) = fault(&flat);
        assert!(blamed.as_ref() == Some(name) && matches!(why, WeightsFault::Shape { .. }), "{name}: {why:?}");
        let mut integer = good.clone();
        integer.tensors.get_mut(name).unwrap().dtype = Dtype::I32;
        let wanted = WeightsFault::Dtype { want: "F32".into(), got: "I32".into() };
        assert_eq!(fault(&integer), (Some(name.clone()), wanted));
        let mut infinite = good.clone();
        infinite.tensors.get_mut(name).unwrap().bytes[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert_eq!(fault(&infinite), (Some(name.clone()), WeightsFault::NonFinite { at: 2 }));
    }
}

#[test]
fn a_configuration_that_the_tensors_do_not_have_is_a_shape_fault() {
    let mut wider = draft();
    wider.metadata.insert("width".into(), "8".into());
    assert!(matches!(fault(&wider), (Some(_), WeightsFault::Shape { .. })));
    let mut deeper = draft();
    deeper.metadata.insert("blocks".into(), "3".into());
    assert_eq!(fault(&deeper), (Some("blocks.2.norm.weight".into()), WeightsFault::Missing));
    let mut bare = draft();
    bare.metadata.clear();
    assert!(matches!(fault(&bare), (None, WeightsFault::Config { key, .. }) if key == "arch"));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = draft().bytes();
    let header = 8 + u64::from_le_bytes(std::array::from_fn(|at| bytes[at])) as usize;
    for len in (0..header).chain((header..bytes.len()).step_by(97)) {
        let cut = Weights::from_bytes("cut", bytes[..len].to_vec());
        assert!(matches!(cut, Err(Error::Weights { why: WeightsFault::Parse(_), .. })), "{len} bytes");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Weights::open("no/such/file.safetensors").unwrap_err();
    assert_eq!(error.class(), Class::Data);
    assert!(error.to_string().starts_with("no/such/file.safetensors: "), "{error}");
}
