//! Short cuts must not show: whatever random plain accesses a launch makes, they find what the long way finds.

use super::model::Dice;
use super::*;
use crate::check::lanes::{Run, Runs};

const WARPS: u32 = 3;
const CTAS: u32 = 2;

/// Addresses of one instruction as programs form them: side by side, apart, swizzled, all over the place.
fn addresses(dice: &mut Dice, bytes: u32) -> [u32; 32] {
    let shape = dice.roll(6);
    let start = bytes * dice.roll(8) + 256 * dice.roll(4);
    std::array::from_fn(|lane| {
        let lane = lane as u32;
        match shape {
            0..2 => bytes * lane + (start & !63),
            2 => 40 * 16 / bytes.max(4) * bytes * (lane % 8) + bytes * (lane / 8) + start,
            3 => 2 * bytes * lane + start,
            4 => bytes * (lane ^ 3) + start,
            _ => bytes * dice.roll(64) + start,
        }
    })
}

/// Runs one after the other, as the lanes come.
fn slow_runs(mask: u32, addresses: &[u32; 32], bytes: u32, merge: bool) -> Vec<Run> {
    let mut runs: Vec<(Run, u32, bool)> = Vec::new();
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let start = u64::from(addresses[lane as usize]);
        if let Some((run, next, repeats)) = runs.last_mut()
            && *next == lane
        {
            let single = run.bytes == u64::from(bytes);
            let repeat = merge && single && start == run.start;
            if repeat || (!*repeats && start == run.start + run.bytes) {
                run.bytes += if repeat { 0 } else { u64::from(bytes) };
                *repeats |= repeat;
                *next += 1;
                continue;
            }
        }
        runs.push((Run { start, bytes: bytes.into(), lane }, lane + 1, false));
    }
    runs.into_iter().map(|(run, ..)| run).collect()
}

#[test]
fn runs_are_what_the_lanes_say() {
    let mut dice = Dice(7);
    for _ in 0..20_000 {
        let bytes = 1 << dice.roll(5);
        let mut addresses = addresses(&mut dice, bytes);
        if dice.roll(3) == 0 {
            let lane = dice.roll(31) as usize;
            addresses[lane + 1] = addresses[lane];
        }
        let mask = [ALL, ALL, 0xFFFF, 0xF0F0_FF01, 1 << 31][dice.roll(5) as usize];
        let merge = dice.roll(2) == 0;
        let runs = Runs::new(mask, &addresses, bytes).merge_equal(merge);
        assert_eq!(runs.collect::<Vec<_>>(), slow_runs(mask, &addresses, bytes, merge), "{mask:#x} {addresses:?}");
    }
}

/// One random program with short cuts and without them: the lint needs every word told apart. What the lint alone
/// reports is mended and tried again. Whether something was found.
fn play(seed: u64) -> bool {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1);
    let every_word = Lints { lane_order: true, ..Lints::default() };
    let mut scenes = [Scene::new(CTAS, WARPS), Scene::with_lints(CTAS, WARPS, every_word)];
    let fresh = dice.roll(16) == 0;
    for scene in &mut scenes {
        for cta in 0..CTAS {
            (0..16).for_each(|row| scene.shared(agent(cta, 0), ALL, Kind::Store, 512 * row, 16, 1).unwrap());
            scene.barrier(cta, 0, WARPS);
        }
    }
    for step in 0..120 {
        let who = agent(dice.roll(CTAS), dice.roll(WARPS));
        let mask = [ALL, ALL, ALL, 0xFF, 2][dice.roll(5) as usize];
        let (action, shared) = (dice.roll(16), dice.roll(2) == 0);
        let bytes = 1 << dice.roll(5);
        let kind = if dice.roll(2) == 0 { Kind::Store } else { Kind::Load };
        let own = if dice.roll(25) == 0 { 0 } else { 1 + who.warp + WARPS * who.cta * u32::from(!shared) };
        // Places of the warp's own, and now and then of all.
        let offsets = addresses(&mut dice, bytes).map(|offset| offset % 1024 / bytes * bytes + 1024 * own);
        let request = Request::weak(who, mask, bytes, kind, 10 + step);
        let mut act = |scene: &mut Scene| match action {
            0..11 if shared => scene.sanitizer.shared_access(&request, &offsets.map(|offset| SHARED + offset), &[]),
            0..11 => {
                let start = if fresh { scene.fresh } else { scene.data };
                scene.sanitizer.global_access(&request, &offsets.map(|offset| start + u64::from(offset)), &[])
            }
            11..14 => {
                scene.sanitizer.warp_sync(who, mask);
                Ok(())
            }
            14 => {
                scene.sanitizer.fence(who, mask, Scope::Gpu);
                Ok(())
            }
            _ => {
                scene.barrier(who.cta, 0, WARPS);
                Ok(())
            }
        };
        let mut outcomes = scenes.each_mut().map(&mut act);
        if matches!(&outcomes, [Ok(()), Err(found)] if found.kind == ViolationKind::LaneOrder) {
            scenes.iter_mut().for_each(|scene| scene.sanitizer.warp_sync(who, ALL));
            outcomes = scenes.each_mut().map(&mut act);
        }
        match outcomes {
            [Ok(()), Ok(())] => {}
            [Err(_), Err(long)] if long.kind == ViolationKind::LaneOrder => return true,
            [Err(short), Err(long)] if short.kind == long.kind => return true,
            [short, long] => panic!("seed {seed} step {step}: {short:?} and {long:?}"),
        }
    }
    false
}

#[test]
fn short_cuts_find_what_the_long_way_finds() {
    let found = (0..3000).filter(|seed| play(*seed)).count();
    println!("{found} found, {} silent", 3000 - found);
    assert!((500..2800).contains(&found), "the programs prove nothing: {found} of 3000 were at fault");
}
