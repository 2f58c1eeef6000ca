//! Lanes that part and meet again: nested branches, loops that end at different times, early exits, lanes that wait
//! for each other.

use crate::harness::{Arg, B32, Machine, elementwise_on, kernel, options};
use lookback_emulator::launch::{Convergence, FaultKind, Options};

/// Schedules that must not change any result.
fn schedules() -> Vec<Options> {
    let mut all = vec![Options::default(), options(|o| o.quantum = 1), options(|o| o.quantum = 3)];
    all.extend((0..4).map(|seed| options(|o| (o.convergence, o.quantum) = (Convergence::Random(seed), 5))));
    all
}

fn check(code: &str, expected: impl Fn(u32) -> u32) {
    let rows: Vec<Vec<u64>> = (0..300).map(|i| vec![i * 7 % 97]).collect();
    for options in schedules() {
        for (row, found) in rows.iter().zip(elementwise_on(code, B32, &[B32], &rows, &options)) {
            assert_eq!(found as u32, expected(row[0] as u32), "{code} of {row:?} with {options:?}");
        }
    }
}

#[test]
fn nested_branches() {
    let code = ".reg .b32 %bit;
        mov.b32 %d, 0;
        and.b32 %bit, %a, 1; setp.eq.u32 %p, %bit, 0; @%p bra EVEN;
        add.u32 %d, %d, 1;
        setp.gt.u32 %p, %a, 40; @%p bra LARGE;
        add.u32 %d, %d, 10; bra JOIN_ODD;
    LARGE:
        add.u32 %d, %d, 100;
        setp.gt.u32 %p, %a, 70; @!%p bra JOIN_ODD;
        add.u32 %d, %d, 1000;
    JOIN_ODD:
        add.u32 %d, %d, 10000; bra JOIN;
    EVEN:
        add.u32 %d, %d, 2;
        setp.lt.u32 %p, %a, 20; @%p add.u32 %d, %d, 20;
    JOIN:
        add.u32 %d, %d, 100000;";
    check(code, |a| {
        let inner = match a {
            a if a % 2 == 0 => 2 + if a < 20 { 20 } else { 0 },
            a if a > 70 => 1 + 100 + 1000 + 10000,
            a if a > 40 => 1 + 100 + 10000,
            _ => 1 + 10 + 10000,
        };
        inner + 100_000
    });
}

#[test]
fn loops_that_end_at_different_times() {
    let collatz = ".reg .b32 %x, %bit; .reg .pred %odd;
        add.u32 %x, %a, 1; mov.b32 %d, 0;
    STEP:
        setp.le.u32 %p, %x, 1; @%p bra END;
        and.b32 %bit, %x, 1; setp.ne.u32 %odd, %bit, 0;
        @%odd bra ODD;
        shr.u32 %x, %x, 1; bra NEXT;
    ODD:
        mad.lo.u32 %x, %x, 3, 1;
    NEXT:
        add.u32 %d, %d, 1; bra STEP;
    END:";
    check(collatz, |a| {
        let (mut x, mut steps) = (a + 1, 0);
        while x > 1 {
            x = if x % 2 == 1 { 3 * x + 1 } else { x / 2 };
            steps += 1;
        }
        steps
    });
    // Two loops, one inside the other, both left from the middle.
    let nested = ".reg .b32 %i, %j, %sum;
        mov.b32 %d, 0; mov.b32 %i, 0;
    OUTER:
        setp.ge.u32 %p, %i, 6; @%p bra END;
        mov.b32 %j, 0;
    INNER:
        add.u32 %sum, %i, %j; setp.ge.u32 %p, %sum, %a; @%p bra OUT;
        setp.ge.u32 %p, %j, 8; @%p bra LEAVE;
        add.u32 %d, %d, 1; add.u32 %j, %j, 1; bra INNER;
    LEAVE:
        add.u32 %d, %d, 100;
        add.u32 %i, %i, 1; bra OUTER;
    OUT:
        setp.gt.u32 %p, %i, 2; @%p bra END;
        add.u32 %i, %i, 1; bra OUTER;
    END:";
    check(nested, |a| {
        let (mut d, mut i) = (0, 0);
        'outer: while i < 6 {
            let mut j = 0;
            loop {
                if i + j >= a {
                    if i > 2 {
                        break 'outer;
                    }
                    break;
                }
                if j >= 8 {
                    d += 100;
                    break;
                }
                (d, j) = (d + 1, j + 1);
            }
            i += 1;
        }
        d
    });
}

#[test]
fn backward_join_point() {
    // The place where the lanes meet lies before the branch in the text.
    let code = ".reg .b32 %turn;
        mov.b32 %turn, 0; mov.b32 %d, 0; bra START;
    MEET:
        add.u32 %d, %d, 1000; bra DONE;
    START:
        setp.lt.u32 %p, %a, 50; @%p bra MEET;
        add.u32 %d, %d, 1;
        add.u32 %turn, %turn, 1; setp.lt.u32 %p, %turn, 3; @%p bra START;
        bra MEET;
    DONE:";
    check(code, |a| if a < 50 { 1000 } else { 1003 });
}

#[test]
fn early_exit_leaves_the_other_lanes_running() {
    let text = kernel(
        ".param .u64 p_out",
        ".reg .b32 %lane, %votes; .reg .pred %p, %leaves; .reg .b64 %out, %offset;
         mov.u32 %lane, %tid.x; ld.param.u64 %out, [p_out]; mul.wide.u32 %offset, %lane, 4; add.u64 %out, %out, %offset;
         st.global.u32 [%out], 1;
         setp.lt.u32 %leaves, %lane, 20; @%leaves exit;
         setp.lt.u32 %p, %lane, 25;
         vote.sync.ballot.b32 %votes, %p, 0xFFF00000;
         st.global.u32 [%out], %votes;
         setp.eq.u32 %p, %lane, 31; @%p ret;
         bar.warp.sync 0x7FF00000;
         st.global.u32 [%out], 7;",
    );
    for options in schedules() {
        let machine = Machine::new(&text);
        let out = machine.uninitialized(128);
        machine.succeed(1, 32, &[Arg::U64(out)], &options);
        let expected: Vec<u32> =
            (0..32).map(|lane| [1, 7, 0x01F0_0000][usize::from(lane >= 20) + usize::from(lane == 31)]).collect();
        assert_eq!(machine.read(out, 32), expected, "{options:?}");
    }
}

#[test]
fn exited_threads_do_not_hold_a_barrier_up() {
    let text = kernel(
        ".param .u64 p_out",
        ".reg .b32 %thread; .reg .pred %p; .reg .b64 %out, %offset;
         mov.u32 %thread, %tid.x; ld.param.u64 %out, [p_out]; mul.wide.u32 %offset, %thread, 4; add.u64 %out, %out, %offset;
         st.global.u32 [%out], 1;
         setp.ge.u32 %p, %thread, 64; @%p ret;
         bar.sync 0;
         st.global.u32 [%out], 2;",
    );
    let machine = Machine::new(&text);
    let out = machine.uninitialized(96 * 4);
    machine.succeed(1, 96, &[Arg::U64(out)], &Options::default());
    assert_eq!(machine.read(out, 96), [vec![2; 64], vec![1; 32]].concat());
}

#[test]
fn lanes_of_one_warp_take_turns_at_a_lock() {
    // Every lane takes the lock, adds to the sum, and gives it back. The one that holds it must not be starved by the
    // others, which spin at a lower address.
    let text = kernel(
        ".param .u64 p_lock, .param .u64 p_sum",
        ".reg .b32 %held, %sum, %lane; .reg .pred %p; .reg .b64 %lock, %at;
         ld.param.u64 %lock, [p_lock]; ld.param.u64 %at, [p_sum]; mov.u32 %lane, %tid.x;
     SPIN:
         atom.acquire.gpu.global.cas.b32 %held, [%lock], 0, 1;
         setp.ne.u32 %p, %held, 0; @%p bra SPIN;
         ld.global.u32 %sum, [%at]; add.u32 %sum, %sum, %lane; st.global.u32 [%at], %sum;
         atom.release.gpu.global.exch.b32 %held, [%lock], 0;",
    );
    for options in schedules() {
        let machine = Machine::new(&text);
        let (lock, sum) = (machine.zeros(1), machine.zeros(1));
        machine.succeed(3, 64, &[Arg::U64(lock), Arg::U64(sum)], &options);
        assert_eq!(machine.read(sum, 1), [3 * 63 * 32], "{options:?}");
    }
}

#[test]
fn lane_waits_for_a_later_lane_of_its_warp() {
    let text = kernel(
        ".param .u64 p_flag, .param .u64 p_out",
        ".reg .b32 %flag, %lane; .reg .pred %p; .reg .b64 %at, %out;
         ld.param.u64 %at, [p_flag]; ld.param.u64 %out, [p_out]; mov.u32 %lane, %tid.x;
         setp.eq.u32 %p, %lane, 5; @%p bra SETS;
     WAIT:
         ld.acquire.gpu.global.u32 %flag, [%at]; setp.eq.u32 %p, %flag, 0; @%p bra WAIT;
         setp.eq.u32 %p, %lane, 9; @%p st.global.u32 [%out], %flag;
         ret;
     SETS:
         st.release.gpu.global.u32 [%at], 42;",
    );
    for options in schedules() {
        let machine = Machine::new(&text);
        let (flag, out) = (machine.zeros(1), machine.zeros(1));
        machine.succeed(1, 32, &[Arg::U64(flag), Arg::U64(out)], &options);
        assert_eq!(machine.read(out, 1), [42], "{options:?}");
    }
}

#[test]
fn a_wait_without_end_is_a_deadlock() {
    for spin in [
        "ld.acquire.gpu.global.u32 %x, [%at]; setp.eq.u32 %p, %x, 0; @%p bra WAIT;",
        "ld.relaxed.gpu.global.u32 %x, [%at]; setp.eq.u32 %p, %x, 0; @%p bra WAIT;",
        "ld.volatile.global.u32 %x, [%at]; setp.eq.u32 %p, %x, 0; @%p bra WAIT;",
        "atom.global.cas.b32 %x, [%at], 1, 2; setp.eq.u32 %p, %x, 0; @%p bra WAIT;",
        "nanosleep.u32 20; ld.relaxed.gpu.global.u32 %x, [%at]; setp.eq.u32 %p, %x, 0; @%p bra WAIT;",
    ] {
        let text = kernel(
            ".param .u64 p_flag",
            &format!(".reg .b32 %x; .reg .pred %p; .reg .b64 %at; ld.param.u64 %at, [p_flag];\nWAIT: {spin}"),
        );
        let machine = Machine::new(&text);
        let fault = machine.run(2, 64, &[Arg::U64(machine.zeros(1))], &Options::default()).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Deadlock, "{spin}: {fault}");
        assert_eq!(fault.line, 7, "{fault}");
    }
}

#[test]
fn instructions_are_limited() {
    for code in ["MORE: add.u32 %x, %x, 1; bra MORE;", "MORE: bra MORE;"] {
        let machine = Machine::new(&kernel("", &format!(".reg .b32 %x; mov.b32 %x, 0;\n{code}")));
        let fault = machine.run(2, 64, &[], &options(|o| o.instruction_limit = 100_000)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::InstructionLimit, "{fault}");
    }
}
