# All tests, the property tests with 500 cases each
test *args:
    scripts/test {{args}}

lint:
    scripts/lint
    cargo clippy --locked -- -D warnings
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

fmt:
    cargo fmt

# What the parts cost, on one core
bench *args:
    cargo build --release --locked
    taskset -c 1 cargo bench --locked -p swelter-benches {{args}}

# Beside polars, pandas and DuckDB
compare *args:
    cargo build --release --locked
    benches/compare/run {{args}}

# Live cities with made-up weather
demo *args:
    cargo run --release --locked -- demo {{args}}

# A year of New York, and what two corrections change of it
demo-nyc:
    mkdir -p target/demo
    cargo run --release --locked -- batch data/nyc2013.csv data/nyc2013-corrections.csv --city JFK \
        -o target/demo/nyc2013.parquet --changes target/demo/nyc2013-changes.jsonl --plot target/demo/nyc2013.svg

# Licences, bans, sources and advisories of what is depended on
deny:
    scripts/deny
