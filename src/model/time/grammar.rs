//! The grammar of times, the same for every source:
//!
//! ```text
//! time     = date ("T" | "t" | one blank) clock [offset]
//! date     = YYYY-MM-DD                          of the proleptic Gregorian calendar, 0000 to 9999
//! clock    = hh:mm[:ss[.d+]]                     00:00 to 23:59:59; only 3 digits are used
//! offset   = "Z" | "z" | ("+" | "-") hh:mm       -23:59 to +23:59; -00:00 is Z
//! ```
//!
//! It is what RFC 3339 and SQL have in common, so that no text has two meanings. A second 60, an
//! hour 24, a zone in brackets, a comma and the basic format (20130718T150405Z) are refused: each
//! is either no instant of its own, or only a part of it would be read.

use jiff::tz::Offset;

use super::calendar::{days_from_civil, days_in_month};
use super::local::instant_at_offset;
use super::{LocalTimePolicy, ParsedTime, TimeProblem};

/// Parses a whole text.
#[inline]
pub(super) fn parse_time(text: &[u8], local: LocalTimePolicy) -> Result<ParsedTime, TimeProblem> {
    let (days, rest) = parse_date(text)?;
    let (ms, rest) = parse_time_of_day(rest)?;
    let local_ms = days * super::DAY_MS + ms;
    match rest {
        [] => local.resolve_local(local_ms),
        [b'Z'] => Ok(ParsedTime { instant: instant_at_offset(local_ms, 0)?, is_ambiguous: false }),
        _ => Ok(ParsedTime {
            instant: instant_at_offset(local_ms, parse_offset_seconds(rest)?)?,
            is_ambiguous: false,
        }),
    }
}

/// Two digits as a number.
#[inline(always)]
fn two_digits(tens: u8, ones: u8) -> Option<u8> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then(|| tens * 10 + ones)
}

/// Days since 1970-01-01, and the text behind the date.
#[inline]
fn parse_date(text: &[u8]) -> Result<(i64, &[u8]), TimeProblem> {
    let Some((&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2], rest)) = text.split_first_chunk::<10>() else {
        return Err(date_problem(text));
    };
    let (Some(century), Some(year), Some(month), Some(day)) =
        (two_digits(y1, y2), two_digits(y3, y4), two_digits(m1, m2), two_digits(d1, d2))
    else {
        return Err(date_problem(text));
    };
    let year = i64::from(century) * 100 + i64::from(year);
    if !(1..=12).contains(&month) {
        return Err(TimeProblem::NoSuchMonth(month));
    }
    let last = days_in_month(year, month.into()) as u8;
    if !(1..=last).contains(&day) {
        return Err(TimeProblem::NoSuchDay { year: year as u16, month, day, last });
    }
    Ok((days_from_civil(year, month.into(), day.into()), rest))
}

/// The separator and the time of day, in milliseconds, and the text behind it.
#[inline]
fn parse_time_of_day(text: &[u8]) -> Result<(i64, &[u8]), TimeProblem> {
    let Some((&[b'T' | b't' | b' ', h1, h2, b':', m1, m2], rest)) = text.split_first_chunk::<6>() else {
        return Err(time_of_day_problem(text));
    };
    let (Some(hour), Some(minute)) = (two_digits(h1, h2), two_digits(m1, m2)) else {
        return Err(time_of_day_problem(text));
    };
    match (hour, minute) {
        (0..=23, 0..=59) => {}
        (24, _) => return Err(TimeProblem::Hour24),
        (25.., _) => return Err(TimeProblem::NoSuchHour(hour)),
        _ => return Err(TimeProblem::NoSuchMinute(minute)),
    }
    let (ms, rest) = match rest {
        [b':', rest @ ..] => parse_seconds(rest)?,
        [b'.', ..] => return Err(TimeProblem::FractionOfMinutes),
        [b',', ..] => return Err(TimeProblem::CommaFraction),
        _ => (0, rest),
    };
    Ok(((i64::from(hour) * 60 + i64::from(minute)) * 60_000 + ms, rest))
}

/// The seconds with their fraction, in milliseconds, and the text behind them.
#[inline]
fn parse_seconds(text: &[u8]) -> Result<(i64, &[u8]), TimeProblem> {
    let Some((&[s1, s2], rest)) = text.split_first_chunk::<2>() else {
        return Err(TimeProblem::BadTimeOfDay);
    };
    let whole = match two_digits(s1, s2) {
        Some(second @ 0..=59) => i64::from(second) * 1_000,
        Some(60) => return Err(TimeProblem::LeapSecond),
        Some(second) => return Err(TimeProblem::NoSuchSecond(second)),
        None => return Err(TimeProblem::BadTimeOfDay),
    };
    match rest {
        [b'.', rest @ ..] => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                return Err(TimeProblem::NoFraction);
            }
            let worth = rest[..digits].iter().zip([100, 10, 1]);
            let fraction: i64 = worth.map(|(digit, worth)| i64::from(digit - b'0') * worth).sum();
            Ok((whole + fraction, &rest[digits..]))
        }
        [b',', ..] => Err(TimeProblem::CommaFraction),
        _ => Ok((whole, rest)),
    }
}

/// The seconds of an offset, if it is the whole text.
fn parse_offset_seconds(text: &[u8]) -> Result<i32, TimeProblem> {
    let (sign, [h1, h2, b':', m1, m2]) = (match text {
        b"Z" | b"z" => return Ok(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return Err(offset_problem(text)),
    }) else {
        return Err(offset_problem(text));
    };
    match two_digits(*h1, *h2).zip(two_digits(*m1, *m2)) {
        Some((hours @ 0..=23, minutes @ 0..=59)) => {
            Ok(sign * (i32::from(hours) * 3_600 + i32::from(minutes) * 60))
        }
        Some(_) => Err(TimeProblem::OffsetOutOfRange),
        None => Err(offset_problem(text)),
    }
}

/// Parses an offset, as a time ends with: `Z`, `+01:00`, `-05:00`.
///
/// # Errors
///
/// The text says what to write.
pub fn parse_offset(text: &str) -> Result<Offset, String> {
    let seconds =
        parse_offset_seconds(text.as_bytes()).ok().and_then(|seconds| Offset::from_seconds(seconds).ok());
    seconds
        .ok_or_else(|| format!("{text:?} is not an offset from -23:59 to +23:59: write Z, +hh:mm or -hh:mm"))
}

#[cold]
fn date_problem(text: &[u8]) -> TimeProblem {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match (text, text.get(digits)) {
        ([], _) => TimeProblem::Empty,
        ([first, ..], _) if first.is_ascii_whitespace() => TimeProblem::BlanksAround,
        ([b'+' | b'-', next, ..], _) if next.is_ascii_digit() => TimeProblem::LongYear,
        (_, Some(b'-')) if digits > 4 => TimeProblem::LongYear,
        (_, None) if matches!(digits, 8 | 12 | 14) => TimeProblem::BasicFormat,
        (_, Some(b'T' | b't' | b' ' | b'Z' | b'z')) if matches!(digits, 8 | 12 | 14) => {
            TimeProblem::BasicFormat
        }
        (_, None | Some(b'.')) if digits > 0 && text[digits..].iter().skip(1).all(u8::is_ascii_digit) => {
            TimeProblem::Number
        }
        _ => TimeProblem::NoDate,
    }
}

#[cold]
fn time_of_day_problem(text: &[u8]) -> TimeProblem {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    match text {
        [] | [b'Z' | b'z' | b'+' | b'-', ..] => TimeProblem::NoTimeOfDay,
        _ if text.iter().all(u8::is_ascii_whitespace) => TimeProblem::BlanksAround,
        [b' ', b' ', ..] => TimeProblem::NoSeparator,
        [b'T' | b't' | b' ', digits @ ..] if digits.len() >= 4 && digits[..4].iter().all(is_digit) => {
            TimeProblem::BasicFormat
        }
        [b'T' | b't' | b' ', ..] => TimeProblem::BadTimeOfDay,
        _ => TimeProblem::NoSeparator,
    }
}

#[cold]
fn offset_problem(text: &[u8]) -> TimeProblem {
    let without_blanks = text.trim_ascii_end();
    if text.contains(&b'[') {
        TimeProblem::ZoneInBrackets
    } else if without_blanks.len() < text.len()
        && (without_blanks.is_empty() || parse_offset_seconds(without_blanks).is_ok())
    {
        TimeProblem::BlanksAround
    } else {
        TimeProblem::BadOffset
    }
}
