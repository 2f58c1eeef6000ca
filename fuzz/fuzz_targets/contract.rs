#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lookback_hostile::contract(bytes);
});
