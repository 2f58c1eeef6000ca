//! Decoding of `ld`, `st`, `prefetch`, `atom`, `red`, `cvta`, fences.

use super::cold::{Atomic, AtomicOp, Cold};
use super::context::{Decoded, Decoder, is_signed};
use super::op::{Access, Address, Element, NO_SLOT, Op, Order, R2, R3, Scope, Slot, Space};
use super::slots::Init;
use super::words::Words;
use crate::ptx::ast::{AddressBase, Operand, SymbolKind, Type};

/// Ordering, scope and space words that `ld` and `st` share.
struct Head {
    order: Order,
    scope: Scope,
    space: Space,
}

/// `.weak`, `.volatile`, `.relaxed.scope`, `.acquire.scope`, then the state space.
fn head(d: &Decoder<'_>, words: &mut Words<'_>, store: bool) -> Decoded<Head> {
    let order = if words.take("weak") {
        Order::Weak
    } else if words.take("volatile") {
        Order::Volatile
    } else if words.take("relaxed") {
        Order::Relaxed
    } else if !store && words.take("acquire") {
        Order::Acquire
    } else if store && words.take("release") {
        Order::Release
    } else {
        Order::Weak
    };
    let scope = if matches!(order, Order::Relaxed | Order::Acquire | Order::Release) {
        words.scope()?.ok_or_else(|| words.error("a scope (.cta, .gpu or .sys) is missing"))?
    } else {
        Scope::System
    };
    let space = match words.peek() {
        Some("global") => Some(Space::Global),
        Some("shared" | "shared::cta") => Some(Space::Shared),
        Some("param" | "param::entry") if !store => Some(Space::Param),
        Some(word @ ("local" | "const" | "shared::cluster" | "param" | "param::func" | "param::entry")) => {
            return Err(words.error(&format!("state space .{word} is not supported")));
        }
        _ => None,
    };
    if space.is_some() {
        words.next()?;
    }
    if order == Order::Volatile && space == Some(Space::Param) {
        return Err(d.error("parameters cannot be volatile"));
    }
    Ok(Head { order, scope, space: space.unwrap_or(Space::Generic) })
}

/// Cache operators, eviction priorities and prefetch sizes: they change no value. True when a policy operand follows.
fn hints(words: &mut Words<'_>, order: Order, space: Space, store: bool) -> Decoded<bool> {
    let operators: &[&str] = if store { &["wb", "cg", "cs", "wt"] } else { &["ca", "cg", "cs", "lu", "cv"] };
    const L1: [&str; 5] =
        ["L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"];
    let operator = words.any(operators).is_some();
    let priority = words.any(&L1).is_some();
    let policy = words.take("L2::cache_hint");
    let prefetch = !store && words.any(&["L2::64B", "L2::128B", "L2::256B"]).is_some();
    let weak = matches!(order, Order::Weak | Order::ReadOnly);
    if (operator && !weak) || ((priority || policy || prefetch) && order == Order::Volatile) {
        return Err(words.error("the cache operator does not go with the memory ordering"));
    }
    if (priority || policy || prefetch) && !matches!(space, Space::Global | Space::Generic) {
        return Err(words.error("eviction priorities and policies are for global memory"));
    }
    Ok(policy)
}

/// Vector length: 1 without a `.v2` or `.v4`.
fn vector(words: &mut Words<'_>) -> u8 {
    words.any(&["v2", "v4"]).map_or(1, |index| [2, 4][index])
}

fn shape(d: &Decoder<'_>, ty: Type, count: u8, wide: bool) -> Decoded<Element> {
    let bytes = ty.bytes() as u8;
    if bytes == 0 || matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::F16 | Type::Bf16) {
        return Err(d.error(format!("type .{} cannot be loaded or stored; use .b16 or .b32", ty.name())));
    }
    if u32::from(bytes) * u32::from(count) > 16 {
        return Err(d.error("a vector access has at most 16 bytes"));
    }
    Ok(Element { bytes, signed: is_signed(ty), wide, count })
}

/// `ld`
pub(super) fn load(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let Head { mut order, scope, space } = head(d, &mut words, false)?;
    if words.take("nc") {
        if order != Order::Weak || space != Space::Global {
            return Err(words.error(".nc is for weak loads of global memory"));
        }
        order = Order::ReadOnly;
    }
    let policy = hints(&mut words, order, space, false)?;
    // `.nc` also stands behind a cache operator in older texts.
    if words.take("nc") {
        order = Order::ReadOnly;
    }
    let count = vector(&mut words);
    let ty = words.ty()?;
    words.finish()?;
    d.arity(2 + usize::from(policy))?;
    if policy {
        d.source(2, Type::B64)?;
    }
    let elements = d.elements(0)?;
    if elements.len() != usize::from(count) {
        return Err(d.error(format!("expected {count} destinations, found {}", elements.len())));
    }
    let mut data = [NO_SLOT; 4];
    let mut wide = None;
    for (slot, operand) in data.iter_mut().zip(&elements) {
        if count > 1 && matches!(operand, Operand::Sink) {
            continue;
        }
        let (home, declared) = d.dest_relaxed(operand, ty)?;
        *slot = home;
        let this = declared.bytes() == 8;
        if wide.replace(this).is_some_and(|other| other != this) {
            return Err(d.error("the destinations have different sizes"));
        }
    }
    let wide = wide.unwrap_or(ty.bytes() == 8);
    let element = shape(d, ty, count, wide)?;
    match space {
        Space::Param => load_param(d, data, element),
        Space::Shared => {
            let address = d.address(1, true)?;
            d.emit(Op::LoadShared(Access::new(data, element, address, (order, scope))));
            Ok(())
        }
        Space::Global => {
            let address = d.address(1, false)?;
            d.emit(Op::LoadGlobal(Access::new(data, element, address, (order, scope))));
            Ok(())
        }
        Space::Generic => {
            let address = d.address(1, false)?;
            d.emit_cold(Cold::LoadGeneric(Access::new(data, element, address, (order, scope))))
        }
    }
}

/// `ld.param`: at a known place it is a move from a slot that the launch fills.
fn load_param(d: &mut Decoder<'_>, data: [Slot; 4], element: Element) -> Decoded<()> {
    let Operand::Address { base, offset } = d.operand(1)? else {
        return Err(d.error("a parameter is loaded from an address in brackets"));
    };
    let AddressBase::Symbol { kind: SymbolKind::Param, index } = base else {
        let address = d.address(1, false)?;
        return d.emit_cold(Cold::LoadParam(Access::new(data, element, address, (Order::Weak, Scope::Cta))));
    };
    let param = d.entry.params.get(*index as usize).ok_or_else(|| d.error("no such parameter"))?;
    let end = i64::from(element.total()).checked_add(*offset);
    if *offset < 0 || end.is_none_or(|end| end > i64::from(param.bytes)) {
        return Err(d.error(format!("the access lies outside parameter {}", param.name)));
    }
    let start = param.offset + *offset as u32;
    if !start.is_multiple_of(element.total()) {
        return Err(d.error("the parameter access is misaligned"));
    }
    for index in 0..u32::from(element.count) {
        let Element { bytes, signed, wide, .. } = element;
        let offset = start + index * u32::from(bytes);
        let a = d.constant(Init::Param { offset, bytes, signed, wide })?;
        let to = R2 { d: data[index as usize], a };
        let op = if wide { Op::Mov64(to) } else { Op::Mov32(to) };
        if index == 0 { d.emit(op) } else { d.emit_helper(op) }
    }
    Ok(())
}

/// `st`
pub(super) fn store(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let Head { order, scope, space } = head(d, &mut words, true)?;
    let policy = hints(&mut words, order, space, true)?;
    let count = vector(&mut words);
    let ty = words.ty()?;
    words.finish()?;
    d.arity(2 + usize::from(policy))?;
    if policy {
        d.source(2, Type::B64)?;
    }
    let elements = d.elements(1)?;
    if elements.len() != usize::from(count) {
        return Err(d.error(format!("expected {count} values, found {}", elements.len())));
    }
    let mut data = [NO_SLOT; 4];
    for (slot, operand) in data.iter_mut().zip(elements) {
        *slot = d.source_relaxed(operand, ty)?;
    }
    let wide = ty.bytes() == 8;
    let element = shape(d, ty, count, wide)?;
    let address = d.address(0, space == Space::Shared)?;
    // A narrow value may sit in a 64-bit register; its low word is what a store takes, in memory order the first of the
    // pair's lanes, so it is copied out first.
    if !wide {
        let elements = d.elements(1)?;
        for (slot, operand) in data.iter_mut().zip(elements) {
            if let Operand::Register(register) = operand
                && d.register_type(*register)?.bytes() == 8
            {
                let narrow = d.temporary(false)?;
                d.emit_helper(Op::Truncate(R2 { d: narrow, a: *slot }));
                *slot = narrow;
            }
        }
    }
    let access = Access::new(data, element, address, (order, scope));
    match space {
        Space::Shared => d.emit(Op::StoreShared(access)),
        Space::Global => d.emit(Op::StoreGlobal(access)),
        _ => return d.emit_cold(Cold::StoreGeneric(access)),
    }
    Ok(())
}

/// `prefetch` and `prefetchu`: no value changes, and no address is checked, as on the device.
pub(super) fn prefetch(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let space = words.any(&["global"]);
    if words.any(&["L1", "L2", "L2::evict_last", "L2::evict_normal"]).is_none() {
        return Err(words.error("a cache level is missing"));
    }
    words.finish()?;
    d.arity(1)?;
    if space.is_none() && d.ins.opcode == "prefetch" && d.ins.modifiers.len() != 1 {
        return Err(d.error("the state space is not supported"));
    }
    d.address(0, false)?;
    d.emit(Op::Nop);
    Ok(())
}

/// `createpolicy`: cache policies have no effect here, but the register must hold something.
pub(super) fn create_policy(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("fractional")?;
    let level = ["L2::evict_last", "L2::evict_normal", "L2::evict_first", "L2::evict_unchanged"];
    if words.any(&level).is_none() {
        return Err(words.error("an eviction priority is missing"));
    }
    words.any(&["L2::evict_first", "L2::evict_unchanged"]);
    words.expect("b64")?;
    words.finish()?;
    d.arity_between(1, 2)?;
    let to = d.dest(0, Type::B64)?;
    if d.ins.operands.len() == 2 {
        d.source(1, Type::F32)?;
    }
    let a = d.constant(Init::Double(0))?;
    d.emit(Op::Mov64(R2 { d: to, a }));
    Ok(())
}

/// `cvta` and `cvta.to`
pub(super) fn cvta(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let to_space = words.take("to");
    let space = words.next()?;
    let Some(window) = d.window(space) else {
        return Err(words.error(&format!("state space .{space} is not supported")));
    };
    words.expect("u64")?;
    words.finish()?;
    d.arity(2)?;
    if let Operand::Symbol { kind, .. } = d.operand(1)? {
        let home = match kind {
            SymbolKind::Shared => "shared",
            SymbolKind::Global => "global",
            SymbolKind::Param => "param",
        };
        if to_space || !space.starts_with(home) {
            return Err(d.error("the variable lives in another state space"));
        }
    }
    let to = d.dest(0, Type::U64)?;
    let a = d.source(1, Type::U64)?;
    if window == 0 {
        d.emit(Op::Mov64(R2 { d: to, a }));
    } else {
        let b = d.constant(Init::Double(window))?;
        let operands = R3 { d: to, a, b };
        d.emit(if to_space { Op::Sub64(operands) } else { Op::Add64(operands) });
    }
    Ok(())
}

/// `membar` and `fence`
pub(super) fn fence(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    d.arity(0)?;
    if words.take("proxy") {
        if words.any(&["alias", "async", "async.global", "async.shared::cta"]).is_none() {
            return Err(words.error("this proxy is not supported"));
        }
        if !d.ins.modifiers.iter().any(|word| word == "alias") {
            d.needs(90)?;
        }
        words.any(&["global", "shared::cta"]);
        words.finish()?;
        d.emit(Op::Nop);
        return Ok(());
    }
    let scope = if d.ins.opcode == "membar" {
        let level = words.any(&["cta", "gl", "sys"]).ok_or_else(|| words.error("a level is missing"))?;
        [Scope::Cta, Scope::Gpu, Scope::System][level]
    } else {
        // One-sided fences are treated as the fence of both sides, which is what hardware executes.
        words.any(&["sc", "acq_rel", "acquire", "release"]);
        words.scope()?.ok_or_else(|| words.error("a scope is missing"))?
    };
    words.finish()?;
    d.emit_cold(Cold::Fence(scope))
}

/// `atom` and `red`
pub(super) fn atomic(d: &mut Decoder<'_>) -> Decoded<()> {
    let returns = d.ins.opcode == "atom";
    let mut words = d.words();
    let order = words.atomic_order();
    let scope = words.scope()?.unwrap_or(Scope::Gpu);
    let space = match words.any(&["global", "shared", "shared::cta"]) {
        Some(0) => Space::Global,
        Some(_) => Space::Shared,
        None if words.peek() == Some("shared::cluster") => return Err(words.error("clusters are not supported")),
        None => Space::Generic,
    };
    let name = words.next()?;
    let no_ftz = words.take("noftz");
    let policy = words.take("L2::cache_hint");
    let count = vector(&mut words);
    let ty = words.ty()?;
    words.finish()?;
    let op = atomic_op(&words, name, ty)?;
    let half = matches!(op, AtomicOp::AddF16 | AtomicOp::AddBf16 | AtomicOp::AddF16x2 | AtomicOp::AddBf16x2);
    if half != no_ftz {
        return Err(words.error(".noftz belongs to f16 and bf16 additions, and they need it"));
    }
    if matches!(op, AtomicOp::AddBf16 | AtomicOp::AddBf16x2) {
        d.needs(90)?;
    }
    if count > 1 && !(op == AtomicOp::AddF32 || half) {
        return Err(words.error("only floating-point additions have vector forms"));
    }
    if count > 1 && (space == Space::Shared || d.target().capability < 90 || ty.bytes() * u32::from(count) > 16) {
        return Err(words.error("vector forms are for global memory on sm_90, up to 16 bytes"));
    }
    let three = op == AtomicOp::CompareExchange;
    let first = usize::from(returns);
    let total = first + 2 + usize::from(three);
    d.arity(total + usize::from(policy))?;
    if policy {
        d.source(total, Type::B64)?;
    }
    let address = d.address(first, space == Space::Shared)?;
    let (mut dest, mut b) = ([NO_SLOT; 4], [NO_SLOT; 4]);
    if returns {
        fill(d, 0, count, &mut dest, |d, operand| d.dest_operand(operand, ty))?;
    }
    fill(d, first + 1, count, &mut b, |d, operand| d.source_operand(operand, ty))?;
    let c = if three { d.source(first + 2, ty)? } else { NO_SLOT };
    let bytes = ty.bytes() as u8;
    d.emit_cold(Cold::Atomic(Atomic { op, space, order, scope, bytes, count, returns, d: dest, address, b, c }))
}

fn fill<'a>(
    d: &mut Decoder<'a>,
    index: usize,
    count: u8,
    slots: &mut [Slot; 4],
    mut decode: impl FnMut(&mut Decoder<'a>, &'a Operand) -> Decoded<Slot>,
) -> Decoded<()> {
    let elements = d.elements(index)?;
    if elements.len() != usize::from(count) {
        return Err(d.error(format!("operand {} must have {count} elements", index + 1)));
    }
    for (slot, operand) in slots.iter_mut().zip(elements) {
        *slot = decode(d, operand)?;
    }
    Ok(())
}

fn atomic_op(words: &Words<'_>, name: &str, ty: Type) -> Decoded<AtomicOp> {
    use AtomicOp as A;
    Ok(match (name, ty) {
        ("add", Type::U32 | Type::S32 | Type::U64) => A::Add,
        ("add", Type::F32) => A::AddF32,
        ("add", Type::F64) => A::AddF64,
        ("add", Type::F16x2) => A::AddF16x2,
        ("add", Type::Bf16x2) => A::AddBf16x2,
        ("add", Type::F16) => A::AddF16,
        ("add", Type::Bf16) => A::AddBf16,
        ("min", Type::U32 | Type::U64) => A::MinU,
        ("max", Type::U32 | Type::U64) => A::MaxU,
        ("min", Type::S32 | Type::S64) => A::MinS,
        ("max", Type::S32 | Type::S64) => A::MaxS,
        ("inc", Type::U32) => A::Inc,
        ("dec", Type::U32) => A::Dec,
        ("and", Type::B32 | Type::B64) => A::And,
        ("or", Type::B32 | Type::B64) => A::Or,
        ("xor", Type::B32 | Type::B64) => A::Xor,
        ("exch", Type::B32 | Type::B64) => A::Exchange,
        ("cas", Type::B16 | Type::B32 | Type::B64) => A::CompareExchange,
        _ => return Err(words.error(&format!(".{name} does not exist for .{}", ty.name()))),
    })
}

/// The address operand of an instruction that only works on shared memory.
pub(super) fn shared_address(d: &mut Decoder<'_>, index: usize) -> Decoded<Address> {
    d.address(index, true)
}
