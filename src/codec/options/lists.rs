//! Lists in one text: separated by commas, with quotes around an item with a comma, a quote or
//! another sign in it.

/// An item of a list and whether any of it was quoted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListItem {
    pub text: String,
    /// The signs outside of quotes, each with its position in `text`.
    pub signs: Vec<(usize, char)>,
}

/// Parses a list and trims blanks around items, as in `M, T,"1,5"`. A quote within quotes is
/// doubled.
///
/// # Errors
///
/// If a quote does not end, or an item is empty.
pub fn parse_list(text: &str) -> Result<Box<[String]>, String> {
    if text.trim().is_empty() {
        return Ok(Box::default());
    }
    Ok(parse_items(text, "")?.into_iter().map(|item| item.text).collect())
}

/// Parses a list; outside of quotes, the characters of `signs` are noted and left out of the text.
pub(super) fn parse_items(text: &str, signs: &str) -> Result<Vec<ListItem>, String> {
    let mut items = vec![ListItem::default()];
    let mut quoted = false;
    let mut was_quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(item) = items.last_mut() else { break };
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                item.text.push('"');
            }
            '"' => {
                quoted = !quoted;
                was_quoted = true;
            }
            ',' if !quoted => {
                finish_item(item, was_quoted, text)?;
                items.push(ListItem::default());
                was_quoted = false;
            }
            sign if !quoted && signs.contains(sign) => {
                trim_end(item);
                item.signs.push((item.text.len(), sign));
            }
            // Blanks around an item and around a sign.
            ' ' if !quoted
                && item.text.len() == item.signs.last().map_or(0, |(at, _)| *at)
                && !was_quoted => {}
            other => item.text.push(other),
        }
    }
    if quoted {
        return Err(format!("{text:?} has a quote that does not end: write \"\" for a quote within quotes"));
    }
    if let Some(item) = items.last_mut() {
        finish_item(item, was_quoted, text)?;
    }
    Ok(items)
}

fn trim_end(item: &mut ListItem) {
    let from = item.signs.last().map_or(0, |(at, _)| *at);
    let end = from + item.text[from..].trim_end_matches(' ').len();
    item.text.truncate(end);
}

fn finish_item(item: &mut ListItem, was_quoted: bool, text: &str) -> Result<(), String> {
    if !was_quoted {
        trim_end(item);
    }
    match item.text.is_empty() && item.signs.is_empty() && !was_quoted {
        true => Err(format!("{text:?} has an empty item: remove a comma")),
        false => Ok(()),
    }
}

/// Formats a list as [`parse_list`] reads it.
pub(super) fn format_list(list: &[impl AsRef<str>]) -> String {
    let items: Vec<String> = list.iter().map(|item| quoted_if_needed(item.as_ref(), "")).collect();
    items.join(",")
}

pub(super) fn quoted_if_needed(text: &str, signs: &str) -> String {
    let is_plain = !text.is_empty()
        && text.trim_matches(' ').len() == text.len()
        && !text.chars().any(|character| character == '"' || character == ',' || signs.contains(character));
    if is_plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}
