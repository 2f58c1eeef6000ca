//! The one device: what it is called and what it can do.

use super::api::{self, api, api_early};
use super::args::{Out, Text, fill_text};
use super::attributes;
use super::errors::{CUresult, Outcome};
use super::options;
use super::report;

/// `CUdevice`: an ordinal.
pub(super) type CUdevice = i32;

/// Version of the driver interface: CUDA 13.0.
const DRIVER_VERSION: i32 = 13_000;

const NAME: &str = "lookback emulator (sm_90a)";
const PCI_BUS_ID: &str = "0000:00:00.0";

/// "lookback emulator" cut to 16 bytes: says what it is, like the name, and is no GPU's.
const UUID: [u8; 16] = *b"lookback-emulate";

/// `CUuuid`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct CUuuid {
    bytes: [u8; 16],
}

/// `CUdevprop`, the record of the oldest drivers.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct CUdevprop {
    max_threads_per_block: i32,
    max_threads_dim: [i32; 3],
    max_grid_size: [i32; 3],
    shared_mem_per_block: i32,
    total_constant_memory: i32,
    simd_width: i32,
    mem_pitch: i32,
    regs_per_block: i32,
    clock_rate: i32,
    texture_align: i32,
}

/// An error unless `device` is the one device.
pub(super) fn check(device: CUdevice) -> Outcome {
    if device == 0 { Ok(()) } else { Err(CUresult::INVALID_DEVICE) }
}

api_early! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        if let Err(why) = options::process() {
            report::announce(why.clone());
            return Err(CUresult::INVALID_VALUE);
        }
        api::set_initialized();
        Ok(())
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.set(DRIVER_VERSION)
    }
}

api! {
    fn cuDeviceGet(device: Out<CUdevice>, ordinal: i32) {
        device.wanted()?;
        check(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        count.set(1)
    }

    fn cuDeviceGetName(name: Out<u8>, length: i32, device: CUdevice) {
        check(device)?;
        let length = usize::try_from(length).ok().filter(|length| *length > 0).ok_or(CUresult::INVALID_VALUE)?;
        fill_text(name.wanted()?, length, NAME);
        Ok(())
    }

    fn cuDeviceGetUuid(uuid: Out<CUuuid>, device: CUdevice) {
        check(device)?;
        uuid.set(CUuuid { bytes: UUID })
    }

    fn cuDeviceGetUuid_v2(uuid: Out<CUuuid>, device: CUdevice) {
        check(device)?;
        uuid.set(CUuuid { bytes: UUID })
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: CUdevice) {
        check(device)?;
        bytes.set(usize::try_from(options::memory_bytes()).unwrap_or(usize::MAX))
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: CUdevice) {
        value.wanted()?;
        check(device)?;
        value.set(attributes::value(attribute).ok_or(CUresult::INVALID_VALUE)?)
    }

    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: CUdevice) {
        check(device)?;
        minor.wanted()?;
        major.set(9)?;
        minor.set(0)
    }

    fn cuDeviceGetProperties(properties: Out<CUdevprop>, device: CUdevice) {
        check(device)?;
        let get = |attribute| attributes::value(attribute).unwrap_or(0);
        properties.set(CUdevprop {
            max_threads_per_block: get(attributes::MAX_THREADS_PER_BLOCK),
            max_threads_dim: [2, 3, 4].map(get),
            max_grid_size: [5, 6, 7].map(get),
            shared_mem_per_block: get(8),
            total_constant_memory: get(9),
            simd_width: get(10),
            mem_pitch: get(11),
            regs_per_block: get(12),
            clock_rate: get(13),
            texture_align: get(14),
        })
    }

    fn cuDeviceGetPCIBusId(id: Out<u8>, length: i32, device: CUdevice) {
        check(device)?;
        let length = usize::try_from(length).ok().filter(|length| *length > 0).ok_or(CUresult::INVALID_VALUE)?;
        fill_text(id.wanted()?, length, PCI_BUS_ID);
        Ok(())
    }

    fn cuDeviceGetByPCIBusId(device: Out<CUdevice>, id: Text) {
        device.wanted()?;
        if id.bytes()? != PCI_BUS_ID.as_bytes() {
            return Err(CUresult::INVALID_DEVICE);
        }
        device.set(0)
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: CUdevice, peer: CUdevice) {
        check(device)?;
        check(peer)?;
        // A device is no peer of itself.
        can.set(0)
    }

    fn cuDeviceGetP2PAttribute(value: Out<i32>, _attribute: u32, device: CUdevice, peer: CUdevice) {
        value.wanted()?;
        check(device)?;
        check(peer)?;
        Err(CUresult::INVALID_DEVICE)
    }
}
