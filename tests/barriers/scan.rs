//! Scans with a look-back, and what tests it alone.

use super::family::{Family, every};
use crate::scan::{
    case::Case,
    log_cumsum_exp,
    protocol::{Protocol, workspace},
};
use lookback_device::DType;
use lookback_scan::Source;

pub const SCANS: Family = Family {
    kernels: &["gated_scan_fwd", "gated_scan_bwd", "log_cumsum_exp_fwd", "log_cumsum_exp_bwd", "lookback_protocol"],
    variants: every,
    runs: &[
        || Case { flags_every: 200, ..Case::new(Source::Tensor, DType::F32, 1, 700, 8) }.check(),
        || Case::new(Source::Channel { log: false }, DType::F32, 1, 500, 72).check(),
        || Case { deterministic: true, ..Case::new(Source::Channel { log: false }, DType::F32, 1, 500, 8) }.check(),
        || log_cumsum_exp::Case { by_reads: true, ..log_cumsum_exp::Case::new(1, 150, 40) }.check::<f32>(),
        || drop(Protocol::new(1, 2, 9, 32, 4).run(&mut workspace(64), 64)),
    ],
};

#[test]
fn scans_need_their_barriers() {
    SCANS.check();
}
