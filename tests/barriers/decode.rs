//! Lean decoding: the schedule, the walk and the fix-up.

use super::family::{Family, every};
use crate::decode::{
    case::Case as Step,
    kernel_case::{Case, Factors, Place, check},
    protocol::{Data, cut, run},
};
use lookback_suite::buffer::upload;

fn narrow(e4m3: bool, dim: usize, rows: usize) -> Case {
    let heads = if rows == 32 { 24 } else { 5 };
    let factors = if e4m3 { Factors::Token } else { Factors::None };
    Case { e4m3, rows, place: Place::Paged(16), factors, slots: 2, ..Case::new(dim, &[150, 70, 70], heads, 1) }
}

pub const DECODE: Family = Family {
    kernels: &["lean_decode", "lean_plan", "lean_protocol"],
    variants: every,
    runs: &[
        || check(&narrow(false, 64, 16)),
        || check(&narrow(false, 64, 32)),
        || check(&narrow(false, 128, 16)),
        || check(&narrow(false, 128, 32)),
        || check(&narrow(false, 256, 16)),
        || check(&narrow(true, 64, 16)),
        || check(&narrow(true, 64, 32)),
        || check(&narrow(true, 128, 16)),
        || check(&narrow(true, 128, 32)),
        || check(&narrow(true, 256, 16)),
        || Step::new(&[200, 3, 70]).slots(5).min_tiles(1).check(),
        || {
            let counts = [23, 1, 0, 9, 40];
            let schedule = cut(&counts, 13);
            run(&schedule, &Data::new(schedule.total(), 3), 13, &upload(&vec![0_u32; counts.len()]));
        },
    ],
};

#[test]
fn decoding_needs_its_barriers() {
    DECODE.check();
}
