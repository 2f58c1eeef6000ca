//! The decode family.

mod kernel_case;
mod kernel_oracle;
mod layout;
mod protocol;
