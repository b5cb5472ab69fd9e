//! What one reading costs by each formula: over readings spread over all accepted input, and over
//! summer days.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::model::Measurement;

const READINGS: usize = 4096;

/// Readings within some ranges, °F and %, in no order that a branch predictor could learn.
fn readings(temperatures: [f64; 2], humidities: [f64; 2]) -> Vec<Measurement> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut within = |[low, high]: [f64; 2]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        low + (high - low) * ((state >> 11) as f64 / (1_u64 << 53) as f64)
    };
    (0..READINGS)
        .filter_map(|_| Measurement::new(within(temperatures), within(humidities), None).ok())
        .collect()
}

fn heat_index(c: &mut Criterion) {
    let inputs = [
        ("accepted", readings([-130.0, 140.0], [0.0, 105.0])),
        ("summer", readings([65.0, 105.0], [20.0, 100.0])),
    ];
    let mut group = c.benchmark_group("heat_index");
    group.throughput(Throughput::Elements(READINGS as u64));
    for formula in [Formula::Rothfusz, Formula::Nws, Formula::LuRomps] {
        for (name, readings) in &inputs {
            group.bench_with_input(BenchmarkId::new(formula.name(), name), readings, |b, readings| {
                b.iter(|| {
                    for measurement in readings {
                        black_box(formula.evaluate(black_box(measurement)));
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, heat_index);
criterion_main!(benches);
