//! Running programs: on a GPU, or on the emulator.

use crate::{
    Result,
    form::{Form, Level},
    inputs::Inputs,
    program::{self, ARGS_BYTES, BLOCK, MEMORY},
};
use bytemuck::{Pod, Zeroable};
use lookback_device::{
    DeviceInfo, DevicePick, Error as DeviceError,
    cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr},
    driver, launch, open,
};
use lookback_kernels::{Budget, Kernel, Target, Text};
use std::sync::Arc;

/// Parameters of every program.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    inputs: u64,
    outputs: u64,
    memory: u64,
    threads: u64,
}

/// A device that is open.
pub struct Runner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// What it is.
    pub info: DeviceInfo,
}

/// The program of a form, ready to be launched.
pub struct Program {
    kernel: &'static Kernel,
    uses_memory: bool,
    threads: usize,
}

/// Results of a run: an array of the bits for each output.
pub type Results = Vec<Vec<u64>>;

/// Most threads of a launch, a multiple of the block.
const MOST_THREADS: usize = 1 << 17;

impl Runner {
    /// Opens a device.
    ///
    /// # Errors
    /// Those of [`open`], and those of the driver.
    pub fn open(pick: DevicePick) -> Result<Self> {
        let context = open(pick)?;
        let info = DeviceInfo::of(&context)?;
        let stream = context.per_thread_stream();
        Ok(Self { context, stream, info })
    }

    /// The stream that everything runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Runs all operands of a form and hands out results piece by piece: the index of the first, and its results.
    ///
    /// # Errors
    /// [`Error::Arch`](DeviceError::Arch) on an older device than the form needs, [`Error::Ptx`](DeviceError::Ptx) for a text
    /// that the driver refuses, and faults of the launch.
    pub fn run(
        &self,
        program: &Program,
        inputs: &Inputs<'_>,
        form: &Form,
        mut take: impl FnMut(u64, &Results),
    ) -> Result<()> {
        let (count, most) = (inputs.count(), program.threads as u64);
        let mut first = 0;
        while first < count {
            let length = (count - first).min(most);
            let results = self.piece(program, inputs, form, first, length as usize)?;
            take(first, &results);
            first += length;
        }
        Ok(())
    }

    fn piece(&self, program: &Program, inputs: &Inputs<'_>, form: &Form, first: u64, length: usize) -> Result<Results> {
        let threads = length.next_multiple_of(BLOCK as usize);
        let mut host = vec![0u8; form.inputs.len().max(1) * threads * 8];
        for (operand, kind) in form.inputs.iter().enumerate() {
            let bytes = kind.register().bytes();
            let array = &mut host[operand * threads * 8..][..threads * bytes];
            for (thread, place) in array.chunks_exact_mut(bytes).enumerate() {
                // The threads beyond the last operand repeat the first ones; nobody reads their results.
                let index = if thread < length { first + thread as u64 } else { thread as u64 % length as u64 };
                place.copy_from_slice(&inputs.value(index, operand).to_le_bytes()[..bytes]);
            }
        }
        let stream = &self.stream;
        let failed = |what| move |e| driver(e, what);
        let sources = stream.clone_htod(&host).map_err(failed("upload"))?;
        let results = stream.alloc_zeros::<u8>(form.outputs.len() * threads * 8).map_err(failed("results"))?;
        let memory = if program.uses_memory { threads * MEMORY as usize } else { MEMORY as usize };
        let memory = stream.alloc_zeros::<u8>(memory).map_err(failed("memory"))?;
        self.launch(program, [&sources, &results, &memory], threads)?;
        let bytes = stream.clone_dtoh(&results).map_err(failed(program.kernel.entry))?;
        Ok(form
            .outputs
            .iter()
            .enumerate()
            .map(|(output, register)| {
                let array = &bytes[output * threads * 8..][..length * register.bytes()];
                array.chunks_exact(register.bytes()).map(little_endian).collect()
            })
            .collect())
    }

    fn launch(&self, program: &Program, buffers: [&CudaSlice<u8>; 3], threads: usize) -> Result<()> {
        let guards = buffers.map(|buffer| buffer.device_ptr(&self.stream));
        let [inputs, outputs, memory] = [guards[0].0, guards[1].0, guards[2].0];
        let args = Args { inputs, outputs, memory, threads: threads as u64 };
        let grid = [(threads / BLOCK as usize) as u32, 1, 1];
        // SAFETY: the program has one parameter, `Args`; each thread reads and writes eight bytes of each array at its own
        // number, below `threads`, and its own piece of the memory where it uses that, and the buffers have room for all.
        unsafe { launch(&self.stream, program.kernel, grid, &args) }?;
        Ok(())
    }

    /// Makes the program of a form; the number makes its entry unique in this process.
    ///
    /// # Errors
    /// [`Error::Arch`](DeviceError::Arch) on a device that is older than the form.
    pub fn prepare(&self, form: &Form, number: usize) -> Result<Program> {
        let entry: &'static str = program::entry(number).leak();
        let text: &'static str = program::render(form, entry).leak();
        let (sm, ptx_version) = match form.level {
            Level::Sm80 => (80, (7, 8)),
            Level::Sm90 => (90, (8, 0)),
        };
        // The device layer takes kernels that live as long as the process; the texts of a table are a few megabytes.
        let kernel: &'static Kernel = Box::leak(Box::new(Kernel {
            name: "conformance",
            family: "conformance",
            entry,
            variant: &[],
            target: Target { sm, arch_specific: false },
            ptx_version,
            text: Text::Plain(text),
            args: &[],
            args_bytes: ARGS_BYTES,
            block: [BLOCK, 1, 1],
            min_ctas: 1,
            dynamic_smem: 0,
            cooperative: false,
            budget: Budget { regs: 255, smem: form.shared },
        }));
        if !kernel.target.runs_on(self.info.compute_capability) {
            let (need, got) = (kernel.target.to_string(), self.info.compute_capability);
            return Err(DeviceError::Arch { kernel: entry, need, got }.into());
        }
        let wide = form.outputs.len().max(form.inputs.len()).div_ceil(4);
        let threads = (MOST_THREADS / wide).next_multiple_of(BLOCK as usize);
        Ok(Program { kernel, uses_memory: form.body.contains("%memory"), threads })
    }
}

/// The value of up to eight bytes.
pub fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
