//! The decode family.

mod case;
mod kernel_case;
mod kernel_oracle;
mod layout;
mod oracle;
mod protocol;
mod schedule;
