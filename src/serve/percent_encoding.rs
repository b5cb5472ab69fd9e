//! Percent-encoded text: path segments and query parameters.

use std::borrow::Cow;
use std::str::FromStr;

use super::problem::{Problem, ProblemCode};
use crate::model::refusal::quoted_excerpt;

/// Decodes `%XX`; nothing where an escape is cut off or the result is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        out.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// The query parameters of a request, each of which is known and there once.
pub(super) struct QueryParameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> QueryParameters<'a> {
    pub(super) fn parse(query: &'a str, known: &[&str]) -> Result<QueryParameters<'a>, Problem> {
        let bad = |detail: String| Problem::new(ProblemCode::BadParameter, detail);
        let mut found: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (form_decode(name), form_decode(value)) else {
                return Err(bad(format!("{} is not percent-encoded UTF-8", quoted_excerpt(pair))));
            };
            if !known.contains(&&*name) {
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                return Err(bad(format!("there is no parameter {}; known: {known}", quoted_excerpt(&name))));
            }
            if found.iter().any(|(other, _)| *other == name) {
                return Err(bad(format!("parameter {name} is there twice")));
            }
            found.push((name, value));
        }
        Ok(QueryParameters(found))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The value, read; `expected` says what it should be.
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

/// As in queries, where `+` stands for a space.
fn form_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return percent_decode(text);
    }
    percent_decode(&text.replace('+', "%20")).map(|text| Cow::Owned(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percent_encoding_round_trips(text: String) {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(percent_decode(&encoded).unwrap(), text);
        }

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = percent_decode(&text);
            let _ = QueryParameters::parse(&text, &["a"]);
        }
    }

    #[test]
    fn invalid_percent_escapes_are_refused() {
        for text in ["%", "%4", "%zz", "%+1", "a%ff", "%c3", "%C3%28"] {
            assert!(percent_decode(text).is_none(), "{text}");
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
