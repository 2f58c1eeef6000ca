//! Launches of kernels: arguments are gathered and checked here, and a fault becomes the context's error.

use super::api::api;
use super::args::{In, Plain};
use super::attributes::{MAX_BLOCK, MAX_GRID};
use super::context::{self, Context};
use super::errors::{CUresult, Outcome};
use super::function::{self, Function};
use super::handles::Handle;
use super::operation::Operation;
use super::stream;
use super::{counting, keep, memory, options, report};
use crate::launch::{self, FaultKind, LaunchConfig, MAX_BLOCK_SHARED, MAX_BLOCK_THREADS};
use std::sync::Arc;

/// `CU_LAUNCH_PARAM_*`, the keys of the `extra` list.
const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_BUFFER_BYTES: usize = 2;

/// `CUlaunchAttributeID`
const COOPERATIVE: u32 = 2;
const CLUSTER_DIMENSION: u32 = 4;

/// Attributes that ask for nothing which changes results when it is not done: none, access policy window,
/// synchronisation policy, cluster scheduling preference, programmatic stream serialisation (a launch that does not
/// overlap is allowed), priority, memory synchronisation domains, shared memory carveout.
const HINTS: [u32; 9] = [0, 1, 3, 5, 6, 8, 9, 10, 14];

/// `CUlaunchAttribute`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct CUlaunchAttribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

// SAFETY: integers.
unsafe impl Plain for CUlaunchAttribute {}

/// `CUlaunchConfig`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct CUlaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    attributes: usize,
    count: u32,
}

// SAFETY: integers.
unsafe impl Plain for CUlaunchConfig {}

impl CUlaunchConfig {
    /// Shape of the launch; an error for an attribute that would need what is not emulated.
    pub(super) fn shape(&self) -> Outcome<LaunchConfig> {
        let mut cooperative = false;
        for index in 0..self.count as usize {
            let attribute = In::<CUlaunchAttribute>::from_address(self.attributes).get_at(index)?;
            match attribute.id {
                COOPERATIVE => cooperative = attribute.value[0] != 0,
                CLUSTER_DIMENSION if attribute.value[..3] == [1; 3] => {}
                id if HINTS.contains(&id) => {}
                CLUSTER_DIMENSION => {
                    report::announce(format!("clusters of {:?} CTAs are not emulated", &attribute.value[..3]));
                    return Err(CUresult::NOT_SUPPORTED);
                }
                id => {
                    report::announce(format!("launch attribute {id} is not emulated"));
                    return Err(CUresult::NOT_SUPPORTED);
                }
            }
        }
        Ok(LaunchConfig { grid: self.grid, block: self.block, dynamic_shared: self.shared, cooperative })
    }
}

/// A kernel, its shape and a copy of its arguments.
#[derive(Debug)]
pub(super) struct KernelLaunch {
    function: Arc<Function>,
    config: LaunchConfig,
    parameters: Vec<u8>,
}

impl KernelLaunch {
    /// Name of the kernel.
    pub(super) fn entry(&self) -> &str {
        self.function.name()
    }

    /// Shape of the launch.
    pub(super) fn config(&self) -> &LaunchConfig {
        &self.config
    }

    /// The parameter block.
    pub(super) fn parameters(&self) -> &[u8] {
        &self.parameters
    }

    /// Run it. A launch that cannot start is this call's error; a fault of the running kernel is every later call's.
    pub(super) fn run(&self, context: &Context) -> Outcome {
        let options = options::current().launch;
        let program = &self.function.program;
        keep::keep(self.function.name(), &self.config, &self.parameters);
        match launch::launch(program, memory::device(), &self.config, &self.parameters, &options) {
            Ok(counters) => {
                counting::add(self.function.name(), &counters);
                Ok(())
            }
            Err(fault) => {
                let code = CUresult(fault.kind.cuda_code());
                match fault.kind {
                    FaultKind::InvalidLaunch | FaultKind::OutOfResources | FaultKind::CooperativeTooLarge => {
                        report::note(fault.to_string());
                        Err(code)
                    }
                    _ => {
                        context.fail(code, fault.to_string());
                        Ok(())
                    }
                }
            }
        }
    }
}

fn refuse<T>(code: CUresult, function: &Function, why: String) -> Outcome<T> {
    report::note(format!("launch of {} refused: {why}", function.name()));
    Err(code)
}

/// What a driver checks before the device sees the launch.
fn check(function: &Function, config: &LaunchConfig) -> Outcome {
    let invalid = |why| refuse(CUresult::INVALID_VALUE, function, why);
    let [grid, block] = [config.grid, config.block];
    for (what, extents, most) in [("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)] {
        if extents.iter().zip(most).any(|(extent, most)| *extent == 0 || *extent > most) {
            return invalid(format!("{what} {extents:?} must be between 1 and {most:?}"));
        }
    }
    let threads = block.iter().product::<u32>();
    if threads > MAX_BLOCK_THREADS {
        return invalid(format!("a block of {threads} threads, {MAX_BLOCK_THREADS} are possible"));
    }
    if let Some(required) = function.program.required_block()
        && required != block
    {
        return invalid(format!("block {block:?}, .reqntid is {required:?}"));
    }
    if threads > function.max_threads() {
        return invalid(format!("a block of {threads} threads, .maxntid allows {}", function.max_threads()));
    }
    let (dynamic, most) = (config.dynamic_shared, function.max_dynamic());
    if dynamic > most {
        return invalid(format!("{dynamic} bytes of dynamic shared memory, the function's limit is set to {most}"));
    }
    let shared = function.program.shared_bytes(dynamic);
    if shared > MAX_BLOCK_SHARED {
        return invalid(format!("{shared} bytes of shared memory, a block can have {MAX_BLOCK_SHARED}"));
    }
    if let Some(shape) = function.cluster {
        return refuse(CUresult::NOT_SUPPORTED, function, format!("clusters are not emulated, it asks for {shape:?}"));
    }
    let per_sm = launch::occupancy(&function.program, threads, dynamic);
    if per_sm == 0 {
        return refuse(CUresult::LAUNCH_OUT_OF_RESOURCES, function, "no multiprocessor can hold one block".into());
    }
    if config.cooperative {
        let options = options::current().launch;
        let capacity = u64::from(per_sm) * u64::from(options.sm_count);
        let capacity = options.residency.map_or(capacity, |residency| capacity.min(residency.into()));
        let ctas = grid.iter().try_fold(1_u64, |product, extent| product.checked_mul((*extent).into()));
        if ctas.is_none_or(|ctas| ctas > capacity) {
            let why = format!("cooperative grid {grid:?}, {capacity} CTAs fit at once");
            return refuse(CUresult::COOPERATIVE_LAUNCH_TOO_LARGE, function, why);
        }
    }
    Ok(())
}

/// The parameter block, from an array of pointers to the arguments or from a ready buffer.
fn gather(function: &Function, pointers: In<usize>, extra: In<usize>) -> Outcome<Vec<u8>> {
    let size = function.program.param_bytes() as usize;
    let mut block = vec![0; size];
    if !extra.is_null() {
        if !pointers.is_null() {
            return refuse(CUresult::INVALID_VALUE, function, "both kernelParams and extra are given".into());
        }
        let buffer = read_extra(extra)?;
        if buffer.1 < size {
            let why = format!("a parameter buffer of {} bytes, the kernel takes {size}", buffer.1);
            return refuse(CUresult::INVALID_VALUE, function, why);
        }
        return In::<u8>::from_address(buffer.0).list(size);
    }
    for (index, parameter) in function.parameters.iter().enumerate() {
        if pointers.is_null() {
            return refuse(CUresult::INVALID_VALUE, function, "it has parameters and none are given".into());
        }
        let source = In::<u8>::from_address(pointers.get_at(index)?);
        if source.is_null() {
            return refuse(CUresult::INVALID_VALUE, function, format!("the pointer to parameter {index} is null"));
        }
        let target = block.get_mut(parameter.offset..).and_then(|rest| rest.get_mut(..parameter.bytes));
        // The parser lays parameters out inside the block.
        for (offset, byte) in target.ok_or(CUresult::UNKNOWN)?.iter_mut().enumerate() {
            *byte = source.get_at(offset)?;
        }
    }
    Ok(block)
}

/// Address and size of the buffer that an `extra` list names.
fn read_extra(extra: In<usize>) -> Outcome<(usize, usize)> {
    let (mut buffer, mut bytes) = (None, None);
    // Both keys with their values, and the end.
    for place in [0, 2, 4] {
        match extra.get_at(place)? {
            EXTRA_END => break,
            EXTRA_BUFFER => buffer = Some(extra.get_at(place + 1)?),
            EXTRA_BUFFER_BYTES => bytes = Some(In::from_address(extra.get_at(place + 1)?).get()?),
            _ => return Err(CUresult::INVALID_VALUE),
        }
    }
    buffer.zip(bytes).filter(|(address, bytes)| *address != 0 || *bytes == 0).ok_or(CUresult::INVALID_VALUE)
}

fn enqueue(function: Handle, config: LaunchConfig, stream: Handle, pointers: In<usize>, extra: In<usize>) -> Outcome {
    let context = context::current()?;
    let function = function::find(function)?;
    let stream = stream::find(stream, &context)?;
    check(&function, &config)?;
    let parameters = gather(&function, pointers, extra)?;
    let launch = Arc::new(KernelLaunch { function, config, parameters });
    stream::submit(&context, &stream, Operation::Kernel(launch))
}

api! {
    fn cuLaunchKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: Handle,
        pointers: In<usize>,
        extra: In<usize>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let config = LaunchConfig { grid, block, dynamic_shared, cooperative: false };
        enqueue(function, config, stream, pointers, extra)
    }

    fn cuLaunchCooperativeKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: Handle,
        pointers: In<usize>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let config = LaunchConfig { grid, block, dynamic_shared, cooperative: true };
        enqueue(function, config, stream, pointers, In::from_address(0))
    }

    fn cuLaunchKernelEx(config: In<CUlaunchConfig>, function: Handle, pointers: In<usize>, extra: In<usize>) {
        let config = config.get()?;
        enqueue(function, config.shape()?, config.stream, pointers, extra)
    }
}
