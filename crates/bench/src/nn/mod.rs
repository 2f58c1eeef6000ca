//! What blocks are made of besides their mixers.

mod norms;
mod outputs;
mod products;
mod rows;
mod tokens;

use crate::{Case, Facts, Scale};
use lookback_device::DeviceInfo;

/// Every operation of the family, in bf16.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let (rows, width) = match scale {
        Scale::Full => (8192, 4096),
        Scale::Small => (256, 512),
    };
    let mut cases = products::cases(info, scale);
    cases.extend(norms::cases(info, rows, width));
    cases.extend(rows::cases(info, rows, width));
    cases.extend(tokens::cases(info, scale));
    cases.extend(outputs::cases(info, scale));
    cases
}

/// An operation over rows.
fn facts(operation: &'static str, what: &str, rows: usize, width: usize) -> Facts {
    Facts::new("nn", operation, what, "bf16", &[("rows", rows), ("width", width)])
}
