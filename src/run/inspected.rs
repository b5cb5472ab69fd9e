//! The first phase of a start, at process 0: everything is inspected, and nothing is changed yet.

use std::sync::Arc;

use super::claim::claim_sinks;
use super::durable_sinks::{FIRST_INSPECTION_TIMEOUT, InspectedSinks, SinkFacts};
use super::lead::{Lead, Member as _};
use super::logs::Logs;
use super::primary_follower::PrimaryFollower;
use super::protocol::ControlCommand;
use super::restored::{ClaimedBasis, FollowedBasis, Restored};
use super::run_error::RunError;
use super::starting_member::StartingMember;
use crate::config::{ClusterConfig, SourceKind, SourcePlan, StartMode};
use crate::sinks::progress::ProgressSnapshot;

/// A start whose sinks are inspected.
pub struct Inspected<'a> {
    lead: Lead,
    member: StartingMember<'a>,
    /// Progress by sink.
    progress: Vec<ProgressSnapshot>,
}

impl<'a> Inspected<'a> {
    /// Inspects the sinks, and refuses progress that a start could not continue.
    pub fn inspect(lead: Lead, mut member: StartingMember<'a>) -> Result<Inspected<'a>, RunError> {
        let facts = SinkFacts::find(member.plan(), member.logs().log_ids()?)?;
        lead.execute(&mut member, ControlCommand::OpenSinks(facts))?;
        let progress = inspect_progress(member.sinks()?.inspected(), member.logs())?;
        Ok(Inspected { lead, member, progress })
    }

    /// The running generation to hydrate beside, if one runs and the configuration requests that.
    pub fn find_primary(&self) -> Result<Option<Arc<PrimaryFollower>>, RunError> {
        let (plan, sinks) = (self.member.plan(), self.member.sinks()?.inspected());
        let ClusterConfig { start_mode, standby_after, .. } = plan.cluster;
        if start_mode == StartMode::Claim {
            return Ok(None);
        }
        if sinks.is_empty() || self.member.logs().data_dir().is_some() || !plan.sources.iter().all(is_topic) {
            return Err(RunError::Failed(
                "cluster.start: only a run whose sources are all topics of Kafka can take over, since a journal has one owner: start without --takeover and --standby".into(),
            ));
        }
        let primary = PrimaryFollower::new(start_mode, standby_after, sinks, &self.progress)?;
        if primary.is_some() {
            sinks.check_followable(&self.progress)?;
        }
        Ok(primary.map(Arc::new))
    }

    /// Claims the sinks, restores the newest checkpoint, and starts the workers.
    pub fn claim(mut self) -> Result<Restored<'a, ClaimedBasis>, RunError> {
        let generation = self.member.logs().data_dir().map(|dir| dir.generation());
        claim_sinks(&self.lead, &mut self.member, None, generation.as_deref())?;
        let sinks = self.member.sinks()?;
        // The progress is final now.
        let progress: Vec<ProgressSnapshot> = sinks.claimed()?.progress().into_iter().cloned().collect();
        let registry = sinks.inspected().source_registry(&progress.iter().collect::<Vec<_>>())?;
        registry.install_writers(sinks.claimed()?);
        Restored::restore(self.lead, self.member, Arc::new(registry), progress, ClaimedBasis)
    }

    /// Restores the newest checkpoint, and starts the workers beside the primary.
    pub fn follow(self, primary: Arc<PrimaryFollower>) -> Result<Restored<'a, FollowedBasis>, RunError> {
        primary.spawn_followers(self.member.sinks()?.inspected())?;
        tracing::info!("the run follows the generation that owns the results, and takes over later");
        let progress: Vec<&ProgressSnapshot> = self.progress.iter().collect();
        let registry = self.member.sinks()?.inspected().source_registry(&progress)?;
        Restored::restore(self.lead, self.member, Arc::new(registry), self.progress, FollowedBasis(primary))
    }
}

/// Reads the progress of the sinks. Returns an error, before any claim, if a start could not
/// continue it.
fn inspect_progress(sinks: &InspectedSinks, logs: &Logs) -> Result<Vec<ProgressSnapshot>, RunError> {
    let progress = sinks.inspect_progress(FIRST_INSPECTION_TIMEOUT)?;
    sinks.check_dead_letters(&progress)?;
    let registry = sinks.source_registry(&progress.iter().collect::<Vec<_>>())?;
    logs.compare_topics(|source| sinks.recorded_topic(&progress, source))?;
    sinks.check_resumable(&progress, &logs.partitions(&registry, true)?)?;
    Ok(progress)
}

fn is_topic(source: &SourcePlan) -> bool {
    matches!(source.kind, SourceKind::Kafka(_))
}
