//! What the sanitizer says when it finds something.

use std::fmt;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ViolationKind {
    /// Two accesses to one word, at least one a write, that nothing orders.
    Race,
    /// A read of memory that nothing has written.
    Uninitialised,
    /// Two lanes of one store wrote different values to one place.
    LaneConflict,
    /// A location that an asynchronous copy in flight owns was touched.
    AsyncInFlight,
    /// `ld.global.nc` of memory that the same grid writes.
    NonCoherentRead,
    /// One lane read or wrote what another lane of its warp wrote, or wrote what another read, with no `bar.warp.sync`
    /// between. Only with the lint on.
    LaneOrder,
}

impl ViolationKind {
    /// A few words for the head of a report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Race => "race",
            Self::Uninitialised => "uninitialised read",
            Self::LaneConflict => "two lanes store different values to one place",
            Self::AsyncInFlight => "access while an asynchronous copy is in flight",
            Self::NonCoherentRead => "ld.global.nc of memory that this grid writes",
            Self::LaneOrder => "lanes of a warp communicate without bar.warp.sync",
        }
    }
}

/// One side of a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Linear CTA index.
    pub cta: u32,
    /// Warp within the CTA.
    pub warp: u32,
    /// Lane, where one can be named.
    pub lane: Option<u32>,
    /// PTX line of the access.
    pub line: u32,
    /// What it did, as a verb in the past: "wrote", "read", "copied asynchronously to".
    pub action: &'static str,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CTA {} warp {}", self.cta, self.warp)?;
        if let Some(lane) = self.lane {
            write!(f, " lane {lane}")?;
        }
        write!(f, " {} it at line {}", self.action, self.line)
    }
}

/// A finding. `Display` is the whole story in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What was found.
    pub kind: ViolationKind,
    /// Where: an allocation and offset, or a shared-memory address.
    pub place: String,
    /// Whose access found it.
    pub now: Party,
    /// The earlier access, where there is one.
    pub before: Option<Party>,
    /// What would have been needed, or why it matters.
    pub advice: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.kind.title(), self.place, self.now)?;
        if let Some(before) = &self.before {
            write!(f, ", {before} before")?;
        }
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}
