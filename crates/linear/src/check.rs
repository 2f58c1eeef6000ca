//! Host-side checks of what the tensors hold.

use crate::{Error, Result};
pub use lookback_device::cu_seqlens;

/// Checks the log-decays `arg` on the host: none is above 0 or NaN. Minus infinity forgets everything.
///
/// # Errors
/// [`Error::Shape`] that names the first that is, and its index.
pub fn log_decays(arg: &'static str, g: &[f32]) -> Result<()> {
    match g.iter().position(|g| g.is_nan() || *g > 0.0) {
        None => Ok(()),
        Some(at) => {
            let want = format!("at most 0 everywhere, element {at} is {}", g[at]);
            Err(Error::Shape { op: "log_decays", arg, want, got: vec![at as u64] })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_decays_names_the_first_positive_one() {
        assert!(log_decays("g", &[0.0, -0.0, -80.0, f32::NEG_INFINITY]).is_ok());
        assert!(matches!(log_decays("g", &[-1.0, 0.25]), Err(Error::Shape { got, .. }) if got == [1]));
        assert!(matches!(log_decays("g", &[f32::NAN]), Err(Error::Shape { got, .. }) if got == [0]));
    }
}
