//! `lookback bench ring`: bytes and steps of every schedule, and what a model of the machine makes of them.

use crate::{Result, output::line};
use clap::Args;
use comfy_table::{Table, presets};
use lookback_ring::{
    Visible,
    cost::{Estimate, Machine, Sizes, candidates},
    schedule::{Kind, Pass},
};
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
/// Why no time is a measured one.
const UNMEASURED: &str = "nothing was measured, that takes several GPUs: times are the model's";

/// Arguments of `lookback bench ring`.
#[derive(Args)]
pub struct Arguments {
    /// Prints the results as JSON.
    #[arg(long)]
    json: bool,
}

/// One number of ranks, one way through: every schedule, the best first.
struct Group {
    ranks: usize,
    pass: Pass,
    estimates: Vec<Estimate>,
}

/// Prints what every schedule costs.
pub fn bench(arguments: &Arguments) -> Result<()> {
    let visible = Visible::causal(TOKENS);
    let mut groups = Vec::new();
    for ranks in RANKS {
        for pass in [Pass::Forward, Pass::Backward] {
            let estimates = candidates(pass, TOKENS, ranks, HEADS, &visible, &SIZES, &MACHINE)?;
            groups.push(Group { ranks, pass, estimates });
        }
    }
    if arguments.json { print_json(&groups) } else { print_tables(&groups) }
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

fn print_tables(groups: &[Group]) -> Result<()> {
    let (heads, key_heads) = HEADS;
    let Sizes { head_dim, element, .. } = SIZES;
    line(format_args!(
        "{TOKENS} tokens, causal, {heads} query heads, {key_heads} key heads, {head_dim} entries of {element} bytes"
    ))?;
    for Group { ranks, pass, estimates } in groups {
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
        ]);
        for estimate in estimates {
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
                "-".into(),
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
    line(UNMEASURED)
}

fn print_json(groups: &[Group]) -> Result<()> {
    let row = |group: &Group, estimate: &Estimate| {
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
            "measured_seconds": Value::Null,
        })
    };
    let results: Vec<Value> = groups.iter().flat_map(|g| g.estimates.iter().map(move |e| row(g, e))).collect();
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
        "measured": false,
        "note": UNMEASURED,
        "results": results,
    });
    line(format_args!("{all:#}"))
}
