//! Scheduling: which CTA and which warp runs, for how long, and what it means when none can.
//!
//! CTAs become resident in a chosen order, as many as the device would hold, and stay until they end. The resident ones
//! take turns; in its turn a CTA runs its warps round and round until it ends, gets stuck or has used up its quantum.

mod cta;
mod deadlock;
mod order;
mod prepare;
pub(crate) mod residency;

use crate::counters::Counters;
use crate::decode::Program;
use crate::exec::machine::Machine;
use crate::launch::{Fault, LaunchConfig, Options};
use crate::memory::DeviceMemory;
use cta::{Cta, Progress};
use order::Order;

/// Run a grid to its end.
pub(crate) fn run(
    program: &Program,
    memory: &DeviceMemory,
    config: &LaunchConfig,
    params: &[u8],
    options: &Options,
) -> Result<Counters, Fault> {
    let (mut machine, template, limit) =
        prepare::machine(program, memory, config, params, options).map_err(|fault| *fault)?;
    let result = grid(&mut machine, &template, limit);
    prepare::settle(&mut machine);
    result.map_err(|fault| *fault)?;
    Ok(machine.recorder.finish())
}

fn grid(m: &mut Machine<'_>, template: &prepare::Template, limit: u32) -> Result<(), Box<Fault>> {
    let total = prepare::volume(m.config.grid);
    let mut order = Order::new(m.options.order, total);
    let mut resident: Vec<Slot> = Vec::new();
    let mut spare: Vec<Box<Cta>> = Vec::new();
    loop {
        let mut started = false;
        while (resident.len() as u64) < u64::from(limit)
            && let Some(index) = order.next()
        {
            resident.push(Slot::Waiting(index));
            started = true;
        }
        if resident.is_empty() {
            return Ok(());
        }
        let counters = &mut m.recorder.counters;
        counters.max_resident_ctas = counters.max_resident_ctas.max(resident.len() as u64);
        let version = m.version;
        let mut progress = started;
        for slot in &mut resident {
            let mut cta = match std::mem::replace(slot, Slot::Ended) {
                Slot::Waiting(index) => {
                    let mut cta = spare.pop().unwrap_or_default();
                    cta.start(m, template, index);
                    cta
                }
                Slot::Running(cta) => cta,
                Slot::Ended => continue,
            };
            match cta.turn(m)? {
                Progress::Ended => {
                    progress = true;
                    spare.push(cta);
                    continue;
                }
                Progress::Going => {}
            }
            *slot = Slot::Running(cta);
        }
        resident.retain(|slot| !matches!(slot, Slot::Ended));
        if m.clock > m.options.instruction_limit {
            return Err(deadlock::limit(m, &resident));
        }
        let quiet = |slot: &Slot| match slot {
            Slot::Running(cta) => cta.live_warps().all(|warp| warp.quiet(version)),
            Slot::Waiting(_) => false,
            Slot::Ended => true,
        };
        if !progress && m.version == version && resident.iter().all(quiet) {
            return Err(deadlock::report(m, &resident, order.left()));
        }
    }
}

/// A CTA that counts as resident. One that has not had a turn needs no storage yet.
enum Slot {
    Waiting(u64),
    Running(Box<Cta>),
    Ended,
}
