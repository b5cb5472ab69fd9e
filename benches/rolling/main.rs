//! What the rolling operator costs, beside what the same store costs without a dataflow and what a
//! single thread without either would take. Each line is the median of several repetitions in one
//! process; the ratios are of the same run.
//!
//! Times are CPU times of the thread, so that what else the machine does counts only by the caches
//! it takes.
//!
//! `taskset -c 1 cargo bench -p swelter-benches --bench rolling -- [SCENARIO...]`, scenarios: `in-order`, `cities`,
//! `corrections`, `late`, `every-second`, `sinks`, `memory`, `resume`; all without an argument.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod baselines;
mod cities;
mod every_second;
mod graph;
mod in_order;
mod memory;
mod resume;
mod sink_outputs;
mod timing;

#[path = "../common/sensor.rs"]
mod sensor;

fn main() {
    if let Ok(kind) = std::env::var("ROLLING_MEMORY_OF") {
        return memory::memory_of(kind.parse().unwrap());
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let scenarios: [(&str, fn()); 8] = [
        ("in-order", in_order::bench_in_order),
        ("cities", in_order::bench_by_cities),
        ("corrections", in_order::bench_corrections),
        ("late", in_order::bench_late),
        ("every-second", every_second::bench_every_second),
        ("sinks", sink_outputs::bench_sink_outputs),
        ("memory", memory::bench_memory),
        ("resume", resume::bench_resume),
    ];
    for (name, run) in scenarios {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run();
        }
    }
}
