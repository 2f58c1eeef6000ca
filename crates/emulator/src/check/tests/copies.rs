//! Asynchronous copies: claimed at issue, released at the wait, visible to others after a barrier.

use super::*;

#[test]
fn nobody_may_touch_a_copy_in_flight() {
    for warp in 0..2 {
        for kind in [Kind::Load, Kind::Store] {
            let mut scene = Scene::new(1, 2);
            scene.copy(agent(0, 0), 0, 10).unwrap();
            let report = expect(scene.shared(agent(0, warp), 1, kind, 64, 4, 11), ViolationKind::AsyncInFlight);
            assert!(report.contains("lane 4 began to copy asynchronously to it at line 10"), "{report}");
        }
    }
}

#[test]
fn wait_gives_the_data_to_the_lane_and_a_barrier_to_the_rest() {
    let mut scene = Scene::new(1, 2);
    let copy = scene.copy(agent(0, 0), 0, 10).unwrap();
    scene.sanitizer.async_complete(agent(0, 0), copy, ALL);
    scene.shared(agent(0, 0), ALL, Kind::Load, 0, 16, 11).unwrap();
    let report = expect(scene.shared(agent(0, 0), 0b10, Kind::Load, 0, 4, 12), ViolationKind::Race);
    assert!(report.contains("copied asynchronously to it at line 10"), "{report}");
    expect(scene.load_shared(agent(0, 1), 0, 13), ViolationKind::Race);
    scene.sanitizer.warp_sync(agent(0, 0), ALL);
    scene.load_shared(agent(0, 0), 0, 14).unwrap();
    expect(scene.load_shared(agent(0, 1), 0, 15), ViolationKind::Race);
    scene.barrier(0, 0, 2);
    scene.load_shared(agent(0, 1), 0, 16).unwrap();
}

#[test]
fn lanes_may_wait_apart() {
    let mut scene = Scene::new(1, 1);
    let copy = scene.copy(agent(0, 0), 0, 10).unwrap();
    scene.sanitizer.async_complete(agent(0, 0), copy, 0xFFFF);
    scene.shared(agent(0, 0), 0xFFFF, Kind::Load, 0, 16, 11).unwrap();
    expect(scene.shared(agent(0, 0), 1 << 16, Kind::Load, 0, 16, 12), ViolationKind::AsyncInFlight);
    scene.sanitizer.async_complete(agent(0, 0), copy, 0xFFFF_0000);
    scene.shared(agent(0, 0), ALL, Kind::Load, 0, 16, 13).unwrap();
}

#[test]
fn a_ring_of_stages_needs_its_second_barrier() {
    for second_barrier in [true, false] {
        let mut scene = Scene::new(1, 2);
        let mut outcome = Ok(());
        for step in 0..4 {
            let stage = 2048 * (step % 2);
            for warp in 0..2 {
                let offset = stage + 512 * warp;
                match scene.copy(agent(0, warp), offset, 10) {
                    Ok(copy) => scene.sanitizer.async_complete(agent(0, warp), copy, ALL),
                    Err(violation) => outcome = outcome.and(Err(violation)),
                }
            }
            scene.barrier(0, 0, 2);
            for warp in 0..2 {
                outcome = outcome.and(scene.shared(agent(0, warp), ALL, Kind::Load, stage + 512 * (1 - warp), 16, 12));
            }
            if second_barrier || step % 2 == 0 {
                scene.barrier(0, 0, 2);
            }
            if !second_barrier && step == 1 {
                let again = scene.copy(agent(0, 0), stage, 13).map(|_| ());
                let report = expect(again, ViolationKind::Race);
                assert!(report.contains("read it at line 12"), "{report}");
                return;
            }
        }
        outcome.unwrap();
    }
}

#[test]
fn bulk_copies_are_seen_through_their_mbarrier_alone() {
    let barrier = SHARED + 4096;
    let mut scene = Scene::new(1, 2);
    let copy = scene.copy(agent(0, 0), 0, 10).unwrap();
    scene.sanitizer.mbarrier_arrive(agent(0, 0), 1, barrier, Order::Release);
    scene.sanitizer.async_complete_on(agent(0, 0), copy, ALL, barrier);
    scene.sanitizer.mbarrier_phase(0, barrier);
    expect(scene.load_shared(agent(0, 0), 0, 11), ViolationKind::Race);
    expect(scene.load_shared(agent(0, 1), 0, 12), ViolationKind::Race);
    scene.sanitizer.mbarrier_wait(agent(0, 1), ALL, barrier);
    scene.load_shared(agent(0, 1), 0, 13).unwrap();
}

#[test]
fn lanes_may_complete_on_mbarriers_of_their_own() {
    let barriers = [SHARED + 4096, SHARED + 4104];
    let mut scene = Scene::new(1, 2);
    let copy = scene.copy(agent(0, 0), 0, 10).unwrap();
    for (barrier, lanes) in barriers.into_iter().zip([0xffff, 0xffff_0000]) {
        scene.sanitizer.async_complete_on(agent(0, 0), copy, lanes, barrier);
        scene.sanitizer.mbarrier_phase(0, barrier);
    }
    scene.sanitizer.mbarrier_wait(agent(0, 0), 0xffff, barriers[0]);
    scene.shared(agent(0, 0), 0xffff, Kind::Load, 0, 16, 11).unwrap();
    expect(scene.shared(agent(0, 1), 0xffff, Kind::Load, 0, 16, 12), ViolationKind::Race);
    scene.sanitizer.mbarrier_wait(agent(0, 0), 0xffff_0000, barriers[1]);
    scene.shared(agent(0, 0), ALL, Kind::Load, 0, 16, 13).unwrap();
}

#[test]
fn ldmatrix_hands_a_lanes_copy_to_all() {
    let mut scene = Scene::new(1, 1);
    let copy = scene.copy(agent(0, 0), 0, 10).unwrap();
    scene.sanitizer.async_complete(agent(0, 0), copy, ALL);
    scene.shared(agent(0, 0), ALL, Kind::Load, 0, 16, 11).unwrap();
    expect(scene.shared(agent(0, 0), ALL, Kind::LoadMatrix, 0, 16, 12), ViolationKind::Race);
    scene.sanitizer.warp_sync(agent(0, 0), ALL);
    scene.shared(agent(0, 0), ALL, Kind::LoadMatrix, 0, 16, 13).unwrap();
}
