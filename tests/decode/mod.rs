//! The decode family.

mod layout;
mod protocol;
