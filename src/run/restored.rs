//! The second phase of a start, at process 0: the newest checkpoint is restored in all processes,
//! and workers run that read nothing yet.

use std::sync::Arc;

use super::checkpoints::candidates::RestoreContext;
use super::checkpoints::repository::{CheckpointRepository, choose_checkpoint_settings};
use super::checkpoints::restore::{restore_newest, restored_position};
use super::durable_sinks::FIRST_INSPECTION_TIMEOUT;
use super::durable_sinks::{DurableShard, InspectedSinks, SourceRegistry};
use super::lead::{Lead, Member as _};
use super::local_sinks::LocalSinks;
use super::primary_follower::PrimaryFollower;
use super::protocol::{CheckpointSettings, ControlCommand, ControlEvent, StartPlan};
use super::run_error::{Failure, RunError};
use super::running_member::RunningMember;
use super::starting_member::StartingMember;
use crate::checkpoint::Manifest;
use crate::kafka::topic_identity::TopicWatch;
use crate::model::{PartitionName, random_u64};
use crate::registry::ResponseFetcher;
use crate::sinks::progress::ProgressSnapshot;
use crate::worker::ingest_clock_ms;

/// The basis of a start: claimed sinks, or those of a primary.
pub trait StartBasis {
    /// Another generation runs, and writes the results.
    const FOLLOWS: bool;
    /// Epochs that may be used before the release.
    const RESERVED_UNTIL: u64;

    fn generation(&self, sinks: &LocalSinks) -> Result<Option<Arc<str>>, RunError>;
    /// The lowest epoch that may be used.
    fn epoch_floor(&self, sinks: &LocalSinks) -> Result<u64, RunError>;
    /// The durable progress of the sinks' shards.
    fn durable_shards(
        &self,
        sinks: &InspectedSinks,
        progress: &[ProgressSnapshot],
    ) -> Result<Vec<DurableShard>, RunError>;
    /// Finds the responses of a source's schema registry.
    fn find_schemas(&self, source: &str, ask: ResponseFetcher) -> ResponseFetcher;
}

/// The sinks are claimed.
pub struct ClaimedBasis;

/// The sinks belong to a primary that is followed.
pub struct FollowedBasis(pub Arc<PrimaryFollower>);

impl StartBasis for ClaimedBasis {
    const FOLLOWS: bool = false;
    const RESERVED_UNTIL: u64 = 0;

    fn generation(&self, sinks: &LocalSinks) -> Result<Option<Arc<str>>, RunError> {
        Ok(sinks.claimed()?.generation())
    }

    fn epoch_floor(&self, sinks: &LocalSinks) -> Result<u64, RunError> {
        sinks.claimed()?.epoch_floor()
    }

    fn durable_shards(
        &self,
        sinks: &InspectedSinks,
        progress: &[ProgressSnapshot],
    ) -> Result<Vec<DurableShard>, RunError> {
        sinks.durable_shards(&progress.iter().collect::<Vec<_>>())
    }

    fn find_schemas(&self, _: &str, ask: ResponseFetcher) -> ResponseFetcher {
        ask
    }
}

impl StartBasis for FollowedBasis {
    const FOLLOWS: bool = true;
    /// Nothing is published before the takeover, so any epoch may be used.
    const RESERVED_UNTIL: u64 = u64::MAX;

    fn generation(&self, _: &LocalSinks) -> Result<Option<Arc<str>>, RunError> {
        Ok(self.0.generation())
    }

    fn epoch_floor(&self, _: &LocalSinks) -> Result<u64, RunError> {
        Ok(0)
    }

    fn durable_shards(
        &self,
        sinks: &InspectedSinks,
        _: &[ProgressSnapshot],
    ) -> Result<Vec<DurableShard>, RunError> {
        let progress = sinks.inspect_progress(FIRST_INSPECTION_TIMEOUT)?;
        sinks.durable_shards(&progress.iter().collect::<Vec<_>>())
    }

    fn find_schemas(&self, source: &str, ask: ResponseFetcher) -> ResponseFetcher {
        self.0.find_schema(source, ask)
    }
}

/// A start whose checkpoint is restored.
pub struct Restored<'a, B> {
    pub(super) lead: Lead,
    pub(super) member: RunningMember<'a>,
    pub(super) registry: Arc<SourceRegistry>,
    pub(super) basis: B,
    pub(super) generation: Arc<str>,
    pub(super) first_epoch: u64,
    pub(super) topic_watch: TopicWatch,
}

impl<'a, B: StartBasis> Restored<'a, B> {
    /// Restores the newest usable checkpoint, and starts the workers of all processes.
    pub fn restore(
        lead: Lead,
        mut member: StartingMember<'a>,
        registry: Arc<SourceRegistry>,
        progress: Vec<ProgressSnapshot>,
        basis: B,
    ) -> Result<Restored<'a, B>, RunError> {
        let logs = Arc::clone(member.logs());
        let requests = Arc::clone(member.context().peers.requests());
        logs.use_local_schemas(&registry, &requests, |source, ask| basis.find_schemas(source, ask))?;
        let generation = basis.generation(member.sinks()?)?;
        let generation = generation.or(logs.data_dir().map(|dir| dir.generation()));
        let generation = generation.unwrap_or_else(unrecorded_generation);
        let starts: Vec<(PartitionName, u64)> = logs
            .partitions(&registry, B::FOLLOWS)?
            .into_iter()
            .map(|partition| (partition.name, partition.start.position))
            .collect();
        let floor = basis.epoch_floor(member.sinks()?)?;
        let floor = floor.max(logs.data_dir().map_or(0, |dir| dir.epoch_floor()));
        let settings = choose_checkpoint_settings(
            member.plan(),
            logs.data_dir().is_some(),
            logs.log_ids()?,
            &generation,
        )?;
        let checkpoint = match &settings {
            None => None,
            Some(settings) => restore_checkpoint(&lead, &mut member, settings, &starts, &progress, &basis)?,
        };
        let first_epoch = floor.max(ingest_clock_ms());
        let first_epoch = first_epoch.max(checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.epoch + 1));
        let partitions = starts.into_iter().map(|(name, start)| {
            let at = restored_position(checkpoint.as_ref(), &name, start);
            (name, at)
        });
        let plan = StartPlan {
            generation: Arc::clone(&generation),
            partitions: partitions.collect(),
            first_epoch,
            reserved_until: B::RESERVED_UNTIL,
            progress,
            checkpoints: settings,
            restore: checkpoint.map(|checkpoint| checkpoint.name().to_string()),
            follows: B::FOLLOWS,
        };
        let member = start_everywhere(&lead, member, plan)?;
        let control = lead.control().clone();
        let failed = move |why: String| control.fail(Failure::new(why));
        let topic_watch = member.sinks()?.inspected().watch_topics(failed)?;
        Ok(Restored { lead, member, registry, basis, generation, first_epoch, topic_watch })
    }
}

/// The newest usable checkpoint, loaded by all processes.
fn restore_checkpoint<B: StartBasis>(
    lead: &Lead,
    member: &mut StartingMember<'_>,
    settings: &CheckpointSettings,
    starts: &[(PartitionName, u64)],
    progress: &[ProgressSnapshot],
    basis: &B,
) -> Result<Option<Manifest>, RunError> {
    let (plan, logs) = (member.plan(), Arc::clone(member.logs()));
    let repository = CheckpointRepository::open(plan, settings)?;
    let inspected = Arc::clone(member.sinks()?.inspected());
    // An adopted topic has passed the check of its id. Checkpoints from before the adoption are
    // compared by the topic's records only.
    let adopt_logs = plan.adopt_logs || (logs.journal().is_none() && inspected.has_adopted_topics());
    let durable_shards = || basis.durable_shards(&inspected, progress);
    let check = |source: &str, partition, at| logs.check_position(source, partition, at);
    let context = RestoreContext {
        check: &check,
        partitions: starts,
        written: &durable_shards,
        is_following: B::FOLLOWS,
        adopt_logs,
    };
    restore_newest(lead, member, settings, &repository, &context)
}

/// Connects the workers of all processes, and starts them.
fn start_everywhere<'a>(
    lead: &Lead,
    member: StartingMember<'a>,
    plan: StartPlan,
) -> Result<RunningMember<'a>, RunError> {
    let ControlCommand::Start(plan) = lead.append_and_take(ControlCommand::Start(plan))? else {
        return Err(RunError::bug("another command came in place of `start`"));
    };
    let mut running = member.start(plan)?;
    lead.wait_for_answers(|event| matches!(event, ControlEvent::Started).then_some(()))?;
    lead.execute(&mut running, ControlCommand::RunWorkers)?;
    Ok(running)
}

/// A random generation for a run without a data directory or progress topic. Nothing of it can be
/// restored later, so no two runs may have the same generation.
fn unrecorded_generation() -> Arc<str> {
    format!("0-{:016x}", random_u64()).into()
}
