//! Percent-encoded text: path segments and query parameters.

use std::borrow::Cow;
use std::str::FromStr;

use super::problem::{Code, Problem};
use crate::model::refusal::quoted;

/// Decodes `%XX`; nothing where an escape is cut off or the result is not UTF-8.
pub(super) fn decoded(text: &str) -> Option<Cow<'_, str>> {
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
pub(super) struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    pub(super) fn parse(query: &'a str, known: &[&str]) -> Result<Parameters<'a>, Problem> {
        let bad = |detail: String| Problem::new(Code::BadParameter, detail);
        let mut found: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (form_decoded(name), form_decoded(value)) else {
                return Err(bad(format!("{} is not percent-encoded UTF-8", quoted(pair))));
            };
            if !known.contains(&&*name) {
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                return Err(bad(format!("there is no parameter {}; known: {known}", quoted(&name))));
            }
            if found.iter().any(|(other, _)| *other == name) {
                return Err(bad(format!("parameter {name} is there twice")));
            }
            found.push((name, value));
        }
        Ok(Parameters(found))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The value, read; `expected` says what it should be.
    pub(super) fn read<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong =
            |_| Problem::new(Code::BadParameter, format!("{name} {} is not {expected}", quoted(text)));
        text.parse().map(Some).map_err(wrong)
    }
}

/// As in queries, where `+` stands for a space.
fn form_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return decoded(text);
    }
    decoded(&text.replace('+', "%20")).map(|text| Cow::Owned(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: String) {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decoded(&encoded).unwrap(), text);
        }

        #[test]
        fn nothing_panics(text: String) {
            let _ = decoded(&text);
            let _ = Parameters::parse(&text, &["a"]);
        }
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["%", "%4", "%zz", "%+1", "a%ff", "%c3", "%C3%28"] {
            assert!(decoded(text).is_none(), "{text}");
        }
    }

    #[test]
    fn parameters_are_known_and_there_once() {
        let parameters =
            Parameters::parse("from=2025-11-24T16%3A00%3A00%2B01%3A00&&limit=5", &["from", "limit"]);
        let parameters = parameters.ok().unwrap();
        assert_eq!(parameters.get("from"), Some("2025-11-24T16:00:00+01:00"));
        assert_eq!(parameters.read::<u32>("limit", "a number").ok().unwrap(), Some(5));
        for query in ["limits=5", "limit=5&limit=6", "limit=%ff", "%=1"] {
            let refused = Parameters::parse(query, &["from", "limit"]).err().map(|problem| problem.code);
            assert_eq!(refused, Some(Code::BadParameter), "{query}");
        }
    }
}
