//! Pointers, faults, copies, initialisation marks.

use super::*;

fn bytes(memory: &DeviceMemory, pointer: u64, count: usize) -> Vec<u8> {
    let mut target = vec![0; count];
    memory.copy_to_host(&mut target, pointer).unwrap();
    target
}

#[test]
fn pointers_carry_their_number() {
    let memory = DeviceMemory::new(1 << 20);
    let (a, b) = (memory.alloc(100).unwrap(), memory.alloc(100).unwrap());
    assert_eq!((a, b), (1 << 36, 2 << 36));
    assert_eq!(memory.range(b + 99).unwrap(), (b, 100));
    assert_eq!(bytes(&memory, a, 100), [POISON; 100]);
}

#[test]
fn limit_counts_and_comes_back() {
    let memory = DeviceMemory::new(1024);
    let a = memory.alloc(257).unwrap();
    assert_eq!(memory.info(), (512, 1024));
    assert!(matches!(memory.alloc(600), Err(MemoryError::OutOfMemory { requested: 600, free: 512, total: 1024 })));
    memory.free(a).unwrap();
    assert_eq!(memory.info(), (1024, 1024));
    assert!(memory.alloc(1 << 40).is_err());
}

#[test]
fn wrong_frees_are_told_apart() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(64).unwrap();
    assert!(matches!(memory.free(a + 8), Err(MemoryError::InteriorFree { offset: 8, number: 1, .. })));
    memory.free(a).unwrap();
    let again = memory.free(a).unwrap_err();
    assert!(again.to_string().contains("allocation 1 of 64 bytes was freed"), "{again}");
    assert!(memory.free(0).is_err());
    assert!(memory.free(77 << 36).is_err());
}

#[test]
fn a_freed_number_is_never_used_again() {
    let memory = DeviceMemory::new(1 << 20);
    let kept = memory.alloc(16).unwrap();
    let first = memory.alloc(16).unwrap();
    memory.free(first).unwrap();
    for _ in 0..5000 {
        let next = memory.alloc(16).unwrap();
        assert!(next > first);
        memory.free(next).unwrap();
    }
    assert!(memory.view().resolve(first, 1).is_err());
    assert!(memory.view().resolve(2000 << 36, 1).unwrap_err().to_string().contains("freed long ago"));
    assert!(memory.view().resolve(kept, 16).is_ok());
}

#[test]
fn resolve_checks_bounds_to_the_byte() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(100).unwrap();
    let view = memory.view();
    assert!(view.resolve(a + 96, 4).is_ok());
    for (pointer, text) in [
        (a + 97, "offset 97 in allocation 1 of 100 bytes, 1 bytes too long"),
        (a + 104, "4 bytes past its end"),
        (a - 4, "no allocation has ever had this address"),
        (0, "no allocation has ever"),
        (4096, "no allocation has ever"),
        (9 << 36, "no allocation has ever"),
        (u64::MAX - 3, "no allocation has ever"),
    ] {
        let fault = view.resolve(pointer, 4).unwrap_err().to_string();
        assert!(fault.contains(text), "{pointer:#x}: {fault}");
    }
}

#[test]
fn a_view_outlives_a_free() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(16).unwrap();
    memory.fill(a, [3u8], 16).unwrap();
    let view = memory.view();
    memory.free(a).unwrap();
    let address = view.resolve(a, 16).unwrap();
    // SAFETY: the view keeps the allocation, and nobody writes to it.
    assert_eq!(unsafe { address.read() }, 3);
    assert!(memory.view().resolve(a, 1).is_err());
}

#[test]
fn copies_and_fills() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(64).unwrap();
    memory.fill(a, 0x1234_5678u32.to_le_bytes(), 4).unwrap();
    memory.fill(a + 16, 0xABCDu16.to_le_bytes(), 2).unwrap();
    memory.fill(a + 20, [7u8], 4).unwrap();
    let expected = [0x78, 0x56, 0x34, 0x12, 0x78, 0x56, 0x34, 0x12];
    assert_eq!(bytes(&memory, a, 8), expected);
    assert_eq!(bytes(&memory, a + 16, 8), [0xCD, 0xAB, 0xCD, 0xAB, 7, 7, 7, 7]);
    memory.copy_within(a + 4, a, 16).unwrap();
    assert_eq!(bytes(&memory, a + 4, 8), expected);
    assert!(memory.copy_from_host(a + 60, &[0; 5]).is_err());
    assert!(memory.copy_to_host(&mut [0; 5], a + 60).is_err());
    assert!(memory.copy_within(a + 40, a, 30).is_err());
    assert!(memory.fill(a, [0u8; 4], u64::MAX / 2).is_err());
}

#[test]
fn marks_follow_writes() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(1000).unwrap();
    let view = memory.view();
    let init = view.allocation(a).unwrap();
    let init = init.init();
    assert_eq!(init.first_missing(0, 1000), Some(0));
    memory.copy_from_host(a + 10, &[1; 200]).unwrap();
    assert_eq!(init.first_missing(10, 200), None);
    assert_eq!(init.first_missing(9, 200), Some(9));
    assert_eq!(init.first_missing(10, 201), Some(210));
    memory.fill(a, [0u8], 1000).unwrap();
    assert!(init.is_complete());
}

#[test]
fn copies_of_unwritten_bytes_stay_unwritten() {
    let memory = DeviceMemory::new(1 << 20);
    let (a, b) = (memory.alloc(1000).unwrap(), memory.alloc(1000).unwrap());
    memory.copy_from_host(a + 100, &[1; 77]).unwrap();
    memory.fill(b, [0u8], 1000).unwrap();
    memory.copy_within(b + 3, a, 500).unwrap();
    let target = memory.view().allocation(b).unwrap();
    let written = |byte: u64| target.init().first_missing(byte, 1).is_none();
    for byte in 0..1000u64 {
        let expected = !(3..503).contains(&byte) || (103..180).contains(&byte);
        assert_eq!(written(byte), expected, "byte {byte}");
    }
}

#[test]
fn an_unchecked_launch_leaves_no_doubts() {
    let memory = DeviceMemory::new(1 << 20);
    let a = memory.alloc(64).unwrap();
    memory.view().assume_initialised();
    assert!(memory.view().peek(a).is_some_and(|allocation| allocation.init().is_complete()));
    let b = memory.alloc(64).unwrap();
    assert!(memory.view().peek(b).is_some_and(|allocation| !allocation.init().is_complete()));
}

#[test]
fn threads_share_the_device() {
    let memory = DeviceMemory::new(1 << 24);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let memory = &memory;
            scope.spawn(move || {
                for _ in 0..300 {
                    let pointer = memory.alloc(300).unwrap();
                    memory.fill(pointer, [thread], 300).unwrap();
                    assert_eq!(bytes(memory, pointer, 300), vec![thread; 300]);
                    memory.free(pointer).unwrap();
                }
            });
        }
    });
    assert_eq!(memory.info(), (1 << 24, 1 << 24));
}

#[test]
fn what_is_reserved_is_zero_and_free() {
    let memory = DeviceMemory::new(1 << 20);
    // Far more than the limit, and than a test should touch.
    let long = memory.reserve(8 << 30).unwrap();
    assert_eq!(memory.info(), (1 << 20, 1 << 20));
    let end = long + (8 << 30);
    assert_eq!(bytes(&memory, end - 3, 3), [0; 3]);
    memory.copy_from_host(end - 2, &[7, 8]).unwrap();
    assert_eq!(bytes(&memory, end - 3, 3), [0, 7, 8]);
    assert!(memory.copy_from_host(end - 1, &[7, 8]).is_err());
    let view = memory.view();
    let block = view.allocation(long).unwrap();
    assert!(block.base().addr().is_multiple_of(256));
    assert_eq!(block.init().first_missing(0, 8 << 30), Some(0));
    memory.free(long).unwrap();
    assert_eq!(memory.info(), (1 << 20, 1 << 20));
    assert!(memory.reserve(1 << 40).is_err());
}
