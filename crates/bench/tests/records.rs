//! Records are read as they were written, and drawn as well-formed pictures.

use lookback_bench::{Ceilings, Counts, Device, Outcome, Record, Row, Timing, plot};
use serde_json::json;
use std::collections::BTreeMap;

fn row(name: &str, family: &str, bytes: u64, flops: u64, outcome: Outcome) -> Row {
    Row {
        name: name.into(),
        operation: name.split(' ').next().unwrap_or_default().into(),
        family: family.into(),
        shape: BTreeMap::from([("rows".into(), 7), ("width".into(), 9)]),
        dtype: "bf16".into(),
        bytes,
        flops,
        outcome,
    }
}

fn timed(median_us: f64) -> Outcome {
    Outcome::Timed(Timing { median_us, spread_us: 0.3, launches: 8, graph: true })
}

/// As a GPU would give it: a copy of 4 TB/s, products of 500 TFLOP/s.
fn record() -> Record {
    Record {
        device: Device {
            name: "NVIDIA <H200> & \"co\"".into(),
            emulated: false,
            compute_capability: "9.0".into(),
            sm_count: 132,
            driver: "13.0".into(),
            clocks_mhz: BTreeMap::from([("sm_before".into(), 1980.0)]),
        },
        commit: "unknown".into(),
        date: "2026-01-31T12:00:00Z".into(),
        scale: "full".into(),
        ceilings: Some(Ceilings { copy: 4e12, read: 4.4e12, products: 5e14 }),
        cases: vec![
            row("rms_norm bf16 7x9", "nn", 400_000_000, 0, timed(125.0)),
            row("gemm bf16 1x1", "nn", 400_000_000, 100_000_000_000, timed(400.0)),
            row("lean_decode", "decode", 4_000_000, 0, timed(0.1 + 0.2)),
            row("attention <b> & 'c'", "attention", 1, 1, Outcome::Refused("o: out of device memory".into())),
        ],
    }
}

fn emulated() -> Record {
    let counters = json!({
        "launches": 1, "ctas": 264, "max_resident_ctas": 264, "warp_instructions": 1000,
        "instructions": { "integer": 600, "global": 400 },
        "global_loads": { "sectors": 20, "ideal_sectors": 10, "unique_bytes": 43_000_000 },
        "global_stores": { "sectors": 10, "ideal_sectors": 10, "unique_bytes": 0 },
    });
    let counts = Counts::from_json(&counters).expect("an object");
    let record = record();
    Record {
        device: Device { emulated: true, clocks_mhz: BTreeMap::new(), ..record.device },
        ceilings: None,
        cases: vec![row("copy_rows", "nn", 21_500_000, 0, Outcome::Counted(counts))],
        ..record
    }
}

#[test]
fn what_is_written_is_read_again() {
    for record in [record(), emulated()] {
        let text = format!("{:#}", record.to_json());
        assert_eq!(Record::parse(&text).as_ref(), Ok(&record), "{text}");
    }
    let mut no_ceilings = record().to_json();
    no_ceilings["ceilings"] = json!(null);
    assert!(Record::parse(&no_ceilings.to_string()).is_err(), "times without what to compare them with");
    for member in ["device", "emulated", "commit", "date", "scale", "cases", "clocks_mhz", "sm_count", "driver"] {
        let mut less = record().to_json();
        less.as_object_mut().expect("an object").remove(member);
        let why = Record::parse(&less.to_string()).expect_err(member);
        assert!(why.contains(member), "{why}");
    }
    for member in ["name", "operation", "family", "shape", "dtype", "bytes", "flops", "spread_us", "launches", "graph"]
    {
        let mut less = record().to_json();
        less["cases"][0].as_object_mut().expect("an object").remove(member);
        let why = Record::parse(&less.to_string()).expect_err(member);
        assert!(why.contains(member), "{why}");
    }
}

#[test]
fn the_floor_is_by_whatever_takes_longer() {
    let record = record();
    let all = record.to_json();
    let member = |case: usize, name: &str| all["cases"][case][name].as_f64().expect(name);
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b, "{a} {b}");
    // 400 MB at 4 TB/s; 100 GFLOP at 500 TFLOP/s.
    near(member(0, "floor_us"), 100.0);
    near(member(0, "fraction"), 0.8);
    near(member(1, "floor_us"), 200.0);
    near(member(1, "fraction"), 0.5);
    assert!(all["cases"][3]["median_us"].is_null() && all["cases"][3]["fraction"].is_null());
}

#[test]
fn a_prediction_is_the_longest_resource_and_the_start() {
    let record = emulated();
    let all = record.to_json();
    let case = &all["cases"][0];
    // 43 MB at 4.3 TB/s, used by 88 %; 3.5 us to start.
    let predicted = case["predicted_us"].as_f64().expect("a number");
    assert!((predicted - (10.0 / 0.88 + 3.5)).abs() < 1e-6, "{predicted}");
    let fraction = case["predicted_fraction"].as_f64().expect("a number");
    assert!((fraction - 5.0 / predicted).abs() < 1e-9, "{fraction}");
    assert!(case["median_us"].is_null() && all["predicted_for"].as_str().is_some_and(|gpu| gpu.contains("H200")));
}

#[test]
fn pictures_are_well_formed_and_say_what_was_not_timed() {
    let pictures = plot(&record());
    let families: Vec<&str> = pictures.iter().map(|(family, _)| family.as_str()).collect();
    assert_eq!(families, ["nn", "decode"], "without a time there is nothing to draw");
    let (_, nn) = &pictures[0];
    assert_eq!(elements(nn, "circle"), 2);
    assert!(nn.contains("rms_norm bf16 7x9") && nn.contains("80 %") && !nn.contains("predicted time"));
    assert!(nn.contains("prefers-color-scheme:dark"), "both schemes");
    for picture in pictures.iter().map(|(_, picture)| picture) {
        assert_eq!(well_formed(picture), Ok(()), "{picture}");
    }
    let (_, predicted) = &plot(&emulated())[0];
    assert_eq!(well_formed(predicted), Ok(()));
    assert!(predicted.contains("predicted time") && predicted.contains("nothing was timed"));
    assert!(well_formed("<svg><text>a & b</text></svg>").is_err() && well_formed("<svg><g></svg>").is_err());
}

/// Elements of that name.
fn elements(text: &str, name: &str) -> usize {
    text.matches(&format!("<{name} ")).count()
}

/// Elements close in order, attributes are quoted, and `&` begins an entity: as much of XML as pictures use.
fn well_formed(text: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some((before, tag)) = rest.split_once('<') {
        entities(before)?;
        let (tag, after) = tag.split_once('>').ok_or("a tag does not end")?;
        let name = |tag: &str| tag.split(' ').next().unwrap_or_default().len();
        if let Some(closed) = tag.strip_prefix('/') {
            let last = open.pop();
            if last != Some(closed) {
                return Err(format!("{closed} closes {last:?}"));
            }
        } else {
            let inner = tag.strip_suffix('/').unwrap_or(tag);
            let (element, attributes) = inner.split_at(name(inner));
            for attribute in attributes.split("\" ").filter(|a| !a.trim().is_empty()) {
                let (_, value) = attribute.split_once("=\"").ok_or_else(|| format!("{attribute} is not quoted"))?;
                entities(value)?;
            }
            if inner.len() == tag.len() {
                open.push(element);
            }
        }
        rest = after;
    }
    entities(rest)?;
    if open.is_empty() { Ok(()) } else { Err(format!("{open:?} stay open")) }
}

fn entities(text: &str) -> Result<(), String> {
    let known = ["amp;", "lt;", "gt;", "quot;"];
    let wrong = text.split('&').skip(1).find(|entity| !known.iter().any(|k| entity.starts_with(k)));
    wrong.map_or(Ok(()), |entity| Err(format!("&{entity}")))
}
