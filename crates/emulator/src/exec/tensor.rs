//! `mma.sync`, `ldmatrix`, `stmatrix`, `movmatrix`. The whole warp is here.

use super::address::SHARED_BASE;
use super::machine::{Block, Faulted, Machine};
use super::shared::{addresses, check, note};
use super::warp::Warp;
use crate::check::{Kind, Request};
use crate::decode::cold::{MatrixAccess, Mma};
use crate::decode::op::Slot;
use crate::launch::MmaArithmetic;
use crate::numerics::mma::{self, Form};

const ALL: u32 = u32::MAX;

/// Rows, columns and depth of a product, for the counters.
pub(crate) fn shape(form: Form) -> (u32, u32, u32) {
    match form {
        Form::Half { k, .. }
        | Form::HalfToHalf { k }
        | Form::Tf32 { k }
        | Form::Bytes { k, .. }
        | Form::Bits { k, .. } => (16, 8, k as u32),
        Form::Bits8x8 { .. } => (8, 8, 128),
    }
}

/// `mma.sync`
pub(super) fn mma(m: &mut Machine<'_>, block: &Block, warp: &mut Warp, op: &Mma, pc: u32) -> Result<(), Faulted> {
    let [a, b, c] = op.form.registers();
    if m.checked() {
        for &slot in op.a[..a].iter().chain(&op.b[..b]).chain(&op.c[..c]) {
            m.require(block, warp, slot, ALL, pc)?;
        }
    }
    let arithmetic = match m.options.mma {
        MmaArithmetic::Fma => mma::MmaArithmetic::Fma,
        MmaArithmetic::Hopper => mma::MmaArithmetic::Hopper,
    };
    let result = mma::execute(
        op.form,
        arithmetic,
        op.a.map(|s| warp.row(s)),
        op.b.map(|s| warp.row(s)),
        op.c.map(|s| warp.row(s)),
    );
    for (row, &slot) in result.iter().zip(&op.d[..c]) {
        warp.put_all(slot, row);
    }
    Ok(())
}

/// `ldmatrix` and `stmatrix`
pub(super) fn matrix(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    op: &MatrixAccess,
    pc: u32,
) -> Result<(), Faulted> {
    let count = usize::from(op.count);
    // Lanes beyond the rows of the matrices give no address, whatever their register holds.
    let mask = ALL >> (32 - 8 * count);
    m.require(block, warp, op.address.slot, mask, pc)?;
    let at = addresses(warp, op.address);
    check(m, block, warp.index, &at, 16, mask, pc)?;
    if op.store {
        for &slot in &op.data[..count] {
            m.require(block, warp, slot, ALL, pc)?;
        }
    }
    self::count(m, &at, count);
    if m.checked() {
        let kind = if op.store { Kind::Store } else { Kind::Load };
        let request = Request::weak(m.agent(block, warp.index), mask, 16, kind, m.line(pc));
        if op.store {
            let values = stored_rows(warp, op);
            note(m, block, warp.index, &request, &at, &values.each_ref(), pc)?;
        } else {
            note(m, block, warp.index, &request, &at, &[], pc)?;
        }
    }
    if op.store {
        m.version += 1;
        let values = stored_rows(warp, op);
        for lane in 0..8 * count {
            if let Some(offset) = block.shared_offset(at[lane], 16) {
                for (word, row) in values.iter().enumerate() {
                    let place = offset + 4 * word;
                    block.shared[place..place + 4].copy_from_slice(&row[lane].to_le_bytes());
                }
            }
        }
        return Ok(());
    }
    for (matrix, &slot) in op.data[..count].iter().enumerate() {
        // Laid end to end, the rows are the register image: lane 4r + q holds elements 2q and 2q + 1 of row r.
        let mut image = [0u32; 32];
        for row in 0..8 {
            let from = block.shared.as_ptr().wrapping_add(at[8 * matrix + row].wrapping_sub(SHARED_BASE) as usize);
            // SAFETY: `check` found 16 bytes at the address of each of the first `8 * count` lanes.
            let words = unsafe { from.cast::<[u32; 4]>().read_unaligned() };
            image[4 * row..4 * row + 4].copy_from_slice(&words);
        }
        warp.put_all(slot, &if op.transpose { transposed(&image) } else { image });
    }
    Ok(())
}

/// Count the passes over the banks. Eight rows of 16 bytes take one pass if no two of them lie in the same banks.
fn count(m: &mut Machine<'_>, at: &[u32; 32], matrices: usize) {
    let free = (0..matrices).all(|matrix| {
        let banks = at[8 * matrix..8 * matrix + 8].iter().fold(0u32, |banks, address| banks | 1 << (address >> 4 & 7));
        banks == 0xFF
    });
    if !free {
        return m.recorder.matrix_request(at, matrices as u32);
    }
    let traffic = &mut m.recorder.counters.matrix_loads;
    traffic.requests += 1;
    traffic.bytes += 128 * matrices as u64;
    traffic.wavefronts += matrices as u64;
    traffic.ideal_wavefronts += matrices as u64;
}

/// What `stmatrix` writes: four words of the row that each lane addresses.
fn stored_rows(warp: &Warp, op: &MatrixAccess) -> [[u32; 32]; 4] {
    let mut words = [[0; 32]; 4];
    for (matrix, &slot) in op.data[..usize::from(op.count)].iter().enumerate() {
        let row = *warp.row(slot);
        let image = if op.transpose { transposed(&row) } else { row };
        for (index, value) in image.iter().enumerate() {
            words[index % 4][8 * matrix + index / 4] = *value;
        }
    }
    words
}

/// An 8 by 8 matrix of 16-bit elements, two to a lane, with rows and columns exchanged.
#[inline(always)]
fn transposed(image: &[u32; 32]) -> [u32; 32] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi16,
            _mm_unpacklo_epi32, _mm_unpacklo_epi64,
        };
        // SAFETY: SSE2 is part of x86-64; 32 words and eight vectors of 128 bits are the same bytes.
        unsafe {
            let rows: [__m128i; 8] = std::mem::transmute(*image);
            // Pairs of rows, then fours, then all eight: each step doubles the run of elements of one column.
            let [a, b, c, d] = [0, 2, 4, 6].map(|row| {
                (_mm_unpacklo_epi16(rows[row], rows[row + 1]), _mm_unpackhi_epi16(rows[row], rows[row + 1]))
            });
            let four = |x: __m128i, y: __m128i| (_mm_unpacklo_epi32(x, y), _mm_unpackhi_epi32(x, y));
            let (upper, lower) = ([four(a.0, b.0), four(a.1, b.1)], [four(c.0, d.0), four(c.1, d.1)]);
            let eight = |x: __m128i, y: __m128i| [_mm_unpacklo_epi64(x, y), _mm_unpackhi_epi64(x, y)];
            std::mem::transmute([
                eight(upper[0].0, lower[0].0),
                eight(upper[0].1, lower[0].1),
                eight(upper[1].0, lower[1].0),
                eight(upper[1].1, lower[1].1),
            ])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let element = |row: usize, column: usize| image[4 * row + column / 2] >> (16 * (column % 2)) & 0xFFFF;
        std::array::from_fn(|lane| {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            element(column, row) | element(column + 1, row) << 16
        })
    }
}

/// `movmatrix`
pub(super) fn transpose(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    d: Slot,
    a: Slot,
    pc: u32,
) -> Result<(), Faulted> {
    m.require(block, warp, a, ALL, pc)?;
    let image = transposed(warp.row(a));
    warp.put(d, &image, ALL);
    Ok(())
}
