//! `lookback bench`.

use crate::files::{Folder, lookback, stderr, stdout};
use std::{collections::BTreeSet, fs};

#[test]
fn every_schedule_of_a_ring_is_predicted_and_none_is_said_to_be_measured() {
    let done = lookback(&["bench", "ring", "--json", "--device", "emulated"]);
    assert!(done.status.success());
    let all: serde_json::Value = serde_json::from_str(&stdout(&done)).expect("json");
    assert_eq!(all["measured"], false);
    let results = all["results"].as_array().expect("a list");
    let schedules: BTreeSet<&str> = results.iter().filter_map(|r| r["schedule"].as_str()).collect();
    assert_eq!(Vec::from_iter(schedules), ["allgather groups=4", "bidirectional", "ring", "tokenring", "ulysses"]);
    let find = |ranks: u64, pass: &str, schedule: &str| {
        let is_it = |r: &&serde_json::Value| {
            r["ranks"] == ranks && r["pass"] == pass && r["schedule"] == schedule && r["partition"] == "zigzag"
        };
        results.iter().find(is_it).unwrap_or_else(|| panic!("{ranks} {pass} {schedule}"))
    };
    for result in results {
        assert!(result["measured_seconds"].is_null());
        let [compute, exposed, total] = ["compute", "exposed", "predicted"]
            .map(|name| result[&format!("{name}_seconds")].as_f64().expect("a number"));
        assert!(compute > 0.0 && exposed >= 0.0 && (total - compute - exposed).abs() < 1e-12, "{result}");
    }
    for ranks in [2, 4, 8] {
        // Keys and values of all other ranks, once: 8 heads of 128 and 128 entries of two bytes.
        let ring = find(ranks, "forward", "ring");
        let share = 32_768 / ranks * 8 * 256 * 2;
        assert_eq!((ring["steps"].as_u64(), ring["link_bytes"].as_u64()), (Some(ranks), Some((ranks - 1) * share)));
        // Half of the heads each way: no more bytes, and but for two ranks on two links.
        let both = find(ranks, "forward", "bidirectional");
        let bytes = |result: &serde_json::Value, name: &str| result[name].as_u64().expect("a number");
        assert!(bytes(both, "total_bytes") <= bytes(ring, "total_bytes"));
        assert!(ranks == 2 || bytes(both, "link_bytes") * 5 < bytes(ring, "link_bytes") * 3, "{both} {ring}");
        // Half of all pairs, two products of 128 entries and 32 heads, at the model's rate.
        let work = 32_768.0_f64.powi(2) / 2.0 * 4.0 * 128.0 * 32.0 / 6e14 / ranks as f64;
        let compute = ring["compute_seconds"].as_f64().expect("a number");
        assert!((compute / work - 1.0).abs() < 1e-3, "{compute} {work}");
    }
    let text = lookback(&["bench", "ring", "--device", "emulated"]);
    let said = stdout(&text);
    assert!(
        text.status.success() && said.contains("nothing was measured") && said.contains("backward pass on 8 ranks")
    );
    assert!(said.contains("NCCL: skipped, "), "{said}");
}

fn path(folder: &Folder, name: &str) -> String {
    folder.path(name).to_str().expect("a path in letters").into()
}

/// All of what a GPU would be measured by, but for its clock.
#[test]
fn every_schedule_runs_in_the_parts_that_are_measured() {
    let done = lookback(&["bench", "ring", "--json", "--measure", "--device", "emulated"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let all: serde_json::Value = serde_json::from_str(&stdout(&done)).expect("json");
    assert_eq!(all["measured"], false, "the emulator's clock says nothing");
    let results = all["results"].as_array().expect("a list");
    let has_run = results.iter().filter(|result| result["has_run"] == true);
    let names: BTreeSet<String> = has_run.map(|r| format!("{} {} {}", r["schedule"], r["ranks"], r["pass"])).collect();
    assert_eq!(names.len(), 10, "five schedules on two and on four ranks: {names:?}");
    for result in results {
        for time in ["measured", "measured_compute", "measured_transfer", "measured_exposed"] {
            assert!(result[format!("{time}_seconds")].is_null(), "{result}");
        }
        assert!(result["overlap"].is_null(), "{result}");
    }
    let words = all["nccl"].as_str().expect("words");
    assert!(words.starts_with("NCCL: skipped, "), "{words}");
    assert!(!lookback(&["bench", "ring", "--device", "cuda:999"]).status.success());
}

#[test]
fn cases_are_counted_recorded_and_drawn_and_nothing_is_said_to_be_timed() {
    let folder = Folder::new("bench");
    let [record, pictures, again] = ["record.json", "pictures", "again"].map(|name| path(&folder, name));
    let done = lookback(&["--device", "emulated", "bench", "rms_norm", "--json", &record, "--plot", &pictures]);
    assert!(done.status.success(), "{}", stderr(&done));
    let said = stdout(&done);
    assert!(said.contains("emulated: counters, no times") && said.contains("nothing was timed"), "{said}");
    let all: serde_json::Value = serde_json::from_str(&fs::read_to_string(&record).expect("a file")).expect("json");
    assert_eq!((&all["format"], &all["emulated"], &all["ceilings"]), (&1.into(), &true.into(), &().into()));
    let cases = all["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 4, "two norms, forward and backward");
    for case in cases {
        assert!(said.contains(case["name"].as_str().expect("a name")), "{case}");
        let moved = ["global_loads", "global_stores"].map(|kind| case["counters"][kind]["unique_bytes"].as_u64());
        let moved = moved.into_iter().map(|bytes| bytes.expect("a number")).sum::<u64>();
        let floor = case["bytes"].as_u64().expect("a number");
        assert!((floor..2 * floor).contains(&moved), "{case}");
        assert!(case["median_us"].is_null() && case["fraction"].is_null(), "{case}");
        let fraction = case["predicted_fraction"].as_f64().expect("a number");
        assert!(fraction > 0.0 && fraction < 1.0, "{case}");
    }
    // The record alone gives the same table and the same picture.
    let from = lookback(&["bench", "--from", &record, "--plot", &again]);
    assert_eq!((from.status.code(), stdout(&from)), (Some(0), said));
    let picture = |folder: &str| fs::read_to_string(format!("{folder}/nn.svg")).expect("a picture");
    assert_eq!(picture(&pictures), picture(&again));
    let fewer = lookback(&["bench", "gated", "--from", &record]);
    assert!(fewer.status.success() && stdout(&fewer).contains("2 of 2 cases ran"), "{}", stdout(&fewer));
}

#[test]
fn every_operation_has_a_case_or_a_reason() {
    let listed = lookback(&["--device", "emulated", "bench", "--list"]);
    let cases: BTreeSet<String> =
        stdout(&listed).lines().filter_map(|name| name.split(' ').next()).map(String::from).collect();
    let operations = lookback(&["run", "--list", "--json"]);
    let operations: serde_json::Value = serde_json::from_str(&stdout(&operations)).expect("json");
    let names = operations.as_array().expect("a list").iter().filter_map(|o| o["name"].as_str());
    let names: BTreeSet<String> = names.map(String::from).collect();
    let of_family = lookback(&["--device", "emulated", "bench", "nn", "--list"]);
    let nn = stdout(&of_family);
    assert!(nn.contains("copy_rows") && !nn.contains("channel"), "a family and nothing beside it: {nn}");
    let elsewhere: BTreeSet<String> =
        lookback_bench::ELSEWHERE.iter().filter(|(_, why)| !why.is_empty()).map(|(name, _)| (*name).into()).collect();
    assert!(elsewhere.is_disjoint(&cases), "{elsewhere:?}");
    let there = &cases | &elsewhere;
    assert!(there.is_superset(&names), "without a case: {:?}", &names - &there);
    // The command line has no word for it; the library does.
    let unlisted = BTreeSet::from(["rms_norm_backward".to_string()]);
    assert_eq!(&there - &names, unlisted, "cases of no operation");
}

#[test]
fn what_is_no_record_and_what_names_no_case_is_refused() {
    let folder = Folder::new("no_bench");
    let [wrong, taken] = ["record.json", "taken"].map(|name| path(&folder, name));
    fs::write(&wrong, "{\"format\": 7}").expect("a file");
    fs::write(&taken, "a file").expect("a file");
    let refused = |arguments: &[&str], part: &str| {
        let done = lookback(arguments);
        let why = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{why}");
        assert!(why.contains(part) && why.trim().lines().count() == 1, "{why}");
    };
    refused(&["bench", "--from", &wrong], "format 7");
    refused(&["bench", "--from", &path(&folder, "none.json")], "none.json");
    refused(&["--device", "emulated", "bench", "no such case"], "no such case");
    refused(&["--device", "emulated", "bench", "rms_norm", "--json", &path(&folder, "no/folder.json")], "folder.json");
    refused(&["--device", "emulated", "bench", "copy_rows", "--plot", &taken], "taken");
}
