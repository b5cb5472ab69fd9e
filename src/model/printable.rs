//! Escapes for text from elsewhere, which a terminal must not obey and which must not look like
//! something else.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character is a command to a terminal, or changes where a line ends or the direction in
/// which it is read.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text on one line, with such characters shown as `\n`, `\x1b` or `\u{202e}`.
///
/// ```
/// use swelter::internals::model::printable::printable;
///
/// assert_eq!(printable("Jos\u{e9}"), "Jos\u{e9}");
/// assert_eq!(printable("a\x1b[2Jb\nc\u{9b}\u{202e}"), "a\\x1b[2Jb\\nc\\x9b\\u{202e}");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if !needs_escape(c) => out.push(c),
            c if u32::from(c) < 0x100 => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// Equal JSON, with such characters as `\u009b`: JSON itself escapes fewer of them.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    // The others occur only between values, outside of strings.
    let is_inside = |c: char| needs_escape(c) && c > '\x7e';
    if !json.contains(is_inside) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_inside(c) {
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_terminal_control_character_is_left(text in "\\PC{0,20}[\u{0}-\u{9f}\u{202a}-\u{2069}]{0,9}") {
            let shown = printable(&text);
            prop_assert!(!shown.contains(needs_escape), "{shown:?}");
            let json = serde_json::to_string(&text).unwrap();
            let shown = printable_json(&json);
            prop_assert!(!shown.contains(needs_escape), "{shown:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }

    #[test]
    fn terminal_escape_sequences_are_escaped() {
        for (text, shown) in [
            ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
            ("\u{9b}31m", "\\x9b31m"),
            ("one\r\ntwo\tthree", "one\\r\\ntwo\\tthree"),
            ("\u{202e}txt.exe\u{2069}\u{2028}", "\\u{202e}txt.exe\\u{2069}\\u{2028}"),
            ("ночь 夜 🌡", "ночь 夜 🌡"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
