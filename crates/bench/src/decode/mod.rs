//! Attention of one query a request over caches, and what fills them.

mod append;
mod step;

use crate::{Case, Scale};
use lookback_device::DeviceInfo;

/// Tokens of a page.
const PAGE: usize = 16;
/// Entries of a head.
const DIM: usize = 128;

/// Steps of decoding first, new keys and values then.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let mut cases = step::cases(info, scale);
    cases.extend(append::cases(info, scale));
    cases
}

/// Pages in an order that no copy ahead can guess.
fn shuffled(pages: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..pages as i32).collect();
    // Lehmer's generator by 48271: any order that is not the first will do.
    let mut state = 7_u64;
    for i in (1..pages).rev() {
        state = state * 48_271 % 0x7fff_ffff;
        order.swap(i, state as usize % (i + 1));
    }
    order
}

/// The code of a number in 8 bits with 3 of fraction, of either sign, without the codes that are no numbers.
fn code(normal: f64) -> u8 {
    let magnitude = 8 + ((normal.abs() * 1e4).fract() * 64.0) as u8;
    if normal < 0.0 { 128 + magnitude } else { magnitude }
}
