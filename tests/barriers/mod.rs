//! Every kernel without one of its barriers: each must be reported, or be known not to matter.

mod attention;
mod coverage;
mod decode;
mod family;
mod linear;
mod nn;
mod reasons;
mod replay;
mod scan;
mod sites;
