//! Loads and stores of every width, parameters, module variables, and asynchronous copies.

use crate::harness::{Arg, Machine, Random, kernel, options};
use lookback_emulator::launch::{AsyncCopies, FaultKind, LaunchConfig, Options, launch};

#[test]
fn loads_extend_and_stores_truncate() {
    let cases = [
        ("ld.global.u8 %x, [%in];", 0x0000_00F6),
        ("ld.global.s8 %x, [%in];", 0xFFFF_FFF6),
        ("ld.global.b8 %x, [%in+1];", 0x0000_0085),
        ("ld.global.u16 %x, [%in];", 0x0000_85F6),
        ("ld.global.s16 %x, [%in];", 0xFFFF_85F6),
        ("ld.global.b32 %x, [%in];", 0x1234_85F6),
        ("ld.global.nc.u32 %x, [%in];", 0x1234_85F6),
        ("ld.global.v2.u16 {%y, %x}, [%in];", 0x0000_1234),
        ("ld.global.v4.u8 {%y, %z, %x, _}, [%in];", 0x0000_0034),
        ("ld.global.L1::no_allocate.L2::128B.v2.b32 {%x, %y}, [%in];", 0x1234_85F6),
        ("ld.u32 %x, [%in];", 0x1234_85F6),
        ("ld.volatile.global.u32 %x, [%in];", 0x1234_85F6),
    ];
    for (load, expected) in cases {
        let body = format!(
            ".reg .b32 %x, %y, %z; .reg .b64 %in, %out; ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out];
             cvta.to.global.u64 %in, %in; {load} st.global.u32 [%out], %x;"
        );
        let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out", &body));
        let out = machine.zeros(1);
        machine.succeed(1, 1, &[Arg::U64(machine.words(&[0x1234_85F6, 7])), Arg::U64(out)], &Options::default());
        assert_eq!(machine.read(out, 1), [expected], "{load}");
    }
    let stores = [
        ("st.global.u8 [%out+1], %x;", 0xAAAA_78AA),
        ("st.global.u16 [%out+2], %x;", 0x5678_AAAA),
        ("st.global.b32 [%out], %x;", 0x1234_5678),
        ("st.global.v2.u16 [%out], {%x, 5};", 0x0005_5678),
        ("st.u32 [%out], -2;", 0xFFFF_FFFE),
        ("st.global.wt.u32 [%out], %x;", 0x1234_5678),
    ];
    for (store, expected) in stores {
        let body = format!(".reg .b32 %x; .reg .b64 %out; ld.param.u64 %out, [p_out]; mov.b32 %x, 0x12345678; {store}");
        let machine = Machine::new(&kernel(".param .u64 p_out", &body));
        let out = machine.words(&[0xAAAA_AAAA]);
        machine.succeed(1, 1, &[Arg::U64(out)], &Options::default());
        assert_eq!(machine.read(out, 1), [expected], "{store}");
    }
}

#[test]
fn vectors_of_64_bits() {
    let body = ".reg .b64 %x<2>, %in, %out; ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out];
        ld.global.v2.u64 {%x0, %x1}, [%in]; add.u64 %x0, %x0, 1; st.global.v2.u64 [%out], {%x1, %x0};";
    let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out", body));
    let out = machine.uninitialized(16);
    machine.succeed(1, 1, &[Arg::U64(machine.doubles(&[u64::MAX, 5])), Arg::U64(out)], &Options::default());
    assert_eq!(machine.read_doubles(out, 2), [5, 0]);
}

#[test]
fn parameters_of_every_kind() {
    let body = ".reg .b64 %out, %x; .reg .b32 %y, %z; ld.param.u64 %out, [args+16]; ld.param.u64 %x, [args];
        ld.param.u32 %y, [args+8]; ld.param.s8 %z, [byte];
        st.global.u64 [%out], %x; st.global.v2.u32 [%out+8], {%y, %z};";
    let machine = Machine::new(&kernel(".param .u8 byte, .param .align 8 .b8 args[24]", body));
    let out = machine.uninitialized(16);
    let mut params = vec![0xFE, 0, 0, 0, 0, 0, 0, 0];
    params.extend(0x1122_3344_5566_7788u64.to_le_bytes());
    params.extend([9, 0, 0, 0, 0, 0, 0, 0]);
    params.extend(out.to_le_bytes());
    let config = LaunchConfig { grid: [1; 3], block: [1; 3], dynamic_shared: 0, cooperative: false };
    launch(&machine.program, &machine.memory, &config, &params, &Options::default()).unwrap();
    assert_eq!(machine.read(out, 4), [0x5566_7788, 0x1122_3344, 9, 0xFFFF_FFFE]);
    params.pop();
    let fault = launch(&machine.program, &machine.memory, &config, &params, &Options::default()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::InvalidLaunch);
}

#[test]
fn module_variables_keep_their_values() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64
        .global .align 4 .u32 table[4] = {10, 20, 30};
        .visible .entry test(.param .u64 p_out) {
            .reg .b64 %out, %at, %offset; .reg .b32 %lane, %x, %old;
            ld.param.u64 %out, [p_out]; mov.u32 %lane, %tid.x; mul.wide.u32 %offset, %lane, 4;
            mov.u64 %at, table; add.u64 %at, %at, %offset; ld.global.u32 %x, [%at];
            add.u64 %out, %out, %offset; st.global.u32 [%out], %x; add.u32 %x, %x, 1; st.global.u32 [%at], %x;
        }";
    let machine = Machine::new(text);
    for round in 0..3 {
        let out = machine.uninitialized(16);
        machine.succeed(1, 4, &[Arg::U64(out)], &Options::default());
        assert_eq!(machine.read(out, 4), [10, 20, 30, 0].map(|value| value + round));
    }
}

#[test]
fn dynamic_shared_memory_follows_the_static() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64
        .extern .shared .align 16 .b8 dynamic[];
        .visible .entry test(.param .u64 p_out) {
            .shared .align 4 .b8 fixed[20]; .reg .b64 %out; .reg .b32 %a, %b, %x;
            ld.param.u64 %out, [p_out]; mov.u32 %a, dynamic; mov.u32 %b, fixed; sub.u32 %x, %a, %b;
            st.global.u32 [%out], %x; st.shared.u32 [dynamic+60], %x; ld.shared.u32 %x, [%a+60]; st.global.u32 [%out+4], %x;
            mov.u32 %x, %dynamic_smem_size; st.global.u32 [%out+8], %x;
        }";
    let machine = Machine::new(text);
    let out = machine.uninitialized(12);
    let mut config = LaunchConfig { grid: [1; 3], block: [1; 3], dynamic_shared: 64, cooperative: false };
    let params = crate::harness::pack(&[Arg::U64(out)]);
    launch(&machine.program, &machine.memory, &config, &params, &Options::default()).unwrap();
    assert_eq!(machine.read(out, 3), [32, 32, 64]);
    config.dynamic_shared = 60;
    let fault = launch(&machine.program, &machine.memory, &config, &params, &Options::default()).unwrap_err();
    assert_eq!((fault.kind, fault.line), (FaultKind::IllegalAddress, 8), "{fault}");
}

/// Copies 64 bytes to shared memory, `size` at a time, of which only `source` are read where that is given; gives back
/// the shared memory, which was full of ones before.
fn copy(size: usize, source: Option<usize>, eager: bool) -> Vec<u8> {
    let cache = if size == 16 { "cg" } else { "ca" };
    let operand = source.map(|bytes| format!(", {bytes}")).unwrap_or_default();
    let threads = 64 / size;
    let body = format!(
        ".shared .align 16 .b8 tile[64]; .reg .b32 %thread, %to, %x; .reg .pred %p; .reg .b64 %in, %out, %offset;
         ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out]; mov.u32 %thread, %tid.x; mov.u32 %x, tile;
         setp.ge.u32 %p, %thread, 16; mad.lo.u32 %to, %thread, 4, %x; @!%p st.shared.b32 [%to], -1; bar.sync 0;
         setp.ge.u32 %p, %thread, {threads}; @%p bra LANDED;
         mad.lo.u32 %to, %thread, {size}, %x; mul.wide.u32 %offset, %thread, {size}; add.u64 %in, %in, %offset;
         cp.async.{cache}.shared.global [%to], [%in], {size}{operand}; cp.async.wait_all;
     LANDED:
         bar.sync 0; setp.ge.u32 %p, %thread, 16; @%p ret;
         mad.lo.u32 %to, %thread, 4, %x; ld.shared.b32 %x, [%to];
         mul.wide.u32 %offset, %thread, 4; add.u64 %out, %out, %offset; st.global.b32 [%out], %x;"
    );
    let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out", &body));
    let out = machine.uninitialized(64);
    let input: Vec<u8> = (1..=64).collect();
    let mode = if eager { AsyncCopies::Eager } else { AsyncCopies::Late };
    machine.succeed(1, 32, &[Arg::U64(machine.bytes(&input)), Arg::U64(out)], &options(|o| o.async_copies = mode));
    machine.read(out, 16).into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn asynchronous_copies_fill_with_zero() {
    for eager in [false, true] {
        for size in [4, 8, 16] {
            for source in [None, Some(0), Some(1), Some(size / 2), Some(size)] {
                let kept = source.unwrap_or(size);
                let expected: Vec<u8> = (0..64).map(|i| if i % size < kept { i as u8 + 1 } else { 0 }).collect();
                assert_eq!(copy(size, source, eager), expected, "{size} {source:?}");
            }
        }
    }
}

#[test]
fn groups_complete_oldest_first() {
    // Four groups of one copy; after `wait_group n` the first 4 - n may be read and the next may not.
    for pending in 0..4u32 {
        for read in 0..4u32 {
            let body = format!(
                ".shared .align 4 .b32 cell[4]; .reg .b32 %x; .reg .b64 %in, %out;
                 ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out];
                 cp.async.ca.shared.global [cell], [%in], 4; cp.async.commit_group;
                 cp.async.ca.shared.global [cell+4], [%in+4], 4; cp.async.commit_group;
                 cp.async.ca.shared.global [cell+8], [%in+8], 4; cp.async.commit_group;
                 cp.async.ca.shared.global [cell+12], [%in+12], 4; cp.async.commit_group;
                 cp.async.wait_group {pending};
                 ld.shared.b32 %x, [cell+{}]; st.global.b32 [%out], %x;",
                read * 4
            );
            let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out", &body));
            let out = machine.zeros(1);
            let args = [Arg::U64(machine.words(&[11, 12, 13, 14])), Arg::U64(out)];
            match machine.run(1, 1, &args, &Options::default()) {
                Ok(_) => {
                    assert!(read + pending < 4, "group {read} read with {pending} pending");
                    assert_eq!(machine.read(out, 1), [11 + read]);
                }
                Err(fault) => {
                    assert!(read + pending >= 4, "{fault}");
                    assert_eq!((fault.kind, fault.line), (FaultKind::AsyncMisuse, 13), "{fault}");
                }
            }
        }
    }
}

#[test]
fn addresses_that_are_not_memory() {
    let with = |code: &str, pointer: u64| {
        let body = format!(".shared .b32 cell; .reg .b32 %x; .reg .b64 %at; ld.param.u64 %at, [p_at];\n{code}");
        let machine = Machine::new(&kernel(".param .u64 p_at", &body));
        machine.run(1, 1, &[Arg::U64(pointer)], &Options::default()).unwrap_err()
    };
    use FaultKind::{IllegalAddress, MisalignedAddress};
    let inside = 1u64 << 36;
    let on_buffer = |code: &str| {
        let body = format!(".reg .b32 %x; .reg .b64 %y, %at; ld.param.u64 %at, [p_at];\n{code}");
        let machine = Machine::new(&kernel(".param .u64 p_at", &body));
        let pointer = machine.words(&[1; 8]);
        machine.run(1, 1, &[Arg::U64(pointer)], &Options::default()).unwrap_err()
    };
    for (fault, kind) in [
        (with("ld.global.u32 %x, [%at];", 0), IllegalAddress),
        (with("ld.global.u32 %x, [%at];", 4096), IllegalAddress),
        (with("ld.global.u32 %x, [%at];", u64::MAX - 7), IllegalAddress),
        (with("ld.global.u32 %x, [%at];", inside), IllegalAddress),
        (with("st.u32 [%at], 0;", u64::MAX - 3), IllegalAddress),
        (with("atom.global.add.u32 %x, [%at], 1;", 0x10_0000), IllegalAddress),
        (with("cp.async.ca.shared.global [cell], [%at], 4;", 0), IllegalAddress),
        (on_buffer("ld.global.u32 %x, [%at+32];"), IllegalAddress),
        (on_buffer("ld.global.u32 %x, [%at+-4];"), IllegalAddress),
        (on_buffer("ld.global.u64 %y, [%at+20];"), MisalignedAddress),
        (on_buffer("ld.global.u64 %y, [%at+32];"), IllegalAddress),
        (on_buffer("ld.global.u32 %x, [%at+2];"), MisalignedAddress),
        (on_buffer("st.global.v4.u32 [%at+8], {0, 0, 0, 0};"), MisalignedAddress),
        (on_buffer("red.global.add.u32 [%at+1], 1;"), MisalignedAddress),
        (on_buffer("cvt.u32.u64 %x, %at; ld.shared.u32 %x, [%x+65536];"), IllegalAddress),
    ] {
        assert_eq!((fault.kind, fault.line), (kind, 7), "{fault}");
    }
    let body = ".reg .b32 %x; .reg .b64 %at; ld.param.u64 %at, [p_at];\nld.global.u32 %x, [%at];";
    let machine = Machine::new(&kernel(".param .u64 p_at", body));
    let pointer = machine.zeros(4);
    machine.memory.free(pointer).unwrap();
    let fault = machine.run(1, 1, &[Arg::U64(pointer)], &Options::default()).unwrap_err();
    assert_eq!(fault.kind, IllegalAddress);
}

#[test]
fn registers_and_memory_that_nobody_wrote() {
    use FaultKind::Uninitialized;
    let run = |code: &str| {
        let body = format!(
            ".shared .align 16 .b32 cell[4]; .reg .b32 %x, %y, %lane; .reg .pred %p, %q; .reg .b64 %at, %out, %w;
             ld.param.u64 %at, [p_at]; ld.param.u64 %out, [p_out]; mov.u32 %lane, %tid.x; setp.lt.u32 %q, %lane, 3;\n{code}"
        );
        let machine = Machine::new(&kernel(".param .u64 p_at, .param .u64 p_out", &body));
        let (at, out) = (machine.uninitialized(16), machine.zeros(32));
        machine.run(1, 8, &[Arg::U64(at), Arg::U64(out)], &Options::default())
    };
    for code in [
        "add.u32 %y, %x, 1;",
        "@%q mov.u32 %x, 1;\nadd.u32 %y, %x, 1;",
        "@%p mov.u32 %x, 1;",
        "selp.u32 %x, 1, 2, %p;",
        "st.global.u32 [%out], %x;",
        "add.u64 %w, %w, 1;",
        "ld.shared.u32 %x, [cell];",
        "ld.global.u32 %x, [%at];",
        "atom.shared.add.u32 %x, [cell], 1;",
        "mov.b64 %w, {%lane, %x};",
    ] {
        let fault = run(code).unwrap_err();
        let line = 8 + code.matches('\n').count() as u32;
        assert_eq!((fault.kind, fault.line), (Uninitialized, line), "{code}: {fault}");
    }
    // Lanes that have a value may use it; a value that is only moved about is not used.
    run("@%q mov.u32 %x, 1;\n@%q add.u32 %y, %x, 1;").unwrap();
    run("setp.eq.u32 %p, %lane, 0;\n@%p st.shared.u32 [cell], 5; bar.warp.sync -1; ld.shared.u32 %x, [cell];").unwrap();
}

#[test]
fn long_rows_of_random_bytes_arrive() {
    let body = ".reg .b32 %i, %n, %x<4>; .reg .pred %p; .reg .b64 %in, %out, %offset;
        ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out]; ld.param.u32 %n, [p_n]; mov.u32 %i, %tid.x;
    NEXT:
        setp.ge.u32 %p, %i, %n; @%p ret;
        mul.wide.u32 %offset, %i, 16; add.u64 %offset, %in, %offset;
        ld.global.nc.v4.b32 {%x0, %x1, %x2, %x3}, [%offset];
        sub.u64 %offset, %offset, %in; add.u64 %offset, %out, %offset;
        st.global.v4.b32 [%offset], {%x0, %x1, %x2, %x3};
        add.u32 %i, %i, 96; bra NEXT;";
    let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out, .param .u32 p_n", body));
    let input = Random::new(11).words(4 * 1001);
    let out = machine.uninitialized(input.len() * 4);
    machine.succeed(1, 96, &[Arg::U64(machine.words(&input)), Arg::U64(out), Arg::U32(1001)], &Options::default());
    assert_eq!(machine.read(out, input.len()), input);
}
