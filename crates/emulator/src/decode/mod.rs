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

/// Decode the instruction that the decoder stands at.
fn instruction(d: &mut Decoder<'_>) -> Decoded<()> {
    match d.ins.opcode.as_str() {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" => float::arithmetic(d),
        "addc" | "subc" => integer::with_carry(d),
        "mul24" | "mad24" => integer::multiply24(d),
        "and" | "or" | "xor" | "not" | "cnot" => bits::logic(d),
        "shl" | "shr" => bits::shift(d),
        "lop3" => bits::lop3(d),
        "prmt" => bits::permute(d),
        "shf" => bits::funnel(d),
        "bfe" | "bfi" => bits::field(d),
        "bmsk" => bits::mask(d),
        "brev" | "popc" | "clz" => bits::bits(d),
        "bfind" => bits::find(d),
        "fns" => bits::nth_set(d),
        "szext" => bits::extend_bits(d),
        "sad" => integer::absolute_difference(d),
        "dp4a" | "dp2a" => integer::dot(d),
        "mov" => moves::mov(d),
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => float::function(d),
        "copysign" => float::copy_sign(d),
        "testp" => float::test(d),
        "cvt" => convert::convert(d),
        "setp" => compare::set_predicate(d),
        "set" => compare::set(d),
        "selp" => compare::select(d),
        "slct" => compare::select_sign(d),
        "ld" => memory::load(d),
        "st" => memory::store(d),
        "prefetch" | "prefetchu" => memory::prefetch(d),
        "createpolicy" => memory::create_policy(d),
        "cvta" => memory::cvta(d),
        "membar" | "fence" => memory::fence(d),
        "atom" | "red" => memory::atomic(d),
        "shfl" => sync::shuffle(d),
        "vote" => sync::vote(d),
        "match" => sync::matching(d),
        "redux" => sync::redux(d),
        "activemask" => sync::active_mask(d),
        "elect" => sync::elect(d),
        "bar" | "barrier" => sync::barrier(d),
        "bra" => sync::branch(d),
        "ret" | "exit" => sync::exit(d),
        "trap" | "brkpt" => sync::trap(d),
        "nanosleep" => sync::sleep(d),
        "griddepcontrol" => sync::grid_dependency(d),
        "pmevent" => sync::event(d),
        "mma" => tensor::mma(d),
        "ldmatrix" | "stmatrix" => tensor::matrix(d),
        "movmatrix" => tensor::move_matrix(d),
        "cp" => copies::copy(d),
        "mbarrier" => copies::mbarrier(d),
        "wgmma" | "setmaxnreg" | "tensormap" | "mapa" | "getctarank" | "st_async" | "red_async" | "multimem"
        | "isspacep" | "call" | "brx" | "tcgen05" | "wmma" | "tex" | "tld4" | "suld" | "sust" | "alloca" => {
            Err(d.error("this instruction is not supported by the emulator"))
        }
        _ => Err(d.error("unknown instruction")),
    }
}
