//! A record as a table.

use crate::{Result, output::line};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lookback_bench::{Ceilings, Counts, Outcome, PREDICTED_FOR, Record, Row, Timing};

/// Prints where, and every case.
pub fn print(record: &Record) -> Result<()> {
    let device = &record.device;
    line(format_args!(
        "device: {}, compute capability {}, {} SMs, CUDA {}, {}, revision {}",
        device.name, device.compute_capability, device.sm_count, device.driver, record.date, record.commit
    ))?;
    match &record.ceilings {
        None => {
            line("emulated: counters, no times")?;
            line(format_args!("predicted us: arithmetic on the counters for {PREDICTED_FOR}; nothing was timed"))?;
        }
        Some(Ceilings { copy, read, products }) => {
            line(format_args!(
                "ceilings: copy {:.0} GB/s, read {:.0} GB/s, products by mma.sync {:.1} TFLOP/s",
                copy / 1e9,
                read / 1e9,
                products / 1e12
            ))?;
            let clocks: Vec<String> =
                device.clocks_mhz.iter().map(|(name, mhz)| format!("{} {mhz:.0}", name.replace('_', " "))).collect();
            if !clocks.is_empty() {
                line(format_args!("clocks in MHz: {}", clocks.join(", ")))?;
            }
        }
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let header: &[&str] = if device.emulated {
        &[
            "case",
            "bytes/floor",
            "flops/least",
            "sectors/ideal",
            "bank conflicts",
            "warp instructions",
            "mix in %",
            "floor us",
            "predicted us",
        ]
    } else {
        &["case", "floor us", "median us", "p90-p10", "% of floor", "GB/s", "TFLOP/s"]
    };
    table.set_header(header);
    for row in &record.cases {
        let cells = match &row.outcome {
            Outcome::Timed(timing) => timed(record, row, timing),
            Outcome::Counted(counts) => counted(record, row, counts),
            Outcome::Refused(why) => vec![format!("not run: {}", why.lines().next().unwrap_or_default())],
        };
        let numbers = cells.into_iter().map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
        table.add_row(std::iter::once(Cell::new(&row.name)).chain(numbers));
    }
    line(table)?;
    let ran = record.cases.iter().filter(|row| !matches!(row.outcome, Outcome::Refused(_))).count();
    line(format_args!("{ran} of {} cases ran", record.cases.len()))
}

/// A number where there is something to divide by.
fn over(part: f64, whole: u64) -> String {
    if whole > 0 { format!("{:.3}", part / whole as f64) } else { "-".into() }
}

fn timed(record: &Record, row: &Row, timing: &Timing) -> Vec<String> {
    let Timing { median_us, spread_us, graph, .. } = timing;
    let per_second = |work: u64, unit: f64| if work > 0 { work as f64 / (median_us / 1e6) / unit } else { 0.0 };
    let eager = if *graph { "" } else { " eager" };
    vec![
        format!("{:.1}", record.floor(row) * 1e6),
        format!("{median_us:.1}{eager}"),
        format!("{spread_us:.1}"),
        record.fraction(row).map_or("-".into(), |fraction| format!("{:.1}", 100.0 * fraction)),
        format!("{:.0}", per_second(row.bytes, 1e9)),
        if row.flops > 0 { format!("{:.1}", per_second(row.flops, 1e12)) } else { "-".into() },
    ]
}

fn counted(record: &Record, row: &Row, counts: &Counts) -> Vec<String> {
    let mix = counts.mix().into_iter().take(3);
    let mix: Vec<String> = mix.map(|(class, share)| format!("{class} {:.0}", 100.0 * share)).collect();
    vec![
        over(counts.unique_bytes() as f64, row.bytes),
        over(counts.number("tensor_flops") as f64, row.flops),
        format!("{:.2}", counts.sector_ratio()),
        counts.number("bank_conflicts").to_string(),
        counts.number("warp_instructions").to_string(),
        mix.join(", "),
        format!("{:.2}", record.floor(row) * 1e6),
        format!("{:.1}", counts.predicted_seconds() * 1e6),
    ]
}
