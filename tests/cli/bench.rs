//! `lookback bench`.

use crate::files::{lookback, stdout};
use std::collections::BTreeSet;

#[test]
fn every_schedule_of_a_ring_is_predicted_and_none_is_said_to_be_measured() {
    let done = lookback(&["bench", "ring", "--json"]);
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
    let text = lookback(&["bench", "ring"]);
    let said = stdout(&text);
    assert!(
        text.status.success() && said.contains("nothing was measured") && said.contains("backward pass on 8 ranks")
    );
    assert_eq!(lookback(&["bench"]).status.code(), Some(2), "a family is missing");
}
