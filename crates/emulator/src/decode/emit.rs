//! Emitting elementwise operations, and the usual operand shapes.

use super::cold::{Cold, LaneFn, Map, Place, ScalarFn, TestFn, elementwise_class};
use super::context::{Decoded, Decoder};
use super::op::{Op, Pred, R2, R3, R4, Slot};
use crate::counters::Class;
use crate::numerics::{Lanes, wide_map1, wide_map2, wide_map3};
use crate::ptx::ast::Type;

/// One source.
pub(super) fn unary(f: impl Fn(u32) -> u32 + Send + Sync + 'static) -> LaneFn {
    Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| wide_map1(a, &f))
}

/// Two sources.
pub(super) fn binary(f: impl Fn(u32, u32) -> u32 + Send + Sync + 'static) -> LaneFn {
    Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| wide_map2(a, b, &f))
}

/// Three sources.
pub(super) fn ternary(f: impl Fn(u32, u32, u32) -> u32 + Send + Sync + 'static) -> LaneFn {
    Box::new(move |a: &Lanes, b: &Lanes, c: &Lanes| wide_map3(a, b, c, &f))
}

/// An operation of one result on lanes of up to 64 bits.
pub(super) fn scalar(f: impl Fn([u64; 4]) -> u64 + Send + Sync + 'static) -> ScalarFn {
    Box::new(move |operands| [f(operands), 0])
}

/// The place of a value of that type in a slot.
pub(super) fn place(slot: Slot, ty: Type) -> Place {
    match ty.bytes() {
        8 => Place::Double(slot),
        4 => Place::Word(slot),
        _ => Place::Half(slot),
    }
}

impl<'a> Decoder<'a> {
    fn elementwise_class(&self) -> Class {
        elementwise_class(&self.ins.opcode, self.words().last())
    }

    /// Emit a function of whole 32-bit registers.
    pub(super) fn emit_lane_fn(&mut self, f: LaneFn, d: Slot, sources: [Slot; 3], count: u8) -> Decoded<()> {
        let class = self.elementwise_class();
        self.emit_cold(Cold::Lanes { f, d, sources, count, class })
    }

    /// Emit a function of single lanes.
    pub(super) fn emit_map(&mut self, f: ScalarFn, to: [Place; 2], from: [Place; 4]) -> Decoded<()> {
        let class = self.elementwise_class();
        self.emit_cold(Cold::Map(Map { f, to, from, class }))
    }

    /// Emit a comparison of whole 32-bit registers.
    pub(super) fn emit_test_fn(&mut self, f: TestFn, d: Pred, a: Slot, b: Slot) -> Decoded<()> {
        let class = self.elementwise_class();
        self.emit_cold(Cold::Test { f, d, a, b, class })
    }

    /// Emit an operation on whole 32-bit registers: destination first, then the sources, all of one type.
    pub(super) fn emit_lanes(&mut self, ty: Type, sources: usize, f: LaneFn) -> Decoded<()> {
        self.arity(sources + 1)?;
        let d = self.dest(0, ty)?;
        let mut slots = [0; 3];
        for (index, slot) in slots.iter_mut().enumerate().take(sources) {
            *slot = self.source(index + 1, ty)?;
        }
        self.emit_lane_fn(f, d, slots, sources as u8)
    }

    /// Emit an operation lane by lane: the types of the destination and of the sources.
    pub(super) fn emit_scalar(&mut self, to: Type, from: &[Type], f: ScalarFn) -> Decoded<()> {
        self.arity(from.len() + 1)?;
        let d = self.dest(0, to)?;
        let mut places = [Place::None; 4];
        for (index, (slot, ty)) in places.iter_mut().zip(from).enumerate() {
            *slot = place(self.source(index + 1, *ty)?, *ty);
        }
        self.emit_map(f, [place(d, to), Place::None], places)
    }

    /// Destination and one source of a type.
    pub(super) fn r2(&mut self, ty: Type) -> Decoded<R2> {
        self.arity(2)?;
        Ok(R2 { d: self.dest(0, ty)?, a: self.source(1, ty)? })
    }

    /// Destination and two sources of a type.
    pub(super) fn r3(&mut self, ty: Type) -> Decoded<R3> {
        self.arity(3)?;
        Ok(R3 { d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)? })
    }

    /// Destination and three sources of a type.
    pub(super) fn r4(&mut self, ty: Type) -> Decoded<R4> {
        self.arity(4)?;
        Ok(R4 { d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? })
    }
}

/// Hands a finished operation to the decoder.
pub(super) trait Pipe {
    fn pipe(self, d: &mut Decoder<'_>) -> Decoded<()>;
}

impl Pipe for Op {
    fn pipe(self, d: &mut Decoder<'_>) -> Decoded<()> {
        d.emit(self);
        Ok(())
    }
}
