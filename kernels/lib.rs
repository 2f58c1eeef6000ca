//! Every kernel of lookback, as data: PTX text, contract, argument structure.
//!
//! A kernel is one file below `kernels/<family>/`. It opens with a **contract block** (`//!` lines) that says what it
//! computes, from which arguments, in which variants, how it is launched, what it writes, how it treats NaN, in which
//! order it adds, how far it may be off, and what it may use. The build script renders each variant, checks the text
//! against the contract and writes the [`KERNELS`] table and the [`args`] structures from it, so the host, the emulator
//! and the GPU cannot disagree about an argument.
//!
//! Nothing here talks to a driver: `lookback-device` loads and launches.

use std::borrow::Cow;

include!(concat!(env!("OUT_DIR"), "/registry.rs"));

/// One rendered variant of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kernel {
    /// Name without the variant, e.g. `gated_scan_fwd`.
    pub name: &'static str,
    /// Family: the folder below `kernels/`.
    pub family: &'static str,
    /// Symbol of the entry in the PTX text.
    pub entry: &'static str,
    /// Variant keys and values.
    pub variant: &'static [(&'static str, &'static str)],
    /// Lowest device that can run it.
    pub target: Target,
    /// PTX ISA version of the text: the driver must be new enough for it.
    pub ptx_version: (u8, u8),
    /// The text to give to the driver; [`Kernel::ptx`] reads it.
    pub text: Text,
    /// Fields of the parameter structure.
    pub args: &'static [Arg],
    /// Bytes of the parameter structure.
    pub args_bytes: usize,
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks that fit on one multiprocessor by registers and shared memory.
    pub min_ctas: u32,
    /// Dynamic shared memory of a block in bytes.
    pub dynamic_smem: u32,
    /// Whether every block must be resident at once.
    pub cooperative: bool,
    /// What a build may use at most.
    pub budget: Budget,
}

/// PTX as it lies in the program. Variants of one kernel repeat each other: packed, they take a ninth of the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// As it is.
    Plain(&'static str),
    /// A raw deflate stream.
    Packed(&'static [u8]),
}

/// A `.target` directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Compute capability times ten: 80 for `sm_80`.
    pub sm: u32,
    /// `sm_90a`: runs on that compute capability alone.
    pub arch_specific: bool,
}

impl Target {
    /// Whether a device of this compute capability (`major`, `minor`) can run the text.
    pub fn runs_on(self, (major, minor): (u32, u32)) -> bool {
        let have = major * 10 + minor;
        if self.arch_specific { have == self.sm } else { have >= self.sm }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}{}", self.sm, if self.arch_specific { "a" } else { "" })
    }
}

/// One field of a parameter structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// Field name; pointers begin with `p_`.
    pub name: &'static str,
    /// `u64`, `i64`, `u32`, `i32` or `f32`.
    pub ty: &'static str,
    /// `in`, `out`, `inout`, `scratch`; empty for a scalar.
    pub direction: &'static str,
    /// Shape, layout, limits.
    pub detail: &'static str,
    /// Byte offset.
    pub offset: usize,
}

/// Resources that a kernel may use at most; checked against ptxas for every target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Registers of a thread.
    pub regs: u32,
    /// Shared memory of a block in bytes, static and dynamic.
    pub smem: u32,
}

impl Kernel {
    /// The PTX text. Unpacks it on every call: a millisecond for the longest. Empty if a packed text is damaged, which a driver
    /// refuses.
    pub fn ptx(&self) -> Cow<'static, str> {
        match self.text {
            Text::Plain(text) => Cow::Borrowed(text),
            Text::Packed(bytes) => {
                let bytes = miniz_oxide::inflate::decompress_to_vec(bytes).unwrap_or_default();
                Cow::Owned(String::from_utf8(bytes).unwrap_or_default())
            }
        }
    }

    /// The value of a variant key.
    pub fn variant(&self, key: &str) -> Option<&'static str> {
        self.variant.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    /// What the contract block, the first lines of the text, says of a key, e.g. `does`.
    pub fn contract(&self, key: &str) -> Option<String> {
        let text = self.ptx();
        let mut lines = text.lines().map_while(|line| line.strip_prefix("//!"));
        let of_key = |line: &str| line.strip_prefix(' ')?.strip_prefix(key).map(str::to_string);
        let is_whole = |rest: &String| rest.is_empty() || rest.starts_with(' ');
        let mut value = lines.find_map(|line| of_key(line).filter(is_whole))?.trim().to_string();
        for more in lines.take_while(|line| line.starts_with("  ")) {
            value.push('\n');
            value.push_str(more.trim());
        }
        Some(value)
    }
}

/// The kernel of that name whose variant has all the given values.
pub fn find(name: &str, variant: &[(&str, &str)]) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name && variant.iter().all(|(key, value)| k.variant(key) == Some(value)))
}
