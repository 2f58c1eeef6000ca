//! Shared memory: races between warps, uninitialised bytes, lanes that collide.

use super::*;

#[test]
fn barrier_orders_write_and_read() {
    let mut scene = Scene::new(1, 2);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    scene.barrier(0, 0, 2);
    scene.load_shared(agent(0, 1), 0, 11).unwrap();
    scene.barrier(0, 0, 2);
    scene.store_shared(agent(0, 0), 0, 12).unwrap();
}

#[test]
fn read_after_write_without_barrier_is_a_race() {
    let mut scene = Scene::new(1, 2);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    let report = expect(scene.load_shared(agent(0, 1), 0, 11), ViolationKind::Race);
    for part in ["warp 1", "reads it at line 11", "warp 0", "wrote it at line 10", "0x400"] {
        assert!(report.contains(part), "{part} missing in: {report}");
    }
}

#[test]
fn write_after_read_without_barrier_is_a_race_for_every_reader() {
    for late in 1..4 {
        let mut scene = Scene::new(1, 4);
        scene.store_shared(agent(0, 0), 0, 10).unwrap();
        scene.barrier(0, 0, 4);
        for warp in 1..4 {
            scene.load_shared(agent(0, warp), 0, 20 + warp).unwrap();
        }
        for warp in (0..4).filter(|warp| *warp != late) {
            scene.sanitizer.barrier_arrive(agent(0, warp), 1);
        }
        scene.sanitizer.barrier_complete(0, 1, 0b1111 & !(1 << late));
        let report = expect(scene.store_shared(agent(0, 0), 0, 30), ViolationKind::Race);
        assert!(report.contains(&format!("read it at line {}", 20 + late)), "{report}");
    }
}

#[test]
fn two_writers_race() {
    let mut scene = Scene::new(1, 2);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    expect(scene.store_shared(agent(0, 1), 124, 11), ViolationKind::Race);
}

#[test]
fn bytes_of_one_word_are_apart() {
    let mut scene = Scene::new(1, 2);
    let half = |scene: &mut Scene, warp, kind, offset| scene.shared(agent(0, warp), 1, kind, offset, 2, 5);
    half(&mut scene, 0, Kind::Store, 0).unwrap();
    half(&mut scene, 1, Kind::Store, 2).unwrap();
    half(&mut scene, 1, Kind::Load, 2).unwrap();
    expect(half(&mut scene, 0, Kind::Store, 2), ViolationKind::Race);
}

#[test]
fn uninitialised_bytes_are_named() {
    let mut scene = Scene::new(1, 1);
    scene.shared(agent(0, 0), 0b111, Kind::Store, 0, 2, 5).unwrap();
    scene.shared(agent(0, 0), 0b111, Kind::Load, 0, 2, 6).unwrap();
    let report = expect(scene.shared(agent(0, 0), 0b11, Kind::Load, 0, 4, 7), ViolationKind::Uninitialised);
    assert!(report.contains("byte 6 of") && report.contains("lane 1"), "{report}");
}

#[test]
fn a_new_cta_in_the_same_place_starts_afresh() {
    let mut scene = Scene::new(2, 2);
    scene.store_shared(agent(0, 0), 0, 10).unwrap();
    scene.barrier(0, 0, 2);
    scene.load_shared(agent(0, 1), 0, 11).unwrap();
    scene.sanitizer.cta_exit(0);
    scene.sanitizer.cta_exit(1);
    scene.sanitizer.cta_start(1);
    scene.sanitizer.cta_start(0);
    for cta in 0..2 {
        expect(scene.load_shared(agent(cta, 0), 0, 12), ViolationKind::Uninitialised);
        scene.store_shared(agent(cta, 0), 0, 13).unwrap();
        expect(scene.load_shared(agent(cta, 1), 0, 14), ViolationKind::Race);
        scene.barrier(cta, 0, 2);
        scene.load_shared(agent(cta, 1), 0, 15).unwrap();
    }
}

#[test]
fn atomics_do_not_race_with_each_other() {
    let mut scene = Scene::new(1, 2);
    scene.shared(agent(0, 0), 1, Kind::Store, 0, 4, 1).unwrap();
    scene.barrier(0, 0, 2);
    for warp in 0..2 {
        scene.shared(agent(0, warp), 1, Kind::Atomic, 0, 4, 2).unwrap();
    }
    expect(scene.shared(agent(0, 0), 1, Kind::Load, 0, 4, 3), ViolationKind::Race);
    scene.barrier(0, 0, 2);
    scene.shared(agent(0, 0), 1, Kind::Load, 0, 4, 3).unwrap();
}

#[test]
fn atomics_do_not_hide_what_was_before_them() {
    // A plain store, then an atomic operation of the same warp: that of another warp races with the store.
    let mut scene = Scene::new(1, 2);
    scene.shared(agent(0, 0), 1, Kind::Store, 0, 4, 1).unwrap();
    scene.shared(agent(0, 0), 1, Kind::Atomic, 0, 4, 2).unwrap();
    expect(scene.shared(agent(0, 1), 1, Kind::Atomic, 0, 4, 2), ViolationKind::Race);
    // An atomic operation of each, then a plain read of the warp that came last.
    let mut scene = Scene::new(1, 2);
    scene.shared(agent(0, 0), 1, Kind::Store, 0, 4, 1).unwrap();
    scene.barrier(0, 0, 2);
    for warp in 0..2 {
        scene.shared(agent(0, warp), 1, Kind::Atomic, 0, 4, 2).unwrap();
    }
    expect(scene.shared(agent(0, 1), 1, Kind::Load, 0, 4, 3), ViolationKind::Race);
    scene.barrier(0, 0, 2);
    scene.shared(agent(0, 1), 1, Kind::Load, 0, 4, 3).unwrap();
    scene.shared(agent(0, 0), 1, Kind::Store, 0, 4, 4).unwrap_err();
}

#[test]
fn lanes_of_one_store_must_agree() {
    let mut scene = Scene::new(1, 1);
    let mut addresses: [u32; 32] = std::array::from_fn(|lane| SHARED + 8 * lane as u32);
    addresses[9] = addresses[4];
    let mut low = [7; 32];
    let high = [9; 32];
    let request = Request::weak(agent(0, 0), ALL, 8, Kind::Store, 40);
    scene.sanitizer.shared_access(&request, &addresses, &[&low, &high]).unwrap();
    low[9] = 8;
    let report =
        expect(scene.sanitizer.shared_access(&request, &addresses, &[&low, &high]), ViolationKind::LaneConflict);
    assert!(report.contains("lane 4") && report.contains("lane 9"), "{report}");
    let narrow = Request { bytes: 1, ..request };
    low[9] = 7 + 256;
    scene.sanitizer.shared_access(&narrow, &addresses, &[&low]).unwrap();
}

#[test]
fn lanes_that_rely_on_convergence_are_a_lint() {
    for strict in [false, true] {
        let lints = Lints { lane_order: strict, ..Lints::default() };
        let mut scene = Scene::with_lints(1, 1, lints);
        scene.store_shared(agent(0, 0), 0, 10).unwrap();
        scene.load_shared(agent(0, 0), 0, 11).unwrap();
        let shifted = scene.shared(agent(0, 0), ALL >> 1, Kind::Load, 4, 4, 12);
        if strict {
            expect(shifted, ViolationKind::LaneOrder);
        } else {
            shifted.unwrap();
        }
        scene.sanitizer.warp_sync(agent(0, 0), ALL);
        scene.shared(agent(0, 0), ALL >> 1, Kind::Load, 4, 4, 12).unwrap();
    }
}

/// Each lane its word first; then all lanes but the first, each the word of the lane before it.
#[test]
fn lanes_that_overwrite_each_other_are_a_lint() {
    let kinds = [(Kind::Store, Kind::Load), (Kind::Load, Kind::Store), (Kind::Store, Kind::Store)];
    for (first, second) in kinds {
        for strict in [false, true] {
            let mut scene = Scene::with_lints(1, 1, Lints { lane_order: strict, ..Lints::default() });
            scene.store_shared(agent(0, 0), 0, 10).unwrap();
            scene.sanitizer.warp_sync(agent(0, 0), ALL);
            scene.shared(agent(0, 0), ALL, first, 0, 4, 11).unwrap();
            scene.shared(agent(0, 0), ALL, second, 0, 4, 12).unwrap();
            scene.sanitizer.warp_sync(agent(0, 0), ALL);
            scene.shared(agent(0, 0), ALL, first, 0, 4, 13).unwrap();
            let shifted = scene.shared(agent(0, 0), ALL >> 1, second, 4, 4, 14);
            if strict {
                let report = expect(shifted, ViolationKind::LaneOrder);
                assert!(report.contains("line 13"), "{report}");
            } else {
                shifted.unwrap();
            }
        }
    }
}

/// All lanes read one word, then one of them writes it: whichever it is.
#[test]
fn a_lane_that_overwrites_what_all_have_read_is_a_lint() {
    for lane in [0, 5, 31] {
        let lints = Lints { lane_order: true, ..Lints::default() };
        let mut scene = Scene::with_lints(1, 1, lints);
        scene.store_shared(agent(0, 0), 0, 10).unwrap();
        scene.sanitizer.warp_sync(agent(0, 0), ALL);
        let load = Request::weak(agent(0, 0), ALL, 4, Kind::Load, 11);
        let store = Request::weak(agent(0, 0), 1 << lane, 4, Kind::Store, 12);
        let addresses = [SHARED + 8; 32];
        for _ in 0..3 {
            scene.sanitizer.shared_access(&load, &addresses, &[]).unwrap();
            scene.sanitizer.warp_sync(agent(0, 0), ALL);
        }
        scene.sanitizer.shared_access(&load, &addresses, &[]).unwrap();
        expect(scene.sanitizer.shared_access(&store, &addresses, &[]), ViolationKind::LaneOrder);
        scene.sanitizer.warp_sync(agent(0, 0), ALL);
        scene.sanitizer.shared_access(&store, &addresses, &[]).unwrap();
    }
}
