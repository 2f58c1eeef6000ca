//! The attention family.

mod forward_case;
mod forward_oracle;
