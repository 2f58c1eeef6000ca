//! What can go wrong outside of a comparison.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device layer failed.
    #[error(transparent)]
    Device(#[from] lookback_device::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A record is not what this program writes.
    #[error("{path}: {what}", path = path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// A text of the registry is not accepted by the emulator.
    #[error("{kernel}: {what}")]
    Kernel {
        /// Entry of the kernel.
        kernel: String,
        /// The parser's or decoder's message.
        what: String,
    },
}

impl Error {
    /// An input or output error of a path.
    pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        |source| Self::File { path, source }
    }
}
