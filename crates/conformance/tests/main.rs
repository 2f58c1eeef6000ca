//! The emulator against independent definitions of its instructions, and against every record of a GPU.

use lookback_conformance::{
    STRIDE,
    device::Runner,
    examine::{Outcome, examine},
    form::Form,
    forms, operations,
    oracle::{Oracle, exact::F32, float::Mode},
    record::{Choice, Record, record},
    replay::{Verdict, replay},
    supported, used,
};
use lookback_device::{DevicePick, emulator};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

fn emulated() -> Runner {
    Runner::open(DevicePick::Emulated).unwrap_or_else(|e| panic!("{e}"))
}

fn run(runner: &Runner, form: &Form, number: usize, stride: u64) -> Outcome {
    let outcome = examine(runner, form, number, stride, |_, _| ());
    outcome.unwrap_or_else(|e| panic!("{}: {e}\n{}", form.name(), emulator::last_fault().unwrap_or_default()))
}

/// All forms on the emulator, with one arithmetic of its tensor cores.
fn agree(mma: &str, chosen: impl Fn(&Form) -> bool, first: usize) {
    let runner = emulated();
    assert!(emulator::set_option("mma", mma));
    let (mut count, mut checked, mut wrong) = (0u64, 0, Vec::new());
    for (number, form) in forms::table().iter().enumerate().filter(|(_, form)| chosen(form)) {
        let outcome = run(&runner, form, first + number, 4 * STRIDE + 15);
        assert!(form.oracle.is_none() || outcome.checked > 0, "{}: nothing was compared", form.name());
        count += 1;
        checked += outcome.checked;
        if outcome.wrong > 0 {
            let first = outcome.mistakes.first().map(ToString::to_string).unwrap_or_default();
            wrong.push(format!("{}: {} of {} results, {first}", form.name(), outcome.wrong, outcome.checked));
        }
    }
    println!("{count} forms, {checked} results compared with their definitions");
    assert!(count > 0 && wrong.is_empty(), "{} forms are not as defined:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_form_is_as_defined() {
    agree("fma", |_| true, 0);
}

#[test]
fn the_tensor_cores_of_hopper_stay_within_the_bound() {
    agree("hopper", |form| form.key.starts_with("mma"), 10_000);
}

#[test]
fn every_form_that_a_kernel_uses_has_a_case() {
    let tested: BTreeSet<String> =
        forms::table().iter().flat_map(|form| supported::keys(form).map(String::from).collect::<Vec<_>>()).collect();
    let used = used::by_kernels().unwrap_or_else(|e| panic!("{e}"));
    assert!(used.len() > 200, "only {} forms found", used.len());
    let waived = |form: &str| supported::WAIVERS.iter().any(|(waived, _)| *waived == form);
    let missing: Vec<_> = used.iter().filter(|(form, _)| !tested.contains(*form) && !waived(form)).collect();
    assert!(missing.is_empty(), "no conformance case for {missing:#?}");
    for (form, why) in supported::WAIVERS {
        assert!(used.contains_key(form) && !tested.contains(form) && !why.is_empty(), "{form} needs no waiver");
    }
}

#[test]
fn a_case_contains_the_forms_that_it_is_about() {
    let mut names = BTreeSet::new();
    for (number, form) in forms::table().iter().enumerate() {
        assert!(names.insert(form.name()), "two cases are called {}", form.name());
        let text = lookback_conformance::program::render(form, &format!("k{number}"));
        let found = used::forms_of(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", form.name()));
        for key in supported::keys(form) {
            assert!(found.contains(key), "{} is about {key}, which its program does not contain:\n{text}", form.name());
        }
    }
}

#[test]
fn a_wrong_result_is_found() {
    let runner = emulated();
    let form = forms::table().into_iter().find(|form| form.key == "add.f32").expect("add.f32");
    let up = Mode { round: lookback_conformance::oracle::exact::Round::Up, ..Mode::nearest(F32) };
    let form = form.oracle(Oracle::one(move |x| up.add(x[0], x[1])));
    let outcome = run(&runner, &form, 20_000, STRIDE);
    assert!(outcome.wrong > 100 && outcome.wrong < outcome.checked, "{} of {}", outcome.wrong, outcome.checked);
    assert!(!outcome.mistakes.is_empty());
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lookback-conformance-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("scratch");
    dir
}

#[test]
fn a_record_comes_back_from_its_file_and_a_changed_result_is_shown() {
    let (runner, dir) = (emulated(), scratch("record"));
    let (filter, skip) = ("mul.f32".into(), vec!["gemm".into()]);
    let choice = Choice { stride: 1 << 20, filter, skip, raw: Some(dir.join("raw")) };
    let recording = record(&runner, &choice).unwrap_or_else(|e| panic!("{e}"));
    let recorded = recording.record;
    assert!(recording.stopped.is_none() && recorded.forms.len() == 1);
    let file = dir.join("record.json");
    recorded.write(&file).expect("write");
    let read = Record::read(&file).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read, recorded);
    let verdicts = replay(&read, &runner, choice.raw.as_deref()).unwrap_or_else(|e| panic!("{e}"));
    assert!(!verdicts.is_empty() && verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Same), "{verdicts:?}");

    // One bit of one result, in the file of all results and in the hash of its block.
    let raw = lookback_conformance::record::raw_path(&dir.join("raw"), "mul.f32");
    let mut bytes = std::fs::read(&raw).expect("raw");
    bytes[4 * 100] ^= 1;
    std::fs::write(&raw, bytes).expect("raw");
    let text = std::fs::read_to_string(&file).expect("text");
    let blocks = text.find("\"blocks\":\"").expect("blocks") + 10;
    let flipped = if text.as_bytes()[blocks] == b'0' { "1" } else { "0" };
    let text = format!("{}{flipped}{}", &text[..blocks], &text[blocks + 1..]);
    std::fs::write(&file, text).expect("text");
    let read = Record::read(&file).unwrap_or_else(|e| panic!("{e}"));
    let verdicts = replay(&read, &runner, choice.raw.as_deref()).unwrap_or_else(|e| panic!("{e}"));
    let failed: Vec<_> = verdicts.iter().filter(|(_, verdict)| verdict.fails()).collect();
    let [(_, Verdict::Differs { blocks: (1, _), results: Some(1), shown, .. })] = failed.as_slice() else {
        panic!("{failed:?}");
    };
    assert!(shown[0].starts_with("#100 ("), "{shown:?}");
    std::fs::remove_dir_all(&dir).expect("clean");
}

#[test]
fn a_file_that_is_no_record_is_refused() {
    let dir = scratch("damaged");
    let good = Record { device: emulated().info, stride: 7, forms: Vec::new(), operations: Vec::new() };
    let file = dir.join("record.json");
    good.write(&file).expect("write");
    assert_eq!(Record::read(&file).expect("an empty record"), good);
    let text = std::fs::read_to_string(&file).expect("text");
    for (from, to) in
        [("\"format\":1", "\"format\":2"), ("\"stride\":7", "\"stride\":-7"), ("forms", "form"), ("{", "")]
    {
        std::fs::write(&file, text.replacen(from, to, 1)).expect("write");
        assert!(Record::read(&file).is_err(), "{from} to {to}");
    }
    assert!(Record::read(&dir.join("none")).is_err());
    std::fs::remove_dir_all(&dir).expect("clean");
}

#[test]
fn operations_launch_the_kernels_that_they_name_and_repeat_to_the_bit() {
    let runner = emulated();
    for operation in &operations::OPERATIONS {
        emulator::reset_counters();
        let first = operation.run(&runner, &runner.info).unwrap_or_else(|e| panic!("{}: {e}", operation.name));
        let counters = emulator::counters().unwrap_or_default();
        let counters: serde_json::Value = serde_json::from_str(&counters).expect("counters");
        let launched = counters["kernels"].as_object().expect("kernels").keys();
        let launched: BTreeSet<&str> = launched
            .map(|entry| lookback_kernels::KERNELS.iter().find(|k| k.entry == entry).map_or("unknown", |k| k.name))
            .collect();
        let named: BTreeSet<&str> = operation.kernels.iter().copied().collect();
        assert_eq!(launched, named, "{}", operation.name);
        assert!(emulator::set_option("order", "random:3"));
        let second = operation.run(&runner, &runner.info).unwrap_or_else(|e| panic!("{}: {e}", operation.name));
        assert!(emulator::set_option("order", "inorder"));
        assert_eq!(first, second, "{}", operation.name);
    }
}

/// The workspace's folder, which a bundle of executables does not bring along.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn the_emulator_is_every_device_that_was_recorded() {
    let records = supported::records(&source("tests/conformance/record")).unwrap_or_else(|e| panic!("{e}"));
    println!("{} records of GPUs", records.len());
    let runner = emulated();
    for record in &records {
        let verdicts = replay(record, &runner, None).unwrap_or_else(|e| panic!("{e}"));
        let failed: BTreeMap<_, _> = verdicts.into_iter().filter(|(_, verdict)| verdict.fails()).collect();
        assert!(failed.is_empty(), "{}: {failed:#?}", record.device.name);
    }
}

#[test]
fn the_page_of_supported_forms_is_fresh() {
    let page = include_str!("../../emulator/SUPPORTED.md");
    if !source("crates/emulator").exists() {
        println!("skipped: the records that the page speaks of are not here");
        return;
    }
    let records = supported::records(&source("tests/conformance/record")).unwrap_or_else(|e| panic!("{e}"));
    let golden = supported::golden(&records).unwrap_or_else(|e| panic!("{e}"));
    let fresh = supported::render(&golden).unwrap_or_else(|e| panic!("{e}"));
    let hint = "cargo run --release -p lookback-conformance -- supported > crates/emulator/SUPPORTED.md";
    assert!(page == fresh, "crates/emulator/SUPPORTED.md is stale: {hint}");
}

/// What came with Hopper must not be accepted for Ampere, where an assembler refuses it.
#[test]
fn an_older_target_refuses_newer_forms() {
    // These came between the two, and need no more than the older one.
    let older = ["bmsk", "szext", "atom", "red"];
    let mut refused = 0;
    for form in forms::table().iter().filter(|form| form.level == lookback_conformance::form::Level::Sm90) {
        let text = lookback_conformance::program::render(form, "k");
        let text = text.replace(".version 8.0", ".version 7.8").replace(".target sm_90", ".target sm_80");
        let opcode = form.key.split('.').next().unwrap_or_default();
        if used::forms_of(&text).is_err() {
            refused += 1;
        } else {
            assert!(older.contains(&opcode) && !form.key.contains("bf16"), "{} is accepted for sm_80", form.key);
        }
    }
    assert!(refused > 150, "{refused} forms refused");
}

/// Forms that read well and that no assembler knows.
#[test]
fn forms_that_do_not_exist_are_refused() {
    for (instruction, sources) in [
        ("ex2.approx.ftz.f16", 1),
        ("cvt.rni.u8.bf16", 1),
        ("cvt.rn.bf16.s8", 1),
        ("add.rz.f16", 2),
        ("min.NaN.f64", 2),
        ("shl.u32", 2),
        ("setp.lo.s32", 2),
        ("mul.wide.u64", 2),
        ("popc.b16", 1),
    ] {
        for register in ["b16", "b32", "b64"] {
            let operands: String = (0..sources).map(|_| ", %r").collect();
            let text = format!(
                ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n.reg .{register} %r;\n\
                 {instruction} %r{operands};\nret;\n}}"
            );
            assert!(used::forms_of(&text).is_err(), "{instruction} is accepted on .{register}");
        }
    }
}
