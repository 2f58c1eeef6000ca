//! What all CTAs of a launch share, what one CTA shares, and how faults are told.

use super::address::SHARED_BASE;
use super::barrier::Barriers;
use crate::check::{Agent, Sanitizer, Violation, ViolationKind};
use crate::counters::Recorder;
use crate::decode::Program;
use crate::decode::op::{Pred, Slot};
use crate::launch::{Fault, FaultKind, LaunchConfig, Options};
use crate::memory::{AddressFault, MemoryView};

use super::warp::Warp;
use std::collections::BTreeSet;

/// A fault on its way up. Boxed, because results that carry it are everywhere and nearly always `Ok`.
pub(crate) type Faulted = Box<Fault>;

/// Why a warp stopped running.
pub(crate) enum Stop {
    /// Its turn is over.
    Quantum,
    /// It polls for something that has not happened.
    Spin,
    /// It waits at a barrier.
    Blocked,
    /// All its lanes have exited.
    Done,
    Fault(Faulted),
}

/// How often an instruction was issued, and for how many lanes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub issued: u64,
    pub lanes: u64,
}

/// State of a launch.
pub(crate) struct Machine<'l> {
    pub program: &'l Program,
    pub config: LaunchConfig,
    pub options: &'l Options,
    pub params: &'l [u8],
    pub view: MemoryView,
    pub recorder: Recorder,
    pub sanitizer: Option<Sanitizer>,
    /// One entry per instruction.
    pub tally: Vec<Tally>,
    /// Grows whenever something changes that another warp could wait for.
    pub version: u64,
    /// Instructions so far, at the last branch or stop.
    pub clock: u64,
}

/// What the warps of one CTA share.
pub(crate) struct Block {
    /// Linear number in the grid.
    pub index: u32,
    pub id: [u32; 3],
    pub shared: Vec<u8>,
    pub barriers: Barriers,
    /// Addresses of the mbarriers that are alive.
    pub mbarriers: BTreeSet<u32>,
}

impl Block {
    /// Where `bytes` at a shared address lie in [`Block::shared`]; `None` outside.
    #[inline(always)]
    pub fn shared_offset(&self, address: u32, bytes: u32) -> Option<usize> {
        let offset = address.wrapping_sub(SHARED_BASE);
        // In 64 bits the sum cannot wrap.
        (u64::from(offset) + u64::from(bytes) <= self.shared.len() as u64).then_some(offset as usize)
    }
}

impl Machine<'_> {
    /// Whether the sanitizer runs.
    pub fn checked(&self) -> bool {
        self.sanitizer.is_some()
    }

    /// PTX line of an instruction.
    pub fn line(&self, pc: u32) -> u32 {
        self.program.lines.get(pc as usize).copied().unwrap_or(0)
    }

    /// A fault of one lane, or of the warp.
    #[cold]
    #[inline(never)]
    pub fn fault(
        &self,
        kind: FaultKind,
        block: &Block,
        warp: u32,
        lane: Option<u32>,
        pc: u32,
        message: String,
    ) -> Faulted {
        Box::new(Fault {
            kind,
            kernel: self.program.name.clone(),
            line: self.line(pc),
            cta: block.id,
            thread: lane.map(|lane| self.thread(warp, lane)),
            message,
        })
    }

    /// Coordinates of a thread in its CTA.
    pub fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        let linear = warp * 32 + lane;
        let [x, y, _] = self.config.block.map(|size| size.max(1));
        [linear % x, linear / x % y, linear / x / y]
    }

    /// A register was read in lanes that never wrote it.
    #[cold]
    #[inline(never)]
    pub fn undefined(&self, block: &Block, warp: &Warp, slot: Slot, mask: u32, pc: u32) -> Faulted {
        let lanes = warp.undefined(slot, mask);
        let name = self.program.slot_name(slot);
        let message = format!("register {name} is read in lanes {lanes:#010x}, where nothing has been written to it");
        self.fault(FaultKind::Uninitialized, block, warp.index, Some(lanes.trailing_zeros() & 31), pc, message)
    }

    /// A predicate was read in lanes that never wrote it.
    #[cold]
    #[inline(never)]
    pub fn undefined_predicate(&self, block: &Block, warp: &Warp, predicate: Pred, mask: u32, pc: u32) -> Faulted {
        let lanes = warp.undefined_predicate(predicate, mask);
        let name = self.program.predicate_name(predicate);
        let message = format!("predicate {name} is read in lanes {lanes:#010x}, where nothing has been written to it");
        self.fault(FaultKind::Uninitialized, block, warp.index, Some(lanes.trailing_zeros() & 31), pc, message)
    }

    /// Refuse to read a slot that was not written in every lane of `mask`.
    #[inline]
    pub fn require(&self, block: &Block, warp: &Warp, slot: Slot, mask: u32, pc: u32) -> Result<(), Faulted> {
        if warp.undefined(slot, mask) == 0 { Ok(()) } else { Err(self.undefined(block, warp, slot, mask, pc)) }
    }

    /// Refuse to read a predicate that was not written in every lane of `mask`.
    #[inline]
    pub fn require_predicate(
        &self,
        block: &Block,
        warp: &Warp,
        predicate: Pred,
        mask: u32,
        pc: u32,
    ) -> Result<(), Faulted> {
        if warp.undefined_predicate(predicate, mask) == 0 {
            Ok(())
        } else {
            Err(self.undefined_predicate(block, warp, predicate, mask, pc))
        }
    }

    /// An address outside every allocation.
    #[cold]
    #[inline(never)]
    pub fn bad_address(&self, block: &Block, warp: u32, lane: u32, pc: u32, fault: AddressFault) -> Faulted {
        self.fault(FaultKind::IllegalAddress, block, warp, Some(lane), pc, format!("global access of {fault}"))
    }

    /// An address outside the CTA's shared memory.
    #[cold]
    #[inline(never)]
    pub fn bad_shared(&self, block: &Block, warp: u32, lane: u32, pc: u32, address: u32, bytes: u32) -> Faulted {
        let size = block.shared.len();
        let message =
            format!("shared access of {bytes} bytes at {address:#x}: the CTA has {size} bytes from {SHARED_BASE:#x}");
        self.fault(FaultKind::IllegalAddress, block, warp, Some(lane), pc, message)
    }

    /// An address that is not a multiple of the access size.
    #[cold]
    #[inline(never)]
    pub fn misaligned(&self, block: &Block, warp: u32, lane: u32, pc: u32, address: u64, bytes: u32) -> Faulted {
        let message = format!("address {address:#x} is not a multiple of {bytes}");
        self.fault(FaultKind::MisalignedAddress, block, warp, Some(lane), pc, message)
    }

    /// What the sanitizer found.
    #[cold]
    #[inline(never)]
    pub fn violation(&self, block: &Block, warp: u32, pc: u32, violation: &Violation) -> Faulted {
        let kind = match violation.kind {
            ViolationKind::Uninitialised => FaultKind::Uninitialized,
            ViolationKind::AsyncInFlight => FaultKind::AsyncMisuse,
            _ => FaultKind::Race,
        };
        self.fault(kind, block, warp, violation.now.lane, pc, violation.to_string())
    }

    /// The sanitizer's name of a warp.
    pub fn agent(&self, block: &Block, warp: u32) -> Agent {
        Agent { cta: block.index, warp }
    }
}
