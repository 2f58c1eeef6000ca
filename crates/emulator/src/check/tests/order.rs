//! What orders warps of one CTA: named barriers, mbarriers, flags in shared memory.

use super::*;

#[test]
fn named_barrier_orders_producers_and_consumers_only() {
    let mut scene = Scene::new(1, 4);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    scene.store_shared(agent(0, 1), 128, 11).unwrap();
    // Warps 0 and 1 arrive and go on, warps 2 and 3 wait.
    for warp in 0..4 {
        scene.sanitizer.barrier_arrive(agent(0, warp), 3);
    }
    scene.store_shared(agent(0, 0), 256, 12).unwrap();
    scene.sanitizer.barrier_complete(0, 3, 0b1100);
    scene.load_shared(agent(0, 2), 0, 13).unwrap();
    scene.load_shared(agent(0, 3), 128, 14).unwrap();
    expect(scene.load_shared(agent(0, 2), 256, 15), ViolationKind::Race);
    expect(scene.load_shared(agent(0, 0), 128, 16), ViolationKind::Race);
}

#[test]
fn barriers_pass_on_what_others_taught() {
    let mut scene = Scene::new(1, 3);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    for (id, pair) in [(1, [0, 1]), (2, [1, 2])] {
        for warp in pair {
            scene.sanitizer.barrier_arrive(agent(0, warp), id);
        }
        scene.sanitizer.barrier_complete(0, id, 1 << pair[0] | 1 << pair[1]);
    }
    scene.load_shared(agent(0, 2), 0, 11).unwrap();
}

#[test]
fn mbarrier_phase_orders_arrivals_before_waits() {
    let (full, empty) = (SHARED + 4096, SHARED + 4104);
    let mut scene = Scene::new(1, 2);
    for round in 0..3 {
        scene.store_shared(agent(0, 0), 0, 10).unwrap();
        scene.sanitizer.mbarrier_arrive(agent(0, 0), ALL, full, Order::Release);
        scene.sanitizer.mbarrier_phase(0, full);
        expect(scene.load_shared(agent(0, 1), 0, 11), ViolationKind::Race);
        scene.sanitizer.mbarrier_wait(agent(0, 1), ALL, full);
        scene.load_shared(agent(0, 1), 0, 12).unwrap();
        expect(scene.store_shared(agent(0, 0), 0, 13), ViolationKind::Race);
        let order = if round == 2 { Order::Relaxed } else { Order::Release };
        scene.sanitizer.mbarrier_arrive(agent(0, 1), ALL, empty, order);
        scene.sanitizer.mbarrier_phase(0, empty);
        scene.sanitizer.mbarrier_wait(agent(0, 0), ALL, empty);
    }
    expect(scene.store_shared(agent(0, 0), 0, 14), ViolationKind::Race);
}

#[test]
fn arrival_for_the_next_phase_is_not_in_this_one() {
    let barrier = SHARED + 4096;
    let mut scene = Scene::new(1, 3);
    scene.sanitizer.mbarrier_arrive(agent(0, 0), ALL, barrier, Order::Release);
    scene.sanitizer.mbarrier_phase(0, barrier);
    scene.store_shared(agent(0, 1), 0, 10).unwrap();
    scene.sanitizer.mbarrier_arrive(agent(0, 1), ALL, barrier, Order::Release);
    scene.sanitizer.mbarrier_wait(agent(0, 2), ALL, barrier);
    expect(scene.load_shared(agent(0, 2), 0, 11), ViolationKind::Race);
    scene.sanitizer.mbarrier_phase(0, barrier);
    scene.sanitizer.mbarrier_wait(agent(0, 2), ALL, barrier);
    scene.load_shared(agent(0, 2), 0, 12).unwrap();
}

#[test]
fn elected_arrival_needs_the_warp_to_meet_first() {
    for meet in [false, true] {
        let barrier = SHARED + 4096;
        let mut scene = Scene::new(1, 2);
        scene.store_shared(agent(0, 0), 0, 10).unwrap();
        if meet {
            scene.sanitizer.warp_sync(agent(0, 0), ALL);
        }
        scene.sanitizer.mbarrier_arrive(agent(0, 0), 1, barrier, Order::Release);
        scene.sanitizer.mbarrier_phase(0, barrier);
        scene.sanitizer.mbarrier_wait(agent(0, 1), ALL, barrier);
        let all = scene.load_shared(agent(0, 1), 0, 11);
        if meet {
            all.unwrap();
        } else {
            let report = expect(all, ViolationKind::Race);
            assert!(report.contains("warp 0 lane 1"), "lane 0 released its own write: {report}");
        }
    }
}

#[test]
fn half_a_warp_may_meet_and_elect() {
    let barrier = SHARED + 4096;
    let mut scene = Scene::new(1, 2);
    scene.shared(agent(0, 0), 0xFFFF, Kind::Store, 0, 4, 10).unwrap();
    scene.sanitizer.warp_sync(agent(0, 0), 0xFFFF);
    scene.sanitizer.mbarrier_arrive(agent(0, 0), 1, barrier, Order::Release);
    scene.sanitizer.mbarrier_phase(0, barrier);
    scene.sanitizer.mbarrier_wait(agent(0, 1), 1, barrier);
    expect(scene.shared(agent(0, 1), 2, Kind::Load, 0, 4, 11), ViolationKind::Race);
    scene.sanitizer.warp_sync(agent(0, 1), 0xFF);
    scene.shared(agent(0, 1), 0xFF, Kind::Load, 0, 4, 12).unwrap();
    expect(scene.shared(agent(0, 1), 0x100, Kind::Load, 0, 4, 13), ViolationKind::Race);
}

#[test]
fn exited_lanes_are_not_waited_for() {
    let barrier = SHARED + 4096;
    let mut scene = Scene::new(1, 2);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    scene.sanitizer.lanes_exit(agent(0, 1), ALL << 8);
    scene.sanitizer.warp_sync(agent(0, 0), ALL);
    scene.sanitizer.mbarrier_arrive(agent(0, 0), 1, barrier, Order::Release);
    scene.sanitizer.mbarrier_phase(0, barrier);
    scene.sanitizer.mbarrier_wait(agent(0, 1), 0xFF, barrier);
    scene.shared(agent(0, 1), 0xFF, Kind::Load, 0, 4, 12).unwrap();
}

#[test]
fn flags_in_shared_memory() {
    for release in [true, false] {
        let mut scene = Scene::new(1, 2);
        let flag = [SHARED + 4096; 32];
        scene.shared(agent(0, 0), 1, Kind::Store, 4096, 4, 1).unwrap();
        scene.barrier(0, 0, 2);
        let request = |warp, kind, order| Request {
            agent: agent(0, warp),
            mask: 1,
            bytes: 4,
            kind,
            order,
            scope: Scope::Cta,
            line: 9,
        };
        scene.store_shared(agent(0, 0), 0, 10).unwrap();
        scene.sanitizer.warp_sync(agent(0, 0), ALL);
        let order = if release { Order::Release } else { Order::Relaxed };
        scene.sanitizer.shared_access(&request(0, Kind::Store, order), &flag, &[]).unwrap();
        scene.sanitizer.shared_access(&request(1, Kind::Load, Order::Acquire), &flag, &[]).unwrap();
        scene.sanitizer.warp_sync(agent(0, 1), ALL);
        let read = scene.load_shared(agent(0, 1), 0, 11);
        if release {
            read.unwrap();
        } else {
            expect(read, ViolationKind::Race);
        }
    }
}
