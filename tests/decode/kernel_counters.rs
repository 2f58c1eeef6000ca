//! What the decode kernel costs, as the emulator counts it.

use super::kernel_case::{Case, Data, Factors, Place, run};
use half::bf16;
use lookback_suite::counters::Counters;

fn counted(case: &Case) -> Option<Counters> {
    let data = Data::new::<bf16>(case, 1);
    Counters::of(|| drop(run::<bf16>(case, &data)))
}

fn packed(case: Case) -> Case {
    Case { spaced: false, ..case }
}

/// Keys and values cross the bus once, whatever the group; beside them only what the contract says.
#[test]
fn kernel_reads_keys_and_values_once_for_every_group() {
    for (heads, place) in [(1, Place::Dense(4096)), (4, Place::Paged(64)), (8, Place::Paged(16)), (16, Place::Ragged)] {
        let case = packed(Case { place, slots: 2, ..Case::new(128, &[4096], heads, 1) });
        let Some(c) = counted(&case) else { return };
        let cache = 2 * 4096 * 128 * 2;
        let parts = (2 * heads * (128 + 2) * 4) as u64;
        let outputs = (heads * (128 * 2 + 4)) as u64;
        assert_eq!(c.number("global_stores/unique_bytes"), parts + outputs + 4, "{heads}: stores, and a count");
        let other = parts + (heads * 128 * 2) as u64;
        let loads = c.number("global_loads/unique_bytes");
        assert!((cache..cache + other + 4096).contains(&loads), "{heads}: {loads} bytes for {cache} + {other}");
        assert!(c.unique_bytes() * 100 <= cache * 103 + 100 * parts, "{heads}: {} bytes", c.unique_bytes());
        let (sectors, ideal) = (c.number("global_loads/sectors"), c.number("global_loads/ideal_sectors"));
        assert!(sectors * 100 <= ideal * 103, "{heads}: {sectors} sectors, ideal are {ideal}");
        assert_eq!(c.number("async_copy_bytes"), cache, "{heads}");
    }
}

/// A window costs its tiles and no others; keys of its tiles outside of it are not read either.
#[test]
fn kernel_does_not_read_what_no_query_sees() {
    let case = packed(Case { left: Some(299), first: 4, ..Case::new(64, &[3000], 4, 1) });
    let Some(c) = counted(&case) else { return };
    assert_eq!(c.number("async_copy_bytes"), (300 + 4) * 2 * 64 * 2);
}

/// What each 16 more keys cost a warp: memory takes 16 rows of K and V in `clocks` of an SM by the share of 18.6 bytes a clock, which is four
/// times as many turns to issue an instruction.
#[test]
fn kernel_stays_below_what_memory_leaves_it() {
    for (dim, rows, e4m3, most) in [
        (64, 16, false, 345),
        (64, 32, false, 460),
        (128, 16, false, 410),
        (128, 32, false, 580),
        (256, 16, false, 680),
        (64, 16, true, 500),
        (64, 32, true, 640),
        (128, 16, true, 670),
        (128, 32, true, 850),
        (256, 16, true, 1060),
    ] {
        let factors = if e4m3 { Factors::Token } else { Factors::None };
        let case =
            |n| packed(Case { slots: 1, e4m3, rows, factors, place: Place::Paged(64), ..Case::new(dim, &[n], 8, 1) });
        let (Some(few), Some(many)) = (counted(&case(256)), counted(&case(512))) else { return };
        let of = |path: &str| (many.number(path) - few.number(path)) / 16;
        let instructions = of("warp_instructions");
        assert!(instructions <= most, "{dim} {rows} {e4m3}: {instructions} instructions, more than {most}");
        let steps = (dim / 16 * 2 + dim / 8) * rows / 16;
        assert_eq!(of("tensor_flops"), 4096 * steps as u64, "{dim} {rows} {e4m3}: products");
        assert_eq!(many.number("bank_conflicts"), 0, "{dim} {rows} {e4m3}: bank conflicts");
        // Shared memory takes 128 bytes a clock: what is copied, and what is read.
        let bytes = (16 * dim * if e4m3 { 2 } else { 4 }) as u64;
        let waves = bytes / 128
            + of("matrix_loads/wavefronts")
            + of("shared_loads/wavefronts")
            + of("shared_stores/wavefronts");
        let clocks = bytes * 10 / 186;
        // Thirty-two rows of queries are read from shared memory, too.
        let share = if rows == 32 { 75 } else { 60 };
        assert!(waves * 100 <= clocks * share, "{dim} {rows} {e4m3}: {waves} wavefronts in {clocks} clocks");
        if !(e4m3 && dim < 256) {
            assert!(
                instructions * 10 <= clocks * 4 * 7,
                "{dim} {rows} {e4m3}: {instructions} instructions in {clocks} clocks"
            );
        }
    }
}
