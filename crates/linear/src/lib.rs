//! Linear attention on matrix states: `S[t] = diag(exp g[t]) S[t-1] + k[t] v[t]^T`, read by `q[t]`.

mod allocate;
mod backward;
pub mod check;
mod launch;
mod options;
mod plan;
mod policy;
mod run;
mod shape;
mod slices;
pub mod step;
mod tensors;
#[allow(dead_code)]
mod walk;

pub use allocate::{Forwarded, linear_attention};
pub use backward::{
    BackwardInputs, BackwardOutputs, BackwardPlan, Gradients, RawBackwardInputs, RawBackwardOutputs, ReverseGradients,
    linear_attention_backward,
};
pub(crate) use lookback_device::strided;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub use options::{Decay, Mode, Options, Path, Read};
pub use plan::{MAX_KEY_DIM, Plan};
pub use shape::{Shape, Stride, Strides};
pub use tensors::{Inputs, Outputs, RawInputs, RawOutputs, RawWorkspace, ReverseInputs};
