//! `lookback check`: every operation against its f64 reference.

use crate::{
    CliError, Result,
    ops::{self, Case, Inputs, Operation},
    output::line,
    session::Session,
    tensor::{Kind, Tensor},
};
use clap::Args;
use comfy_table::{Table, presets};
use indicatif::ProgressBar;
use lookback_device::{DType, DevicePick};
use lookback_reference::measure::{Gate, errors};
use serde_json::json;

/// Arguments of `lookback check`.
#[derive(Args)]
pub struct Arguments {
    /// Prints the results as JSON.
    #[arg(long)]
    json: bool,
    /// Only operations and cases whose name contains this text.
    #[arg(long, default_value = "")]
    filter: String,
}

/// One output compared.
struct Row {
    operation: &'static str,
    case: String,
    output: String,
    /// Errors in the order rel, row, inf; `None` where the kinds of non-finite differ or the lengths do.
    errors: Option<[f64; 3]>,
    gate: Gate,
}

impl Row {
    fn passes(&self) -> bool {
        self.errors.is_some_and(|[rel, row, inf]| rel <= self.gate.rel && row <= self.gate.row && inf <= self.gate.inf)
    }
}

/// Compares everything that the filter names; fails if anything is above its gate.
pub fn check(pick: DevicePick, arguments: &Arguments) -> Result<()> {
    let session = Session::open(pick)?;
    let cases = cases(&arguments.filter);
    if cases.is_empty() {
        return Err(CliError::input("--filter", format!("nothing is named `{}`", arguments.filter)));
    }
    let progress = ProgressBar::new(cases.len() as u64);
    let mut rows = Vec::new();
    for (operation, name, case) in cases {
        rows.extend(compare(&session, operation, name, case)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    let failed = rows.iter().filter(|r| !r.passes()).count();
    if arguments.json {
        print_json(&session, &rows)?;
    } else {
        print_table(&session, &rows)?;
    }
    if failed > 0 {
        return Err(CliError::Failed(format!("{failed} of {} outputs are above their gate", rows.len())));
    }
    Ok(())
}

fn cases(filter: &str) -> Vec<(&'static Operation, String, Case)> {
    let mut all = Vec::new();
    for &operation in ops::ALL {
        for dtype in DType::ALL {
            for case in (operation.cases)(dtype) {
                let name = format!("{} {dtype}", case.name);
                if format!("{} {name}", operation.name).contains(filter) {
                    all.push((operation, name, case));
                }
            }
        }
    }
    all
}

fn compare(session: &Session, operation: &'static Operation, case: String, data: Case) -> Result<Vec<Row>> {
    let inputs = Inputs::new(operation, data.tensors, &data.attributes)?;
    let outputs = (operation.run)(session, &inputs)?;
    let reference = (operation.oracle)(&inputs)?;
    let plain = !matches!(operation.name, "attention_backward" | "ring_attention_backward")
        && matches!(inputs.attribute("path"), "" | "recurrent")
        && matches!(inputs.attribute("map"), "" | "identity");
    let factors = if plain { DType::F32 } else { inputs.dtype };
    let gradient = factors != DType::F32 && operation.name.ends_with("_backward");
    Ok(outputs
        .iter()
        .map(|(name, tensor)| {
            let row = tensor.shape.last().copied().unwrap_or(1);
            let wanted = reference.get(name).map_or(&[][..], Vec::as_slice);
            let measured = errors(&tensor.to_f64(), wanted, row).ok();
            // Attention's weights are rounded before they meet the values, whatever the type of their sum.
            let factors = if name == "o" { inputs.dtype } else { factors };
            Row {
                operation: operation.name,
                case: case.clone(),
                output: name.clone(),
                errors: measured.map(|e| [e.rel, e.row, e.inf]),
                gate: if gradient { GRADIENT } else { gate(tensor, factors) },
            }
        })
        .collect())
}

/// Gradients of 16-bit types through factors that are rounded once more: products of adjoints that each lost half a place.
const GRADIENT: Gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };

/// An f32 output of 16-bit inputs is held to the gate of f32: its oracle reads the same rounded inputs. Paths on tensor cores round
/// decayed factors and features once more, to the type `factors`. Indices are exact.
fn gate(tensor: &Tensor, factors: DType) -> Gate {
    let kind = match tensor.kind {
        Kind::Float(DType::F32) => Kind::Float(factors),
        kind => kind,
    };
    match kind {
        Kind::Float(DType::F32) => Gate::F32,
        Kind::Float(DType::F16) => Gate::F16,
        Kind::Float(DType::Bf16) => Gate::BF16,
        Kind::I32 | Kind::U8 | Kind::E4m3 => Gate::EXACT,
    }
}

fn print_table(session: &Session, rows: &[Row]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["operation", "case", "output", "rel", "row", "max", "gate (rel)", "result"]);
    for row in rows {
        let cells = match row.errors {
            Some(errors) => errors.map(|e| format!("{e:.1e}")),
            None => ["non-finite differs", "", ""].map(String::from),
        };
        let result = if row.passes() { "ok" } else { "FAILS" };
        let [rel, worst_row, max] = cells;
        let gate = format!("{:.0e}", row.gate.rel);
        table.add_row([row.operation, &row.case, &row.output, &rel, &worst_row, &max, &gate, result]);
    }
    line(table)?;
    line(session.device_line())?;
    let passed = rows.iter().filter(|r| r.passes()).count();
    line(format_args!("{passed} of {} outputs within their gate", rows.len()))
}

fn print_json(session: &Session, rows: &[Row]) -> Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "operation": r.operation, "case": r.case, "output": r.output, "passes": r.passes(),
                "errors": r.errors.map(|[rel, row, inf]| json!({ "rel": rel, "row": row, "inf": inf })),
                "gate": { "rel": r.gate.rel, "row": r.gate.row, "inf": r.gate.inf },
            })
        })
        .collect();
    let results = json!({ "device": session.info.name, "emulated": session.info.emulated, "results": rows });
    line(format_args!("{results:#}"))
}
