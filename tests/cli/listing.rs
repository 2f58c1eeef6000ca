//! `info`, `run --list` and `check`.

use crate::files::{command, lookback, stderr, stdout};

#[test]
fn info_names_the_device_and_every_kernel() {
    let done = lookback(&["info", "--load"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = stdout(&done);
    assert!(text.starts_with("device: "), "{text}");
    let rows = text.lines().filter(|line| line.contains("_sm80") && line.contains("loads")).count();
    assert!(rows > 100 && text.ends_with(&format!("{rows} kernels\n")), "{rows} rows in\n{text}");
}

#[test]
fn the_list_is_the_same_in_words_and_in_json() {
    let json = stdout(&lookback(&["run", "--list", "--json"]));
    let operations: Vec<serde_json::Value> = serde_json::from_str(&json).expect("json");
    let words = stdout(&lookback(&["run", "--list"]));
    assert!(operations.len() >= 8, "{json}");
    for operation in operations {
        let name = operation["name"].as_str().expect("name");
        assert!(words.contains(&format!("{name}: ")), "{name} is not in the list");
        for tensor in operation["inputs"].as_array().expect("inputs") {
            assert!(words.contains(tensor["name"].as_str().expect("name")), "{tensor}");
        }
    }
}

#[test]
fn check_passes_and_says_where_it_ran() {
    let done = lookback(&["check", "--json"]);
    assert!(done.status.success(), "{}\n{}", stdout(&done), stderr(&done));
    let report: serde_json::Value = serde_json::from_str(&stdout(&done)).expect("json");
    assert!(report["device"].as_str().is_some_and(|d| !d.is_empty()));
    let results = report["results"].as_array().expect("results");
    assert!(!results.is_empty() && results.iter().all(|r| r["passes"] == true), "{report:#}");
    let operations: std::collections::BTreeSet<&str> = results.iter().filter_map(|r| r["operation"].as_str()).collect();
    for wanted in ["gated_scan", "gated_scan_backward", "gemm", "rms_norm", "embedding"] {
        assert!(operations.contains(wanted), "{wanted} is not checked");
    }
}

#[test]
fn check_with_a_filter_that_names_nothing_is_bad_input() {
    let done = lookback(&["check", "--filter", "nothing-like-this"]);
    assert_eq!(done.status.code(), Some(2), "{}", stderr(&done));
}

#[test]
fn a_reader_that_leaves_early_does_no_harm() {
    let commands: [&[&str]; 4] =
        [&["info"], &["run", "--list"], &["run", "--list", "--json"], &["check", "--filter", "argmax"]];
    for args in commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let done = command().args(args).stdout(writer).output().expect("the program runs");
        assert!(done.status.success(), "{args:?}: {}", stderr(&done));
        assert!(!stderr(&done).contains("panicked"), "{args:?}: {}", stderr(&done));
    }
}
