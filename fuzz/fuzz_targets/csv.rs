#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    swelter::fuzzing::run("csv", bytes);
});
