//! Every operation of lookback on canonical shapes, as data: what a benchmark, a profiler or a comparison with another library
//! launches, how much work it is at least, and on which tensors.
//!
//! [`cases`] gives [`Case`]s, which are cheap: names, shapes, bytes and flops. [`Case::make`] allocates and fills the tensors, and
//! gives [`Work`] to launch. One is made at a time, because some take gigabytes. [`ceilings()`] are the cases that all others are
//! compared with.
//!
//! [`time()`] times one on a GPU, [`Counts`] counts one on the emulator; [`Run`] does that to many and gives a [`Record`], which [`plot()`]
//! draws.
//!
//! # Examples
//! ```no_run
//! use lookback_bench::{Scale, cases};
//! # fn main() -> lookback_device::Result<()> {
//! let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! let info = lookback_device::DeviceInfo::of(&context)?;
//! for case in cases(&info, Scale::Full).filter(|case| case.facts.name.contains("rms_norm")) {
//!     let mut work = case.make(&context.per_thread_stream(), 1)?;
//!     work.launch(0)?;
//!     for tensor in work.tensors() {
//!         println!("{} {:?} {} bytes at {:#x}", tensor.name, tensor.shape, tensor.bytes, tensor.address);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod attention;
mod case;
mod ceilings;
mod counts;
mod decode;
mod linear;
mod memory;
mod nn;
mod plot;
mod record;
mod run;
mod scan;
mod time;

pub use case::{Case, Facts, Launch, Scale, Work};
pub use ceilings::{ceilings, clock_mhz};
pub use counts::{Counts, PREDICTED_FOR};
pub use memory::{Memory, Role, Tensor};
pub use plot::plot;
pub use record::{Ceilings, Device, Outcome, Record, Row};
pub use run::{Mode, Run};
pub use time::{Effort, Timing, time};

use lookback_device::DeviceInfo;

/// Every case, in the order of families. Names are unique within a scale. Where a device has no kernel for a case, making it says so.
pub fn cases(info: &DeviceInfo, scale: Scale) -> impl Iterator<Item = Case> {
    let families: [fn(&DeviceInfo, Scale) -> Vec<Case>; 5] =
        [scan::cases, linear::cases, attention::cases, decode::cases, nn::cases];
    let info = info.clone();
    families.into_iter().flat_map(move |family| family(&info, scale))
}

/// Operations of the command line that have no case, and where what they cost is seen.
pub const ELSEWHERE: [(&str, &str); 2] = [
    (
        "ring_attention",
        "takes several ranks: `lookback bench ring` for what they send, `attention full, merged` and `merge_states` for a step",
    ),
    ("ring_attention_backward", "takes several ranks: `lookback bench ring`, and `attention_backward` for a step"),
];
