//! From a launch request to a machine: validation, and the registers that every warp starts with.

use super::residency;
use crate::check::{Lints, Sanitizer, Shape};
use crate::counters::{Recorder, TensorCount};
use crate::decode::Program;
use crate::decode::cold::Cold;
use crate::decode::op::Op;
use crate::decode::slots::Init;
use crate::exec::address::SHARED_BASE;
use crate::exec::machine::{Machine, Tally};
use crate::exec::tensor;
use crate::exec::warp::{self, POISON, Row};
use crate::launch::{
    Checks, Fault, FaultKind, LaneOrder, LaunchConfig, MAX_BLOCK_SHARED, MAX_BLOCK_THREADS, Options, WARP,
};
use crate::memory::DeviceMemory;
use crate::ptx::ast::SpecialRegister;

/// What the CTAs of a launch start from.
pub(super) struct Template {
    pub warp: warp::Template,
    pub shared_bytes: u32,
    pub warps: u32,
    pub threads: u32,
    /// Slots that differ between CTAs or warps.
    pub varying: Vec<(u16, SpecialRegister)>,
}

/// Product of three sizes; far too large ones stay far too large.
pub(super) fn volume(sizes: [u32; 3]) -> u64 {
    sizes.iter().fold(1, |product: u64, size| product.saturating_mul(u64::from(*size)))
}

/// Validate a launch and set up its machine; also the number of CTAs resident at once.
pub(super) fn machine<'l>(
    program: &'l Program,
    memory: &DeviceMemory,
    config: &LaunchConfig,
    params: &'l [u8],
    options: &'l Options,
) -> Result<(Machine<'l>, Template, u32), Box<Fault>> {
    let refuse = |kind: FaultKind, message: String| {
        Err(Box::new(Fault { kind, kernel: program.name.clone(), line: 0, cta: [0; 3], thread: None, message }))
    };
    let threads = volume(config.block);
    let grid = volume(config.grid);
    if threads == 0 || grid == 0 {
        return refuse(FaultKind::InvalidLaunch, format!("grid {:?} and block {:?}", config.grid, config.block));
    }
    if config.grid[0] > i32::MAX as u32 || config.grid[1] > 65_535 || config.grid[2] > 65_535 {
        return refuse(FaultKind::InvalidLaunch, format!("grid {:?} is larger than a device allows", config.grid));
    }
    if threads > u64::from(MAX_BLOCK_THREADS) || config.block[2] > 64 {
        return refuse(FaultKind::InvalidLaunch, format!("block {:?} has more than 1024 threads", config.block));
    }
    if grid > u64::from(u32::MAX) {
        return refuse(FaultKind::InvalidLaunch, format!("grid {:?} has more CTAs than can be emulated", config.grid));
    }
    let threads = threads as u32;
    if let Some(most) = program.max_threads
        && u64::from(threads) > volume(most)
    {
        return refuse(FaultKind::InvalidLaunch, format!("{threads} threads, but .maxntid allows {most:?}"));
    }
    if let Some(exact) = program.required_block
        && exact != config.block
    {
        return refuse(FaultKind::InvalidLaunch, format!("block {:?}, but .reqntid wants {exact:?}", config.block));
    }
    if params.len() != program.param_bytes as usize {
        let message = format!("{} bytes of parameters, the kernel has {}", params.len(), program.param_bytes);
        return refuse(FaultKind::InvalidLaunch, message);
    }
    let shared_bytes = program.shared_bytes(config.dynamic_shared);
    if shared_bytes > MAX_BLOCK_SHARED || residency::occupancy(program, threads, config.dynamic_shared) == 0 {
        let message =
            format!("{threads} threads of {} registers and {shared_bytes} bytes of shared memory", program.registers);
        return refuse(FaultKind::OutOfResources, message);
    }
    let limit = residency::limit(program, threads, config.dynamic_shared, options);
    if config.cooperative && grid > u64::from(limit) {
        let message = format!("{grid} CTAs cannot be resident at once; the limit is {limit}");
        return refuse(FaultKind::CooperativeTooLarge, message);
    }
    let view = memory.view();
    let checked = options.checks == Checks::On;
    let sanitizer = checked.then(|| {
        let shape = Shape { ctas: grid as u32, threads, shared_bytes, shared_base: SHARED_BASE };
        let lane_order = options.lane_order == LaneOrder::Synchronised;
        Sanitizer::new(shape, &view, Lints { lane_order, ..Lints::default() })
    });
    if !checked {
        view.assume_initialised();
    }
    let template = template(program, config, params, shared_bytes, threads, checked, options);
    let mut recorder = Recorder::new(options.counting, &view);
    recorder.counters.ctas = grid;
    let machine = Machine {
        program,
        config: *config,
        options,
        params,
        view,
        recorder,
        sanitizer,
        tally: vec![Tally::default(); program.code.len()],
        version: 0,
        clock: 0,
    };
    Ok((machine, template, limit))
}

/// Turn the tally of instructions into counters.
pub(super) fn settle(m: &mut Machine<'_>) {
    let program = m.program;
    for ((tally, class), ins) in m.tally.iter().zip(&program.classes).zip(&program.code) {
        let Some(class) = class else { continue };
        let counters = &mut m.recorder.counters;
        counters.instructions[*class as usize] += tally.issued;
        counters.lanes += tally.lanes;
        // A matrix product takes the whole warp, or none of it where its guard is false.
        if let Op::Cold(index) = ins.op
            && let Some(Cold::Mma(mma)) = program.cold.get(usize::from(index))
        {
            let ((m, n, k), input) = (tensor::shape(mma.form), mma.input);
            let count = tally.lanes / u64::from(WARP);
            let same = |entry: &&mut TensorCount| (entry.m, entry.n, entry.k, entry.input) == (m, n, k, input);
            match counters.tensor.iter_mut().find(same) {
                Some(entry) => entry.count += count,
                None if count != 0 => counters.tensor.push(TensorCount { m, n, k, input, count }),
                None => {}
            }
        }
    }
}

fn template(
    program: &Program,
    config: &LaunchConfig,
    params: &[u8],
    shared_bytes: u32,
    threads: u32,
    checked: bool,
    options: &Options,
) -> Template {
    // Two rows more than the program numbers: see `Warp::rows`.
    let mut rows = vec![POISON; program.slots as usize + 2];
    let mut defined = if checked { vec![0; rows.len()] } else { Vec::new() };
    let mut varying = Vec::new();
    for &(slot, init) in &program.inits {
        let at = usize::from(slot);
        let value = match init {
            Init::Word(word) => u64::from(word),
            Init::Double(double) => double,
            Init::Param { offset, bytes, signed, .. } => param(params, offset, bytes, signed),
            Init::Shared { offset, .. } => u64::from(SHARED_BASE).wrapping_add_signed(offset),
            Init::Special(special) | Init::SpecialWide(special) => {
                match constant(special, config, shared_bytes, options) {
                    Some(value) => value,
                    None => {
                        varying.push((slot, special));
                        0
                    }
                }
            }
        };
        if init.wide() {
            for half in 0..2 {
                for lane in 0..32 {
                    let word = if lane % 2 == 0 { value as u32 } else { (value >> 32) as u32 };
                    rows[at + half].0[lane] = word;
                }
            }
        } else {
            rows[at] = Row([value as u32; 32]);
        }
        if let Some(defined) = defined.get_mut(at) {
            *defined = u32::MAX;
        }
    }
    let warp = warp::Template { rows, defined, predicates: program.predicates as usize, checked };
    Template { warp, shared_bytes, warps: threads.div_ceil(WARP), threads, varying }
}

fn param(params: &[u8], offset: u32, bytes: u8, signed: bool) -> u64 {
    let mut image = [0; 8];
    let (from, length) = (offset as usize, usize::from(bytes));
    // The decoder found the access inside its parameter, and the block's length was checked.
    if let Some(source) = params.get(from..from + length) {
        image[..length].copy_from_slice(source);
    }
    let value = u64::from_le_bytes(image);
    let unused = 64 - 8 * u32::from(bytes);
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}

/// Special registers that are the same in every thread of a launch.
fn constant(special: SpecialRegister, config: &LaunchConfig, shared_bytes: u32, options: &Options) -> Option<u64> {
    use SpecialRegister as S;
    Some(match special {
        S::Ntid(dimension) => config.block[dimension.index()].into(),
        S::Nctaid(dimension) => config.grid[dimension.index()].into(),
        S::NwarpId => 64,
        S::NsmId => options.sm_count.into(),
        S::GridId => 1,
        S::DynamicSmemSize => config.dynamic_shared.into(),
        S::TotalSmemSize => shared_bytes.into(),
        _ => return None,
    })
}
