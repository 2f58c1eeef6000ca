//! How a C entry point is made: one macro, so that no function forgets what all must do.
//!
//! Every entry point checks that the driver is initialised and that it is not called from a host callback, and turns
//! a panic into `CUDA_ERROR_UNKNOWN`, since a panic must not unwind into the C caller.
//!
//! The functions are `no_mangle` in a crate that is both rlib and cdylib, so a program that links the rlib has them too.
//! That is harmless: an executable does not export them, so whoever loads `libcuda.so.1` still gets the loaded library.
//! But a process that links the rlib and also loads the cdylib has two copies of every static of this module, which know
//! nothing of each other. Talk to the loaded library through its exported symbols only.

use super::errors::{CUresult, Outcome};
use super::failure;
use super::report;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

static INITIALIZED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// `cuInit` was called.
pub(super) fn set_initialized() {
    INITIALIZED.store(true, Ordering::Release);
}

/// Run a host function that the program gave, during which the driver refuses every call of this thread.
pub(super) fn in_callback(function: impl FnOnce()) {
    IN_CALLBACK.set(true);
    function();
    IN_CALLBACK.set(false);
}

/// When a function may be called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Before `cuInit` too.
    Early,
    /// After `cuInit`.
    Ready,
}

/// The frame around the body of every entry point.
pub(super) fn call(name: &'static str, when: When, body: impl FnOnce() -> Outcome) -> CUresult {
    if IN_CALLBACK.get() {
        report::note(format!("{name}: a host function of a stream must not call the driver"));
        return CUresult::NOT_PERMITTED;
    }
    if when == When::Ready && !INITIALIZED.load(Ordering::Acquire) {
        return CUresult::NOT_INITIALIZED;
    }
    if let Err(code) = failure::of_call(name) {
        return code;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CUresult::SUCCESS,
        Ok(Err(code)) => code,
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            report::announce(format!("{name}: the emulator itself failed: {why}"));
            CUresult::UNKNOWN
        }
    }
}

macro_rules! entry_points {
    ($when:ident $($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the names are the C header's")]
        #[allow(clippy::too_many_arguments, reason = "the arguments are the C header's")]
        pub(in crate::driver) unsafe extern "C" fn $name($($arg: $type),*) -> $crate::driver::errors::CUresult {
            $crate::driver::api::call(
                stringify!($name),
                $crate::driver::api::When::$when,
                move || -> $crate::driver::errors::Outcome { $body },
            )
        }
    )*};
}

/// Entry points that need `cuInit` first.
macro_rules! api {
    ($($body:tt)*) => { $crate::driver::api::entry_points! { Ready $($body)* } };
}

/// Entry points that may be called at any time.
macro_rules! api_early {
    ($($body:tt)*) => { $crate::driver::api::entry_points! { Early $($body)* } };
}

pub(super) use {api, api_early, entry_points};
