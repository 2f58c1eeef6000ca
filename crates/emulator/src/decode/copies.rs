//! Decoding of `cp.async` and `mbarrier`.

use super::cold::{Cold, CopyAsync, Mbarrier, MbarrierOp};
use super::context::{Decoded, Decoder};
use super::memory::shared_address;
use super::op::{NO_SLOT, Order};
use super::slots::Init;
use super::words::Words;
use crate::ptx::ast::{Operand, Type};

/// `cp.async` and its groups
pub(super) fn copy(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("async")?;
    match words.peek() {
        Some("bulk" | "reduce") => Err(words.error("bulk copies are not supported")),
        Some("commit_group") => {
            words.next()?;
            words.finish()?;
            d.arity(0)?;
            d.emit_cold(Cold::Commit)
        }
        Some("wait_group") => {
            words.next()?;
            words.finish()?;
            d.arity(1)?;
            let groups = u32::try_from(d.literal(0)?).map_err(|_| d.error("the count must be 0 or more"))?;
            d.emit_cold(Cold::WaitGroups(Some(groups)))
        }
        Some("wait_all") => {
            words.next()?;
            words.finish()?;
            d.arity(0)?;
            d.emit_cold(Cold::WaitGroups(None))
        }
        Some("mbarrier") => {
            words.next()?;
            words.expect("arrive")?;
            let increment = !words.take("noinc");
            tail(&mut words)?;
            d.arity(1)?;
            let address = shared_address(d, 0)?;
            let op = MbarrierOp::CopyArrive { increment };
            d.emit_cold(Cold::Mbarrier(Mbarrier { op, address, order: Order::Release, waits: false }))
        }
        _ => copy_bytes(d, words),
    }
}

/// `cp.async.ca` and `cp.async.cg`
fn copy_bytes(d: &mut Decoder<'_>, mut words: Words<'_>) -> Decoded<()> {
    let level = words.any(&["ca", "cg"]).ok_or_else(|| words.error("one of .ca and .cg is missing"))?;
    if words.any(&["shared", "shared::cta"]).is_none() {
        return Err(words.error("the destination must be .shared"));
    }
    words.expect("global")?;
    let policy = words.take("L2::cache_hint");
    words.any(&["L2::64B", "L2::128B", "L2::256B"]);
    words.finish()?;
    let last = 3 + usize::from(policy);
    d.arity_between(last, last + 1)?;
    let to = d.address(0, true)?;
    let from = d.address(1, false)?;
    let bytes = match d.literal(2)? {
        16 => 16,
        bytes @ (4 | 8) if level == 0 => bytes as u8,
        _ => return Err(d.error("the size is 4, 8 or 16 for .ca and 16 for .cg")),
    };
    let (mut source_bytes, mut ignore) = (None, None);
    if d.ins.operands.len() > last {
        match d.operand(3)? {
            Operand::NegatedPredicate(_) => ignore = Some(d.pred_source(3, true)?),
            Operand::Register(register) if d.register_type(*register)? == Type::Pred => {
                ignore = Some(d.pred_source(3, true)?);
            }
            Operand::Immediate(count) if !(0..=i128::from(bytes)).contains(count) => {
                return Err(d.error("the source size is at most the size of the copy"));
            }
            _ => source_bytes = Some(d.source(3, Type::U32)?),
        }
    }
    if policy {
        d.source(d.ins.operands.len() - 1, Type::B64)?;
    }
    d.emit_cold(Cold::CopyAsync(CopyAsync { to, from, bytes, source_bytes, ignore }))
}

/// `mbarrier`
pub(super) fn mbarrier(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let name = words.next()?;
    let (mut order, mut waits) = (Order::Weak, false);
    let op = match name {
        "init" => {
            tail(&mut words)?;
            d.arity(2)?;
            MbarrierOp::Init(d.source(1, Type::U32)?)
        }
        "inval" => {
            tail(&mut words)?;
            d.arity(1)?;
            MbarrierOp::Invalidate
        }
        "expect_tx" => {
            ordering(&mut words, Order::Relaxed)?;
            tail(&mut words)?;
            d.arity(2)?;
            MbarrierOp::ExpectBytes(d.source(1, Type::U32)?)
        }
        "arrive" | "arrive_drop" => return arrive(d, words, name == "arrive_drop"),
        "test_wait" | "try_wait" => {
            let parity = words.take("parity");
            order = ordering(&mut words, Order::Acquire)?;
            tail(&mut words)?;
            waits = name == "try_wait";
            d.arity_between(3, if waits { 4 } else { 3 })?;
            if d.ins.operands.len() == 4 {
                d.source(3, Type::U32)?;
            }
            let done = d.pred_dest(d.operand(0)?)?;
            if waits && d.target().capability < 90 {
                return Err(words.error("needs sm_90"));
            }
            let address = shared_address(d, 1)?;
            let op = if parity {
                MbarrierOp::TestParity { done, parity: d.source(2, Type::U32)? }
            } else {
                MbarrierOp::TestState { done, state: d.source(2, Type::B64)? }
            };
            return d.emit_cold(Cold::Mbarrier(Mbarrier { op, address, order, waits }));
        }
        "pending_count" => {
            words.expect("b64")?;
            words.finish()?;
            d.arity(2)?;
            if !matches!(d.operand(0)?, Operand::Register(_)) {
                return Err(words.error("the destination must be a register"));
            }
            let (to, state) = (d.dest(0, Type::U32)?, d.source(1, Type::B64)?);
            let address = super::op::Address { slot: d.constant(Init::Word(0))?, wide: false, offset: 0 };
            let op = MbarrierOp::PendingCount { d: to, state };
            return d.emit_cold(Cold::Mbarrier(Mbarrier { op, address, order, waits }));
        }
        _ => return Err(words.error(&format!(".{name} is not supported"))),
    };
    let address = shared_address(d, 0)?;
    if name == "expect_tx" {
        order = Order::Relaxed;
    }
    d.emit_cold(Cold::Mbarrier(Mbarrier { op, address, order, waits }))
}

/// `mbarrier.arrive{.expect_tx}` and `mbarrier.arrive_drop`
fn arrive(d: &mut Decoder<'_>, mut words: Words<'_>, drop: bool) -> Decoded<()> {
    let expect = words.take("expect_tx");
    words.take("noComplete");
    let order = ordering(&mut words, Order::Release)?;
    tail(&mut words)?;
    let one = d.constant(Init::Word(1))?;
    // The state may be left out, as `_` or altogether; then the address comes first.
    let first = usize::from(!matches!(d.operand(0)?, Operand::Address { .. }));
    let state = if first == 1 { d.dest(0, Type::B64)? } else { NO_SLOT };
    d.arity_between(first + 1, first + 2)?;
    let extra = if d.ins.operands.len() == first + 2 { Some(d.source(first + 1, Type::U32)?) } else { None };
    if expect && extra.is_none() {
        return Err(words.error("the number of bytes is missing"));
    }
    let address = shared_address(d, first)?;
    let (count, expect) = if expect { (one, extra) } else { (extra.unwrap_or(one), None) };
    let op = MbarrierOp::Arrive { state, count, drop, expect };
    d.emit_cold(Cold::Mbarrier(Mbarrier { op, address, order, waits: false }))
}

/// `.release.cta` and so on; `default` when nothing is written.
fn ordering(words: &mut Words<'_>, default: Order) -> Decoded<Order> {
    let order = if words.take("relaxed") {
        Order::Relaxed
    } else if words.take("acquire") {
        Order::Acquire
    } else if words.take("release") {
        Order::Release
    } else {
        return Ok(default);
    };
    if order != default && order != Order::Relaxed {
        return Err(words.error("this ordering does not exist here"));
    }
    if words.scope()?.is_none() {
        return Err(words.error("a scope is missing"));
    }
    Ok(order)
}

/// State space and type.
fn tail(words: &mut Words<'_>) -> Decoded<()> {
    if words.peek() == Some("shared::cluster") {
        return Err(words.error("clusters are not supported"));
    }
    if words.any(&["shared", "shared::cta"]).is_none() {
        return Err(words.error("the state space must be written: .shared"));
    }
    words.expect("b64")?;
    words.finish()
}
