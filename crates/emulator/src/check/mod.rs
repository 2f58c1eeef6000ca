//! The sanitizer: happens-before over warps, shadow memory, and reports.
//!
//! The interpreter runs all CTAs of a launch on one thread and is sequentially consistent, so a kernel with a missing
//! barrier or fence usually gives the right numbers. This module decides whether the PTX memory model *promised* them.
//! `crates/emulator/README.md` says what is modelled and what cannot be caught.
//!
//! # How the interpreter calls it
//!
//! One [`Sanitizer`] per checked launch. [`Sanitizer::cta_start`] when a CTA becomes resident, [`Sanitizer::cta_exit`]
//! when its last warp has ended. For each instruction, *after* bounds and alignment have been checked:
//!
//! | instruction | calls |
//! |---|---|
//! | `ld/st/atom/red.shared`, `ldmatrix`, `stmatrix` | [`Sanitizer::shared_access`] |
//! | `ld/st/atom/red.global` of any order | [`Sanitizer::global_access`], which also acquires and releases |
//! | `fence`, `membar` | [`Sanitizer::fence`] |
//! | `bar.sync`, `bar.red`, `barrier.*` | [`Sanitizer::barrier_arrive`] by every arriving warp, then [`Sanitizer::barrier_complete`] once |
//! | `bar.arrive` | [`Sanitizer::barrier_arrive`] |
//! | `bar.warp.sync` | [`Sanitizer::warp_sync`] |
//! | `shfl.sync`, `vote.sync`, `match.sync`, `redux.sync` | [`Sanitizer::collective`] |
//! | `mbarrier.arrive` | [`Sanitizer::mbarrier_arrive`], then [`Sanitizer::mbarrier_phase`] if it completed a phase |
//! | successful `mbarrier.test_wait/try_wait` | [`Sanitizer::mbarrier_wait`] |
//! | `cp.async` | [`Sanitizer::global_access`] (a load) for the source, then [`Sanitizer::async_issue`] for the destination |
//! | `cp.async.wait_group/wait_all` | [`Sanitizer::async_complete`] for each copy whose lanes have now waited |
//! | lanes exit | [`Sanitizer::lanes_exit`] |

mod report;
mod request;

pub use report::{Party, Violation, ViolationKind};
pub use request::{Agent, Kind, Order, Request, Scope};

use crate::memory::MemoryView;

/// What every checking call returns. Boxed, because it is on the hot path and nearly always `Ok`.
pub type Checked = Result<(), Box<Violation>>;

/// One warp-wide asynchronous copy that has been issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyId(u32);

/// Which optional checks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lints {
    /// Report lanes of one warp that hand data to each other through memory with nothing but convergence between.
    pub lane_order: bool,
    /// Let `shfl`, `vote`, `match` and `redux` order the lanes of a warp. The memory model gives that to
    /// `bar.warp.sync` alone.
    pub collectives_order_lanes: bool,
}

/// Shape of the launch that is checked.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// CTAs of the grid.
    pub ctas: u32,
    /// Threads of a CTA.
    pub threads: u32,
    /// Shared memory of a CTA, static and dynamic.
    pub shared_bytes: u32,
    /// Address of its first byte, as the program sees it.
    pub shared_base: u32,
}

/// Checks one launch.
#[derive(Debug)]
pub struct Sanitizer {
    shape: Shape,
}

impl Sanitizer {
    /// A sanitizer for one launch over the memory of `view`.
    pub fn new(shape: Shape, _view: &MemoryView, _lints: Lints) -> Self {
        Self { shape }
    }

    /// A CTA becomes resident: its shared memory is uninitialised, its warps know nothing.
    pub fn cta_start(&mut self, _cta: u32) {
        let _ = self.shape;
    }

    /// The last warp of a CTA has ended. What it published stays.
    pub fn cta_exit(&mut self, _cta: u32) {}

    /// Lanes ended: nobody waits for them at `bar.warp.sync` any more.
    pub fn lanes_exit(&mut self, _agent: Agent, _mask: u32) {}

    /// Shared memory. `addresses` are the program's; `values` holds what a store writes, one row of lanes per 4 bytes
    /// (narrower values in the low bits), and is empty for loads and atomics.
    #[inline]
    pub fn shared_access(&mut self, _request: &Request, _addresses: &[u32; 32], _values: &[&[u32; 32]]) -> Checked {
        Ok(())
    }

    /// Global memory, and the acquire or release that the access carries. `values` as for shared memory.
    ///
    /// For a load call it when the value is read, for a store when it is written.
    #[inline]
    pub fn global_access(&mut self, _request: &Request, _addresses: &[u64; 32], _values: &[&[u32; 32]]) -> Checked {
        Ok(())
    }

    /// `fence.acq_rel` or `fence.sc` (all `membar` are) by the lanes of `mask`.
    pub fn fence(&mut self, _agent: Agent, _mask: u32, _scope: Scope) {}

    /// `bar.warp.sync` over `mask` has completed.
    pub fn warp_sync(&mut self, _agent: Agent, _mask: u32) {}

    /// A warp collective that orders no memory has completed over `mask`.
    pub fn collective(&mut self, _agent: Agent, _mask: u32) {}

    /// A warp arrives at CTA barrier `id`, whether it will wait there or not.
    pub fn barrier_arrive(&mut self, _agent: Agent, _id: u32) {}

    /// CTA barrier `id` completes and lets the warps of the bit mask `waiters` go on.
    pub fn barrier_complete(&mut self, _cta: u32, _id: u32, _waiters: u32) {}

    /// Lanes of `mask` arrive at the mbarrier at a shared address. `order` is `Release` (the default of the
    /// instruction) or `Relaxed`.
    pub fn mbarrier_arrive(&mut self, _agent: Agent, _mask: u32, _address: u32, _order: Order) {}

    /// The mbarrier's current phase completed.
    pub fn mbarrier_phase(&mut self, _cta: u32, _address: u32) {}

    /// Lanes of `mask` saw the last completed phase of the mbarrier with an acquiring wait.
    pub fn mbarrier_wait(&mut self, _agent: Agent, _mask: u32, _address: u32) {}

    /// `mbarrier.init` and `mbarrier.inval`: forget what was published through it.
    pub fn mbarrier_reset(&mut self, _cta: u32, _address: u32) {}

    /// An asynchronous copy to shared memory is issued: from now until [`Sanitizer::async_complete`] its destination
    /// may not be touched by anyone. `request.bytes` are those written per lane, zero fill included.
    pub fn async_issue(&mut self, _request: &Request, _addresses: &[u32; 32]) -> Result<CopyId, Box<Violation>> {
        Ok(CopyId(0))
    }

    /// The lanes of `mask` have waited for that copy. Call it again for the others if lanes wait apart.
    pub fn async_complete(&mut self, _agent: Agent, _copy: CopyId, _mask: u32) {}

    /// That copy has completed on the mbarrier at a shared address: whoever waits for its phase sees the data.
    pub fn async_complete_on(&mut self, _agent: Agent, _copy: CopyId, _address: u32) {}
}
