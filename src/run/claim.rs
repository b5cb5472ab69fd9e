//! Claims all sinks at process 0, with the help of the others: at a plain start and at a takeover.

use super::lead::{Lead, Member};
use super::protocol::{ControlCommand, ControlEvent, FenceOrder};
use super::run_error::RunError;
use crate::panics::panic_point;
use crate::sinks::progress::{ClaimRequest, SinkClaim, SuccessorClaim};

/// Claims the sinks in their fixed order, the authority first, so a run that loses the authority
/// ends before it changes the next sink. `after` holds the claims that must follow those of the
/// primary. `generation` is that of the data directory, for a run whose sinks count no generations.
pub fn claim_sinks(
    lead: &Lead,
    member: &mut impl Member,
    after: Option<&[SuccessorClaim]>,
    generation: Option<&str>,
) -> Result<(), RunError> {
    let is_takeover = after.is_some();
    let lost = |error: RunError| if is_takeover { error.into_lost_race() } else { error };
    let mut progress = Vec::new();
    let mut authority: Option<SinkClaim> = None;
    for sink in 0..member.sinks()?.inspected().len() {
        let inspected = member.sinks()?.inspected();
        if sink > 0 || !inspected.has_authority() {
            panic_point("between_claims");
        }
        if let Some(authority) = &authority {
            inspected.check_claim(0, authority).map_err(lost)?;
        }
        let counted = authority.as_ref().map(SinkClaim::generation);
        let after = after.and_then(|after| after.get(sink));
        let request = ClaimRequest { generation: counted.as_deref().or(generation), after };
        let claim = inspected.claim_sink(sink, &request).map_err(lost)?;
        if sink == 0 && inspected.has_authority() {
            authority = Some(claim.clone());
        }
        let order = FenceOrder { sink, claim: claim.clone(), is_takeover };
        let is_fenced = |event| match event {
            ControlEvent::SinkFenced { sink: fenced } if fenced == sink => Some(()),
            _ => None,
        };
        lead.execute_everywhere(member, ControlCommand::FenceSink(order), is_fenced)?;
        // From now on, only this run adds to the progress.
        progress.push(member.sinks()?.inspected().read_progress(sink, &claim).map_err(lost)?);
    }
    lead.execute(member, ControlCommand::ClaimSinks(progress))
}
