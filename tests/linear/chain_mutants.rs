//! The chunked walk with one mistake each: every one must be caught, by the sanitizer or by the result.
//!
//! They run through the emulator's own interface, on memory of their own, because a fault ends the context that the other
//! tests share.

use super::chain_case::{Case, Data, walk};
use bytemuck::{Zeroable, bytes_of};
use half::bf16;
use lookback_device::Element;
use lookback_emulator::{
    decode::{Program, decode},
    launch::{AsyncCopies, FaultKind, LaunchConfig, Options, launch},
    memory::DeviceMemory,
    ptx,
};
use lookback_kernels::{Kernel, args::LinearAttentionChain, find};
use lookback_suite::measure::{Gate, errors};

/// How a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// What nothing orders is a race, or a read of what is not there yet, by the schedule.
    Race,
    WrongResult,
    /// A wrong result or any fault.
    Something,
}

/// A kernel with a mistake, and memory of its own.
pub struct Machine {
    pub memory: DeviceMemory,
    pub program: Program,
    pub kernel: &'static Kernel,
}

impl Machine {
    /// The kernel with the `nth` occurrence of `from`, counted from 0, replaced by `to`.
    pub fn new(kernel: &'static Kernel, from: &str, to: &str, nth: usize) -> Self {
        let text = kernel.ptx();
        let at = text.match_indices(from).nth(nth).unwrap_or_else(|| panic!("no {nth}th `{from}`")).0;
        let text = format!("{}{to}{}", &text[..at], &text[at + from.len()..]);
        let module = ptx::parse(&text).unwrap_or_else(|e| panic!("`{to}`: {e}"));
        let program = decode(&module, &module.entries[0], &[]).unwrap_or_else(|e| panic!("`{to}`: {e}"));
        Self { memory: DeviceMemory::new(16 << 20), program, kernel }
    }

    pub fn place<T: Element>(&self, values: &[f64]) -> u64 {
        let values: Vec<T> = values.iter().map(|v| T::from_f64(*v)).collect();
        self.place_bytes(bytemuck::cast_slice(&values))
    }

    pub fn place_bytes(&self, bytes: &[u8]) -> u64 {
        let pointer = self.memory.alloc(bytes.len().max(1) as u64).expect("memory");
        self.memory.copy_from_host(pointer, bytes).expect("memory");
        pointer
    }

    pub fn read<T: Element>(&self, pointer: u64, len: usize) -> Vec<f64> {
        let mut out = vec![T::from_f64(0.0); len];
        self.memory.copy_to_host(bytemuck::cast_slice_mut(&mut out), pointer).expect("memory");
        out.iter().map(|v| v.to_f64()).collect()
    }
}

/// A case where every part of the kernel has something to do.
fn case() -> Case {
    Case { flags: [vec![20, 33, 48, 77], vec![]], normalize: true, ..Case::new(150, 1, 64, 72) }
}

fn run(machine: &Machine, case: &Case, options: &Options) -> Option<Seen> {
    let data = Data::new::<bf16>(case, 1);
    let (kd, vd, tokens) = (case.key_dim, case.value_dim, case.seq_len);
    let mut flags = vec![0_u8; tokens];
    case.flags[0].iter().for_each(|t| flags[*t] = 1);
    let poison = |len: usize| vec![f64::NAN; len];
    let (o, h) = (machine.place::<bf16>(&poison(tokens * vd)), machine.place::<f32>(&poison(kd * vd)));
    let den = machine.place::<f32>(&poison(tokens));
    let args = LinearAttentionChain {
        p_q: machine.place::<bf16>(&data.q),
        p_k: machine.place::<bf16>(&data.k),
        p_v: machine.place::<bf16>(&data.v),
        p_g: machine.place::<f32>(&data.g),
        p_flags: machine.place_bytes(&flags),
        p_h0: machine.place::<f32>(&data.h0),
        p_z0: machine.place::<f32>(&data.z0),
        p_o: o,
        p_h_final: h,
        p_den: den,
        q_stride_token: kd as i64,
        k_stride_token: kd as i64,
        v_stride_token: vd as i64,
        g_stride_token: case.decay.width(case) as i64,
        o_stride_token: vd as i64,
        h0_stride_key: vd as i64,
        h0_stride_value: 1,
        hf_stride_key: vd as i64,
        hf_stride_value: 1,
        q_group: 1,
        k_group: 1,
        v_group: 1,
        seq_len: tokens as u32,
        sequences: 1,
        heads: 1,
        key_dim: kd as u32,
        value_dim: vd as u32,
        split: 1,
        segments: 1,
        flag_mask: 1,
        scale: case.scale,
        eps: 0.25,
        ..Zeroable::zeroed()
    };
    let config = LaunchConfig {
        grid: [1, 1, 1],
        block: machine.kernel.block,
        dynamic_shared: machine.kernel.dynamic_smem,
        cooperative: false,
    };
    if let Err(fault) =
        launch(&machine.program, &machine.memory, &config, bytes_of(&[args, Zeroable::zeroed()]), options)
    {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let want = walk(case, &data);
    let close = |out: Vec<f64>, want: &[f64], row| errors(&out, want, row).is_ok_and(|e| e.within(Gate::BF16));
    let right = close(machine.read::<bf16>(o, tokens * vd), &want.o, vd)
        && close(machine.read::<f32>(h, kd * vd), &want.h, kd * vd)
        && (!case.normalize || close(machine.read::<f32>(den, tokens), &want.den, 1));
    (!right).then_some(Seen::WrongResult)
}

/// Copies that land at once and as late as they may, warps that run long and that take turns.
fn schedules() -> [Options; 2] {
    [(AsyncCopies::Eager, 20_000), (AsyncCopies::Late, 7)].map(|(copies, quantum)| {
        let mut options = Options::default();
        options.async_copies = copies;
        options.quantum = quantum;
        options.instruction_limit = 4_000_000;
        options
    })
}

/// The kernel does the case, and with any one of the replacements of the `nth` occurrence of a text it does not.
pub fn check(kernel: &'static Kernel, case: &Case, mutants: &[(&str, &str, usize, Seen)]) {
    for options in &schedules() {
        assert_eq!(run(&Machine::new(kernel, ".visible", ".visible", 0), case, options), None, "the kernel itself");
    }
    for (from, to, nth, want) in mutants {
        let seen: Vec<Seen> =
            schedules().iter().filter_map(|o| run(&Machine::new(kernel, from, to, *nth), case, o)).collect();
        let fits = |seen: &Seen| *want == Seen::Something || seen == want;
        assert!(seen.iter().any(fits), "`{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}

#[test]
fn chain_every_seeded_mistake_is_caught() {
    let variant = [("dtype", "bf16"), ("kt", "64"), ("bv", "128"), ("norm", "yes"), ("part", "whole")];
    let kernel = find("linear_attention_chain", &variant).expect("every variant is built");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // Order of the stages.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("cp.async.wait_group 1;", "", 0, Seen::Something),
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;", 0, Seen::Something),
        ("and.b32 %parity, %i_next, 1;", "mov.u32 %parity, 0;", 0, Seen::Something),
        // Decays.
        ("mul.f32 %s5, %s5, %carry;", "", 0, Seen::WrongResult),
        ("mul.f32 %o3, %o3, %r1;", "", 0, Seen::WrongResult),
        ("mul.f32 %c3, %c3, %e;", "", 0, Seen::WrongResult),
        ("selp.f32 %row_log, %before, %sum, %is_before_row;", "mov.f32 %row_log, %before;", 0, Seen::WrongResult),
        ("sub.f32 %up, %all, %column_log;", "mov.f32 %up, %all;", 0, Seen::WrongResult),
        ("@%is_other add.f32 %sum, %sum, %up;", "", 3, Seen::WrongResult),
        // Cuts and ends.
        ("selp.f32 %row, 0f00000000, %up, %is_some;", "mov.f32 %row, %up;", 0, Seen::WrongResult),
        ("min.u32 %is_cut, %is_cut, 1;", "mov.u32 %is_cut, 0;", 0, Seen::WrongResult),
        ("sub.u32 %mask, %mask, %t0;", "sub.u32 %mask, %mask, 1;", 0, Seen::WrongResult),
        ("setp.gt.and.s32 %is_in, %rows, 16, %v_is;", "setp.ge.s32 %is_in, %rows, -64;", 2, Seen::Something),
        ("setp.gt.s32 %is_row0, %out_rows, %group;", "setp.ge.s32 %is_row0, %out_rows, %group;", 0, Seen::Something),
        // The normaliser.
        ("add.f32 %d0, %d0, %eps;", "", 0, Seen::WrongResult),
        ("selp.b32 %a2, %a2, 0, %is_first;", "mov.b32 %a2, 0;", 0, Seen::WrongResult),
        ("mul.f32 %y6, %y6, %inverse;", "", 0, Seen::WrongResult),
    ];
    check(kernel, &case(), mutants);
}
