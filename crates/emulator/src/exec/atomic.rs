//! `atom` and `red`.

use super::address::{Generic, SHARED_BASE, classify};
use super::global::{addresses as global_addresses, observers, ordering, resolve};
use super::machine::{Block, Faulted, Machine};
use super::shared::{addresses as shared_addresses, check, note};
use super::warp::Warp;
use crate::check::{Kind, Request};
use crate::counters::Direction;
use crate::decode::cold::{Atomic, AtomicOp};
use crate::decode::op::Space;
use crate::launch::FaultKind;
use crate::numerics::float::{add_f32, add_f64, flush_f32};
use crate::numerics::float16::{Half, add_half};
use crate::numerics::half::{halves, pair};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Execute for every active lane, lowest first.
pub(super) fn execute(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    op: &Atomic,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if mask == 0 {
        return Ok(());
    }
    m.require(block, warp, op.address.slot, mask, pc)?;
    for &slot in &op.b[..usize::from(op.count)] {
        m.require(block, warp, slot, mask, pc)?;
    }
    if op.op == AtomicOp::CompareExchange {
        m.require(block, warp, op.c, mask, pc)?;
    }
    match op.space {
        Space::Shared => {
            let at = shared_addresses(warp, op.address);
            shared(m, block, warp, op, &at, mask, pc)
        }
        Space::Global => {
            let at = global_addresses(warp, op.address);
            global(m, block, warp, op, &at, mask, pc)
        }
        _ => {
            let at = global_addresses(warp, op.address);
            let mut in_shared = 0;
            let mut narrow = [0; 32];
            for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                match classify(at[lane]) {
                    Generic::Shared(address) => {
                        in_shared |= 1 << lane;
                        narrow[lane] = address;
                    }
                    Generic::Global => {}
                    Generic::Param(_) => {
                        let message = "atomic operation on the parameters".to_owned();
                        let lane = Some(lane as u32);
                        return Err(m.fault(FaultKind::IllegalAddress, block, warp.index, lane, pc, message));
                    }
                }
            }
            if mask & !in_shared != 0 {
                global(m, block, warp, op, &at, mask & !in_shared, pc)?;
            }
            if in_shared != 0 { shared(m, block, warp, op, &narrow, in_shared, pc) } else { Ok(()) }
        }
    }
}

fn shared(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    op: &Atomic,
    at: &[u32; 32],
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = u32::from(op.bytes) * u32::from(op.count);
    check(m, block, warp.index, at, bytes, mask, pc)?;
    m.recorder.shared_request(Direction::Atomic, mask, at, bytes);
    if m.checked() {
        let request = request(m, block, warp, op, mask, pc);
        note(m, block, warp.index, &request, at, &[], pc)?;
    }
    let base = block.shared.as_mut_ptr();
    let place = |lane: usize| base.wrapping_add(at[lane].wrapping_sub(SHARED_BASE) as usize);
    // SAFETY: `check` found every active lane's bytes inside the CTA's shared memory, which is borrowed mutably.
    unsafe { apply(m, warp, op, mask, false, pc, place) };
    Ok(())
}

fn global(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    op: &Atomic,
    at: &[u64; 32],
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = u32::from(op.bytes) * u32::from(op.count);
    let places = resolve(m, block, warp.index, at, bytes, mask, pc)?;
    m.recorder.global_request(Direction::Atomic, mask, at, bytes);
    if m.checked() {
        let request = request(m, block, warp, op, mask, pc);
        if let Some(sanitizer) = &mut m.sanitizer
            && let Err(violation) = sanitizer.global_access(&request, at, &[])
        {
            return Err(m.violation(block, warp.index, pc, &violation));
        }
    }
    // SAFETY: `resolve` checked every active lane's bytes and alignment.
    unsafe { apply(m, warp, op, mask, true, pc, |lane| places.lane(lane, at)) };
    Ok(())
}

fn request(m: &Machine<'_>, block: &Block, warp: &Warp, op: &Atomic, mask: u32, pc: u32) -> Request {
    Request {
        agent: m.agent(block, warp.index),
        mask,
        bytes: u32::from(op.bytes) * u32::from(op.count),
        kind: Kind::Atomic,
        order: ordering(op.order),
        scope: observers(op.scope),
        line: m.line(pc),
    }
}

/// Do it, lane after lane.
///
/// # Safety
/// The elements of every active lane must be readable and writable at its place, and aligned.
unsafe fn apply(
    m: &mut Machine<'_>,
    warp: &mut Warp,
    op: &Atomic,
    mask: u32,
    flush: bool,
    pc: u32,
    place: impl Fn(usize) -> *mut u8,
) {
    let mut changed = false;
    for part in 0..usize::from(op.count) {
        let mut old = [0u64; 32];
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let value = |slot: u16| if op.bytes == 8 { warp.wide(slot)[lane] } else { warp.row(slot)[lane].into() };
            let b = value(op.b[part]);
            let c = if op.op == AtomicOp::CompareExchange { value(op.c) } else { 0 };
            let at = place(lane).wrapping_add(part * usize::from(op.bytes));
            // SAFETY: the caller vouches for the place; it is a multiple of the element size.
            let (before, after) = unsafe { exchange(at, op.bytes, |a| combine(op.op, op.bytes, flush, a, b, c)) };
            old[lane] = before;
            changed |= before != after;
        }
        if !op.returns {
            continue;
        }
        if op.bytes == 8 {
            warp.put_wide(op.d[part], &old, mask);
        } else {
            warp.put(op.d[part], &old.map(|value| value as u32), mask);
        }
    }
    if changed {
        m.version += 1;
    } else {
        warp.polled = true;
        warp.polled_at = pc;
    }
}

/// Replace a value by a function of it, also against other host threads. The value before and after.
///
/// # Safety
/// `at` must be valid for reads and writes of `bytes` and a multiple of it.
unsafe fn exchange(at: *mut u8, bytes: u8, f: impl Fn(u64) -> u64) -> (u64, u64) {
    macro_rules! with {
        ($atomic:ty, $word:ty) => {{
            // SAFETY: the caller vouches for place and alignment, and nobody holds a plain reference to device memory.
            let cell = unsafe { <$atomic>::from_ptr(at.cast()) };
            let mut before = cell.load(Ordering::SeqCst);
            loop {
                let after = f(before.into()) as $word;
                match cell.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => return (before.into(), after.into()),
                    Err(now) => before = now,
                }
            }
        }};
    }
    match bytes {
        2 => with!(AtomicU16, u16),
        4 => with!(AtomicU32, u32),
        _ => with!(AtomicU64, u64),
    }
}

/// The new value. `flush`: additions of f32 on global memory flush subnormals, those on shared memory do not.
fn combine(op: AtomicOp, bytes: u8, flush: bool, a: u64, b: u64, c: u64) -> u64 {
    let wide = bytes == 8;
    let signed = |x: u64| if wide { x as i64 } else { i64::from(x as u32 as i32) };
    let half = |format: Half| u64::from(add_half(format, a as u16, b as u16));
    let packed = |format: Half| {
        let ((a1, a0), (b1, b0)) = (halves(a as u32), halves(b as u32));
        u64::from(pair(add_half(format, a1, b1), add_half(format, a0, b0)))
    };
    match op {
        AtomicOp::Add => a.wrapping_add(b),
        AtomicOp::MinU => a.min(b),
        AtomicOp::MaxU => a.max(b),
        AtomicOp::MinS => {
            if signed(a) <= signed(b) {
                a
            } else {
                b
            }
        }
        AtomicOp::MaxS => {
            if signed(a) >= signed(b) {
                a
            } else {
                b
            }
        }
        AtomicOp::Inc => {
            if a >= b {
                0
            } else {
                a + 1
            }
        }
        AtomicOp::Dec => {
            if a == 0 || a > b {
                b
            } else {
                a - 1
            }
        }
        AtomicOp::And => a & b,
        AtomicOp::Or => a | b,
        AtomicOp::Xor => a ^ b,
        AtomicOp::Exchange => b,
        AtomicOp::CompareExchange => {
            if a == b {
                c
            } else {
                a
            }
        }
        AtomicOp::AddF32 => {
            let clean = |x: u32| if flush { flush_f32(x) } else { x };
            clean(add_f32(clean(a as u32), clean(b as u32))).into()
        }
        AtomicOp::AddF64 => add_f64(a, b),
        AtomicOp::AddF16x2 => packed(Half::F16),
        AtomicOp::AddBf16x2 => packed(Half::Bf16),
        AtomicOp::AddF16 => half(Half::F16),
        AtomicOp::AddBf16 => half(Half::Bf16),
    }
}
