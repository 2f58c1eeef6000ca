//! Sectors, wavefronts, distinct bytes, sums and JSON.

use super::*;
use crate::memory::DeviceMemory;

const ALL: u32 = u32::MAX;

fn strided(base: u64, step: u64) -> [u64; 32] {
    std::array::from_fn(|lane| base + step * lane as u64)
}

fn shared(address: impl Fn(u32) -> u32) -> [u32; 32] {
    std::array::from_fn(|lane| address(lane as u32))
}

#[test]
fn sectors_of_common_patterns() {
    let of = |mask, addresses: &[u64; 32], bytes| {
        let sectors = Sectors::of(mask, addresses, bytes);
        (sectors.touched, sectors.ideal)
    };
    assert_eq!(of(ALL, &strided(0, 4), 4), (4, 4));
    assert_eq!(of(ALL, &strided(4, 4), 4), (5, 4));
    assert_eq!(of(ALL, &strided(0, 16), 16), (16, 16));
    assert_eq!(of(ALL, &strided(0, 2), 2), (2, 2));
    assert_eq!(of(ALL, &strided(0, 32), 4), (32, 4));
    assert_eq!(of(ALL, &strided(0, 128), 16), (32, 16));
    assert_eq!(of(ALL, &strided(64, 0), 4), (1, 1));
    assert_eq!(of(0xFF, &strided(0, 4), 4), (1, 1));
    assert_eq!(of(ALL, &std::array::from_fn(|lane| 124 - 4 * lane as u64), 4), (4, 4));
    assert_eq!(of(ALL, &std::array::from_fn(|lane| (lane as u64 * 7 % 32) * 32), 4), (32, 4));
    assert_eq!(of(0x0001_0001, &strided(0, 4), 4), (2, 1));
}

#[test]
fn wavefronts_of_common_patterns() {
    let of = |mask, addresses: &[u32; 32], bytes| {
        let wavefronts = Wavefronts::of(mask, addresses, bytes);
        (wavefronts.passes, wavefronts.ideal)
    };
    assert_eq!(of(ALL, &shared(|lane| 4 * lane), 4), (1, 1));
    assert_eq!(of(ALL, &shared(|lane| 8 * lane), 4), (2, 1));
    assert_eq!(of(ALL, &shared(|lane| 128 * lane), 4), (32, 1));
    assert_eq!(of(ALL, &shared(|lane| 132 * lane), 4), (1, 1));
    assert_eq!(of(ALL, &shared(|_| 64), 4), (1, 1));
    assert_eq!(of(ALL, &shared(|lane| 4 * (lane / 2)), 4), (1, 1));
    assert_eq!(of(ALL, &shared(|lane| 2 * lane), 2), (1, 1));
    assert_eq!(of(ALL, &shared(|lane| 8 * lane), 8), (2, 2));
    assert_eq!(of(ALL, &shared(|lane| 16 * lane), 16), (4, 4));
    assert_eq!(of(ALL, &shared(|lane| 16 * lane + 64), 16), (4, 4));
    assert_eq!(of(ALL, &shared(|lane| 128 * lane), 16), (32, 4));
    assert_eq!(of(ALL, &shared(|lane| 144 * lane), 16), (4, 4));
    assert_eq!(of(0xFF, &shared(|lane| 16 * lane), 16), (1, 1));
    assert_eq!(of(ALL, &shared(|lane| 256 * (lane % 4) + 4 * lane), 4), (1, 1));
    assert_eq!(of(ALL, &shared(|lane| 128 * (lane % 4) + 4 * (lane / 4)), 4), (4, 1));
}

#[test]
fn matrix_rows_conflict_in_bits_four_to_six() {
    let of = |row: fn(u32) -> u32, matrices| Wavefronts::of_matrices(&shared(row), matrices);
    assert_eq!(of(|lane| 16 * lane, 4), Wavefronts { passes: 4, ideal: 4 });
    assert_eq!(of(|lane| 128 * lane, 4), Wavefronts { passes: 32, ideal: 4 });
    assert_eq!(of(|lane| 128 * lane + 16 * (lane % 8), 2), Wavefronts { passes: 2, ideal: 2 });
    assert_eq!(of(|lane| 128 * lane + 16 * (lane % 8 / 2), 1), Wavefronts { passes: 2, ideal: 1 });
}

#[test]
fn distinct_bytes_are_exact() {
    let memory = DeviceMemory::new(1 << 20);
    let (a, b) = (memory.alloc(1000).unwrap(), memory.alloc(1000).unwrap());
    let mut recorder = Recorder::new(Counting::Full, &memory.view());
    for _ in 0..3 {
        recorder.global_request(Direction::Load, ALL, &strided(a, 4), 4);
        recorder.global_request(Direction::Load, ALL, &strided(b + 64, 4), 4);
    }
    recorder.global_request(Direction::Load, 1, &strided(a + 127, 4), 1);
    recorder.global_request(Direction::Load, 1, &strided(a + 128, 4), 2);
    recorder.global_request(Direction::Store, ALL, &strided(a, 8), 4);
    recorder.global_request(Direction::Atomic, 1, &strided(b, 4), 4);
    let counters = recorder.finish();
    assert_eq!(counters.global_loads.bytes, 6 * 128 + 3);
    assert_eq!(counters.global_loads.unique_bytes, 256 + 2 + 4);
    assert_eq!(counters.global_stores.unique_bytes, 128 + 4);
    assert_eq!(counters.global_stores.sectors, 8);
    assert_eq!(counters.global_stores.ideal_sectors, 4);
}

#[test]
fn basic_counting_knows_no_distinct_bytes() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(1000).unwrap();
    let mut recorder = Recorder::new(Counting::Basic, &memory.view());
    recorder.global_request(Direction::Load, ALL, &strided(a, 4), 4);
    recorder.global_request(Direction::Load, 0, &strided(a, 4), 4);
    let counters = recorder.finish();
    assert_eq!((counters.global_loads.requests, counters.global_loads.unique_bytes), (1, 0));
}

#[test]
fn sums_and_json() {
    let memory = DeviceMemory::new(1 << 20);
    let launch = |mmas: u32, resident| {
        let mut recorder = Recorder::new(Counting::Basic, &memory.view());
        recorder.instruction(Class::Tensor, ALL);
        recorder.instruction(Class::Control, 0b11);
        for _ in 0..mmas {
            recorder.tensor_op(16, 8, 16, "bf16");
        }
        recorder.tensor_op(16, 8, 8, "tf32");
        recorder.shared_request(Direction::Load, ALL, &shared(|lane| 8 * lane), 4);
        recorder.matrix_request(&shared(|lane| 128 * lane), 1);
        recorder.counters.max_resident_ctas = resident;
        recorder.finish()
    };
    let mut sum = launch(2, 9);
    sum += &launch(3, 4);
    assert_eq!((sum.launches, sum.max_resident_ctas, sum.lanes), (2, 9, 68));
    assert_eq!(sum.tensor_flops(), 5 * 4096 + 2 * 2048);
    assert_eq!(sum.bank_conflicts(), 2 * (1 + 7));
    let json = sum.to_json();
    for part in [
        "{\"launches\":2,",
        "\"warp_instructions\":4",
        "\"instructions\":{\"integer\":0,",
        "\"tensor\":[{\"shape\":\"m16n8k16\",\"input\":\"bf16\",\"count\":5,\"flops\":20480},",
        "\"shared_loads\":{\"requests\":2,\"bytes\":256,\"wavefronts\":4,\"ideal_wavefronts\":2}",
        "\"bank_conflicts\":16",
        "\"divergent_branches\":0}",
    ] {
        assert!(json.contains(part), "{part} missing in {json}");
    }
    assert_eq!(json.matches('{').count(), json.matches('}').count());
}
