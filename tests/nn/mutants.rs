//! Kernels with one known mistake each: every one must be caught, by the sanitizer or by the result.

use crate::linear::chain_mutants::Machine;
use bytemuck::{Zeroable, bytes_of};
use lookback_emulator::launch::{FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::{
    Kernel,
    args::{GatedRmsNormBwd, Rotary as RotaryArgs, ShortConvolutionBwd},
    find,
};
use lookback_nn::rotary::turns;
use lookback_reference::{
    activation::Activation,
    gated_rms_norm::{self as gated, Norm},
    rotary::{self, Rotary, Style},
    short_convolution::{Conv, backward},
};
use lookback_suite::{
    measure::{Gate, errors},
    random::Random,
};

/// How a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Race,
    WrongResult,
    /// A wrong result or any fault.
    Something,
}

/// What a launch gave, by name: address, what is wanted, elements of a row.
pub type Outputs = Vec<(u64, Vec<f64>, usize)>;

pub fn judge(machine: &Machine, grid: [u32; 3], args: &[u8], quantum: u32, outputs: &Outputs) -> Option<Seen> {
    let config = LaunchConfig { grid, block: machine.kernel.block, dynamic_shared: 0, cooperative: false };
    let mut options = Options::default();
    options.quantum = quantum;
    options.instruction_limit = 2_000_000;
    if let Err(fault) = launch(&machine.program, &machine.memory, &config, args, &options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let right = |(at, want, row): &(u64, Vec<f64>, usize)| {
        errors(&machine.read::<f32>(*at, want.len()), want, *row).is_ok_and(|e| e.within(Gate::F32))
    };
    (!outputs.iter().all(right)).then_some(Seen::WrongResult)
}

/// A launch with the `nth` occurrence of one text replaced by another, and how it shows.
pub type Mutant = (&'static str, &'static str, usize, Seen);

pub fn every_one_is_caught(kernel: &'static Kernel, run: fn(&Machine, u32) -> Option<Seen>, mutants: &[Mutant]) {
    // Warps that run long, and that take turns.
    let quanta = [20_000, 7];
    for quantum in quanta {
        assert_eq!(run(&Machine::new(kernel, ".visible", ".visible", 0), quantum), None, "the kernel itself");
    }
    for (from, to, nth, want) in mutants {
        let seen: Vec<Seen> = quanta.iter().filter_map(|q| run(&Machine::new(kernel, from, to, *nth), *q)).collect();
        let fits = |seen: &Seen| *want == Seen::Something || seen == want;
        assert!(seen.iter().any(fits), "`{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}

pub fn poison(machine: &Machine, len: usize) -> u64 {
    machine.place::<f32>(&vec![f64::NAN; len])
}

/// Runs of 8 tokens of two packed sequences, with flags, both states and every gradient.
fn convolution(machine: &Machine, quantum: u32) -> Option<Seen> {
    let (tokens, channels, taps) = (30, 8, 4);
    let mut random = Random::new(1);
    let starts = [0_i32, 11, 30];
    let states = 2 * (taps - 1) * channels;
    let [x, dout] = [0; 2].map(|_| random.normals::<f32>(tokens * channels));
    let [state, dlast] = [0; 2].map(|_| random.normals::<f32>(states));
    let (weight, bias) = (random.normals::<f32>(channels * taps), random.normals::<f32>(channels));
    let mut flags = vec![0_u8; tokens];
    [5, 8, 17, 29].iter().for_each(|t| flags[*t] = 1);
    let conv = Conv {
        batch: 1,
        tokens,
        channels,
        taps,
        centred: false,
        bias: Some(&bias),
        flags: Some(&flags),
        starts: Some(&starts),
        state: Some(&state),
        activation: Activation::Silu,
    };
    let want = backward(&conv, &x, &weight, &dout, Some(&dlast));
    // Two lanes to a run: all the runs in one block, and one row of parts.
    let [dx, dstate] = [tokens * channels, states].map(|len| poison(machine, len));
    let [parts, bias_parts] = [channels * taps, channels].map(|len| poison(machine, len));
    let args = ShortConvolutionBwd {
        p_x: machine.place::<f32>(&x),
        p_weight: machine.place::<f32>(&weight),
        p_bias: machine.place::<f32>(&bias),
        p_flags: machine.place_bytes(&flags),
        p_cu_seqlens: machine.place_bytes(bytemuck::cast_slice(&starts)),
        p_state: machine.place::<f32>(&state),
        p_dout: machine.place::<f32>(&dout),
        p_dlast: machine.place::<f32>(&dlast),
        p_dx: dx,
        p_dstate: dstate,
        p_parts: parts,
        p_bias_parts: bias_parts,
        tokens: tokens as u32,
        sequences: 2,
        channels: channels as u32,
        runs: 5,
        x_stride_token: channels as i64,
        dout_stride_token: channels as i64,
        dx_stride_token: channels as i64,
        activation: 2,
        run_bits: 3,
        lane_bits: 1,
        ..Zeroable::zeroed()
    };
    let outputs = vec![
        (dx, want.dx, channels),
        (dstate, want.dstate, channels),
        (parts, want.dweight, channels * taps),
        (bias_parts, want.dbias, channels),
    ];
    judge(machine, [1, 1, 1], bytes_of(&args), quantum, &outputs)
}

#[test]
fn short_convolution_backward__every_seeded_mistake_is_caught() {
    let variant = [("taps", "4"), ("dtype", "f32"), ("vec", "4")];
    let kernel = find("short_convolution_bwd", &variant).expect("every variant");
    let mutants: &[Mutant] = &[
        // Which run, and which of its tokens.
        ("setp.le.u32 %is_before, %first, %i_run;", "setp.lt.u32 %is_before, %first, %i_run;", 0, Seen::Something),
        ("add.u32 %i_last, %i_end, 3;", "add.u32 %i_last, %i_end, 2;", 0, Seen::Something),
        ("setp.lt.and.u32 %is_own, %t0, %i_end, %is_own;", "", 0, Seen::WrongResult),
        ("setp.ge.s32 %is_own, %i_oldest, %i_begin;", "setp.gt.s32 %is_own, %i_oldest, %i_begin;", 3, Seen::Something),
        // Segments.
        ("and.b32 %between, %starts, %mask1;", "and.b32 %between, %starts, %mask2;", 2, Seen::WrongResult),
        ("and.pred %is_counted, %is_seen, %is_own;", "and.pred %is_counted, %is_own, %is_own;", 1, Seen::WrongResult),
        ("and.b32 %t0, %starts, 7;", "and.b32 %t0, %starts, 3;", 0, Seen::WrongResult),
        ("shl.b32 %starts, %starts, 1;", "", 2, Seen::WrongResult),
        // The ring turns.
        ("mov.f32 %dring3_0, 0f00000000;", "", 1, Seen::WrongResult),
        // The block's sum.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("add.u32 %at, %at, %lanes_bytes;", "", 0, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, convolution, mutants);
}

/// Teams of two warps, two rows each, the last row missing.
fn gated_norm(machine: &Machine, quantum: u32) -> Option<Seen> {
    let (rows, width) = (7, 512);
    let mut random = Random::new(2);
    let [y, z, dout] = [0; 3].map(|_| random.normals::<f32>(rows * width));
    let weight = random.uniforms::<f32>(width, 0.5, 1.5);
    let norm =
        Norm { width, group: width, weight: Some(&weight), eps: 1e-5, gate: Activation::Silu, norm_before_gate: false };
    let (rstd, want) = (gated::forward(&norm, &y, &z).rstd, gated::backward(&norm, &y, &z, &dout));
    let [dy, dz, parts] = [rows * width, rows * width, width].map(|len| poison(machine, len));
    let args = GatedRmsNormBwd {
        p_y: machine.place::<f32>(&y),
        p_z: machine.place::<f32>(&z),
        p_dout: machine.place::<f32>(&dout),
        p_weight: machine.place::<f32>(&weight),
        p_rstd: machine.place::<f32>(&rstd),
        p_dy: dy,
        p_dz: dz,
        p_parts: parts,
        rows: rows as u32,
        group: width as u32,
        y_stride: width as i64,
        z_stride: width as i64,
        dout_stride: width as i64,
        dy_stride: width as i64,
        dz_stride: width as i64,
        weight_f32: 1,
        silu: 1,
        mean_factor: 1.0 / width as f32,
        slice_rows: rows as u32,
        lane_bits: 6,
        ..Zeroable::zeroed()
    };
    let outputs = vec![(dy, want.dy, width), (dz, want.dz, width), (parts, want.dweight, width)];
    judge(machine, [1, 1, 1], bytes_of(&args), quantum, &outputs)
}

#[test]
fn gated_rms_norm_backward__every_seeded_mistake_is_caught() {
    let kernel = find("gated_rms_norm_bwd", &[("first", "gate"), ("dtype", "f32"), ("vec", "4")]);
    let mutants: &[Mutant] = &[
        // The sum over a team, in slots of its own for every other row.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("xor.b32 %slots, %slots, 32;", "", 0, Seen::Race),
        ("shl.b32 %at, %at, %lane_bits;", "shl.b32 %at, %at, 5;", 0, Seen::Something),
        ("setp.gt.u32 %is_near, %lanes, 8;", "setp.gt.u32 %is_near, %lanes, 64;", 0, Seen::WrongResult),
        // The teams' gradients of the weights.
        ("bar.sync 0;", "", 1, Seen::Race),
        ("bar.sync 0;", "", 2, Seen::Race),
        ("add.u32 %at, %at, %lanes_bytes;", "", 1, Seen::WrongResult),
        // Rows and columns that are not there.
        ("setp.lt.u32 %is_row, %i_row, %i_end;", "setp.le.u32 %is_row, %i_row, %i_end;", 0, Seen::Something),
        (
            "setp.lt.u32 %is_column2, %i_at, %n_columns;",
            "setp.le.u32 %is_column2, %i_at, %n_columns;",
            0,
            Seen::Something,
        ),
        // The maths.
        ("neg.f32 %sum, %sum;", "", 0, Seen::WrongResult),
        ("selp.f32 %factor, %p, 0f00000000, %is_silu;", "mov.f32 %factor, 0f00000000;", 0, Seen::WrongResult),
    ];
    every_one_is_caught(kernel.expect("every variant"), gated_norm, mutants);
}

/// A grid of 3 x 4 after one token, two tokens to a thread, five heads, part of the row not turned.
fn turned(machine: &Machine, quantum: u32) -> Option<Seen> {
    turned_by(machine, quantum, None)
}

/// The same with the angles of position 1 in a table.
fn turned_by_table(machine: &Machine, quantum: u32) -> Option<Seen> {
    turned_by(machine, quantum, Some(&[0.9, 0.05, 0.7, 0.3, 1.0, 0.01, 0.2, 0.6]))
}

fn turned_by(machine: &Machine, quantum: u32, frequencies: Option<&[f64]>) -> Option<Seen> {
    let (tokens, heads, head_dim) = (13, 5, 40);
    let x = Random::new(3).normals::<f32>(tokens * heads * head_dim);
    let rotary = Rotary {
        batch: 1,
        tokens,
        heads,
        head_dim,
        style: Style::Half,
        base: 100.0,
        rotary_dim: 32,
        theta_dim: 32,
        extents: &[3, 4],
        prefix: 1,
        positions: None,
        starts: None,
        offset: 0,
        frequencies,
    };
    let table: Vec<u8> = frequencies.into_iter().flatten().flat_map(|f| turns(*f).to_le_bytes()).collect();
    let out = poison(machine, x.len());
    let ratio = 100_f64.powf(-2.0 / 32.0) * 2_f64.powi(64);
    let args = RotaryArgs {
        p_x: machine.place::<f32>(&x),
        p_frequencies: if table.is_empty() { 0 } else { machine.place_bytes(&table) },
        p_out: out,
        tokens: tokens as u32,
        heads: heads as u32,
        turned: 16,
        copied: 8,
        axis_turned: 8,
        divisor_0: 4,
        divisor_1: 1,
        divisor_2: 1,
        extent_1: 4,
        extent_2: 1,
        extent_3: 1,
        is_grid: 1,
        prefix: 1,
        x_stride_token: (heads * head_dim) as i64,
        x_stride_head: head_dim as i64,
        out_stride_token: (heads * head_dim) as i64,
        out_stride_head: head_dim as i64,
        ratio: ratio as u64 as i64,
        block_heads: 8,
        steps: 2,
        // Two lanes walk all units of a token.
        lane_bits: 1,
        ..Zeroable::zeroed()
    };
    judge(machine, [1, 1, 1], bytes_of(&args), quantum, &vec![(out, rotary::forward(&rotary, &x), head_dim)])
}

#[test]
fn rotary__every_seeded_mistake_is_caught() {
    let kernel = find("rotary", &[("style", "half"), ("dtype", "f32"), ("vec", "4")]).expect("every variant");
    let mutants: &[Mutant] = &[
        // Angles.
        ("0x28BE60DB9391054A", "0x29BE60DB9391054A", 0, Seen::WrongResult),
        ("mul.hi.u64 %power, %power, %power;", "", 0, Seen::WrongResult),
        ("add.u32 %quarter, %angle, 0x20000000;", "mov.u32 %quarter, %angle;", 0, Seen::WrongResult),
        ("and.b32 %sign, %quarter, 2;", "and.b32 %sign, %quarter, 1;", 0, Seen::WrongResult),
        ("fma.rn.f32 %s, %long, %s, %x;", "mov.f32 %s, %x;", 1, Seen::WrongResult),
        // Positions on the grid.
        ("rem.u32 %t0, %t0, %extent;", "", 0, Seen::WrongResult),
        ("@%is_negative mov.s64 %position, 0;", "", 0, Seen::WrongResult),
        ("sub.u32 %t0, %i_angle, %t0;", "mov.u32 %t0, %i_angle;", 0, Seen::WrongResult),
        // Heads, tokens, units.
        ("add.u32 %i_head, %i_head, 4;", "add.u32 %i_head, %i_head, 5;", 0, Seen::WrongResult),
        ("setp.lt.u32 %is_in1, %t0, %i_head_end;", "setp.le.u32 %is_in1, %t0, %i_head_end;", 0, Seen::Something),
        (
            "setp.ge.u32 %is_outside, %i_angle, %n_copied;",
            "setp.gt.u32 %is_outside, %i_angle, %n_copied;",
            0,
            Seen::Something,
        ),
        ("add.u64 %x_at, %x_at, %x_head;", "", 2, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, turned, mutants);
    // The table of angles.
    let mutants: &[Mutant] = &[
        ("mul.wide.u32 %u1, %t0, 8;", "mul.wide.u32 %u1, %i_angle, 8;", 0, Seen::Something),
        (
            "@%has_table ld.global.nc.u64 %turn2, [%u0+16];",
            "@%has_table ld.global.nc.u64 %turn2, [%u0+8];",
            0,
            Seen::WrongResult,
        ),
        ("@%has_table ld.global.nc.u64 %turn3, [%u0+24];", "", 0, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, turned_by_table, mutants);
}
