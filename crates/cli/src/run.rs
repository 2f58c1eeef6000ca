//! `lookback run`: one operation on the user's own tensors.

use crate::{
    CliError, Result,
    ops::{self, Inputs, Operation},
    output::{line, note},
    session::Session,
    tensor,
};
use clap::Args;
use lookback_device::{DevicePick, emulator};
use lookback_ring::World;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `lookback run`.
#[derive(Args)]
pub struct Arguments {
    /// The operation; `--list` names them.
    #[arg(required_unless_present = "list")]
    operation: Option<String>,
    /// File with the input tensors.
    #[arg(long = "in", value_name = "FILE", required_unless_present = "list")]
    input: Option<PathBuf>,
    /// File for the output tensors.
    #[arg(long = "out", value_name = "FILE", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Sets an attribute.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    attributes: Vec<String>,
    /// File for what the emulator counted, as JSON.
    #[arg(long, value_name = "FILE")]
    counters: Option<PathBuf>,
    /// Prints every operation with its tensors, shapes and attributes.
    #[arg(long)]
    list: bool,
    /// Prints the list as JSON.
    #[arg(long, requires = "list")]
    json: bool,
}

/// Runs the operation, or lists all.
pub fn run(pick: DevicePick, arguments: &Arguments) -> Result<()> {
    if arguments.list {
        return list(arguments.json);
    }
    // clap has made sure of all three.
    let (Some(name), Some(input), Some(output)) = (&arguments.operation, &arguments.input, &arguments.output) else {
        return Err(CliError::Input("run wants an operation, --in and --out".into()));
    };
    if arguments.counters.as_ref() == Some(output) {
        return Err(CliError::input("--counters", "names the same file as --out"));
    }
    let operation = ops::find(name)?;
    let inputs = Inputs::new(operation, tensor::read(input)?, &arguments.attributes)?;
    let session = open(pick)?;
    note(session.device_line());
    if arguments.counters.is_some() && !session.info.emulated {
        return Err(CliError::Input("--counters: only the emulator counts; add --device emulated".into()));
    }
    emulator::set_option("counting", "full");
    emulator::reset_counters();
    let outputs = (operation.run)(&session, &inputs)?;
    if let Some(path) = &arguments.counters {
        let counters = emulator::counters().ok_or_else(|| CliError::Failed("the emulator gave no counters".into()))?;
        std::fs::write(path, counters).map_err(|e| CliError::input(path.display(), e))?;
    }
    // Every process of a launched operation has the whole result; the first one writes it.
    if World::from_env()?.is_some_and(|world| world.rank > 0) {
        return Ok(());
    }
    tensor::write(output, &outputs)
}

/// Processes of a launcher take a GPU of their machine each, as far as there are so many and nobody says otherwise.
fn open(pick: DevicePick) -> Result<Session> {
    let is_free = pick == DevicePick::Auto && std::env::var_os("LOOKBACK_DEVICE").is_none();
    if let Some(world) = World::from_env()?.filter(|_| is_free)
        && let Ok(session) = Session::open(DevicePick::Cuda(world.local_rank))
    {
        return Ok(session);
    }
    Session::open(pick)
}

fn list(as_json: bool) -> Result<()> {
    if as_json {
        let tensor = |t: &ops::TensorSpec| json!({ "name": t.name, "type": t.dtype, "shape": t.shape, "optional": t.optional, "about": t.about });
        let attribute = |a: &ops::AttributeSpec| json!({ "name": a.name, "values": a.values, "default": a.default, "about": a.about });
        let operation = |o: &&Operation| {
            json!({
                "name": o.name, "about": o.about,
                "inputs": o.inputs.iter().map(tensor).collect::<Vec<_>>(),
                "attributes": o.attributes.iter().map(attribute).collect::<Vec<_>>(),
                "outputs": o.outputs.iter().map(tensor).collect::<Vec<_>>(),
            })
        };
        let all: serde_json::Value = ops::ALL.iter().map(operation).collect();
        return line(format_args!("{all:#}"));
    }
    for operation in ops::ALL {
        line(format_args!("{}: {}", operation.name, operation.about))?;
        for (title, tensors) in [("in ", operation.inputs), ("out", operation.outputs)] {
            for t in tensors {
                let optional = if t.optional { "?" } else { "" };
                line(format_args!(
                    "  {title} {:<18} {:<14} {:<14} {}",
                    format!("{}{optional}", t.name),
                    t.dtype,
                    t.shape,
                    t.about
                ))?;
            }
        }
        for a in operation.attributes {
            line(format_args!("  set {:<18} {:<29} {} (default {})", a.name, a.values, a.about, a.default))?;
        }
    }
    Ok(())
}
