//! What a document shows beside what a command has written.

use serde_json::{Deserializer, Value};

/// Members whose values differ from run to run.
const VOLATILE: [&str; 6] = ["as_of", "now", "reading_at", "age_s", "token", "generation"];

/// Whether written lines are those shown. `...` stands for any text within a line, and for any number of lines where it is one;
/// blank lines do not count. With `any_time` one time is as good as another.
pub fn text_matches(shown: &str, written: &str, any_time: bool) -> bool {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        lines.map(|line| if any_time { without_times(line) } else { line.to_owned() }).collect()
    };
    let (shown, written) = (lines(shown), lines(written));
    wild(&shown, &written, &|line| line == "...", &|shown, written| {
        let parts: Vec<char> = shown.replace("...", "\0").chars().collect();
        let written: Vec<char> = written.chars().collect();
        wild(&parts, &written, &|&c| c == '\0', &|a, b| a == b)
    })
}

/// Whether a list is a pattern's, in which some elements stand for any number.
fn wild<T>(pattern: &[T], list: &[T], is_any: &impl Fn(&T) -> bool, equal: &impl Fn(&T, &T) -> bool) -> bool {
    // Row by row: whether the pattern up to here is the list up to there.
    let mut reached = vec![false; list.len() + 1];
    reached[0] = true;
    for element in pattern {
        let mut next = vec![false; list.len() + 1];
        if is_any(element) {
            let mut any = false;
            for (at, reached) in reached.iter().enumerate() {
                any |= reached;
                next[at] = any;
            }
        } else {
            for (at, own) in list.iter().enumerate() {
                next[at + 1] = reached[at] && equal(element, own);
            }
        }
        reached = next;
    }
    reached[list.len()]
}

/// The text with each time as in `2013-07-18T15:04:05.678Z` replaced.
fn without_times(text: &str) -> String {
    const FORM: &[u8] = b"dddd-dd-ddTdd:dd:dd";
    let is_time = |at: usize| {
        let bytes = &text.as_bytes()[at..];
        bytes.len() > FORM.len()
            && FORM
                .iter()
                .zip(bytes)
                .all(|(form, b)| if *form == b'd' { b.is_ascii_digit() } else { form == b })
    };
    let (mut result, mut at) = (String::new(), 0);
    while let Some(c) = text[at..].chars().next() {
        if is_time(at) {
            let end = text[at..].find('Z').map_or(text.len(), |length| at + length + 1);
            result.push_str("TIME");
            at = end;
        } else {
            result.push(c);
            at += c.len_utf8();
        }
    }
    result
}

/// Whether written JSON values are those shown, but for members whose values differ from run to run.
pub fn json_matches(shown: &str, written: &str) -> bool {
    let values =
        |text: &str| Deserializer::from_str(text).into_iter::<Value>().collect::<Result<Vec<_>, _>>();
    match (values(shown), values(written)) {
        (Ok(shown), Ok(written)) => Value::from(shown).is_like(&Value::from(written)),
        (Err(error), _) => panic!("a document shows no JSON: {error}: {shown}"),
        (_, Err(_)) => false,
    }
}

trait Like {
    fn is_like(&self, other: &Value) -> bool;
}

impl Like for Value {
    fn is_like(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Object(own), Value::Object(other)) => {
                own.len() == other.len()
                    && own.iter().all(|(name, value)| {
                        let found = other.get(name);
                        found.is_some_and(|found| VOLATILE.contains(&&**name) || value.is_like(found))
                    })
            }
            (Value::Array(own), Value::Array(other)) => {
                own.len() == other.len() && own.iter().zip(other).all(|(own, other)| own.is_like(other))
            }
            _ => self == other,
        }
    }
}

#[test]
fn text_matches_wildcards_and_nothing_else() {
    assert!(text_matches("a\n...\nb ... c", "a\n\nx\ny\nb 1 2 c\n", false));
    assert!(!text_matches("a\nb ... c", "a\nx\nb 1 c", false));
    assert!(!text_matches("a b", "a c", false));
    assert!(text_matches("at 2013-07-18T15:04:05Z x", "at 2026-01-01T00:00:00.123Z x", true));
    assert!(!text_matches("at 2013-07-18T15:04:05Z x", "at 2026-01-01T00:00:00Z x", false));
}

#[test]
fn json_matches_all_but_volatile_members() {
    assert!(json_matches(r#"{"as_of":1,"x":[1,{"now":2}]}"#, r#"{"x":[1,{"now":3}],"as_of":4}"#));
    assert!(!json_matches(r#"{"as_of":1,"x":1}"#, r#"{"x":2,"as_of":1}"#));
    assert!(!json_matches(r#"{"as_of":1}"#, r#"{"x":1}"#));
    assert!(!json_matches("{}", "no json"));
}
