//! Linear attention on a dealt sequence: matrix states pass from rank to rank.
//!
//! [`Plan`] is the forward pass. Its tensors are those of [`lookback_linear`] for the rank's own tokens and documents;
//! gradients of parameters (decays of heads, a bonus) are sums over the rank's tokens alone, as in data parallelism.

mod forward;
mod lanes;
mod tensors;

pub use forward::Plan;
pub use tensors::{Arrived, Outputs, RawArrived};
