//! The decode family.

mod append;
mod append_case;
mod append_e4m3;
mod case;
mod kernel_case;
mod kernel_oracle;
mod layout;
mod oracle;
mod protocol;
mod schedule;
