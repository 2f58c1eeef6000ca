//! What happens to calls that cannot be right, and to right ones on a device in trouble.

mod attention;
mod call;
mod decode;
mod failures;
mod linear;
mod nn;
mod norms;
mod plans;
mod ring;
mod scan;
