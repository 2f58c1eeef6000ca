//! Asking for NCCL where it or a GPU is not there: a typed error on every rank, no panic, and nobody waits.
#![cfg(feature = "nccl")]

use lookback_device::{Class, DevicePick, open};
use lookback_ring::{
    Error,
    transport::{local, nccl, nccl_alone, nccl_version},
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// What is wrong with a machine without NCCL is said with all names that were tried; one that has it knows its version.
#[test]
fn a_library_that_is_not_there_is_named() {
    match nccl_version() {
        Ok(version) => assert!((21_400..100_000).contains(&version), "{version}"),
        Err(error) => {
            let Error::NoLibrary { library: "NCCL", tried } = &error else { panic!("{error:?}") };
            assert!(tried.iter().all(|why| why.contains("nccl") && why.contains('(')), "{tried:?}");
            assert!(cfg!(windows) || (tried[0].contains("libnccl.so.2") && tried.len() == 2), "{tried:?}");
            assert_eq!(error.class(), Class::Machine);
        }
    }
}

/// Neither does a world of one.
#[test]
fn one_rank_alone_needs_a_gpu_and_the_library() {
    let error = nccl_alone(&open(DevicePick::Emulated).unwrap()).expect_err("no transfers on the emulator");
    match nccl_version() {
        Ok(_) => assert!(matches!(error, Error::NoDriver { .. }), "{error:?}"),
        Err(_) => assert!(matches!(error, Error::NoLibrary { .. }), "{error:?}"),
    }
}

#[test]
fn the_emulator_has_no_transfers_between_gpus() {
    let has_library = nccl_version().is_ok();
    let began = Instant::now();
    let ranks: Vec<_> = local(3, Duration::from_secs(60))
        .into_iter()
        .map(|control| {
            thread::spawn(move || {
                let context = open(DevicePick::Emulated).unwrap();
                nccl(control, &context).err()
            })
        })
        .collect();
    for rank in ranks {
        let error = rank.join().unwrap().expect("no transport on the emulator");
        match has_library {
            true => assert!(matches!(error, Error::NoDriver { .. }), "{error:?}"),
            false => assert!(matches!(error, Error::NoLibrary { .. }), "{error:?}"),
        }
    }
    assert!(began.elapsed() < Duration::from_secs(30), "ranks waited for each other");
}
