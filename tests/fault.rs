//! A kernel that stores where nothing is: the context is lost, so this runs in a process of its own.

use lookback_device::{Error, driver, launch};
use lookback_kernels::{Budget, Kernel, Target, Text};
use lookback_suite::device;

static STRAY: Kernel = Kernel {
    name: "stray_store",
    family: "test",
    entry: "stray_store",
    variant: &[],
    target: Target { sm: 80, arch_specific: false },
    ptx_version: (7, 0),
    text: Text::Plain(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry stray_store(.param .align 8 .b8 args[8])\n\
          .maxntid 32, 1, 1\n{\n.reg .u64 %p;\nld.param.u64 %p, [args];\nst.global.u32 [%p], 7;\nret;\n}\n",
    ),
    args: &[],
    args_bytes: 8,
    block: [32, 1, 1],
    min_ctas: 1,
    dynamic_smem: 0,
    cooperative: false,
    budget: Budget { regs: 32, smem: 0 },
};

#[test]
fn a_fault_is_device_lost_and_tells_its_story() {
    let stream = device::stream();
    // SAFETY: the store is to an address that is never valid, on purpose: the device refuses it, and nothing else runs here.
    let launched = unsafe { launch(&stream, &STRAY, [1, 1, 1], &16_u64) };
    let error =
        launched.and_then(|()| stream.synchronize().map_err(|e| driver(e, "synchronize"))).expect_err("a stray store");
    assert!(error.is_terminal() && !error.outputs_untouched(), "{error}");
    let Error::DeviceLost { story, .. } = &error else { panic!("{error:?}") };
    if device::info().emulated {
        let story = story.as_deref().unwrap_or_default();
        assert!(story.contains("kernel stray_store, PTX line 9") && story.contains("0x10"), "{story}");
    }
    // Every later call says the same.
    let again = stream.synchronize().map_err(|e| driver(e, "synchronize again"));
    assert!(matches!(again, Err(Error::DeviceLost { .. })), "{again:?}");
}
