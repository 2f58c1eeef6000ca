//! Global memory: between CTAs and within one, initialisation, the non-coherent path.

use super::*;

#[test]
fn reads_of_the_same_data_never_race() {
    let mut scene = Scene::new(3, 2);
    for cta in 0..3 {
        for warp in 0..2 {
            scene.load_global(agent(cta, warp), scene.data, 10).unwrap();
            scene.global(agent(cta, warp), ALL, Kind::LoadNonCoherent, scene.data + 4096, 16, 11).unwrap();
        }
    }
}

#[test]
fn ctas_race_however_long_the_barrier() {
    let mut scene = Scene::new(2, 1);
    scene.store_global(agent(0, 0), scene.data, 10).unwrap();
    scene.barrier(0, 0, 1);
    scene.barrier(1, 0, 1);
    let report = expect(scene.load_global(agent(1, 0), scene.data, 11), ViolationKind::Race);
    for part in
        ["CTA 1 warp 0", "reads it at line 11", "CTA 0 warp 0 lane 0 wrote it at line 10", "allocation 1 (65536 bytes)"]
    {
        assert!(report.contains(part), "{part} missing in: {report}");
    }
    expect(scene.store_global(agent(1, 0), scene.data + 64, 12), ViolationKind::Race);
}

#[test]
fn write_after_foreign_read_is_a_race() {
    let mut scene = Scene::new(3, 1);
    scene.load_global(agent(0, 0), scene.data, 10).unwrap();
    scene.load_global(agent(1, 0), scene.data, 11).unwrap();
    expect(scene.store_global(agent(0, 0), scene.data, 12), ViolationKind::Race);
    expect(scene.store_global(agent(1, 0), scene.data, 13), ViolationKind::Race);
    expect(scene.store_global(agent(2, 0), scene.data, 14), ViolationKind::Race);
}

#[test]
fn the_same_warp_may_read_and_write_in_turn() {
    let mut scene = Scene::new(1, 1);
    for line in 10..14 {
        scene.load_global(agent(0, 0), scene.data, line).unwrap();
        scene.store_global(agent(0, 0), scene.data, line).unwrap();
    }
}

#[test]
fn barrier_orders_global_memory_within_a_cta() {
    let mut scene = Scene::new(1, 2);
    let data = scene.data;
    scene.store_global(agent(0, 0), data, 10).unwrap();
    expect(scene.load_global(agent(0, 1), data, 11), ViolationKind::Race);
    scene.barrier(0, 0, 2);
    scene.load_global(agent(0, 1), data, 12).unwrap();
    expect(scene.store_global(agent(0, 0), data, 13), ViolationKind::Race);
    scene.barrier(0, 0, 2);
    scene.store_global(agent(0, 0), data, 14).unwrap();
}

#[test]
fn whole_lines_and_parts_mix() {
    let mut scene = Scene::new(2, 2);
    let data = scene.data;
    // Whole lines, then a part by another warp after a barrier, then the foreign CTA finds both.
    scene.global(agent(0, 0), ALL, Kind::Store, data, 16, 10).unwrap();
    scene.barrier(0, 0, 2);
    scene.global(agent(0, 1), 0b1, Kind::Store, data + 68, 4, 11).unwrap();
    let report = expect(scene.global(agent(1, 0), 1, Kind::Load, data + 64, 4, 12), ViolationKind::Race);
    assert!(report.contains("warp 0 lane 4 wrote it at line 10"), "{report}");
    let report = expect(scene.global(agent(1, 0), 1, Kind::Load, data + 68, 4, 12), ViolationKind::Race);
    assert!(report.contains("warp 1 lane 0 wrote it at line 11"), "{report}");
}

#[test]
fn halves_of_a_word_may_belong_to_two_ctas() {
    let mut scene = Scene::new(2, 1);
    let data = scene.data;
    scene.global(agent(0, 0), 0x1F, Kind::Store, data, 2, 10).unwrap();
    scene.global(agent(1, 0), 0x1F, Kind::Store, data + 10, 2, 10).unwrap();
    scene.global(agent(0, 0), 0x1F, Kind::Load, data, 2, 11).unwrap();
    expect(scene.global(agent(1, 0), 1, Kind::Load, data + 6, 2, 11), ViolationKind::Race);
}

#[test]
fn uninitialised_memory_is_found_and_stores_initialise_it() {
    let mut scene = Scene::new(1, 1);
    let fresh = scene.fresh;
    let report = expect(scene.load_global(agent(0, 0), fresh, 10), ViolationKind::Uninitialised);
    assert!(report.contains("byte 0 of allocation 2") && report.contains("lane 0"), "{report}");
    scene.global(agent(0, 0), ALL >> 1, Kind::Store, fresh, 4, 11).unwrap();
    let report = expect(scene.load_global(agent(0, 0), fresh, 12), ViolationKind::Uninitialised);
    assert!(report.contains("byte 124 of allocation 2") && report.contains("lane 31"), "{report}");
}

#[test]
fn non_coherent_reads_want_constant_memory() {
    let mut scene = Scene::new(1, 1);
    let data = scene.data;
    scene.store_global(agent(0, 0), data, 10).unwrap();
    expect(scene.global(agent(0, 0), ALL, Kind::LoadNonCoherent, data, 4, 11), ViolationKind::NonCoherentRead);
    scene.global(agent(0, 0), ALL, Kind::LoadNonCoherent, data + 4096, 4, 12).unwrap();
    scene.global(agent(0, 0), ALL, Kind::Load, data + 4096, 4, 12).unwrap();
    expect(scene.store_global(agent(0, 0), data + 4096, 13), ViolationKind::NonCoherentRead);
}

#[test]
fn atomics_meet_and_plain_reads_do_not() {
    let mut scene = Scene::new(2, 1);
    let counter = scene.data;
    for cta in 0..2 {
        scene.signal(agent(cta, 0), 1, Kind::Atomic, (Order::Relaxed, Scope::Gpu), counter, 10).unwrap();
    }
    scene.signal(agent(0, 0), 1, Kind::Load, (Order::Relaxed, Scope::Gpu), counter, 11).unwrap();
    expect(scene.global(agent(0, 0), 1, Kind::Load, counter, 4, 12), ViolationKind::Race);
    let narrow = scene.signal(agent(0, 0), 1, Kind::Load, (Order::Relaxed, Scope::Cta), counter, 13);
    expect(narrow, ViolationKind::Race);
}

#[test]
fn atomics_do_not_hide_what_was_before_them() {
    let mut scene = Scene::new(3, 1);
    let counter = scene.data;
    let mut atomic = |cta| scene.signal(agent(cta, 0), 1, Kind::Atomic, (Order::Relaxed, Scope::Gpu), counter, 10);
    atomic(0).unwrap();
    atomic(1).unwrap();
    // CTA 1 came last, but nothing orders its plain read after what CTA 0 did.
    expect(scene.global(agent(1, 0), 1, Kind::Load, counter, 4, 12), ViolationKind::Race);
    let cell = scene.data + 128;
    scene.global(agent(0, 0), 1, Kind::Store, cell, 4, 13).unwrap();
    scene.signal(agent(0, 0), 1, Kind::Atomic, (Order::Relaxed, Scope::Gpu), cell, 14).unwrap();
    let other = scene.signal(agent(1, 0), 1, Kind::Atomic, (Order::Relaxed, Scope::Gpu), cell, 14);
    expect(other, ViolationKind::Race);
}

#[test]
fn the_last_block_may_sum_what_the_others_left() {
    #[derive(PartialEq, Clone, Copy, Debug)]
    enum Way {
        Fences,
        AcquireRelease,
        NoFenceBefore,
        NoFenceAfter,
    }
    for way in [Way::Fences, Way::AcquireRelease, Way::NoFenceBefore, Way::NoFenceAfter] {
        let mut scene = Scene::new(4, 2);
        let (partials, counter) = (scene.data + 1024, scene.data);
        for cta in 0..4 {
            scene.store_global(agent(cta, 1), partials + 256 * u64::from(cta), 10).unwrap();
            scene.barrier(cta, 0, 2);
            if way == Way::Fences || way == Way::NoFenceAfter {
                scene.sanitizer.fence(agent(cta, 0), 1, Scope::Gpu);
            }
            let order = if way == Way::AcquireRelease { Order::AcquireRelease } else { Order::Relaxed };
            scene.signal(agent(cta, 0), 1, Kind::Atomic, (order, Scope::Gpu), counter, 11).unwrap();
            if way == Way::Fences || way == Way::NoFenceBefore {
                scene.sanitizer.fence(agent(cta, 0), 1, Scope::Gpu);
            }
            scene.barrier(cta, 0, 2);
        }
        let good = matches!(way, Way::Fences | Way::AcquireRelease);
        for cta in 0..3 {
            let read = scene.load_global(agent(3, 1), partials + 256 * cta, 12);
            assert_eq!(read.is_ok(), good, "{way:?}: {read:?}");
        }
    }
}

/// Each lane its word first; then all lanes but the last, each the word of the lane after it.
#[test]
fn lanes_that_rely_on_convergence_are_a_lint() {
    for (first, second) in [(Kind::Store, Kind::Load), (Kind::Load, Kind::Store), (Kind::Store, Kind::Store)] {
        for strict in [false, true] {
            let mut scene = Scene::with_lints(1, 1, Lints { lane_order: strict, ..Lints::default() });
            let at = scene.data;
            scene.global(agent(0, 0), ALL, first, at, 4, 11).unwrap();
            scene.global(agent(0, 0), ALL, second, at, 4, 12).unwrap();
            scene.sanitizer.warp_sync(agent(0, 0), ALL);
            scene.global(agent(0, 0), ALL, first, at, 4, 13).unwrap();
            let shifted = scene.global(agent(0, 0), ALL >> 1, second, at + 4, 4, 14);
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
        let mut scene = Scene::with_lints(1, 1, Lints { lane_order: true, ..Lints::default() });
        let load = Request::weak(agent(0, 0), ALL, 4, Kind::Load, 11);
        let store = Request::weak(agent(0, 0), 1 << lane, 4, Kind::Store, 12);
        let addresses = [scene.data + 8; 32];
        for _ in 0..3 {
            scene.sanitizer.global_access(&load, &addresses, &[]).unwrap();
            scene.sanitizer.warp_sync(agent(0, 0), ALL);
        }
        scene.sanitizer.global_access(&load, &addresses, &[]).unwrap();
        expect(scene.sanitizer.global_access(&store, &addresses, &[]), ViolationKind::LaneOrder);
        scene.sanitizer.warp_sync(agent(0, 0), ALL);
        scene.sanitizer.global_access(&store, &addresses, &[]).unwrap();
    }
}
