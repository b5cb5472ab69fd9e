//! What the host allows a run: open files and threads, compared with what it needs before anything is started.
//!
//! A connection takes an open file, and so does all else: whoever opens enough connections would take those that the journal, the
//! epochs and dead letters need. So the run keeps its own part, the reserve, and serves fewer connections where the limit is low.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::logs::needs_data_dir;
use crate::checkpoint::Place;
use crate::config::{Plan, SourceKind, SourcePlan};
use crate::fault::{cannot_start, check_threads};
use crate::kafka::Cluster;
use crate::serve::turned_away_at_once;
use crate::sinks::kafka::KafkaSinkPlan;
use crate::sources::journal;
use crate::sources::kafka::KafkaPlan;

/// A run that can serve fewer connections does not start, unless no more are configured.
const FEWEST_CONNECTIONS: u64 = 64;

/// Standard streams, the listener, polls and wake-ups of the runtimes, signals.
const PROCESS_FILES: u64 = 20;
/// What is open for a moment: certificates, names that are looked up, files of /proc; and the connection that is accepted before it
/// is counted.
const MOMENTARY_FILES: u64 = 16;
/// The lock, the bound of the epochs with its folder, and of two files of dead letters each with a handle to sync and a successor.
const DATA_DIR_FILES: u64 = 3 + 2 * 3;
/// Files that the threads of a store of checkpoints have open, and its runtime.
const CHECKPOINT_FOLDER_FILES: u64 = 2 * 8 + 4;
/// Connections of a store that speaks S3: requests at once, and parts of uploads by worker.
const S3_CONNECTIONS: u64 = 16 + 8;
const S3_CONNECTIONS_OF_WORKER: u64 = 4;
/// The file, the handle that it is followed by, and the look at what is at its path.
const FOLLOWED_FILES: u64 = 3;
/// The file of a generator's place, and its folder.
const GENERATOR_FILES: u64 = 2;
/// Clients that dead letters of a topic are sent again by.
const RETRY_CLIENTS: u64 = 2;
/// Clients of an outlet beside one for each shard: its progress, the watch for other claims, the sign of life.
const OUTLET_CLIENTS: u64 = 3;
/// Clients of a start, which come and go.
const START_CLIENTS: u64 = 4;
/// Brokers that a cluster is taken to have at least, whatever is configured to find it by.
const BROKERS: u64 = 6;
/// Of a client of Kafka, for each broker: a connection and the two ends of a wake-up.
const BROKER_FILES: u64 = 3;
/// What a client has beside brokers: its own wake-ups and coordinators.
const OTHER_BROKERS: u64 = 2;
const REGISTRY_CONNECTIONS: u64 = 2;
/// Of another process of the cluster: links in both directions, the dataflow's connection, each with handles.
const PEER_FILES: u64 = 6;
/// Callers that have not said who they are, each with two handles, and the listener.
const CALLER_FILES: u64 = 2 * 64 + 1;

/// Threads that every run has: serving, signals, the publisher, the journal and its store, epochs, workers' parent, checkpoints.
const PROCESS_THREADS: usize = 16;
/// A worker, and who writes its part of a checkpoint.
const WORKER_THREADS: usize = 2;
/// A client of Kafka: its own two, and two of brokers, at the least.
const CLIENT_THREADS: usize = 4;

/// Why a run is not started.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error(
        "this process may open {limit} files, of which this run needs {reserve} for itself: that leaves {connections} connections, fewer than \
         {FEWEST_CONNECTIONS}; allow at least {needed} open files (`ulimit -n {needed}`, with systemd LimitNOFILE={needed})"
    )]
    OpenFiles { limit: u64, reserve: u64, connections: u64, needed: u64 },
    #[error("this run needs {needed} threads: {}", cannot_start(error))]
    Threads { needed: usize, error: io::Error },
}

/// How the open files of a process are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// None without a limit.
    pub limit: Option<u64>,
    /// What the run itself may have open.
    pub reserve: u64,
    /// What is served at once.
    pub connections: usize,
}

/// Raises the limit of open files as far as this process may, and leaves the plan with as many connections as fit within it.
///
/// # Errors
///
/// Where those are too few to serve anybody.
pub fn limit_connections(plan: &mut Plan) -> Result<OpenFiles, LimitError> {
    let shared = share_out(raise_open_files(), reserve(plan), plan.serve.limits.connections)?;
    plan.serve.limits.connections = shared.connections;
    Ok(shared)
}

/// Whether the threads of a run can be had. A library that starts one panics otherwise.
pub fn check_threads_of(plan: &Plan) -> Result<(), LimitError> {
    let is_kafka = |source: &&SourcePlan| matches!(source.kind, SourceKind::Kafka(_));
    let clients = plan.sources.iter().filter(is_kafka).count()
        + plan.sink.as_ref().map_or(0, |sink| usize::from(sink.outlet.shards));
    let needed = PROCESS_THREADS + WORKER_THREADS * plan.workers + CLIENT_THREADS * clients;
    check_threads(needed).map_err(|error| LimitError::Threads { needed, error })
}

/// Sets the soft limit of open files to the hard one; gives the limit in force.
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        // Some hosts allow less than they say.
        Err(_) => current,
    }
}

fn share_out(limit: Option<u64>, reserve: u64, wanted: usize) -> Result<OpenFiles, LimitError> {
    let Some(allowed) = limit else { return Ok(OpenFiles { limit, reserve, connections: wanted }) };
    let fits = |connections: u64| {
        let turned_away = turned_away_at_once(usize::try_from(connections).unwrap_or(usize::MAX)) as u64;
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

/// Open files that a run may need beside those of its clients.
fn reserve(plan: &Plan) -> u64 {
    let workers = plan.workers as u64;
    let mut files = PROCESS_FILES + MOMENTARY_FILES + workers;
    let has_data_dir = needs_data_dir(plan);
    if has_data_dir {
        files += DATA_DIR_FILES;
    }
    if has_data_dir && plan.ingest.as_ref().is_some_and(|ingest| ingest.into.is_none()) {
        files += journal::MAX_OPEN_FILES;
    }
    files += match plan.checkpoints.as_ref().map(|checkpoints| &checkpoints.place) {
        None => 0,
        Some(Place::Folder(_)) => CHECKPOINT_FOLDER_FILES,
        Some(Place::S3 { .. }) => S3_CONNECTIONS + S3_CONNECTIONS_OF_WORKER * workers,
    };
    for source in &plan.sources {
        files += match &source.kind {
            SourceKind::File(_) => FOLLOWED_FILES,
            SourceKind::Generator(_) => GENERATOR_FILES,
            SourceKind::Kafka(kafka) => kafka_source_files(plan, &source.name, kafka),
        };
    }
    if let Some(KafkaSinkPlan { outlet, .. }) = &plan.sink {
        let clients = OUTLET_CLIENTS + u64::from(outlet.shards) + START_CLIENTS;
        files += clients * client_files(&outlet.cluster) + REGISTRY_CONNECTIONS;
    }
    let processes = plan.cluster.processes as u64;
    if processes > 1 {
        files += CALLER_FILES + (processes - 1) * PEER_FILES;
    }
    files
}

fn kafka_source_files(plan: &Plan, name: &str, kafka: &KafkaPlan) -> u64 {
    let of_cluster = client_files(&kafka.cluster);
    let is_appended_to = plan.ingest.as_ref().is_some_and(|ingest| ingest.into.as_deref() == Some(name));
    let mut clients = 1 + u64::from(is_appended_to);
    if kafka.retry_after.is_some() {
        clients += RETRY_CLIENTS;
    }
    // Its dead letters go out with the results of the same cluster, else by an outlet of one shard.
    if plan.sink.as_ref().is_none_or(|sink| sink.outlet.cluster != kafka.cluster) {
        clients += OUTLET_CLIENTS + 1 + START_CLIENTS;
    }
    clients * of_cluster + REGISTRY_CONNECTIONS
}

fn client_files(cluster: &Cluster) -> u64 {
    // Those that it is found by have threads of their own.
    let found_by = cluster.brokers.split(',').count() as u64;
    (found_by + BROKERS.max(found_by) + OTHER_BROKERS) * BROKER_FILES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::layers::Layers;

    fn plan(flags: &[(&str, &str)]) -> Plan {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), "a flag", (*value).to_owned()));
        let layers = Layers { file: None, environment: Vec::new(), flags: flags.collect() };
        Config::load(&layers).unwrap().plan
    }

    #[test]
    fn connections_and_those_turned_away_fit_beside_the_reserve() {
        let used = |connections: usize| (connections + turned_away_at_once(connections)) as u64 + 100;
        for limit in [172, 173, 200, 256, 1024, 4096, 20_000, 1 << 30] {
            let OpenFiles { connections, .. } = share_out(Some(limit), 100, 20_000).unwrap();
            assert!(
                (64..=20_000).contains(&connections) && used(connections) <= limit,
                "{limit}: {connections}"
            );
            assert!(connections == 20_000 || used(connections + 1) > limit, "{limit}: {connections}");
        }
        let unlimited = OpenFiles { limit: None, reserve: 100, connections: 20_000 };
        assert_eq!(share_out(None, 100, 20_000).unwrap(), unlimited);
    }

    #[test]
    fn a_limit_that_leaves_too_few_connections_is_refused_with_what_to_do() {
        for limit in [0, 3, 80, 171] {
            let refused = share_out(Some(limit), 100, 20_000).unwrap_err();
            let text = refused.to_string();
            assert!(
                text.contains(&format!("may open {limit} files")) && text.contains("needs 100"),
                "{text}"
            );
            assert!(text.contains("`ulimit -n 172`") && text.contains("LimitNOFILE=172"), "{text}");
        }
        // Whoever wants fewer gets them.
        assert_eq!(share_out(Some(118), 100, 10).unwrap().connections, 10);
        assert!(share_out(Some(116), 100, 10).is_err());
    }

    #[test]
    fn all_that_opens_files_is_in_the_reserve() {
        let least = reserve(&plan(&[("ingest.enabled", "false"), ("checkpoints.every", "0s")]));
        let usual = reserve(&plan(&[]));
        assert!(usual > least + journal::MAX_OPEN_FILES + DATA_DIR_FILES, "{usual}, {least}");
        // At 256 open files a service with a journal still serves.
        assert!(usual <= 256 - 64 - 8, "{usual}");
        let more = |flags: &[(&str, &str)]| reserve(&plan(flags)) - usual;
        assert_eq!(more(&[("workers", "3")]), 2);
        assert_eq!(
            more(&[("cluster.processes", "3"), ("cluster.process", "0")]),
            CALLER_FILES + 2 * PEER_FILES
        );
        let file = [("sources.a.type", "file"), ("sources.a.path", "a.csv"), ("sources.a.follow", "true")];
        assert_eq!(more(&file), FOLLOWED_FILES);
        let topic = [("sources.a.type", "kafka"), ("sources.a.brokers", "a:1,b:2"), ("sources.a.topic", "t")];
        let source = plan(&topic);
        let SourceKind::Kafka(kafka) = &source.sources[0].kind else { panic!("{source:?}") };
        assert_eq!(client_files(&kafka.cluster), (2 + BROKERS + OTHER_BROKERS) * BROKER_FILES);
        assert!(reserve(&source) > least + (OUTLET_CLIENTS + 2) * client_files(&kafka.cluster));
        let mut s3 = plan(&[]);
        if let Some(checkpoints) = &mut s3.checkpoints {
            checkpoints.place = Place::S3 { bucket: "b".into(), prefix: String::new() };
        }
        assert!(reserve(&s3) > usual);
    }

    #[test]
    fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
        let limit = raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, limit);
        assert_eq!(getrlimit(Resource::Nofile).maximum, limit);
    }
}
