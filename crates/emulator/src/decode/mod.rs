//! From the parser's words to a program that the interpreter can run without looking back.
//!
//! Every operand becomes the number of a register slot (immediates, special registers and parameters are slots that a
//! launch fills before the first instruction), every opcode with its modifiers and types becomes one `op::Op`. What
//! is not known here is an error that names the line: nothing is skipped and nothing is guessed.

mod bits;
pub(crate) mod cold;
mod compare;
mod context;
mod convert;
mod copies;
mod emit;
mod float;
mod integer;
mod memory;
mod moves;
pub(crate) mod op;
mod pressure;
mod program;
pub(crate) mod slots;
mod sync;
mod tensor;
mod words;

pub use program::{Program, Target};

use crate::ptx::ast;
use context::{Decoded, Decoder};
use std::fmt;

/// Why a kernel cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Line of the PTX text.
    pub line: u32,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for DecodeError {}

/// Decode one kernel of a module.
///
/// `globals` are the device addresses of [`ast::Module::globals`], in that order; the caller allocates them and copies
/// their initial bytes.
pub fn decode(module: &ast::Module, entry: &ast::Entry, globals: &[u64]) -> Result<Program, DecodeError> {
    program::build(module, entry, globals)
}

/// Decodes one opcode in all its forms.
type Handler = fn(&mut Decoder<'_>) -> Decoded<()>;

/// Every opcode that is accepted, sorted by name.
static OPCODES: [(&str, Handler); 85] = [
    ("abs", float::arithmetic),
    ("activemask", sync::active_mask),
    ("add", float::arithmetic),
    ("addc", integer::with_carry),
    ("and", bits::logic),
    ("atom", memory::atomic),
    ("bar", sync::barrier),
    ("barrier", sync::barrier),
    ("bfe", bits::field),
    ("bfi", bits::field),
    ("bfind", bits::find),
    ("bmsk", bits::mask),
    ("bra", sync::branch),
    ("brev", bits::bits),
    ("brkpt", sync::trap),
    ("clz", bits::bits),
    ("cnot", bits::logic),
    ("copysign", float::copy_sign),
    ("cos", float::function),
    ("cp", copies::copy),
    ("createpolicy", memory::create_policy),
    ("cvt", convert::convert),
    ("cvta", memory::cvta),
    ("div", float::arithmetic),
    ("dp2a", integer::dot),
    ("dp4a", integer::dot),
    ("elect", sync::elect),
    ("ex2", float::function),
    ("exit", sync::exit),
    ("fence", memory::fence),
    ("fma", float::arithmetic),
    ("fns", bits::nth_set),
    ("griddepcontrol", sync::grid_dependency),
    ("ld", memory::load),
    ("ldmatrix", tensor::matrix),
    ("lg2", float::function),
    ("lop3", bits::lop3),
    ("mad", float::arithmetic),
    ("mad24", integer::multiply24),
    ("match", sync::matching),
    ("max", float::arithmetic),
    ("mbarrier", copies::mbarrier),
    ("membar", memory::fence),
    ("min", float::arithmetic),
    ("mma", tensor::mma),
    ("mov", moves::mov),
    ("movmatrix", tensor::move_matrix),
    ("mul", float::arithmetic),
    ("mul24", integer::multiply24),
    ("nanosleep", sync::sleep),
    ("neg", float::arithmetic),
    ("not", bits::logic),
    ("or", bits::logic),
    ("pmevent", sync::event),
    ("popc", bits::bits),
    ("prefetch", memory::prefetch),
    ("prefetchu", memory::prefetch),
    ("prmt", bits::permute),
    ("rcp", float::function),
    ("red", memory::atomic),
    ("redux", sync::redux),
    ("rem", float::arithmetic),
    ("ret", sync::exit),
    ("rsqrt", float::function),
    ("sad", integer::absolute_difference),
    ("selp", compare::select),
    ("set", compare::set),
    ("setp", compare::set_predicate),
    ("shf", bits::funnel),
    ("shfl", sync::shuffle),
    ("shl", bits::shift),
    ("shr", bits::shift),
    ("sin", float::function),
    ("slct", compare::select_sign),
    ("sqrt", float::function),
    ("st", memory::store),
    ("stmatrix", tensor::matrix),
    ("sub", float::arithmetic),
    ("subc", integer::with_carry),
    ("szext", bits::extend_bits),
    ("tanh", float::function),
    ("testp", float::test),
    ("trap", sync::trap),
    ("vote", sync::vote),
    ("xor", bits::logic),
];

/// Opcodes that PTX has and the emulator does not.
const UNSUPPORTED: [&str; 18] = [
    "wgmma",
    "setmaxnreg",
    "tensormap",
    "mapa",
    "getctarank",
    "st_async",
    "red_async",
    "multimem",
    "isspacep",
    "call",
    "brx",
    "tcgen05",
    "wmma",
    "tex",
    "tld4",
    "suld",
    "sust",
    "alloca",
];

/// The names of all opcodes that are accepted.
pub fn opcodes() -> impl Iterator<Item = &'static str> {
    OPCODES.iter().map(|(name, _)| *name)
}

/// Decode the instruction that the decoder stands at.
fn instruction(d: &mut Decoder<'_>) -> Decoded<()> {
    let opcode = d.ins.opcode.as_str();
    match OPCODES.binary_search_by(|(name, _)| name.cmp(&opcode)) {
        Ok(index) => OPCODES[index].1(d),
        Err(_) if UNSUPPORTED.contains(&opcode) => Err(d.error("this instruction is not supported by the emulator")),
        Err(_) => Err(d.error("unknown instruction")),
    }
}

#[cfg(test)]
mod tests {
    use super::{OPCODES, UNSUPPORTED};

    #[test]
    fn opcodes_are_sorted_and_none_is_named_twice() {
        assert!(OPCODES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(UNSUPPORTED.iter().all(|name| OPCODES.iter().all(|(known, _)| known != name)));
    }
}
