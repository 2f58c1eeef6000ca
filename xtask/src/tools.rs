//! NVIDIA's assembler and disassembler, which need no GPU.
//!
//! They come from Python wheels in a throw-away environment below `target/`; nothing of it reaches cargo's own path.

use crate::{command, root};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Version by version: figures are only comparable between the same tools.
const WHEELS: [&str; 2] = ["nvidia-cuda-nvcc==13.0.88", "nvidia-cuda-nvdisasm==13.5.37"];

/// Where the tools are.
pub struct Tools {
    /// The assembler.
    pub ptxas: PathBuf,
    /// The disassembler.
    pub nvdisasm: PathBuf,
}

impl Tools {
    /// The tools, installed on first use.
    pub fn find() -> Result<Self, String> {
        let venv = root().join("target/ptxas-venv");
        let here = || Some(Self { ptxas: find(&venv, "ptxas")?, nvdisasm: find(&venv, "nvdisasm")? });
        if let Some(tools) = here() {
            return Ok(tools);
        }
        let mut create = Command::new("python3");
        command::show("python environment", create.args(["-m", "venv"]).arg(&venv))?;
        let mut install = Command::new(venv.join("bin/python"));
        command::show("install ptxas", install.args(["-m", "pip", "install", "--quiet"]).args(WHEELS))?;
        here().ok_or_else(|| format!("no ptxas or no nvdisasm in {}", WHEELS.join(", ")))
    }

    /// What the results depend on besides the text.
    pub fn version() -> String {
        WHEELS.join(" ")
    }
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(dir).ok()?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    let here = entries.iter().find(|p| p.is_file() && p.file_name().is_some_and(|n| n == name)).cloned();
    here.or_else(|| entries.iter().filter(|p| p.is_dir() && !p.is_symlink()).find_map(|p| find(p, name)))
}
