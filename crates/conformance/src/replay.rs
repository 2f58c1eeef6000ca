//! A record held against the emulator.

use crate::{
    Error, Result,
    device::{Runner, little_endian},
    examine::{self, Outcome, examine},
    form::{Class, Form},
    forms,
    inputs::Inputs,
    operations::OPERATIONS,
    oracle::Expected,
    record::{Record, Recorded, raw_path},
    used,
};
use lookback_device::emulator;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// How a form or an operation came out.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Every bit is the same.
    Same,
    /// Not every bit is.
    Differs {
        /// Blocks of results that differ, and how many there are.
        blocks: (usize, usize),
        /// Results that differ, where all of the device's are known.
        results: Option<u64>,
        /// Some of them.
        shown: Vec<String>,
        /// Whether the definition leaves room for it, and the device stays within.
        allowed: bool,
    },
    /// The device's own results are not what the definition says; so many of them.
    Undefined(u64),
    /// The record is of another program or other operands, or of a form that is no longer there.
    Stale,
    /// The device did not have the form.
    Refused,
}

impl Verdict {
    /// Whether the emulator is not that device.
    pub fn fails(&self) -> bool {
        matches!(self, Self::Differs { allowed: false, .. } | Self::Undefined(_))
    }
}

/// Verdicts by the names of forms and operations.
pub type Verdicts = Vec<(String, Verdict)>;

/// Differing results that are shown of a form.
const SHOWN: usize = 6;

/// Recomputes everything in a record. `runner` must be the emulator; `raw` is the folder of all results, where there is one.
///
/// # Errors
/// When the emulator refuses what a device ran, or a file cannot be read.
pub fn replay(record: &Record, runner: &Runner, raw: Option<&Path>) -> Result<Verdicts> {
    let exact_tensor = record.device.compute_capability == (9, 0);
    // For this thread's launches; every other device is held against the tolerance.
    emulator::set_option("mma", if exact_tensor { "hopper" } else { "fma" });
    let table = forms::table();
    let by_name: BTreeMap<String, usize> = table.iter().enumerate().map(|(i, form)| (form.name(), i)).collect();
    let mut verdicts = Vec::new();
    let mut inexact: BTreeSet<&str> = BTreeSet::new();
    for (name, recorded) in &record.forms {
        let Some(number) = by_name.get(name) else {
            verdicts.push((name.clone(), Verdict::Stale));
            continue;
        };
        let form = &table[*number];
        let verdict = match recorded {
            Recorded::Refused(_) => Verdict::Refused,
            Recorded::Ran(wanted) => replay_form(runner, (form, *number), record.stride, wanted, raw, exact_tensor)?,
        };
        if matches!(verdict, Verdict::Differs { allowed: true, .. }) {
            inexact.insert(&form.key);
        }
        verdicts.push((name.clone(), verdict));
    }
    verdicts.extend(replay_operations(record, runner, &inexact, exact_tensor, &table)?);
    emulator::set_option("mma", "fma");
    Ok(verdicts)
}

fn replay_form(
    runner: &Runner,
    (form, number): (&Form, usize),
    stride: u64,
    wanted: &Outcome,
    raw: Option<&Path>,
    exact_tensor: bool,
) -> Result<Verdict> {
    if examine::identity(form, stride) != (wanted.program, wanted.inputs) {
        return Ok(Verdict::Stale);
    }
    if wanted.wrong > 0 {
        return Ok(Verdict::Undefined(wanted.wrong));
    }
    let mut compared = Compared::new(form, stride, raw.map(|dir| raw_path(dir, &form.name())))?;
    let got = examine(runner, form, number, stride, |first, results| compared.take(first, results))?;
    if got.blocks == wanted.blocks {
        return Ok(Verdict::Same);
    }
    let differ = got.blocks.iter().zip(&wanted.blocks).filter(|(a, b)| a != b).count();
    let exact = form.class == Class::Exact || (form.class == Class::Tensor && exact_tensor);
    let results = compared.device.is_some().then_some(compared.differ);
    let mut shown = compared.shown;
    for ((index, bits), (_, device)) in got.sample.iter().zip(&wanted.sample) {
        if bits != device && results.is_none() && shown.len() < SHOWN {
            let inputs = Inputs::new(&form.inputs, &form.data, stride);
            shown.push(describe(form, &inputs, *index, device, bits));
        }
    }
    Ok(Verdict::Differs { blocks: (differ, got.blocks.len()), results, shown, allowed: !exact })
}

/// What the device gave, what the emulator gave, and what the definition says.
fn describe(form: &Form, inputs: &Inputs<'_>, index: u64, device: &[u64], emulator: &[u64]) -> String {
    let words = |bits: &[u64]| bits.iter().map(|bits| format!("{bits:#x}")).collect::<Vec<_>>().join(" ");
    let operands: Vec<u64> = (0..form.inputs.len()).map(|operand| inputs.value(index, operand)).collect();
    let expected: Vec<String> = expected_at(form, inputs, index).iter().map(ToString::to_string).collect();
    format!(
        "#{index} ({}): device {}, emulator {}, definition {}",
        words(&operands),
        words(device),
        words(emulator),
        expected.join(" ")
    )
}

fn expected_at(form: &Form, inputs: &Inputs<'_>, index: u64) -> Vec<Expected> {
    let Some(oracle) = &form.oracle else { return Vec::new() };
    let (base, lane) = (index / 32 * 32, (index % 32) as usize);
    let register = |operand| std::array::from_fn(|lane| inputs.value(base + lane as u64, operand));
    let warp = (0..form.inputs.len()).map(register).collect();
    oracle.expect(&warp, form.outputs.len()).iter().take(8).map(|lanes| lanes[lane]).collect()
}

/// Comparison of all results, where the device's were kept.
struct Compared<'a> {
    form: &'a Form,
    inputs: Inputs<'a>,
    device: Option<Vec<u8>>,
    differ: u64,
    shown: Vec<String>,
}

impl<'a> Compared<'a> {
    fn new(form: &'a Form, stride: u64, path: Option<std::path::PathBuf>) -> Result<Self> {
        let device = match path.filter(|path| path.exists()) {
            Some(path) => Some(fs::read(&path).map_err(Error::file(&path))?),
            None => None,
        };
        let inputs = Inputs::new(&form.inputs, &form.data, stride);
        Ok(Self { form, inputs, device, differ: 0, shown: Vec::new() })
    }

    fn take(&mut self, first: u64, results: &[Vec<u64>]) {
        let Some(device) = &self.device else { return };
        let widths: Vec<usize> = self.form.outputs.iter().map(|register| register.bytes()).collect();
        let width: usize = widths.iter().sum();
        for i in 0..results.first().map_or(0, Vec::len) {
            let index = first + i as u64;
            let Some(recorded) = device.get(index as usize * width..(index as usize + 1) * width) else { continue };
            let mut rest = recorded;
            let recorded: Vec<u64> = widths
                .iter()
                .map(|width| {
                    let (word, after) = rest.split_at(*width);
                    rest = after;
                    little_endian(word)
                })
                .collect();
            let got: Vec<u64> = results.iter().map(|output| output[i]).collect();
            if recorded != got {
                self.differ += 1;
                if self.shown.len() < SHOWN {
                    self.shown.push(describe(self.form, &self.inputs, index, &recorded, &got));
                }
            }
        }
    }
}

/// An operation may differ where its kernels use a form that differs and may, or tensor arithmetic that is not known.
fn replay_operations(
    record: &Record,
    runner: &Runner,
    inexact: &BTreeSet<&str>,
    exact_tensor: bool,
    table: &[Form],
) -> Result<Verdicts> {
    if record.operations.is_empty() {
        return Ok(Vec::new());
    }
    let used = used::by_kernels()?;
    let tensor: BTreeSet<&str> =
        table.iter().filter(|form| form.class == Class::Tensor).map(|form| form.key.as_str()).collect();
    let mut verdicts = Vec::new();
    for (name, recorded) in &record.operations {
        let verdict = match (OPERATIONS.iter().find(|operation| operation.name == name), recorded) {
            (None, _) => Verdict::Stale,
            (_, Err(_)) => Verdict::Refused,
            (Some(operation), Ok(wanted)) => {
                let got = operation.run(runner, &record.device)?;
                let differ = got.hashes.iter().zip(&wanted.hashes).filter(|(a, b)| a != b).count();
                let uses = |forms: &BTreeSet<&str>| {
                    let by = |form: &&str| {
                        used.get(*form).is_some_and(|by| operation.kernels.iter().any(|k| by.contains(k)))
                    };
                    forms.iter().any(by)
                };
                match got.hashes == wanted.hashes {
                    true => Verdict::Same,
                    false => Verdict::Differs {
                        blocks: (differ, got.hashes.len()),
                        results: None,
                        shown: vec![format!("device {:02x?}, emulator {:02x?}", wanted.heads, got.heads)],
                        allowed: uses(inexact) || (!exact_tensor && uses(&tensor)),
                    },
                }
            }
        };
        verdicts.push((name.clone(), verdict));
    }
    Ok(verdicts)
}
