//! The generated Rust: one argument structure a kernel, and the table of variants.

use super::{Rendered, contract::Contract};
use std::{collections::BTreeMap, fmt::Write};

/// The text of `registry.rs`.
pub fn registry(kernels: &[Rendered]) -> String {
    let mut text = String::from(
        "/// One `#[repr(C)]` parameter structure per kernel, laid out by its contract.\npub mod args {\n",
    );
    let mut by_name: BTreeMap<&str, &Contract> = BTreeMap::new();
    for kernel in kernels {
        by_name.entry(&kernel.contract.kernel).or_insert(&kernel.contract);
    }
    for contract in by_name.values() {
        arguments(&mut text, contract);
    }
    text.push_str(
        "}\n\n/// Every variant of every kernel, by file and then by variant.\npub static KERNELS: &[Kernel] = &[\n",
    );
    for kernel in kernels {
        entry(&mut text, kernel);
    }
    text.push_str("];\n");
    text
}

fn arguments(text: &mut String, contract: &Contract) {
    let does = contract.fields.iter().find(|f| f.key == "does").map_or("", |f| f.value.as_str());
    let _ = writeln!(text, "    /// Arguments of `{}`: {}", contract.kernel, doc(does));
    text.push_str("    #[repr(C)]\n    #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]\n");
    let _ = writeln!(text, "    pub struct {} {{", camel(&contract.kernel));
    let mut end = 0;
    for arg in &contract.args {
        padding(text, end, arg.offset);
        let _ = writeln!(text, "        /// {} {}", arg.direction, doc(&arg.detail));
        let _ = writeln!(text, "        pub {}: {},", arg.name, arg.ty);
        end = arg.offset + arg.size;
    }
    padding(text, end, contract.args_bytes);
    text.push_str("    }\n");
}

fn padding(text: &mut String, from: usize, to: usize) {
    if to > from {
        let _ = writeln!(text, "        #[doc(hidden)]\n        pub _pad{from}: [u8; {}],", to - from);
    }
}

fn entry(text: &mut String, kernel: &Rendered) {
    let Contract { kernel: name, entry, target, version, args_bytes, block, .. } = &kernel.contract;
    let c = &kernel.contract;
    let digits = target.trim_start_matches("sm_");
    let sm = digits.trim_end_matches('a');
    let _ = writeln!(text, "    Kernel {{ name: {name:?}, family: {:?}, entry: {entry:?},", kernel.family);
    let _ = writeln!(text, "        variant: &{:?},", kernel.variant);
    let _ = writeln!(text, "        target: Target {{ sm: {sm}, arch_specific: {} }},", digits.ends_with('a'));
    let _ = writeln!(
        text,
        "        ptx_version: {version:?}, text: Text::Packed(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{entry}.deflate\"))),"
    );
    text.push_str("        args: &[");
    for arg in &c.args {
        let _ = write!(
            text,
            "Arg {{ name: {:?}, ty: {:?}, direction: {:?}, detail: {:?}, offset: {} }}, ",
            arg.name, arg.ty, arg.direction, arg.detail, arg.offset
        );
    }
    let _ = writeln!(text, "], args_bytes: {}, block: {block:?},", args_bytes * c.structures);
    let _ = writeln!(
        text,
        "        min_ctas: {}, dynamic_smem: {}, cooperative: {},",
        c.min_ctas, c.dynamic_smem, c.cooperative
    );
    let _ = writeln!(text, "        budget: Budget {{ regs: {}, smem: {} }},", c.budget_regs, c.budget_smem);
    text.push_str("    },\n");
}

/// One line, with brackets that rustdoc would take for links escaped.
fn doc(text: &str) -> String {
    text.replace('\n', " ").replace('[', "\\[").replace(']', "\\]").replace('<', "\\<")
}

fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut chars = word.chars();
            chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
        })
        .collect()
}
