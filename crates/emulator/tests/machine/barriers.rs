//! Barriers of a CTA and their misuse. The named ones with two sides are in `kernels/handoff.ptx`.

use crate::harness::{Arg, Machine, kernel, options};
use lookback_emulator::launch::{Convergence, FaultKind, Options};

const OUT: &str = ".param .u64 p_out";
const PROLOGUE: &str = ".reg .b32 %thread, %warp, %x, %y; .reg .pred %p, %q; .reg .b64 %out, %offset;
    ld.param.u64 %out, [p_out]; mov.u32 %thread, %tid.x; shr.u32 %warp, %thread, 5;
    mul.wide.u32 %offset, %thread, 4; add.u64 %out, %out, %offset;\n";

fn threads(code: &str, threads: u32) -> Vec<u32> {
    let machine = Machine::new(&kernel(OUT, &format!("{PROLOGUE}{code}")));
    let out = machine.uninitialized(threads as usize * 4);
    machine.succeed(1, threads, &[Arg::U64(out)], &Options::default());
    machine.read(out, threads as usize)
}

fn fault(code: &str, threads: u32) -> (FaultKind, u32) {
    let machine = Machine::new(&kernel(OUT, &format!("{PROLOGUE}{code}")));
    let out = machine.uninitialized(threads as usize * 4);
    let fault = machine.run(1, threads, &[Arg::U64(out)], &Options::default()).unwrap_err();
    (fault.kind, fault.line)
}

/// Line of the first line of the code that follows the prologue.
const FIRST: u32 = 9;

#[test]
fn reductions_over_a_barrier() {
    let test = "setp.lt.u32 %p, %thread, 40;";
    assert_eq!(threads(&format!("{test} bar.red.popc.u32 %x, 0, %p; st.global.u32 [%out], %x;"), 96), [40; 96]);
    let predicate = "selp.b32 %x, 1, 0, %q; st.global.u32 [%out], %x;";
    assert_eq!(threads(&format!("{test} bar.red.and.pred %q, 0, %p; {predicate}"), 96), [0; 96]);
    assert_eq!(threads(&format!("{test} bar.red.or.pred %q, 0, %p; {predicate}"), 96), [1; 96]);
    assert_eq!(threads(&format!("{test} bar.red.and.pred %q, 0, %p; {predicate}"), 32), [1; 32]);
}

#[test]
fn a_named_barrier_holds_only_its_warps() {
    // Warps 0 and 1 exchange through barrier 1, warps 2 and 3 through barrier 2, different numbers of times.
    let code = ".shared .b32 cell[128]; .reg .b32 %id, %base, %mine, %theirs, %turn, %turns;
        shr.u32 %id, %warp, 1; mad.lo.u32 %turns, %id, 3, 2; add.u32 %id, %id, 1;
        mov.u32 %base, cell; mad.lo.u32 %mine, %thread, 4, %base; xor.b32 %theirs, %thread, 32;
        mad.lo.u32 %theirs, %theirs, 4, %base; mov.u32 %turn, 0; mov.u32 %y, %thread;
    TURN:
        st.shared.b32 [%mine], %y; bar.sync %id, 64; ld.shared.b32 %y, [%theirs]; bar.sync %id, 64;
        add.u32 %y, %y, 1; add.u32 %turn, %turn, 1; setp.lt.u32 %p, %turn, %turns; @%p bra TURN;
        st.global.u32 [%out], %y;";
    let expected: Vec<u32> = (0..128).map(|thread| if thread < 64 { thread + 2 } else { (thread ^ 32) + 5 }).collect();
    assert_eq!(threads(code, 128), expected);
}

#[test]
fn unaligned_barriers_collect_a_diverged_warp() {
    let code = "and.b32 %x, %thread, 1; setp.eq.u32 %p, %x, 0; mov.u32 %y, 1; @!%p bra JOIN; mov.u32 %y, 2;
        JOIN: barrier.sync 0; st.global.u32 [%out], %y;";
    let machine = Machine::new(&kernel(OUT, &format!("{PROLOGUE}{code}")));
    for convergence in [Convergence::Natural, Convergence::Random(4)] {
        let out = machine.uninitialized(256);
        machine.succeed(1, 64, &[Arg::U64(out)], &options(|o| o.convergence = convergence));
        assert_eq!(machine.read(out, 64), [2, 1].repeat(32));
    }
    // The two halves may even stand at different barrier instructions.
    let apart = "and.b32 %x, %thread, 1; setp.eq.u32 %p, %x, 0; @%p bra EVEN;
        barrier.sync 0; st.global.u32 [%out], 1; ret;
        EVEN: barrier.sync 0; st.global.u32 [%out], 2;";
    assert_eq!(threads(apart, 64), [2, 1].repeat(32));
}

#[test]
fn barriers_order_memory() {
    let rotate = ".shared .b32 cell[96]; .reg .b32 %base, %at;
        mov.u32 %base, cell; mad.lo.u32 %at, %thread, 4, %base; st.shared.b32 [%at], %thread; BARRIER
        add.u32 %x, %thread, 40; rem.u32 %x, %x, 96; mad.lo.u32 %at, %x, 4, %base; ld.shared.b32 %y, [%at];
        st.global.u32 [%out], %y;";
    let expected: Vec<u32> = (0..96).map(|thread| (thread + 40) % 96).collect();
    for barrier in ["bar.sync 0;", "barrier.sync 5;", "bar.sync 3, 96;", "barrier.sync.aligned 0;"] {
        assert_eq!(threads(&rotate.replace("BARRIER", barrier), 96), expected, "{barrier}");
    }
}

#[test]
fn misuse() {
    use FaultKind::{BarrierMisuse, Deadlock, Divergence, IllegalInstruction};
    let half = "setp.lt.u32 %p, %thread, 16;\n";
    assert_eq!(fault(&format!("{half}@%p bar.sync 0;"), 64), (Divergence, FIRST + 1));
    assert_eq!(fault(&format!("{half}@%p bra SKIP;\nbar.sync 0;\nSKIP: bar.sync 1;"), 64).0, Divergence);
    let (kind, line) = fault("mov.u32 %x, 40;\nbar.sync 1, %x;", 64);
    assert!(matches!(kind, BarrierMisuse | IllegalInstruction) && line == FIRST + 1, "{kind:?} {line}");
    let (kind, line) = fault("mov.u32 %x, 16;\nbar.sync %x;", 64);
    assert!(matches!(kind, BarrierMisuse | IllegalInstruction) && line == FIRST + 1, "{kind:?} {line}");
    let (kind, line) = fault("setp.eq.u32 %p, %warp, 0;\n@%p bar.sync 1, 96;", 64);
    assert_eq!((kind, line), (Deadlock, FIRST + 1));
    let disagree = "setp.eq.u32 %p, %warp, 0;\n@%p bar.sync 1, 96;\n@!%p bar.sync 1, 64;";
    assert!(matches!(fault(disagree, 96).0, BarrierMisuse | Deadlock));
}

#[test]
fn warp_barriers_order_the_lanes_of_a_warp() {
    let code = ".shared .b32 cell[32]; .reg .b32 %base, %at;
        mov.u32 %base, cell; mad.lo.u32 %at, %thread, 4, %base; st.shared.b32 [%at], %thread;
        bar.warp.sync -1;
        xor.b32 %x, %thread, 21; mad.lo.u32 %at, %x, 4, %base; ld.shared.b32 %y, [%at]; st.global.u32 [%out], %y;";
    assert_eq!(threads(code, 32), (0..32).map(|lane| lane ^ 21).collect::<Vec<u32>>());
}
