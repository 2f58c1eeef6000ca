//! The state of decoding one kernel, and the reading of operands.

use super::cold::Cold;
use super::op::{ALWAYS, Address, Ins, NO_PRED, NO_SLOT, Op, Pred, PredOp, Slot};
use super::slots::{Home, Init, Slots};
use super::words::Words;
use super::{DecodeError, Target};
use crate::exec::address::{PARAM_WINDOW, SHARED_WINDOW};
use crate::ptx::ast::{AddressBase, Entry, Guard, Instruction, Operand, SpecialRegister, SymbolKind, Type};

/// Result of decoding one thing.
pub(crate) type Decoded<T> = Result<T, DecodeError>;

/// Decoding of one kernel in progress.
pub(crate) struct Decoder<'a> {
    pub entry: &'a Entry,
    pub globals: &'a [u64],
    pub slots: Slots,
    pub code: Vec<Ins>,
    pub lines: Vec<u32>,
    /// False for the helper instructions that one PTX instruction expands to beside its main one.
    pub counted: Vec<bool>,
    pub cold: Vec<Cold>,
    pub ins: &'a Instruction,
    guard: (Pred, u32),
    target: Target,
}

impl<'a> Decoder<'a> {
    /// A decoder that has seen nothing yet; `first` is any instruction of the kernel.
    pub fn new(entry: &'a Entry, globals: &'a [u64], slots: Slots, first: &'a Instruction, target: Target) -> Self {
        Self {
            entry,
            globals,
            slots,
            code: Vec::new(),
            lines: Vec::new(),
            counted: Vec::new(),
            cold: Vec::new(),
            ins: first,
            guard: (ALWAYS, 0),
            target,
        }
    }

    /// Architecture of the module.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Refuse what older devices than this do not have.
    pub fn needs(&self, capability: u32) -> Decoded<()> {
        if self.target.capability >= capability { Ok(()) } else { Err(self.error(format!("needs sm_{capability}"))) }
    }

    /// Turn to the next instruction.
    pub fn begin(&mut self, ins: &'a Instruction) -> Decoded<()> {
        self.ins = ins;
        self.guard = match ins.guard {
            None => (ALWAYS, 0),
            Some(Guard { register, negated }) => (self.pred_home(register)?, if negated { u32::MAX } else { 0 }),
        };
        Ok(())
    }

    /// The modifiers of the current instruction.
    pub fn words(&self) -> Words<'a> {
        Words::new(self.ins)
    }

    /// An error about the current instruction.
    pub fn error(&self, what: impl AsRef<str>) -> DecodeError {
        self.words().error(what.as_ref())
    }

    /// Append the operation under the current guard.
    pub fn emit(&mut self, op: Op) {
        self.push(op, self.guard, true);
    }

    /// Append an operation that only exists because ours are smaller than PTX's; it is not counted.
    pub fn emit_helper(&mut self, op: Op) {
        self.push(op, self.guard, false);
    }

    /// Append an operation of the side table.
    pub fn emit_cold(&mut self, cold: Cold) -> Decoded<()> {
        let index = u16::try_from(self.cold.len()).map_err(|_| self.error("the kernel is too large"))?;
        self.cold.push(cold);
        self.emit(Op::Cold(index));
        Ok(())
    }

    fn push(&mut self, op: Op, (guard, flip): (Pred, u32), counted: bool) {
        self.code.push(Ins { op, guard, flip });
        self.lines.push(self.ins.line);
        self.counted.push(counted);
    }

    /// Check the number of operands.
    pub fn arity(&self, wanted: usize) -> Decoded<()> {
        self.arity_between(wanted, wanted)
    }

    /// Check the number of operands.
    pub fn arity_between(&self, least: usize, most: usize) -> Decoded<()> {
        let found = self.ins.operands.len();
        if (least..=most).contains(&found) {
            Ok(())
        } else if least == most {
            Err(self.error(format!("expected {least} operands, found {found}")))
        } else {
            Err(self.error(format!("expected {least} to {most} operands, found {found}")))
        }
    }

    /// The operand at a position.
    pub fn operand(&self, index: usize) -> Decoded<&'a Operand> {
        self.ins.operands.get(index).ok_or_else(|| self.error(format!("operand {} is missing", index + 1)))
    }

    /// A slot that holds this constant.
    pub fn constant(&mut self, init: Init) -> Decoded<Slot> {
        let error = self.error("the kernel has too many registers and constants");
        self.slots.constant(init).ok_or(error)
    }

    /// A fresh register of the decoder's own.
    pub fn temporary(&mut self, wide: bool) -> Decoded<Slot> {
        let error = self.error("the kernel has too many registers and constants");
        self.slots.temporary(wide).ok_or(error)
    }

    /// A source of this type.
    pub fn source(&mut self, index: usize, ty: Type) -> Decoded<Slot> {
        let operand = self.operand(index)?;
        self.source_operand(operand, ty)
    }

    /// A source whose register may be wider than the type, as `st` and `cvt` allow.
    pub fn source_relaxed(&mut self, operand: &'a Operand, ty: Type) -> Decoded<Slot> {
        match operand {
            Operand::Register(register) => self.register_relaxed(*register, ty),
            other => self.source_operand(other, ty),
        }
    }

    /// A source of this type, given as an operand.
    pub fn source_operand(&mut self, operand: &'a Operand, ty: Type) -> Decoded<Slot> {
        match operand {
            Operand::Register(register) => self.register(*register, ty),
            Operand::Immediate(value) => {
                let bits = self.immediate(*value, ty)?;
                self.constant(bits)
            }
            Operand::Float32(bits) if matches!(ty, Type::F32 | Type::B32) => self.constant(Init::Word(*bits)),
            Operand::Float64(bits) if matches!(ty, Type::F64 | Type::B64) => self.constant(Init::Double(*bits)),
            Operand::Float64(bits) if ty == Type::F32 => {
                self.constant(Init::Word((f64::from_bits(*bits) as f32).to_bits()))
            }
            Operand::Special(special) if matches!(self.ins.opcode.as_str(), "mov" | "cvt") => {
                self.special(*special, ty)
            }
            Operand::Special(_) => Err(self.error("a special register can only be read by mov and cvt")),
            Operand::Symbol { kind, index, offset } if matches!(self.ins.opcode.as_str(), "mov" | "cvta") => {
                let init = self.symbol(*kind, *index, *offset, ty)?;
                self.constant(init)
            }
            _ => Err(self.error(format!("a source of type .{} cannot have this form", ty.name()))),
        }
    }

    /// A destination of this type; `_` where the result is not wanted.
    pub fn dest(&mut self, index: usize, ty: Type) -> Decoded<Slot> {
        let operand = self.operand(index)?;
        self.dest_operand(operand, ty)
    }

    /// A destination of this type, given as an operand.
    pub fn dest_operand(&mut self, operand: &'a Operand, ty: Type) -> Decoded<Slot> {
        match operand {
            Operand::Register(register) => self.register(*register, ty),
            Operand::Sink if matches!(self.ins.opcode.as_str(), "atom" | "elect" | "mbarrier") => Ok(NO_SLOT),
            _ => Err(self.error("the destination must be a register")),
        }
    }

    /// A destination whose register may be wider than the type, as `ld` and `cvt` allow. Also the register's own type.
    pub fn dest_relaxed(&mut self, operand: &'a Operand, ty: Type) -> Decoded<(Slot, Type)> {
        match operand {
            Operand::Register(register) => Ok((self.register_relaxed(*register, ty)?, self.register_type(*register)?)),
            _ => Err(self.error("the destination must be a register")),
        }
    }

    /// Declared type of a register.
    pub fn register_type(&self, register: u32) -> Decoded<Type> {
        let found = self.entry.registers.get(register as usize);
        found.map(|register| register.ty).ok_or_else(|| self.error("no such register"))
    }

    /// A register of exactly the size of the type.
    pub fn register(&self, register: u32, ty: Type) -> Decoded<Slot> {
        let declared = self.register_type(register)?;
        if declared.bytes() == ty.bytes() && compatible(ty, declared) {
            self.slot_home(register)
        } else {
            Err(self.mismatch(register, declared, ty))
        }
    }

    fn register_relaxed(&self, register: u32, ty: Type) -> Decoded<Slot> {
        let declared = self.register_type(register)?;
        let wider_integer = declared.bytes() > ty.bytes() && is_integer(declared) && is_integer(ty);
        if wider_integer || (declared.bytes() == ty.bytes() && compatible(ty, declared)) {
            self.slot_home(register)
        } else {
            Err(self.mismatch(register, declared, ty))
        }
    }

    fn mismatch(&self, register: u32, declared: Type, wanted: Type) -> DecodeError {
        let name = self.entry.registers.get(register as usize).map_or("", |register| register.name.as_str());
        self.error(format!("register {name} is .{}, the instruction wants .{}", declared.name(), wanted.name()))
    }

    fn slot_home(&self, register: u32) -> Decoded<Slot> {
        match self.slots.home(register) {
            Some(Home::Slot(slot)) => Ok(slot),
            _ => Err(self.error("a predicate cannot stand here")),
        }
    }

    fn pred_home(&self, register: u32) -> Decoded<Pred> {
        match self.slots.home(register) {
            Some(Home::Pred(pred)) => Ok(pred),
            _ => Err(self.error("a register of type .pred must stand here")),
        }
    }

    /// A predicate that is read; `!p` only where `negation` says so.
    pub fn pred_source(&mut self, index: usize, negation: bool) -> Decoded<Pred> {
        match self.operand(index)? {
            Operand::Register(register) => self.pred_home(*register),
            Operand::NegatedPredicate(register) if negation => {
                let source = self.pred_home(*register)?;
                let error = self.error("the kernel has too many predicates");
                let negated = self.slots.temporary_predicate().ok_or(error)?;
                self.push(Op::Logic(PredOp::Not, negated, source, source), (ALWAYS, 0), false);
                Ok(negated)
            }
            _ => Err(self.error("a predicate must stand here")),
        }
    }

    /// A predicate that is written.
    pub fn pred_dest(&mut self, operand: &'a Operand) -> Decoded<Pred> {
        match operand {
            Operand::Register(register) => self.pred_home(*register),
            Operand::Sink if matches!(self.ins.opcode.as_str(), "setp" | "shfl" | "match" | "elect") => Ok(NO_PRED),
            _ => Err(self.error("a predicate must stand here")),
        }
    }

    /// The two results of `d|p`; without the bar the second is not wanted.
    pub fn pair(&self, index: usize) -> Decoded<(&'a Operand, Option<&'a Operand>)> {
        Ok(match self.operand(index)? {
            Operand::Pair(first, second) => (first, Some(second)),
            other => (other, None),
        })
    }

    /// The elements of `{a, b}`, or the one operand that is not a vector.
    pub fn elements(&self, index: usize) -> Decoded<Vec<&'a Operand>> {
        Ok(match self.operand(index)? {
            Operand::Vector(elements) => elements.iter().collect(),
            other => vec![other],
        })
    }

    /// An integer written in the text.
    pub fn literal(&self, index: usize) -> Decoded<i128> {
        match self.operand(index)? {
            Operand::Immediate(value) => Ok(*value),
            _ => Err(self.error(format!("operand {} must be an integer constant", index + 1))),
        }
    }

    /// A branch target, as an index into the body.
    pub fn label(&self, index: usize) -> Decoded<u32> {
        match self.operand(index)? {
            Operand::Label(target) => Ok(*target),
            _ => Err(self.error("a label must stand here")),
        }
    }

    /// `[..]` in global, shared or generic space.
    pub fn address(&mut self, index: usize, shared: bool) -> Decoded<Address> {
        let Operand::Address { base, offset } = self.operand(index)? else {
            return Err(self.error(format!("operand {} must be an address in brackets", index + 1)));
        };
        let narrow = i32::try_from(*offset).map_err(|_| self.error("the offset does not fit 32 bits"))?;
        match base {
            AddressBase::Register(register) => {
                let wide = self.register_type(*register)?.bytes() == 8;
                if !wide && !shared {
                    return Err(self.error("the address register must have 64 bits"));
                }
                let slot = self.register(*register, if wide { Type::U64 } else { Type::U32 })?;
                Ok(Address { slot, wide, offset: narrow })
            }
            AddressBase::Symbol { kind, index } => {
                let wanted = if shared { SymbolKind::Shared } else { SymbolKind::Global };
                if *kind != wanted {
                    return Err(self.error("the variable lives in another state space"));
                }
                let init = self.symbol(*kind, *index, *offset, if shared { Type::U32 } else { Type::U64 })?;
                Ok(Address { slot: self.constant(init)?, wide: !shared, offset: 0 })
            }
            AddressBase::Absolute => Err(self.error("an address needs a register or a variable")),
        }
    }

    fn special(&mut self, special: SpecialRegister, ty: Type) -> Decoded<Slot> {
        use SpecialRegister as S;
        match special {
            S::Clock | S::ClockHi | S::Clock64 | S::GlobalTimer | S::GlobalTimerLo | S::GlobalTimerHi => {
                Err(self.error("a clock can only be read by mov"))
            }
            S::ClusterId(_)
            | S::NclusterId(_)
            | S::ClusterCtaid(_)
            | S::ClusterNctaid(_)
            | S::ClusterCtarank
            | S::ClusterNctarank => Err(self.error("clusters are not supported")),
            S::GridId if ty.bytes() == 8 => self.constant(Init::SpecialWide(special)),
            _ if ty.bytes() == 4 && is_integer(ty) => self.constant(Init::Special(special)),
            _ => Err(self.error(format!("a special register cannot be read as .{}", ty.name()))),
        }
    }

    fn symbol(&self, kind: SymbolKind, index: u32, offset: i64, ty: Type) -> Decoded<Init> {
        let wide = match ty {
            Type::U32 | Type::B32 | Type::S32 => false,
            Type::U64 | Type::B64 | Type::S64 => true,
            _ => return Err(self.error("an address is an integer of 32 or 64 bits")),
        };
        match kind {
            SymbolKind::Shared => {
                let variable =
                    self.entry.shared.get(index as usize).ok_or_else(|| self.error("no such shared variable"))?;
                Ok(Init::Shared { offset: i64::from(variable.offset).wrapping_add(offset), wide })
            }
            SymbolKind::Global if wide => {
                let base = self.globals.get(index as usize).ok_or_else(|| self.error("the variable has no address"))?;
                Ok(Init::Double(base.wrapping_add_signed(offset)))
            }
            SymbolKind::Param if wide => {
                let param = self.entry.params.get(index as usize).ok_or_else(|| self.error("no such parameter"))?;
                Ok(Init::Double(u64::from(param.offset).wrapping_add_signed(offset)))
            }
            _ => Err(self.error("this address needs 64 bits")),
        }
    }

    /// The bits of an integer constant in a type that it must fit.
    pub fn immediate(&self, value: i128, ty: Type) -> Decoded<Init> {
        let bits = match ty {
            Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2 | Type::F32 | Type::F64 | Type::Pred => {
                return Err(self.error(format!("an integer constant cannot stand for .{}", ty.name())));
            }
            _ => ty.bytes() * 8,
        };
        if value < -(1i128 << (bits - 1)) || value >= 1i128 << bits {
            return Err(self.error(format!("the constant {value} does not fit .{}", ty.name())));
        }
        // Narrow signed constants live sign extended to 32 bits only as far as their own type: the register invariant is
        // that bits above the type are zero.
        let mask = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
        let image = value as u64 & mask;
        Ok(if bits == 64 { Init::Double(image) } else { Init::Word(image as u32) })
    }

    /// Address windows of `cvta`: what is added to go from the space to generic.
    pub fn window(&self, space: &str) -> Option<u64> {
        match space {
            "global" => Some(0),
            "shared" | "shared::cta" => Some(SHARED_WINDOW),
            "param" => Some(PARAM_WINDOW),
            _ => None,
        }
    }
}

/// Signed, unsigned and untyped integers.
pub(crate) fn is_integer(ty: Type) -> bool {
    use Type::{B8, B16, B32, B64, S8, S16, S32, S64, U8, U16, U32, U64};
    matches!(ty, B8 | B16 | B32 | B64 | U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64)
}

/// Untyped bits.
pub(crate) fn is_bits(ty: Type) -> bool {
    matches!(ty, Type::B8 | Type::B16 | Type::B32 | Type::B64)
}

/// Two's complement.
pub(crate) fn is_signed(ty: Type) -> bool {
    matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64)
}

/// Whether a register of one type may stand where the instruction says another of the same size.
fn compatible(instruction: Type, register: Type) -> bool {
    instruction == register
        || is_bits(instruction)
        || is_bits(register)
        || (is_integer(instruction) && is_integer(register))
}
