//! Sequences that are dealt to several ranks, each a thread with its own stream on the same device.
mod attention;
mod backward;
mod bad_input;
pub mod case;
mod faults;
mod parts;
mod saboteur;
pub mod states;
mod states_backward;
mod states_faults;
pub mod states_linear;
mod states_scan;
mod world_of_one;
