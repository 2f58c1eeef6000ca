//! The device layer: what it says when a kernel cannot be loaded or launched.

use lookback_device::{Class, Error, function, launch};
use lookback_kernels::{Budget, Kernel, Target, Text};
use lookback_suite::device;

/// A kernel that is not in the registry: one u64 argument, and `body` between the braces.
fn kernel(entry: &'static str, body: &str) -> Kernel {
    let text = format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry {entry}(.param .align 8 .b8 args[8])\n\
         .maxntid 32, 1, 1\n{{\n.reg .u64 %p;\n.reg .u32 %x;\n{body}\nret;\n}}\n"
    );
    Kernel {
        name: entry,
        family: "test",
        entry,
        variant: &[],
        target: Target { sm: 80, arch_specific: false },
        ptx_version: (7, 0),
        text: Text::Plain(text.leak()),
        args: &[],
        args_bytes: 8,
        block: [32, 1, 1],
        min_ctas: 1,
        dynamic_smem: 0,
        cooperative: false,
        budget: Budget { regs: 32, smem: 0 },
    }
}

fn leak(kernel: Kernel) -> &'static Kernel {
    Box::leak(Box::new(kernel))
}

#[test]
fn a_refused_text_comes_with_the_compilers_log() {
    let wrong = leak(kernel("device_wrong_text", "mov.u32 %x, 1;\nfrobnicate.u32 %x, %x;"));
    let error = function(&device::context(), wrong).map(drop).expect_err("no such instruction");
    let Error::Ptx { kernel, log, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*kernel, error.class(), error.outputs_untouched()), ("device_wrong_text", Class::Machine, true));
    assert!(log.contains("line 10") && log.contains("frobnicate"), "{log}");
}

#[test]
fn a_device_or_driver_that_cannot_run_it_is_named_before_the_text_is_read() {
    let context = device::context();
    let newer = Target { sm: 990, arch_specific: false };
    let arch = function(&context, leak(Kernel { target: newer, ..kernel("device_arch", "not even PTX") }));
    assert!(matches!(arch.map(drop), Err(Error::Arch { kernel: "device_arch", need, .. }) if need == "sm_990"));
    let old = function(&context, leak(Kernel { ptx_version: (99, 0), ..kernel("device_version", "not even PTX") }));
    assert!(matches!(old.map(drop), Err(Error::DriverTooOld { kernel: "device_version", .. })));
}

#[test]
fn a_launch_with_the_wrong_arguments_or_an_empty_grid_launches_nothing() {
    let stream = device::stream();
    let faulty = leak(kernel("device_no_launch", "trap;"));
    // SAFETY: neither call launches: the first has the wrong parameter size, the second an empty grid.
    let (wrong, empty) =
        unsafe { (launch(&stream, faulty, [1, 1, 1], &0_u32), launch(&stream, faulty, [1, 0, 1], &0_u64)) };
    assert!(matches!(wrong, Err(Error::Launch { kernel: "device_no_launch", .. })), "{wrong:?}");
    assert!(empty.is_ok(), "{empty:?}");
}
