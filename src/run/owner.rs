//! The owning phase at process 0: writes results, makes checkpoints, and does everything that only
//! one generation may do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::backup::BackupService;
use super::checkpoints::coordinator::CheckpointCoordinator;
use super::control::MainEvent;
use super::dead_letter_retry::{RetryThreads, spawn_retry};
use super::durable_sinks::SourceRegistry;
use super::epochs::{EpochBound, spawn_epoch_reservation};
use super::lead::{Lead, Member as _};
use super::protocol::{ControlCommand, ControlEvent};
use super::restored::{Restored, StartBasis};
use super::run_error::RunError;
use super::running_member::{HOUSEKEEPING_INTERVAL, RunEnd, RunningMember, TICK_INTERVAL};
use crate::kafka::topic_identity::TopicWatch;
use crate::sources::generator::feed::GeneratorFeed;
use crate::worker::Release;

/// A run that owns the results.
pub struct Owner<'a> {
    lead: Lead,
    member: RunningMember<'a>,
    registry: Arc<SourceRegistry>,
    coordinator: Option<CheckpointCoordinator>,
    /// Serves backups while this exists.
    backups: Option<BackupService>,
    retries: RetryThreads,
    feeds: Vec<(String, GeneratorFeed)>,
    has_ended: Arc<AtomicBool>,
    next_housekeeping: Instant,
    _topic_watch: TopicWatch,
}

impl<'a> Owner<'a> {
    /// Sends the resume points to all processes, and releases the workers. The sinks are claimed.
    pub fn begin<B: StartBasis>(restored: Restored<'a, B>) -> Result<Owner<'a>, RunError> {
        let Restored { lead, mut member, registry, first_epoch, topic_watch, .. } = restored;
        let logs = Arc::clone(&member.logs);
        let sinks = member.sinks()?.claimed()?;
        let bound = EpochBound::choose(logs.data_dir().cloned(), sinks.progress_writer());
        let floor = sinks.epoch_floor()?.max(first_epoch);
        let points = sinks.resume_points(&member.local_partitions)?;
        let reserved_until = bound.reserve_first(floor)?;
        let is_installed = |event| matches!(event, ControlEvent::ResumePointsInstalled).then_some(());
        let installed =
            lead.execute_everywhere(&mut member, ControlCommand::InstallResumePoints(points), is_installed);
        if let Err(error) = installed {
            return Err(member.stop_unreleased(error, lead.events()));
        }
        // All outputs of the logs fit them.
        logs.record_ids()?;
        lead.control().append(ControlCommand::Release(Release { floor, reserved_until }));
        let has_ended = Arc::<AtomicBool>::default();
        let (control, shared) = (lead.control().clone(), Arc::clone(&member.shared));
        spawn_epoch_reservation(bound, control, shared, reserved_until, Arc::clone(&has_ended))?;
        let reporter = member.part_reporter.as_ref();
        let location = reporter.map(|reporter| reporter.repository().location().to_string());
        let backups = logs.journal().and_then(|(journal, dir)| {
            let started = BackupService::start(journal, &dir, location);
            started
                .inspect_err(|error| tracing::warn!(%error, "this process cannot serve `swelter backup`: back up while it is stopped, or remove the cause and restart it"))
                .ok()
        });
        let coordinator = reporter.map(|reporter| {
            let journal = logs.journal().map(|(journal, _)| journal);
            let processes = member.context.topology.processes;
            CheckpointCoordinator::start(reporter, &member.partitions, lead.control(), processes, journal)
        });
        let coordinator = coordinator.transpose()?;
        let feeds = logs.spawn_feeds(member.context.plan, member.appender.clone())?;
        let retries = spawn_retry(member.context.plan, logs.journal()).map_err(RunError::Threads)?;
        Ok(Owner {
            lead,
            member,
            registry,
            coordinator,
            backups,
            retries,
            feeds,
            has_ended,
            next_housekeeping: Instant::now(),
            _topic_watch: topic_watch,
        })
    }

    /// Runs until the run ends.
    pub fn run(mut self) -> Result<(), RunError> {
        let end = loop {
            match self.lead.next_event(TICK_INTERVAL) {
                None => {}
                Some(MainEvent::Reported { process, event }) => self.on_reported(process, event),
                Some(MainEvent::Command(command)) if !matches!(command, ControlCommand::Stop) => {
                    if let Err(error) = self.member.execute(command) {
                        break RunEnd::failed(error);
                    }
                }
                Some(event) => break RunEnd::of(event),
            }
            if let Err(error) = self.tick() {
                break RunEnd::failed(error);
            }
        };
        self.stop(end)
    }

    fn on_reported(&mut self, process: usize, event: ControlEvent) {
        let Some(coordinator) = &mut self.coordinator else { return };
        match event {
            ControlEvent::BarrierAligned(aligned) => coordinator.on_aligned(aligned),
            ControlEvent::CheckpointPart { checkpoint, part } => {
                coordinator.on_part(process, checkpoint, part)
            }
            _ => {}
        }
    }

    fn tick(&mut self) -> Result<(), RunError> {
        let are_dead_letters_durable = self.member.tick()?;
        if let (true, Some(coordinator)) = (are_dead_letters_durable, &mut self.coordinator) {
            coordinator.run_due_steps(&self.member.shared);
        }
        if Instant::now() >= self.next_housekeeping {
            self.next_housekeeping = Instant::now() + HOUSEKEEPING_INTERVAL;
            let control = self.lead.control();
            self.member.logs.announce_new_partitions(&self.registry, &self.member.partitions, control)?;
        }
        Ok(())
    }

    /// Stops the run from the sources on: records that were read are processed to the end.
    fn stop(mut self, end: RunEnd) -> Result<(), RunError> {
        let fails_together = end.result.is_err() && !self.member.context.topology.is_single_process();
        if !fails_together {
            self.retries.stop();
            for (name, feed) in self.feeds.drain(..) {
                if let Err(error) = feed.stop() {
                    tracing::warn!(source = name, %error, "a generator has stopped, and its source sends no more readings until a restart");
                }
            }
        }
        (self.coordinator, self.backups) = (None, None);
        let stopped = self.member.stop(end, self.lead.events());
        // Epochs are reserved until the workers have ended.
        self.has_ended.store(true, Ordering::Relaxed);
        stopped
    }
}
