//! Proof that the emulator computes what the hardware computes, instruction form by instruction form.
//!
//! For each form that the emulator's decoder accepts there is a tiny kernel ([`program`]) that loads operands ([`inputs`]),
//! executes the one instruction and stores the bits of its results. The same kernel runs on whatever device is there: on a GPU
//! its results are recorded ([`record`]), on the emulator they are compared with such a record ([`replay`]). Whether or not
//! there is a record, they are held against what the definition of the instruction says, computed independently ([`oracle`]).
//!
//! | module | subject |
//! |---|---|
//! | [`form`], [`forms`] | what a form is, and the table of all |
//! | [`inputs`] | operands as a function of their index |
//! | [`program`] | the kernel of a form |
//! | [`oracle`] | what the results have to be |
//! | [`device`] | running programs |
//! | [`examine`](mod@examine) | one form on one device: hashes, a sample, what disagrees with the definition |
//! | [`operations`] | whole operations, for bitwise comparison |
//! | [`record`], [`replay`] | the record of a device, and the comparison with it |
//! | [`used`] | which forms the kernels use |
//! | [`supported`] | the page that says what is supported and how far it is proven |

pub mod device;
pub mod error;
pub mod examine;
pub mod form;
pub mod forms;
pub mod inputs;
pub mod operations;
pub mod oracle;
pub mod program;
pub mod record;
pub mod replay;
pub mod supported;
pub mod used;

pub use error::{Error, Result};

/// Every n-th of all 2^32 operands that a sweep takes, unless asked otherwise.
pub const STRIDE: u64 = 4099;
