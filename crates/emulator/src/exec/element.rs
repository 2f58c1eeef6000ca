//! Elements between memory and registers: dense rows, scattered lanes, single values.

use super::warp::Warp;
use crate::decode::op::{Access, Element};

/// Hand over the values of a store, one row of lanes per 4 bytes.
#[inline(always)]
pub(super) fn with_words<T>(warp: &Warp, access: &Access, f: impl FnOnce(&[&[u32; 32]]) -> T) -> T {
    let count = usize::from(access.element.count);
    if access.element.bytes == 4 {
        f(&access.data.map(|slot| warp.row(slot))[..count])
    } else {
        let (rows, used) = repacked(warp, access);
        f(&rows.each_ref()[..used])
    }
}

/// Values that are not words, as words in memory's order; how many rows.
#[inline(never)]
fn repacked(warp: &Warp, access: &Access) -> ([[u32; 32]; 4], usize) {
    let mut rows = [[0; 32]; 4];
    let mut used = 0;
    for (index, &slot) in access.data[..usize::from(access.element.count)].iter().enumerate() {
        if access.element.bytes == 8 {
            for (lane, value) in warp.wide(slot).iter().enumerate() {
                rows[used][lane] = *value as u32;
                rows[used + 1][lane] = (*value >> 32) as u32;
            }
            used += 2;
        } else {
            let bits = 8 * u32::from(access.element.bytes);
            let shift = bits * index as u32;
            for (lane, value) in warp.row(slot).iter().enumerate() {
                rows[(shift / 32) as usize][lane] |= (value & ((1 << bits) - 1)) << (shift % 32);
            }
            used = (shift / 32) as usize + 1;
        }
    }
    (rows, used)
}

/// Read 32 lanes that lie side by side from `base`.
///
/// # Safety
/// 32 times the element's total must be readable at `base`.
#[inline(always)]
pub(super) unsafe fn read_dense(warp: &mut Warp, access: &Access, base: *const u8) {
    let Element { bytes, signed, wide, count } = access.element;
    let data = access.data;
    match (bytes, count, wide) {
        (4, 1, false) => {
            // SAFETY: 32 words are readable at `base`.
            let row: [u32; 32] = unsafe { base.cast::<[u32; 32]>().read_unaligned() };
            warp.put_all(data[0], &row);
        }
        (4, 2, false) => {
            // SAFETY: 64 words are readable at `base`.
            let words = unsafe { base.cast::<[[u32; 2]; 32]>().read_unaligned() };
            for part in 0..2 {
                warp.put_all(data[part], &std::array::from_fn(|lane| words[lane][part]));
            }
        }
        (4, 4, false) => {
            let mut rows = [[0; 32]; 4];
            for lane in (0..32).step_by(4) {
                // SAFETY: 128 words are readable at `base`, and lanes `lane` to `lane + 3` have 16 of them.
                let block = unsafe { base.cast::<[[u32; 4]; 4]>().add(lane / 4).read_unaligned() };
                let columns = transpose_words(block);
                for (row, column) in rows.iter_mut().zip(columns) {
                    row[lane..lane + 4].copy_from_slice(&column);
                }
            }
            for (slot, row) in data.iter().zip(&rows) {
                warp.put_all(*slot, row);
            }
        }
        (2, 1, false) if !signed => {
            // SAFETY: 32 half words are readable at `base`.
            let row = unsafe { base.cast::<[u16; 32]>().read_unaligned() };
            warp.put_all(data[0], &row.map(u32::from));
        }
        (8, 1, true) => {
            // SAFETY: 32 double words are readable at `base`.
            let row = unsafe { base.cast::<[u64; 32]>().read_unaligned() };
            warp.put_wide(data[0], &row, u32::MAX);
        }
        _ => {
            let step = usize::from(bytes) * usize::from(count);
            // SAFETY: every lane's bytes are inside what the caller vouches for.
            unsafe { read_lanes(warp, access, u32::MAX, |lane| base.wrapping_add(lane * step)) };
        }
    }
}

/// Rows and columns of a 4 by 4 matrix of words exchanged.
#[inline(always)]
fn transpose_words(m: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
        };
        // SAFETY: SSE2 is part of x86-64; four words and a vector of 128 bits are the same bytes.
        unsafe {
            let [a, b, c, d]: [__m128i; 4] = std::mem::transmute(m);
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            std::mem::transmute([
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(ab_high, cd_high),
                _mm_unpackhi_epi64(ab_high, cd_high),
            ])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|row| std::array::from_fn(|column| m[column][row]))
}

/// Every active lane reads the same `element` at `from`.
///
/// # Safety
/// The element's total must be readable at `from`.
#[inline(always)]
pub(super) unsafe fn read_uniform(warp: &mut Warp, access: &Access, mask: u32, from: *const u8) {
    let Element { bytes, signed, wide, count } = access.element;
    for (part, &slot) in access.data[..usize::from(count)].iter().enumerate() {
        // SAFETY: the caller vouches for `count` elements, and `part` is below `count`.
        let value = unsafe { read_one(from.wrapping_add(part * usize::from(bytes)), bytes, signed) };
        if wide {
            warp.put_wide(slot, &[value; 32], mask);
        } else {
            warp.put(slot, &[value as u32; 32], mask);
        }
    }
}

/// Read each active lane from its own place.
///
/// # Safety
/// The element's total must be readable at the place of every lane of `mask`.
#[inline(always)]
pub(super) unsafe fn read_lanes(warp: &mut Warp, access: &Access, mask: u32, place: impl Fn(usize) -> *const u8) {
    let Element { bytes, signed, wide, count } = access.element;
    if bytes == 4 && !wide {
        for (part, &slot) in access.data[..usize::from(count)].iter().enumerate() {
            let mut row = [0u32; 32];
            for (lane, value) in row.iter_mut().enumerate() {
                if mask >> lane & 1 == 1 {
                    // SAFETY: the caller vouches for `count` words at the lane's place, and `part` is below `count`.
                    *value = unsafe { place(lane).wrapping_add(4 * part).cast::<u32>().read_unaligned() };
                }
            }
            warp.put(slot, &row, mask);
        }
        return;
    }
    for (part, &slot) in access.data[..usize::from(count)].iter().enumerate() {
        let mut row = [0u64; 32];
        for (lane, value) in row.iter_mut().enumerate() {
            if mask >> lane & 1 == 1 {
                let from = place(lane).wrapping_add(part * usize::from(bytes));
                // SAFETY: the caller vouches for `count` elements at the lane's place, and `part` is below `count`.
                *value = unsafe { read_one(from, bytes, signed) };
            }
        }
        if wide {
            warp.put_wide(slot, &row, mask);
        } else {
            warp.put(slot, &row.map(|value| value as u32), mask);
        }
    }
}

/// Read one element, extended to 64 bits.
///
/// # Safety
/// `bytes` must be readable at `from`.
#[inline(always)]
pub(super) unsafe fn read_one(from: *const u8, bytes: u8, signed: bool) -> u64 {
    // SAFETY: the caller vouches for `bytes` bytes; unaligned reads need nothing else.
    unsafe {
        match (bytes, signed) {
            (1, false) => from.read().into(),
            (1, true) => from.cast::<i8>().read() as i64 as u64,
            (2, false) => from.cast::<u16>().read_unaligned().into(),
            (2, true) => from.cast::<i16>().read_unaligned() as i64 as u64,
            (4, false) => from.cast::<u32>().read_unaligned().into(),
            (4, true) => from.cast::<i32>().read_unaligned() as i64 as u64,
            _ => from.cast::<u64>().read_unaligned(),
        }
    }
}

/// Write 32 lanes side by side from `base`.
///
/// # Safety
/// 32 times the element's total must be writable at `base`.
#[inline(always)]
pub(super) unsafe fn write_dense(warp: &Warp, access: &Access, base: *mut u8) {
    let Element { bytes, count, .. } = access.element;
    let data = access.data;
    match (bytes, count) {
        // SAFETY: 32 words are writable at `base`.
        (4, 1) => unsafe { base.cast::<[u32; 32]>().write_unaligned(*warp.row(data[0])) },
        (4, 2) => {
            let (a, b) = (warp.row(data[0]), warp.row(data[1]));
            // SAFETY: 64 words are writable at `base`.
            unsafe {
                base.cast::<[[u32; 2]; 32]>().write_unaligned(std::array::from_fn(|lane| [a[lane], b[lane]]));
            }
        }
        (4, 4) => {
            let rows = data.map(|slot| warp.row(slot));
            for lane in (0..32).step_by(4) {
                let columns = rows.map(|row| row.as_chunks().0[lane / 4]);
                // SAFETY: 128 words are writable at `base`, and lanes `lane` to `lane + 3` have 16 of them.
                unsafe { base.cast::<[[u32; 4]; 4]>().add(lane / 4).write_unaligned(transpose_words(columns)) };
            }
        }
        // SAFETY: 32 half words are writable at `base`.
        (2, 1) => unsafe { base.cast::<[u16; 32]>().write_unaligned(warp.row(data[0]).map(|word| word as u16)) },
        // SAFETY: 32 double words are writable at `base`.
        (8, 1) => unsafe { base.cast::<[u64; 32]>().write_unaligned(*warp.wide(data[0])) },
        _ => {
            let step = usize::from(bytes) * usize::from(count);
            // SAFETY: every lane's bytes are inside what the caller vouches for.
            unsafe { write_lanes(warp, access, u32::MAX, |lane| base.wrapping_add(lane * step)) };
        }
    }
}

/// Write each active lane to its own place, lowest lane first.
///
/// # Safety
/// The element's total must be writable at the place of every lane of `mask`.
#[inline(always)]
pub(super) unsafe fn write_lanes(warp: &Warp, access: &Access, mask: u32, place: impl Fn(usize) -> *mut u8) {
    let Element { bytes, count, .. } = access.element;
    for lane in 0..32 {
        if mask >> lane & 1 == 0 {
            continue;
        }
        let start = place(lane);
        for (part, &slot) in access.data[..usize::from(count)].iter().enumerate() {
            let to = start.wrapping_add(part * usize::from(bytes));
            let value = if bytes == 8 { warp.wide(slot)[lane] } else { warp.row(slot)[lane].into() };
            // SAFETY: the caller vouches for `count` elements at the lane's place, and `part` is below `count`.
            unsafe { write_one(to, bytes, value) };
        }
    }
}

/// Write the low `bytes` of a value.
///
/// # Safety
/// `bytes` must be writable at `to`.
#[inline(always)]
pub(super) unsafe fn write_one(to: *mut u8, bytes: u8, value: u64) {
    // SAFETY: the caller vouches for `bytes` bytes; unaligned writes need nothing else.
    unsafe {
        match bytes {
            1 => to.write(value as u8),
            2 => to.cast::<u16>().write_unaligned(value as u16),
            4 => to.cast::<u32>().write_unaligned(value as u32),
            _ => to.cast::<u64>().write_unaligned(value),
        }
    }
}
