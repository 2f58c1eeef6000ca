//! Linear attention on a dealt sequence: matrix states pass from rank to rank.
//!
//! [`Plan`] is the forward pass, [`BackwardPlan`] its gradients. Their tensors are those of [`lookback_linear`] for the rank's own tokens and documents;
//! gradients of parameters (decays of heads, a bonus) are sums over the rank's tokens alone, as in data parallelism.

mod backward;
mod backward_run;
mod forward;
mod lanes;
mod tensors;
mod totals;

pub use backward::{ArrivedInputs, BackwardInputs, BackwardPlan};
pub use forward::Plan;
pub use tensors::{Arrived, Outputs, RawArrived};
