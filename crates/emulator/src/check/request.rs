//! What the interpreter tells the sanitizer about one warp instruction.

/// A warp of the grid: the unit that has a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Linear CTA index.
    pub cta: u32,
    /// Warp within the CTA.
    pub warp: u32,
}

/// What an instruction does to the memory it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any load, and the source side of `cp.async`.
    Load,
    /// `ldmatrix`: what is at a lane's address goes to all lanes.
    LoadMatrix,
    /// `ld.global.nc`: the memory must not be written while the grid runs.
    LoadNonCoherent,
    /// Any store.
    Store,
    /// `atom` and `red`, when they write. A failed compare-and-swap is reported in the same way.
    Atomic,
}

/// Ordering semantics of an access, as spelled in the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Plain `ld` and `st`.
    Weak,
    /// `.relaxed` and `.volatile`; what `atom` and `red` are without a qualifier.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcquireRelease,
}

/// Who takes part in an ordering. There are no clusters, so `.cluster` is `Cta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `.cta` and `.cluster`.
    Cta,
    /// `.gpu` and `.sys`; also `.volatile`.
    Gpu,
}

/// One warp-wide memory instruction.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Who.
    pub agent: Agent,
    /// Lanes that take part; other entries of the address array are ignored.
    pub mask: u32,
    /// Bytes per lane: 1, 2, 4, 8 or 16. Addresses are multiples of it.
    pub bytes: u32,
    /// Read or write.
    pub kind: Kind,
    /// Ordering; ignored for shared memory unless a strong operation was used there.
    pub order: Order,
    /// Scope of the ordering; ignored for weak accesses.
    pub scope: Scope,
    /// PTX line.
    pub line: u32,
}

impl Request {
    /// A plain access.
    pub fn weak(agent: Agent, mask: u32, bytes: u32, kind: Kind, line: u32) -> Self {
        Self { agent, mask, bytes, kind, order: Order::Weak, scope: Scope::Cta, line }
    }
}

impl Kind {
    pub(super) fn reads(self) -> bool {
        self != Kind::Store
    }

    pub(super) fn writes(self) -> bool {
        matches!(self, Kind::Store | Kind::Atomic)
    }

    /// For reports.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Kind::Load => "reads",
            Kind::LoadMatrix => "reads (ldmatrix)",
            Kind::LoadNonCoherent => "reads (ld.global.nc)",
            Kind::Store => "writes",
            Kind::Atomic => "updates",
        }
    }
}

impl Order {
    /// Later reads see what the observed release covers.
    pub(super) fn acquires(self) -> bool {
        matches!(self, Order::Acquire | Order::AcquireRelease)
    }

    /// Earlier writes are covered.
    pub(super) fn releases(self) -> bool {
        matches!(self, Order::Release | Order::AcquireRelease)
    }
}
