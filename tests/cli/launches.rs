//! `lookback bench launches`: files that another program repeats launches from.

use crate::files::{Folder, command, lookback, stdout};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

fn cases(folder: &Path) -> Vec<Value> {
    let entries = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.map(|path| serde_json::from_slice(&fs::read(path).expect("a file")).expect("json")).collect()
}

fn list<'a>(case: &'a Value, key: &str) -> &'a [Value] {
    case[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

#[test]
fn recorded_launches_name_buffers_and_no_addresses() {
    let dir = Folder::new("launches");
    let folder = dir.path("files");
    let done = lookback(&["bench", "launches", &folder.display().to_string(), "gated_scan f32", "--small"]);
    assert!(done.status.success(), "{done:?}");
    let cases = cases(&folder);
    assert!(cases.len() >= 3 && stdout(&done).starts_with(&format!("{} cases", cases.len())), "{done:?}");
    for case in &cases {
        let name = case["name"].as_str().expect("a name");
        assert!(name.contains("gated_scan f32"), "{name}");
        let buffers = list(case, "buffers");
        let bytes_of = |index: &Value| buffers[index.as_u64().expect("a number") as usize]["bytes"].as_u64();
        let mut used = BTreeSet::new();
        for launch in list(case, "launches") {
            assert_eq!(launch["kind"], "launch", "{name}");
            let entry = launch["entry"].as_str().expect("an entry");
            let text = fs::read_to_string(folder.join(launch["ptx"].as_str().expect("a path"))).expect("its text");
            assert!(text.contains(&format!(".visible .entry {entry}(")), "{entry}");
            for pointer in list(launch, "pointers") {
                assert!(pointer["offset"].as_u64() < bytes_of(&pointer["buffer"]), "{name}: {pointer}");
                used.insert(pointer["buffer"].as_u64());
            }
        }
        assert_eq!(used.len(), buffers.len(), "{name}: every buffer is used");
        let outputs = buffers.iter().filter(|buffer| buffer["role"] == "output");
        for output in outputs {
            let file = case["expected"][output["name"].as_str().expect("a name")].as_str().expect("what it writes");
            let contents = fs::read(folder.join(file)).expect("the file");
            assert_eq!(Some(contents.len() as u64), output["bytes"].as_u64(), "{name}");
            assert!(contents.iter().any(|byte| *byte != 0), "{name}: the kernel ran for this");
        }
    }
}

#[test]
fn full_shapes_cost_no_memory_and_depend_on_the_multiprocessors() {
    let dir = Folder::new("launches-full");
    let record = |folder: &str, multiprocessors: &str| {
        let folder = dir.path(folder);
        let arguments = ["bench", "launches", &folder.display().to_string(), "gated_scan f32 8x65536x1536"];
        let limits = [("MEMORY_MIB", "1"), ("SM_COUNT", multiprocessors)];
        let limits = limits.map(|(key, value)| (format!("LOOKBACK_EMULATOR_{key}"), value));
        let done = command().args(arguments).envs(limits).output().expect("the program runs");
        assert!(done.status.success(), "{done:?}");
        cases(&folder)
    };
    let (many, few) = (record("many", "132"), record("few", "16"));
    assert_eq!((many.len(), few.len()), (1, 1));
    assert_eq!((&many[0]["device"]["sm_count"], &few[0]["device"]["sm_count"]), (&Value::from(132), &Value::from(16)));
    // Three tensors of 3 GiB.
    let bytes: u64 = list(&many[0], "buffers").iter().filter_map(|buffer| buffer["bytes"].as_u64()).sum();
    assert!(bytes > 9 << 30, "{bytes}");
    assert_eq!(many[0]["expected"], serde_json::json!({}));
}

#[test]
fn a_filter_without_cases_and_a_folder_that_cannot_be_are_told() {
    let dir = Folder::new("launches-bad");
    let folder = dir.path("files").display().to_string();
    let none = lookback(&["bench", "launches", &folder, "no such operation"]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let file = dir.path("file");
    fs::write(&file, "").expect("a file");
    let not_a_folder = lookback(&["bench", "launches", &file.display().to_string()]);
    assert_eq!(not_a_folder.status.code(), Some(2), "{not_a_folder:?}");
}
