//! Names of the registers that the machine sets.

use super::ast::{Dimension, SpecialRegister};

/// What a special register's name stands for.
pub(super) enum SpecialName {
    /// The name alone is the register.
    Whole(SpecialRegister),
    /// A component `.x`, `.y` or `.z` must follow.
    Vector(fn(Dimension) -> SpecialRegister),
}

/// Looks a name with its percent sign up.
pub(super) fn special(name: &str) -> Option<SpecialName> {
    use SpecialName::{Vector, Whole};
    use SpecialRegister as S;
    Some(match name {
        "%tid" => Vector(S::Tid),
        "%ntid" => Vector(S::Ntid),
        "%ctaid" => Vector(S::Ctaid),
        "%nctaid" => Vector(S::Nctaid),
        "%clusterid" => Vector(S::ClusterId),
        "%nclusterid" => Vector(S::NclusterId),
        "%cluster_ctaid" => Vector(S::ClusterCtaid),
        "%cluster_nctaid" => Vector(S::ClusterNctaid),
        "%cluster_ctarank" => Whole(S::ClusterCtarank),
        "%cluster_nctarank" => Whole(S::ClusterNctarank),
        "%laneid" => Whole(S::LaneId),
        "%warpid" => Whole(S::WarpId),
        "%nwarpid" => Whole(S::NwarpId),
        "%smid" => Whole(S::SmId),
        "%nsmid" => Whole(S::NsmId),
        "%gridid" => Whole(S::GridId),
        "%lanemask_eq" => Whole(S::LanemaskEq),
        "%lanemask_le" => Whole(S::LanemaskLe),
        "%lanemask_lt" => Whole(S::LanemaskLt),
        "%lanemask_ge" => Whole(S::LanemaskGe),
        "%lanemask_gt" => Whole(S::LanemaskGt),
        "%clock" => Whole(S::Clock),
        "%clock_hi" => Whole(S::ClockHi),
        "%clock64" => Whole(S::Clock64),
        "%globaltimer" => Whole(S::GlobalTimer),
        "%globaltimer_lo" => Whole(S::GlobalTimerLo),
        "%globaltimer_hi" => Whole(S::GlobalTimerHi),
        "%dynamic_smem_size" => Whole(S::DynamicSmemSize),
        "%total_smem_size" => Whole(S::TotalSmemSize),
        _ => return None,
    })
}

/// The component that a dot word names.
pub(super) fn dimension(name: &str) -> Option<Dimension> {
    match name {
        "x" => Some(Dimension::X),
        "y" => Some(Dimension::Y),
        "z" => Some(Dimension::Z),
        _ => None,
    }
}
