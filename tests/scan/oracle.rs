//! Every source, element type, direction, and way to cut a row, against the f64 oracle, forward and backward.

use super::case::{Case, SOURCES};
use lookback_device::DType;

/// Two and a half tiles of tokens, so that tiles look back; both directions; a channel block that is not full.
fn base(source: lookback_scan::Source, dtype: DType) -> Case {
    let case = Case::new(source, dtype, 2, 300, 72);
    Case { split: 40, ..case }
}

#[test]
fn gated_scan__every_source_and_dtype_dense() {
    for source in SOURCES {
        for dtype in DType::ALL {
            base(source, dtype).check();
        }
    }
}

#[test]
fn gated_scan__every_source_with_flags_in_single_element_accesses() {
    for source in SOURCES {
        for dtype in DType::ALL {
            let case = base(source, dtype);
            Case { flags_every: 20, batch: 1, channels: 35, split: 17, seq_len: 170, seed: 2, ..case }.check();
        }
    }
}

#[test]
fn gated_scan__every_source_packed_with_flags() {
    // Borders inside warps, at warp and tile borders, of one token, of none.
    let starts = vec![0, 0, 5, 16, 17, 17, 64, 128, 129, 250, 250];
    for source in SOURCES {
        for states in [true, false] {
            let case = base(source, DType::F32);
            let case = Case { starts: Some(starts.clone()), batch: 1, seq_len: 260, states, seed: 3, ..case };
            case.check();
            Case { flags_every: 15, dtype: DType::Bf16, ..case }.check();
        }
    }
}

#[test]
fn gated_scan__multiplier_stays_at_resets_when_asked() {
    let source = lookback_scan::Source::RgLru { unit_at_reset: false };
    for states in [true, false] {
        Case { flags_every: 9, states, ..base(source, DType::F32) }.check();
    }
}
