//! The kernels around the walks of a backward pass with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::chain_mutants::{Machine, Seen};
use bytemuck::{Pod, Zeroable, bytes_of};
use lookback_emulator::launch::{FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::{
    Kernel,
    args::{BonusBwd, DecayBwd, PrefixBwd},
    find,
};
use lookback_suite::{
    measure::{Gate, errors},
    random::Random,
};

/// Warps that run long, and warps that take turns.
fn schedules() -> [Options; 2] {
    [20_000, 7].map(|quantum| {
        let mut options = Options::default();
        options.quantum = quantum;
        options.instruction_limit = 4_000_000;
        options
    })
}

/// A launch of one block, and what its output should be.
struct Launch<A> {
    args: A,
    out: u64,
    want: Vec<f64>,
}

fn run<A: Pod>(
    kernel: &'static Kernel,
    (from, to, nth): (&str, &str, usize),
    options: &Options,
    prepare: &dyn Fn(&Machine) -> Launch<A>,
) -> Option<Seen> {
    let machine = Machine::new(kernel, from, to, nth);
    let Launch { args, out, want } = prepare(&machine);
    let config = LaunchConfig { grid: [1, 1, 1], block: kernel.block, dynamic_shared: 0, cooperative: false };
    if let Err(fault) = launch(&machine.program, &machine.memory, &config, bytes_of(&args), options) {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        return Some(if race { Seen::Race } else { Seen::Something });
    }
    let right = errors(&machine.read::<f32>(out, want.len()), &want, 1).is_ok_and(|e| e.within(Gate::F32));
    (!right).then_some(Seen::WrongResult)
}

/// The kernel itself is right, and every mistake is seen on at least one schedule, races as such.
fn check<A: Pod>(
    kernel: &'static Kernel,
    mutants: &[(&str, &str, usize, Seen)],
    prepare: &dyn Fn(&Machine) -> Launch<A>,
) {
    for options in &schedules() {
        assert_eq!(run(kernel, (".visible", ".visible", 0), options, prepare), None, "{} itself", kernel.name);
    }
    for (from, to, nth, expected) in mutants {
        let seen = schedules().map(|options| run(kernel, (from, to, *nth), &options, prepare));
        let caught = seen.iter().flatten().any(|seen| *expected == Seen::Something || seen == expected);
        assert!(caught, "{}: `{from}` ({nth}) as `{to}`: {seen:?}", kernel.name);
    }
}

const TOKENS: usize = 150;
const KEYS: usize = 40;

/// Three tiles with cuts, a final state, exclusive reads; one head.
fn decays(machine: &Machine) -> Launch<DecayBwd> {
    let mut random = Random::new(5);
    let [mut dq, dk, q, k] = [(); 4].map(|()| random.normals::<f32>(TOKENS * KEYS));
    let [s, ds] = [(); 2].map(|()| random.normals::<f32>(KEYS * 8));
    let mut flags = vec![0_u8; TOKENS];
    [20, 63, 64, 127].iter().for_each(|t| flags[*t] = 1);
    // What nothing is left of is read as nothing.
    (0..TOKENS * KEYS).filter(|i| flags[i / KEYS] == 1).for_each(|i| dq[i] = 0.0);
    let row = |x: &[f64], y: &[f64], t: usize| (0..KEYS).map(|c| x[t * KEYS + c] * y[t * KEYS + c]).sum::<f64>();
    let mut carry = 0.5 * s.iter().zip(&ds).map(|(s, ds)| s * ds).sum::<f64>();
    let mut want = vec![0.0; TOKENS];
    for t in (0..TOKENS).rev() {
        carry -= row(&k, &dk, t);
        want[t] = if flags[t] == 1 { 0.0 } else { carry };
        carry = if flags[t] == 1 { 0.0 } else { carry + row(&q, &dq, t) };
    }
    let out = machine.place::<f32>(&vec![f64::NAN; TOKENS]);
    let args = DecayBwd {
        p_dq: machine.place::<f32>(&dq),
        p_dk: machine.place::<f32>(&dk),
        p_q: machine.place::<f32>(&q),
        p_k: machine.place::<f32>(&k),
        p_flags: machine.place_bytes(&flags),
        p_s_final: machine.place::<f32>(&s),
        p_ds_final: machine.place::<f32>(&ds),
        p_dg: out,
        seq_len: TOKENS as u32,
        heads: 1,
        key_dim: KEYS as u32,
        state_width: 8,
        q_group: 1,
        k_group: 1,
        split: 1,
        flag_mask: 1,
        flag_mask_reverse: 2,
        exclusive: 1,
        state_factor: 0.5,
        dq_stride_token: KEYS as i64,
        dk_stride_token: KEYS as i64,
        q_stride_token: KEYS as i64,
        k_stride_token: KEYS as i64,
        dg_stride_token: 1,
        ..Zeroable::zeroed()
    };
    Launch { args, out, want }
}

#[test]
fn backward_every_seeded_mistake_in_gradients_of_decays_is_caught() {
    let kernel = find("decay_bwd", &[("dtype", "f32"), ("decay", "scalar")]).expect("every variant is built");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        // The final state's share, and the tiles' sums.
        ("bar.sync 0;", "", 0, Seen::Race),
        ("bar.sync 0;", "", 1, Seen::Race),
        ("mov.u32 %turn, 1;", "mov.u32 %turn, 0;", 0, Seen::Race),
        ("xor.b32 %turn, %turn, 1;", "xor.b32 %turn, %turn, 0;", 0, Seen::Race),
        // Signs, order, ends, cuts.
        ("neg.f32 %k0, %k0;", "", 3, Seen::WrongResult),
        ("setp.ne.u32 %is_any_cut, %any, 0;", "setp.ne.u32 %is_any_cut, %any, 1;", 2, Seen::WrongResult),
        ("@%is_cut5 mov.f64 %mine, 0d0000000000000000;", "", 0, Seen::WrongResult),
        ("mul.f64 %carry, %carry, %factor_wide;", "", 0, Seen::WrongResult),
        ("mad.lo.s64 %p_k, %k_step, 64, %p_k;", "mad.lo.s64 %p_k, %k_step, 56, %p_k;", 0, Seen::Something),
        ("@%is_exclusive sub.u64 %p_q, %p_q, %q_step;", "", 0, Seen::Something),
        ("@%is_first mov.pred %is_read, 0;", "", 0, Seen::Something),
        ("setp.lt.u32 %is_in6, %i_token, %n_tokens;", "setp.le.u32 %is_in6, %i_token, %n_tokens;", 0, Seen::Something),
        ("setp.lt.u32 %is_part, %channel, %n_keys;", "mov.pred %is_part, 1;", 0, Seen::Something),
    ];
    check(kernel, mutants, &decays);
}

#[test]
fn backward_every_seeded_mistake_in_gradients_of_prefixes_is_caught() {
    let (tokens, prefix, keys, values) = (45, 37, 40, 50);
    let prepare = |machine: &Machine| {
        let mut random = Random::new(6);
        let (dp, dz) = (random.normals::<f32>(keys * values), random.normals::<f32>(keys));
        let (k, v) = (random.normals::<f32>(tokens * keys), random.normals::<f32>(tokens * values));
        let mut want = vec![f64::NAN; tokens * keys];
        for (t, row) in want.chunks_mut(keys).enumerate().take(prefix) {
            for (c, out) in row.iter_mut().enumerate() {
                *out = dz[c] + (0..values).map(|j| dp[c * values + j] * v[t * values + j]).sum::<f64>();
            }
        }
        let out = machine.place::<f32>(&vec![f64::NAN; tokens * keys]);
        let args = PrefixBwd {
            p_dp: machine.place::<f32>(&dp),
            p_dz: machine.place::<f32>(&dz),
            p_k: machine.place::<f32>(&k),
            p_v: machine.place::<f32>(&v),
            p_prefix_len: machine.place_bytes(&(prefix as i32).to_le_bytes()),
            p_dk: out,
            p_dv: machine.place::<f32>(&vec![f64::NAN; tokens * values]),
            seq_len: tokens as u32,
            heads: 1,
            key_dim: keys as u32,
            value_dim: values as u32,
            k_group: 1,
            k_stride_token: keys as i64,
            v_stride_token: values as i64,
            ..Zeroable::zeroed()
        };
        Launch { args, out, want }
    };
    let kernel = find("prefix_bwd", &[("dtype", "f32"), ("rows", "same")]).expect("every variant is built");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        ("bar.sync 0;", "", 0, Seen::Race),
        ("bar.sync 0;", "", 1, Seen::Race),
        ("@%has_sums ld.global.nc.f32 %w, [%p_row];", "", 0, Seen::WrongResult),
        ("min.u32 %n_here, %n_here, 16;", "mov.u32 %n_here, 16;", 0, Seen::Something),
        ("fma.rn.f32 %sum7, %w, %x3, %sum7;", "", 0, Seen::WrongResult),
    ];
    check(kernel, mutants, &prepare);
}

#[test]
fn backward_every_seeded_mistake_in_gradients_of_a_bonus_is_caught() {
    let (tokens, keys) = (77, 20);
    let prepare = |machine: &Machine| {
        let mut random = Random::new(7);
        let (q, k) = (random.normals::<f32>(tokens * keys), random.normals::<f32>(tokens * keys));
        let weight = random.normals::<f32>(tokens);
        let of = |c: usize| (0..tokens).map(|t| weight[t] * q[t * keys + c] * k[t * keys + c]).sum::<f64>();
        let out = machine.place::<f32>(&vec![f64::NAN; keys]);
        let args = BonusBwd {
            p_weight: machine.place::<f32>(&weight),
            p_q: machine.place::<f32>(&q),
            p_k: machine.place::<f32>(&k),
            p_du: out,
            batch: 1,
            seq_len: tokens as u32,
            heads: 1,
            key_dim: keys as u32,
            q_group: 1,
            k_group: 1,
            q_stride_token: keys as i64,
            k_stride_token: keys as i64,
            ..Zeroable::zeroed()
        };
        Launch { args, out, want: (0..keys).map(of).collect() }
    };
    let kernel = find("bonus_bwd", &[("dtype", "f32")]).expect("every variant is built");
    let mutants: &[(&str, &str, usize, Seen)] = &[
        ("bar.sync 0;", "", 0, Seen::Race),
        ("setp.lt.u32 %is_in, %i_token, %n_tokens;", "setp.le.u32 %is_in, %i_token, %n_tokens;", 1, Seen::Something),
        ("add.f64 %sum, %sum, %product;", "", 6, Seen::WrongResult),
        ("setp.lt.u32 %is_channel, %i_channel, %n_keys;", "mov.pred %is_channel, 1;", 0, Seen::Something),
    ];
    check(kernel, mutants, &prepare);
}
