//! No kernel that synchronises is forgotten.

use super::{
    attention, decode,
    family::Family,
    linear, nn,
    reasons::{REASONS, Reason},
    scan,
    sites::Sites,
};
use lookback_kernels::{KERNELS, Kernel};

const FAMILIES: [&Family; 12] = [
    &attention::FORWARD,
    &attention::BACKWARD,
    &decode::DECODE,
    &linear::CHAIN,
    &linear::VECTOR,
    &linear::OTHERS,
    &linear::REDUCE_HALF,
    &linear::REDUCE_SINGLE,
    &nn::ROWS,
    &nn::GRADIENTS,
    &nn::PRODUCTS,
    &scan::SCANS,
];

#[test]
fn every_kernel_that_synchronises_is_in_a_family() {
    let is_listed = |kernel: &Kernel| FAMILIES.iter().any(|family| family.has(kernel));
    let forgotten = KERNELS.iter().filter(|kernel| !is_listed(kernel)).filter(|kernel| {
        let text = kernel.ptx();
        text.contains(".shared") || !Sites::of(kernel).all.is_empty()
    });
    let forgotten: Vec<&str> = forgotten.map(|kernel| kernel.entry).collect();
    assert!(forgotten.is_empty(), "no case for {}", forgotten.join(", "));
    for name in FAMILIES.iter().flat_map(|family| family.kernels) {
        assert!(KERNELS.iter().any(|kernel| kernel.name == *name), "there is no kernel {name}");
    }
}

#[test]
fn every_reason_has_a_place() {
    let named = |name: &str| REASONS.iter().any(|reason| reason.kernel == name);
    let mut stale: Vec<&_> = REASONS.iter().collect();
    for kernel in KERNELS.iter().filter(|kernel| named(kernel.name)) {
        let sites = Sites::of(kernel);
        let is_used =
            |site: &_, changes: &[_], reason: &Reason| changes.iter().any(|change| reason.is_of(kernel, site, *change));
        stale.retain(|reason| !sites.all.iter().any(|site| is_used(site, &site.changes, reason)));
    }
    assert!(stale.is_empty(), "no kernel has these places: {stale:#?}");
}
