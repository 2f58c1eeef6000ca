//! The backward pass, from a final log-sum-exp.
//!
//! With `p_ij = exp(x_ij - lse_i)` and `delta_i = sum_d d_o_id o_id - d_lse_i`:
//!
//! ```text
//!   dv_j = sum_i p_ij d_o_i      ds_ij = p_ij (d_o_i . v_j - delta_i)      dk_j = scale sum_i ds_ij q_i      dq_i = scale sum_j ds_ij k_j
//! ```
//!
//! and `d_sink = -sum_i exp(sink - lse_i) delta_i`. Nothing here needs more of a row than its **final** `lse` and `delta`, so that a
//! block of keys or of queries can be differentiated alone, and gradients of blocks add up: [`Gradient::Accumulate`] adds them in f32.
//!
//! Three launches: `lse` and `delta` of rows; a block of threads for each tile of keys, which goes through the queries that see it and the
//! heads that share it, with `dk` and `dv` in registers; a block for each tile of queries, which goes through its keys for `dq`. Without
//! [`BackwardOptions::deterministic`] the second adds to `dq` as well, and there is no third.

mod allocate;
mod launch;
mod plan;
mod policy;
mod run;
mod tensors;

pub use allocate::{BackwardResult, attention_backward};
pub use plan::{BackwardOptions, BackwardPlan, BackwardStrides, Gradient};
pub use tensors::{Adjoint, BackwardInputs, Final, Gradients, RawBackward, Rows};
