//! Memory, parameters and launches for the tests, and a small generator of kernels that do one thing per thread.

use lookback_emulator::counters::Counters;
use lookback_emulator::decode::{Program, decode};
use lookback_emulator::launch::{Fault, LaunchConfig, Options, launch};
use lookback_emulator::memory::DeviceMemory;
use lookback_emulator::ptx;

const MEMORY: u64 = 64 << 20;

/// A kernel parameter.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    U32(u32),
    U64(u64),
}

/// One kernel and the memory it runs on.
pub struct Machine {
    pub memory: DeviceMemory,
    pub program: Program,
}

impl Machine {
    /// Parses and decodes the first kernel of the text and allocates the module's variables.
    pub fn new(text: &str) -> Self {
        Self::try_new(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// Like [`Machine::new`], for texts that may be refused.
    pub fn try_new(text: &str) -> Result<Self, String> {
        let module = ptx::parse(text).map_err(|error| error.to_string())?;
        let memory = DeviceMemory::new(MEMORY);
        let mut globals = Vec::new();
        for variable in &module.globals {
            let pointer = memory.alloc(variable.bytes).unwrap();
            memory.fill(pointer, [0u8], variable.bytes).unwrap();
            memory.copy_from_host(pointer, &variable.initial).unwrap();
            globals.push(pointer);
        }
        let program = decode(&module, &module.entries[0], &globals).map_err(|error| error.to_string())?;
        Ok(Self { memory, program })
    }

    /// An allocation that holds these words.
    pub fn words(&self, words: &[u32]) -> u64 {
        self.bytes(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    /// An allocation that holds these 64-bit words.
    pub fn doubles(&self, words: &[u64]) -> u64 {
        self.bytes(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    /// An allocation that holds these bytes.
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let pointer = self.uninitialized(bytes.len());
        self.memory.copy_from_host(pointer, bytes).unwrap();
        pointer
    }

    /// An allocation of that many zero words.
    pub fn zeros(&self, words: usize) -> u64 {
        self.words(&vec![0; words])
    }

    /// An allocation that nobody has written.
    pub fn uninitialized(&self, bytes: usize) -> u64 {
        self.memory.alloc(bytes as u64).unwrap()
    }

    /// Words of memory.
    pub fn read(&self, pointer: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; words * 4];
        self.memory.copy_to_host(&mut bytes, pointer).unwrap();
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// 64-bit words of memory.
    pub fn read_doubles(&self, pointer: u64, words: usize) -> Vec<u64> {
        let mut bytes = vec![0; words * 8];
        self.memory.copy_to_host(&mut bytes, pointer).unwrap();
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// Runs the kernel on `ctas` blocks of `threads`.
    pub fn run(&self, ctas: u32, threads: u32, args: &[Arg], options: &Options) -> Result<Counters, Fault> {
        let config = LaunchConfig { grid: [ctas, 1, 1], block: [threads, 1, 1], dynamic_shared: 0, cooperative: false };
        launch(&self.program, &self.memory, &config, &pack(args), options)
    }

    /// Runs the kernel, which must succeed.
    pub fn succeed(&self, ctas: u32, threads: u32, args: &[Arg], options: &Options) -> Counters {
        self.run(ctas, threads, args, options).unwrap_or_else(|fault| panic!("{fault}\nwith {options:?}"))
    }
}

/// The parameter block: every parameter at a multiple of its size.
pub fn pack(args: &[Arg]) -> Vec<u8> {
    let mut block = Vec::new();
    for arg in args {
        match arg {
            Arg::U32(value) => block.extend(value.to_le_bytes()),
            Arg::U64(value) => {
                block.resize(block.len().next_multiple_of(8), 0);
                block.extend(value.to_le_bytes());
            }
        }
    }
    block
}

/// The default options with some of them changed.
pub fn options(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    change(&mut options);
    options
}

/// A module of one kernel with these parameters and this body.
pub fn kernel(params: &str, body: &str) -> String {
    format!(".version 8.3\n.target sm_90a\n.address_size 64\n.visible .entry test({params})\n{{\n{body}\n}}\n")
}

/// Type of the operands of an instruction under test, and how it travels through memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Type of the register.
    pub register: &'static str,
    /// Type of the load or store.
    pub memory: &'static str,
    bytes: usize,
}

pub const B16: Operand = Operand { register: "b16", memory: "b16", bytes: 2 };
pub const B32: Operand = Operand { register: "b32", memory: "b32", bytes: 4 };
pub const F32: Operand = Operand { register: "f32", memory: "f32", bytes: 4 };
pub const B64: Operand = Operand { register: "b64", memory: "b64", bytes: 8 };
pub const F64: Operand = Operand { register: "f64", memory: "f64", bytes: 8 };

/// Runs `code` once for every row of inputs and returns what it leaves in `%d`. Inputs are in `%a`, `%b`, `%c`; `%p`
/// and `%q` are predicates; bits are right-aligned in the words given and returned.
pub fn elementwise(code: &str, to: Operand, from: &[Operand], rows: &[Vec<u64>]) -> Vec<u64> {
    elementwise_on(code, to, from, rows, &Options::default())
}

/// Like [`elementwise`], with options.
pub fn elementwise_on(code: &str, to: Operand, from: &[Operand], rows: &[Vec<u64>], options: &Options) -> Vec<u64> {
    const THREADS: usize = 128;
    let mut body = format!(
        ".reg .pred %p, %q, %outside; .reg .b32 %index, %count, %thread; .reg .b64 %at, %offset; .reg .{} %d;\n\
         ld.param.u32 %count, [p_count]; mov.u32 %index, %ctaid.x; mov.u32 %thread, %tid.x;\n\
         mad.lo.u32 %index, %index, {THREADS}, %thread; setp.ge.u32 %outside, %index, %count; @%outside ret;\n",
        to.register
    );
    let mut params = ".param .u32 p_count, .param .u64 p_d".to_owned();
    for (operand, name) in from.iter().zip(["a", "b", "c"]) {
        params += &format!(", .param .u64 p_{name}");
        body += &format!(
            ".reg .{} %{name}; ld.param.u64 %at, [p_{name}]; mul.wide.u32 %offset, %index, {};\n\
             add.u64 %at, %at, %offset; ld.global.{} %{name}, [%at];\n",
            operand.register, operand.bytes, operand.memory
        );
    }
    body += &format!(
        "{code}\nld.param.u64 %at, [p_d]; mul.wide.u32 %offset, %index, {}; add.u64 %at, %at, %offset;\n\
         st.global.{} [%at], %d;\nret;",
        to.bytes, to.memory
    );
    let machine = Machine::new(&kernel(&params, &body));
    let out = machine.uninitialized(rows.len() * to.bytes);
    let mut args = vec![Arg::U32(rows.len() as u32), Arg::U64(out)];
    for (column, operand) in from.iter().enumerate() {
        let bytes: Vec<u8> =
            rows.iter().flat_map(|row| row[column].to_le_bytes().into_iter().take(operand.bytes)).collect();
        args.push(Arg::U64(machine.bytes(&bytes)));
    }
    machine.succeed(rows.len().div_ceil(THREADS) as u32, THREADS as u32, &args, options);
    let mut bytes = vec![0; rows.len() * to.bytes];
    machine.memory.copy_to_host(&mut bytes, out).unwrap();
    bytes
        .chunks_exact(to.bytes)
        .map(|value| value.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
        .collect()
}

/// Every combination of one value for each operand.
pub fn cross(columns: &[&[u64]]) -> Vec<Vec<u64>> {
    columns.iter().fold(vec![Vec::new()], |rows, column| {
        rows.iter().flat_map(|row| column.iter().map(|value| [row.as_slice(), &[*value]].concat())).collect()
    })
}

/// A small generator; the same numbers on every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    pub fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.word()).collect()
    }
}
