//! The registry is what the contracts say.

use lookback_kernels::{KERNELS, Target, find};
use std::collections::HashSet;

#[test]
fn every_entry_is_unique_and_in_its_text() {
    let mut seen = HashSet::new();
    for kernel in KERNELS {
        assert!(seen.insert(kernel.entry), "{} twice", kernel.entry);
        let ptx = kernel.ptx();
        assert!(ptx.contains(&format!(".visible .entry {}(", kernel.entry)), "{}", kernel.entry);
        assert!(ptx.starts_with("//! kernel"), "{}: the text opens with its contract", kernel.entry);
        assert!(kernel.args_bytes <= 4096, "{}: parameters are limited to 4096 bytes before CUDA 12.1", kernel.entry);
    }
}

#[test]
fn find_wants_every_value_to_match() {
    let first = &KERNELS[0];
    assert_eq!(find(first.name, first.variant).map(|k| k.entry), Some(first.entry));
    assert!(find(first.name, &[("dtype", "f8")]).is_none());
    assert!(find("no_such_kernel", &[]).is_none());
}

#[test]
fn a_target_runs_upwards_unless_it_is_architecture_specific() {
    let portable = Target { sm: 80, arch_specific: false };
    let hopper = Target { sm: 90, arch_specific: true };
    let runs = |t: Target| [(7, 5), (8, 0), (9, 0), (12, 0)].map(|cc| t.runs_on(cc));
    assert_eq!(runs(portable), [false, true, true, true]);
    assert_eq!(runs(hopper), [false, false, true, false]);
    assert_eq!((portable.to_string(), hopper.to_string()), ("sm_80".into(), "sm_90a".into()));
}

#[test]
fn a_contract_is_read_from_the_text_with_its_continuation_lines() {
    for kernel in KERNELS {
        let line = |key: &str| kernel.contract(key).unwrap_or_else(|| panic!("{} has no `{key}`", kernel.entry));
        assert_eq!(line("kernel").split_whitespace().next(), Some(kernel.name));
        assert_eq!(line("entry"), kernel.entry);
        assert!(line("launch").contains(&format!("min_ctas {}", kernel.min_ctas)), "{}", kernel.entry);
        assert!(kernel.contract("kern").is_none() && !line("source").is_empty(), "{}", kernel.entry);
    }
}
