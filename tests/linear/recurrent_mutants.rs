//! The walk token by token with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::{
    chain_case::{Case, Data, Decay, walk},
    chain_mutants::Machine,
};
use bytemuck::{Zeroable, bytes_of};
use lookback_emulator::launch::{FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::{args::LinearAttentionRecurrent, find};
use lookback_suite::measure::{Gate, errors};

/// How a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Race,
    WrongResult,
    /// A wrong result or any fault.
    Something,
}

/// A case where every part of the kernel has something to do: two warps, three stages, cuts, a prefix, a normaliser, a shift.
fn case() -> Case {
    let flags = [vec![3, 11, 16], vec![]];
    let case = Case::new(21, 1, 20, 40);
    Case { decay: Decay::Key, flags, normalize: true, positive: true, shift: true, prefix: vec![1], ..case }
}

fn run(machine: &Machine, quantum: u32) -> Option<Seen> {
    let case = case();
    let data = Data::new::<f32>(&case, 1);
    let (kd, vd, tokens) = (case.key_dim, case.value_dim, case.seq_len);
    let mut flags = vec![0_u8; tokens];
    case.flags[0].iter().for_each(|t| flags[*t] = 1);
    let poison = |len: usize| vec![f64::NAN; len];
    let (o, h) = (machine.place::<f32>(&poison(tokens * vd)), machine.place::<f32>(&poison(kd * vd)));
    let (den, z) = (machine.place::<f32>(&poison(tokens)), machine.place::<f32>(&poison(kd)));
    let args = LinearAttentionRecurrent {
        p_q: machine.place::<f32>(&data.q),
        p_k: machine.place::<f32>(&data.k),
        p_v: machine.place::<f32>(&data.v),
        p_g: machine.place::<f32>(&data.g),
        p_flags: machine.place_bytes(&flags),
        p_prefix_len: machine.place_bytes(bytemuck::cast_slice(&case.prefix)),
        p_h0: machine.place::<f32>(&data.h0),
        p_z0: machine.place::<f32>(&data.z0),
        p_o: o,
        p_h_final: h,
        p_z_final: z,
        p_den: den,
        q_stride_token: kd as i64,
        k_stride_token: kd as i64,
        v_stride_token: vd as i64,
        g_stride_token: kd as i64,
        o_stride_token: vd as i64,
        h0_stride_key: vd as i64,
        h0_stride_value: 1,
        hf_stride_key: vd as i64,
        hf_stride_value: 1,
        q_group: 1,
        k_group: 1,
        v_group: 1,
        seq_len: tokens as u32,
        heads: 1,
        key_dim: kd as u32,
        value_dim: vd as u32,
        split: 1,
        flag_mask: 1,
        scale: case.scale,
        eps: 0.25,
        decay: 2,
        shift: 1,
        normalize: 1,
        ..Zeroable::zeroed()
    };
    let config = LaunchConfig { grid: [1, 1, 1], block: machine.kernel.block, dynamic_shared: 0, cooperative: false };
    let mut options = Options::default();
    options.quantum = quantum;
    options.instruction_limit = 2_000_000;
    if let Err(fault) = launch(&machine.program, &machine.memory, &config, bytes_of(&args), &options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let want = walk(&case, &data);
    let close = |out: Vec<f64>, want: &[f64], row| errors(&out, want, row).is_ok_and(|e| e.within(Gate::F32));
    let right = close(machine.read::<f32>(o, tokens * vd), &want.o, vd)
        && close(machine.read::<f32>(h, kd * vd), &want.h, kd * vd)
        && close(machine.read::<f32>(z, kd), &want.z, kd)
        && close(machine.read::<f32>(den, tokens), &want.den, 1);
    (!right).then_some(Seen::WrongResult)
}

#[test]
fn recurrent_every_seeded_mistake_is_caught() {
    let kernel = find("linear_attention_recurrent", &[("key_tile", "32"), ("dtype", "f32")]).expect("every variant");
    // Warps that run long, and that take turns.
    let quanta = [20_000, 7];
    for quantum in quanta {
        assert_eq!(run(&Machine::new(kernel, ".visible", ".visible", 0), quantum), None, "the kernel itself");
    }
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // Order of the stages.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("bar.sync 0;", "", 1, Seen::Race),
        ("add.u32 %base, %base, 8;", "add.u32 %base, %base, 7;", 0, Seen::Something),
        // Loads and their ends.
        (
            "setp.lt.and.u32 %is_there, %t1, %length, %is_column;",
            "setp.lt.u32 %is_there, %t1, %length;",
            31,
            Seen::Something,
        ),
        ("setp.lt.u32 %is_key, %key, %n_keys;", "setp.le.u32 %is_key, %key, %n_keys;", 4, Seen::Something),
        ("mad.lo.s64 %p_k, %k_step, 8, %p_k;", "mad.lo.s64 %p_k, %k_step, 7, %p_k;", 1, Seen::WrongResult),
        // Decays, and what their rounding loses.
        ("fma.rn.f32 %s9, %a2, %s9, %t0;", "", 0, Seen::WrongResult),
        ("fma.rn.f32 %z3, %a3, %z3, %t0;", "", 0, Seen::WrongResult),
        ("fma.rn.f32 %s5, %k1, %v1, %s5;", "fma.rn.f32 %s5, %k1, %v0, %s5;", 0, Seen::WrongResult),
        // Cuts, prefixes, shifts.
        ("mov.f32 %s3, 0f00000000;", "", 1, Seen::WrongResult),
        ("mov.f32 %held, 0f00000000;", "", 1, Seen::WrongResult),
        ("setp.lt.u32 %is_marked, %t0, %prefix;", "setp.le.u32 %is_marked, %t0, %prefix;", 0, Seen::WrongResult),
        ("mov.f32 %held, %o0;", "", 0, Seen::WrongResult),
        ("mov.u32 %phases, 3;", "mov.u32 %phases, 2;", 0, Seen::Something),
        // The sum over lanes, and the normaliser.
        (
            "shfl.sync.bfly.b32 %x0, %x0, 2, 31, 0xffffffff;",
            "shfl.sync.bfly.b32 %x0, %x0, 1, 31, 0xffffffff;",
            0,
            Seen::WrongResult,
        ),
        ("selp.f32 %o0, %o1, %o0, %is_upper;", "", 0, Seen::WrongResult),
        ("fma.rn.f32 %den, %den, %scale, %eps;", "mul.f32 %den, %den, %scale;", 0, Seen::WrongResult),
        ("div.rn.f32 %o0, %o0, %den;", "", 0, Seen::WrongResult),
        ("setp.lt.u32 %is_writer, %lane_key, 4;", "setp.lt.u32 %is_writer, %lane_key, 3;", 0, Seen::Something),
    ];
    for (from, to, nth, want) in mutants {
        let seen: Vec<Seen> = quanta.iter().filter_map(|q| run(&Machine::new(kernel, from, to, *nth), *q)).collect();
        let fits = |seen: &Seen| *want == Seen::Something || seen == want;
        assert!(seen.iter().any(fits), "`{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}
