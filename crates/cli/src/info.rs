//! `lookback info`.

use crate::{CliError, Result, nccl::Alone, output::line, session::Session};
use comfy_table::{Table, presets};
use lookback_device::{DevicePick, function};
use lookback_kernels::KERNELS;

/// Prints the device and the kernels; with `load`, has the driver compile each.
pub fn info(pick: DevicePick, load: bool) -> Result<()> {
    let session = Session::open(pick)?;
    line(session.device_line())?;
    let version = session.info.driver_version;
    line(format_args!("driver: CUDA {}.{}", version / 1000, version % 1000 / 10))?;
    line(Alone::on(&session))?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["kernel", "target", "ptx", "block", "registers", "shared", "state"]);
    let mut refused = 0;
    for kernel in KERNELS {
        let state = match load.then(|| function(&session.context, kernel)) {
            _ if !kernel.target.runs_on(session.info.compute_capability) => "not for this device".into(),
            None => "runs here".into(),
            Some(Ok(_)) => "loads".into(),
            Some(Err(error)) => {
                refused += 1;
                error.to_string()
            }
        };
        table.add_row([
            kernel.entry.to_string(),
            kernel.target.to_string(),
            format!("{}.{}", kernel.ptx_version.0, kernel.ptx_version.1),
            kernel.block.iter().product::<u32>().to_string(),
            format!("<= {}", kernel.budget.regs),
            format!("<= {}", kernel.budget.smem),
            state,
        ]);
    }
    line(table)?;
    line(format_args!("{} kernels", KERNELS.len()))?;
    if refused > 0 { Err(CliError::Failed(format!("{refused} kernels do not load"))) } else { Ok(()) }
}
