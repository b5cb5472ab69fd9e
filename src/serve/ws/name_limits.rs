//! Memory of the names that subscriptions list, whether there are cities of these names or not.

use super::selection::{CitySelection, Selection};
use crate::serve::plan::ServeLimits;

/// Bytes that a listed name takes beside its text: in its list and in the router's indexes.
const NAME_OVERHEAD_BYTES: usize = 128;
/// Bytes of names that a session may list, more if one subscription may list more.
const MIN_SESSION_NAMES_BYTES: usize = 4 << 20;
/// Bytes of names that all sessions may list, more if one session may list more.
const MIN_ALL_NAMES_BYTES: usize = 256 << 20;
/// Bytes that a name of usual length takes.
const USUAL_NAME_BYTES: usize = NAME_OVERHEAD_BYTES + 32;

/// Bytes of names that a session may list.
pub fn session_names_bytes(limits: &ServeLimits) -> usize {
    MIN_SESSION_NAMES_BYTES.max(limits.cities * USUAL_NAME_BYTES)
}

/// Bytes of names that all sessions may list. Equal subscriptions of one id count once.
pub fn all_names_bytes(limits: &ServeLimits) -> usize {
    MIN_ALL_NAMES_BYTES.max(16 * session_names_bytes(limits))
}

/// Bytes that the names of a selection take.
pub(super) fn names_bytes(selection: &Selection) -> usize {
    match &selection.cities {
        CitySelection::Listed(keys) => keys.iter().map(|key| NAME_OVERHEAD_BYTES + key.len()).sum(),
        CitySelection::All | CitySelection::Inside(_) => 0,
    }
}
