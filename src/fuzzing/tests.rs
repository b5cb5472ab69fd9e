use std::panic::{AssertUnwindSafe, catch_unwind};

use super::mutate::Mutator;
use super::{FuzzTarget, TARGETS, seeds};

/// How many of a hundred inputs a target gets: by how many come from outside, and by the cost of
/// one.
fn share(target: &str) -> u64 {
    match target {
        "json" => 30,
        "json_lines" | "csv" | "avro" => 15,
        _ => 5,
    }
}

fn input(mutator: &mut Mutator, target: &str, seeds: &[Vec<u8>]) -> Vec<u8> {
    let is_text = !matches!(target, "parquet" | "avro");
    // A manifest that was edited, or written by another version, has its checksum; a damaged one
    // does not.
    if target == "manifest" && mutator.below(4) > 0 {
        return seeds::manifest_with_checksum(
            &mutator.mutate_seed(&[seeds::MANIFEST_JSON.as_bytes().to_vec()], true),
        );
    }
    mutator.mutate_seed(seeds, is_text)
}

/// The number of inputs that passed the first stage. A panic is reported with the input that causes
/// it.
fn try_mutated(target: &FuzzTarget, inputs: u64, seed: u64) -> u64 {
    let seeds = seeds::seeds_of(target.name);
    for seed in &seeds {
        assert!((target.run)(seed), "{}: a seed is valid: {:?}", target.name, String::from_utf8_lossy(seed));
    }
    let mut mutator = Mutator::new(seed);
    let mut passed = 0;
    for number in 0..inputs {
        let input = input(&mut mutator, target.name, &seeds);
        match catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            Ok(is_past) => passed += u64::from(is_past),
            Err(_) => panic!("{}, seed {seed}, input {number}: {}", target.name, input.escape_ascii()),
        }
    }
    passed
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// `scripts/fuzz decoders` runs it with more inputs and other seeds.
#[test]
fn decoders_account_for_mutated_inputs() {
    let inputs = from_environment("SWELTER_FUZZ_INPUTS").unwrap_or(20_000);
    let seed = from_environment("SWELTER_FUZZ_SEED").unwrap_or(1);
    eprintln!("| decoder | inputs | passed the first stage |\n|---|---|---|");
    let (mut all, mut all_passed) = (0, 0);
    for target in &TARGETS {
        let own = (inputs * share(target.name) / 100).max(1);
        let passed = try_mutated(target, own, seed);
        eprintln!("| {} | {own} | {:.1} % |", target.name, 100.0 * passed as f64 / own as f64);
        (all, all_passed) = (all + own, all_passed + passed);
    }
    let share = all_passed as f64 / all as f64;
    eprintln!("| all | {all} | {:.1} % |", 100.0 * share);
    assert!(share > 0.3, "{share}: so few inputs that pass the first stage do not try the later ones");
}

#[test]
fn input_shares_sum_to_100() {
    assert_eq!(TARGETS.iter().map(|target| share(target.name)).sum::<u64>(), 100);
}
