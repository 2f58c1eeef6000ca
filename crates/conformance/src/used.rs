//! Which instruction forms a PTX text contains, and which forms the kernels of the registry use.

use crate::{Error, Result};
use lookback_emulator::{
    decode,
    ptx::{
        self,
        ast::{Instruction, Operand, SpecialRegister, SymbolKind, Type},
    },
};
use lookback_kernels::KERNELS;
use std::collections::{BTreeMap, BTreeSet};

/// The name of an instruction's form: opcode and modifiers, and what else makes it another instruction: vectors of `mov`,
/// special registers, second results, the size of a copy's source. `is_predicate` tells what an operand's register is.
pub fn key(ins: &Instruction, is_predicate: impl Fn(u32) -> bool) -> String {
    let mut key = ins.opcode.clone();
    for word in &ins.modifiers {
        key.push('.');
        key.push_str(word);
    }
    let suffix = match (ins.opcode.as_str(), ins.operands.as_slice()) {
        ("mov", [Operand::Vector(parts), _]) => format!(" {{{}}},r", parts.len()),
        ("mov", [_, Operand::Vector(parts)]) => format!(" r,{{{}}}", parts.len()),
        ("mov", [_, Operand::Special(special)]) => format!(" {}", special_name(*special)),
        ("mov", [_, Operand::Symbol { kind: SymbolKind::Shared, .. }]) => " shared".into(),
        ("cp", [_, _, _, Operand::Register(register), ..]) if is_predicate(*register) => " ignore".into(),
        ("cp", [_, _, _, Operand::NegatedPredicate(_), ..]) => " ignore".into(),
        ("cp", [_, _, _, _, ..]) => " source".into(),
        (_, [Operand::Pair(..), ..]) => " p|q".into(),
        _ => String::new(),
    };
    key + &suffix
}

/// The name of a special register, as PTX writes it.
fn special_name(special: SpecialRegister) -> String {
    let name = format!("%{special:?}").to_lowercase().replace('(', ".").replace(')', "");
    match name.strip_prefix("%lanemask") {
        Some(which) => format!("%lanemask_{which}"),
        None => name,
    }
}

/// The forms in a text, after the decoder has accepted it.
pub fn forms_of(text: &str) -> std::result::Result<BTreeSet<String>, String> {
    let module = ptx::parse(text).map_err(|e| e.to_string())?;
    let mut forms = BTreeSet::new();
    for entry in &module.entries {
        decode::decode(&module, entry, &vec![0; module.globals.len()]).map_err(|e| e.to_string())?;
        let is_predicate = |register: u32| entry.registers.get(register as usize).is_some_and(|r| r.ty == Type::Pred);
        forms.extend(entry.body.iter().map(|ins| key(ins, is_predicate)));
    }
    Ok(forms)
}

/// The forms that kernels use, each with the names of those kernels.
///
/// # Errors
/// [`Error::Kernel`] for a text that the emulator does not accept.
pub fn by_kernels() -> Result<BTreeMap<String, BTreeSet<&'static str>>> {
    let mut used: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for kernel in KERNELS {
        let refused = |what| Error::Kernel { kernel: kernel.entry.into(), what };
        for form in forms_of(&kernel.ptx()).map_err(refused)? {
            used.entry(form).or_default().insert(kernel.name);
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::forms_of;

    #[test]
    fn a_form_is_its_words_and_what_they_do_not_say() {
        let text = "
            .version 7.8
            .target sm_80
            .address_size 64
            .visible .entry k() {
                .reg .b32 %a, %b;
                .reg .b64 %c;
                .reg .pred %p, %q;
                mov.u32 %a, %tid.x;
                mov.u32 %b, %lanemask_lt;
                mov.b64 %c, {%a, %b};
                mov.b64 {%a, %b}, %c;
                setp.eq.s32 %p|%q, %a, %b;
                @%p bra END;
                shl.b32 %a, %b, 1;
            END:
                ret;
            }";
        let forms: Vec<String> = forms_of(text).into_iter().flatten().collect();
        let wanted = [
            "bra",
            "mov.b64 r,{2}",
            "mov.b64 {2},r",
            "mov.u32 %lanemask_lt",
            "mov.u32 %tid.x",
            "ret",
            "setp.eq.s32 p|q",
            "shl.b32",
        ];
        assert_eq!(forms, wanted);
    }
}
