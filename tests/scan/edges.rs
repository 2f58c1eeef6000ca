//! Sizes at which something begins or ends.

use super::case::Case;
use lookback_device::DType;
use lookback_scan::Source;

#[test]
fn gated_scan_lengths_around_warps_and_tiles() {
    for seq_len in [0, 1, 2, 15, 16, 17, 127, 128, 129, 300] {
        for dtype in [DType::F32, DType::Bf16] {
            Case { split: 4, ..Case::new(Source::Tensor, dtype, 1, seq_len, 8) }.check();
        }
    }
    for seq_len in [0, 1, 7, 8, 9, 63, 64, 65, 1000] {
        Case { split: 4, ..Case::new(Source::GatedSsm { normalize: false }, DType::F32, 1, seq_len, 8) }.check();
    }
}

#[test]
fn gated_scan_channels_around_blocks() {
    for channels in [1, 2, 31, 64, 65, 192] {
        for split in [0, channels / 2, channels] {
            Case { split, ..Case::new(Source::Tensor, DType::F32, 1, 140, channels) }.check();
        }
        Case::new(Source::Channel { log: false }, DType::F16, 2, 70, channels).check();
    }
}

#[test]
fn gated_scan_long_row_walks_back_over_many_tiles() {
    Case { split: 2, ..Case::new(Source::Tensor, DType::F32, 1, 128 * 70 + 1, 4) }.check();
}

#[test]
fn gated_scan_empty_sequences_keep_their_state() {
    for starts in [vec![0, 0], vec![0, 0, 0, 0], vec![0, 0, 40], vec![0, 40, 40], vec![0, 3, 3, 3, 40, 40, 40]] {
        let total = *starts.last().expect("one") as usize;
        for states in [true, false] {
            let case = Case::new(Source::Tensor, DType::F32, 1, total, 10);
            Case { starts: Some(starts.clone()), split: 6, states, ..case }.check();
        }
    }
}

#[test]
fn gated_scan_many_short_sequences() {
    let starts: Vec<i32> = (0..=400).map(|n| n * 3 / 4).collect();
    let case = Case::new(Source::Tensor, DType::F32, 1, 300, 6);
    Case { starts: Some(starts), split: 2, ..case }.check();
}

#[test]
fn gated_scan_tokens_after_the_last_sequence_start_from_zero() {
    let case = Case::new(Source::Tensor, DType::F32, 1, 200, 6);
    Case { starts: Some(vec![0, 30, 130]), split: 2, ..case }.check();
}

#[test]
fn gated_scan_nothing_at_all() {
    Case::new(Source::Tensor, DType::F32, 0, 5, 6).check();
    Case::new(Source::Tensor, DType::F32, 2, 5, 0).check();
}

#[test]
fn gated_scan_no_rows_give_channels_no_gradient() {
    for source in [Source::Channel { log: true }, Source::RgLru { unit_at_reset: true }] {
        for (batch, seq_len) in [(0, 5), (2, 0)] {
            Case::new(source, DType::F32, batch, seq_len, 6).check();
        }
    }
}
