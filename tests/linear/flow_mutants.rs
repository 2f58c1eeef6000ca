//! The conservation kernels of Flow-Attention with one mistake each: every one must be caught, by the sanitizer or by the result.

use super::chain_mutants::Machine;
use bytemuck::{Pod, Zeroable, bytes_of};
use lookback_emulator::launch::{FaultKind, LaunchConfig, Options, launch};
use lookback_kernels::{
    args::{FlowCausal, FlowCausalBwd, FlowNormal, FlowNormalBwd},
    find,
};
use lookback_reference::flow_attention::{self as reference, Flow};
use lookback_suite::{
    measure::{Gate, errors},
    random::Random,
};

/// How a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Race,
    WrongResult,
    /// A wrong result or any fault.
    Something,
}

/// Rows that end inside a lane's second entry; more tokens than runs, and a last run that is short.
const FLOW: Flow<'_> = Flow {
    batch: 1,
    heads: 1,
    queries: 38,
    keys: 38,
    key_dim: 40,
    value_dim: 6,
    causal: true,
    clamp: Some(1.05),
    extra_eps: 0.5,
    mapped: false,
    cu_seqlens: None,
    cu_seqlens_k: None,
};
const KEY_TILE: usize = 64;

struct Data {
    flow: Flow<'static>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_out: Vec<f64>,
}

/// What a forward kernel leaves.
#[derive(Debug)]
struct Left {
    flow_q: Vec<f64>,
    flow_k: Vec<f64>,
    query_scalars: Vec<f64>,
    key_scalars: Vec<f64>,
    vectors: Vec<f64>,
}

fn go<A: Pod>(machine: &Machine, args: &A) -> Result<(), Seen> {
    let config = LaunchConfig { grid: [1, 1, 1], block: machine.kernel.block, dynamic_shared: 0, cooperative: false };
    let mut options = Options::default();
    options.quantum = 50;
    options.instruction_limit = 20_000_000;
    let done = launch(&machine.program, &machine.memory, &config, bytes_of(args), &options);
    done.map(drop).map_err(|fault| {
        let race = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialized);
        if race { Seen::Race } else { Seen::Something }
    })
}

impl Data {
    fn new(causal: bool) -> Self {
        // The flow out of a key is about 1, or 38 / 21, and the extra; the bound stops some.
        let (keys, clamp) = if causal { (38, 1.05) } else { (21, 2.25) };
        let flow = Flow { causal, keys, clamp: Some(clamp), ..FLOW };
        let mut random = Random::new(5);
        let [q, d_out] = [flow.key_dim, flow.value_dim].map(|width| random.normals::<f32>(flow.queries * width));
        let [k, v] = [flow.key_dim, flow.value_dim].map(|width| random.normals::<f32>(flow.keys * width));
        Self { flow, q, k, v, d_out }
    }

    /// `sum over the keys that query i sees, or the queries that see key j, of left x right . other`, a row for each of `out`.
    fn pairs(&self, keys_out: bool, weight: impl Fn(usize, usize) -> f64, rows: &[f64], width: usize) -> Vec<f64> {
        let (outer, inner) =
            if keys_out { (self.flow.keys, self.flow.queries) } else { (self.flow.queries, self.flow.keys) };
        let mut out = vec![0.0; outer * width];
        for a in 0..outer {
            for b in 0..inner {
                let (i, j) = if keys_out { (b, a) } else { (a, b) };
                if !self.flow.causal || j <= i {
                    (0..width).for_each(|d| out[a * width + d] += weight(i, j) * rows[b * width + d]);
                }
            }
        }
        out
    }

    fn forward(&self, machine: &Machine) -> Result<Left, Seen> {
        let Flow { queries, keys, key_dim, .. } = self.flow;
        let poison = |len: usize| machine.place::<f32>(&vec![f64::NAN; len]);
        let (q_len, k_len) = (queries * key_dim, keys * key_dim);
        let vectors_len = if self.flow.causal { 64 * KEY_TILE } else { 4 * KEY_TILE };
        let (p_flow_q, p_flow_k) = (poison(q_len), poison(k_len));
        let (p_query_scalars, p_key_scalars) = (poison(4 * queries), poison(6 * keys));
        let (p_vectors, p_zeros) = (poison(vectors_len), poison(key_dim));
        let (p_q, p_k) = (machine.place::<f32>(&self.q), machine.place::<f32>(&self.k));
        macro_rules! arguments {
            ($kernel:ident, $($name:ident: $value:expr),*) => {
                $kernel {
                    p_q,
                    p_k,
                    p_flow_q,
                    p_flow_k,
                    p_query_scalars,
                    p_key_scalars,
                    p_vectors,
                    q_stride_token: key_dim as i64,
                    k_stride_token: key_dim as i64,
                    sequences: 1,
                    heads: 1,
                    key_dim: key_dim as u32,
                    eps: 1e-6,
                    extra_eps: self.flow.extra_eps as f32,
                    clamp: self.flow.clamp.unwrap_or(0.0) as f32,
                    factor: 1.0,
                    $($name: $value,)*
                    ..Zeroable::zeroed()
                }
            };
        }
        match self.flow.causal {
            true => go(machine, &arguments!(FlowCausal, rows: queries as i64, seq_len: queries as u32))?,
            false => go(
                machine,
                &arguments!(FlowNormal, p_zeros: p_zeros, query_rows: queries as i64, key_rows: keys as i64,
                    queries: queries as u32, keys: keys as u32, value_dim: self.flow.value_dim as u32),
            )?,
        }
        let read = |pointer, len| machine.read::<f32>(pointer, len);
        Ok(Left {
            flow_q: read(p_flow_q, q_len),
            flow_k: read(p_flow_k, k_len),
            query_scalars: read(p_query_scalars, 4 * queries),
            key_scalars: read(p_key_scalars, 6 * keys),
            vectors: read(p_vectors, vectors_len),
        })
    }

    fn dot(a: &[f64], i: usize, b: &[f64], j: usize, width: usize) -> f64 {
        (0..width).map(|d| a[i * width + d] * b[j * width + d]).sum()
    }

    /// What a mistake in the forward kernel shows as.
    fn check(&self, machine: &Machine) -> Option<Seen> {
        let Flow { key_dim, value_dim, .. } = self.flow;
        let left = match self.forward(machine) {
            Ok(left) => left,
            Err(seen) => return Some(seen),
        };
        let weight = |i, j| Self::dot(&left.flow_q, i, &left.flow_k, j, key_dim);
        let out = self.pairs(false, weight, &self.v, value_dim);
        let want = reference::forward(&self.flow, &self.q, &self.k, &self.v);
        let right = errors(&out, &want, value_dim).is_ok_and(|e| e.within(Gate::F32));
        (!right).then_some(Seen::WrongResult)
    }

    /// The same for the backward kernel.
    fn check_backward(&self, left: &Left, machine: &Machine) -> Option<Seen> {
        let Flow { queries, keys, key_dim, value_dim, .. } = self.flow;
        let weight = |i, j| Self::dot(&self.d_out, i, &self.v, j, value_dim);
        let d_flow_q = self.pairs(false, weight, &left.flow_k, key_dim);
        let d_flow_k = self.pairs(true, weight, &left.flow_q, key_dim);
        let place = |values: &[f64]| machine.place::<f32>(values);
        let poison = |len: usize| place(&vec![f64::NAN; len]);
        let (p_dq, p_dk) = (poison(queries * key_dim), poison(keys * key_dim));
        macro_rules! arguments {
            ($kernel:ident, $($name:ident: $value:expr),*) => {
                $kernel {
                    p_q: place(&self.q),
                    p_k: place(&self.k),
                    p_d_flow_q: place(&d_flow_q),
                    p_d_flow_k: place(&d_flow_k),
                    p_query_scalars: place(&left.query_scalars),
                    p_key_scalars: place(&left.key_scalars),
                    p_vectors: place(&left.vectors),
                    p_dq,
                    p_dk,
                    q_stride_token: key_dim as i64,
                    k_stride_token: key_dim as i64,
                    dq_stride_token: key_dim as i64,
                    dk_stride_token: key_dim as i64,
                    sequences: 1,
                    heads: 1,
                    key_dim: key_dim as u32,
                    eps: 1e-6,
                    extra_eps: self.flow.extra_eps as f32,
                    clamp: self.flow.clamp.unwrap_or(0.0) as f32,
                    $($name: $value,)*
                    ..Zeroable::zeroed()
                }
            };
        }
        let done = match self.flow.causal {
            true => go(machine, &arguments!(FlowCausalBwd, rows: queries as i64, seq_len: queries as u32)),
            false => go(
                machine,
                &arguments!(FlowNormalBwd, query_rows: queries as i64, key_rows: keys as i64,
                    queries: queries as u32, keys: keys as u32),
            ),
        };
        if let Err(seen) = done {
            return Some(seen);
        }
        let want = reference::backward(&self.flow, &self.q, &self.k, &self.v, &self.d_out);
        let close = |pointer, want: &[f64]| {
            errors(&machine.read::<f32>(pointer, want.len()), want, key_dim).is_ok_and(|e| e.within(Gate::F32))
        };
        (!(close(p_dq, &want.dq) && close(p_dk, &want.dk))).then_some(Seen::WrongResult)
    }
}

/// A text that stands in the kernel, what it becomes, which occurrence, and how that must show.
type Mutant = (&'static str, &'static str, usize, Seen);

fn caught(name: &'static str, mutants: &[Mutant], run: impl Fn(&Machine) -> Option<Seen>) {
    let kernel = find(name, &[("key_tile", "64"), ("dtype", "f32")]).expect("every variant");
    assert_eq!(run(&Machine::new(kernel, ".visible", ".visible", 0)), None, "{name} itself");
    for (from, to, nth, want) in mutants {
        let seen = run(&Machine::new(kernel, from, to, *nth));
        let fits = seen.is_some_and(|seen| *want == Seen::Something || seen == *want);
        assert!(fits, "{name}: {nth}th `{from}` -> `{to}`: wanted {want:?}, saw {seen:?}");
    }
}

const BARRIER: &str = "bar.sync 0;";

#[test]
fn flow_causal_every_seeded_mistake_is_caught() {
    let data = Data::new(true);
    let mutants: [Mutant; 11] = [
        (BARRIER, "", 0, Seen::Race),
        (BARRIER, "", 1, Seen::Race),
        (BARRIER, "", 2, Seen::Race),
        (BARRIER, "", 4, Seen::Race),
        ("add.f32 %in, %in, %extra;", "", 0, Seen::WrongResult),
        ("add.f32 %s, %s, %extra;", "", 0, Seen::WrongResult),
        ("div.rn.f32 %s, %s, %n;", "", 0, Seen::WrongResult),
        ("min.NaN.f32 %s, %s, %clamp;", "", 1, Seen::WrongResult),
        ("mul.f32 %c, %c, %n;", "", 0, Seen::WrongResult),
        ("ld.global.f32 %q1, [%at+128];", "ld.global.f32 %q1, [%at+124];", 1, Seen::WrongResult),
        ("min.u32 %t_range, %t_range, %t0;", "", 0, Seen::Something),
    ];
    caught("flow_causal", &mutants, |machine| data.check(machine));
}

#[test]
fn flow_normal_every_seeded_mistake_is_caught() {
    let data = Data::new(false);
    let mutants: [Mutant; 8] = [
        (BARRIER, "", 0, Seen::Race),
        (BARRIER, "", 1, Seen::Race),
        (BARRIER, "", 4, Seen::Race),
        ("add.f32 %out, %out, %extra;", "", 0, Seen::WrongResult),
        ("mul.f32 %x, %x, %ratio;", "", 0, Seen::WrongResult),
        ("mul.f32 %c, %c, %count;", "", 0, Seen::WrongResult),
        ("fma.rn.f32 %sum, %sum, %old, %part_sum;", "mov.f32 %sum, %part_sum;", 0, Seen::WrongResult),
        ("min.NaN.f32 %s, %s, %clamp;", "", 0, Seen::WrongResult),
    ];
    caught("flow_normal", &mutants, |machine| data.check(machine));
}

#[test]
fn flow_causal_bwd_every_seeded_mistake_is_caught() {
    let data = Data::new(true);
    let forward = find("flow_causal", &[("key_tile", "64"), ("dtype", "f32")]).expect("every variant");
    let left = data.forward(&Machine::new(forward, ".visible", ".visible", 0)).expect("runs");
    let mutants: [Mutant; 10] = [
        (BARRIER, "", 0, Seen::Race),
        (BARRIER, "", 1, Seen::Race),
        (BARRIER, "", 2, Seen::Race),
        (BARRIER, "", 3, Seen::Race),
        ("selp.f32 %x, 0f00000000, %x, %is_out;", "", 0, Seen::WrongResult),
        ("mul.f32 %carry, %carry, %link;", "", 1, Seen::WrongResult),
        ("fma.rn.f32 %carry, %carry, %link, %own;", "add.f32 %carry, %carry, %own;", 0, Seen::WrongResult),
        ("neg.f32 %d_out, %d_out;", "", 0, Seen::WrongResult),
        ("div.rn.f32 %by_sink, %x, %n;", "mov.f32 %by_sink, %x;", 0, Seen::WrongResult),
        ("mul.f32 %d0, %d0, %slope;", "", 1, Seen::WrongResult),
    ];
    caught("flow_causal_bwd", &mutants, |machine| data.check_backward(&left, machine));
}

#[test]
fn flow_normal_bwd_every_seeded_mistake_is_caught() {
    let data = Data::new(false);
    let forward = find("flow_normal", &[("key_tile", "64"), ("dtype", "f32")]).expect("every variant");
    let left = data.forward(&Machine::new(forward, ".visible", ".visible", 0)).expect("runs");
    let mutants: [Mutant; 9] = [
        (BARRIER, "", 0, Seen::Race),
        (BARRIER, "", 1, Seen::Race),
        (BARRIER, "", 2, Seen::Race),
        (BARRIER, "", 3, Seen::Race),
        (BARRIER, "", 4, Seen::Race),
        ("sub.f32 %x, %dc, %mean;", "mov.f32 %x, %dc;", 0, Seen::WrongResult),
        ("mul.f32 %by_sink, %x, %ratio;", "mov.f32 %by_sink, %x;", 0, Seen::WrongResult),
        ("selp.f32 %by_flow, 0f00000000, %x, %is_out;", "mov.f32 %by_flow, %x;", 0, Seen::WrongResult),
        ("fma.rn.f32 %d_in, %du, %a, %d_in;", "", 0, Seen::WrongResult),
    ];
    caught("flow_normal_bwd", &mutants, |machine| data.check_backward(&left, machine));
}
