//! The fields of one line of CSV.

use std::borrow::Cow;

/// The remaining fields of one CSV line, or `None` after the last one. A quoted field must end on
/// its line, since a name holds no line break.
pub(super) struct CsvLineFields<'a>(pub(super) Option<&'a str>);

impl<'a> CsvLineFields<'a> {
    pub(super) fn next(&mut self) -> Result<Option<Cow<'a, str>>, String> {
        let Some(rest) = self.0 else { return Ok(None) };
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, rest) = match rest.split_once(',') {
                Some((field, rest)) => (field, Some(rest)),
                None => (rest, None),
            };
            self.0 = rest;
            return Ok(Some(Cow::Borrowed(field)));
        };
        let mut end = 0;
        let mut doubled = false;
        loop {
            end += quoted[end..].find('"').ok_or("a quoted field does not end on its line")?;
            if !quoted[end + 1..].starts_with('"') {
                break;
            }
            doubled = true;
            end += 2;
        }
        let (field, after) = (&quoted[..end], &quoted[end + 1..]);
        self.0 = match after.strip_prefix(',') {
            Some(rest) => Some(rest),
            None if after.is_empty() => None,
            None => return Err(format!("a comma is missing after the quoted field {field:?}")),
        };
        Ok(Some(if doubled { Cow::Owned(field.replace("\"\"", "\"")) } else { Cow::Borrowed(field) }))
    }
}
