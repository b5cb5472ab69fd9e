//! The program `swelter`: the command line, with the allocator of the whole process.

use std::process::ExitCode;

// Records of Kafka are allocated by one thread and freed by another, each by itself: the C library's allocator costs a third more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    swelter::run_command_line()
}
