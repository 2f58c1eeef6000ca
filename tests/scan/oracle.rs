//! Every source, element type, direction, and way to cut a row, against the f64 oracle, forward and backward.

use super::case::{Case, Data, SOURCES};
use lookback_device::DType;
use lookback_scan::Source;

/// Two and a half tiles of tokens, so that tiles look back; both directions; a channel block that is not full.
fn base(source: Source, dtype: DType) -> Case {
    let case = Case::new(source, dtype, 2, 300, 72);
    Case { split: 40, ..case }
}

#[test]
fn gated_scan_every_source_and_dtype_dense() {
    for source in SOURCES {
        for dtype in DType::ALL {
            base(source, dtype).check();
        }
    }
}

#[test]
fn gated_scan_every_source_with_flags_in_single_element_accesses() {
    for source in SOURCES {
        for dtype in DType::ALL {
            let case = base(source, dtype);
            Case { flags_every: 20, batch: 1, channels: 35, split: 17, seq_len: 170, seed: 2, ..case }.check();
        }
    }
}

#[test]
fn gated_scan_every_source_packed_with_flags() {
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
fn gated_scan_multiplier_stays_at_resets_when_asked() {
    let source = Source::RgLru { unit_at_reset: false };
    for states in [true, false] {
        Case { flags_every: 9, states, ..base(source, DType::F32) }.check();
    }
}

/// A rounding error of a constant decay points the same way at every step; with long memories it would add up.
#[test]
fn gated_scan_constant_gates_with_long_memories() {
    for (source, a, channel) in [
        (Source::Tensor, 0.9995, 0.0),
        (Source::Log, -1e-3, 0.0),
        (Source::Log, -0.12, 0.0),
        (Source::Channel { log: true }, 0.0, -3e-4),
        (Source::Cumsum, 0.0, 0.0),
        (Source::GatedSsm { normalize: true }, 7.3, 0.0),
        (Source::RgLru { unit_at_reset: true }, 0.4, -8.5),
    ] {
        let case = Case { split: 4, states: false, ..Case::new(source, DType::F32, 1, 3000, 6) };
        let mut data = Data::new::<f32>(&case);
        data.a.fill(f64::from(a as f32));
        data.channel.fill(f64::from(channel as f32));
        for tensor in [&mut data.b, &mut data.x, &mut data.dh] {
            tensor.fill(1.0);
        }
        case.check_data::<f32>(&data);
    }
}
