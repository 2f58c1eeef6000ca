//! Matrix products.

use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Element, Result};
use lookback_nn::{
    Param,
    gemm::{Options, Plan, Shape},
};

/// Projections of many tokens, and of the few that are decoded.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    // Rows, outputs, inputs.
    let sizes = match scale {
        Scale::Full => vec![[8192, 8192, 8192], [8192, 4096, 4096], [16, 4096, 4096], [1, 14_336, 4096]],
        Scale::Small => vec![[128, 128, 512], [16, 256, 512]],
    };
    sizes.into_iter().map(|sizes| gemm(info, sizes)).collect()
}

fn gemm(info: &DeviceInfo, [m, n, k]: [usize; 3]) -> Case {
    let plan = Plan::new(&Shape::linear(m, n, k), &Options::new(bf16::DTYPE), info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let (a, b) = (memory.normal::<bf16>("a", &[m, k])?, memory.normal::<bf16>("b", &[n, k])?);
            Ok((a, b, memory.output::<bf16>("c", &[m, n])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (a, b, c) = &mut sets[set];
            plan.run(&stream, a, b, Param::None, c)
        }))
    };
    let facts = Facts::new("nn", "gemm", "", "bf16", &[("m", m), ("n", n), ("k", k)]);
    Case::planned(facts, plan, |plan| [plan.bytes_moved(), plan.flops()], maker)
}
