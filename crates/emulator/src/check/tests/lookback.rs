//! Decoupled look-back: the protocol that kernels use, as it should be and with one mistake each.

use super::*;

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    PlainFlagStore,
    RelaxedFlagStoreWithoutFence,
    FenceOfTheCtaOnly,
    FlagBeforePayload,
    NoWarpSyncBeforeRelease,
    PlainPoll,
    RelaxedPollWithoutFence,
    PayloadOfATileNotPolled,
    NonCoherentPayload,
}

/// How a correct kernel may spell its release and acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Instructions,
    Fences,
}

const WARPS: u32 = 2;
const LEADER: u32 = 1;
const TILES: u32 = 40;

struct Tile<'a> {
    scene: &'a mut Scene,
    cta: u32,
    tile: u32,
    style: Style,
    mistake: Option<Mistake>,
}

impl Tile<'_> {
    fn wrong(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn flag(&self, tile: u32) -> u64 {
        self.scene.data + 4096 + u64::from(tile) * 4
    }

    fn payload(&self, tile: u32) -> u64 {
        self.scene.fresh + u64::from(tile) * 128
    }

    /// The whole CTA: ticket, local work, publish, look back, use.
    fn run(&mut self) -> Checked {
        let leader = agent(self.cta, 0);
        let counter = self.scene.data;
        self.scene.signal(leader, LEADER, Kind::Atomic, (Order::Relaxed, Scope::Gpu), counter, 1)?;
        self.scene.shared(leader, LEADER, Kind::Store, 0, 4, 2)?;
        self.scene.barrier(self.cta, 0, WARPS);
        for warp in 0..WARPS {
            self.scene.shared(agent(self.cta, warp), LEADER, Kind::Load, 0, 4, 3)?;
            self.scene.store_shared(agent(self.cta, warp), 128 + 128 * warp, 4)?;
        }
        self.scene.barrier(self.cta, 0, WARPS);
        for warp in 0..WARPS {
            self.scene.load_shared(leader, 128 + 128 * warp, 5)?;
        }
        self.publish(leader, 10)?;
        self.look_back(leader)?;
        self.scene.store_shared(leader, 1024, 30)?;
        self.scene.barrier(self.cta, 0, WARPS);
        self.scene.load_shared(agent(self.cta, 1), 1024, 31)?;
        let out = self.scene.fresh + 32768 + u64::from(self.tile) * 128;
        self.scene.store_global(agent(self.cta, 1), out, 32)
    }

    fn publish(&mut self, leader: Agent, line: u32) -> Checked {
        let (flag, payload) = (self.flag(self.tile), self.payload(self.tile));
        if self.wrong(Mistake::FlagBeforePayload) {
            self.scene.signal(leader, LEADER, Kind::Store, (Order::Release, Scope::Gpu), flag, line + 2)?;
            return self.scene.store_global(leader, payload, line);
        }
        self.scene.store_global(leader, payload, line)?;
        if !self.wrong(Mistake::NoWarpSyncBeforeRelease) {
            self.scene.sanitizer.warp_sync(leader, ALL);
        }
        if self.style == Style::Fences && !self.wrong(Mistake::RelaxedFlagStoreWithoutFence) {
            let scope = if self.wrong(Mistake::FenceOfTheCtaOnly) { Scope::Cta } else { Scope::Gpu };
            self.scene.sanitizer.fence(leader, LEADER, scope);
        }
        let order = match self.style {
            _ if self.wrong(Mistake::PlainFlagStore) => Order::Weak,
            Style::Instructions => Order::Release,
            Style::Fences => Order::Relaxed,
        };
        self.scene.signal(leader, LEADER, Kind::Store, (order, Scope::Gpu), flag, line + 2)
    }

    /// All lanes poll, each its own predecessor, and read its payload.
    fn look_back(&mut self, leader: Agent) -> Checked {
        let window = self.tile.min(32);
        if window == 0 {
            return Ok(());
        }
        let mask = ALL >> (32 - window);
        let tile = self.tile;
        let order = match self.style {
            _ if self.wrong(Mistake::PlainPoll) => Order::Weak,
            Style::Instructions => Order::Acquire,
            Style::Fences => Order::Relaxed,
        };
        let flags: [u64; 32] = std::array::from_fn(|lane| self.flag(tile.saturating_sub(lane as u32 + 1)));
        let polled = if self.wrong(Mistake::PayloadOfATileNotPolled) { mask & !1 } else { mask };
        let poll =
            Request { agent: leader, mask: polled, bytes: 4, kind: Kind::Load, order, scope: Scope::Gpu, line: 20 };
        self.scene.sanitizer.global_access(&poll, &flags, &[])?;
        if self.style == Style::Fences && !self.wrong(Mistake::RelaxedPollWithoutFence) {
            self.scene.sanitizer.fence(leader, polled, Scope::Gpu);
        }
        let payloads: [u64; 32] =
            std::array::from_fn(|lane| self.payload(tile.saturating_sub(lane as u32 + 1)) + 4 * lane as u64);
        let kind = if self.wrong(Mistake::NonCoherentPayload) { Kind::LoadNonCoherent } else { Kind::Load };
        self.scene.sanitizer.global_access(&Request::weak(leader, mask, 4, kind, 22), &payloads, &[])
    }
}

/// The grid, tiles in ticket order, with the CTA that draws ticket `t` chosen by `cta_of`.
fn play(style: Style, mistake: Option<Mistake>, cta_of: impl Fn(u32) -> u32) -> Checked {
    let mut scene = Scene::new(TILES, WARPS);
    for tile in 0..TILES {
        let cta = cta_of(tile);
        Tile { scene: &mut scene, cta, tile, style, mistake }.run()?;
        scene.sanitizer.cta_exit(cta);
    }
    Ok(())
}

#[test]
fn the_correct_protocol_is_silent() {
    for style in [Style::Instructions, Style::Fences] {
        play(style, None, |tile| tile).unwrap();
        play(style, None, |tile| TILES - 1 - tile).unwrap();
        play(style, None, |tile| tile * 7 % TILES).unwrap();
    }
}

#[test]
fn every_mistake_is_found() {
    use Mistake::*;
    use Style::*;
    let cases = [
        (Instructions, PlainFlagStore, ViolationKind::Race),
        (Fences, RelaxedFlagStoreWithoutFence, ViolationKind::Race),
        (Fences, FenceOfTheCtaOnly, ViolationKind::Race),
        (Instructions, FlagBeforePayload, ViolationKind::Race),
        (Instructions, NoWarpSyncBeforeRelease, ViolationKind::Race),
        (Instructions, PlainPoll, ViolationKind::Race),
        (Fences, RelaxedPollWithoutFence, ViolationKind::Race),
        (Instructions, PayloadOfATileNotPolled, ViolationKind::Race),
        (Instructions, NonCoherentPayload, ViolationKind::NonCoherentRead),
    ];
    for (style, mistake, kind) in cases {
        let violation = play(style, Some(mistake), |tile| tile).expect_err(&format!("{mistake:?} passed"));
        assert_eq!(violation.kind, kind, "{mistake:?}: {violation}");
    }
}

#[test]
fn one_lane_may_poll_if_the_warp_meets_afterwards() {
    for meet in [true, false] {
        let mut scene = Scene::new(2, 1);
        let (flag, payload) = (scene.data, scene.fresh);
        scene.store_global(agent(0, 0), payload, 10).unwrap();
        scene.sanitizer.warp_sync(agent(0, 0), ALL);
        scene.signal(agent(0, 0), 1, Kind::Store, (Order::Release, Scope::Gpu), flag, 11).unwrap();
        scene.signal(agent(1, 0), 1, Kind::Load, (Order::Acquire, Scope::Gpu), flag, 12).unwrap();
        if meet {
            scene.sanitizer.warp_sync(agent(1, 0), ALL);
        }
        assert_eq!(scene.load_global(agent(1, 0), payload, 13).is_ok(), meet);
    }
}

#[test]
fn collectives_order_lanes_only_when_asked_to() {
    for lenient in [true, false] {
        let lints = Lints { collectives_order_lanes: lenient, ..Lints::default() };
        let mut scene = Scene::with_lints(2, 1, lints);
        let (flag, payload) = (scene.data, scene.fresh);
        scene.store_global(agent(0, 0), payload, 10).unwrap();
        scene.sanitizer.collective(agent(0, 0), ALL);
        scene.signal(agent(0, 0), 1, Kind::Store, (Order::Release, Scope::Gpu), flag, 11).unwrap();
        scene.signal(agent(1, 0), ALL, Kind::Load, (Order::Acquire, Scope::Gpu), flag, 12).unwrap();
        assert_eq!(scene.load_global(agent(1, 0), payload, 13).is_ok(), lenient);
    }
}

#[test]
fn grid_barrier_by_arrival_counter() {
    for good in [true, false] {
        let mut scene = Scene::new(8, 2);
        let counter = scene.data;
        let place = |scene: &Scene, cta: u32| scene.fresh + u64::from(cta) * 128;
        for cta in 0..8 {
            scene.store_global(agent(cta, 1), place(&scene, cta), 10).unwrap();
            scene.barrier(cta, 0, 2);
            let order = if good { Order::Release } else { Order::Relaxed };
            scene.signal(agent(cta, 0), 1, Kind::Atomic, (order, Scope::Gpu), counter, 11).unwrap();
        }
        for cta in 0..8 {
            scene.signal(agent(cta, 0), 1, Kind::Load, (Order::Acquire, Scope::Gpu), counter, 12).unwrap();
            scene.barrier(cta, 0, 2);
            let neighbour = place(&scene, (cta + 3) % 8);
            assert_eq!(scene.load_global(agent(cta, 1), neighbour, 13).is_ok(), good);
        }
    }
}
