//! What can be said of NCCL on one device.

use crate::session::Session;
use lookback_device::Error;

/// What a world of one rank did.
pub enum Alone {
    /// It sent itself a message; the library's version, as in 2.23.4.
    #[cfg_attr(not(feature = "nccl"), expect(dead_code, reason = "nothing else makes one"))]
    Works(String),
    /// Nothing was tried, and why.
    Skipped(String),
    /// The library is there and a GPU, and it did not work.
    #[cfg_attr(not(feature = "nccl"), expect(dead_code, reason = "nothing else makes one"))]
    Failed(Error),
}

impl Alone {
    /// Tries it, where there is something to try.
    #[cfg(feature = "nccl")]
    pub fn on(session: &Session) -> Self {
        match lookback_ring::transport::nccl_alone(&session.context) {
            Ok(version) => {
                let (major, rest) = (version / 10_000, version % 10_000);
                Self::Works(format!("{major}.{}.{}", rest / 100, rest % 100))
            }
            Err(error @ (Error::NoLibrary { .. } | Error::NoDriver { .. })) => Self::Skipped(error.to_string()),
            Err(error) => Self::Failed(error),
        }
    }

    /// Says that it was not built in.
    #[cfg(not(feature = "nccl"))]
    pub fn on(_: &Session) -> Self {
        Self::Skipped("this program was built without its feature nccl".into())
    }
}

impl std::fmt::Display for Alone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works(version) => write!(f, "NCCL {version}: a world of one rank sent itself a message"),
            Self::Skipped(why) => write!(f, "NCCL: skipped, {why}"),
            Self::Failed(error) => write!(f, "NCCL: FAILED, {error}"),
        }
    }
}
