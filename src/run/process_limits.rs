//! Checks the host's limits of open files and threads against the needs of a run, before the start.
//!
//! Every connection needs an open file, so enough clients could exhaust the files that the journal,
//! the epochs and dead letters need. The run therefore reserves its own part, and serves fewer
//! connections if the limit is low.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::logs::needs_data_dir;
use crate::checkpoint::CheckpointLocation;
use crate::config::{ServicePlan, SourceKind, SourcePlan};
use crate::fault::{check_threads_available, start_failure_text};
use crate::kafka::KafkaCluster;
use crate::serve::max_concurrent_rejections;
use crate::sinks::kafka::KafkaSinkPlan;
use crate::sinks::postgres::PostgresSinkPlan;
use crate::sources::journal;
use crate::sources::kafka::KafkaSourcePlan;

/// A run that can serve fewer connections does not start, unless the configuration limits them to
/// fewer.
const FEWEST_CONNECTIONS: u64 = 64;

/// Standard streams, the listener, polls and wake-ups of the runtimes, signals.
const PROCESS_FILES: u64 = 20;
/// Files open for a short time: certificates, name resolution, files of /proc, and a connection
/// that is accepted but not counted yet.
const TRANSIENT_FILES: u64 = 16;
/// The lock, the epoch bound with its folder, and two dead-letter files, each with a handle for
/// fsync and a successor.
const DATA_DIR_FILES: u64 = 3 + 2 * 3;
/// Files that the threads of a checkpoint folder have open, and its runtime.
const CHECKPOINT_FOLDER_FILES: u64 = 2 * 8 + 4;
/// Connections of an S3 store: concurrent requests, and parts of uploads by worker.
const S3_CONNECTIONS: u64 = 16 + 8;
const S3_CONNECTIONS_OF_WORKER: u64 = 4;
/// The file, the handle that follows it, and the check of its path.
const FOLLOWED_FILES: u64 = 3;
/// The position file of a generator, and its folder.
const GENERATOR_FILES: u64 = 2;
/// Kafka clients that retry the dead letters of a topic.
const RETRY_CLIENTS: u64 = 2;
/// The open segment of a folder's shard, its commit log, and two temporary files.
const FOLDER_SHARD_FILES: u64 = 4;
/// Connections with PostgreSQL: of a shard, with a second one that ends what blocks it, and of the
/// watch for other claims in each database; each with the poll and the wake-up of its runtime.
const POSTGRES_SHARD_FILES: u64 = 2 * POSTGRES_CONNECTION_FILES;
const POSTGRES_CONNECTION_FILES: u64 = 4;
/// The thread of a shard, and the one that resolves names for its connection.
const POSTGRES_SHARD_THREADS: usize = 2;
/// Clients of a Kafka sink in addition to one for each shard: progress, the watch for other claims,
/// the heartbeat.
const SINK_CLIENTS: u64 = 3;
/// Temporary clients of a start.
const START_CLIENTS: u64 = 4;
/// The least number of brokers assumed for a cluster, however few addresses are configured.
const BROKERS: u64 = 6;
/// Files of a Kafka client for each broker: a connection and the two ends of a wake-up pipe.
const BROKER_FILES: u64 = 3;
/// Files of a Kafka client in addition to its brokers, counted as brokers: its own wake-ups and
/// coordinators.
const OTHER_BROKERS: u64 = 2;
const REGISTRY_CONNECTIONS: u64 = 2;
/// Files for another process of the cluster: links in both directions and the dataflow's
/// connection, each with handles.
const PEER_FILES: u64 = 6;
/// Unproven connections, each with two handles, and the listener.
const HANDSHAKE_FILES: u64 = 2 * 64 + 1;

/// Threads that every run has: serving, signals, the publisher, the journal and its store, epochs,
/// workers' parent, checkpoints.
const PROCESS_THREADS: usize = 16;
/// A worker, and the thread that writes its part of a checkpoint.
const WORKER_THREADS: usize = 2;
/// The least number of threads of a Kafka client: two of its own, and two for brokers.
const CLIENT_THREADS: usize = 4;

/// Why the limits of the host prevent a run.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error(
        "this process may open {limit} files, of which the run itself needs {reserve}: that leaves {connections} connections, fewer than {FEWEST_CONNECTIONS}; allow at least {needed} open files (`ulimit -n {needed}`, with systemd LimitNOFILE={needed})"
    )]
    OpenFiles { limit: u64, reserve: u64, connections: u64, needed: u64 },
    #[error("this run needs {needed} threads: {}", start_failure_text(error))]
    Threads { needed: usize, error: io::Error },
}

/// How the open files of a process are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// None if there is no limit.
    pub limit: Option<u64>,
    /// Files reserved for the run itself.
    pub reserve: u64,
    /// Connections served at the same time.
    pub connections: usize,
}

/// Raises the limit of open files as far as permitted, and lowers the plan's number of connections
/// to fit within it.
///
/// # Errors
///
/// If fewer connections remain than a service needs.
pub fn limit_connections(plan: &mut ServicePlan) -> Result<OpenFiles, LimitError> {
    let shared = divide_open_files(raise_open_files(), reserved_files(plan), plan.serve.limits.connections)?;
    plan.serve.limits.connections = shared.connections;
    Ok(shared)
}

/// Checks that the threads of a run can be started. Otherwise a library that starts one panics.
pub fn check_threads_of(plan: &ServicePlan) -> Result<(), LimitError> {
    let is_kafka = |source: &&SourcePlan| matches!(source.kind, SourceKind::Kafka(_));
    let clients = plan.sources.iter().filter(is_kafka).count()
        + plan.kafka_sinks().map(|sink| usize::from(sink.output.shards)).sum::<usize>();
    let folder_shards: usize = plan.folder_sinks().map(|folder| usize::from(folder.shards)).sum();
    let postgres_threads: usize = plan.postgres_sinks().map(postgres_threads).sum();
    let needed = PROCESS_THREADS
        + WORKER_THREADS * plan.workers
        + CLIENT_THREADS * clients
        + folder_shards
        + postgres_threads;
    check_threads_available(needed).map_err(|error| LimitError::Threads { needed, error })
}

/// Sets the soft limit of open files to the hard one. Returns the limit in force.
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        // Some hosts allow less than they report.
        Err(_) => current,
    }
}

fn divide_open_files(limit: Option<u64>, reserve: u64, wanted: usize) -> Result<OpenFiles, LimitError> {
    let Some(allowed) = limit else { return Ok(OpenFiles { limit, reserve, connections: wanted }) };
    let fits = |connections: u64| {
        let turned_away =
            max_concurrent_rejections(usize::try_from(connections).unwrap_or(usize::MAX)) as u64;
        reserve + connections + turned_away
    };
    let mut connections = (wanted as u64).min(allowed.saturating_sub(reserve));
    while connections > 0 && fits(connections) > allowed {
        connections -= 1;
    }
    let fewest = FEWEST_CONNECTIONS.min(wanted as u64);
    if connections < fewest {
        return Err(LimitError::OpenFiles { limit: allowed, reserve, connections, needed: fits(fewest) });
    }
    Ok(OpenFiles { limit, reserve, connections: usize::try_from(connections).unwrap_or(wanted) })
}

/// Open files that a run may need, not including those of its clients.
fn reserved_files(plan: &ServicePlan) -> u64 {
    let workers = plan.workers as u64;
    let mut files = PROCESS_FILES + TRANSIENT_FILES + workers;
    let has_data_dir = needs_data_dir(plan);
    if has_data_dir {
        files += DATA_DIR_FILES;
    }
    if has_data_dir && plan.ingest.as_ref().is_some_and(|ingest| ingest.source.is_none()) {
        files += journal::MAX_OPEN_FILES;
    }
    files += match plan.checkpoints.as_ref().map(|checkpoints| &checkpoints.location) {
        None => 0,
        Some(CheckpointLocation::Folder(_)) => CHECKPOINT_FOLDER_FILES,
        Some(CheckpointLocation::S3 { .. }) => S3_CONNECTIONS + S3_CONNECTIONS_OF_WORKER * workers,
    };
    for source in &plan.sources {
        files += match &source.kind {
            SourceKind::File(_) => FOLLOWED_FILES,
            SourceKind::Generator(_) => GENERATOR_FILES,
            SourceKind::Kafka(kafka) => kafka_source_files(plan, &source.name, kafka),
        };
    }
    for KafkaSinkPlan { output, .. } in plan.kafka_sinks() {
        let clients = SINK_CLIENTS + u64::from(output.shards) + START_CLIENTS;
        files += clients * client_files(&output.cluster) + REGISTRY_CONNECTIONS;
    }
    files += plan.folder_sinks().map(|folder| FOLDER_SHARD_FILES * u64::from(folder.shards)).sum::<u64>();
    files += plan.postgres_sinks().map(postgres_files).sum::<u64>();
    let processes = plan.cluster.processes as u64;
    if processes > 1 {
        files += HANDSHAKE_FILES + (processes - 1) * PEER_FILES;
    }
    files
}

/// Shards, and the watch for other claims in each database.
fn postgres_files(sink: &PostgresSinkPlan) -> u64 {
    let databases = sink.databases.len() as u64;
    POSTGRES_SHARD_FILES * u64::from(sink.shards) + POSTGRES_CONNECTION_FILES * databases
}

fn postgres_threads(sink: &PostgresSinkPlan) -> usize {
    POSTGRES_SHARD_THREADS * usize::from(sink.shards) + sink.databases.len() + 1
}

fn kafka_source_files(plan: &ServicePlan, name: &str, kafka: &KafkaSourcePlan) -> u64 {
    let of_cluster = client_files(&kafka.cluster);
    let is_appended_to = plan.ingest.as_ref().is_some_and(|ingest| ingest.source.as_deref() == Some(name));
    let mut clients = 1 + u64::from(is_appended_to);
    if kafka.retry_after.is_some() {
        clients += RETRY_CLIENTS;
    }
    // Dead letters are written with the results of the same cluster, otherwise by a shard of their
    // own.
    if plan.kafka_sinks().all(|sink| sink.output.cluster != kafka.cluster) {
        clients += SINK_CLIENTS + 1 + START_CLIENTS;
    }
    clients * of_cluster + REGISTRY_CONNECTIONS
}

fn client_files(cluster: &KafkaCluster) -> u64 {
    // Bootstrap brokers have threads of their own.
    let found_by = cluster.brokers.split(',').count() as u64;
    (found_by + BROKERS.max(found_by) + OTHER_BROKERS) * BROKER_FILES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::layers::ConfigLayers;

    fn plan(flags: &[(&str, &str)]) -> ServicePlan {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), "a flag", (*value).to_owned()));
        let layers = ConfigLayers { file: None, environment: Vec::new(), flags: flags.collect() };
        Config::load(&layers).unwrap().plan
    }

    #[test]
    fn accepted_and_rejected_connections_fit_beside_reserve() {
        let used = |connections: usize| (connections + max_concurrent_rejections(connections)) as u64 + 100;
        for limit in [172, 173, 200, 256, 1024, 4096, 20_000, 1 << 30] {
            let OpenFiles { connections, .. } = divide_open_files(Some(limit), 100, 20_000).unwrap();
            assert!(
                (64..=20_000).contains(&connections) && used(connections) <= limit,
                "{limit}: {connections}"
            );
            assert!(connections == 20_000 || used(connections + 1) > limit, "{limit}: {connections}");
        }
        let unlimited = OpenFiles { limit: None, reserve: 100, connections: 20_000 };
        assert_eq!(divide_open_files(None, 100, 20_000).unwrap(), unlimited);
    }

    #[test]
    fn too_low_open_file_limit_is_refused_with_remedy() {
        for limit in [0, 3, 80, 171] {
            let refused = divide_open_files(Some(limit), 100, 20_000).unwrap_err();
            let text = refused.to_string();
            assert!(
                text.contains(&format!("may open {limit} files")) && text.contains("needs 100"),
                "{text}"
            );
            assert!(text.contains("`ulimit -n 172`") && text.contains("LimitNOFILE=172"), "{text}");
        }
        // A lower configured number is respected.
        assert_eq!(divide_open_files(Some(118), 100, 10).unwrap().connections, 10);
        assert!(divide_open_files(Some(116), 100, 10).is_err());
    }

    #[test]
    fn reserve_includes_all_file_users() {
        let least = reserved_files(&plan(&[("ingest.enabled", "false"), ("checkpoints.every", "0s")]));
        let usual = reserved_files(&plan(&[]));
        assert!(usual > least + journal::MAX_OPEN_FILES + DATA_DIR_FILES, "{usual}, {least}");
        // At 256 open files a service with a journal still serves.
        assert!(usual <= 256 - 64 - 8, "{usual}");
        let more = |flags: &[(&str, &str)]| reserved_files(&plan(flags)) - usual;
        assert_eq!(more(&[("workers", "3")]), 2);
        assert_eq!(
            more(&[("cluster.processes", "3"), ("cluster.process", "0")]),
            HANDSHAKE_FILES + 2 * PEER_FILES
        );
        let file = [("sources.a.type", "file"), ("sources.a.path", "a.csv"), ("sources.a.follow", "true")];
        assert_eq!(more(&file), FOLLOWED_FILES);
        let topic = [("sources.a.type", "kafka"), ("sources.a.brokers", "a:1,b:2"), ("sources.a.topic", "t")];
        let source = plan(&topic);
        let SourceKind::Kafka(kafka) = &source.sources[0].kind else { panic!("{source:?}") };
        assert_eq!(client_files(&kafka.cluster), (2 + BROKERS + OTHER_BROKERS) * BROKER_FILES);
        assert!(reserved_files(&source) > least + (SINK_CLIENTS + 2) * client_files(&kafka.cluster));
        let mut s3 = plan(&[]);
        if let Some(checkpoints) = &mut s3.checkpoints {
            checkpoints.location = CheckpointLocation::S3 { bucket: "b".into(), prefix: String::new() };
        }
        assert!(reserved_files(&s3) > usual);
    }

    #[test]
    fn soft_open_file_limit_is_raised_to_hard_limit() {
        let limit = raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, limit);
        assert_eq!(getrlimit(Resource::Nofile).maximum, limit);
    }
}
