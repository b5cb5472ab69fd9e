//! Why a reading is refused.

use std::fmt;

use serde::Serialize;

/// The reason code of a dead letter. Codes are part of the interface: programs branch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Reason {
    /// The bytes are not a record of the format.
    #[serde(rename = "not_decodable")]
    NotDecodable,
    /// A field that a reading needs is absent or blank.
    #[serde(rename = "missing_field")]
    MissingField,
    /// `city` is empty, longer than 128 bytes, or holds a control character.
    #[serde(rename = "bad_city")]
    BadCity,
    /// `reading_at` is not an RFC 3339 time.
    #[serde(rename = "bad_time")]
    BadTime,
    /// `reading_at` has no offset, and the source assumes none.
    #[serde(rename = "no_offset")]
    NoOffset,
    /// A value that must be a number is not one.
    #[serde(rename = "bad_number")]
    BadNumber,
    /// The operation is neither `upsert` nor `delete`.
    #[serde(rename = "bad_operation")]
    BadOperation,
    /// A number is outside the accepted range.
    #[serde(rename = "out_of_range")]
    OutOfRange,
    /// Older than the city's newest reading less the lateness.
    #[serde(rename = "too_late")]
    TooLate,
    /// Newer than its arrival by more than the source allows.
    #[serde(rename = "in_the_future")]
    InTheFuture,
    /// The city is new, and the partition has the most cities that it may have.
    #[serde(rename = "too_many_cities")]
    TooManyCities,
    /// The schema registry has no schema of the record's id.
    #[serde(rename = "unknown_schema")]
    UnknownSchema,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 12] = [
        Reason::NotDecodable,
        Reason::MissingField,
        Reason::BadCity,
        Reason::BadTime,
        Reason::NoOffset,
        Reason::BadNumber,
        Reason::BadOperation,
        Reason::OutOfRange,
        Reason::TooLate,
        Reason::InTheFuture,
        Reason::TooManyCities,
        Reason::UnknownSchema,
    ];

    /// The name in dead letters, metrics and responses.
    pub fn code(self) -> &'static str {
        match self {
            Reason::NotDecodable => "not_decodable",
            Reason::MissingField => "missing_field",
            Reason::BadCity => "bad_city",
            Reason::BadTime => "bad_time",
            Reason::NoOffset => "no_offset",
            Reason::BadNumber => "bad_number",
            Reason::BadOperation => "bad_operation",
            Reason::OutOfRange => "out_of_range",
            Reason::TooLate => "too_late",
            Reason::InTheFuture => "in_the_future",
            Reason::TooManyCities => "too_many_cities",
            Reason::UnknownSchema => "unknown_schema",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// A refused reading: the code, and for a person which value is wrong and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// Which rule the record breaks.
    pub reason: Reason,
    /// What the record says that breaks the rule.
    pub detail: String,
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Refusal {
        Refusal { reason, detail: detail.into() }
    }
}

/// A value in the text of a refusal: quoted, escaped, and cut off after 80 characters.
pub fn quoted_excerpt(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
