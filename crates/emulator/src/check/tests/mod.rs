//! The sanitizer on scripted sequences of events: correct protocols must pass, each broken one must be named.

mod copies;
mod global;
mod lookback;
mod model;
mod order;
mod scale;
mod shared;
mod shortcuts;

use super::{Agent, Checked, CopyId, Kind, Lints, Order, Request, Sanitizer, Scope, Shape, Violation, ViolationKind};
use crate::memory::DeviceMemory;

/// Where shared memory begins, as programs see it.
const SHARED: u32 = 1024;

/// All lanes.
const ALL: u32 = u32::MAX;

/// A launch whose instructions a test plays by hand.
struct Scene {
    sanitizer: Sanitizer,
    /// 64 KiB that the host has written.
    data: u64,
    /// 64 KiB that nobody has written.
    fresh: u64,
}

fn agent(cta: u32, warp: u32) -> Agent {
    Agent { cta, warp }
}

impl Scene {
    fn new(ctas: u32, warps: u32) -> Self {
        Self::with_lints(ctas, warps, Lints::default())
    }

    fn with_lints(ctas: u32, warps: u32, lints: Lints) -> Self {
        let memory = DeviceMemory::new(1 << 20);
        let data = memory.alloc(65536).unwrap();
        memory.fill(data, [0u8], 65536).unwrap();
        let fresh = memory.alloc(65536).unwrap();
        let shape = Shape { ctas, threads: warps * 32, shared_bytes: 8192, shared_base: SHARED };
        let mut sanitizer = Sanitizer::new(shape, &memory.view(), lints);
        for cta in 0..ctas.min(64) {
            sanitizer.cta_start(cta);
        }
        Self { sanitizer, data, fresh }
    }

    /// Weak access to shared memory, `bytes` per lane, lane by lane from `offset`.
    fn shared(&mut self, who: Agent, mask: u32, kind: Kind, offset: u32, bytes: u32, line: u32) -> Checked {
        let addresses = std::array::from_fn(|lane| SHARED + offset + bytes * lane as u32);
        self.sanitizer.shared_access(&Request::weak(who, mask, bytes, kind, line), &addresses, &[])
    }

    fn store_shared(&mut self, who: Agent, offset: u32, line: u32) -> Checked {
        self.shared(who, ALL, Kind::Store, offset, 4, line)
    }

    fn load_shared(&mut self, who: Agent, offset: u32, line: u32) -> Checked {
        self.shared(who, ALL, Kind::Load, offset, 4, line)
    }

    /// Weak access to global memory, `bytes` per lane, lane by lane from `pointer`.
    fn global(&mut self, who: Agent, mask: u32, kind: Kind, pointer: u64, bytes: u32, line: u32) -> Checked {
        let addresses = std::array::from_fn(|lane| pointer + u64::from(bytes) * lane as u64);
        self.sanitizer.global_access(&Request::weak(who, mask, bytes, kind, line), &addresses, &[])
    }

    fn store_global(&mut self, who: Agent, pointer: u64, line: u32) -> Checked {
        self.global(who, ALL, Kind::Store, pointer, 4, line)
    }

    fn load_global(&mut self, who: Agent, pointer: u64, line: u32) -> Checked {
        self.global(who, ALL, Kind::Load, pointer, 4, line)
    }

    /// Ordered access of 4 bytes to global memory by all lanes of `mask` at one place.
    fn signal(
        &mut self,
        who: Agent,
        mask: u32,
        kind: Kind,
        (order, scope): (Order, Scope),
        pointer: u64,
        line: u32,
    ) -> Checked {
        let request = Request { agent: who, mask, bytes: 4, kind, order, scope, line };
        self.sanitizer.global_access(&request, &[pointer; 32], &[])
    }

    /// `bar.sync id` by all warps of a CTA.
    fn barrier(&mut self, cta: u32, id: u32, warps: u32) {
        for warp in 0..warps {
            self.sanitizer.barrier_arrive(agent(cta, warp), id);
        }
        self.sanitizer.barrier_complete(cta, id, (1 << warps) - 1);
    }

    /// A 16-byte `cp.async` of all lanes to `offset`.
    fn copy(&mut self, who: Agent, offset: u32, line: u32) -> Result<CopyId, Box<Violation>> {
        let addresses = std::array::from_fn(|lane| SHARED + offset + 16 * lane as u32);
        self.sanitizer.async_issue(&Request::weak(who, ALL, 16, Kind::Store, line), &addresses)
    }
}

/// Asserts that the event was found at fault, and gives the report.
fn expect(checked: Checked, kind: ViolationKind) -> String {
    let violation = checked.expect_err("should have been found");
    assert_eq!(violation.kind, kind, "{violation}");
    violation.to_string()
}
