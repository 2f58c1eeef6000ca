//! The instructions of the side table: everything too large or too rare for the interpreter's loop.

use super::op::{Access, Address, Element, Order, Pred, Scope, Slot, Space};
use crate::counters::Class;
use crate::numerics::Lanes;
use crate::numerics::mma::Form;
use std::fmt;

/// Where an operand of a [`Map`] lives and how wide it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not there; reads as 0.
    None,
    /// The low 16 bits of a slot.
    Half(Slot),
    Word(Slot),
    Double(Slot),
    /// 0 or 1.
    Pred(Pred),
}

/// An operation on whole registers of 32 bits.
pub(crate) type LaneFn = Box<dyn Fn(&Lanes, &Lanes, &Lanes) -> Lanes + Send + Sync>;

/// An operation on one lane, up to two results.
pub(crate) type ScalarFn = Box<dyn Fn([u64; 4]) -> [u64; 2] + Send + Sync>;

/// A comparison of whole registers of 32 bits: one bit per lane.
pub(crate) type TestFn = Box<dyn Fn(&Lanes, &Lanes) -> u32 + Send + Sync>;

/// An elementwise instruction by the function that computes it.
pub(crate) struct Map {
    pub f: ScalarFn,
    pub to: [Place; 2],
    pub from: [Place; 4],
    pub class: Class,
}

/// `shfl.sync` modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a `shfl.sync` with constant operands does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedShuffle {
    /// The lane that each lane reads.
    pub sources: [u8; 32],
    /// Lanes in which that is the one asked for.
    pub inside: u32,
    pub members: u32,
}

/// `shfl.sync`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shuffle {
    /// Known before the launch, as nearly always.
    pub fixed: Option<FixedShuffle>,
    pub mode: ShuffleMode,
    pub d: Slot,
    pub inside: Option<Pred>,
    pub a: Slot,
    pub b: Slot,
    pub c: Slot,
    pub members: Slot,
}

/// `vote.sync` modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All(Pred),
    Any(Pred),
    Uniform(Pred),
    Ballot(Slot),
}

/// What `redux.sync` computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// What a barrier does beside counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    Popc(Slot, Pred),
    And(Pred, Pred),
    Or(Pred, Pred),
}

/// `bar` and `barrier`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Barrier {
    pub kind: BarrierKind,
    pub id: Slot,
    /// Threads that take part; the whole CTA without one.
    pub threads: Option<Slot>,
    /// The whole warp must execute it together.
    pub aligned: bool,
}

/// What an atomic operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    AddF32,
    AddF64,
    AddF16x2,
    AddBf16x2,
    AddF16,
    AddBf16,
}

/// `atom` and `red`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Atomic {
    pub op: AtomicOp,
    pub space: Space,
    pub order: Order,
    pub scope: Scope,
    /// Bytes of one element.
    pub bytes: u8,
    /// Elements side by side; each is atomic on its own.
    pub count: u8,
    /// The old value is wanted.
    pub returns: bool,
    pub d: [Slot; 4],
    pub address: Address,
    pub b: [Slot; 4],
    /// The third operand of `cas`.
    pub c: Slot,
}

/// `mma.sync`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mma {
    pub form: Form,
    /// Type of A and B, for the counters.
    pub input: &'static str,
    pub d: [Slot; 4],
    pub a: [Slot; 4],
    pub b: [Slot; 2],
    pub c: [Slot; 4],
}

/// `ldmatrix` and `stmatrix`
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatrixAccess {
    pub store: bool,
    pub count: u8,
    pub transpose: bool,
    pub data: [Slot; 4],
    pub address: Address,
}

/// `cp.async`
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyAsync {
    pub to: Address,
    pub from: Address,
    pub bytes: u8,
    /// Bytes to read; the rest becomes zero.
    pub source_bytes: Option<Slot>,
    /// Read nothing where true.
    pub ignore: Option<Pred>,
}

/// What an mbarrier instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MbarrierOp {
    /// Count
    Init(Slot),
    Invalidate,
    /// State, count
    Arrive {
        state: Slot,
        count: Slot,
        drop: bool,
        expect: Option<Slot>,
    },
    /// Bytes
    ExpectBytes(Slot),
    /// Result, state
    TestState {
        done: Pred,
        state: Slot,
    },
    /// Result, parity
    TestParity {
        done: Pred,
        parity: Slot,
    },
    /// Count, state
    PendingCount {
        d: Slot,
        state: Slot,
    },
    /// `cp.async.mbarrier.arrive`: fires when the thread's copies are complete.
    CopyArrive {
        increment: bool,
    },
}

/// An mbarrier instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mbarrier {
    pub op: MbarrierOp,
    pub address: Address,
    pub order: Order,
    /// The instruction may wait: a failed one ends the turn.
    pub waits: bool,
}

/// Clocks; one tick per instruction of the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Low,
    High,
    Full,
    Timer,
    TimerLow,
    TimerHigh,
}

/// An instruction of the side table.
pub(crate) enum Cold {
    /// `d`, sources, function
    Lanes {
        f: LaneFn,
        d: Slot,
        sources: [Slot; 3],
        count: u8,
        class: Class,
    },
    Test {
        f: TestFn,
        d: Pred,
        a: Slot,
        b: Slot,
        class: Class,
    },
    Map(Map),
    Shuffle(Shuffle),
    /// Source and members
    Vote {
        vote: Vote,
        source: Pred,
        members: Slot,
    },
    /// `all` gives a predicate beside the mask
    Match {
        d: Slot,
        all: Option<Pred>,
        uniform: bool,
        a: Slot,
        wide: bool,
        members: Slot,
    },
    Redux {
        reduction: Reduction,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    ActiveMask(Slot),
    Elect {
        d: Slot,
        leader: Pred,
        members: Slot,
    },
    WarpSync(Slot),
    Barrier(Barrier),
    Fence(Scope),
    /// Generic addresses, decided lane by lane
    LoadGeneric(Access),
    StoreGeneric(Access),
    /// `ld.param` at an address that is only known at run time
    LoadParam(Access),
    Atomic(Atomic),
    Matrix(MatrixAccess),
    /// `movmatrix`
    Transpose {
        d: Slot,
        a: Slot,
    },
    Mma(Mma),
    CopyAsync(CopyAsync),
    Commit,
    /// Groups that may stay in flight; `None` waits for copies without a group too.
    WaitGroups(Option<u32>),
    Mbarrier(Mbarrier),
    Clock {
        d: Slot,
        clock: Clock,
    },
    Sleep,
    Trap,
    Breakpoint,
}

impl Cold {
    /// What kind of work it is, for the counters.
    pub fn class(&self) -> Class {
        match self {
            Self::Lanes { class, .. } | Self::Test { class, .. } => *class,
            Self::Map(map) => map.class,
            Self::Shuffle(_)
            | Self::Vote { .. }
            | Self::Match { .. }
            | Self::Redux { .. }
            | Self::ActiveMask(_)
            | Self::Elect { .. }
            | Self::WarpSync(_)
            | Self::Barrier(_)
            | Self::Fence(_)
            | Self::Commit
            | Self::WaitGroups(_)
            | Self::Mbarrier(_)
            | Self::Sleep => Class::Sync,
            Self::LoadGeneric(_) | Self::StoreGeneric(_) | Self::CopyAsync(_) => Class::Global,
            Self::Atomic(atomic) if atomic.space == Space::Shared => Class::Shared,
            Self::Atomic(_) => Class::Global,
            Self::Matrix(_) => Class::Shared,
            Self::Mma(_) => Class::Tensor,
            Self::Trap | Self::Breakpoint => Class::Control,
            Self::LoadParam(_) | Self::Transpose { .. } | Self::Clock { .. } => Class::Other,
        }
    }
}

/// Class of an elementwise instruction by its opcode and last type.
pub(crate) fn elementwise_class(opcode: &str, last: Option<&str>) -> Class {
    match opcode {
        "cvt" => Class::Convert,
        "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" | "div" => Class::Special,
        _ if last.is_some_and(|ty| ty.starts_with('f') || ty.starts_with("bf")) => Class::Float,
        _ => Class::Integer,
    }
}

impl fmt::Debug for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lanes { d, sources, .. } => write!(f, "Lanes({d} <- {sources:?})"),
            Self::Test { d, a, b, .. } => write!(f, "Test({d} <- {a}, {b})"),
            Self::Map(map) => write!(f, "Map({:?} <- {:?})", map.to, map.from),
            Self::Mma(mma) => write!(f, "{mma:?}"),
            Self::Atomic(atomic) => write!(f, "{atomic:?}"),
            Self::Mbarrier(mbarrier) => write!(f, "{mbarrier:?}"),
            _ => f.write_str("Cold"),
        }
    }
}

impl Access {
    /// An access of that shape.
    pub fn new(data: [Slot; 4], element: Element, address: Address, (order, scope): (Order, Scope)) -> Self {
        Self { address: address.slot, wide_address: address.wide, offset: address.offset, data, element, order, scope }
    }
}
