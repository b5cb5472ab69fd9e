//! What the names take that subscriptions list, whether a city has them or not.

use super::selection::{CitySelection, Selection};
use crate::serve::ServeLimits;

/// What a name takes beside its bytes: where it is listed, and who gets what of its city.
const NAME_OVERHEAD_BYTES: usize = 128;
/// The names of all subscriptions of a session, and of all sessions; more where a subscription may list more.
const MIN_SESSION_NAMES_BYTES: usize = 4 << 20;
const MIN_ALL_NAMES_BYTES: usize = 256 << 20;
/// What a subscription of as many cities as one may list takes, with keys of usual length.
const USUAL_NAME_BYTES: usize = NAME_OVERHEAD_BYTES + 32;

/// Bytes of names that a session may list.
pub fn session_names_bytes(limits: &ServeLimits) -> usize {
    MIN_SESSION_NAMES_BYTES.max(limits.cities * USUAL_NAME_BYTES)
}

/// Bytes of names that all sessions may list. Equal subscriptions under one id count once.
pub fn all_names_bytes(limits: &ServeLimits) -> usize {
    MIN_ALL_NAMES_BYTES.max(16 * session_names_bytes(limits))
}

/// What the names of a selection take.
pub(super) fn names_bytes(selection: &Selection) -> usize {
    match &selection.cities {
        CitySelection::Listed(keys) => keys.iter().map(|key| NAME_OVERHEAD_BYTES + key.len()).sum(),
        CitySelection::All | CitySelection::Inside(_) => 0,
    }
}
