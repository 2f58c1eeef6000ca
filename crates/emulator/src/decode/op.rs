//! The decoded instructions.
//!
//! The variants of [`Op`] that move or combine registers are small and plain, because the interpreter's loop lives on
//! them. What is rare or large sits in a side table and is reached through [`Op::Cold`].

use crate::numerics::compare::Comparison;

/// Index of a register slot: 32 lanes of 32 bits. A 64-bit value takes two neighbours, seen as 32 lanes of 64 bits.
pub(crate) type Slot = u16;

/// Index of a predicate: one bit per lane. Predicate [`ALWAYS`] holds ones.
pub(crate) type Pred = u16;

/// The predicate that is true in every lane; the guard of an unguarded instruction.
pub(crate) const ALWAYS: Pred = 0;

/// The carry flag of `add.cc` and its kin.
pub(crate) const CARRY: Pred = 1;

/// A predicate that may be written and is never read.
pub(crate) const NO_PRED: Pred = 2;

/// First predicate of the kernel's own registers.
pub(crate) const FIRST_PRED: Pred = 3;

/// Slots that may be written and are never read: wide enough for a 64-bit value.
pub(crate) const NO_SLOT: Slot = 0;

/// First slot of the kernel's own registers.
pub(crate) const FIRST_SLOT: Slot = 2;

/// One instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ins {
    pub op: Op,
    /// Guard; lanes whose bit differs from `flip`'s are active.
    pub guard: Pred,
    /// All ones for `@!p`.
    pub flip: u32,
}

/// One source, one destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct R2 {
    pub d: Slot,
    pub a: Slot,
}

/// Two sources.
#[derive(Debug, Clone, Copy)]
pub(crate) struct R3 {
    pub d: Slot,
    pub a: Slot,
    pub b: Slot,
}

/// Three sources.
#[derive(Debug, Clone, Copy)]
pub(crate) struct R4 {
    pub d: Slot,
    pub a: Slot,
    pub b: Slot,
    pub c: Slot,
}

/// Operation on whole predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PredOp {
    And,
    Or,
    Xor,
    /// `b` is ignored.
    Not,
    /// `b` is ignored.
    Mov,
}

/// How a value crosses between memory and a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Element {
    /// Bytes in memory: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Loads extend the sign.
    pub signed: bool,
    /// The register is 64 bits wide.
    pub wide: bool,
    /// Values of one lane, side by side in memory.
    pub count: u8,
}

impl Element {
    /// Bytes that one lane touches.
    pub fn total(self) -> u32 {
        u32::from(self.bytes) * u32::from(self.count)
    }
}

/// Memory ordering of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The default.
    Weak,
    /// `.nc`: through the read-only path.
    ReadOnly,
    Volatile,
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl Order {
    /// Whether a loop over such a load may be waiting for another thread.
    pub fn polls(self) -> bool {
        !matches!(self, Self::Weak | Self::ReadOnly)
    }
}

/// Who observes an ordering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Cta,
    Gpu,
    System,
}

/// State space of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    Generic,
    Param,
}

/// An address operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub slot: Slot,
    /// The slot holds 64-bit values.
    pub wide: bool,
    pub offset: i32,
}

/// `ld` and `st`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub address: Slot,
    /// Meaningful for shared memory only: every other address is 64 bits wide.
    pub wide_address: bool,
    pub order: Order,
    pub scope: Scope,
    pub offset: i32,
    pub data: [Slot; 4],
    pub element: Element,
}

impl Access {
    /// The address operand.
    pub fn address(&self) -> Address {
        Address { slot: self.address, wide: self.wide_address, offset: self.offset }
    }
}

/// Everything the interpreter can do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Mov32(R2),
    Mov64(R2),
    /// `mov.b64 d, {a, b}`
    Pack64(R3),
    /// `mov.b64 {d, b}, a`: `b` is the high destination.
    Unpack64(R3),
    /// `mov.b32 d, {a, b}` of two 16-bit registers
    Pack32(R3),
    /// `mov.b32 {d, b}, a`
    Unpack32(R3),
    Add32(R3),
    Sub32(R3),
    MulLo32(R3),
    MadLo32(R4),
    MulWideU(R3),
    MulWideS(R3),
    MadWideU(R4),
    MadWideS(R4),
    And32(R3),
    Or32(R3),
    Xor32(R3),
    Shl32(R3),
    ShrU32(R3),
    ShrS32(R3),
    MinU32(R3),
    MaxU32(R3),
    MinS32(R3),
    MaxS32(R3),
    /// The last byte is the truth table.
    Lop3(R4, u8),
    Prmt(R4),
    Add64(R3),
    Sub64(R3),
    MulLo64(R3),
    MadLo64(R4),
    And64(R3),
    Or64(R3),
    Xor64(R3),
    /// The shift count is a 32-bit slot.
    Shl64(R3),
    ShrU64(R3),
    ShrS64(R3),
    /// 32 bits to 64.
    ZeroExtend(R2),
    SignExtend(R2),
    /// 64 bits to 32.
    Truncate(R2),
    SetU32(Comparison, Pred, Slot, Slot),
    SetS32(Comparison, Pred, Slot, Slot),
    SetU64(Comparison, Pred, Slot, Slot),
    SetS64(Comparison, Pred, Slot, Slot),
    SetF32(Comparison, Pred, Slot, Slot),
    Select32(R3, Pred),
    Select64(R3, Pred),
    Logic(PredOp, Pred, Pred, Pred),
    AddF32(R3),
    SubF32(R3),
    MulF32(R3),
    FmaF32(R4),
    AddF32Ftz(R3),
    SubF32Ftz(R3),
    MulF32Ftz(R3),
    FmaF32Ftz(R4),
    MinF32(R3),
    MaxF32(R3),
    NegF32(R2),
    AbsF32(R2),
    /// f16 to f32
    WidenF16(R2),
    /// bf16 to f32
    WidenBf16(R2),
    /// Round to nearest even to one f16.
    NarrowF16(R2),
    NarrowBf16(R2),
    /// `a` goes to the high half.
    NarrowF16x2(R3),
    NarrowBf16x2(R3),
    /// u32 to f32, to nearest even
    FloatU32(R2),
    FloatS32(R2),
    LoadGlobal(Access),
    StoreGlobal(Access),
    LoadShared(Access),
    StoreShared(Access),
    /// Target, and whether it lies at or before the branch.
    Branch(u32),
    Exit,
    /// Anything else: an index into [`super::Program`]'s side table.
    Cold(u16),
    /// Accepted and without effect here: hints, proxies, prefetches.
    Nop,
}
