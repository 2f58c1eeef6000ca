//! The linear attention family: one case for each path and pass.

use crate::{Case, ROTATION_BYTES, filled};
use half::bf16;
use lookback_device::{DeviceInfo, Element, cudarc::driver::CudaSlice};
use lookback_linear::{
    BackwardInputs, BackwardOutputs, BackwardPlan, Decay, Inputs, Options, Outputs, Path, Plan, Shape, step,
};
use lookback_suite::device;

/// `heads` of `dim` keys and values over `batch` rows of `tokens`.
pub fn cases(info: &DeviceInfo, [batch, tokens, heads, dim]: [usize; 4]) -> Vec<Case> {
    let shape = Shape::dense(batch, tokens, heads, dim, dim);
    // As in Mamba-2: one group of keys of 128 for all heads, values of 64.
    let grouped = Shape { query_heads: 1, key_heads: 1, ..Shape::dense(batch, tokens, 2 * heads, 128, 64) };
    let with = |decay, path| Options { decay, path, ..Options::new::<bf16>(&shape) };
    vec![
        forward(info, "linear_attention", &shape, &with(Decay::None, Path::Chain)),
        forward(info, "linear_attention scalar", &shape, &with(Decay::Scalar, Path::Chain)),
        forward(info, "linear_attention scalar, groups", &grouped, &with(Decay::Scalar, Path::Chain)),
        forward(info, "linear_attention vector", &shape, &with(Decay::Vector, Path::Chain)),
        forward(info, "linear_attention segments", &Shape { batch: 1, ..shape }, &with(Decay::Scalar, Path::Parallel)),
        backward(info, "linear_attention_backward scalar", &shape, &with(Decay::Scalar, Path::Auto)),
        backward(info, "linear_attention_backward vector", &shape, &with(Decay::Vector, Path::Auto)),
        decode(info, batch * 8, heads, dim),
    ]
}

/// Queries, keys and values with log-decays.
struct Tensors {
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    v: CudaSlice<bf16>,
    g: CudaSlice<f32>,
}

impl Tensors {
    fn new(shape: &Shape, decay: Decay) -> Self {
        let stream = device::stream();
        let rows = shape.batch * shape.seq_len;
        let gates = match decay {
            Decay::None => 1,
            Decay::Head => shape.heads,
            Decay::Scalar => rows * shape.heads,
            Decay::Vector => rows * shape.heads * shape.key_dim,
        };
        Self {
            q: filled(&stream, rows * shape.query_heads * shape.key_dim, 0.5),
            k: filled(&stream, rows * shape.key_heads * shape.key_dim, 0.25),
            v: filled(&stream, rows * shape.heads * shape.value_dim, 0.5),
            g: filled(&stream, gates, -0.05),
        }
    }

    fn inputs(&self, decay: Decay) -> Inputs<'_, bf16> {
        let mut inputs = Inputs::of(&self.q, &self.k, &self.v);
        if decay != Decay::None {
            inputs.g = Some(&self.g);
        }
        inputs
    }
}

fn forward(info: &DeviceInfo, name: &str, shape: &Shape, options: &Options) -> Case {
    let stream = device::stream();
    let decay = options.decay;
    let plan = Plan::new(shape, options, info).expect("a good shape");
    let outputs = shape.batch * shape.seq_len * shape.heads * shape.value_dim;
    let sets = (ROTATION_BYTES / plan.bytes_moved() as usize).max(1);
    let mut tensors: Vec<_> =
        (0..sets).map(|_| (Tensors::new(shape, decay), filled::<bf16>(&stream, outputs, 0.0))).collect();
    let mut workspace = filled_bytes(plan.workspace_bytes());
    let (bytes, flops) = (plan.bytes_moved(), plan.flops());
    let launch = move |i: usize| {
        let (inputs, o) = &mut tensors[i];
        plan.run(&stream, &inputs.inputs(decay), Outputs::of(o), Some(&mut workspace)).expect("launch");
    };
    Case { name: format!("{name} bf16"), bytes, flops, sets, launch: Box::new(launch) }
}

fn backward(info: &DeviceInfo, name: &str, shape: &Shape, options: &Options) -> Case {
    let stream = device::stream();
    let decay = options.decay;
    let plan = BackwardPlan::new(shape, options, info).expect("a good shape");
    let rows = shape.batch * shape.seq_len;
    let (tensors, d_o) =
        (Tensors::new(shape, decay), filled::<bf16>(&stream, rows * shape.heads * shape.value_dim, 1.0));
    let mut gradients = Tensors::new(shape, decay);
    let mut workspace = filled_bytes(plan.workspace_bytes());
    let (bytes, flops) = (plan.bytes_moved(), plan.flops());
    let launch = move |_| {
        let Tensors { q, k, v, g } = &mut gradients;
        let mut outputs = BackwardOutputs::of(q, k, v);
        outputs.dg = Some(g);
        let inputs = BackwardInputs::of(tensors.inputs(decay), &d_o);
        plan.run(&stream, &inputs, outputs, Some(&mut workspace)).expect("launch");
    };
    Case { name: format!("{name} bf16"), bytes, flops, sets: 1, launch: Box::new(launch) }
}

/// One token for each of `batch` rows.
fn decode(info: &DeviceInfo, batch: usize, heads: usize, dim: usize) -> Case {
    let stream = device::stream();
    let shape = Shape::dense(batch, 1, heads, dim, dim);
    let options = Options { decay: Decay::Scalar, ..Options::new::<bf16>(&shape) };
    let plan = step::Plan::new(&shape, &options, info).expect("a good shape");
    let (tensors, mut o) = (Tensors::new(&shape, Decay::Scalar), filled::<bf16>(&stream, batch * heads * dim, 0.0));
    let mut state = filled::<f32>(&stream, batch * heads * dim * dim, 0.0);
    let bytes = plan.bytes_moved();
    let launch = move |_| {
        let Tensors { q, k, v, g } = &tensors;
        let inputs = step::Inputs { q, k, v, g: Some(g), bonus: None };
        let outputs = step::Outputs { state: &mut state, z: None, o: &mut o, den: None };
        plan.run(&stream, &inputs, outputs).expect("launch");
    };
    Case { name: format!("linear_attention_step {}", bf16::DTYPE), bytes, flops: 0, sets: 1, launch: Box::new(launch) }
}

/// Workspace, at least one byte.
fn filled_bytes(bytes: u64) -> CudaSlice<u8> {
    device::stream().alloc_zeros(bytes.max(1) as usize).expect("allocate")
}
