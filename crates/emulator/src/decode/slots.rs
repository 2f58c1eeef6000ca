//! Where values live: the assignment of registers, constants, special registers and parameters to slots.

use super::op::{FIRST_PRED, FIRST_SLOT, Pred, Slot};
use crate::ptx::ast::{Register, SpecialRegister, Type};

/// What a launch puts into a slot before the first instruction. Slots without one start as poison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// The same 32 bits in every lane.
    Word(u32),
    /// The same 64 bits in every lane.
    Double(u64),
    /// So many bytes (1, 2, 4 or 8) of the parameter block from this offset; sign extended when told.
    Param { offset: u32, bytes: u8, signed: bool, wide: bool },
    /// A special register of 32 bits.
    Special(SpecialRegister),
    /// A special register read as 64 bits.
    SpecialWide(SpecialRegister),
    /// Shared address of an offset into the CTA's shared memory.
    Shared { offset: i64, wide: bool },
}

impl Init {
    /// The slot is a pair.
    pub fn wide(self) -> bool {
        match self {
            Self::Word(_) | Self::Special(_) => false,
            Self::Double(_) | Self::SpecialWide(_) => true,
            Self::Param { wide, .. } | Self::Shared { wide, .. } => wide,
        }
    }
}

/// Where a declared register lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Slot(Slot),
    Pred(Pred),
}

/// The slots of one kernel, growing as the decoder meets constants.
#[derive(Debug)]
pub(crate) struct Slots {
    homes: Vec<Home>,
    next: u32,
    predicates: u32,
    inits: Vec<(Slot, Init)>,
}

/// A warp's register file may not be larger than this many slots.
const MAX_SLOTS: u32 = u16::MAX as u32;

impl Slots {
    /// Give every declared register its home; `None` when there are more than a program can number.
    pub fn new(registers: &[Register]) -> Option<Self> {
        let mut next = u32::from(FIRST_SLOT);
        let mut predicates = u32::from(FIRST_PRED);
        let mut homes = Vec::with_capacity(registers.len());
        for register in registers {
            if register.ty == Type::Pred {
                homes.push(Home::Pred(u16::try_from(predicates).ok()?));
                predicates += 1;
            } else {
                homes.push(Home::Slot(u16::try_from(next).ok()?));
                next += if register.ty.bytes() == 8 { 2 } else { 1 };
            }
        }
        (next < MAX_SLOTS && predicates < MAX_SLOTS).then(|| Self { homes, next, predicates, inits: Vec::new() })
    }

    /// Home of a register by its index in the entry.
    pub fn home(&self, register: u32) -> Option<Home> {
        self.homes.get(register as usize).copied()
    }

    /// The slot that a launch fills like this; `None` when there is no room.
    pub fn constant(&mut self, init: Init) -> Option<Slot> {
        if let Some(&(slot, _)) = self.inits.iter().find(|(_, known)| *known == init) {
            return Some(slot);
        }
        let width = if init.wide() { 2 } else { 1 };
        if self.next + width > MAX_SLOTS {
            return None;
        }
        let slot = self.next as Slot;
        self.next += width;
        self.inits.push((slot, init));
        Some(slot)
    }

    /// A fresh register that no name of the kernel means.
    pub fn temporary(&mut self, wide: bool) -> Option<Slot> {
        let slot = self.next;
        self.next += if wide { 2 } else { 1 };
        (self.next <= MAX_SLOTS).then_some(slot as Slot)
    }

    /// A fresh predicate.
    pub fn temporary_predicate(&mut self) -> Option<Pred> {
        let pred = self.predicates;
        self.predicates += 1;
        (self.predicates <= MAX_SLOTS).then_some(pred as Pred)
    }

    /// Number of slots.
    pub fn len(&self) -> u32 {
        self.next
    }

    /// Number of predicates.
    pub fn predicates(&self) -> u32 {
        self.predicates
    }

    /// What a launch has to fill in.
    pub fn into_inits(self) -> Vec<(Slot, Init)> {
        self.inits
    }
}
