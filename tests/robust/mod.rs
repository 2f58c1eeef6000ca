//! What happens to calls that cannot be right, and to right ones on a device in trouble.

mod attention;
mod call;
mod decode;
mod linear;
mod nn;
mod norms;
mod ring;
mod scan;
