//! The table of forms: what the decoder accepts, by family of instructions.

mod approx;
mod atomic;
mod bits;
mod compare;
mod control;
mod convert;
mod copies;
mod float;
mod fragment;
mod integer;
mod matrix;
mod memory;
mod moves;
mod rows;
mod warp;

use crate::form::Form;

/// Every case of every form, in a fixed order.
pub fn table() -> Vec<Form> {
    let mut forms = Vec::new();
    float::add(&mut forms);
    approx::add(&mut forms);
    integer::add(&mut forms);
    bits::add(&mut forms);
    compare::add(&mut forms);
    convert::add(&mut forms);
    moves::add(&mut forms);
    memory::add(&mut forms);
    atomic::add(&mut forms);
    warp::add(&mut forms);
    matrix::add(&mut forms);
    rows::add(&mut forms);
    copies::add(&mut forms);
    control::add(&mut forms);
    forms
}
