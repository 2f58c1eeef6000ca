//! Weights in several files with an index: the same as in one, and no way out of their directory.

use super::llama_case::small;
use super::support::Draft;
use half::f16;
use lookback_device::{Error, WeightsFault};
use lookback_model::checkpoint::Checkpoint;
use lookback_model::llama::{Llama, Prompt};
use lookback_suite::device::stream;
use std::fs;
use std::path::PathBuf;

/// A directory of one test, gone when it is.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lookback-shards-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    /// Two files with every second tensor each, and their index.
    fn split(&self, draft: &Draft) -> serde_json::Map<String, serde_json::Value> {
        let mut map = serde_json::Map::new();
        for part in 0..2 {
            let mut shard = draft.clone();
            let mut at = 0;
            shard.tensors.retain(|_, _| {
                at += 1;
                at % 2 == part
            });
            let name = format!("model-{part}.safetensors");
            map.extend(shard.tensors.keys().map(|tensor| (tensor.clone(), name.clone().into())));
            self.write(&name, shard.bytes());
        }
        self.index(&map);
        map
    }

    fn index(&self, map: &serde_json::Map<String, serde_json::Value>) {
        let index = serde_json::json!({ "metadata": { "total_size": 7 }, "weight_map": map });
        self.write("model.safetensors.index.json", index.to_string());
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn several_files_are_as_good_as_one() {
    let (config, draft) = small::<f16>();
    let directory = Directory::new("good");
    directory.split(&draft);
    let logits = |file: &Checkpoint| {
        let model = Llama::<f16>::load(&stream(), file, &config).unwrap();
        model.logits(Prompt::causal(&[1, 2, 3])).unwrap()
    };
    let wanted = logits(&draft.checkpoint());
    assert_eq!(logits(&Checkpoint::open(directory.0.join("model.safetensors.index.json")).unwrap()), wanted);
    assert_eq!(logits(&Checkpoint::open(&directory.0).unwrap()), wanted);
    // One file beside them comes first.
    directory.write("model.safetensors", draft.bytes());
    fs::remove_file(directory.0.join("model-1.safetensors")).unwrap();
    assert_eq!(logits(&Checkpoint::open(&directory.0).unwrap()), wanted);
}

#[test]
fn a_wrong_tensor_is_blamed_on_its_own_file() {
    let (config, mut draft) = small::<f16>();
    draft.tensors.get_mut("model.norm.weight").unwrap().bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let directory = Directory::new("wrong");
    let map = directory.split(&draft);
    let file = Checkpoint::open(&directory.0).unwrap();
    match Llama::<f16>::load(&stream(), &file, &config).map(|_| ()) {
        Err(Error::Weights { file, tensor, why: WeightsFault::NonFinite { at: 1 } }) => {
            assert_eq!(tensor.as_deref(), Some("model.norm.weight"));
            assert_eq!(file.file_name().unwrap().to_str(), map["model.norm.weight"].as_str());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_index_that_is_none_is_refused() {
    let (_, draft) = small::<f16>();
    let directory = Directory::new("bad");
    let mut map = directory.split(&draft);
    let open = || match Checkpoint::open(&directory.0).map(|_| ()) {
        Err(Error::Weights { tensor, why, .. }) => (tensor, why.to_string()),
        other => panic!("{other:?}"),
    };
    // A tensor that its file does not have.
    map.insert("model.extra.weight".into(), "model-0.safetensors".into());
    directory.index(&map);
    assert_eq!(open(), (Some("model.extra.weight".into()), "is missing".into()));
    for outside in
        ["../model-0.safetensors", "/model-0.safetensors", "a/model-0.safetensors", "..", "", "model-0.safetensors/"]
    {
        map.insert("model.extra.weight".into(), outside.into());
        directory.index(&map);
        assert!(open().1.contains("model.extra.weight"), "{outside}");
    }
    map.insert("model.extra.weight".into(), 3.into());
    directory.index(&map);
    assert!(open().1.contains("3 for the file"));
    map.insert("model.extra.weight".into(), "nowhere.safetensors".into());
    directory.index(&map);
    assert_eq!(open().0, None);
    for text in ["", "[]", "{}", r#"{"weight_map": 3}"#] {
        directory.write("model.safetensors.index.json", text);
        assert_eq!(open().0, None, "{text}");
    }
    fs::remove_file(directory.0.join("model.safetensors.index.json")).unwrap();
    assert_eq!(open().0, None);
}
