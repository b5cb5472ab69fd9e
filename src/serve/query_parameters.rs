//! Percent-encoded text: query parameters and segments of paths.

use std::borrow::Cow;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use super::problem::{Problem, ProblemCode};
use crate::model::refusal::quoted_excerpt;

/// Decodes `%XX`; `None` if an escape is not complete or the result is not UTF-8.
///
/// `percent_decode_str` would leave an incomplete escape as it is, so that two spellings named one
/// city.
pub(super) fn decode_percent(text: &str) -> Option<Cow<'_, str>> {
    if !has_complete_escapes(text) {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok()
}

fn has_complete_escapes(text: &str) -> bool {
    let mut after_percents = text.as_bytes().split(|byte| *byte == b'%').skip(1);
    after_percents
        .all(|rest| matches!(rest, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()))
}

/// The query parameters of a request: each is known to the API, and none is repeated.
///
/// `form_urlencoded::parse` is not used: it replaces what is not UTF-8 instead of refusing it.
pub(super) struct QueryParameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> QueryParameters<'a> {
    pub(super) fn parse(query: &'a str, known: &[&str]) -> Result<QueryParameters<'a>, Problem> {
        let bad = |detail: String| Problem::new(ProblemCode::BadParameter, detail);
        let mut parameters: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (form_decode(name), form_decode(value)) else {
                return Err(bad(format!("{} is not percent-encoded UTF-8", quoted_excerpt(pair))));
            };
            if !known.contains(&&*name) {
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                return Err(bad(format!("there is no parameter {}; known: {known}", quoted_excerpt(&name))));
            }
            if parameters.iter().any(|(other, _)| *other == name) {
                return Err(bad(format!("parameter {name} is there twice")));
            }
            parameters.push((name, value));
        }
        Ok(QueryParameters(parameters))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The value, parsed; `expected` says in the error what it should be.
    pub(super) fn parse_value<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong = |_| {
            Problem::new(
                ProblemCode::BadParameter,
                format!("{name} {} is not {expected}", quoted_excerpt(text)),
            )
        };
        text.parse().map(Some).map_err(wrong)
    }
}

/// Decodes text of a query, in which `+` stands for a space.
fn form_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return decode_percent(text);
    }
    decode_percent(&text.replace('+', "%20")).map(|text| Cow::Owned(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percent_encoding_round_trips(text: String) {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decode_percent(&encoded).unwrap(), text);
        }

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = decode_percent(&text);
            let _ = QueryParameters::parse(&text, &["a"]);
        }
    }

    #[test]
    fn invalid_percent_escapes_are_refused() {
        for text in ["%", "%4", "%zz", "%+1", "%%41", "a%ff", "%c3", "%C3%28"] {
            assert!(decode_percent(text).is_none(), "{text}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        let parameters =
            QueryParameters::parse("from=2025-11-24T16%3A00%3A00%2B01%3A00&&limit=5", &["from", "limit"]);
        let parameters = parameters.ok().unwrap();
        assert_eq!(parameters.get("from"), Some("2025-11-24T16:00:00+01:00"));
        assert_eq!(parameters.parse_value::<u32>("limit", "a number").ok().unwrap(), Some(5));
        for query in ["limits=5", "limit=5&limit=6", "limit=%ff", "%=1"] {
            let refused = QueryParameters::parse(query, &["from", "limit"]).err().map(|problem| problem.code);
            assert_eq!(refused, Some(ProblemCode::BadParameter), "{query}");
        }
    }
}
