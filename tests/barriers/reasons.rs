//! Synchronisation that could be left out: where, and why nothing is wrong without it.

use super::sites::{
    Change::{self, Deleted, OneLater},
    Site,
};
use lookback_kernels::Kernel;

/// A place and why it is harmless.
#[derive(Debug)]
pub struct Reason {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Variants alone that have these values.
    pub only: &'static [(&'static str, &'static str)],
    /// The label before the instruction.
    pub label: &'static str,
    /// The instruction.
    pub site: &'static str,
    /// Which of those behind the label; none for all.
    pub nth: Option<usize>,
    pub changes: &'static [Change],
    pub why: &'static str,
}

impl Reason {
    pub fn is_of(&self, kernel: &Kernel, site: &Site, change: Change) -> bool {
        (self.kernel, self.label, self.site) == (kernel.name, site.label.as_str(), site.name.as_str())
            && self.only.iter().all(|(key, value)| kernel.variant(key) == Some(value))
            && self.nth.is_none_or(|nth| nth == site.nth)
            && self.changes.contains(&change)
    }
}

/// The reason of a change, if there is one.
pub fn of(kernel: &Kernel, site: &Site, change: Change) -> Option<&'static Reason> {
    REASONS.iter().find(|reason| reason.is_of(kernel, site, change))
}

const BARRIER: &str = "bar.sync";
const WARP: &str = "bar.warp.sync";

const fn warp(kernel: &'static str, label: &'static str, why: &'static str) -> Reason {
    Reason { kernel, only: &[], label, site: WARP, nth: None, changes: &[Deleted], why }
}

const fn barrier(kernel: &'static str, label: &'static str, why: &'static str) -> Reason {
    Reason { kernel, only: &[], label, site: BARRIER, nth: None, changes: &[Deleted], why }
}

/// A warp that diverged before comes together again, so that the code behind runs once. No lane has left anything in memory for
/// another, and `shfl.sync`, `vote.sync` and `redux.sync` behind it wait for their lanes themselves.
const TOGETHER: &str = "brings the warp together; what exchanges values behind it waits for its lanes itself";

/// `state.move` keeps the compiler from taking all loads or stores of a state at once, which needs too many registers.
const ADDRESSES: &str = "keeps few addresses alive at a time; each lane loads or stores elements of its own";

/// Behind the last stage the groups of copies are empty.
const EMPTY: &str = "every group with a copy in it has been waited for";

pub const REASONS: &[Reason] = &[
    warp("argmax", "REDUCE", TOGETHER),
    warp("attention_bwd_prepare", "PRODUCTS_DONE", TOGETHER),
    warp("attention_bwd_queries", "NO_ROW", TOGETHER),
    warp("attention_bwd_sink", "SUMMED", TOGETHER),
    warp("attention_fwd", "NO_ROW", TOGETHER),
    warp("cross_entropy", "LABEL_DONE", TOGETHER),
    warp("flow_normal", "ZEROED", TOGETHER),
    warp("gated_rms_norm", "REDUCE", TOGETHER),
    warp("gated_rms_norm_bwd", "REDUCE", TOGETHER),
    warp("lean_plan", "HAS_TILES", TOGETHER),
    warp("pool", "SQUARED", TOGETHER),
    warp("prepare_bwd", "COLUMNS_DONE", TOGETHER),
    warp("residual_norm", "VALUES_DONE", TOGETHER),
    warp("residual_norm", "SHIFT", TOGETHER),
    warp("residual_norm", "SQUARES_DONE", TOGETHER),
    warp("residual_norm_bwd", "VALUES", TOGETHER),
    warp("residual_norm_bwd", "SHIFT", TOGETHER),
    warp("residual_norm_bwd", "PRODUCTS", TOGETHER),
    warp("residual_norm_bwd", "SUMMED", TOGETHER),
    warp("rms_norm", "SQUARES_DONE", TOGETHER),
    warp("rms_norm_bwd", "REDUCE", TOGETHER),
    warp("taylor_map", "LOADED", TOGETHER),
    warp("taylor_map", "ENTRIES", TOGETHER),
    warp("taylor_map", "ROW0", TOGETHER),
    warp("taylor_map", "ROW1", TOGETHER),
    warp("taylor_map", "ROW2", TOGETHER),
    warp("taylor_map", "ROW3", TOGETHER),
    warp("taylor_map", "ROW4", TOGETHER),
    warp("taylor_map", "ROW5", TOGETHER),
    warp("taylor_map", "ROW6", TOGETHER),
    warp("taylor_map", "ROW7", TOGETHER),
    warp("taylor_map", "ROW8", TOGETHER),
    warp("taylor_map", "ROW9", TOGETHER),
    warp("taylor_map", "ROW10", TOGETHER),
    warp("taylor_map", "ROW11", TOGETHER),
    warp("taylor_map", "ROW12", TOGETHER),
    warp("taylor_map", "ROW13", TOGETHER),
    warp("taylor_map", "ROW14", TOGETHER),
    warp("taylor_map", "ROW15", TOGETHER),
    warp("time_reduce_row_dot", "SUMMED", TOGETHER),
    warp("linear_attention_chain", "FILLED", ADDRESSES),
    warp("linear_attention_chain", "WALK_WHOLE", ADDRESSES),
    warp("linear_attention_chain_vector", "FIRST_FILLED", ADDRESSES),
    warp("linear_attention_chain_vector", "WALKED", ADDRESSES),
    warp("linear_attention_chain_vector", "CARRIED", ADDRESSES),
    Reason {
        only: &[("side", "value"), ("part", "whole")],
        ..warp(
            "linear_attention_chain_vector",
            "STORED",
            "the barrier before the rows are stored comes after all reads of the warp's places; what is read behind it, the gates, \
             has a place of its own in every chunk",
        )
    },
    Reason {
        only: &[("side", "value"), ("part", "state"), ("kt", "128")],
        ..warp("linear_attention_chain_vector", "UPDATED", ONE_PAIR)
    },
    Reason {
        only: &[("side", "value"), ("part", "state"), ("kt", "256")],
        ..warp("linear_attention_chain_vector", "UPDATED", ONE_PAIR)
    },
    Reason { site: "cp.async.wait_all", ..barrier("linear_attention_chain", "DONE", EMPTY) },
    Reason { site: "cp.async.wait_all", ..barrier("linear_attention_chain_vector", "DONE", EMPTY) },
    Reason { site: "cp.async.wait_all", ..barrier("lean_decode", "KEYS_FILLED", EMPTY) },
    Reason { site: "cp.async.wait_all", ..barrier("lean_decode", "PART_FILLED", EMPTY) },
    Reason {
        site: "cp.async.wait_group 0",
        changes: &[OneLater],
        ..barrier("gemm", "PRODUCT_DONE", "the newest group is empty")
    },
    Reason {
        only: &[("part", "state"), ("norm", "no")],
        site: "cp.async.wait_group 2",
        changes: &[OneLater],
        ..barrier(
            "linear_attention_chain",
            "STAGE",
            "the wait is for the stage after this one, which scores alone read; states have none",
        )
    },
    Reason {
        nth: Some(1),
        ..barrier("flow_causal", "GATHERED", "the second exchange is the last: nothing is written to its place again")
    },
    Reason {
        nth: Some(1),
        ..barrier("flow_normal", "KEPT", "the second exchange is the last: nothing is written to its place again")
    },
    Reason {
        nth: Some(0),
        ..barrier(
            "gated_scan_bwd",
            "ADDED",
            "the barrier of the verdict stands between the reads of the first sum and the writes of the second",
        )
    },
    barrier(
        "time_reduce",
        "SIDE_DONE",
        "the barrier of the first stage of queries comes before anything of the cell is read",
    ),
    Reason {
        only: &[("map", "identity"), ("dtype", "f32")],
        ..barrier("time_reduce", "COLUMN_DONE0", "keys stay as they are, and there are no factors")
    },
    Reason {
        only: &[("map", "identity"), ("dtype", "f32")],
        ..barrier("time_reduce", "COLUMN_DONE1", "keys stay as they are, and there are no factors")
    },
    Reason {
        only: &[("map", "identity"), ("dtype", "f32")],
        ..barrier("time_reduce", "PART_SUMMED", "factors are softmax's alone")
    },
    Reason {
        only: &[("map", "pointwise"), ("dtype", "f32")],
        ..barrier("time_reduce", "PART_SUMMED", "factors are softmax's alone")
    },
    Reason {
        only: &[("map", "pointwise"), ("dtype", "f32"), ("keys", "256")],
        ..barrier("time_reduce", "APPLY_SENT", "a thread maps what it has copied itself; a barrier comes behind that")
    },
];

const ONE_PAIR: &str = "a stage has one pair of chunks, so that its barrier comes before the next";
