//! A run of swelter, either as `service` (serves until stopped) or as `batch` (files to their end).
//! This module wires all components.

pub mod backup;
pub mod batch;
mod batch_plan;
mod batch_reader;
mod checkpoints;
mod claim;
mod context;
mod control;
pub mod data_dir;
pub mod dead_letter_retry;
pub mod dead_letters;
mod dlq_command_error;
mod durable_sinks;
mod epochs;
mod follower;
mod ingest_hold;
mod inspected;
mod lead;
mod local_control;
mod local_sinks;
mod log_identity;
mod logs;
pub mod membership;
mod owner;
mod peer_requests;
mod peers;
pub mod permissions;
mod primary_follower;
pub mod process_limits;
pub mod protocol;
mod restored;
pub mod run_error;
mod running_member;
mod sequencer;
pub mod service;
mod service_info;
pub mod shutdown;
mod starting_member;
mod workers;

pub use self::logs::uses_data_dir;
