//! Finding a device without panicking where there is none.

use crate::{Error, Result, driver, emulator};
use cudarc::driver::CudaContext;
use libloading::Library;
use std::{ffi::c_int, str::FromStr, sync::Arc};

/// Which device to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DevicePick {
    /// The first GPU, or the emulator where there is none. `LOOKBACK_DEVICE` overrides.
    #[default]
    Auto,
    /// This GPU.
    Cuda(usize),
    /// The emulator.
    Emulated,
}

impl FromStr for DevicePick {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("a device is auto, cuda, cuda:N or emulated, not `{text}`");
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "emulated" => Ok(Self::Emulated),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

#[cfg(windows)]
const DRIVER_NAMES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const DRIVER_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Opens a device: a GPU if a driver answers, otherwise the emulator beside the executable.
///
/// # Errors
/// [`Error::NoDriver`] with everything that was tried; [`Error::Range`] for a GPU number that is not there.
pub fn open(pick: DevicePick) -> Result<Arc<CudaContext>> {
    let pick = match (pick, std::env::var("LOOKBACK_DEVICE")) {
        (DevicePick::Auto, Ok(text)) => text.parse().map_err(|why| Error::NoDriver { tried: vec![why] })?,
        (pick, _) => pick,
    };
    let mut tried = Vec::new();
    if pick != DevicePick::Emulated {
        match gpu_count() {
            Ok(count) => {
                let number = if let DevicePick::Cuda(n) = pick { n } else { 0 };
                if number >= count {
                    let (hi, got) = (count as i64 - 1, number as i64);
                    return Err(Error::Range { op: "open", arg: "cuda", at: None, lo: 0, hi, got });
                }
                return CudaContext::new(number).map_err(|e| driver(e, "open device"));
            }
            Err(why) => tried.extend(why),
        }
        if pick != DevicePick::Auto {
            return Err(Error::NoDriver { tried });
        }
    }
    if let Err(why) = emulator::load() {
        tried.extend(why);
        return Err(Error::NoDriver { tried });
    }
    let context = CudaContext::new(0).map_err(|e| driver(e, "open emulator"))?;
    // A driver under the unversioned name would be found before the emulator: say so, do not run on the wrong device.
    let name = context.name().map_err(|e| driver(e, "device name"))?;
    if name.starts_with(emulator::DEVICE_NAME) {
        Ok(context)
    } else {
        Err(Error::NoDriver { tried: vec![format!("the emulator, but the loader gave `{name}`")] })
    }
}

/// How many GPUs a real driver offers; asks the library itself, since cudarc panics without one.
fn gpu_count() -> std::result::Result<usize, Vec<String>> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut tried = Vec::new();
    if emulator::is_loaded() {
        return Err(vec!["a driver (the emulator is already loaded)".into()]);
    }
    for name in DRIVER_NAMES {
        // SAFETY: loading the NVIDIA driver runs its initialisers, as every CUDA program does.
        let Ok(library) = (unsafe { Library::new(name) }) else {
            tried.push(name.to_string());
            continue;
        };
        // SAFETY: these are the driver's documented signatures.
        let symbols = unsafe { (library.get::<Init>(b"cuInit\0"), library.get::<Count>(b"cuDeviceGetCount\0")) };
        let (Ok(init), Ok(device_count)) = symbols else {
            tried.push(format!("{name} (not a CUDA driver)"));
            continue;
        };
        // SAFETY: `cuInit` takes only flags, which must be 0.
        let code = unsafe { init(0) };
        let mut count = 0;
        // SAFETY: the pointer is valid for the write of one `int`.
        if code == 0 && unsafe { device_count(&raw mut count) } == 0 && count > 0 {
            return Ok(count as usize);
        }
        tried.push(format!("{name} (no usable GPU, code {code})"));
    }
    Err(tried)
}

#[cfg(test)]
mod tests {
    use super::DevicePick;

    #[test]
    fn device_pick_parses_what_the_command_line_takes() {
        assert_eq!("auto".parse(), Ok(DevicePick::Auto));
        assert_eq!("cuda:3".parse(), Ok(DevicePick::Cuda(3)));
        assert_eq!("emulated".parse(), Ok(DevicePick::Emulated));
        for wrong in ["", "cuda:", "cuda:-1", "cpu", "emulated:1"] {
            assert!(wrong.parse::<DevicePick>().is_err(), "{wrong}");
        }
    }
}
