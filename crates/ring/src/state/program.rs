//! How one rank's steps run.

use super::waves::{Mail, Slot, Step, Task};
use crate::{
    Error, Result,
    transport::{Label, Message, Transport},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop, sys::CUdeviceptr};
use lookback_device::{driver, memory};
use std::sync::Arc;

/// What an operation does in a step, and where its messages are.
pub(super) trait Machine {
    /// Memory of a lane's message.
    fn segments(&self, lane: usize, slot: Slot) -> Vec<(CUdeviceptr, usize)>;

    /// Queues what precedes the steps.
    ///
    /// # Safety
    /// As for [`execute`].
    unsafe fn begin(&self) -> Result<()>;

    /// Queues a task.
    ///
    /// # Safety
    /// As for [`execute`].
    unsafe fn perform(&self, task: Task) -> Result<()>;

    /// Queues what follows them.
    ///
    /// # Safety
    /// As for [`execute`].
    unsafe fn finish(&self) -> Result<()>;
}

/// Whether a transport is that of `rank` of `ranks`.
pub(super) fn check(op: &'static str, (rank, ranks): (usize, usize), transport: &dyn Transport) -> Result<()> {
    let found = [transport.rank() as u64, transport.ranks() as u64];
    if found == [rank as u64, ranks as u64] {
        return Ok(());
    }
    let want = format!("rank {rank} of {ranks}");
    Err(Error::Shape { op, arg: "transport", want, got: found.to_vec() })
}

/// Does everything, and tells all other ranks when it cannot.
///
/// # Safety
/// The machine's addresses are valid for what its tasks do, nothing else writes that memory, and nothing reads what is written, until
/// what is queued on the stream has ended.
pub(super) unsafe fn execute(
    steps: &[Step],
    machine: &dyn Machine,
    stream: &Arc<CudaStream>,
    transport: &mut dyn Transport,
) -> Result<()> {
    let operation = transport.next_operation();
    // SAFETY: the caller's promise.
    let done = unsafe { perform(steps, machine, stream, operation, transport) };
    done.inspect_err(|error| transport.abort(error))
}

/// # Safety
/// As for [`execute`].
unsafe fn perform(
    steps: &[Step],
    machine: &dyn Machine,
    stream: &Arc<CudaStream>,
    operation: u32,
    transport: &mut dyn Transport,
) -> Result<()> {
    // SAFETY: the caller's promise, here and below; messages are parts of the machine's workspace, and no task of a step writes what the
    // step sends or uses what it receives.
    unsafe { machine.begin() }?;
    for Step { number, send, receive, tasks } in steps {
        let messages = |mail: &[Mail]| -> Vec<Message> {
            let message = |Mail { peer, parcel, lane, slot }: &Mail| Message {
                peer: *peer,
                label: Label { operation, step: *number, parcel: parcel.clone() },
                segments: machine.segments(*lane, *slot),
                steps: 1,
            };
            mail.iter().map(message).collect()
        };
        let moves = !send.is_empty() || !receive.is_empty();
        if moves {
            // SAFETY: as above.
            unsafe { transport.begin(*number, stream, &messages(send), &messages(receive)) }?;
        }
        for task in tasks {
            // SAFETY: as above.
            unsafe { machine.perform(*task) }?;
        }
        if moves {
            // SAFETY: as above.
            unsafe { transport.end(*number, stream) }?;
        }
    }
    // SAFETY: as above.
    unsafe { machine.finish() }
}

/// What a workspace holds before the first run.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pub bytes: u64,
    /// 32-bit words of the host, and where they go.
    pub tables: Vec<(u64, Vec<i32>)>,
    /// Where ones begin, and how many f32 they are.
    pub ones: (u64, usize),
}

/// Device memory for one plan, with the plan's tables in it. One run at a time.
#[derive(Debug)]
pub struct Workspace {
    memory: CudaSlice<u8>,
}

impl Workspace {
    pub(super) fn of(stream: &Arc<CudaStream>, contents: &Contents) -> Result<Self> {
        let mut memory = memory::allocate::<u8>(stream, contents.bytes, "state workspace")?;
        let ones = (contents.ones.0, vec![1.0_f32.to_bits() as i32; contents.ones.1]);
        for (start, words) in contents.tables.iter().chain([&ones]).filter(|(_, words)| !words.is_empty()) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let start = *start as usize;
            let mut part = memory.slice_mut(start..start + bytes.len());
            stream.memcpy_htod(&bytes, &mut part).map_err(|e| driver(e, "state tables"))?;
        }
        Ok(Self { memory })
    }

    /// Its address, if it is as long as the plan needs, and the guard that must outlive the run.
    pub(super) fn hold<'a>(
        &'a mut self,
        op: &'static str,
        contents: &Contents,
        stream: &'a CudaStream,
    ) -> Result<(CUdeviceptr, SyncOnDrop<'a>)> {
        let (need, got) = (contents.bytes, self.memory.len() as u64);
        if got < need {
            return Err(Error::Workspace { op, need, got });
        }
        Ok(self.memory.device_ptr_mut(stream))
    }
}
