//! Operands of instructions.

use super::ParseError;
use super::ast::{AddressBase, Operand, SymbolKind, Type};
use super::body::{Body, index};
use super::constant::{self, Constant, begins_constant};
use super::cursor::{Cursor, Result};
use super::lexer::Kind;
use super::scope::Name;
use super::special::{SpecialName, dimension, special};

/// Elements of the longest vector operand: the accumulators of the widest `wgmma`.
const MAX_VECTOR: usize = 128;

/// One operand of any instruction but a branch.
pub(super) fn operand<'a>(body: &mut Body<'_, 'a>, cursor: &mut Cursor<'a>) -> Result<Operand> {
    let token = cursor.peek();
    match (token.kind, token.text) {
        (Kind::Punctuation, "[") => address(body, cursor),
        (Kind::Punctuation, "{") => vector(body, cursor),
        (Kind::Punctuation, "!") => {
            cursor.next();
            predicate(body, cursor).map(Operand::NegatedPredicate)
        }
        _ => {
            let first = scalar(body, cursor)?;
            if !cursor.peek().is("|") {
                return Ok(first);
            }
            let line = cursor.next().line;
            let second = scalar(body, cursor)?;
            let results = [&first, &second].iter().all(|side| matches!(side, Operand::Register(_) | Operand::Sink));
            if results {
                Ok(Operand::Pair(Box::new(first), Box::new(second)))
            } else {
                Err(ParseError::new(line, "expected a register or `_` on both sides of `|`"))
            }
        }
    }
}

/// A predicate register.
pub(super) fn predicate<'a>(body: &Body<'_, 'a>, cursor: &mut Cursor<'a>) -> Result<u32> {
    let token = cursor.peek();
    match body.scopes.find(token.text) {
        Some(Name::Register(register)) if token.kind == Kind::Word && register_type(body, register) == Type::Pred => {
            cursor.next();
            Ok(register)
        }
        _ => Err(cursor.expected("a predicate register")),
    }
}

fn register_type(body: &Body, register: u32) -> Type {
    body.entry.registers.get(register as usize).map_or(Type::Pred, |register| register.ty)
}

/// A register, a constant, a special register, the address of a variable or a sink.
fn scalar<'a>(body: &mut Body<'_, 'a>, cursor: &mut Cursor<'a>) -> Result<Operand> {
    let token = cursor.peek();
    if begins_constant(&token) {
        return Ok(match constant::constant(cursor)? {
            Constant::Integer(value) => Operand::Immediate(value),
            Constant::Float32(bits) => Operand::Float32(bits),
            Constant::Float64(bits) => Operand::Float64(bits),
        });
    }
    if token.kind != Kind::Word {
        return Err(cursor.expected("an operand"));
    }
    if token.text == "_" {
        cursor.next();
        return Ok(Operand::Sink);
    }
    if special(token.text).is_some() {
        return special_register(cursor);
    }
    match name(body, cursor)? {
        AddressBase::Register(register) => Ok(Operand::Register(register)),
        AddressBase::Symbol { kind, index } => Ok(Operand::Symbol { kind, index, offset: offset(cursor)? }),
        AddressBase::Absolute => Err(cursor.expected("an operand")),
    }
}

fn special_register(cursor: &mut Cursor) -> Result<Operand> {
    let token = cursor.next();
    match special(token.text) {
        Some(SpecialName::Whole(register)) => Ok(Operand::Special(register)),
        Some(SpecialName::Vector(component)) => {
            let part = cursor.peek();
            match dimension(part.text).filter(|_| part.kind == Kind::DotWord) {
                Some(dimension) => {
                    cursor.next();
                    Ok(Operand::Special(component(dimension)))
                }
                None => Err(cursor.expected(&format!("`.x`, `.y` or `.z` after `{}`", token.text))),
            }
        }
        None => Err(ParseError::new(token.line, format!("`{}` is not declared", token.text))),
    }
}

/// A declared register or variable.
fn name<'a>(body: &mut Body<'_, 'a>, cursor: &mut Cursor<'a>) -> Result<AddressBase> {
    let token = cursor.expect_kind(Kind::Word, "a register or a variable")?;
    let found = body.scopes.find(token.text).or_else(|| body.module.find(token.text));
    let (kind, index) = match found {
        Some(Name::Register(register)) => return Ok(AddressBase::Register(register)),
        Some(Name::Shared(index)) => (SymbolKind::Shared, index),
        Some(Name::ModuleShared(index)) => (SymbolKind::Shared, adopt(body, index)),
        Some(Name::Global(index)) => (SymbolKind::Global, index),
        Some(Name::Param(index)) => (SymbolKind::Param, index),
        Some(Name::Entry) => {
            let message = format!("expected a register or a variable, found the kernel `{}`", token.text);
            return Err(ParseError::new(token.line, message));
        }
        None => return Err(ParseError::new(token.line, format!("`{}` is not declared", token.text))),
    };
    Ok(AddressBase::Symbol { kind, index })
}

/// The entry's own copy of a shared variable of the module.
fn adopt(body: &mut Body, in_module: u32) -> u32 {
    let position = in_module as usize;
    let next = index(body.entry.shared.len());
    match (body.adopted.get_mut(position), body.module.shared.get(position)) {
        (Some(Some(adopted)), _) => *adopted,
        (Some(slot), Some(variable)) => {
            *slot = Some(next);
            body.entry.shared.push(variable.clone());
            next
        }
        _ => next,
    }
}

/// `+constant` if there is one. A negative offset is written `+-4`, as the assembler wants it.
fn offset(cursor: &mut Cursor) -> Result<i64> {
    let line = cursor.line();
    if !cursor.take("+") {
        return Ok(0);
    }
    offset_value(constant::integer(cursor)?, line)
}

fn offset_value(value: i128, line: u32) -> Result<i64> {
    i64::try_from(value).map_err(|_| ParseError::new(line, format!("the offset {value} does not fit 64 bits")))
}

fn address<'a>(body: &mut Body<'_, 'a>, cursor: &mut Cursor<'a>) -> Result<Operand> {
    cursor.expect("[")?;
    let line = cursor.line();
    let (base, offset) = if begins_constant(&cursor.peek()) {
        (AddressBase::Absolute, offset_value(constant::integer(cursor)?, line)?)
    } else {
        if special(cursor.peek().text).is_some() {
            return Err(cursor.expected("a register or a variable"));
        }
        let base = name(body, cursor)?;
        if let AddressBase::Register(register) = base {
            let ty = register_type(body, register);
            if !matches!(ty, Type::B32 | Type::U32 | Type::S32 | Type::B64 | Type::U64 | Type::S64) {
                let message =
                    format!("expected an address register of 32 or 64 bits, found one of type `.{}`", ty.name());
                return Err(ParseError::new(line, message));
            }
        }
        (base, offset(cursor)?)
    };
    if cursor.take("]") {
        Ok(Operand::Address { base, offset })
    } else {
        Err(cursor.expected("`]` or `+` and a constant"))
    }
}

fn vector<'a>(body: &mut Body<'_, 'a>, cursor: &mut Cursor<'a>) -> Result<Operand> {
    let line = cursor.line();
    cursor.expect("{")?;
    let mut elements = Vec::new();
    loop {
        let element = scalar(body, cursor)?;
        if elements.len() == MAX_VECTOR {
            return Err(ParseError::new(line, format!("expected at most {MAX_VECTOR} elements in a vector")));
        }
        elements.push(element);
        if !cursor.take(",") {
            break;
        }
    }
    if cursor.take("}") { Ok(Operand::Vector(elements)) } else { Err(cursor.expected("`,` or `}`")) }
}
