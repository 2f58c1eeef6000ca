//! Decoding of `setp`, `set`, `selp`, `slct`.

use super::cold::{Place, ScalarFn, TestFn};
use super::context::{Decoded, Decoder, is_bits, is_integer, is_signed};
use super::emit::{place, scalar};
use super::op::{Op, R3};
use super::words::Words;
use crate::numerics::Lanes;
use crate::numerics::compare::{self, Compared, Comparison};
use crate::numerics::float::flush_f32;
use crate::ptx::ast::Type;

/// The comparison and whether its name belongs to unsigned integers.
fn comparison(words: &mut Words<'_>) -> Decoded<(Comparison, bool)> {
    use Comparison::{Eq, Equ, Ge, Geu, Gt, Gtu, Le, Leu, Lt, Ltu, Nan, Ne, Neu, Num};
    const NAMES: [(&str, Comparison, bool); 18] = [
        ("eq", Eq, false),
        ("ne", Ne, false),
        ("lt", Lt, false),
        ("le", Le, false),
        ("gt", Gt, false),
        ("ge", Ge, false),
        ("lo", Lt, true),
        ("ls", Le, true),
        ("hi", Gt, true),
        ("hs", Ge, true),
        ("equ", Equ, false),
        ("neu", Neu, false),
        ("ltu", Ltu, false),
        ("leu", Leu, false),
        ("gtu", Gtu, false),
        ("geu", Geu, false),
        ("num", Num, false),
        ("nan", Nan, false),
    ];
    let word = words.next()?;
    match NAMES.iter().find(|(name, ..)| *name == word) {
        Some(&(_, comparison, unsigned)) => Ok((comparison, unsigned)),
        None => Err(words.error(&format!(".{word} is not a comparison"))),
    }
}

/// How predicates combine after a comparison.
#[derive(Clone, Copy)]
enum Combine {
    And,
    Or,
    Xor,
}

/// The words of `setp` and `set` up to the types.
struct Head {
    comparison: Comparison,
    unsigned: bool,
    combine: Option<Combine>,
    ftz: bool,
}

fn head(words: &mut Words<'_>) -> Decoded<Head> {
    let (comparison, unsigned) = comparison(words)?;
    let combine = words.any(&["and", "or", "xor"]).map(|index| [Combine::And, Combine::Or, Combine::Xor][index]);
    let ftz = words.take("ftz");
    Ok(Head { comparison, unsigned, combine, ftz })
}

/// Refuse comparisons that a type does not have.
fn check(words: &Words<'_>, head: &Head, ty: Type) -> Decoded<()> {
    use Comparison::{Eq, Equ, Geu, Gtu, Leu, Ltu, Nan, Ne, Neu, Num};
    let integer = is_integer(ty);
    let float_only = matches!(head.comparison, Equ | Neu | Ltu | Leu | Gtu | Geu | Num | Nan);
    let packed = matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::Pred);
    let wrong = packed
        || ty.bytes() == 1
        || (integer && float_only)
        || (is_bits(ty) && !matches!(head.comparison, Eq | Ne))
        || (head.unsigned && (is_signed(ty) || !integer))
        || (head.ftz && !matches!(ty, Type::F32 | Type::F16));
    if wrong { Err(words.error("this comparison does not exist for the type")) } else { Ok(()) }
}

/// The comparison of one lane.
fn compare_one(head: &Head, ty: Type) -> impl Fn(u64, u64) -> bool + Send + Sync + 'static {
    let (comparison, ftz) = (head.comparison, head.ftz);
    let flush = move |x: u64| if ftz { flush_f32(x as u32) } else { x as u32 };
    move |a, b| match ty {
        Type::F64 => compare::floats(comparison, f64::from_bits(a), f64::from_bits(b)),
        Type::F32 => compare::floats(comparison, f32::from_bits(flush(a)), f32::from_bits(flush(b))),
        Type::F16 | Type::Bf16 => {
            let compared = if ty == Type::F16 { Compared::F16 } else { Compared::Bf16 };
            let flush = |x: u64| if ftz && x & 0x7C00 == 0 { x as u32 & 0x8000 } else { x as u32 };
            compare::lanes(comparison, compared, &[flush(a); 32], &[flush(b); 32]) & 1 == 1
        }
        Type::S16 => compare::integers(comparison, a as i16, b as i16),
        Type::S32 => compare::integers(comparison, a as i32, b as i32),
        Type::S64 => compare::integers(comparison, a as i64, b as i64),
        _ => compare::integers(comparison, a, b),
    }
}

/// `setp`
pub(super) fn set_predicate(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let head = head(&mut words)?;
    let ty = words.ty()?;
    words.finish()?;
    check(&words, &head, ty)?;
    if ty == Type::Bf16 {
        d.needs(90)?;
    }
    d.arity(if head.combine.is_some() { 4 } else { 3 })?;
    let (first, second) = d.pair(0)?;
    let to = d.pred_dest(first)?;
    let other = second.map(|operand| d.pred_dest(operand)).transpose()?;
    let (a, b) = (d.source(1, ty)?, d.source(2, ty)?);
    if other.is_none() && head.combine.is_none() {
        let simple = match (ty, head.ftz) {
            (Type::U32 | Type::B32, _) => Some(Op::SetU32(head.comparison, to, a, b)),
            (Type::S32, _) => Some(Op::SetS32(head.comparison, to, a, b)),
            (Type::U64 | Type::B64, _) => Some(Op::SetU64(head.comparison, to, a, b)),
            (Type::S64, _) => Some(Op::SetS64(head.comparison, to, a, b)),
            (Type::F32, false) => Some(Op::SetF32(head.comparison, to, a, b)),
            _ => None,
        };
        if let Some(op) = simple {
            d.emit(op);
            return Ok(());
        }
        let compared = match (ty, head.ftz) {
            (Type::U16 | Type::B16, _) => Some(Compared::U16),
            (Type::S16, _) => Some(Compared::S16),
            (Type::F32, true) => Some(Compared::F32Ftz),
            (Type::F16, false) => Some(Compared::F16),
            (Type::Bf16, false) => Some(Compared::Bf16),
            _ => None,
        };
        if let Some(compared) = compared {
            let comparison = head.comparison;
            let f: TestFn = Box::new(move |a: &Lanes, b: &Lanes| compare::lanes(comparison, compared, a, b));
            return d.emit_test_fn(f, to, a, b);
        }
    }
    let third = match head.combine {
        None => Place::None,
        Some(_) => Place::Pred(d.pred_source(3, true)?),
    };
    let one = compare_one(&head, ty);
    let combine = head.combine;
    let f: ScalarFn = Box::new(move |[a, b, c, _]| {
        let holds = one(a, b);
        let c = c == 1;
        let join = |value: bool| {
            u64::from(match combine {
                None => value,
                Some(Combine::And) => value && c,
                Some(Combine::Or) => value || c,
                Some(Combine::Xor) => value != c,
            })
        };
        [join(holds), join(!holds)]
    });
    let to = [Place::Pred(to), other.map_or(Place::None, Place::Pred)];
    d.emit_map(f, to, [place(a, ty), place(b, ty), third, Place::None])
}

/// `set`: ones or 1.0 where the comparison holds.
pub(super) fn set(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let head = head(&mut words)?;
    let to = words.ty()?;
    let ty = words.ty()?;
    words.finish()?;
    check(&words, &head, ty)?;
    if ty == Type::Bf16 {
        d.needs(90)?;
    }
    let one = match to {
        Type::U32 | Type::S32 => 0xFFFF_FFFF,
        Type::F32 => 0x3F80_0000,
        _ => return Err(words.error("the result is .u32, .s32 or .f32")),
    };
    d.arity(if head.combine.is_some() { 4 } else { 3 })?;
    let slot = d.dest(0, to)?;
    let (a, b) = (d.source(1, ty)?, d.source(2, ty)?);
    let third = match head.combine {
        None => Place::None,
        Some(_) => Place::Pred(d.pred_source(3, true)?),
    };
    let holds = compare_one(&head, ty);
    let combine = head.combine;
    let f = scalar(move |[a, b, c, _]| {
        let (value, c) = (holds(a, b), c == 1);
        let value = match combine {
            None => value,
            Some(Combine::And) => value && c,
            Some(Combine::Or) => value || c,
            Some(Combine::Xor) => value != c,
        };
        if value { one } else { 0 }
    });
    let from = [place(a, ty), place(b, ty), third, Place::None];
    d.emit_map(f, [Place::Word(slot), Place::None], from)
}

/// `selp`
pub(super) fn select(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    d.arity(4)?;
    if matches!(ty, Type::Pred | Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2) || ty.bytes() == 1 {
        return Err(words.error("type not supported here"));
    }
    let operands = R3 { d: d.dest(0, ty)?, a: d.source(1, ty)?, b: d.source(2, ty)? };
    let p = d.pred_source(3, false)?;
    d.emit(if ty.bytes() == 8 { Op::Select64(operands, p) } else { Op::Select32(operands, p) });
    Ok(())
}

/// `slct`: `a` where `c >= 0`, else `b`.
pub(super) fn select_sign(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ftz = words.take("ftz");
    let ty = words.ty()?;
    let test = words.ty()?;
    words.finish()?;
    let f = match (test, ftz) {
        (Type::S32, false) => scalar(|[a, b, c, _]| if c as i32 >= 0 { a } else { b }),
        (Type::F32, _) => scalar(move |[a, b, c, _]| {
            let c = if ftz { flush_f32(c as u32) } else { c as u32 };
            if f32::from_bits(c) >= 0.0 { a } else { b }
        }),
        _ => return Err(words.error("the selector is .s32 or .f32")),
    };
    if matches!(ty, Type::Pred | Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2) || ty.bytes() == 1 {
        return Err(words.error("type not supported here"));
    }
    d.emit_scalar(ty, &[ty, ty, test], f)
}

/// A predicate computed from one source.
pub(super) fn emit_test(d: &mut Decoder<'_>, ty: Type, f: ScalarFn) -> Decoded<()> {
    d.arity(2)?;
    let to = d.pred_dest(d.operand(0)?)?;
    let a = d.source(1, ty)?;
    let from = [place(a, ty), Place::None, Place::None, Place::None];
    d.emit_map(f, [Place::Pred(to), Place::None], from)
}
