//! Launches kept with the memory that they found, to be run again: on other schedules, or with another program.
//!
//! The driver keeps the launches of a host thread on request (`lookback_emulator_keep_launches`) and hands them out as bytes,
//! because who asks may be linked to a copy of this crate of its own. Pointers stay what they were.

use crate::launch::LaunchConfig;
use crate::memory::{Allocation, DeviceMemory, MAX_ALLOCATION, MemoryError, MemoryView};

/// One launch, before it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Entry name.
    pub kernel: String,
    /// Its shape.
    pub config: LaunchConfig,
    /// The parameter block.
    pub parameters: Vec<u8>,
    /// The allocations that the parameters point into, in ascending order of address.
    pub blocks: Vec<Block>,
}

/// One allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its first address.
    pub pointer: u64,
    /// Its size.
    pub bytes: u64,
    /// What had been written: offset and bytes.
    pub written: Vec<(u64, Vec<u8>)>,
}

impl Snapshot {
    /// The launch of `kernel` that is about to happen. Every aligned word of the parameters that names a live allocation
    /// counts as a pointer into it; a number that happens to look like one costs a copy.
    pub fn new(kernel: &str, config: &LaunchConfig, parameters: &[u8], memory: &DeviceMemory) -> Self {
        let view = memory.view();
        let words = parameters.chunks_exact(8).map(|word| word.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b)));
        let mut starts: Vec<u64> = words.map(|word| word & !(MAX_ALLOCATION - 1)).collect();
        starts.sort_unstable();
        starts.dedup();
        let blocks = starts.into_iter().filter_map(|start| Some(Block::new(start, view.peek(start)?, &view)));
        Self { kernel: kernel.to_owned(), config: *config, parameters: parameters.to_vec(), blocks: blocks.collect() }
    }

    /// Memory as the launch found it.
    ///
    /// # Errors
    /// Those of [`DeviceMemory::alloc_at`].
    pub fn memory(&self) -> Result<DeviceMemory, MemoryError> {
        let memory = DeviceMemory::new(u64::MAX);
        for block in &self.blocks {
            memory.alloc_at(block.pointer, block.bytes)?;
            for (offset, bytes) in &block.written {
                memory.copy_from_host(block.pointer + offset, bytes)?;
            }
        }
        Ok(memory)
    }

    /// Appends the launch to `bytes`, for [`snapshots`] to read.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        let config = &self.config;
        let shape = config.grid.iter().chain(&config.block).chain([&config.dynamic_shared]);
        let mut number = |number: u64| bytes.extend(number.to_le_bytes());
        shape.for_each(|extent| number(u64::from(*extent)));
        number(config.cooperative.into());
        write_bytes(bytes, self.kernel.as_bytes());
        write_bytes(bytes, &self.parameters);
        bytes.extend((self.blocks.len() as u64).to_le_bytes());
        for block in &self.blocks {
            for number in [block.pointer, block.bytes, block.written.len() as u64] {
                bytes.extend(number.to_le_bytes());
            }
            for (offset, written) in &block.written {
                bytes.extend(offset.to_le_bytes());
                write_bytes(bytes, written);
            }
        }
    }
}

impl Block {
    fn new(pointer: u64, allocation: &Allocation, view: &MemoryView) -> Self {
        let runs = allocation.init().runs();
        let written = runs.into_iter().filter_map(|(offset, bytes)| {
            let from = view.resolve(pointer + offset, bytes).ok()?;
            let mut copy = vec![0; bytes as usize];
            // SAFETY: `resolve` found the whole range inside one allocation, which the view keeps; the copy is as long.
            unsafe { copy.as_mut_ptr().copy_from_nonoverlapping(from, copy.len()) };
            Some((offset, copy))
        });
        Self { pointer, bytes: allocation.bytes(), written: written.collect() }
    }
}

fn write_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u64).to_le_bytes());
    to.extend(bytes);
}

/// What [`Snapshot::write`] has appended to each other; nothing if the bytes are anything else.
pub fn snapshots(mut bytes: &[u8]) -> Option<Vec<Snapshot>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(snapshot(&mut bytes)?);
    }
    Some(all)
}

fn snapshot(from: &mut &[u8]) -> Option<Snapshot> {
    let mut shape = [0; 7];
    for extent in &mut shape {
        *extent = u32::try_from(number(from)?).ok()?;
    }
    let [gx, gy, gz, bx, by, bz, dynamic_shared] = shape;
    let cooperative = number(from)? != 0;
    let config = LaunchConfig { grid: [gx, gy, gz], block: [bx, by, bz], dynamic_shared, cooperative };
    let kernel = String::from_utf8(counted(from)?).ok()?;
    let parameters = counted(from)?;
    let mut blocks = Vec::new();
    for _ in 0..number(from)? {
        let (pointer, bytes) = (number(from)?, number(from)?);
        let mut written = Vec::new();
        for _ in 0..number(from)? {
            written.push((number(from)?, counted(from)?));
        }
        blocks.push(Block { pointer, bytes, written });
    }
    Some(Snapshot { kernel, config, parameters, blocks })
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let (number, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u64::from_le_bytes(*number))
}

fn counted(from: &mut &[u8]) -> Option<Vec<u8>> {
    let count = usize::try_from(number(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::OFFSET_BITS;

    fn recorded() -> (DeviceMemory, Snapshot) {
        let memory = DeviceMemory::new(1 << 20);
        // Numbers that are gone, over the end of a page of the table.
        for _ in 0..1500 {
            let gone = memory.alloc(16).unwrap();
            memory.free(gone).unwrap();
        }
        let [full, partly, other] = [64, 4096, 8].map(|bytes| memory.alloc(bytes).unwrap());
        memory.copy_from_host(full, &[7; 64]).unwrap();
        memory.copy_from_host(partly + 100, &[1; 300]).unwrap();
        memory.copy_from_host(partly + 4000, &[2; 1]).unwrap();
        let parameters: Vec<u8> = [partly + 64, 3, full, 1 << 60].iter().flat_map(|word| word.to_le_bytes()).collect();
        let config = LaunchConfig { grid: [3, 1, 2], block: [64, 1, 1], dynamic_shared: 512, cooperative: true };
        let launch = Snapshot::new("a_kernel", &config, &parameters, &memory);
        assert!(launch.blocks.iter().all(|block| block.pointer != other));
        (memory, launch)
    }

    #[test]
    fn a_launch_comes_back_from_its_bytes() {
        let (_, launch) = recorded();
        let mut bytes = Vec::new();
        launch.write(&mut bytes);
        launch.write(&mut bytes);
        assert_eq!(snapshots(&bytes), Some(vec![launch.clone(), launch]));
        assert_eq!(snapshots(&bytes[..bytes.len() - 1]), None);
        assert_eq!(snapshots(&[]), Some(vec![]));
    }

    #[test]
    fn memory_comes_back_where_it_was_with_its_gaps() {
        let (old, launch) = recorded();
        let new = launch.memory().unwrap();
        for block in &launch.blocks {
            let [mut before, mut after] = [0, 0].map(|byte| vec![byte; block.bytes as usize]);
            old.copy_to_host(&mut before, block.pointer).unwrap();
            new.copy_to_host(&mut after, block.pointer).unwrap();
            assert_eq!(before, after);
            let runs = |memory: &DeviceMemory| memory.view().peek(block.pointer).unwrap().init().runs();
            assert_eq!(runs(&old), runs(&new));
        }
        assert_eq!(launch.blocks.len(), 2);
        assert_eq!(launch.blocks[1].written.len(), 2);
        let next = new.alloc(8).unwrap();
        assert!(launch.blocks.iter().all(|block| block.pointer < next && block.pointer >> OFFSET_BITS > 1500));
        assert!(new.alloc_at(launch.blocks[0].pointer, 8).is_err(), "a number is used once");
    }
}
