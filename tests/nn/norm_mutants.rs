//! Pooling, the gradient of the residual norm and the function of the normal distribution, with one known mistake each.

use super::mutants::{Mutant, Seen, every_one_is_caught, judge, poison};
use crate::linear::chain_mutants::Machine;
use bytemuck::{Zeroable, bytes_of};
use lookback_kernels::{
    args::{Gate as GateArgs, Pool as PoolArgs, ResidualNorm, ResidualNormBwd},
    find,
};
use lookback_reference::{
    activation::Activation,
    gate,
    pool::{self, Pool},
    residual_norm::{Norm, backward, forward},
};
use lookback_suite::random::Random;

/// Four teams, of which the last two have the row's end within; masked tokens, an empty sequence, one longer than a round of loads.
fn pooled(machine: &Machine, quantum: u32, normalize: bool) -> Option<Seen> {
    let (tokens, width) = (60, 200);
    let starts = [0_i32, 3, 3, 60];
    let mut random = Random::new(4);
    let x: Vec<f64> = random.normals::<f32>(tokens * width).iter().map(|v| f64::from((v + 2.0) as f32)).collect();
    let marks: Vec<u8> = (0..tokens).map(|t| u8::from(t % 4 != 2) * 3).collect();
    let mask: Vec<bool> = marks.iter().map(|mark| *mark != 0).collect();
    let want =
        pool::forward(&Pool { width, starts: &[0, 3, 3, 60], mask: Some(&mask), limit: usize::MAX, normalize }, &x);
    let out = poison(machine, 3 * width);
    let args = PoolArgs {
        p_x: machine.place::<f32>(&x),
        p_mask: machine.place_bytes(&marks),
        p_cu_seqlens: machine.place_bytes(bytemuck::cast_slice(&starts)),
        p_out: out,
        sequences: 3,
        tokens: tokens as u32,
        width: width as u32,
        x_stride: width as i64,
        out_stride: width as i64,
        limit: 1000,
        normalize: u32::from(normalize),
        lane_bits: 6,
        ..Zeroable::zeroed()
    };
    judge(machine, [3, 1, 1], bytes_of(&args), quantum, &vec![(out, want, width)])
}

fn averaged(machine: &Machine, quantum: u32) -> Option<Seen> {
    pooled(machine, quantum, false)
}

fn directed(machine: &Machine, quantum: u32) -> Option<Seen> {
    pooled(machine, quantum, true)
}

#[test]
fn pool__every_seeded_mistake_is_caught() {
    let kernel = find("pool", &[("dtype", "f32"), ("vec", "4")]).expect("every variant");
    let mutants: &[Mutant] = &[
        // Which tokens.
        ("sub.u32 %to, %to, %from;", "", 0, Seen::Something),
        ("add.u64 %p_mask, %p_mask, %skipped;", "", 0, Seen::WrongResult),
        ("setp.ne.b16 %is_in3, %mark, 0;", "", 0, Seen::WrongResult),
        ("setp.lt.u32 %is_in2, %i_at, %to;", "setp.le.u32 %is_in2, %i_at, %to;", 0, Seen::Something),
        ("mov.u32 %i_token, %i_team;", "mov.u32 %i_token, 0;", 0, Seen::WrongResult),
        // The teams' sums.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("add.u32 %at, %at, %lanes_bytes;", "", 0, Seen::WrongResult),
        ("@!%is_first bra TEAMS_DONE;", "", 0, Seen::Something),
        // The norm.
        ("bar.sync 0;", "", 1, Seen::Race),
        ("@!%is_first bra SQUARED;", "", 0, Seen::WrongResult),
        ("sqrt.rn.f32 %total, %total;", "", 0, Seen::WrongResult),
        ("setp.lt.f32 %is_small, %total,", "setp.gt.f32 %is_small, %total,", 0, Seen::WrongResult),
        // Columns.
        (
            "setp.ge.u32 %is_outside, %i_column, %n_columns;",
            "setp.gt.u32 %is_outside, %i_column, %n_columns;",
            0,
            Seen::Something,
        ),
        ("@!%is_first bra STORED;", "", 0, Seen::Something),
        ("mul.f32 %mean3, %mean3, %scale;", "", 0, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, directed, mutants);
    // The number of tokens, which the norm would hide; the second of two places that average.
    let mutants: &[Mutant] = &[
        ("add.u32 %n_counted, %n_counted, %one;", "", 5, Seen::WrongResult),
        ("add.u32 %n_counted, %n_counted, %other_count;", "", 1, Seen::WrongResult),
        ("max.u32 %n_counted, %n_counted, 1;", "", 1, Seen::WrongResult),
        ("add.u32 %mine_counts, %mine_counts, %lanes_bytes;", "", 1, Seen::WrongResult),
        ("bar.sync 0;", "", 2, Seen::Race),
    ];
    every_one_is_caught(kernel, averaged, mutants);
}

/// Rows of a block each, around a mean much larger than their deviation.
fn centred(machine: &Machine, quantum: u32, width: usize) -> Option<Seen> {
    let rows = 2;
    let mut random = Random::new(7);
    let residual: Vec<f64> =
        random.normals::<f32>(rows * width).iter().map(|v| f64::from((v + 3000.0) as f32)).collect();
    let (weight, bias) = (random.uniforms::<f32>(width, 0.5, 1.5), random.normals::<f32>(width));
    let norm = Norm { width, weight: Some(&weight), bias: Some(&bias), eps: 1e-2, center: true };
    let [sum, out] = [0; 2].map(|_| poison(machine, rows * width));
    let args = ResidualNorm {
        p_residual: machine.place::<f32>(&residual),
        p_x: 0,
        p_weight: machine.place::<f32>(&weight),
        p_bias: machine.place::<f32>(&bias),
        p_sum: sum,
        p_out: out,
        rows: rows as u32,
        width: width as u32,
        residual_stride: width as i64,
        x_stride: width as i64,
        sum_stride: width as i64,
        out_stride: width as i64,
        center: 1,
        post: 0,
        eps: 1e-2,
        mean_factor: 1.0 / width as f32,
    };
    let outputs = vec![(sum, residual.clone(), width), (out, forward(&norm, &residual), width)];
    judge(machine, [rows as u32, 1, 1], bytes_of(&args), quantum, &outputs)
}

/// The last columns are not held by registers.
fn centred_wide(machine: &Machine, quantum: u32) -> Option<Seen> {
    centred(machine, quantum, 10_000)
}

/// The last accesses of some threads do not reach the row's end.
fn centred_held(machine: &Machine, quantum: u32) -> Option<Seen> {
    centred(machine, quantum, 8000)
}

#[test]
fn residual_norm__every_seeded_mistake_is_caught() {
    let variant = [("team", "block"), ("dtype", "f32"), ("vec", "4")];
    let kernel = find("residual_norm", &variant).expect("every variant");
    let mutants: &[Mutant] = &[
        // Sums over the block.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("bar.sync 0;", "", 1, Seen::Race),
        ("bar.sync 0;", "", 2, Seen::Race),
        ("mov.u32 %t1, shifts;", "mov.u32 %t1, squares;", 0, Seen::Something),
        // The mean, what rounding leaves of it, the deviation.
        ("mul.f32 %mean, %total, %factor;", "mov.f32 %mean, %total;", 0, Seen::WrongResult),
        ("sub.f32 %v2, %v2, %shift;", "", 0, Seen::WrongResult),
        ("add.f32 %shift, %shift, %v3;", "", 0, Seen::WrongResult),
        ("mul.f32 %shift, %shift, %factor;", "", 0, Seen::WrongResult),
        ("fma.rn.f32 %total, %total, %factor, %eps;", "mul.f32 %total, %total, %factor;", 0, Seen::WrongResult),
        // Columns beyond the registers.
        ("bra SQUARES;", "", 0, Seen::WrongResult),
        ("bra REST;", "", 0, Seen::WrongResult),
        ("add.f32 %v1, %v1, %w1;", "", 8, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, centred_wide, mutants);
    let mutants: &[Mutant] = &[
        ("selp.f32 %off, %off, 0f00000000, %is_in7;", "", 0, Seen::WrongResult),
        ("setp.lt.u32 %is_in7, %t0, %n_columns;", "setp.le.u32 %is_in7, %t0, %n_columns;", 0, Seen::Something),
    ];
    every_one_is_caught(kernel, centred_held, mutants);
}

/// Rows of a slice; the gradient of the stream goes past the norm.
fn normed(machine: &Machine, quantum: u32, (rows, width, lane_bits): (usize, usize, u32)) -> Option<Seen> {
    let mut random = Random::new(5);
    let s: Vec<f64> = random.normals::<f32>(rows * width).iter().map(|v| f64::from((v + 3000.0) as f32)).collect();
    let [dout, dsum] = [0; 2].map(|_| random.normals::<f32>(rows * width));
    let weight = random.uniforms::<f32>(width, 0.5, 1.5);
    let norm = Norm { width, weight: Some(&weight), bias: None, eps: 1e-5, center: true };
    let mut want = backward(&norm, &s, &dout);
    lookback_reference::layers::add(&mut want.ds, &dsum);
    let [ds, dx] = [0; 2].map(|_| poison(machine, rows * width));
    let [parts, bias_parts] = [0; 2].map(|_| poison(machine, width));
    let args = ResidualNormBwd {
        p_s: machine.place::<f32>(&s),
        p_dout: machine.place::<f32>(&dout),
        p_dsum: machine.place::<f32>(&dsum),
        p_weight: machine.place::<f32>(&weight),
        p_ds: ds,
        p_dx: dx,
        p_parts: parts,
        p_bias_parts: bias_parts,
        rows: rows as u32,
        width: width as u32,
        s_stride: width as i64,
        dout_stride: width as i64,
        dsum_stride: width as i64,
        ds_stride: width as i64,
        dx_stride: width as i64,
        center: 1,
        post: 0,
        eps: 1e-5,
        mean_factor: 1.0 / width as f32,
        slice_rows: rows as u32,
        lane_bits,
    };
    let outputs = vec![
        (ds, want.ds.clone(), width),
        (dx, want.ds, width),
        (parts, want.dweight, width),
        (bias_parts, want.dbias, width),
    ];
    judge(machine, [1, 1, 1], bytes_of(&args), quantum, &outputs)
}

/// Two warps share a row, and the third accesses of some do not reach its end; two rows to each of four teams but for the last.
fn held(machine: &Machine, quantum: u32) -> Option<Seen> {
    normed(machine, quantum, (7, 560, 6))
}

/// The block shares a row, whose last columns are not held.
fn wide(machine: &Machine, quantum: u32) -> Option<Seen> {
    normed(machine, quantum, (3, 5300, 8))
}

#[test]
fn residual_norm_backward__every_seeded_mistake_is_caught() {
    let kernel = find("residual_norm_bwd", &[("dtype", "f32"), ("vec", "4")]).expect("every variant");
    let mutants: &[Mutant] = &[
        // The five sums of a team, in slots of their own.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("bar.sync 0;", "", 1, Seen::Race),
        ("bar.sync 0;", "", 2, Seen::Race),
        ("bar.sync 0;", "", 3, Seen::Race),
        ("bar.sync 0;", "", 4, Seen::Race),
        ("add.u32 %own, %own, 64;", "add.u32 %own, %own, 32;", 0, Seen::Race),
        ("shl.b32 %at, %at, %lane_bits;", "shl.b32 %at, %at, 5;", 1, Seen::Something),
        // The teams' gradients of the weights, and of the biases in the same memory.
        ("bar.sync 0;", "", 5, Seen::Race),
        ("bar.sync 0;", "", 6, Seen::Race),
        ("mov.u64 %p_parts, %p_bias_parts;", "", 0, Seen::WrongResult),
        ("add.f32 %dbias5, %dbias5, %d1;", "", 0, Seen::WrongResult),
        ("add.f32 %dweight5, %dweight5, %more1;", "", 0, Seen::WrongResult),
        // Rows and columns that are not there.
        ("setp.lt.u32 %is_row, %i_row, %i_end;", "setp.le.u32 %is_row, %i_row, %i_end;", 0, Seen::Something),
        (
            "setp.lt.u32 %is_column2, %i_at, %n_columns;",
            "setp.le.u32 %is_column2, %i_at, %n_columns;",
            0,
            Seen::Something,
        ),
        // The maths.
        ("mul.f32 %mean, %mean, %factor;", "", 0, Seen::WrongResult),
        ("neg.f32 %product, %product;", "", 0, Seen::WrongResult),
        // What rounding leaves of a mean much larger than the deviation.
        ("sub.f32 %c, %c, %shift;", "", 2, Seen::WrongResult),
        ("add.f32 %shift, %shift, %c;", "", 1, Seen::WrongResult),
        ("sub.f32 %g, %g, %total;", "", 3, Seen::WrongResult),
        ("mul.f32 %product, %product, %rstd;", "", 1, Seen::WrongResult),
        ("fma.rn.f32 %rstd, %squares, %factor, %eps;", "mul.f32 %rstd, %squares, %factor;", 0, Seen::WrongResult),
        ("add.f32 %x2, %x2, %e2;", "", 0, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, held, mutants);
    let mutants: &[Mutant] = &[
        // Columns that are not held: their sums, their gradients, the parts of every row.
        ("bra VALUES_REST;", "", 0, Seen::WrongResult),
        ("bra PRODUCTS_REST;", "", 0, Seen::WrongResult),
        ("setp.ne.u32 %is_new, %i_first, %i_first;", "", 0, Seen::WrongResult),
        ("setp.eq.u32 %is_new, %i_first, %i_first;", "setp.ne.u32 %is_new, %i_first, %i_first;", 0, Seen::Something),
        (
            "add.u64 %p_parts_at, %p_bias_parts, %offset;",
            "add.u64 %p_parts_at, %p_parts, %offset;",
            0,
            Seen::WrongResult,
        ),
    ];
    every_one_is_caught(kernel, wide, mutants);
}

/// Gelu with the error function, near 0 and in both tails.
fn activated(machine: &Machine, quantum: u32) -> Option<Seen> {
    let (rows, width) = (4, 64);
    let x: Vec<f64> = (0..rows * width).map(|at| f64::from((at as f32 - 127.5) * 0.06)).collect();
    let y = Random::new(6).uniforms::<f32>(rows * width, 0.5, 1.5);
    let out = poison(machine, rows * width);
    let args = GateArgs {
        p_x: machine.place::<f32>(&x),
        p_y: machine.place::<f32>(&y),
        p_out: out,
        rows: rows as u32,
        width: width as u32,
        x_stride: width as i64,
        y_stride: width as i64,
        out_stride: width as i64,
        activation: 5,
        lane_bits: 4,
        column_step: 64,
        ..Zeroable::zeroed()
    };
    // Rows of four, because errors of the tails are small beside the rest.
    judge(machine, [1, 1, 1], bytes_of(&args), quantum, &vec![(out, gate::forward(&x, &y, Activation::GeluErf), 4)])
}

#[test]
fn gelu_erf__every_seeded_mistake_is_caught() {
    let kernel = find("gate", &[("dtype", "f32"), ("vec", "4")]).expect("every variant");
    let mutants: &[Mutant] = &[
        // Each number of the approximation, off by a few of its last hexadecimal digits.
        ("0f3D16FA5D", "0f3D17FA5D", 0, Seen::WrongResult),
        ("0fBE1F0804", "0fBE1F1804", 0, Seen::WrongResult),
        ("0f3E44CF3A", "0f3E44E03A", 0, Seen::WrongResult),
        ("0fBD30AFE7", "0fBD30FFE7", 0, Seen::WrongResult),
        ("0f3DFD0B53", "0f3DFD2B53", 0, Seen::WrongResult),
        ("0f3DD1C26F", "0f3DD1E26F", 0, Seen::WrongResult),
        ("0f3DFA34BB", "0f3DFA54BB", 0, Seen::WrongResult),
        ("0f3DF849E2", "0f3DF879E2", 0, Seen::WrongResult),
        ("0f3E9BA5E3", "0f3E9BB5E3", 0, Seen::WrongResult),
        ("0fBF38AA3B", "0fBF38BA3B", 0, Seen::WrongResult),
        // Sides.
        ("abs.f32 %near, %x2;", "mov.f32 %near, %x2;", 0, Seen::WrongResult),
        ("selp.f32 %u, %u, %sum, %is_below;", "selp.f32 %u, %sum, %u, %is_below;", 0, Seen::WrongResult),
        ("setp.eq.u32 %is_code, %act_code, 5;", "setp.eq.u32 %is_code, %act_code, 6;", 0, Seen::WrongResult),
    ];
    every_one_is_caught(kernel, activated, mutants);
}
