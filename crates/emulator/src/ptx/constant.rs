//! Numbers and constant expressions.
//!
//! PTX computes constants in 64 bits, signed unless a literal is unsigned. Results outside both ranges are refused
//! rather than wrapped, and so are the comparisons and the conditional operator, which no hand-written kernel needs.

use super::ParseError;
use super::cursor::{Cursor, Result};
use super::lexer::{Kind, Token};

/// A constant as the text gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Constant {
    Integer(i128),
    Float32(u32),
    Float64(u64),
}

const WARP_SIZE: i128 = 32;
const SMALLEST: i128 = i64::MIN as i128;
const LARGEST: i128 = u64::MAX as i128;
/// Parentheses and signs may nest this deep.
const MAX_DEPTH: u32 = 32;

#[derive(Clone, Copy)]
enum Value {
    Integer { value: i128, unsigned: bool },
    Float32(u32),
    Float64(u64),
}

/// True if a constant can begin with this token.
pub(super) fn begins_constant(token: &Token) -> bool {
    match token.kind {
        Kind::Number => true,
        Kind::Word => token.text == "WARP_SZ",
        Kind::Punctuation => matches!(token.text, "-" | "+" | "~" | "("),
        _ => false,
    }
}

/// A constant expression of any type.
pub(super) fn constant(cursor: &mut Cursor) -> Result<Constant> {
    Ok(match expression(cursor, 0, 0)? {
        Value::Integer { value, .. } => Constant::Integer(value),
        Value::Float32(bits) => Constant::Float32(bits),
        Value::Float64(bits) => Constant::Float64(bits),
    })
}

/// An integer constant expression.
pub(super) fn integer(cursor: &mut Cursor) -> Result<i128> {
    let line = cursor.line();
    match constant(cursor)? {
        Constant::Integer(value) => Ok(value),
        _ => Err(ParseError::new(line, "expected an integer, found a floating-point constant")),
    }
}

/// An integer constant expression within bounds; `what` names it in the error.
pub(super) fn integer_in(cursor: &mut Cursor, what: &str, bounds: std::ops::RangeInclusive<u32>) -> Result<u32> {
    let line = cursor.line();
    let value = integer(cursor)?;
    u32::try_from(value).ok().filter(|value| bounds.contains(value)).ok_or_else(|| {
        ParseError::new(line, format!("expected {what} from {} to {}, found {value}", bounds.start(), bounds.end()))
    })
}

/// Binding strength of a binary operator, larger is tighter.
fn strength(token: &Token) -> Option<u32> {
    if token.kind != Kind::Punctuation {
        return None;
    }
    Some(match token.text {
        "|" => 1,
        "^" => 2,
        "&" => 3,
        "<<" | ">>" => 4,
        "+" | "-" => 5,
        "*" | "/" | "%" => 6,
        _ => return None,
    })
}

fn expression(cursor: &mut Cursor, weakest: u32, depth: u32) -> Result<Value> {
    let mut left = unary(cursor, depth)?;
    loop {
        let operator = cursor.peek();
        let Some(tightness) = strength(&operator).filter(|&tightness| tightness > weakest) else {
            return Ok(left);
        };
        cursor.next();
        let right = expression(cursor, tightness, depth)?;
        left = binary(operator, left, right)?;
    }
}

fn unary(cursor: &mut Cursor, depth: u32) -> Result<Value> {
    let token = cursor.peek();
    if depth > MAX_DEPTH {
        return Err(ParseError::new(
            token.line,
            format!("expected at most {MAX_DEPTH} nested operators in a constant"),
        ));
    }
    match (token.kind, token.text) {
        (Kind::Number, _) => {
            cursor.next();
            number(&token)
        }
        (Kind::Word, "WARP_SZ") => {
            cursor.next();
            Ok(Value::Integer { value: WARP_SIZE, unsigned: false })
        }
        (Kind::Punctuation, "(") => {
            cursor.next();
            let inner = expression(cursor, 0, depth + 1)?;
            cursor.expect(")")?;
            Ok(inner)
        }
        (Kind::Punctuation, sign @ ("-" | "+" | "~")) => {
            cursor.next();
            let value = unary(cursor, depth + 1)?;
            signed(&token, sign, value)
        }
        _ => Err(cursor.expected("a constant")),
    }
}

fn signed(token: &Token, sign: &str, value: Value) -> Result<Value> {
    match (sign, value) {
        ("-", Value::Float64(bits)) => Ok(Value::Float64(bits ^ (1 << 63))),
        (_, Value::Float32(_) | Value::Float64(_)) => Err(ParseError::new(
            token.line,
            format!("expected an integer after `{sign}`, found a floating-point constant"),
        )),
        ("-", Value::Integer { value, unsigned }) => in_range(token, -value, unsigned),
        ("~", Value::Integer { value, unsigned: true }) => in_range(token, value ^ LARGEST, true),
        ("~", Value::Integer { value, unsigned: false }) => in_range(token, !value, false),
        (_, value) => Ok(value),
    }
}

fn binary(operator: Token, left: Value, right: Value) -> Result<Value> {
    let (Value::Integer { value: a, unsigned: ua }, Value::Integer { value: b, unsigned: ub }) = (left, right) else {
        let message = format!("expected integers around `{}`, found a floating-point constant", operator.text);
        return Err(ParseError::new(operator.line, message));
    };
    // Both sides are within 65 bits, so only the product and the shift can leave i128.
    let result = match operator.text {
        "|" => Some(a | b),
        "^" => Some(a ^ b),
        "&" => Some(a & b),
        "+" => Some(a + b),
        "-" => Some(a - b),
        "*" => a.checked_mul(b),
        "/" => a.checked_div(b),
        "%" => a.checked_rem(b),
        "<<" => shift_count(b).and_then(|count| a.checked_mul(1 << count)),
        ">>" => shift_count(b).map(|count| a >> count),
        _ => None,
    };
    match result {
        Some(value) => in_range(&operator, value, ua || ub),
        None => Err(ParseError::new(operator.line, format!("`{a} {} {b}` has no 64-bit value", operator.text))),
    }
}

fn shift_count(count: i128) -> Option<u32> {
    u32::try_from(count).ok().filter(|&count| count < 64)
}

fn in_range(token: &Token, value: i128, unsigned: bool) -> Result<Value> {
    if (SMALLEST..=LARGEST).contains(&value) {
        Ok(Value::Integer { value, unsigned: unsigned || value > i128::from(i64::MAX) })
    } else {
        Err(ParseError::new(token.line, format!("the constant {value} does not fit 64 bits")))
    }
}

fn number(token: &Token) -> Result<Value> {
    read_number(token.text)
        .ok_or_else(|| ParseError::new(token.line, format!("expected a number, found {}", token.describe())))
}

fn read_number(text: &str) -> Option<Value> {
    let prefix = text.get(..2).unwrap_or("");
    let rest = text.get(2..).unwrap_or("");
    match prefix {
        "0f" | "0F" => hexadecimal(rest, 8).map(|bits| Value::Float32(bits as u32)),
        "0d" | "0D" => hexadecimal(rest, 16).map(Value::Float64),
        "0x" | "0X" => unsigned_digits(rest, 16),
        "0b" | "0B" => unsigned_digits(rest, 2),
        _ if text.contains(['.', 'e', 'E']) => decimal_float(text),
        _ if text.starts_with('0') && text.len() > 1 => unsigned_digits(text.get(1..)?, 8).or_else(|| zero(text)),
        _ => unsigned_digits(text, 10),
    }
}

/// `0U`, which reads as an octal number without digits.
fn zero(text: &str) -> Option<Value> {
    (text == "0U").then_some(Value::Integer { value: 0, unsigned: true })
}

fn hexadecimal(digits: &str, length: usize) -> Option<u64> {
    let well_formed = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if well_formed { u64::from_str_radix(digits, 16).ok() } else { None }
}

fn unsigned_digits(text: &str, radix: u32) -> Option<Value> {
    let (digits, suffix) = match text.strip_suffix('U') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    Some(Value::Integer { value: i128::from(value), unsigned: suffix || value > i64::MAX as u64 })
}

fn decimal_float(text: &str) -> Option<Value> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    let value: f64 = if plain { text.parse().ok()? } else { return None };
    value.is_finite().then(|| Value::Float64(value.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::lexer::tokenize;

    fn read(text: &str) -> Result<Constant> {
        let mut cursor = Cursor::new(tokenize(text)?);
        let value = constant(&mut cursor)?;
        assert_eq!(cursor.peek().kind, Kind::End, "{text}");
        Ok(value)
    }

    #[test]
    fn literals() {
        let integer = Constant::Integer;
        for (text, value) in [
            ("0", integer(0)),
            ("0U", integer(0)),
            ("017", integer(15)),
            ("0b101", integer(5)),
            ("0xFFU", integer(255)),
            ("-1", integer(-1)),
            ("18446744073709551615", integer(LARGEST)),
            ("0xFFFFFFFFFFFFFFFF", integer(LARGEST)),
            ("-9223372036854775808", integer(SMALLEST)),
            ("WARP_SZ", integer(32)),
            ("0f3F800000", Constant::Float32(1.0f32.to_bits())),
            ("0d3FF0000000000000", Constant::Float64(1.0f64.to_bits())),
            ("1.5", Constant::Float64(1.5f64.to_bits())),
            ("-1e-3", Constant::Float64((-1e-3f64).to_bits())),
            ("1.", Constant::Float64(1.0f64.to_bits())),
        ] {
            assert_eq!(read(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn expressions() {
        for (text, value) in [
            ("2 + 3 * 4", 14),
            ("(2 + 3) * 4", 20),
            ("10 - 4 - 3", 3),
            ("1 << 4 | 3", 19),
            ("~0", -1),
            ("~0U", LARGEST),
            ("-(-(7))", 7),
            ("7 / 2 * 2 + 7 % 2", 7),
            ("6 & 3 ^ 1", 3),
            ("-8 >> 1", -4),
        ] {
            assert_eq!(read(text), Ok(Constant::Integer(value)), "{text}");
        }
    }

    #[test]
    fn malformed() {
        for text in [
            "08",
            "0x",
            "0b2",
            "0f3F80000",
            "0f3F8000000",
            "0d3FF",
            "1.0f",
            "1e999",
            "1.2.3",
            "12abc",
            "18446744073709551616",
            "-9223372036854775809",
            "-0f3F800000",
            "~1.5",
            "1 / 0",
            "1 % 0",
            "1 << 64",
            "1 << -1",
            "0xFFFFFFFFFFFFFFFF * 0xFFFFFFFFFFFFFFFF",
            "1.5 + 1",
            "(1",
            "*",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(read(&"(".repeat(100_000)).is_err());
        assert!(read(&"-".repeat(100_000)).is_err());
    }
}
