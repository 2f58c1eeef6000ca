//! What kind of work an instruction is.

use super::listing::Instruction;

/// Kinds of work that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Tensor core.
    Tensor,
    /// Special functions: exponential, logarithm, reciprocal, roots.
    Mufu,
    /// Floating-point arithmetic, comparison and conversion.
    Float,
    /// Integer and predicate arithmetic, moves, addresses, constants.
    Integer,
    /// Reads global memory: bytes a thread.
    Load(u32),
    /// Writes global memory: bytes a thread.
    Store(u32),
    /// Copies from global to shared memory: bytes a thread.
    Copy(u32),
    /// Adds to global or shared memory in place.
    Atomic,
    /// Reads or writes shared memory: bytes a thread.
    Shared(u32),
    /// Reads or writes what did not fit into registers. No kernel of ours may.
    Local,
    /// The threads of a block meet.
    Barrier,
    /// Orders memory, waits for copies.
    Fence,
    /// Between the lanes of a warp: shuffle, vote, reduction.
    Lanes,
    /// Where control goes.
    Branch,
    /// Fills up to the end of the code or of an issue slot.
    Nothing,
}

/// The class of an instruction; an opcode that is not known is an error, so that nothing is counted as what it is not.
pub fn of(instruction: &Instruction) -> Result<Class, String> {
    Ok(match instruction.stem() {
        "HMMA" | "IMMA" | "DMMA" | "BMMA" | "QMMA" | "HGMMA" | "IGMMA" | "QGMMA" | "OMMA" => Class::Tensor,
        "MUFU" => Class::Mufu,
        "FADD" | "FMUL" | "FFMA" | "FSEL" | "FSETP" | "FSET" | "FMNMX" | "FMNMX3" | "FCHK" | "HADD2" | "HMUL2"
        | "HFMA2" | "HSETP2" | "HMNMX2" | "DADD" | "DMUL" | "DFMA" | "DSETP" | "F2FP" | "F2F" | "F2I" | "I2F"
        | "I2FP" | "UFMUL" | "UFADD" | "UFFMA" | "UFSETP" | "UFSEL" | "UF2I" | "UI2F" | "UI2FP" | "UF2FP" | "FRND" => {
            Class::Float
        }
        "IADD" | "IADD3" | "IMAD" | "ISETP" | "LOP3" | "SHF" | "SHL" | "SHR" | "LEA" | "MOV" | "SEL" | "PRMT"
        | "PLOP3" | "VIADD" | "VIMNMX" | "VIMNMX3" | "VIADDMNMX" | "IMNMX" | "IABS" | "FLO" | "POPC" | "BREV"
        | "CS2R" | "S2R" | "S2UR" | "CS2UR" | "P2R" | "R2P" | "R2UR" | "UP2UR" | "UR2UP" | "LDC" | "ULDC" | "LDCU"
        | "UMOV" | "UIADD3" | "UIMAD" | "USHF" | "UISETP" | "ULEA" | "ULOP3" | "USEL" | "UPLOP3" | "UFLO" | "UPOPC"
        | "UBREV" | "UPRMT" | "UVIMNMX" | "UVIADD" | "UIMNMX" | "SGXT" | "USGXT" | "BMSK" | "UBMSK" => Class::Integer,
        "LDG" => Class::Load(bytes(instruction)),
        "STG" => Class::Store(bytes(instruction)),
        "LDGSTS" => Class::Copy(bytes(instruction)),
        "ATOM" | "ATOMG" | "ATOMS" | "RED" | "REDG" => Class::Atomic,
        "LDS" | "STS" => Class::Shared(bytes(instruction)),
        "LDSM" | "STSM" => Class::Shared(matrix_bytes(instruction)),
        "LDL" | "STL" => Class::Local,
        "BAR" | "UCGABAR" => Class::Barrier,
        "MEMBAR" | "FENCE" | "ERRBAR" | "CGAERRBAR" | "CCTL" | "DEPBAR" | "LDGDEPBAR" => Class::Fence,
        "SHFL" | "VOTE" | "VOTEU" | "REDUX" | "CREDUX" | "MATCH" => Class::Lanes,
        "BRA" | "BRX" | "BRXU" | "JMP" | "BSSY" | "BSYNC" | "BREAK" | "WARPSYNC" | "ENDCOLLECTIVE" | "CALL" | "RET"
        | "EXIT" | "KILL" | "YIELD" | "NANOSLEEP" | "BMOV" => Class::Branch,
        "NOP" => Class::Nothing,
        _ => return Err(format!("`{instruction}`: an opcode that xtask/src/sass/class.rs does not know")),
    })
}

/// Bytes a thread, by the modifier; without one it is a word.
fn bytes(instruction: &Instruction) -> u32 {
    let widths = [("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)];
    widths.iter().find(|(modifier, _)| instruction.has(modifier)).map_or(4, |(_, bytes)| *bytes)
}

/// Matrices of 8 rows of 16 bytes, 4 bytes of each a lane.
fn matrix_bytes(instruction: &Instruction) -> u32 {
    let count = instruction.opcode.rsplit('.').next().and_then(|last| last.parse().ok());
    4 * count.unwrap_or(1)
}

/// Clocks of an H200's tensor core, one of four in a multiprocessor, in tenths.
///
/// 1024 dense 16-bit operations a clock at full rate; warp-level instructions reach 62 % of it on Hopper. TF32 runs at half.
pub fn tensor_clocks(instruction: &Instruction) -> Result<u32, String> {
    let shape = instruction.opcode.split('.').nth(1).unwrap_or_default();
    let base = match shape {
        "16816" => 65,
        "1688" => 32,
        "1684" => 16,
        _ => return Err(format!("`{instruction}`: a shape that xtask/src/sass/class.rs does not know")),
    };
    Ok(if instruction.has("TF32") { 2 * base } else { base })
}
