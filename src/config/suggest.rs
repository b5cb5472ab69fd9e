//! Suggestions for misspelled keys.

/// The error text of a key that is not in `known`.
pub fn unknown_key_text(key: &str, known: &[&str]) -> String {
    if known.iter().any(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))) {
        return "is a table, not a value".into();
    }
    if let Some(above) =
        known.iter().find(|other| key.strip_prefix(**other).is_some_and(|r| r.starts_with('.')))
    {
        return format!("is not a key: {above} is a value, not a table");
    }
    match nearest_key(key, known) {
        Some(other) => format!("is not a key: did you mean {other}?"),
        None => "is not a key: --print-config shows all keys".into(),
    }
}

/// The most similar key. The last segment alone may match, too: the key may belong in another
/// table.
fn nearest_key<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let apart = |other: &str| edit_distance(key, other).min(1 + edit_distance(&name(key), &name(other)));
    let close = known.iter().map(|other| (apart(other), *other)).min();
    close.filter(|(apart, _)| *apart <= 1 + name(key).len() / 4).map(|(_, other)| other)
}

/// Whether one may be a misspelling of the other.
pub fn may_be_misspelling(a: &str, b: &str) -> bool {
    edit_distance(a, b) <= 1 + b.len() / 4
}

/// Whether the texts differ by at most one edit.
pub fn is_one_slip_away(a: &str, b: &str) -> bool {
    a == b || (b.len() >= 5 && edit_distance(a, b) <= 1)
}

/// The text of a variable that is not a key.
pub fn unknown_variable_text(key: &str, known: &[&str]) -> String {
    // Many services have a variable PORT.
    let meant = if key == "port" { Some("serve.listen") } else { nearest_key(key, known) };
    match meant {
        Some(other) => {
            let variable = other.to_ascii_uppercase().replace('.', "__").replace('-', "_");
            format!("is not a key: did you mean {other}, as SWELTER_{variable}?")
        }
        None => unknown_key_text(key, known),
    }
}

/// The number of insertions, deletions and substitutions from one text to the other (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(256).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
