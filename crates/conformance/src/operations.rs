//! Whole operations whose results are bitwise the same on every run, as the `order` of their kernels' contracts says: what
//! instructions cannot show, as the order of a look-back or the shape of a reduction, shows here.

use crate::{Result, device::Runner, examine::Hash, inputs::mix};
use half::bf16;
use lookback_attention as attention;
use lookback_decode as decode;
use lookback_device::{
    DType, DeviceInfo, Element,
    cudarc::driver::{CudaSlice, DeviceRepr},
    driver, memory,
};
use lookback_linear as linear;
use lookback_nn::{Param, gemm, rms_norm};
use lookback_scan as scan;

/// One operation of one shape.
pub struct Operation {
    /// What it is called in a record.
    pub name: &'static str,
    /// The kernels that it launches; what they use decides how far its results are fixed.
    pub kernels: &'static [&'static str],
    run: fn(&Runner, &DeviceInfo) -> Result<Vec<Vec<u8>>>,
}

/// What an operation gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// A hash for each output.
    pub hashes: Vec<u64>,
    /// The first bytes of each output.
    pub heads: Vec<Vec<u8>>,
}

/// Bytes of an output that a record keeps.
const HEAD: usize = 32;

impl Operation {
    /// Runs it. Plans are made for `plan_for`, which may be another device than the one that runs them: then both choose the same
    /// kernels and grids.
    ///
    /// # Errors
    /// Those of the plan and of the device.
    pub fn run(&self, runner: &Runner, plan_for: &DeviceInfo) -> Result<Produced> {
        let outputs = (self.run)(runner, plan_for)?;
        let hash = |bytes: &Vec<u8>| {
            let mut hash = Hash::default();
            bytes.chunks(8).for_each(|word| hash.add(crate::device::little_endian(word)));
            hash.value()
        };
        Ok(Produced {
            hashes: outputs.iter().map(hash).collect(),
            heads: outputs.iter().map(|bytes| bytes[..bytes.len().min(HEAD)].to_vec()).collect(),
        })
    }
}

/// All of them.
pub const OPERATIONS: [Operation; 8] = [
    Operation { name: "gated_scan f32 2x300x64", kernels: &["gated_scan_fwd"], run: gated_scan },
    Operation {
        name: "linear_attention f32 scalar decay 1x200x2x64x64",
        kernels: &["linear_attention_recurrent"],
        run: linear_attention::<f32>,
    },
    Operation {
        name: "linear_attention bf16 scalar decay 1x200x2x64x64",
        kernels: &["linear_attention_chain"],
        run: linear_attention::<bf16>,
    },
    Operation { name: "attention bf16 causal 1x190x4x64", kernels: &["attention_fwd"], run: causal_attention },
    Operation {
        name: "lean_decode bf16 3x8/2x64, up to 700 keys",
        kernels: &["lean_decode", "lean_plan"],
        run: lean_decode,
    },
    Operation { name: "rms_norm f32 33x520", kernels: &["rms_norm"], run: norm },
    Operation { name: "gemm f32 70x96x130", kernels: &["gemm"], run: product::<f32> },
    Operation { name: "gemm bf16 70x96x136", kernels: &["gemm"], run: product::<bf16> },
];

/// Elements between -1 and 1, by a seed.
fn values<T: Element>(runner: &Runner, seed: u64, count: usize) -> Result<CudaSlice<T>> {
    let value = |i: usize| (mix(seed << 32 | i as u64) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    upload(runner, (0..count).map(|i| T::from_f64(value(i))).collect())
}

fn upload<T: DeviceRepr>(runner: &Runner, host: Vec<T>) -> Result<CudaSlice<T>> {
    Ok(runner.stream().clone_htod(&host).map_err(|e| driver(e, "upload"))?)
}

fn zeros<T: Element>(runner: &Runner, count: usize) -> Result<CudaSlice<T>> {
    Ok(memory::allocate(runner.stream(), count as u64, "output")?)
}

fn bytes<T: Element>(runner: &Runner, slice: &CudaSlice<T>) -> Result<Vec<u8>> {
    let host = runner.stream().clone_dtoh(slice).map_err(|e| driver(e, "download"))?;
    Ok(bytemuck::cast_slice(&host).to_vec())
}

fn gated_scan(runner: &Runner, info: &DeviceInfo) -> Result<Vec<Vec<u8>>> {
    let (batch, len, channels) = (2, 300, 64);
    let all = batch * len * channels;
    let (a, b) = (values::<f32>(runner, 1, all)?, values::<f32>(runner, 2, all)?);
    let shape = scan::Shape::dense(batch, len, channels);
    let options = scan::Options { split: 40, ..scan::Options::new::<f32>(scan::Source::Tensor, &shape) };
    let plan = scan::Plan::new(&shape, &options, info)?;
    let mut workspace = scan::Workspace::new(runner.stream(), plan.workspace_bytes())?;
    let (mut h, mut last) = (zeros::<f32>(runner, all)?, zeros::<f32>(runner, batch * channels)?);
    let outputs = scan::Outputs { h: &mut h, last: Some(&mut last) };
    plan.run(runner.stream(), &scan::Inputs::of(scan::Gates::tensor(&a, &b)), outputs, &mut workspace)?;
    Ok(vec![bytes(runner, &h)?, bytes(runner, &last)?])
}

fn linear_attention<T: Element>(runner: &Runner, info: &DeviceInfo) -> Result<Vec<Vec<u8>>> {
    let (len, heads, dim) = (200, 2, 64);
    let tensor = |seed| values::<T>(runner, seed, len * heads * dim);
    let (q, k, v) = (tensor(3)?, tensor(4)?, tensor(5)?);
    // Logarithms of decays: small and negative.
    let decays = (0..len * heads).map(|i| -((mix(6 << 32 | i as u64) % 1000) as f32) / 8192.0).collect();
    let g = upload::<f32>(runner, decays)?;
    let shape = linear::Shape::dense(1, len, heads, dim, dim);
    let options = linear::Options { decay: linear::Decay::Scalar, ..linear::Options::new::<T>(&shape) };
    let plan = linear::Plan::new(&shape, &options, info)?;
    let mut workspace = memory::allocate::<u8>(runner.stream(), plan.workspace_bytes(), "workspace")?;
    let (mut o, mut state) = (zeros::<T>(runner, len * heads * dim)?, zeros::<f32>(runner, heads * dim * dim)?);
    let inputs = linear::Inputs { g: Some(&g), ..linear::Inputs::of(&q, &k, &v) };
    let outputs = linear::Outputs {
        o: &mut o,
        state: Some(&mut state),
        reverse_state: None,
        normalizer: None,
        denominator: None,
    };
    plan.run(runner.stream(), &inputs, outputs, Some(&mut workspace))?;
    Ok(vec![bytes(runner, &o)?, bytes(runner, &state)?])
}

fn causal_attention(runner: &Runner, info: &DeviceInfo) -> Result<Vec<Vec<u8>>> {
    let (len, heads, key_heads, dim) = (190, 4, 2, 64);
    let q = values::<bf16>(runner, 7, len * heads * dim)?;
    let (k, v) = (values::<bf16>(runner, 8, len * key_heads * dim)?, values::<bf16>(runner, 9, len * key_heads * dim)?);
    let shape = attention::Shape { key_heads, ..attention::Shape::dense(1, len, len, heads, dim) };
    let options = attention::Options { mask: attention::Mask::Causal, ..attention::Options::new::<bf16>(&shape) };
    let plan = attention::Plan::new(&shape, &options, info)?;
    let (mut o, mut lse) = (zeros::<bf16>(runner, len * heads * dim)?, zeros::<f32>(runner, len * heads)?);
    let outputs = attention::Outputs::with_lse(&mut o, &mut lse);
    plan.run(runner.stream(), &attention::Inputs::of(&q, &k, &v), outputs)?;
    Ok(vec![bytes(runner, &o)?, bytes(runner, &lse)?])
}

fn lean_decode(runner: &Runner, info: &DeviceInfo) -> Result<Vec<Vec<u8>>> {
    let (batch, heads, key_heads, dim, capacity) = (3, 8, 2, 64, 700);
    let q = values::<bf16>(runner, 10, batch * heads * dim)?;
    let cache = |seed| values::<bf16>(runner, seed, batch * capacity * key_heads * dim);
    let (k, v) = (cache(11)?, cache(12)?);
    let kv_len = upload(runner, vec![700i32, 33, 512])?;
    let shape = decode::Shape::new(batch, heads, key_heads, dim, decode::Cache::Dense { capacity });
    let plan = decode::Plan::new(&shape, &decode::Options::new::<bf16>(&shape), info)?;
    let mut schedule = decode::Schedule::new(runner.stream(), plan.schedule_bytes())?;
    let mut workspace = decode::Workspace::new(runner.stream(), plan.workspace_bytes())?;
    let (mut o, mut lse) = (zeros::<bf16>(runner, batch * heads * dim)?, zeros::<f32>(runner, batch * heads)?);
    let lengths = decode::Lengths::dense(&kv_len);
    plan.schedule(runner.stream(), &lengths, &mut schedule)?;
    let outputs = decode::Outputs::with_lse(&mut o, &mut lse);
    plan.run(runner.stream(), &decode::Inputs::of(&q, &k, &v, lengths), outputs, &schedule, &mut workspace)?;
    plan.status(runner.stream(), &mut schedule)?;
    Ok(vec![bytes(runner, &o)?, bytes(runner, &lse)?])
}

fn norm(runner: &Runner, info: &DeviceInfo) -> Result<Vec<Vec<u8>>> {
    let (rows, width) = (33, 520);
    let (x, weight) = (values::<f32>(runner, 13, rows * width)?, values::<f32>(runner, 14, width)?);
    let options = rms_norm::Options { dtype: DType::F32, eps: 1e-6 };
    let plan = rms_norm::Plan::new(&rms_norm::Shape::dense(rows, width), &options, info)?;
    let (mut out, mut rstd) = (zeros::<f32>(runner, rows * width)?, zeros::<f32>(runner, rows)?);
    plan.run(runner.stream(), &x, Param::Same(&weight), &mut out, Some(&mut rstd))?;
    Ok(vec![bytes(runner, &out)?, bytes(runner, &rstd)?])
}

fn product<T: Element>(runner: &Runner, info: &DeviceInfo) -> Result<Vec<Vec<u8>>> {
    // The f32 kernel takes any depth; the tensor cores' rows are 16 bytes.
    let (m, n, k) = (70, 96, if T::DTYPE == DType::F32 { 130 } else { 136 });
    let (a, b) = (values::<T>(runner, 15, m * k)?, values::<T>(runner, 16, n * k)?);
    let plan = gemm::Plan::new(&gemm::Shape::linear(m, n, k), &gemm::Options::new(T::DTYPE), info)?;
    let mut c = zeros::<T>(runner, m * n)?;
    plan.run(runner.stream(), &a, &b, Param::None, &mut c)?;
    Ok(vec![bytes(runner, &c)?])
}
