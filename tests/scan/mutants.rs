//! Kernels with one known mistake each: every one must be caught, by the sanitizer or by the result.
//!
//! They run through the emulator's own interface, on memory of their own, because a fault ends the context that the other
//! tests share.

use super::case::{Case, Data};
use bytemuck::{Zeroable, bytes_of};
use lookback_device::DType;
use lookback_emulator::{
    decode::{Program, decode},
    launch::{Convergence, CtaOrder, Fault, FaultKind, LaunchConfig, Options, launch},
    memory::DeviceMemory,
    ptx,
};
use lookback_kernels::{Kernel, args, find};
use lookback_scan::Source;
use lookback_suite::measure::{Gate, errors};

/// How a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// What nothing orders is a race, or a read of what is not there yet, by the schedule.
    Race,
    /// Nothing can go on; an interpreter may notice, or give up.
    Hang,
    Fault(FaultKind),
    WrongResult,
    /// A wrong result or any fault.
    Something,
}

struct Machine {
    memory: DeviceMemory,
    program: Program,
    kernel: &'static Kernel,
}

impl Machine {
    /// The kernel with `from` replaced by `to` in its text, `nth` occurrence from 0.
    fn new(kernel: &'static Kernel, from: &str, to: &str, nth: usize) -> Self {
        let original = kernel.ptx();
        let at = original.match_indices(from).nth(nth).unwrap_or_else(|| panic!("no {nth}th `{from}`")).0;
        let text = format!("{}{to}{}", &original[..at], &original[at + from.len()..]);
        let module = ptx::parse(&text).unwrap_or_else(|e| panic!("`{to}`: {e}"));
        let program = decode(&module, &module.entries[0], &[]).unwrap_or_else(|e| panic!("`{to}`: {e}"));
        Self { memory: DeviceMemory::new(64 << 20), program, kernel }
    }

    fn place(&self, bytes: &[u8]) -> u64 {
        let pointer = self.memory.alloc(bytes.len().max(1) as u64).expect("memory");
        self.memory.copy_from_host(pointer, bytes).expect("memory");
        pointer
    }

    fn floats(&self, values: &[f64]) -> u64 {
        self.place(&values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect::<Vec<_>>())
    }

    fn words(&self, values: &[u32]) -> u64 {
        self.place(bytemuck::cast_slice(values))
    }

    fn read(&self, pointer: u64, words: usize) -> Vec<u32> {
        let mut out = vec![0_u32; words];
        self.memory.copy_to_host(bytemuck::cast_slice_mut(&mut out), pointer).expect("memory");
        out
    }

    fn read_floats(&self, pointer: u64, words: usize) -> Vec<f64> {
        self.read(pointer, words).into_iter().map(|w| f64::from(f32::from_bits(w))).collect()
    }

    fn run(&self, grid: u32, args: &[u8], options: &Options) -> Result<(), Fault> {
        let config =
            LaunchConfig { grid: [grid, 1, 1], block: self.kernel.block, dynamic_shared: 0, cooperative: false };
        launch(&self.program, &self.memory, &config, args, options).map(drop)
    }
}

fn options(order: CtaOrder, residency: Option<u32>, quantum: u32) -> Options {
    let mut options = Options::default();
    options.order = order;
    options.residency = residency;
    options.quantum = quantum;
    options.instruction_limit = 1_000_000;
    options
}

fn schedules() -> Vec<Options> {
    let mut wild = options(CtaOrder::Random(5), None, 3);
    wild.convergence = Convergence::Random(6);
    vec![
        wild,
        options(CtaOrder::InOrder, None, 20_000),
        options(CtaOrder::Reversed, Some(1), 20_000),
        options(CtaOrder::Random(3), Some(7), 13),
        options(CtaOrder::Random(4), None, 5),
    ]
}

/// Two launches of the protocol kernel with different maps on one workspace.
fn protocol(machine: &Machine, options: &Options) -> Option<Seen> {
    let (streams, chunks, words) = (3_usize, 45_usize, 32_usize);
    let tiles = streams * chunks;
    let header = machine.place(&vec![0; 256]);
    let (flags, slots) = (machine.words(&vec![0; tiles]), machine.place(&vec![0; 512 * tiles]));
    let cuts = machine.words(&(0..tiles).map(|t| u32::from(t % 40 == 39)).collect::<Vec<_>>());
    // A third of the tiles is slow, before one or the other of its words.
    let delays: Vec<u32> =
        (0..tiles as u32).map(|t| [0, 0, 400, 0, 600 << 16, 30, 50 << 16][t as usize * 5 % 7]).collect();
    let delays = machine.words(&delays);
    for launch in 0..2_u32 {
        let value = |n: usize, salt: u32| (n as u32).wrapping_mul(2_654_435_761).wrapping_add(salt + 77 * launch);
        let p: Vec<u32> = (0..tiles * words).map(|n| value(n, 1) | 1).collect();
        let l: Vec<u32> = (0..tiles * words).map(|n| value(n, 2)).collect();
        let out = machine.words(&vec![0xdead_beef; tiles * words]);
        let args = args::LookbackProtocol {
            p_p: machine.words(&p),
            p_l: machine.words(&l),
            p_cuts: cuts,
            p_delays: delays,
            p_carry: out,
            p_header: header,
            p_tile_flags: flags,
            p_slots: slots,
            streams: streams as u32,
            chunks: chunks as u32,
            window: 32,
            ..Zeroable::zeroed()
        };
        if let Err(fault) = machine.run(tiles as u32, bytes_of(&args), options) {
            return Some(Seen::Fault(fault.kind));
        }
        let got = machine.read(out, tiles * words);
        for stream in 0..streams {
            let mut carry = vec![0_u32; words];
            for chunk in 0..chunks {
                let tile = stream * chunks + chunk;
                if got[tile * words..(tile + 1) * words] != carry {
                    return Some(Seen::WrongResult);
                }
                for (w, carry) in carry.iter_mut().enumerate() {
                    let (p, l) = (p[tile * words + w], l[tile * words + w]);
                    let alone = tile % 40 == 39 || chunk == 0;
                    *carry = if alone { l } else { p.wrapping_mul(*carry).wrapping_add(l) };
                }
            }
        }
    }
    None
}

/// The forward scan of two and a half tiles, both directions, flags, packed sequences and states.
fn forward(machine: &Machine, options: &Options) -> Option<Seen> {
    let case = Case {
        split: 66,
        starts: Some(vec![0, 40, 40, 170, 300]),
        flags_every: 70,
        ..Case::new(Source::Tensor, DType::F32, 1, 300, 98)
    };
    let data = Data::new::<f32>(&case);
    let (n, states) = (300 * 98, 4 * 98);
    // 98 channels: blocks of 64 and 2 forward, of 32 reverse, none of them whole.
    let (blocks, chunks) = (3_u32, 3_u32);
    let tiles = blocks * chunks;
    let (h, last) = (machine.floats(&vec![f64::NAN; n]), machine.floats(&vec![f64::NAN; states]));
    let starts: Vec<u32> = case.starts.as_ref()?.iter().map(|s| *s as u32).collect();
    let args = args::GatedScanFwd {
        p_a: machine.floats(&data.a),
        p_b: machine.floats(&data.b),
        p_flags: machine.place(data.flags.as_ref()?),
        p_cu_seqlens: machine.words(&starts),
        p_initial: machine.floats(data.initial.as_ref()?),
        p_h: h,
        p_final: last,
        p_header: machine.place(&vec![0; 256]),
        p_tile_flags: machine.words(&vec![0; tiles as usize]),
        p_slots: machine.place(&vec![0; 1024 * tiles as usize]),
        a_stride_t: 98,
        b_stride_t: 98,
        h_stride_t: 98,
        seq_len: 300,
        channels: 98,
        split: 66,
        sequences: 4,
        blocks,
        forward_blocks: 2,
        streams: blocks,
        chunks,
        window: 32,
        ..Zeroable::zeroed()
    };
    if let Err(fault) = machine.run(tiles, bytes_of(&args), options) {
        return Some(Seen::Fault(fault.kind));
    }
    let want = data.forward(&case);
    let close = |pointer, want: &[f64]| {
        errors(&machine.read_floats(pointer, want.len()), want, 98).is_ok_and(|e| e.within(Gate::F32))
    };
    (!close(h, &want.h) || !close(last, &want.last)).then_some(Seen::WrongResult)
}

fn check(kernel: &'static Kernel, run: fn(&Machine, &Options) -> Option<Seen>, mutants: &[(&str, &str, usize, Seen)]) {
    for options in &schedules() {
        let whole = Machine::new(kernel, ".visible", ".visible", 0);
        assert_eq!(run(&whole, options), None, "the kernel itself, {options:?}");
    }
    for (from, to, nth, want) in mutants {
        let seen: Vec<Seen> =
            schedules().iter().filter_map(|o| run(&Machine::new(kernel, from, to, *nth), o)).collect();
        let fits = |seen: &Seen| match want {
            Seen::Something => true,
            Seen::Race => matches!(seen, Seen::Fault(FaultKind::Race | FaultKind::Uninitialized)),
            Seen::Hang => matches!(seen, Seen::Fault(FaultKind::Deadlock | FaultKind::InstructionLimit)),
            want => seen == want,
        };
        assert!(seen.iter().any(fits), "`{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}

#[test]
fn lookback_every_seeded_mistake_is_caught() {
    let kernel = find("lookback_protocol", &[("vec", "1")]).expect("built");
    check(
        kernel,
        protocol,
        &[
            ("st.release.gpu.global.u32", "st.global.u32", 0, Seen::Race),
            ("st.release.gpu.global.u32", "st.relaxed.gpu.global.u32", 1, Seen::Race),
            ("ld.acquire.gpu.global.u32", "ld.relaxed.gpu.global.u32", 0, Seen::Race),
            ("bar.warp.sync 0xffffffff;", "", 0, Seen::Race),
            // The nearer tiles are not waited for.
            ("or.pred %is_waiting, %is_waiting, %is_missing;", "", 0, Seen::Something),
            // Every lane watches its own distance: one too near is the tile itself.
            ("[%watched+-4]", "[%watched]", 0, Seen::Something),
            // Blocks that start out of order wait for blocks that never start.
            (
                "ld.shared.v2.u32 {%ticket, %epoch}, [%shared];",
                "ld.shared.v2.u32 {%ticket, %epoch}, [%shared]; mov.u32 %ticket, %ctaid.x;",
                0,
                Seen::Hang,
            ),
            // Flags of the launch before count.
            ("@%is_last st.global.u32", "@!%is_last ld.global.u32 %next, [%p_header+128]; //", 0, Seen::Something),
            // PREFIX on top of AGGREGATE.
            ("[%slot+256]", "[%slot+128]", 1, Seen::Something),
            ("add.u64 %tile, %tile, 2048;", "", 0, Seen::WrongResult),
        ],
    );
}

#[test]
fn gated_scan_every_seeded_mistake_is_caught() {
    let kernel = find("gated_scan_fwd", &[("source", "tensor"), ("dtype", "f32"), ("vec", "2")]).expect("built");
    let outside = Seen::Fault(FaultKind::IllegalAddress);
    check(
        kernel,
        forward,
        &[
            // bar.sync 0: ticket, maps of the warps, carry of the tile.
            ("bar.sync 0;", "", 0, Seen::Race),
            ("bar.sync 0;", "", 1, Seen::Race),
            ("bar.sync 0;", "", 2, Seen::Race),
            ("@%is_row st.global.v2.f32", "st.global.v2.f32", 15, Seen::Something),
            ("@%is_row ld.global.v2.f32", "ld.global.v2.f32", 15, outside),
            ("@%is_channel st.global.v2.f32", "st.global.v2.f32", 3, Seen::Something),
            ("setp.lt.u32 %is_channel", "setp.le.u32 %is_channel", 0, Seen::Something),
            ("setp.ge.u32 %is_reverse", "setp.gt.u32 %is_reverse", 0, Seen::WrongResult),
            ("selp.u32 %bit, 2, 1, %is_reverse;", "selp.u32 %bit, 1, 2, %is_reverse;", 0, Seen::WrongResult),
            ("setp.le.s32 %is_low, %t2, %token;", "setp.lt.s32 %is_low, %t2, %token;", 0, Seen::WrongResult),
            ("selp.f32 %total_l0, %m0, %total_l0, %is_warp_cut;", "", 2, Seen::WrongResult),
            (
                "setp.ge.s32 %is_empty, %from_token, %to_token;",
                "setp.gt.s32 %is_empty, %from_token, %to_token;",
                0,
                Seen::WrongResult,
            ),
        ],
    );
}
