//! Assembling every kernel with NVIDIA's assembler, which needs no GPU, and holding the result to the contracts.
//!
//! Registers, spills and shared memory come from every target. Machine code is read for [`SASS_TARGET`] alone: the other
//! targets' code is nearly the same. What came out is kept below `target/ptx` under a key made of the text and the versions
//! of the tools, so that a second run assembles only what changed.

use crate::{
    occupancy, parallel, root,
    row::Row,
    sass::{self, Job, figures, listing::Listing},
    tools::Tools,
};
use lookback_kernels::{KERNELS, Kernel};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

/// Every target that a kernel is assembled for, where it can run there.
pub const TARGETS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];
/// The target whose machine code the committed figures are of.
pub const SASS_TARGET: &str = "sm_90a";

/// What ptxas used for one kernel on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    registers: u32,
    spill_bytes: u32,
    shared_bytes: u32,
}

/// A kernel and its figures.
pub type Measured = (&'static Kernel, Row);

/// One kernel on one target.
struct Assembly {
    kernel: &'static Kernel,
    target: &'static str,
    key: String,
    dir: PathBuf,
}

impl Assembly {
    fn file(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{}.{ending}", self.kernel.entry, self.target))
    }

    fn text(&self) -> PathBuf {
        self.dir.join(format!("{}.ptx", self.kernel.entry))
    }

    /// Whether its machine code is read.
    fn is_read(&self) -> bool {
        self.target == SASS_TARGET
    }

    /// What an earlier run found.
    fn kept(&self) -> Option<Used> {
        let line = fs::read_to_string(self.file("used")).ok()?;
        let mut words = line.split_whitespace();
        if words.next()? != self.key {
            return None;
        }
        let mut number = || words.next()?.parse().ok();
        Some(Used { registers: number()?, spill_bytes: number()?, shared_bytes: number()? })
    }

    /// The machine code, which must have been disassembled.
    fn listing(&self) -> Result<Listing, String> {
        let path = self.file("sass");
        sass::kept(&path, &self.key).ok_or_else(|| format!("{}: not what was written", path.display()))
    }
}

/// The figures of every kernel, in the order of the registry; machine code of [`SASS_TARGET`]. Fails on a spill and on a
/// budget exceeded.
pub fn measure() -> Result<Vec<Measured>, String> {
    let (tools, dir) = (Tools::find()?, directory()?);
    let assemblies = assemblies(&dir);
    let results = assemble_all(&tools, &assemblies)?;
    let problems: Vec<String> = assemblies.iter().zip(&results).flat_map(|(a, used)| over_budget(a, used)).collect();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let kernels: Vec<&'static Kernel> = KERNELS.iter().collect();
    let rows = parallel::map(&kernels, |kernel| {
        let mut row = Row::default();
        for (assembly, used) in assemblies.iter().zip(&results).filter(|(a, _)| a.kernel.entry == kernel.entry) {
            let shared = used.shared_bytes + kernel.dynamic_smem;
            row.set(&format!("regs {}", assembly.target), used.registers.into());
            if assembly.target == TARGETS[0] || row.get("shared") == 0 {
                row.set("shared", shared.into());
            }
            if assembly.is_read() {
                row.set("blocks", occupancy::blocks(used.registers, threads(kernel), shared).into());
                let title = |e: String| format!("{} for {SASS_TARGET}: {e}", kernel.entry);
                figures::measure(&assembly.listing().map_err(title)?, &mut row).map_err(title)?;
            }
        }
        Ok((*kernel, row))
    });
    let rows: Vec<Measured> = rows.into_iter().collect::<Result<_, String>>()?;
    let local: Vec<String> = rows
        .iter()
        .filter(|(_, r)| r.get("local") > 0)
        .map(|(k, _)| format!("{}: uses local memory", k.entry))
        .collect();
    if local.is_empty() { Ok(rows) } else { Err(local.join("\n")) }
}

/// Threads of a block.
pub fn threads(kernel: &Kernel) -> u32 {
    kernel.block.iter().product()
}

fn directory() -> Result<PathBuf, String> {
    let dir = root().join("target/ptx");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(dir)
}

fn assemblies(dir: &Path) -> Vec<Assembly> {
    let mut all = Vec::new();
    for kernel in KERNELS {
        let mut hasher = DefaultHasher::new();
        (Tools::version(), kernel.ptx()).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());
        for target in TARGETS.iter().filter(|target| runs(kernel, target)) {
            all.push(Assembly { kernel, target, key: key.clone(), dir: dir.to_path_buf() });
        }
    }
    all
}

/// Assembles what is not kept, and disassembles what is for [`SASS_TARGET`].
fn assemble_all(tools: &Tools, assemblies: &[Assembly]) -> Result<Vec<Used>, String> {
    let is_fresh = |a: &Assembly| a.kept().is_some() && (!a.is_read() || sass::kept(&a.file("sass"), &a.key).is_some());
    let stale: Vec<&Assembly> = assemblies.iter().filter(|a| !is_fresh(a)).collect();
    eprintln!("== ptxas: {} assemblies, {} of them kept", assemblies.len(), assemblies.len() - stale.len());
    for (i, assembly) in stale.iter().enumerate() {
        if i == 0 || stale[i - 1].kernel.entry != assembly.kernel.entry {
            let path = assembly.text();
            fs::write(&path, assembly.kernel.ptx().as_bytes()).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    let done = parallel::map(&stale, |a| assemble(&tools.ptxas, a));
    let problems: Vec<String> = done.into_iter().filter_map(Result::err).collect();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let read = stale.iter().filter(|a| a.is_read());
    let jobs: Vec<Job> =
        read.map(|a| Job { cubin: a.file("cubin"), sass: a.file("sass"), key: a.key.clone() }).collect();
    sass::disassemble(&tools.nvdisasm, SASS_TARGET, &directory()?, &jobs)?;
    let kept = |a: &Assembly| a.kept().ok_or_else(|| format!("{}: not what was written", a.file("used").display()));
    assemblies.iter().map(kept).collect()
}

/// A portable kernel runs on every target from its own up; an architecture-specific one on its own alone.
fn runs(kernel: &Kernel, target: &str) -> bool {
    if kernel.target.arch_specific {
        return kernel.target.to_string() == target;
    }
    target.trim_start_matches("sm_").trim_end_matches('a').parse().is_ok_and(|sm: u32| sm >= kernel.target.sm)
}

fn over_budget(assembly: &Assembly, used: &Used) -> Vec<String> {
    let Kernel { entry, budget, dynamic_smem, .. } = assembly.kernel;
    let target = assembly.target;
    let shared = used.shared_bytes + dynamic_smem;
    let checks = [
        (used.spill_bytes, 0, "bytes of spills and stack"),
        (used.registers, budget.regs, "registers"),
        (shared, budget.smem, "bytes of shared memory"),
    ];
    let over = checks.iter().filter(|(have, most, _)| have > most);
    over.map(|(have, most, what)| format!("{entry} for {target}: {have} {what}, budget {most}")).collect()
}

fn assemble(ptxas: &Path, assembly: &Assembly) -> Result<(), String> {
    let title = format!("{} for {}", assembly.kernel.entry, assembly.target);
    let cubin = assembly.file("cubin");
    let mut command = Command::new(ptxas);
    command.args(["--verbose", "--warning-as-error", "--gpu-name", assembly.target, "--output-file"]);
    let log = crate::command::capture(&title, command.arg(&cubin).arg(assembly.text()))?;
    let registers = number_before(&log, " registers").ok_or_else(|| format!("{title}: no register count in\n{log}"))?;
    let of = |what| number_before(&log, what).unwrap_or(0);
    let spills = of(" bytes spill stores") + of(" bytes spill loads") + of(" bytes stack frame");
    let line = format!("{} {registers} {spills} {}\n", assembly.key, of(" bytes smem"));
    if !assembly.is_read() {
        fs::remove_file(&cubin).map_err(|e| format!("{title}: {e}"))?;
    }
    fs::write(assembly.file("used"), line).map_err(|e| format!("{title}: {e}"))
}

fn number_before(log: &str, what: &str) -> Option<u32> {
    let before = &log[..log.find(what)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_log_are_those_before_the_words() {
        let log = "ptxas info    : Used 96 registers, used 1 barriers, 49152 bytes smem\n    0 bytes stack frame, 8 bytes spill stores";
        assert_eq!(number_before(log, " registers"), Some(96));
        assert_eq!(number_before(log, " bytes smem"), Some(49152));
        assert_eq!(number_before(log, " bytes spill stores"), Some(8));
        assert_eq!(number_before(log, " bytes spill loads"), None);
    }

    #[test]
    fn a_kernel_beyond_its_budget_is_named_with_target_and_figures() {
        let kernel = &KERNELS[0];
        let assembly = Assembly { kernel, target: "sm_80", key: String::new(), dir: PathBuf::new() };
        let within = Used { registers: kernel.budget.regs, spill_bytes: 0, shared_bytes: 0 };
        assert!(over_budget(&assembly, &within).is_empty());
        let spilled =
            over_budget(&assembly, &Used { registers: kernel.budget.regs + 1, spill_bytes: 8, shared_bytes: 0 });
        assert_eq!(spilled.len(), 2);
        assert!(spilled[0].contains("sm_80: 8 bytes of spills and stack, budget 0"), "{}", spilled[0]);
    }
}
