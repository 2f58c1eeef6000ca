//! From templates to registry: read, render each variant, check its contract, write Rust.
//!
//! The modules are shared with the tests, which feed them broken contracts.

pub mod contract;
pub mod emit;
pub mod render;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Deflate level of the texts in the registry: a ninth of the size, and a build script that stays quick.
const PACKING_LEVEL: u8 = 6;

/// What is wrong, and where: printed as `kernels/scan/file.ptx:12: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// File, relative to the workspace.
    pub file: String,
    /// Line in the template, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What was wanted and what came.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// One kernel template, read from disk.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path as shown in errors, e.g. `kernels/scan/gated_scan_fwd.ptx`.
    pub file: String,
    /// Folder below `kernels/`, e.g. `scan`.
    pub family: String,
    /// The template.
    pub text: String,
}

/// One variant of a kernel, rendered and checked.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// Folder below `kernels/`.
    pub family: String,
    /// The checked contract of this variant.
    pub contract: contract::Contract,
    /// Values of the variant keys, in the contract's order.
    pub variant: Vec<(String, String)>,
    /// Complete PTX text.
    pub ptx: String,
}

/// Renders everything below `kernels` and writes `registry.rs` and the PTX texts into `out`.
pub fn registry(kernels: &Path, out: &Path) -> Result<(), Vec<Error>> {
    let io = |path: &Path, error: std::io::Error| {
        vec![Error { file: path.display().to_string(), line: 0, message: error.to_string() }]
    };
    let mut macros = Vec::new();
    let mut sources = Vec::new();
    for path in ptx_files(kernels).map_err(|e| io(kernels, e))? {
        let text = fs::read_to_string(&path).map_err(|e| io(&path, e))?;
        let family = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        if family == "tile" {
            let name = format!("tile/{}", path.file_name().unwrap_or_default().to_string_lossy());
            macros.push((name, text));
        } else {
            sources.push(Source { file: path.display().to_string().replace('\\', "/"), family, text });
        }
    }
    let rendered = render_all(&macros, &sources)?;
    for kernel in &rendered {
        // The text as it is for people to read, and packed for the registry.
        let path = out.join(format!("{}.ptx", kernel.contract.entry));
        fs::write(&path, &kernel.ptx).map_err(|e| io(&path, e))?;
        let path = out.join(format!("{}.deflate", kernel.contract.entry));
        let packed = miniz_oxide::deflate::compress_to_vec(kernel.ptx.as_bytes(), PACKING_LEVEL);
        fs::write(&path, packed).map_err(|e| io(&path, e))?;
    }
    let path = out.join("registry.rs");
    fs::write(&path, emit::registry(&rendered)).map_err(|e| io(&path, e))
}

/// Renders every variant of every source; reports all the errors at once.
pub fn render_all(macros: &[(String, String)], sources: &[Source]) -> Result<Vec<Rendered>, Vec<Error>> {
    let mut errors = Vec::new();
    let mut all = Vec::new();
    for source in sources {
        match render::variants(macros, source) {
            Ok(rendered) => all.extend(rendered),
            Err(error) => errors.push(error),
        }
    }
    let mut seen = std::collections::BTreeMap::new();
    for kernel in &all {
        if let Some(other) = seen.insert(kernel.contract.entry.clone(), kernel.contract.file.clone()) {
            errors.push(Error {
                file: kernel.contract.file.clone(),
                line: kernel.contract.line_of("entry"),
                message: format!("entry {} is rendered twice, also by {other}", kernel.contract.entry),
            });
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

fn ptx_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(ptx_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "ptx") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
