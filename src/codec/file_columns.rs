//! Maps the columns of a file to fields.

use super::field::Field;
use super::unknown_fields::UnknownFields;
use super::{DecodeError, ReadOptions};
use crate::model::refusal::quoted_excerpt;

/// The most columns that an error lists.
const MAX_SHOWN_COLUMNS: usize = 40;

/// The field of each column of a file, if it has one. The case of letters does not matter.
///
/// # Errors
///
/// If a required or named column is missing, or a field has two columns.
pub(super) fn map_columns<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    options: &ReadOptions,
) -> Result<Vec<Option<Field>>, DecodeError> {
    let (settings, column_names) = (&options.settings, &options.record.columns);
    let columns: Vec<Option<Field>> =
        names.clone().map(|name| column_names.header_column(name, settings)).collect();
    let of_file = || {
        let shown = names.clone().take(MAX_SHOWN_COLUMNS).map(quoted_excerpt).collect::<Vec<_>>().join(", ");
        match columns.len().checked_sub(MAX_SHOWN_COLUMNS) {
            None | Some(0) => shown,
            Some(more) => format!("{shown} and {more} more"),
        }
    };
    let count = |field: Field| columns.iter().filter(|&&column| column == Some(field)).count();
    for (name, field) in column_names.explicit_names() {
        if count(field) == 0 {
            let (name, column) = (quoted_excerpt(name), field.name(settings));
            return Err(DecodeError::MissingNamedColumn { name, column, columns: of_file() });
        }
    }
    for field in Field::ALL {
        let column = field.name(settings);
        let is_required = field.is_required() && !(field == Field::City && column_names.city().is_some());
        match count(field) {
            0 if is_required => return Err(DecodeError::MissingColumn { column, columns: of_file() }),
            0 | 1 => {}
            _ => return Err(DecodeError::DuplicateColumn { column, columns: of_file() }),
        }
    }
    for field in [Field::TimePart2, Field::TimePart3, Field::TimePart4] {
        if count(field) > 1 {
            return Err(DecodeError::DuplicateColumn { column: field.name(settings), columns: of_file() });
        }
    }
    let unknown = names.zip(&columns).filter(|(_, column)| column.is_none());
    unknown.for_each(|(name, _)| UnknownFields::default().count_and_log(name));
    Ok(columns)
}
