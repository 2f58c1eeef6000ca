//! Decoding of `mma.sync`, `ldmatrix`, `stmatrix`, `movmatrix`.

use super::cold::{Cold, MatrixAccess, Mma};
use super::context::{Decoded, Decoder};
use super::memory::shared_address;
use super::op::{NO_SLOT, Slot};
use super::words::Words;
use crate::numerics::float16::Half;
use crate::numerics::mma::{BitOperation, Form};
use crate::ptx::ast::{Operand, Type};

/// `mma.sync.aligned`
pub(super) fn mma(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("sync")?;
    words.expect("aligned")?;
    let shape = words.next()?;
    words.expect("row")?;
    words.expect("col")?;
    let saturate = words.take("satfinite");
    let types = [words.next()?, words.next()?, words.next()?, words.next()?];
    let operation = match words.any(&["and", "xor"]) {
        Some(index) => {
            words.expect("popc")?;
            Some([BitOperation::And, BitOperation::Xor][index])
        }
        None => None,
    };
    words.finish()?;
    let form = form(&words, shape, types, saturate, operation)?;
    let float = matches!(types[0], "f32");
    let accumulator = if float { Type::F32 } else { Type::B32 };
    d.arity(4)?;
    let [a, b, c] = form.registers();
    let mma = Mma {
        form,
        input: input_name(types[1]),
        d: registers(d, 0, c, accumulator, true)?,
        a: registers(d, 1, a, Type::B32, false)?,
        b: registers(d, 2, b, Type::B32, false)?,
        c: registers(d, 3, c, accumulator, false)?,
    };
    d.emit_cold(Cold::Mma(mma))
}

fn input_name(name: &str) -> &'static str {
    ["f16", "bf16", "tf32", "s8", "u8", "b1"].into_iter().find(|known| *known == name).unwrap_or("")
}

fn form(
    words: &Words<'_>,
    shape: &str,
    [d, a, b, c]: [&str; 4],
    saturate: bool,
    operation: Option<BitOperation>,
) -> Decoded<Form> {
    let bytes = |name: &str| match name {
        "s8" => Some(true),
        "u8" => Some(false),
        _ => None,
    };
    let k = match shape {
        "m16n8k4" => 4,
        "m16n8k8" => 8,
        "m16n8k16" => 16,
        "m16n8k32" => 32,
        "m16n8k128" => 128,
        "m16n8k256" => 256,
        _ => 0,
    };
    let float = operation.is_none() && !saturate;
    let form = match (d, a, b, c) {
        ("f32", "f16", "f16", "f32") if float && matches!(k, 8 | 16) => Form::Half { format: Half::F16, k },
        ("f32", "bf16", "bf16", "f32") if float && matches!(k, 8 | 16) => Form::Half { format: Half::Bf16, k },
        ("f16", "f16", "f16", "f16") if float && matches!(k, 8 | 16) => Form::HalfToHalf { k },
        ("f32", "tf32", "tf32", "f32") if float && matches!(k, 4 | 8) => Form::Tf32 { k },
        ("s32", "b1", "b1", "s32") if !saturate && matches!(k, 128 | 256) => {
            Form::Bits { k, operation: operation.ok_or_else(|| words.error(".and.popc or .xor.popc is missing"))? }
        }
        ("s32", "b1", "b1", "s32") if !saturate && shape == "m8n8k128" => {
            Form::Bits8x8 { operation: operation.ok_or_else(|| words.error(".and.popc or .xor.popc is missing"))? }
        }
        ("s32", a, b, "s32") if operation.is_none() && matches!(k, 16 | 32) => match (bytes(a), bytes(b)) {
            (Some(a_signed), Some(b_signed)) => Form::Bytes { k, a_signed, b_signed, saturate },
            _ => return Err(words.error("this combination of shape and types is not supported")),
        },
        _ => return Err(words.error("this combination of shape and types is not supported")),
    };
    Ok(form)
}

/// So many registers in braces; the rest of the array stays unused.
fn registers<const N: usize>(
    d: &mut Decoder<'_>,
    index: usize,
    count: usize,
    ty: Type,
    write: bool,
) -> Decoded<[Slot; N]> {
    let elements = d.elements(index)?;
    if elements.len() != count {
        return Err(d.error(format!("operand {} must have {count} registers, it has {}", index + 1, elements.len())));
    }
    let mut slots = [NO_SLOT; N];
    for (slot, operand) in slots.iter_mut().zip(elements) {
        *slot = match operand {
            Operand::Register(_) if write => d.dest_operand(operand, ty)?,
            Operand::Register(_) => d.source_operand(operand, ty)?,
            _ => return Err(d.error("a fragment is made of registers")),
        };
    }
    Ok(slots)
}

/// `ldmatrix` and `stmatrix`
pub(super) fn matrix(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let store = d.ins.opcode == "stmatrix";
    words.expect("sync")?;
    words.expect("aligned")?;
    words.expect("m8n8")?;
    let count = words.any(&["x1", "x2", "x4"]).map(|index| [1u8, 2, 4][index]);
    let count = count.ok_or_else(|| words.error("a count .x1, .x2 or .x4 is missing"))?;
    let transpose = words.take("trans");
    if words.any(&["shared", "shared::cta"]).is_none() {
        return Err(words.error("the state space must be .shared"));
    }
    words.expect("b16")?;
    words.finish()?;
    d.arity(2)?;
    if store && d.target().capability < 90 {
        return Err(words.error("needs sm_90"));
    }
    let (data, place) = if store { (1, 0) } else { (0, 1) };
    let address = shared_address(d, place)?;
    let data = registers(d, data, usize::from(count), Type::B32, !store)?;
    d.emit_cold(Cold::Matrix(MatrixAccess { store, count, transpose, data, address }))
}

/// `movmatrix`
pub(super) fn move_matrix(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    for word in ["sync", "aligned", "m8n8", "trans", "b16"] {
        words.expect(word)?;
    }
    words.finish()?;
    d.arity(2)?;
    let (to, a) = (d.dest(0, Type::B32)?, d.source(1, Type::B32)?);
    d.emit_cold(Cold::Transpose { d: to, a })
}
