//! `mma.sync`, `ldmatrix`, `stmatrix`, `movmatrix`. The whole warp is here.

use super::machine::{Block, Faulted, Machine};
use super::shared::{addresses, check, note};
use super::warp::Warp;
use crate::check::{Kind, Request};
use crate::decode::cold::{MatrixAccess, Mma};
use crate::decode::op::Slot;
use crate::launch::MmaArithmetic;
use crate::numerics::mma::{self, Form};

const ALL: u32 = u32::MAX;

/// Shape of a product, for the counters.
fn shape(form: Form) -> (u32, u32, u32) {
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
    let (rows, columns, depth) = shape(op.form);
    m.recorder.tensor_op(rows, columns, depth, op.input);
    let arithmetic = match m.options.mma {
        MmaArithmetic::Fma => mma::MmaArithmetic::Fma,
        MmaArithmetic::Hopper => mma::MmaArithmetic::Hopper,
    };
    let result =
        mma::execute(op.form, arithmetic, op.a.map(|s| warp.row(s)), op.b.map(|s| warp.row(s)), op.c.map(|s| warp.row(s)));
    for (row, &slot) in result.iter().zip(&op.d[..c]) {
        warp.put(slot, row, ALL);
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
    m.recorder.matrix_request(&at, count as u32);
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
    for matrix in 0..count {
        let mut rows = [[0u8; 16]; 8];
        for (row, bytes) in rows.iter_mut().enumerate() {
            if let Some(offset) = block.shared_offset(at[8 * matrix + row], 16) {
                bytes.copy_from_slice(&block.shared[offset..offset + 16]);
            }
        }
        // Laid end to end, the rows are the register image: lane 4r + q holds elements 2q and 2q + 1 of row r.
        let mut image = [0u32; 32];
        for (word, value) in image.iter_mut().enumerate() {
            let (row, at) = (word / 4, 4 * (word % 4));
            *value = u32::from_le_bytes([rows[row][at], rows[row][at + 1], rows[row][at + 2], rows[row][at + 3]]);
        }
        let image = if op.transpose { transposed(&image) } else { image };
        warp.put(op.data[matrix], &image, ALL);
    }
    Ok(())
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
fn transposed(image: &[u32; 32]) -> [u32; 32] {
    let element = |row: usize, column: usize| image[4 * row + column / 2] >> (16 * (column % 2)) & 0xFFFF;
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        element(column, row) | element(column + 1, row) << 16
    })
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
