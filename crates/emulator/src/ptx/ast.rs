//! What the parser makes of PTX text: scopes, labels and symbols are resolved, opcodes and modifiers are still words.
//!
//! A parsed [`Module`] is consistent in itself: every register index is below `registers.len()` of its entry, every
//! symbol index below the length of the list that its kind names, every branch target at most `body.len()`.

/// One translation unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// `.version major.minor`.
    pub version: (u8, u8),
    /// The first word of `.target`, for example `sm_90a`.
    pub target: String,
    /// `.address_size`; always 64, any other size is refused.
    pub address_size: u8,
    /// Variables of module scope in `.global` and `.const`, in order of declaration.
    pub globals: Vec<GlobalVariable>,
    /// The kernels, in order of appearance.
    pub entries: Vec<Entry>,
}

impl Module {
    /// The kernel of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// One kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Name after `.entry`.
    pub name: String,
    /// Line of `.entry`.
    pub line: u32,
    /// Parameters with their offsets in the parameter block.
    pub params: Vec<Param>,
    /// Size of the parameter block: the end of the last parameter.
    pub params_bytes: u32,
    /// What the directives between the parameter list and the body say.
    pub directives: Directives,
    /// Every register of every scope; registers of the same name in different scopes have different indices.
    pub registers: Vec<Register>,
    /// Shared variables: those of the body, and those of module scope that the body mentions.
    pub shared: Vec<SharedVariable>,
    /// Bytes of the static shared variables, padding included.
    pub static_shared_bytes: u32,
    /// Where the dynamic shared memory begins, relative to the first static byte: every `.extern .shared` array starts here.
    pub dynamic_shared_offset: u32,
    /// The largest alignment among the shared variables, at least 1.
    pub shared_align: u32,
    /// The instructions. Running past the last one ends the thread, as `ret` does.
    pub body: Vec<Instruction>,
}

/// Launch and tuning directives of a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directives {
    /// `.maxntid`: the block may have at most this many threads (the product counts); missing dimensions are 1.
    pub maxntid: Option<[u32; 3]>,
    /// `.reqntid`: the block has exactly this shape.
    pub reqntid: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub minnctapersm: Option<u32>,
    /// `.maxnreg`.
    pub maxnreg: Option<u32>,
    /// `.reqnctapercluster`: the shape of a cluster.
    pub reqnctapercluster: Option<[u32; 3]>,
    /// `.maxclusterrank`: the largest number of CTAs in a cluster.
    pub maxclusterrank: Option<u32>,
    /// `.explicitcluster`: the launch must state the cluster shape.
    pub explicitcluster: bool,
}

/// A declared register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Name with its percent sign where it has one.
    pub name: String,
    /// Declared type.
    pub ty: Type,
}

/// The fundamental types. `.b128` and the 8-bit float types are not accepted as types of registers or variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

impl Type {
    /// The type of that name, written without its dot.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// The name without its dot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pred => "pred",
            Self::B8 => "b8",
            Self::B16 => "b16",
            Self::B32 => "b32",
            Self::B64 => "b64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::S8 => "s8",
            Self::S16 => "s16",
            Self::S32 => "s32",
            Self::S64 => "s64",
            Self::F16 => "f16",
            Self::F16x2 => "f16x2",
            Self::Bf16 => "bf16",
            Self::Bf16x2 => "bf16x2",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// Size in memory; a predicate has none and gives 0.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F16x2 | Self::Bf16x2 | Self::F32 => 4,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }
}

/// A variable in shared memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedVariable {
    /// Name.
    pub name: String,
    /// Element type.
    pub ty: Type,
    /// Alignment in bytes, a power of two.
    pub align: u32,
    /// Size in bytes; 0 for the dynamic array, whose size the launch states.
    pub bytes: u32,
    /// Offset from the first byte of the CTA's shared memory.
    pub offset: u32,
    /// `.extern .shared name[]`.
    pub dynamic: bool,
    /// Line of the declaration.
    pub line: u32,
}

/// A variable of module scope in `.global` or `.const`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalVariable {
    /// Name.
    pub name: String,
    /// Where it lives.
    pub space: GlobalSpace,
    /// Element type.
    pub ty: Type,
    /// Alignment in bytes, a power of two.
    pub align: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// The initialised first bytes, little endian; the rest of the variable is zero.
    pub initial: Vec<u8>,
    /// Line of the declaration.
    pub line: u32,
}

/// State space of a [`GlobalVariable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GlobalSpace {
    /// `.global`
    Global,
    /// `.const`
    Const,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Name.
    pub name: String,
    /// Type, or element type of an array.
    pub ty: Type,
    /// True for `name[count]`.
    pub array: bool,
    /// Alignment in bytes, a power of two.
    pub align: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Offset in the parameter block.
    pub offset: u32,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// `@p` or `@!p`.
    pub guard: Option<Guard>,
    /// First word: `cp` of `cp.async.cg.shared.global`.
    pub opcode: String,
    /// The other words in order, without dots: `["async", "cg", "shared", "global"]`. A double colon does not split:
    /// `L1::no_allocate` is one word.
    pub modifiers: Vec<String>,
    /// The operands in order of the text.
    pub operands: Vec<Operand>,
    /// Line of the opcode.
    pub line: u32,
}

/// The predicate that guards an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// Index of a register of type `.pred`.
    pub register: u32,
    /// True for `@!p`.
    pub negated: bool,
}

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register of any type, by index into [`Entry::registers`].
    Register(u32),
    /// `!p`: the register is of type `.pred`.
    NegatedPredicate(u32),
    /// An integer constant by value, between `i64::MIN` and `u64::MAX`; the decoder checks that it fits its type.
    Immediate(i128),
    /// `0fXXXXXXXX`.
    Float32(u32),
    /// `0dXXXXXXXXXXXXXXXX` or a decimal constant such as `1.5`, which PTX reads in double precision.
    Float64(u64),
    /// A read-only register such as `%tid.x`.
    Special(SpecialRegister),
    /// The address of a variable, `name` or `name+8`.
    Symbol {
        /// Which list the index is for.
        kind: SymbolKind,
        /// Index of the variable.
        index: u32,
        /// Bytes added to its address.
        offset: i64,
    },
    /// `[base+offset]`.
    Address {
        /// What is in the brackets.
        base: AddressBase,
        /// Bytes added.
        offset: i64,
    },
    /// `{a, b, ..}`: registers, constants, special registers or sinks; never empty, never nested.
    Vector(Vec<Operand>),
    /// `d|p` as `shfl.sync` and `setp` write two results. Each side is a register or a sink.
    Pair(Box<Operand>, Box<Operand>),
    /// A branch target: an index into [`Entry::body`], or its length for a label after the last instruction.
    Label(u32),
    /// `_`: the result is not wanted.
    Sink,
}

/// What an address operand starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressBase {
    /// A register of 32 or 64 bits, by index into [`Entry::registers`].
    Register(u32),
    /// A variable.
    Symbol {
        /// Which list the index is for.
        kind: SymbolKind,
        /// Index of the variable.
        index: u32,
    },
    /// `[1024]`: only the offset counts.
    Absolute,
}

/// Which list a symbol's index is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// [`Entry::shared`]
    Shared,
    /// [`Module::globals`], `.global` and `.const` alike
    Global,
    /// [`Entry::params`]
    Param,
}

/// Component of a special register that has three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dimension {
    X,
    Y,
    Z,
}

impl Dimension {
    /// 0, 1 or 2.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Registers that the machine sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialRegister {
    /// `%tid`
    Tid(Dimension),
    /// `%ntid`
    Ntid(Dimension),
    /// `%ctaid`
    Ctaid(Dimension),
    /// `%nctaid`
    Nctaid(Dimension),
    /// `%clusterid`
    ClusterId(Dimension),
    /// `%nclusterid`
    NclusterId(Dimension),
    /// `%cluster_ctaid`
    ClusterCtaid(Dimension),
    /// `%cluster_nctaid`
    ClusterNctaid(Dimension),
    /// `%cluster_ctarank`
    ClusterCtarank,
    /// `%cluster_nctarank`
    ClusterNctarank,
    /// `%laneid`
    LaneId,
    /// `%warpid`
    WarpId,
    /// `%nwarpid`
    NwarpId,
    /// `%smid`
    SmId,
    /// `%nsmid`
    NsmId,
    /// `%gridid`
    GridId,
    /// `%lanemask_eq`
    LanemaskEq,
    /// `%lanemask_le`
    LanemaskLe,
    /// `%lanemask_lt`
    LanemaskLt,
    /// `%lanemask_ge`
    LanemaskGe,
    /// `%lanemask_gt`
    LanemaskGt,
    /// `%clock`
    Clock,
    /// `%clock_hi`
    ClockHi,
    /// `%clock64`
    Clock64,
    /// `%globaltimer`
    GlobalTimer,
    /// `%globaltimer_lo`
    GlobalTimerLo,
    /// `%globaltimer_hi`
    GlobalTimerHi,
    /// `%dynamic_smem_size`
    DynamicSmemSize,
    /// `%total_smem_size`
    TotalSmemSize,
}
