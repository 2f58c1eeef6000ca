//! One instruction form: how its program looks, what it is fed with, what it has to give.

use crate::{
    inputs::{Data, Kind, Register},
    oracle::Oracle,
};

/// The oldest devices that have an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Ampere.
    Sm80,
    /// Hopper.
    Sm90,
}

/// How far a definition fixes the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// To the last bit, NaN payloads aside.
    Exact,
    /// Up to a documented error.
    Approximate,
    /// A sum of products whose order and rounding are the device's own: to the last bit on devices whose arithmetic is known.
    Tensor,
}

/// One case of one instruction form.
pub struct Form {
    /// The form, as [`crate::used`] names it: opcode, modifiers and the shape of its operands.
    pub key: String,
    /// Tells cases of one form apart; empty for the only one.
    pub case: &'static str,
    /// Other forms that the program cannot do without, and whose effect shows in the results.
    pub also: Vec<String>,
    /// The oldest devices that have it.
    pub level: Level,
    /// Operands: registers `%a0`, `%a1`, .. of the program.
    pub inputs: Vec<Kind>,
    /// Results: registers `%d0`, `%d1`, ..
    pub outputs: Vec<Register>,
    /// Further declarations.
    pub declare: String,
    /// Bytes of shared memory, at `%tile`.
    pub shared: u32,
    /// The instructions between the loads of operands and the stores of results.
    pub body: String,
    /// Where operands come from.
    pub data: Data,
    /// What the results have to be.
    pub oracle: Option<Oracle>,
    /// How far the definition fixes them.
    pub class: Class,
}

/// Random operands of a form besides the special ones.
pub const RANDOM: u64 = 2048;

impl Form {
    /// `key %d0, %a0, %a1, ..;` on special and random operands, without an oracle yet.
    pub fn plain(key: impl Into<String>, inputs: &[Kind], output: Register) -> Self {
        let key = key.into();
        let operands: String = (0..inputs.len()).map(|i| format!(", %a{i}")).collect();
        let body = format!("{key} %d0{operands};");
        Self::with_body(key, inputs, &[output], body)
    }

    /// A form with a body of its own.
    pub fn with_body(key: impl Into<String>, inputs: &[Kind], outputs: &[Register], body: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            case: "",
            also: Vec::new(),
            level: Level::Sm80,
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
            declare: String::new(),
            shared: 0,
            body: body.into(),
            data: Data::Mixed(RANDOM),
            oracle: None,
            class: Class::Exact,
        }
    }

    /// With this oracle.
    pub fn oracle(mut self, oracle: Oracle) -> Self {
        self.oracle = Some(oracle);
        self
    }

    /// With these operands.
    pub fn data(mut self, data: Data) -> Self {
        self.data = data;
        self
    }

    /// Needs these devices.
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// With further registers.
    pub fn declare(mut self, declare: impl Into<String>) -> Self {
        self.declare = declare.into();
        self
    }

    /// With shared memory.
    pub fn shared(mut self, bytes: u32) -> Self {
        self.shared = bytes;
        self
    }

    /// One of several cases.
    pub fn case(mut self, case: &'static str) -> Self {
        self.case = case;
        self
    }

    /// Covers these forms as well.
    pub fn also(mut self, keys: &[&str]) -> Self {
        self.also.extend(keys.iter().map(ToString::to_string));
        self
    }

    /// Its results are fixed this far.
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Key and case: unique in the table.
    pub fn name(&self) -> String {
        if self.case.is_empty() { self.key.clone() } else { format!("{}, {}", self.key, self.case) }
    }
}
