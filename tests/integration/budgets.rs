//! The limits and defaults in `docs/limits.md` are those of the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use swelter::internals::config::Config;
use swelter::internals::config::layers::ConfigLayers;
use swelter::internals::serve::memory::{max_client_memory, memory_limits};
use swelter::internals::serve::read_rate::{MIN_CONTENDED_READ_RATE, MIN_READ_RATE};
use swelter::internals::serve::view::MAX_PENDING_QUERIES;
use swelter::internals::serve::ws::name_limits::session_names_bytes;

fn limits_page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/limits.md")).unwrap()
}

/// The rows of all tables: first cell to the others.
fn table_rows(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let rows = page.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let mut tables = BTreeMap::new();
    for row in cells {
        assert!(
            tables.insert(row[0], row[1..].to_vec()).is_none() || row[0].starts_with("---"),
            "{row:?} twice"
        );
    }
    tables
}

/// As the page writes it.
fn size_text(bytes: usize) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 20 => format!("{} MiB", ((bytes as f64) / f64::from(1 << 20)).round()),
        _ => format!("{} KiB", bytes >> 10),
    }
}

fn grouped_digits(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| str::from_utf8(g).unwrap()).collect();
    groups.join(",")
}

#[test]
fn limits_page_has_every_key_with_its_default() {
    let (page, config) = (limits_page(), Config::load(&ConfigLayers::default()).unwrap());
    let (tables, defaults) = (table_rows(&page), config.to_toml());
    let limits = defaults.split("[serve.limits]").nth(1).unwrap().split("\n[").next().unwrap();
    let mut keys = 0;
    for line in limits.lines() {
        let Some((key, rest)) = line.split('#').next().unwrap_or_default().split_once('=') else { continue };
        let name = format!("`serve.limits.{}`", key.trim());
        let value = rest.trim().trim_matches('"');
        let row = tables.get(&*name).unwrap_or_else(|| panic!("{name} is not on the page"));
        assert_eq!(row[0], value, "{name}");
        keys += 1;
    }
    let written = tables.keys().filter(|name| name.starts_with("`serve.limits.")).count();
    assert!(keys > 0 && keys == written, "{keys} keys, {written} on the page");
}

#[test]
fn limits_page_totals_match_code() {
    let (page, plan) = (limits_page(), Config::load(&ConfigLayers::default()).unwrap().plan);
    let (tables, limits) = (table_rows(&page), &plan.serve.limits);
    let budgets = memory_limits(limits, 1);
    for budget in &budgets {
        let row = tables.get(budget.name).unwrap_or_else(|| panic!("{} is not on the page", budget.name));
        assert_eq!(row[0], size_text(budget.bytes), "{}", budget.name);
    }
    let mib = |bytes: usize| grouped_digits((bytes as f64 / f64::from(1 << 20)).round() as usize);
    let all: usize = budgets.iter().map(|budget| budget.bytes).sum();
    assert!(page.contains(&format!("together are {} MiB with one worker", mib(all))), "{}", mib(all));
    for clients in [100, 1_000, 20_000] {
        let row = tables.get(&*grouped_digits(clients)).unwrap();
        assert_eq!(
            row[0],
            format!("{} MiB", mib(max_client_memory(limits, 1, clients))),
            "{clients} clients"
        );
    }
    assert_eq!(max_client_memory(limits, 3, 0) - all, 2 * (128 << 20));
    assert_eq!(
        tables["names that a session's subscriptions list"][0],
        size_text(session_names_bytes(limits))
    );
    assert_eq!(tables["cities of a session's `window` subscriptions"][0], MAX_PENDING_QUERIES.to_string());
    assert_eq!(tables["least rate of reading"][0], size_text(MIN_READ_RATE));
    assert_eq!(tables["the same while others wait for what it holds"][0], size_text(MIN_CONTENDED_READ_RATE));
}
