//! Machine code: disassembled, read, counted.
//!
//! nvdisasm takes a fifth of a second to start and little for an instruction, so that one call gets the code of many kernels,
//! one after the other, as raw instructions: all variants for one target in seven seconds on two cores instead of ninety.

pub mod class;
pub mod cubin;
pub mod figures;
pub mod listing;
#[cfg(test)]
mod tests;

use crate::{command, parallel};
use listing::Listing;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A kernel's cubin, and the text in which its disassembly is kept for the next run, under a key.
pub struct Job {
    /// What ptxas wrote.
    pub cubin: PathBuf,
    /// Where the disassembly goes.
    pub sass: PathBuf,
    /// What the disassembly is of: other keys do not match.
    pub key: String,
}

/// The disassembly kept under that key, if there is one.
pub fn kept(path: &Path, key: &str) -> Option<Listing> {
    let text = fs::read_to_string(path).ok()?;
    let (head, body) = text.split_once('\n')?;
    let mut words = head.strip_prefix("// ")?.split(' ');
    if words.next()? != key {
        return None;
    }
    let tables: Option<Vec<u32>> = words.map(|w| u32::from_str_radix(w, 16).ok()).collect();
    Some(Listing { instructions: listing::instructions(body, 0).ok()?, tables: tables? })
}

/// Disassembles all, for one target; every listing is kept. The cubins are removed.
pub fn disassemble(nvdisasm: &Path, target: &str, dir: &Path, jobs: &[Job]) -> Result<(), String> {
    let share = jobs.len().div_ceil(parallel::cores()).max(1);
    // Neighbours in the list are variants of one kernel and alike in size: dealt out in turn, all parts take as long.
    let parts: Vec<(usize, Vec<&Job>)> = (0..jobs.len().div_ceil(share))
        .map(|part| (part, jobs.iter().skip(part).step_by(jobs.len().div_ceil(share)).collect()))
        .collect();
    let done = parallel::map(&parts, |(part, jobs)| {
        let raw = dir.join(format!("{target}.{part}.bin"));
        let done = disassemble_part(nvdisasm, target, &raw, jobs);
        // The scratch file may be absent where reading a cubin failed.
        drop(fs::remove_file(&raw));
        done
    });
    done.into_iter().collect()
}

fn disassemble_part(nvdisasm: &Path, target: &str, raw: &Path, jobs: &[&Job]) -> Result<(), String> {
    let io = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let mut codes = Vec::new();
    for job in jobs {
        let file = fs::read(&job.cubin).map_err(|e| io(&job.cubin, e))?;
        codes.push(cubin::read(&file).map_err(|e| format!("{}: {e}", job.cubin.display()))?);
    }
    let bytes: Vec<u8> = codes.iter().flat_map(|c| c.bytes.iter().copied()).collect();
    fs::write(raw, &bytes).map_err(|e| io(raw, e))?;
    let mut command = Command::new(nvdisasm);
    // Without dataflow: it would look for the tables of indirect branches, which raw instructions do not have.
    command.args(["--no-dataflow", "--binary", &target.replace("sm_", "SM")]).arg(raw);
    let text = command::capture(&format!("nvdisasm for {target}"), &mut command)?;
    let lines: Vec<&str> = text.lines().filter(|l| l.trim_start().starts_with("/*")).collect();
    if lines.len() * 16 != bytes.len() {
        return Err(format!("nvdisasm for {target}: {} instructions of {} bytes", lines.len(), bytes.len()));
    }
    let mut lines = lines.into_iter();
    let mut base = 0;
    for (job, code) in jobs.iter().zip(&codes) {
        let count = code.bytes.len() / 16;
        let own = lines.by_ref().take(count).collect::<Vec<_>>().join("\n");
        let mut kept = format!("// {}", job.key);
        code.tables.iter().for_each(|address| kept.push_str(&format!(" {address:x}")));
        for instruction in listing::instructions(&own, base)? {
            kept.push_str(&format!("\n{instruction}"));
        }
        fs::write(&job.sass, kept).map_err(|e| io(&job.sass, e))?;
        fs::remove_file(&job.cubin).map_err(|e| io(&job.cubin, e))?;
        base += code.bytes.len() as u32;
    }
    Ok(())
}
