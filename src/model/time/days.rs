//! Days by UTC or by the clocks of a zone.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::Date;

use super::{DAY_MS, IanaZone, civil_from_days};

/// The zone whose days are counted. A day begins when the zone's clocks first show its date, so it
/// has 23 or 25 hours if they are set forward or back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DayZone {
    #[default]
    Utc,
    Zone(IanaZone),
}

/// A day, by the number of its date, and its instants in milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    /// Days from 1970-01-01 to its date.
    pub number: i32,
    pub instants: Range<i64>,
}

impl DayZone {
    /// The day that holds an instant.
    pub fn day_of(self, ms: i64) -> Day {
        let DayZone::Zone(zone) = self else { return self.day_by_number(ms.div_euclid(DAY_MS) as i32) };
        let offset = Timestamp::from_millisecond(ms).map_or(0, |at| zone.time_zone().to_offset(at).seconds());
        let local_day = (ms + i64::from(offset) * 1_000).div_euclid(DAY_MS) as i32;
        let day = self.day_by_number(local_day);
        // Clocks that are set back over midnight show a date again after the next one has begun.
        match ms {
            ms if ms >= day.instants.end => self.day_by_number(local_day + 1),
            ms if ms < day.instants.start => self.day_by_number(local_day - 1),
            _ => day,
        }
    }

    pub fn day_by_number(self, number: i32) -> Day {
        Day { number, instants: self.day_start_ms(number)..self.day_start_ms(number + 1) }
    }

    fn day_start_ms(self, number: i32) -> i64 {
        let utc = i64::from(number) * DAY_MS;
        let DayZone::Zone(zone) = self else { return utc };
        let (year, month, day) = civil_from_days(number.into());
        let date = i16::try_from(year).ok().and_then(|year| Date::new(year, month as i8, day as i8).ok());
        let start = date.and_then(|date| date.to_zoned_datetime(zone.time_zone().clone()).ok());
        start.map_or(utc, |start| start.timestamp().as_millisecond())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventTime;

    fn zone(name: &str) -> DayZone {
        DayZone::Zone(IanaZone::from_name(name).unwrap())
    }

    fn ms(text: &str) -> i64 {
        text.parse::<EventTime>().unwrap().millis()
    }

    fn hours(zone: DayZone, at: &str) -> f64 {
        let Range { start, end } = zone.day_of(ms(at)).instants;
        (end - start) as f64 / 3_600_000.0
    }

    #[test]
    fn days_have_23_24_or_25_hours() {
        let new_york = zone("America/New_York");
        assert_eq!(hours(new_york, "2013-03-10T12:00:00Z"), 23.0);
        assert_eq!(hours(new_york, "2013-11-03T12:00:00Z"), 25.0);
        assert_eq!(hours(new_york, "2013-07-18T12:00:00Z"), 24.0);
        assert_eq!(hours(DayZone::Utc, "2013-03-10T12:00:00Z"), 24.0);
        assert_eq!(
            new_york.day_of(ms("2013-07-18T03:59:59.999Z")).number,
            new_york.day_of(ms("2013-07-17T04:00:00Z")).number
        );
        assert_eq!(new_york.day_of(ms("2013-07-18T04:00:00Z")), DayZone::day_by_number(new_york, 15_904));
        // Midnight itself is skipped in Sao Paulo, and a whole day in Apia.
        assert_eq!(hours(zone("America/Sao_Paulo"), "2013-10-20T12:00:00Z"), 23.0);
        let apia = zone("Pacific/Apia");
        let before = apia.day_of(ms("2011-12-30T09:59:59Z"));
        assert_eq!(apia.day_of(ms("2011-12-30T10:00:00Z")).number, before.number + 2);
    }

    #[test]
    fn every_instant_is_in_one_day() {
        for name in ["America/St_Johns", "America/New_York", "Pacific/Apia", "Asia/Kathmandu", "Africa/Cairo"]
        {
            let zone = zone(name);
            let mut day = zone.day_of(ms("1987-10-20T00:00:00Z"));
            let mut at = day.instants.start;
            while at < ms("1988-05-01T00:00:00Z") {
                if at >= day.instants.end {
                    let next = zone.day_of(at);
                    assert_eq!(next.instants.start, day.instants.end, "{name} {at}");
                    day = next;
                }
                assert_eq!(zone.day_of(at), day, "{name} {at}");
                at += 15 * 60_000;
            }
        }
    }
}
