#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    swelter::internals::fuzzing::run("json_lines", bytes);
});
