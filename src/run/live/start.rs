//! What a start finds, and what all processes of a run begin with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::ValueName;
use crate::config::{ClusterConfig, ServicePlan, SourceKind, SourcePlan, StartMode};
use crate::model::PartitionName;
use crate::run::durable_sinks::{DurableSinks, InspectedSinks, SourceRegistry};
use crate::run::logs::Logs;
use crate::run::primary_follower::PrimaryFollower;
use crate::run::processes::Processes;
use crate::run::run_error::RunError;
use crate::sinks::kafka::progress::ProgressSnapshot;
use crate::worker;

/// How long the outlets may take to say what they hold, brokers that are starting included.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(60);

/// What all processes begin with.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) generation: Arc<str>,
    /// By slot: the partitions, and from where they are read.
    pub(super) partitions: Vec<(PartitionName, u64)>,
    /// By source: what the logs are known by beside their names.
    pub(super) ids: BTreeMap<String, String>,
    pub(super) first_epoch: u64,
}

/// Looks for a generation to follow, where the plan says so; and what the outlets hold.
pub(super) fn follow(
    plan: &ServicePlan,
    prepared: &InspectedSinks,
    logs: &Logs,
    processes: &Processes,
) -> Result<(Option<Arc<PrimaryFollower>>, Vec<ProgressSnapshot>), RunError> {
    let ClusterConfig { start_mode: start, standby_after, .. } = plan.cluster;
    let kept = processes.share(ValueName::ALL_PROGRESS, || look(prepared, logs))?;
    if start == StartMode::Claim {
        return Ok((None, kept));
    }
    if prepared.is_empty() || logs.data_dir().is_some() || !plan.sources.iter().all(is_topic) {
        return Err(RunError::Failed(
            "cluster.start: only a run whose sources are all topics of Kafka can take over from another one: a journal has one owner".into(),
        ));
    }
    // The same at all processes but for the claims, which only the first one makes.
    let following = PrimaryFollower::new(start, standby_after, prepared, &kept)?.map(Arc::new);
    if let (Some(following), true) = (&following, processes.topology().is_first_process()) {
        following.spawn_followers(prepared)?;
        tracing::info!("another generation is followed");
    }
    Ok((following, kept))
}

/// What the outlets hold; refused before anything is claimed, where it could not be gone on with.
fn look(prepared: &InspectedSinks, logs: &Logs) -> Result<Vec<ProgressSnapshot>, RunError> {
    let kept = prepared.inspect_progress(FIRST_LOOK)?;
    prepared.check_dead_letters(&kept)?;
    let starts = prepared.source_registry(&kept.iter().collect::<Vec<_>>())?;
    logs.compare_topics(|source| prepared.recorded_topic(&kept, source))?;
    prepared.check_resumable(&kept, &logs.partitions(&starts, true)?)?;
    Ok(kept)
}

fn is_topic(source: &SourcePlan) -> bool {
    matches!(source.kind, SourceKind::Kafka(_))
}

/// What process 0 finds for all.
pub(super) fn begin(
    logs: &Logs,
    outlets: Option<&DurableSinks>,
    following: Option<&PrimaryFollower>,
    starts: &SourceRegistry,
) -> Result<Start, RunError> {
    let generation =
        outlets.and_then(DurableSinks::generation).or(following.and_then(PrimaryFollower::generation));
    let generation = generation.or(logs.data_dir().map(|dir| dir.generation()));
    let generation = generation.unwrap_or_else(unkept_generation);
    let partitions = logs.partitions(starts, following.is_some())?;
    let floor = outlets.map_or(Ok(0), DurableSinks::epoch_floor)?;
    let floor = floor.max(logs.data_dir().map_or(0, |dir| dir.epoch_floor()));
    let partitions = partitions.into_iter().map(|log| (log.name, log.start.position)).collect();
    let (ids, first_epoch) = (logs.log_ids()?, floor.max(worker::ingest_clock_ms()));
    Ok(Start { generation, partitions, ids, first_epoch })
}

/// Without a directory nothing is taken up again, and so that nobody thinks so, no two runs have the same.
fn unkept_generation() -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    format!("0-{:016x}", RandomState::new().hash_one(worker::ingest_clock_ms())).into()
}
