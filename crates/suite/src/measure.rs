//! Comparison with the oracle, as an assertion.

use lookback_device::DType;
pub use lookback_reference::measure::{Errors, Gate, errors};

/// The gate of an operation that reads and writes this element type and accumulates in f32.
pub fn gate(dtype: DType) -> Gate {
    match dtype {
        DType::F32 => Gate::F32,
        DType::F16 => Gate::F16,
        DType::Bf16 => Gate::BF16,
    }
}

/// Fails with the worst element when an error exceeds its gate. `what` names the case well enough to run it again.
///
/// # Panics
/// When the gate does not hold.
pub fn assert_close(what: &str, out: &[f64], reference: &[f64], row: usize, gate: Gate) -> Errors {
    match errors(out, reference, row) {
        Err(at) => panic!("{what}: element {at} is {:?} where the oracle has {:?}", out.get(at), reference.get(at)),
        Ok(e) => {
            let (o, r) = (out.get(e.worst), reference.get(e.worst));
            assert!(
                e.within(gate),
                "{what}: {e:?} exceeds {gate:?}; element {} is {o:?}, the oracle has {r:?}",
                e.worst
            );
            e
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "element 3")]
    fn assert_close_names_the_worst_element() {
        assert_close("case", &[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 3.0, 4.0], 2, Gate::F32);
    }
}
