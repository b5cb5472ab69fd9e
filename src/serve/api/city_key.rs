//! The city that the path of a request names.

use std::borrow::Cow;

use crate::model::refusal::quoted_excerpt;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::query_parameters::decode_percent;

/// The key of the city that a segment of a path names.
pub(super) fn city_key(segment: &str) -> Result<Cow<'_, str>, Problem> {
    let detail = "the city in the path is not percent-encoded UTF-8";
    decode_percent(segment).ok_or_else(|| Problem::new(ProblemCode::BadParameter, detail))
}

pub(super) fn unknown_city(key: &str) -> Problem {
    Problem::new(
        ProblemCode::UnknownCity,
        format!("there has never been a reading of city {}", quoted_excerpt(key)),
    )
}
