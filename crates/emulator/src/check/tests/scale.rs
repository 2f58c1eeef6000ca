//! Thousands of CTAs in a row: memory and time must stay in proportion.

use super::*;
use std::time::Instant;

#[test]
fn a_row_of_many_tiles_stays_small() {
    let ctas = 20_000;
    let memory = DeviceMemory::new(64 << 20);
    let flags = memory.alloc(4 * u64::from(ctas)).unwrap();
    memory.fill(flags, [0u8], 4 * u64::from(ctas)).unwrap();
    let payload = memory.alloc(128 * u64::from(ctas)).unwrap();
    let shape = Shape { ctas, threads: 256, shared_bytes: 4096, shared_base: SHARED };
    let mut sanitizer = Sanitizer::new(shape, &memory.view(), Lints::default());
    let start = Instant::now();
    for cta in 0..ctas {
        sanitizer.cta_start(cta);
        let who = agent(cta, 0);
        let own: [u64; 32] = std::array::from_fn(|lane| payload + u64::from(cta) * 128 + 4 * lane as u64);
        sanitizer.global_access(&Request::weak(who, ALL, 4, Kind::Store, 10), &own, &[]).unwrap();
        sanitizer.warp_sync(who, ALL);
        let flag = |cta: u32| flags + 4 * u64::from(cta);
        let mut request = Request {
            agent: who,
            mask: 1,
            bytes: 4,
            kind: Kind::Store,
            order: Order::Release,
            scope: Scope::Gpu,
            line: 11,
        };
        sanitizer.global_access(&request, &[flag(cta); 32], &[]).unwrap();
        if cta > 0 {
            let window = cta.min(32);
            request =
                Request { mask: ALL >> (32 - window), kind: Kind::Load, order: Order::Acquire, line: 12, ..request };
            let polled = std::array::from_fn(|lane| flag(cta.saturating_sub(lane as u32 + 1)));
            sanitizer.global_access(&request, &polled, &[]).unwrap();
            // Far behind the window: known only because knowledge is handed on.
            sanitizer.warp_sync(who, ALL);
            let far = std::array::from_fn(|lane| payload + u64::from(cta / 2) * 128 + 4 * lane as u64);
            sanitizer.global_access(&Request::weak(who, ALL, 4, Kind::Load, 13), &far, &[]).unwrap();
        }
        request = Request { mask: 1, kind: Kind::Store, order: Order::Release, line: 14, ..request };
        sanitizer.global_access(&request, &[flag(cta); 32], &[]).unwrap();
        sanitizer.cta_exit(cta);
    }
    println!("{:.1} us per CTA", start.elapsed().as_secs_f64() * 1e6 / f64::from(ctas));
    assert!(start.elapsed().as_secs() < 60, "a look-back row is no longer linear");
}
