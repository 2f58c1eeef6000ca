//! The top-level tests, a module per concern.

mod attention;
mod barriers;
#[path = "../build/mod.rs"]
mod build;
mod contract;
mod decode;
mod device;
mod linear;
mod model;
mod nn;
mod properties;
mod registry;
mod ring;
mod robust;
mod scan;
