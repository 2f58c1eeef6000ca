//! The decode family.
