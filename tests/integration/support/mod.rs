//! What integration tests share. `tests/README.md` says which test belongs where.

pub mod checkpoint_files;
pub mod dataflow_runner;
mod entries;
mod hosts_cluster;
pub mod http;
mod log_lines;
mod oracle;
mod ports;
pub mod prepared;
mod process;
mod random;
mod random_entries;
pub mod recording_sink;
pub mod registry_server;
mod rest_checks;
mod row_history;
mod rows;
pub mod s3_server;
mod subscriber;
mod wait;

pub use self::entries::{
    DEFAULT_FORMULA, LogEntry, MINUTE_MS, PROPERTY_TEST_FORMULA, RUN_SETTINGS, RunSettings, city_name,
    city_number, named_record_json, record_json,
};
pub use self::hosts_cluster::{CLUSTER_SECRET, HostsCluster, HostsFile, terminate_together};
pub use self::http::{HttpResponse, get, post};
pub use self::oracle::{ExpectedEffect, Oracle, PeriodRow};
pub use self::ports::{consecutive_free_ports, free_ports};
pub use self::process::{
    ServiceBuilder, ServiceProcess, is_ready, pause_process, remove_swelter_variables, send_signal,
    swelter_command, swelter_command_behind,
};
pub use self::random::Random;
pub use self::random_entries::{RANDOM_CITIES, keep_accepted_entries, random_entry};
pub use self::rest_checks::{ServiceStatus, check_current, check_history, get_json, remove_ages};
pub use self::row_history::{RowHistory, ValueHistory, final_values, push_value, row_key};
pub use self::rows::{current_json, normalize_numbers, row_json};
pub use self::subscriber::{ReceivedRows, Subscriber};
pub use self::wait::{WAIT_TIMEOUT, check_during, wait_for};
