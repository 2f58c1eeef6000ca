//! Gated scans of a dealt sequence: the states of the channels pass from rank to rank.
//!
//! [`Plan`] is the forward pass, [`BackwardPlan`] its gradients. Their tensors are those of [`lookback_scan`] for the rank's own tokens and
//! documents; the gradient of a channel's decay or `Λ` is a sum over the rank's tokens alone, as in data parallelism.

mod backward;
mod forward;
mod parts;

pub use backward::{BackwardInputs, BackwardPlan, RawBackwardInputs};
pub use forward::{Outputs, Plan, RawOutputs};
