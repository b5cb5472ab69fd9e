//! The hydrating phase at process 0: follows the durable progress of a running generation until it
//! takes over.

use std::time::Instant;

use super::claim::claim_sinks;
use super::control::MainEvent;
use super::lead::Member as _;
use super::owner::Owner;
use super::protocol::ControlCommand;
use super::restored::{FollowedBasis, Restored};
use super::run_error::RunError;
use super::running_member::{RunEnd, TICK_INTERVAL};
use crate::model::PartitionIndex;

/// A generation that hydrates beside a running one.
pub struct Follower<'a> {
    restored: Restored<'a, FollowedBasis>,
    /// The limits that the workers know.
    read_until: Vec<(PartitionIndex, u64)>,
}

/// How following ends.
pub enum Followed<'a> {
    /// The takeover is due.
    TakeoverDue(Box<Follower<'a>>),
    Ended(Result<(), RunError>),
}

impl<'a> Follower<'a> {
    pub fn new(restored: Restored<'a, FollowedBasis>) -> Follower<'a> {
        Follower { restored, read_until: Vec::new() }
    }

    /// Hydrates until the takeover or the end of the run is due.
    pub fn hydrate(mut self) -> Followed<'a> {
        loop {
            let end = match self.restored.lead.next_event(TICK_INTERVAL) {
                None => None,
                Some(MainEvent::Reported { .. }) => None,
                Some(event) => Some(RunEnd::of(event)),
            };
            let end = match end {
                Some(end) => end,
                None => match self.follow() {
                    Ok(false) => continue,
                    Ok(true) => return Followed::TakeoverDue(Box::new(self)),
                    Err(error) => RunEnd::failed(error),
                },
            };
            let Restored { lead, member, .. } = self.restored;
            return Followed::Ended(member.stop(end, lead.events()));
        }
    }

    /// Lets all processes read as far as the primary has. Returns true if the takeover is due.
    fn follow(&mut self) -> Result<bool, RunError> {
        let Restored { lead, member, basis: FollowedBasis(primary), .. } = &mut self.restored;
        member.tick()?;
        let durable = primary.durable_positions(&member.partitions);
        let durable = member.sinks()?.inspected().limit_followed(durable, &member.partitions);
        if durable != self.read_until {
            lead.control().append(ControlCommand::ReadUntil(durable.clone()));
            self.read_until.clone_from(&durable);
        }
        Ok(primary.is_takeover_due(&durable, &member.shared.positions())?
            && primary.may_claim(member.sinks()?.inspected(), &member.local_partitions)?)
    }

    /// Claims the sinks from the primary.
    pub fn claim(self) -> Result<Owner<'a>, RunError> {
        let began = Instant::now();
        let mut restored = self.restored;
        let Restored { lead, member, registry, basis: FollowedBasis(primary), .. } = &mut restored;
        if let Err(error) = claim_sinks(lead, member, Some(primary.successors()), None) {
            return Err(restored.member.stop_unreleased(error, restored.lead.events()));
        }
        let sinks = member.sinks()?.claimed()?;
        registry.install_writers(sinks);
        primary.finish(&sinks.progress());
        restored.first_epoch = restored.member.shared.newest_epoch() + 1;
        let generation = restored.generation.clone();
        let owner = Owner::begin(restored)?;
        tracing::info!(took = ?began.elapsed(), generation = &*generation, "the run has taken over: this generation owns the results from now on");
        Ok(owner)
    }
}
