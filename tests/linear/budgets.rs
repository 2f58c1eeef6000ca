//! What walks may cost, counted by the emulator.

use super::case::{Case, Data, run};
use half::bf16;
use lookback_device::{DType, Element};
use lookback_linear::{Decay, Mode, Path, Read};
use lookback_suite::counters::Counters;

fn streams<T: Element>(case: &Case) {
    let data = Data::new::<T>(case);
    let Some(counted) = Counters::of(|| drop(run::<T>(case, &data))) else { return };
    let what = format!("{case:?}");
    assert_eq!(counted.number("launches"), 1, "{what}");
    // With one tile of values every byte crosses the bus once.
    counted.assert_streams(&what, case.plan().bytes_moved());
}

#[test]
fn linear_attention_moves_every_byte_once() {
    for (key_dim, value_dim) in [(32, 128), (64, 64), (128, 32), (256, 16)] {
        let case = Case { decay: Decay::Vector, ..Case::new(DType::F32, 1, 256, key_dim, value_dim) };
        streams::<f32>(&case);
        streams::<bf16>(&Case { dtype: DType::Bf16, read: Read::Shifted, ..case });
    }
}

/// Blocks walk one way, then the other.
#[test]
fn linear_attention_both_directions_are_one_launch() {
    for decay in [Decay::None, Decay::Scalar, Decay::Vector] {
        let mode = Mode::Bidirectional;
        let path = Path::Chain;
        let case =
            Case { mode, decay, path, own_reverse: true, flags_every: 9, ..Case::new(DType::Bf16, 2, 70, 32, 72) };
        let data = Data::new::<bf16>(&case);
        let Some(counted) = Counters::of(|| drop(run::<bf16>(&case, &data))) else { return };
        assert_eq!(counted.number("launches"), 1, "{case:?}");
        case.check();
    }
}
