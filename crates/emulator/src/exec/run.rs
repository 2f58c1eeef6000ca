//! The loop that runs a warp.
//!
//! One generic body, compiled for checks on and off and for AVX2 with FMA or the plain architecture. Program counter,
//! active lanes and the pointers to registers live in locals; what is small is done in place, the rest in
//! [`super::rare`].

use super::compare::{compare_floats, compare_integers};
use super::machine::{Block, Faulted, Machine, Stop, Tally};
use super::rare::{self, Flow};
use super::warp::{Group, Row, State, Warp};
use super::{asynchronous, barrier, global, shared};
use crate::decode::op::{Ins, Op, Pred, PredOp, Slot};
use crate::launch::FaultKind;
use crate::numerics::integer::Permute;
use crate::numerics::{convert, float, half, integer, map1, map2, map3};

/// Turns of fewer instructions than this are kept to the instruction.
const SHORT: u32 = 1024;

/// Run a warp that is ready until its turn ends.
pub(crate) fn turn(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp) -> Stop {
    #[cfg(target_arch = "x86_64")]
    if crate::numerics::has_avx2_fma() && std::arch::is_x86_feature_detected!("popcnt") {
        // SAFETY: the features were just found.
        return unsafe {
            if m.checked() { turn_wide::<true>(m, block, warp) } else { turn_wide::<false>(m, block, warp) }
        };
    }
    if m.checked() { body::<true>(m, block, warp) } else { body::<false>(m, block, warp) }
}

/// Let the copies of a warp land that mbarriers are to hear of. True when there were any.
pub(crate) fn deliver(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp) -> Result<bool, Faulted> {
    asynchronous::deliver(m, block, warp)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt")]
fn turn_wide<const CHECKED: bool>(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp) -> Stop {
    body::<CHECKED>(m, block, warp)
}

/// Write some lanes of a row and leave the others.
#[inline(never)]
fn blend(row: &mut [u32; 32], values: &[u32; 32], mask: u32) {
    for lane in 0..32 {
        let keep = 0u32.wrapping_sub(mask >> lane & 1);
        row[lane] = (values[lane] & keep) | (row[lane] & !keep);
    }
}

/// Write some lanes of a wide row and leave the others.
#[inline(never)]
fn blend_wide(row: &mut [u64; 32], values: &[u64; 32], mask: u32) {
    for lane in 0..32 {
        let keep = 0u64.wrapping_sub(u64::from(mask >> lane & 1));
        row[lane] = (values[lane] & keep) | (row[lane] & !keep);
    }
}

/// Pointers to the registers of the warp that runs.
///
/// Every slot and predicate that an instruction names came from the decoder's [`crate::decode::slots::Slots`], which
/// numbers them below the lengths that the program states; a warp's vectors have those lengths, and two rows more, so
/// that the 64-bit view of any slot stays inside. The pointers are renewed whenever other code had the warp.
#[derive(Clone, Copy)]
struct File {
    rows: *mut Row,
    predicates: *mut u32,
    defined: *mut u32,
    predicates_defined: *mut u32,
}

impl File {
    #[inline(always)]
    fn of(warp: &mut Warp) -> Self {
        Self {
            rows: warp.rows.as_mut_ptr(),
            predicates: warp.predicates.as_mut_ptr(),
            defined: warp.defined.as_mut_ptr(),
            predicates_defined: warp.predicates_defined.as_mut_ptr(),
        }
    }
}

#[inline(always)]
fn body<const CHECKED: bool>(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp) -> Stop {
    let code: &[Ins] = &m.program.code;
    let code = code.as_ptr();
    let tally: *mut Tally = m.tally.as_mut_ptr();
    let mut budget = i64::from(m.options.quantum.max(1));
    let before = budget;
    // Turns end at backward branches; short ones, which are there to interleave, end anywhere.
    let reach = if m.options.quantum < SHORT { m.options.quantum.max(1) } else { u32::MAX };

    if let State::Barrier { .. } = warp.state {
        barrier::finish(block, warp);
        warp.state = State::Ready;
    }
    let Some(pick) = warp.pick() else {
        return stuck(m, block, warp);
    };
    let mut file = File::of(warp);
    let (mut pc, mut act, mut bound) = (pick.pc, pick.mask, pick.bound.min(pick.pc.saturating_add(reach)));
    // First instruction since the budget was last charged.
    let mut start = pc;

    macro_rules! leave {
        ($stop:expr) => {{
            m.clock += (before - budget + i64::from(pc) - i64::from(start)).max(1) as u64;
            return $stop;
        }};
    }
    macro_rules! regroup {
        () => {{
            budget -= i64::from(pc) - i64::from(start) + 1;
            let Some(pick) = warp.pick() else {
                start = pc;
                leave!(stuck(m, block, warp));
            };
            (pc, act, bound) = (pick.pc, pick.mask, pick.bound.min(pick.pc.saturating_add(reach)));
            start = pc;
            if budget <= 0 {
                warp.groups.push(Group::at(pc, act));
                leave!(Stop::Quantum);
            }
            continue;
        }};
    }
    loop {
        // SAFETY: `pc` starts at 0, grows by one after instructions other than branches and exits, and is set to branch
        // targets that the decoder found inside the code; the last instruction is an exit. `tally` has one entry per
        // instruction.
        let (ins, count) = unsafe { (&*code.add(pc as usize), &mut *tally.add(pc as usize)) };
        // SAFETY: see `File`.
        let mask = act & unsafe { *file.predicates.add(usize::from(ins.guard)) ^ ins.flip };
        count.issued += 1;
        count.lanes += u64::from(mask.count_ones());

        macro_rules! fault {
            ($fault:expr) => {{
                let fault: Faulted = $fault;
                leave!(Stop::Fault(fault));
            }};
        }
        macro_rules! need {
            ($($slot:expr),*) => {
                if CHECKED {
                    $(
                        // SAFETY: see `File`; with checks on, one entry per slot.
                        if unsafe { *file.defined.add(usize::from($slot)) } & mask != mask {
                            fault!(m.undefined(block, warp, $slot, mask, pc));
                        }
                    )*
                }
            };
        }
        macro_rules! need_predicate {
            ($predicate:expr, $mask:expr) => {
                if CHECKED {
                    // SAFETY: see `File`; with checks on, one entry per predicate.
                    if unsafe { *file.predicates_defined.add(usize::from($predicate)) } & $mask != $mask {
                        fault!(m.undefined_predicate(block, warp, $predicate, $mask, pc));
                    }
                }
            };
        }
        macro_rules! row {
            ($slot:expr) => {{
                let slot: Slot = $slot;
                // SAFETY: see `File`.
                unsafe { &(*file.rows.add(usize::from(slot))).0 }
            }};
        }
        macro_rules! wide {
            ($slot:expr) => {{
                let slot: Slot = $slot;
                // SAFETY: see `File`; two adjacent rows are 32 double words, aligned to 64 bytes.
                unsafe { &*file.rows.add(usize::from(slot)).cast::<[u64; 32]>() }
            }};
        }
        macro_rules! define {
            ($slot:expr) => {
                if CHECKED {
                    // SAFETY: see `File`; with checks on, one entry per slot.
                    unsafe { *file.defined.add(usize::from($slot)) |= mask };
                }
            };
        }
        macro_rules! put {
            ($slot:expr, $values:expr) => {{
                let values: [u32; 32] = $values;
                let slot: Slot = $slot;
                define!(slot);
                // SAFETY: see `File`; no reference to a row is alive once the values are computed.
                let row = unsafe { &mut (*file.rows.add(usize::from(slot))).0 };
                if mask == u32::MAX { *row = values } else { blend(row, &values, mask) }
            }};
        }
        macro_rules! put_wide {
            ($slot:expr, $values:expr) => {{
                let values: [u64; 32] = $values;
                let slot: Slot = $slot;
                define!(slot);
                // SAFETY: as in `put`, for the two rows.
                let row = unsafe { &mut *file.rows.add(usize::from(slot)).cast::<[u64; 32]>() };
                if mask == u32::MAX { *row = values } else { blend_wide(row, &values, mask) }
            }};
        }
        macro_rules! put_predicate {
            ($predicate:expr, $value:expr) => {{
                let predicate: Pred = $predicate;
                let value: u32 = $value;
                // SAFETY: see `File`.
                let bits = unsafe { &mut *file.predicates.add(usize::from(predicate)) };
                *bits = (*bits & !mask) | (value & mask);
                if CHECKED {
                    // SAFETY: as in `need_predicate`.
                    unsafe { *file.predicates_defined.add(usize::from(predicate)) |= mask };
                }
            }};
        }
        macro_rules! unary {
            ($r:expr, $f:expr) => {{
                need!($r.a);
                put!($r.d, map1(row!($r.a), $f));
            }};
        }
        macro_rules! binary {
            ($r:expr, $f:expr) => {{
                need!($r.a, $r.b);
                put!($r.d, map2(row!($r.a), row!($r.b), $f));
            }};
        }
        macro_rules! ternary {
            ($r:expr, $f:expr) => {{
                need!($r.a, $r.b, $r.c);
                put!($r.d, map3(row!($r.a), row!($r.b), row!($r.c), $f));
            }};
        }
        macro_rules! lanes64 {
            (|$lane:ident| $value:expr) => {{
                let mut values = [0u64; 32];
                for $lane in 0..32 {
                    values[$lane] = $value;
                }
                values
            }};
        }
        macro_rules! binary64 {
            ($r:expr, $f:expr) => {{
                need!($r.a, $r.b);
                let (a, b) = (wide!($r.a), wide!($r.b));
                put_wide!($r.d, lanes64!(|lane| $f(a[lane], b[lane])));
            }};
        }
        macro_rules! shift64 {
            ($r:expr, $f:expr) => {{
                need!($r.a, $r.b);
                let (a, b) = (wide!($r.a), row!($r.b));
                put_wide!($r.d, lanes64!(|lane| $f(a[lane], b[lane])));
            }};
        }
        macro_rules! try_memory {
            ($result:expr) => {
                if let Err(fault) = $result {
                    fault!(fault);
                }
            };
        }

        need_predicate!(ins.guard, act);
        match ins.op {
            Op::Nop => {}
            Op::Mov32(r) => unary!(r, |a| a),
            Op::Mov64(r) => {
                need!(r.a);
                put_wide!(r.d, *wide!(r.a));
            }
            Op::Pack64(r) => {
                need!(r.a, r.b);
                let (a, b) = (row!(r.a), row!(r.b));
                put_wide!(r.d, lanes64!(|lane| u64::from(a[lane]) | u64::from(b[lane]) << 32));
            }
            Op::Unpack64(r) => {
                need!(r.a);
                let a = wide!(r.a);
                let (mut low, mut high) = ([0; 32], [0; 32]);
                for lane in 0..32 {
                    low[lane] = a[lane] as u32;
                    high[lane] = (a[lane] >> 32) as u32;
                }
                put!(r.d, low);
                put!(r.b, high);
            }
            Op::Pack32(r) => binary!(r, |a: u32, b| (a & 0xFFFF) | b << 16),
            Op::Unpack32(r) => {
                need!(r.a);
                let a = row!(r.a);
                let (low, high) = (map1(a, |a| a & 0xFFFF), map1(a, |a| a >> 16));
                put!(r.d, low);
                put!(r.b, high);
            }
            Op::Add32(r) => binary!(r, u32::wrapping_add),
            Op::Sub32(r) => binary!(r, u32::wrapping_sub),
            Op::MulLo32(r) => binary!(r, u32::wrapping_mul),
            Op::MadLo32(r) => ternary!(r, |a: u32, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::MulWideU(r) => {
                need!(r.a, r.b);
                let (a, b) = (row!(r.a), row!(r.b));
                put_wide!(r.d, lanes64!(|lane| integer::mul_wide_u32(a[lane], b[lane])));
            }
            Op::MulWideS(r) => {
                need!(r.a, r.b);
                let (a, b) = (row!(r.a), row!(r.b));
                put_wide!(r.d, lanes64!(|lane| integer::mul_wide_s32(a[lane], b[lane])));
            }
            Op::MadWideU(r) => {
                need!(r.a, r.b, r.c);
                let (a, b, c) = (row!(r.a), row!(r.b), wide!(r.c));
                put_wide!(r.d, lanes64!(|lane| integer::mad_wide_u32(a[lane], b[lane], c[lane])));
            }
            Op::MadWideS(r) => {
                need!(r.a, r.b, r.c);
                let (a, b, c) = (row!(r.a), row!(r.b), wide!(r.c));
                put_wide!(r.d, lanes64!(|lane| integer::mad_wide_s32(a[lane], b[lane], c[lane])));
            }
            Op::And32(r) => binary!(r, |a, b| a & b),
            Op::Or32(r) => binary!(r, |a, b| a | b),
            Op::Xor32(r) => binary!(r, |a, b| a ^ b),
            Op::Shl32(r) => binary!(r, integer::shl32),
            Op::ShrU32(r) => binary!(r, integer::shr_u32),
            Op::ShrS32(r) => binary!(r, integer::shr_s32),
            Op::MinU32(r) => binary!(r, |a: u32, b| a.min(b)),
            Op::MaxU32(r) => binary!(r, |a: u32, b| a.max(b)),
            Op::MinS32(r) => binary!(r, |a: u32, b: u32| (a as i32).min(b as i32) as u32),
            Op::MaxS32(r) => binary!(r, |a: u32, b: u32| (a as i32).max(b as i32) as u32),
            Op::Lop3(r, table) => ternary!(r, |a, b, c| integer::lop3(a, b, c, table)),
            Op::Prmt(r) => ternary!(r, |a, b, c| integer::prmt(a, b, c, Permute::Index)),
            Op::Add64(r) => binary64!(r, u64::wrapping_add),
            Op::Sub64(r) => binary64!(r, u64::wrapping_sub),
            Op::MulLo64(r) => binary64!(r, u64::wrapping_mul),
            Op::MadLo64(r) => {
                need!(r.a, r.b, r.c);
                let (a, b, c) = (wide!(r.a), wide!(r.b), wide!(r.c));
                put_wide!(r.d, lanes64!(|lane| a[lane].wrapping_mul(b[lane]).wrapping_add(c[lane])));
            }
            Op::And64(r) => binary64!(r, |a, b| a & b),
            Op::Or64(r) => binary64!(r, |a, b| a | b),
            Op::Xor64(r) => binary64!(r, |a, b| a ^ b),
            Op::Shl64(r) => shift64!(r, integer::shl64),
            Op::ShrU64(r) => shift64!(r, integer::shr_u64),
            Op::ShrS64(r) => shift64!(r, integer::shr_s64),
            Op::ZeroExtend(r) => {
                need!(r.a);
                let a = row!(r.a);
                put_wide!(r.d, lanes64!(|lane| u64::from(a[lane])));
            }
            Op::SignExtend(r) => {
                need!(r.a);
                let a = row!(r.a);
                put_wide!(r.d, lanes64!(|lane| a[lane] as i32 as i64 as u64));
            }
            Op::Truncate(r) => {
                need!(r.a);
                let a = wide!(r.a);
                let mut low = [0; 32];
                for lane in 0..32 {
                    low[lane] = a[lane] as u32;
                }
                put!(r.d, low);
            }
            Op::SetU32(comparison, d, a, b) => {
                need!(a, b);
                let (x, y) = (row!(a), row!(b));
                put_predicate!(d, compare_integers(comparison, |lane| x[lane], |lane| y[lane]));
            }
            Op::SetS32(comparison, d, a, b) => {
                need!(a, b);
                let (x, y) = (row!(a), row!(b));
                put_predicate!(d, compare_integers(comparison, |lane| x[lane] as i32, |lane| y[lane] as i32));
            }
            Op::SetF32(comparison, d, a, b) => {
                need!(a, b);
                put_predicate!(d, compare_floats(comparison, row!(a), row!(b)));
            }
            Op::SetU64(comparison, d, a, b) => {
                need!(a, b);
                let (x, y) = (wide!(a), wide!(b));
                put_predicate!(d, compare_integers(comparison, |lane| x[lane], |lane| y[lane]));
            }
            Op::SetS64(comparison, d, a, b) => {
                need!(a, b);
                let (x, y) = (wide!(a), wide!(b));
                put_predicate!(d, compare_integers(comparison, |lane| x[lane] as i64, |lane| y[lane] as i64));
            }
            Op::Select32(r, p) => {
                need!(r.a, r.b);
                need_predicate!(p, mask);
                // SAFETY: see `File`.
                let p = unsafe { *file.predicates.add(usize::from(p)) };
                let (a, b) = (row!(r.a), row!(r.b));
                let mut values = [0; 32];
                for lane in 0..32 {
                    let take = 0u32.wrapping_sub(p >> lane & 1);
                    values[lane] = (a[lane] & take) | (b[lane] & !take);
                }
                put!(r.d, values);
            }
            Op::Select64(r, p) => {
                need!(r.a, r.b);
                need_predicate!(p, mask);
                // SAFETY: see `File`.
                let p = unsafe { *file.predicates.add(usize::from(p)) };
                let (a, b) = (wide!(r.a), wide!(r.b));
                let take = |lane: usize| 0u64.wrapping_sub(u64::from(p >> lane & 1));
                put_wide!(r.d, lanes64!(|lane| (a[lane] & take(lane)) | (b[lane] & !take(lane))));
            }
            Op::Logic(op, d, a, b) => {
                need_predicate!(a, mask);
                need_predicate!(b, mask);
                // SAFETY: see `File`.
                let (a, b) = unsafe { (*file.predicates.add(usize::from(a)), *file.predicates.add(usize::from(b))) };
                put_predicate!(
                    d,
                    match op {
                        PredOp::And => a & b,
                        PredOp::Or => a | b,
                        PredOp::Xor => a ^ b,
                        PredOp::Not => !a,
                        PredOp::Mov => a,
                    }
                );
            }
            Op::AddF32(r) => binary!(r, float::add_f32),
            Op::SubF32(r) => binary!(r, float::sub_f32),
            Op::MulF32(r) => binary!(r, float::mul_f32),
            Op::FmaF32(r) => ternary!(r, float::fma_f32),
            Op::AddF32Ftz(r) => binary!(r, |a, b| flush(float::add_f32(flush(a), flush(b)))),
            Op::SubF32Ftz(r) => binary!(r, |a, b| flush(float::sub_f32(flush(a), flush(b)))),
            Op::MulF32Ftz(r) => binary!(r, |a, b| flush(float::mul_f32(flush(a), flush(b)))),
            Op::FmaF32Ftz(r) => ternary!(r, |a, b, c| flush(float::fma_f32(flush(a), flush(b), flush(c)))),
            Op::MinF32(r) => binary!(r, float::min_f32),
            Op::MaxF32(r) => binary!(r, float::max_f32),
            Op::NegF32(r) => unary!(r, float::neg_f32),
            Op::AbsF32(r) => unary!(r, float::abs_f32),
            Op::WidenF16(r) => unary!(r, |a| half::f16_to_f32(a as u16)),
            Op::WidenBf16(r) => unary!(r, |a| half::bf16_to_f32(a as u16)),
            Op::NarrowF16(r) => unary!(r, |a| half::f32_to_f16_rn(a).into()),
            Op::NarrowBf16(r) => unary!(r, |a| half::f32_to_bf16_rn(a).into()),
            Op::NarrowF16x2(r) => {
                binary!(r, |a, b| half::pair(half::f32_to_f16_rn(a), half::f32_to_f16_rn(b)))
            }
            Op::NarrowBf16x2(r) => {
                binary!(r, |a, b| half::pair(half::f32_to_bf16_rn(a), half::f32_to_bf16_rn(b)))
            }
            Op::FloatU32(r) => unary!(r, convert::u32_to_f32_rn),
            Op::FloatS32(r) => unary!(r, convert::s32_to_f32_rn),
            Op::LoadGlobal(ref access) => {
                try_memory!(global::load::<CHECKED>(m, block, warp, access, mask, pc));
                file = File::of(warp);
            }
            Op::StoreGlobal(ref access) => {
                try_memory!(global::store::<CHECKED>(m, block, warp, access, mask, pc));
                file = File::of(warp);
            }
            Op::LoadShared(ref access) => {
                try_memory!(shared::load::<CHECKED>(m, block, warp, access, mask, pc));
                file = File::of(warp);
            }
            Op::StoreShared(ref access) => {
                try_memory!(shared::store::<CHECKED>(m, block, warp, access, mask, pc));
                file = File::of(warp);
            }
            Op::Branch(target) => {
                if mask == act {
                    let backward = target <= pc;
                    budget -= i64::from(pc) - i64::from(start) + 1;
                    start = target;
                    let from = pc;
                    pc = target;
                    if backward && (budget <= 0 || warp.polled || bound != u32::MAX) {
                        if warp.polled {
                            warp.polled = false;
                            let diverged = !warp.groups.is_empty();
                            warp.groups.push(Group { spun: true, ..Group::at(pc, act) });
                            if diverged && warp.others_unspun() {
                                pc = from;
                                start = from;
                                regroup!();
                            }
                            warp.spin(m.version);
                            leave!(Stop::Spin);
                        }
                        if budget <= 0 {
                            warp.groups.push(Group::at(pc, act));
                            if reach == u32::MAX && warp.goes_round(m.version) {
                                warp.polled_at = from;
                                warp.spins = (m.version, u32::MAX);
                                leave!(Stop::Spin);
                            }
                            leave!(Stop::Quantum);
                        }
                        if warp.impatient() {
                            warp.groups.push(Group::at(pc, act));
                            pc = from;
                            start = from;
                            regroup!();
                        }
                    }
                    if pc >= bound {
                        warp.groups.push(Group::at(pc, act));
                        regroup!();
                    }
                    continue;
                }
                if mask != 0 {
                    m.recorder.counters.divergent_branches += 1;
                    warp.groups.push(Group::at(target, mask));
                    warp.groups.push(Group::at(pc + 1, act & !mask));
                    regroup!();
                }
            }
            Op::Exit => {
                if mask != 0 {
                    let waiting = warp.exit(mask);
                    if let Some(waiting) = waiting {
                        fault!(deserted(m, block, warp, waiting, mask, pc));
                    }
                    if let Some(sanitizer) = &mut m.sanitizer {
                        let agent = crate::check::Agent { cta: block.index, warp: warp.index };
                        sanitizer.lanes_exit(agent, mask);
                    }
                    if warp.live == 0 {
                        m.version += 1;
                        if let Err(fault) = asynchronous::abandon(m, block, warp) {
                            fault!(fault);
                        }
                        warp.state = State::Done;
                        leave!(Stop::Done);
                    }
                    if act & !mask != 0 {
                        warp.groups.push(Group::at(pc + 1, act & !mask));
                    }
                    regroup!();
                }
            }
            Op::Cold(index) => {
                let flow = rare::execute(m, block, warp, index, mask, act, pc);
                file = File::of(warp);
                match flow {
                    Ok(Flow::Next) => {}
                    Ok(Flow::Regroup) => regroup!(),
                    Ok(Flow::Stop(stop)) => leave!(stop),
                    Err(fault) => fault!(fault),
                }
            }
        }
        pc += 1;
        if pc >= bound {
            warp.groups.push(Group::at(pc, act));
            regroup!();
        }
    }
}

/// `.ftz` without a blend: where the exponent is zero only the sign stays.
#[inline(always)]
fn flush(x: u32) -> u32 {
    let subnormal = 0u32.wrapping_sub(u32::from(x & 0x7F80_0000 == 0));
    x & !(subnormal >> 1)
}

/// No group of the warp can run.
#[cold]
#[inline(never)]
fn stuck(m: &Machine<'_>, block: &Block, warp: &Warp) -> Stop {
    let groups: Vec<String> =
        warp.groups.iter().map(|group| format!("lanes {:#010x} at line {}", group.mask, m.line(group.pc))).collect();
    let pc = warp.groups.first().map_or(0, |group| group.pc);
    let message = format!("lanes of one warp wait for each other: {}", groups.join("; "));
    Stop::Fault(m.fault(FaultKind::Divergence, block, warp.index, None, pc, message))
}

/// Lanes left while others wait for the whole warp.
#[cold]
#[inline(never)]
fn deserted(m: &Machine<'_>, block: &Block, warp: &Warp, waiting: Group, left: u32, pc: u32) -> Faulted {
    let message = format!(
        "the instruction wants the whole warp: lanes {:#010x} wait there, but lanes {left:#010x} took another way and \
         ended at line {}",
        waiting.mask,
        m.line(pc)
    );
    m.fault(FaultKind::Divergence, block, warp.index, None, waiting.pc, message)
}
