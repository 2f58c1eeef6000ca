//! `lookback bench ring`: bytes and steps of every schedule, what a model of the machine makes of them, and what this device does.

mod measured;

use crate::{Result, nccl::Alone, output::line, session::Session};
use clap::Args;
use comfy_table::{Table, presets};
use lookback_device::DevicePick;
use lookback_ring::{
    Visible,
    attention::Shape,
    cost::{Estimate, Machine, Sizes, candidates},
    schedule::{Kind, Pass},
};
use measured::{Job, Times, measure};
use serde_json::{Value, json};

/// Tokens of the sequence, which sees causally.
const TOKENS: usize = 32_768;
/// Query heads and key heads.
const HEADS: (usize, usize) = (32, 8);
/// Entries of a head, of two bytes each.
const SIZES: Sizes = Sizes { head_dim: 128, value_dim: 128, element: 2 };
/// Numbers of ranks.
const RANKS: [usize; 3] = [2, 4, 8];
/// The machine of the model.
const MACHINE: Machine = Machine::HOPPER;
/// Ranks of one device that are measured.
const MEASURED_RANKS: [usize; 2] = [2, 4];
/// Tokens, query heads, key heads and entries of a head where only the way is walked.
const SMALL: [usize; 4] = [128, 4, 4, 32];
/// Why no time is a measured one.
const UNMEASURED: &str = "nothing was measured, that takes a GPU: times are the model's";
/// What a measured time is worth.
const SHARED: &str = "measured: ranks are threads that share one GPU, messages pass through host memory; several GPUs would take other times";

/// Arguments of `lookback bench ring`.
#[derive(Args)]
pub struct Arguments {
    /// Prints the results as JSON.
    #[arg(long)]
    json: bool,
    /// Also on the emulator, runs every schedule in the parts that a GPU would be measured by: small, and without times.
    #[arg(long)]
    measure: bool,
}

/// One number of ranks, one way through: every schedule, the best first.
struct Group {
    ranks: usize,
    pass: Pass,
    rows: Vec<Row>,
}

/// A schedule.
struct Row {
    estimate: Estimate,
    /// Whether it has run here.
    has_run: bool,
    times: Option<Times>,
}

/// What this device can show.
struct Here {
    session: Option<Session>,
    nccl: Alone,
}

impl Here {
    /// Without a device there is the model.
    fn new(pick: DevicePick, is_wanted: bool) -> Result<Self> {
        let opened = Session::open(pick);
        if pick != DevicePick::Auto || is_wanted {
            let session = opened?;
            return Ok(Self {
                nccl: Alone::on(&session),
                session: Some(session).filter(|s| is_wanted || !s.info.emulated),
            });
        }
        let nccl = opened.as_ref().map_or_else(|e| Alone::Skipped(e.to_string()), Alone::on);
        Ok(Self { nccl, session: opened.ok().filter(|session| !session.info.emulated) })
    }

    /// A row of the table, run here if it is the best partition of a forward schedule on few ranks.
    fn row(&self, ranks: usize, pass: Pass, before: &[Row], estimate: Estimate) -> Result<Row> {
        let is_best = before.iter().all(|row| row.estimate.kind != estimate.kind);
        let session =
            self.session.as_ref().filter(|_| is_best && pass == Pass::Forward && MEASURED_RANKS.contains(&ranks));
        let Some(session) = session else { return Ok(Row { estimate, has_run: false, times: None }) };
        let (heads, key_heads) = HEADS;
        let full = [TOKENS, heads, key_heads, SIZES.head_dim];
        let [tokens, heads, key_heads, width] = if session.info.emulated { SMALL } else { full };
        let shape = Shape { batch: 1, heads, key_heads, head_dim: width, value_dim: width };
        let Estimate { kind, partition, .. } = estimate;
        let times = measure(session, &Job { shape, tokens, ranks, kind, partition })?;
        Ok(Row { estimate, has_run: true, times })
    }
}

/// Prints what every schedule costs.
pub fn bench(pick: DevicePick, arguments: &Arguments) -> Result<()> {
    let here = Here::new(pick, arguments.measure)?;
    let visible = Visible::causal(TOKENS);
    let mut groups = Vec::new();
    for ranks in RANKS {
        for pass in [Pass::Forward, Pass::Backward] {
            let estimates = candidates(pass, TOKENS, ranks, HEADS, &visible, &SIZES, &MACHINE)?;
            let mut rows = Vec::new();
            for estimate in estimates {
                rows.push(here.row(ranks, pass, &rows, estimate)?);
            }
            groups.push(Group { ranks, pass, rows });
        }
    }
    if arguments.json {
        print_json(&groups, &here)?
    } else {
        print_tables(&groups, &here)?
    }
    match here.nccl {
        Alone::Failed(error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// What is said of times that are there, or are not.
fn note(groups: &[Group]) -> &'static str {
    if is_measured(groups) { SHARED } else { UNMEASURED }
}

fn is_measured(groups: &[Group]) -> bool {
    groups.iter().flat_map(|group| &group.rows).any(|row| row.times.is_some())
}

/// A pass in one word.
fn pass_word(pass: Pass) -> &'static str {
    match pass {
        Pass::Forward => "forward",
        Pass::Backward => "backward",
    }
}

/// A schedule as `--set schedule=` takes it, with the number that goes with it.
fn words(kind: Kind) -> String {
    match kind {
        Kind::Ring => "ring".into(),
        Kind::Bidirectional => "bidirectional".into(),
        Kind::TwoLevel { node } => format!("two_level node={node}"),
        Kind::TokenRing => "tokenring".into(),
        Kind::AllGather { groups } => format!("allgather groups={groups}"),
        Kind::Ulysses => "ulysses".into(),
    }
}

fn print_tables(groups: &[Group], here: &Here) -> Result<()> {
    let (heads, key_heads) = HEADS;
    let Sizes { head_dim, element, .. } = SIZES;
    line(format_args!(
        "{TOKENS} tokens, causal, {heads} query heads, {key_heads} key heads, {head_dim} entries of {element} bytes"
    ))?;
    for Group { ranks, pass, rows } in groups {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "schedule",
            "partition",
            "steps",
            "MB on a link",
            "MB in all",
            "compute us",
            "exposed us",
            "predicted us",
            "measured us",
            "alone us",
            "moving us",
            "hidden",
        ]);
        for Row { estimate, times, .. } in rows {
            let measured = |of: fn(&Times) -> String| times.as_ref().map_or("-".into(), of);
            let megabytes = |bytes: u64| format!("{:.2}", bytes as f64 / 1e6);
            let micros = |seconds: f64| format!("{:.1}", seconds * 1e6);
            table.add_row([
                words(estimate.kind),
                format!("{:?}", estimate.partition).to_lowercase(),
                estimate.steps.to_string(),
                megabytes(estimate.link_bytes),
                megabytes(estimate.total_bytes),
                micros(estimate.compute),
                micros(estimate.exposed),
                micros(estimate.total()),
                measured(|times| format!("{:.1}", times.both * 1e6)),
                measured(|times| format!("{:.1}", times.compute * 1e6)),
                measured(|times| format!("{:.1}", times.transfers * 1e6)),
                measured(|times| format!("{:.0} %", times.overlap() * 100.0)),
            ]);
        }
        line(format_args!("\n{} pass on {ranks} ranks", pass_word(*pass)))?;
        line(table)?;
    }
    let Machine { flops, link, latency, .. } = MACHINE;
    line(format_args!(
        "\nmodel: Hopper GPUs on a switch, {:.0} TFLOP/s, {:.0} GB/s a port each way, {:.0} us before a step's first byte",
        flops / 1e12,
        link / 1e9,
        latency * 1e6
    ))?;
    line(note(groups))?;
    line(&here.nccl)
}

fn print_json(groups: &[Group], here: &Here) -> Result<()> {
    let row = |group: &Group, Row { estimate, has_run, times }: &Row| {
        let seconds = |of: fn(&Times) -> f64| times.as_ref().map(of);
        json!({
            "ranks": group.ranks,
            "pass": pass_word(group.pass),
            "schedule": words(estimate.kind),
            "partition": format!("{:?}", estimate.partition).to_lowercase(),
            "steps": estimate.steps,
            "link_bytes": estimate.link_bytes,
            "total_bytes": estimate.total_bytes,
            "compute_seconds": estimate.compute,
            "exposed_seconds": estimate.exposed,
            "predicted_seconds": estimate.total(),
            "has_run": has_run,
            "measured_seconds": seconds(|times| times.both),
            "measured_compute_seconds": seconds(|times| times.compute),
            "measured_transfer_seconds": seconds(|times| times.transfers),
            "measured_exposed_seconds": seconds(Times::exposed),
            "overlap": seconds(Times::overlap),
        })
    };
    let results: Vec<Value> = groups.iter().flat_map(|g| g.rows.iter().map(move |r| row(g, r))).collect();
    let (heads, key_heads) = HEADS;
    let Machine { flops, link, node_link, latency, node, .. } = MACHINE;
    let all = json!({
        "family": "ring",
        "shape": {
            "tokens": TOKENS, "mask": "causal", "heads": heads, "key_heads": key_heads,
            "head_dim": SIZES.head_dim, "value_dim": SIZES.value_dim, "element_bytes": SIZES.element,
        },
        "model": {
            "machine": "hopper", "topology": "switch", "node_ranks": node, "flops": flops,
            "link_bytes_per_second": link, "node_link_bytes_per_second": node_link, "latency_seconds": latency,
        },
        "measured": is_measured(groups),
        "note": note(groups),
        "nccl": here.nccl.to_string(),
        "results": results,
    });
    line(format_args!("{all:#}"))
}
