//! The folder of launch files.

use crate::{CliError, Result};
use lookback_kernels::Kernel;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Writes below one folder; equal contents are written once.
pub struct Folder {
    root: PathBuf,
    written: BTreeSet<String>,
    bytes: u64,
}

impl Folder {
    /// Makes the folder if it is not there.
    pub fn create(root: &Path) -> Result<Self> {
        for sub in ["ptx", "data"] {
            let path = root.join(sub);
            fs::create_dir_all(&path).map_err(|e| CliError::input(path.display(), e))?;
        }
        Ok(Self { root: root.to_path_buf(), written: BTreeSet::new(), bytes: 0 })
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes what was copied to the device, or read from it; gives its path in the folder.
    pub fn write_data(&mut self, contents: &[u8]) -> Result<String> {
        // Fowler, Noll and Vo's hash, 1a.
        let hash = contents
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        self.write(format!("data/{hash:016x}-{}.bin", contents.len()), contents)
    }

    /// Writes the text of a kernel; gives its path in the folder.
    pub fn write_kernel(&mut self, kernel: &Kernel) -> Result<String> {
        self.write(format!("ptx/{}.ptx", kernel.entry), kernel.ptx().as_bytes())
    }

    /// Writes a case.
    pub fn write_case(&mut self, name: &str, case: &Value) -> Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        let slug: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        self.write(format!("{slug}.json"), format!("{case:#}\n").as_bytes()).map(drop)
    }

    fn write(&mut self, name: String, contents: &[u8]) -> Result<String> {
        if !self.written.contains(&name) {
            let path = self.root.join(&name);
            fs::write(&path, contents).map_err(|e| CliError::input(path.display(), e))?;
            self.bytes += contents.len() as u64;
            self.written.insert(name.clone());
        }
        Ok(name)
    }
}
