//! The claim of all sinks, by process 0 with the others: at a plain start and at a takeover.

use super::lead::{Lead, Member};
use super::protocol::{ControlCommand, ControlEvent, FenceOrder};
use super::run_error::RunError;
use crate::sinks::kafka::SuccessorClaim;

/// Claims the sinks in their fixed order, the authority first: whoever has the first one has all. `after` are the claims that are to follow
/// those of a generation that was followed.
pub fn claim_sinks(
    lead: &Lead,
    member: &mut impl Member,
    after: Option<&[SuccessorClaim]>,
) -> Result<(), RunError> {
    let is_takeover = after.is_some();
    let lost = |error: RunError| if is_takeover { error.into_lost_race() } else { error };
    let mut progress = Vec::new();
    for sink in 0..member.sinks()?.inspected().len() {
        let after = after.and_then(|after| after.get(sink));
        let claim = member.sinks()?.inspected().claim(sink, after).map_err(lost)?;
        let order = FenceOrder { sink, claim: claim.clone(), is_takeover };
        let is_fenced = |event| match event {
            ControlEvent::SinkFenced { sink: fenced } if fenced == sink => Some(()),
            _ => None,
        };
        lead.order(member, ControlCommand::FenceSink(order), is_fenced)?;
        // Nothing is added to it any more but by this run.
        progress.push(member.sinks()?.inspected().read_progress(sink, &claim).map_err(lost)?);
    }
    lead.execute(member, ControlCommand::ClaimSinks(progress))
}
