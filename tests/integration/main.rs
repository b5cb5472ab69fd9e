//! Tests of the built program and of several modules together. `tests/README.md` says where a new
//! one goes.

// An unwrap that fails here fails a test.
#![allow(clippy::unwrap_used)]

mod architecture;
mod backup;
mod batch;
mod budgets;
mod checkpoints;
mod clock;
mod cluster;
mod commands;
mod conventions;
mod data_files;
mod dead_letters;
mod documents;
mod earlier_build;
mod examples;
mod folder_reader;
mod folder_sink;
mod heat_index;
mod imports;
mod kafka;
mod layers;
mod limits;
mod logs;
mod other_rules;
mod places;
mod postgres;
mod read_files;
mod real;
mod recovery;
mod registry;
mod results;
mod service;
mod support;
mod trial;
mod units;
mod why;
