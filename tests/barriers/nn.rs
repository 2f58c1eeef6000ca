//! Norms, products, sums over rows.

use super::family::{Family, every};
use crate::nn::{
    argmax, cross_entropy, gated_rms_norm, gated_rms_norm_backward as gated_backward, gemm, pool, residual_norm,
    residual_norm_backward as residual_backward, rms_norm, short_convolution_backward as convolution_backward,
    taylor_map,
};
use half::{bf16, f16};
use lookback_nn::{
    gemm::{Right, Tile},
    pool::Pooling,
};
use lookback_suite::random::Random;

pub const ROWS: Family = Family {
    kernels: &["argmax", "cross_entropy", "rms_norm", "gated_rms_norm", "residual_norm", "pool", "taylor_map"],
    variants: every,
    runs: &[
        || argmax::check::<f32>(&Random::new(1).normals::<f32>(3 * 40), 3, 40),
        || argmax::check::<f32>(&Random::new(1).normals::<f32>(2 * 1032), 2, 1032),
        || cross_entropy::check::<f32>(&Random::new(1).normals::<f32>(3 * 40), &[1, 30, 5], 40, 0, 0, 0),
        || cross_entropy::check::<f32>(&Random::new(1).normals::<f32>(2 * 1032), &[1, 1000], 1032, 0, 0, 0),
        || rms_norm::case::<f32>(3, 65, 0, 0, rms_norm::Weight::Same),
        || rms_norm::case::<f32>(2, 1032, 0, 0, rms_norm::Weight::Same),
        || gated_rms_norm::case(3, 144, 72).both(gated_rms_norm::check::<f32>),
        || gated_rms_norm::case(2, 516, 516).both(gated_rms_norm::check::<f32>),
        || residual_norm::case::<f32>(3, 136, 0, true, false, residual_norm::ALL),
        || residual_norm::case::<f32>(3, 7, 1, true, true, residual_norm::ALL),
        || residual_norm::case::<bf16>(3, 256, 0, true, false, residual_norm::ALL),
        || residual_norm::case::<f32>(2, 1032, 0, true, false, residual_norm::ALL),
        || residual_norm::case::<bf16>(2, 1032, 0, true, true, residual_norm::ALL),
        || residual_norm::case::<f32>(1, 8200, 0, true, false, residual_norm::ALL),
        || pool::check::<f32>(pool::PACKED),
        || pool::check::<f32>(pool::Case { normalize: true, ..pool::PACKED }),
        || pool::check::<f32>(pool::Case { pooling: Pooling::First, normalize: true, width: 2048, ..pool::PACKED }),
        || taylor_map::case::<f32>(5, 3, 7, 0),
    ],
};

pub const GRADIENTS: Family = Family {
    kernels: &["rms_norm_bwd", "gated_rms_norm_bwd", "residual_norm_bwd", "short_convolution_bwd"],
    variants: every,
    runs: &[
        || rms_norm::backward::<f32>(9, 40, 0, 0, rms_norm::Weight::Same, 1),
        || rms_norm::backward::<f32>(5, 1032, 0, 0, rms_norm::Weight::Same, 1),
        || rms_norm::backward::<bf16>(9, 40, 1, 1, rms_norm::Weight::Same, 1),
        || rms_norm::backward::<bf16>(9, 517, 1, 1, rms_norm::Weight::Same, 1),
        || rms_norm::backward::<bf16>(9, 64, 0, 0, rms_norm::Weight::Same, 1),
        || rms_norm::backward::<bf16>(9, 1032, 0, 0, rms_norm::Weight::Same, 1),
        || gated_backward::Case { sm_count: 1, ..gated_backward::case(9, 144, 72) }.both(gated_backward::check::<f32>),
        || gated_backward::Case { sm_count: 1, ..gated_backward::case(5, 516, 516) }.both(gated_backward::check::<f32>),
        || gated_backward::Case { sm_count: 1, ..gated_backward::case(9, 144, 72) }.both(gated_backward::check::<bf16>),
        || {
            gated_backward::Case { sm_count: 1, ..gated_backward::case(5, 1032, 1032) }
                .both(gated_backward::check::<bf16>)
        },
        || {
            let case = gated_backward::Case { shift: 1, sm_count: 1, ..gated_backward::case(5, 517, 517) };
            case.both(gated_backward::check::<bf16>);
        },
        || {
            let case = gated_backward::Case { gap: 1, shift: 1, sm_count: 1, ..gated_backward::case(9, 144, 72) };
            case.both(gated_backward::check::<bf16>);
        },
        || {
            residual_backward::check::<f32>(residual_backward::Case { sm_count: 1, ..residual_backward::CASE });
        },
        || {
            let case = residual_backward::Case { rows: 5, width: 2048, sm_count: 1, ..residual_backward::CASE };
            residual_backward::check::<f32>(case);
        },
        || {
            let case = convolution_backward::case(2, 38, 8, 4);
            convolution_backward::check::<f32>(convolution_backward::Case { sm_count: 1, ..case });
        },
    ],
};

pub const PRODUCTS: Family = Family {
    kernels: &["gemm", "gemm_skinny"],
    variants: every,
    runs: &[
        || gemm::check::<f32, f32>(gemm::Case::new(Right::Transposed, Tile::Small, 70, 66, 200)),
        || gemm::check::<f16, f16>(gemm::Case::new(Right::Transposed, Tile::Skinny, 9, 17, 1096)),
    ],
};

#[test]
fn rows_need_their_barriers() {
    ROWS.check();
}

#[test]
fn gradients_of_rows_need_their_barriers() {
    GRADIENTS.check();
}

#[test]
fn products_need_their_barriers() {
    PRODUCTS.check();
}
