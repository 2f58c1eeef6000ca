//! Declarations of registers and variables.

use super::ParseError;
use super::ast::Type;
use super::constant::{self, Constant, integer_in};
use super::cursor::{Cursor, Result};
use super::lexer::{Kind, Token};
use super::special::special;

/// The largest `.align`.
const MAX_ALIGN: u32 = 1024;
/// The largest variable: more than any device has, small enough that sums of sizes stay within 64 bits.
const MAX_BYTES: u64 = 1 << 40;
/// `%r<count>`; what a module may declare in all is limited separately.
const MAX_REGISTER_COUNT: u32 = 1 << 16;

/// `name` or `name<count>` in a `.reg` declaration.
pub(super) struct RegisterName<'a> {
    pub name: &'a str,
    /// The number of registers `name0`, `name1`, ..
    pub count: Option<u32>,
    pub line: u32,
}

/// A variable declaration, before it is known where the variable goes.
pub(super) struct Variable<'a> {
    pub name: &'a str,
    pub ty: Type,
    pub align: u32,
    pub size: Size,
    pub line: u32,
}

/// How much a variable declaration reserves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Scalar,
    /// Bytes of an array.
    Array(u64),
    /// `name[]`
    Open,
}

impl Variable<'_> {
    pub fn bytes(&self) -> u64 {
        match self.size {
            Size::Scalar => u64::from(self.ty.bytes()),
            Size::Array(bytes) => bytes,
            Size::Open => 0,
        }
    }
}

/// Everything after `.reg`, up to and including the semicolon.
pub(super) fn registers<'a>(cursor: &mut Cursor<'a>) -> Result<(Type, Vec<RegisterName<'a>>)> {
    let ty = declared_type(cursor, true)?;
    let mut names = Vec::new();
    loop {
        let token = declared_name(cursor, "the name of a register")?;
        let count = if cursor.take("<") {
            let count = integer_in(cursor, "a number of registers", 1..=MAX_REGISTER_COUNT)?;
            cursor.expect(">")?;
            Some(count)
        } else {
            None
        };
        names.push(RegisterName { name: token.text, count, line: token.line });
        if !cursor.take(",") {
            break;
        }
    }
    expect_either(cursor, "`,` or `;`", ";")?;
    Ok((ty, names))
}

/// `.align n` if present, and the type.
pub(super) fn align_and_type(cursor: &mut Cursor) -> Result<(u32, Type)> {
    let align = if cursor.peek().is_directive("align") { Some(alignment(cursor)?) } else { None };
    let ty = declared_type(cursor, false)?;
    Ok((align.unwrap_or(ty.bytes()), ty))
}

/// `.align n`
pub(super) fn alignment(cursor: &mut Cursor) -> Result<u32> {
    cursor.expect_directive("align")?;
    let line = cursor.line();
    let align = integer_in(cursor, "an alignment", 1..=MAX_ALIGN)?;
    if align.is_power_of_two() {
        Ok(align)
    } else {
        Err(ParseError::new(line, format!("expected an alignment that is a power of two, found {align}")))
    }
}

/// The name and the dimensions of a variable whose type is known.
pub(super) fn variable<'a>(cursor: &mut Cursor<'a>, align: u32, ty: Type) -> Result<Variable<'a>> {
    let token = declared_name(cursor, "the name of a variable")?;
    let mut size = Size::Scalar;
    while cursor.peek().is("[") {
        let line = cursor.next().line;
        size = match (size, cursor.peek().is("]")) {
            (Size::Scalar, true) => Size::Open,
            (Size::Open, _) | (_, true) => {
                return Err(ParseError::new(line, "expected a size for every dimension, or `[]` alone"));
            }
            (Size::Scalar, false) => Size::Array(dimension(cursor, u64::from(ty.bytes()))?),
            (Size::Array(bytes), false) => Size::Array(dimension(cursor, bytes)?),
        };
        cursor.expect("]")?;
    }
    Ok(Variable { name: token.text, ty, align, size, line: token.line })
}

fn dimension(cursor: &mut Cursor, element: u64) -> Result<u64> {
    let line = cursor.line();
    let count = constant::integer(cursor)?;
    u64::try_from(count)
        .ok()
        .filter(|&count| count > 0)
        .and_then(|count| count.checked_mul(element))
        .filter(|&bytes| bytes <= MAX_BYTES)
        .ok_or_else(|| {
            ParseError::new(line, format!("expected an array size from 1 to {MAX_BYTES} bytes, found {count}"))
        })
}

fn declared_type(cursor: &mut Cursor, register: bool) -> Result<Type> {
    let token = cursor.peek();
    let ty = if token.kind == Kind::DotWord { Type::from_name(token.text) } else { None };
    match ty {
        // The assembler has no variables of these two: their instructions work on .b16 and .b32.
        Some(Type::Bf16 | Type::Bf16x2) | None => Err(cursor.expected("a type")),
        Some(Type::Pred) if !register => Err(cursor.expected("a type other than `.pred`")),
        Some(ty) => {
            cursor.next();
            Ok(ty)
        }
    }
}

fn declared_name<'a>(cursor: &mut Cursor<'a>, what: &str) -> Result<Token<'a>> {
    let token = cursor.peek();
    if token.kind != Kind::Word || token.text == "_" {
        return Err(cursor.expected(what));
    }
    if special(token.text).is_some() || token.text == "WARP_SZ" {
        return Err(ParseError::new(token.line, format!("`{}` is the name of a special register", token.text)));
    }
    Ok(cursor.next())
}

/// Takes `last`, or says that `what` was expected.
pub(super) fn expect_either(cursor: &mut Cursor, what: &str, last: &str) -> Result<()> {
    if cursor.take(last) { Ok(()) } else { Err(cursor.expected(what)) }
}

/// What follows `=`: one constant, or constants in braces.
pub(super) fn initializer(cursor: &mut Cursor, variable: &Variable) -> Result<Vec<u8>> {
    let line = cursor.line();
    let room = variable.bytes();
    let mut bytes = Vec::new();
    if cursor.take("{") {
        if variable.size == Size::Scalar {
            return Err(ParseError::new(line, "expected one constant for a scalar, found `{`"));
        }
        loop {
            element(cursor, variable.ty, &mut bytes)?;
            if bytes.len() as u64 > room && variable.size != Size::Open {
                return Err(ParseError::new(line, format!("expected at most {room} bytes of constants")));
            }
            if !cursor.take(",") {
                break;
            }
        }
        expect_either(cursor, "`,` or `}`", "}")?;
    } else if variable.size == Size::Scalar {
        element(cursor, variable.ty, &mut bytes)?;
    } else {
        return Err(cursor.expected("`{`"));
    }
    Ok(bytes)
}

fn element(cursor: &mut Cursor, ty: Type, out: &mut Vec<u8>) -> Result<()> {
    let line = cursor.line();
    if !constant::begins_constant(&cursor.peek()) {
        return Err(cursor.expected("a constant"));
    }
    let value = constant::constant(cursor)?;
    let size = ty.bytes() as usize;
    let bits = match (ty, value) {
        (Type::F32, Constant::Float32(bits)) => u64::from(bits),
        (Type::F32, Constant::Float64(bits)) => u64::from((f64::from_bits(bits) as f32).to_bits()),
        (Type::F64, Constant::Float64(bits)) => bits,
        (Type::F32 | Type::F64 | Type::F16 | Type::F16x2, _) | (_, Constant::Float32(_) | Constant::Float64(_)) => {
            return Err(ParseError::new(line, format!("expected a constant of type `.{}`", ty.name())));
        }
        (_, Constant::Integer(value)) => {
            let (smallest, largest) = (-(1i128 << (8 * size - 1)), (1i128 << (8 * size)) - 1);
            if !(smallest..=largest).contains(&value) {
                return Err(ParseError::new(line, format!("the constant {value} does not fit `.{}`", ty.name())));
            }
            value as u64
        }
    };
    out.extend(bits.to_le_bytes().iter().take(size));
    Ok(())
}
