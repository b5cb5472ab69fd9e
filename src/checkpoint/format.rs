//! Formats of manifests.

/// The newest format: a file says of its cities whether they are split, or has their open periods.
pub(super) const MANIFEST_FORMAT: u32 = 2;
/// The format of a checkpoint whose files say neither. It is written wherever that is so, since
/// earlier versions read it.
pub(super) const FIRST_MANIFEST_FORMAT: u32 = 1;
