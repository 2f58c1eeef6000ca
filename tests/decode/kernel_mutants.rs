//! The decode kernel with one mistake each: every one must be caught, by the sanitizer or by the result.
//!
//! They run through the emulator's own interface, on memory of their own, because a fault ends the context that the other
//! tests share.

use super::kernel_case::{Case, Data, Factors, Out, Place, inputs, kernel, rows, wrong};
use bytemuck::bytes_of;
use half::bf16;
use lookback_device::Element;
use lookback_emulator::{
    decode::{Program, decode},
    launch::{AsyncCopies, CtaOrder, FaultKind, LaunchConfig, Options, launch},
    memory::DeviceMemory,
    ptx,
};

/// How a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// What nothing orders is a race, or a read of what is not there yet, by the schedule.
    Race,
    WrongResult,
    /// A wrong result or any fault.
    Something,
}

/// The kernel with the `nth` occurrence of `from`, counted from 0, replaced by `to`.
fn program(text: &str, from: &str, to: &str, nth: usize) -> Program {
    let at = text.match_indices(from).nth(nth).unwrap_or_else(|| panic!("no {nth}th `{from}`")).0;
    let text = format!("{}{to}{}", &text[..at], &text[at + from.len()..]);
    let module = ptx::parse(&text).unwrap_or_else(|e| panic!("`{to}`: {e}"));
    decode(&module, &module.entries[0], &[]).unwrap_or_else(|e| panic!("`{to}`: {e}"))
}

fn read<V: Element>(memory: &DeviceMemory, pointer: u64, len: usize) -> Vec<f64> {
    let mut out = vec![V::from_f64(0.0); len];
    memory.copy_to_host(bytemuck::cast_slice_mut(&mut out), pointer).expect("memory");
    out.iter().map(|v| v.to_f64()).collect()
}

fn words(memory: &DeviceMemory, pointer: u64, len: usize) -> Vec<u32> {
    let mut out = vec![0_u32; len];
    memory.copy_to_host(bytemuck::cast_slice_mut(&mut out), pointer).expect("memory");
    out
}

/// What a program makes of a case. `want` has the status.
fn run(program: &Program, case: &Case, data: &Data, status: u32, options: &Options) -> Option<Seen> {
    let memory = DeviceMemory::new(64 << 20);
    let put = |bytes: Vec<u8>| {
        let pointer = memory.alloc(bytes.len().max(1) as u64).expect("memory");
        memory.copy_from_host(pointer, &bytes).expect("memory");
        pointer
    };
    let kernel = kernel(case, bf16::DTYPE);
    let rows_of_o = data.cu_seqlens_q[case.batch()] as usize * case.heads;
    let logits = rows_of_o * case.logits_stride();
    let mut args = inputs::<bf16>(case, data, put);
    args.p_o = put([0xff_u8, 0x7f].repeat(rows_of_o * case.value_dim));
    args.p_lse = put(f32::NAN.to_le_bytes().repeat(rows_of_o));
    args.p_logits = if case.logits { put(super::kernel_case::UNTOUCHED.to_le_bytes().repeat(logits)) } else { 0 };
    args.p_counters = put(vec![0; 4 * rows(case)]);
    args.p_status = put(vec![0; 4]);
    let config = LaunchConfig {
        grid: [case.slots as u32, 1, 1],
        block: kernel.block,
        dynamic_shared: kernel.dynamic_smem,
        cooperative: false,
    };
    if let Err(fault) = launch(program, &memory, &config, bytes_of(&args), options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let out = Out {
        o: read::<bf16>(&memory, args.p_o, rows_of_o * case.value_dim),
        lse: read::<f32>(&memory, args.p_lse, rows_of_o),
        logits: if case.logits { read::<f32>(&memory, args.p_logits, logits) } else { vec![] },
        status: words(&memory, args.p_status, 1)[0],
    };
    let counted = words(&memory, args.p_counters, rows(case)).iter().any(|count| *count != 0);
    (counted || out.status != status || wrong::<bf16>(case, data, &out).is_some()).then_some(Seen::WrongResult)
}

/// Copies that land at once and as late as they may; warps that run long, and that take turns; blocks in any order.
fn schedules() -> [Options; 2] {
    [(AsyncCopies::Eager, 20_000, CtaOrder::Reversed), (AsyncCopies::Late, 7, CtaOrder::InOrder)].map(
        |(copies, quantum, order)| {
            let mut options = Options::default();
            options.async_copies = copies;
            options.quantum = quantum;
            options.order = order;
            options.instruction_limit = 4_000_000;
            options
        },
    )
}

/// The kernel does the case, and with any one of the replacements it does not.
fn check(case: &Case, status: u32, spoil: impl Fn(&mut Data), mutants: &[(&str, &str, usize, Seen)]) {
    let mut data = Data::new::<bf16>(case, 21);
    spoil(&mut data);
    let text = kernel(case, bf16::DTYPE).ptx();
    for options in &schedules() {
        let seen = run(&program(&text, ".visible", ".visible", 0), case, &data, status, options);
        assert_eq!(seen, None, "the kernel itself: {case:?}");
    }
    let mut missed = Vec::new();
    for (from, to, nth, want) in mutants {
        let program = program(&text, from, to, *nth);
        let fits = |seen: &Seen| *want == Seen::Something || seen == want;
        let mut all = Vec::new();
        let is_seen = schedules().iter().any(|options| {
            let seen = run(&program, case, &data, status, options);
            all.push(seen);
            seen.as_ref().is_some_and(fits)
        });
        if !is_seen {
            missed.push(format!("`{from}` -> `{to}`, {nth}: wanted {want:?}, saw {all:?}"));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn kernel_mistakes_of_the_ring_and_of_the_fixup_are_caught() {
    let case = Case { slots: 3, ..Case::new(64, &[700, 65], 24, 2) };
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // Who may read and fill what.
        ("cp.async.wait_group 8;", "", 0, Seen::Something),
        ("cp.async.wait_group 8;", "cp.async.wait_group 9;", 1, Seen::Something),
        ("bar.warp.sync 0xffffffff;", "", 0, Seen::Race),
        ("bar.warp.sync 0xffffffff;", "", 1, Seen::Race),
        ("setp.eq.u32 %is_last, %slot_in, 20480;", "setp.eq.u32 %is_last, %slot_in, 18432;", 3, Seen::Something),
        ("setp.eq.u32 %is_last, %aux_in, 480;", "setp.eq.u32 %is_last, %aux_in, 400;", 2, Seen::Something),
        // Keys.
        ("setp.lt.and.s32 %is_in, %position, %see_hi, %is_in;", "", 1, Seen::Something),
        ("setp.ge.s32 %is_full, %position, %full_lo;", "setp.ge.s32 %is_full, %full_lo, 0;", 0, Seen::Something),
        ("add.u32 %high, %high, %copy_row;", "", 0, Seen::WrongResult),
        ("add.u64 %source, %source, %stride;", "", 0, Seen::WrongResult),
        // The online softmax.
        ("mul.f32 %l1, %l1, %alpha1;", "", 0, Seen::WrongResult),
        ("mul.f32 %o6, %o6, %alpha1;", "", 0, Seen::WrongResult),
        ("shfl.sync.bfly.b32 %other, %top0, 2, 31, 0xffffffff;", "", 0, Seen::WrongResult),
        // Four warps become one.
        ("add.f32 %l0, %l0, %other;", "", 1, Seen::WrongResult),
        ("fma.rn.f32 %sum, %lw3, %mw3, %sum;", "", 1, Seen::WrongResult),
        ("mul.f32 %x1, %o1, %mine;", "mov.f32 %x1, %o1;", 0, Seen::WrongResult),
        // Blocks become one.
        ("fence.acq_rel.gpu;", "", 0, Seen::Race),
        ("fence.acq_rel.gpu;", "", 1, Seen::Race),
        ("selp.b32 %slot, 1, 0, %is_first;", "mov.u32 %slot, 0;", 0, Seen::Something),
        (
            "atom.relaxed.gpu.global.inc.u32 %count, [%p_part], %others;",
            "atom.relaxed.gpu.global.add.u32 %count, [%p_part], 1;",
            0,
            Seen::WrongResult,
        ),
        (
            "setp.le.u32 %is_there, %next, %last_block;",
            "setp.lt.u32 %is_there, %next, %last_block;",
            1,
            Seen::WrongResult,
        ),
        ("ld.global.cg.v2.f32", "ld.global.nc.v2.f32", 0, Seen::Something),
        ("fma.rn.f32 %sum, %pl1, %new, %sum;", "", 0, Seen::WrongResult),
    ];
    check(&case, 0, |_| (), mutants);
}

#[test]
fn kernel_mistakes_of_masks_tables_and_factors_are_caught() {
    let case = Case {
        e4m3: true,
        factors: Factors::Token,
        place: Place::Paged(8),
        logits: true,
        alibi: true,
        sink: true,
        softcap: Some(4.0),
        query_len: 3,
        left: Some(70),
        first: 5,
        slots: 4,
        ..Case::new(64, &[200, 20], 4, 2)
    };
    let mutants: &[(&str, &str, usize, Seen)] = &[
        ("setp.le.and.s32 %is_seen, %j1, %here, %is_seen;", "", 0, Seen::WrongResult),
        ("min.s32 %first, %first_head, %lo;", "mov.u32 %first, 0;", 0, Seen::WrongResult),
        ("selp.f32 %base, 0f00000000, %top0, %is_none;", "mov.f32 %base, %top0;", 0, Seen::WrongResult),
        ("fma.rn.f32 %y, %y, 0fc0000000, 0f3f800000;", "", 0, Seen::WrongResult),
        ("sub.s32 %at, %j2, %here;", "mov.u32 %at, %j2;", 0, Seen::WrongResult),
        ("setp.lt.and.u32 %is_key, %index, %keys, %is_row;", "mov.pred %is_key, %is_row;", 0, Seen::Something),
        ("and.b32 %low, %low, 0x3f803f80;", "", 0, Seen::WrongResult),
        ("prmt.b32 %q2, %w0, %w1, 0x7632;", "mov.b32 %q2, %w1;", 0, Seen::WrongResult),
        ("mul.f32 %s5, %s5, %x3;", "", 1, Seen::WrongResult),
        ("selp.b32 %to_4, 144, 80, %is_value_lane;", "mov.u32 %to_4, 80;", 0, Seen::Something),
        ("setp.ge.u32 %is_out, %page, %limit;", "setp.ge.u32 %is_out, %limit, 0x7fffffff;", 0, Seen::Something),
        ("selp.b32 %position, %position, -1, %is_known;", "", 0, Seen::WrongResult),
        ("shr.u64 %wide, %wide, %shift;", "shr.u64 %wide, %wide, 33;", 0, Seen::Something),
        ("fma.rn.f32 %sum, %sum, %share, %extra;", "mul.f32 %sum, %sum, %share;", 0, Seen::WrongResult),
        ("mul.f32 %lse, %lse, 0f3f317218;", "", 0, Seen::WrongResult),
        ("mov.u32 %word, 16;", "mov.u32 %word, 1;", 0, Seen::WrongResult),
    ];
    check(&case, 16, |data| data.indices[22] = 1 << 20, mutants);
}

#[test]
fn kernel_mistakes_of_the_walk_are_caught() {
    let case = Case { query_len: 3, packed: Some(vec![3, 0, 2]), slots: 1, ..Case::new(64, &[100, 70, 90], 8, 2) };
    let mutants: &[(&str, &str, usize, Seen)] = &[
        ("setp.le.u32 %is_more, %row_end, %tile;", "setp.lt.u32 %is_more, %row_end, %tile;", 0, Seen::Something),
        ("add.u32 %token, %token, %query;", "", 0, Seen::Something),
        ("min.u32 %n_rows, %t0, 16;", "mov.u32 %n_rows, 16;", 0, Seen::Something),
        ("sub.s32 %offset, %kv_len, %queries;", "mov.u32 %offset, 0;", 0, Seen::WrongResult),
        ("mad.lo.u32 %head, %i_key_head, %group_size, %head;", "", 0, Seen::Something),
        ("bar.sync 0;", "", 0, Seen::Race),
    ];
    check(&case, 0, |_| (), mutants);
}

#[test]
fn kernel_mistakes_of_lists_are_caught() {
    let case = Case { place: Place::Paged(16), lists: Some(vec![16, 90]), slots: 1, ..Case::new(64, &[200], 4, 2) };
    let mutants: &[(&str, &str, usize, Seen)] = &[
        ("setp.eq.and.u32 %is_run, %page, %first_page, %is_run;", "", 0, Seen::WrongResult),
        (
            "setp.eq.and.u32 %is_run, %begin, %first_begin, %is_known;",
            "mov.pred %is_run, %is_known;",
            0,
            Seen::Something,
        ),
        ("mov.u32 %listed, -1;", "mov.u32 %listed, 0;", 0, Seen::Something),
        ("add.u32 %entry, %index, 64;", "mov.u32 %entry, %index;", 0, Seen::WrongResult),
        ("setp.ge.s32 %is_out, %position, %kv_len;", "setp.gt.s32 %is_out, %position, %kv_len;", 1, Seen::WrongResult),
        ("setp.ge.s32 %is_first, %position, 0;", "setp.ge.s32 %is_first, 0, 0;", 0, Seen::Something),
    ];
    check(&case, 64, step_from_page_to_page, mutants);
}

/// Places of the first list follow each other, pages do not; the other runs backwards in one page, and names what is not there.
fn step_from_page_to_page(data: &mut Data) {
    data.k.iter_mut().chain(&mut data.v).filter(|v| v.is_nan()).for_each(|v| *v = 0.5);
    (0..16).for_each(|l| data.positions[l] = (l + 16 * (l % 3)) as i32);
    (0..16).for_each(|l| data.positions[90 + l] = 15 - l as i32);
    data.positions[90 + 70] = 200;
}
