//! Assembling every kernel with NVIDIA's assembler, which needs no GPU, and holding the result to the contracts.
//!
//! ptxas comes from a Python wheel in a throw-away environment below `target/`; nothing of it reaches cargo's own path.

use crate::{command, root};
use lookback_kernels::{KERNELS, Kernel};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

const WHEEL: &str = "nvidia-cuda-nvcc==13.0.88";
const TARGETS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];
const TABLE: &str = "docs/resources.md";

/// What ptxas used for one kernel on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    registers: u32,
    spill_bytes: u32,
    shared_bytes: u32,
}

/// Assembles all; fails on a spill, on a budget exceeded, and on a table that is not up to date unless `bless` is set.
pub fn run(bless: bool) -> Result<(), String> {
    let ptxas = ptxas()?;
    let dir = root().join("target/ptx");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let jobs: Vec<(&Kernel, &str)> =
        KERNELS.iter().flat_map(|k| TARGETS.iter().filter(|t| runs(k, t)).map(move |t| (k, *t))).collect();
    eprintln!("== ptxas: {} kernels, {} assemblies", KERNELS.len(), jobs.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; jobs.len()]);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some((kernel, target)) = jobs.get(i) else { break };
                    let used = assemble(&ptxas, &dir, kernel, target);
                    results.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(used);
                }
            });
        }
    });
    let results: Vec<Result<Used, String>> =
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect();
    let mut problems: Vec<String> = results.iter().filter_map(|r| r.as_ref().err().cloned()).collect();
    for ((kernel, target), used) in jobs.iter().zip(&results).filter_map(|(j, r)| r.as_ref().ok().map(|u| (j, u))) {
        let Kernel { entry, budget, .. } = kernel;
        if used.spill_bytes > 0 {
            problems.push(format!("{entry} for {target}: spills {} bytes", used.spill_bytes));
        }
        if used.registers > budget.regs {
            problems.push(format!("{entry} for {target}: {} registers, budget {}", used.registers, budget.regs));
        }
        let shared = used.shared_bytes + kernel.dynamic_smem;
        if shared > budget.smem {
            problems.push(format!("{entry} for {target}: {shared} bytes of shared memory, budget {}", budget.smem));
        }
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let table = table(&jobs, &results);
    let path = root().join(TABLE);
    if bless {
        return fs::write(&path, table).map_err(|e| format!("{TABLE}: {e}"));
    }
    if fs::read_to_string(&path).ok().as_deref() != Some(&table) {
        return Err(format!("{TABLE} is not what ptxas gives now; look at the difference after `cargo xtask bless`"));
    }
    eprintln!("== ptxas: no spills, all within budget");
    Ok(())
}

/// A portable kernel runs on every target from its own up; an architecture-specific one on its own alone.
fn runs(kernel: &Kernel, target: &str) -> bool {
    if kernel.target.arch_specific {
        return kernel.target.to_string() == target;
    }
    target.trim_start_matches("sm_").trim_end_matches('a').parse().is_ok_and(|sm: u32| sm >= kernel.target.sm)
}

fn assemble(ptxas: &Path, dir: &Path, kernel: &Kernel, target: &str) -> Result<Used, String> {
    let text = dir.join(format!("{}.{target}.ptx", kernel.entry));
    let title = format!("{} for {target}", kernel.entry);
    fs::write(&text, kernel.ptx().as_bytes()).map_err(|e| format!("{title}: {e}"))?;
    let mut command = Command::new(ptxas);
    command.args(["--verbose", "--warning-as-error", "--gpu-name", target, "--output-file"]);
    let log = command::capture(&title, command.arg(text.with_extension("cubin")).arg(&text))?;
    let registers = number_before(&log, " registers").ok_or_else(|| format!("{title}: no register count in\n{log}"))?;
    Ok(Used {
        registers,
        spill_bytes: number_before(&log, " bytes spill stores").unwrap_or(0)
            + number_before(&log, " bytes spill loads").unwrap_or(0)
            + number_before(&log, " bytes stack frame").unwrap_or(0),
        shared_bytes: number_before(&log, " bytes smem").unwrap_or(0),
    })
}

fn number_before(log: &str, what: &str) -> Option<u32> {
    let before = &log[..log.find(what)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn table(jobs: &[(&Kernel, &str)], results: &[Result<Used, String>]) -> String {
    let mut text = String::from(
        "# Resources of every kernel\n\nRegisters of a thread by target, as ptxas 13.0.88 assembles it; no kernel spills. \
         Shared memory is static plus dynamic bytes of a block. `cargo xtask bless` writes this file, `cargo xtask ptxas` \
         checks it.\n\n| kernel | block | shared |",
    );
    for target in TARGETS {
        let _ = write!(text, " {target} |");
    }
    text.push_str(" budget |\n|---|---|---|");
    text.push_str(&"---|".repeat(TARGETS.len() + 1));
    for kernel in KERNELS {
        let used = |t: &&str| {
            let at = jobs.iter().position(|(k, target)| k.entry == kernel.entry && target == t)?;
            results[at].as_ref().ok().copied()
        };
        let shared = TARGETS.iter().find_map(used).map_or(0, |u| u.shared_bytes) + kernel.dynamic_smem;
        let _ = write!(text, "\n| {} | {} | {shared} |", kernel.entry, kernel.block.iter().product::<u32>());
        for target in TARGETS {
            let _ = write!(text, " {} |", used(&target).map_or("-".into(), |u| u.registers.to_string()));
        }
        let _ = write!(text, " {} |", kernel.budget.regs);
    }
    text.push('\n');
    text
}

/// The assembler, installed on first use.
fn ptxas() -> Result<PathBuf, String> {
    let venv = root().join("target/ptxas-venv");
    if let Some(found) = find(&venv, "ptxas") {
        return Ok(found);
    }
    let mut create = Command::new("python3");
    command::show("python environment", create.args(["-m", "venv"]).arg(&venv))?;
    let mut install = Command::new(venv.join("bin/python"));
    command::show("install ptxas", install.args(["-m", "pip", "install", "--quiet", WHEEL]))?;
    find(&venv, "ptxas").ok_or_else(|| format!("{WHEEL} holds no ptxas"))
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(dir).ok()?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    let here = entries.iter().find(|p| p.is_file() && p.file_name().is_some_and(|n| n == name)).cloned();
    here.or_else(|| entries.iter().filter(|p| p.is_dir() && !p.is_symlink()).find_map(|p| find(p, name)))
}
