//! Names of columns, or of fields of JSON, for the fields of a reading.

use std::fmt;

use super::super::field::Field;
use super::super::{DecodeSettings, Moisture};
use super::lists;
use crate::model::reading::check_city_key;

/// Characters with a meaning outside of quotes: `field=name`, joined names, a constant, a divisor.
const RESERVED_SIGNS: &str = "=+@/";

/// The fields that can be named, by their names in a reading of JSON.
const NAMEABLE_FIELDS: [(&str, Field); 9] = [
    ("city", Field::City),
    ("reading_at", Field::ReadingAt),
    ("temperature", Field::Temperature),
    ("humidity", Field::Moisture),
    ("dew_point", Field::Moisture),
    ("wind_speed", Field::WindSpeed),
    ("revision", Field::Revision),
    ("op", Field::Op),
    ("deleted", Field::Deleted),
];

/// The fields of the columns that a time is joined from, at most four.
const TIME_PARTS: [Field; 4] = [Field::ReadingAt, Field::TimePart2, Field::TimePart3, Field::TimePart4];

/// Names of columns by field: `city=station,reading_at=Date+Time,temperature=TMP/10`. A column
/// without a name here has the field's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnNames {
    named: Vec<NamedColumn>,
    city: Option<ConstantCity>,
}

#[derive(Clone, Debug, PartialEq)]
struct NamedColumn {
    field: Field,
    /// The field's name in the option, which tells the humidity from the dew point.
    option: &'static str,
    name: String,
    /// The divisor of the column's numbers.
    divisor: Option<f64>,
}

/// The city of all records of a file.
#[derive(Clone, Debug, PartialEq)]
enum ConstantCity {
    Named(String),
    /// The file's name up to its first dot.
    FileName(String),
}

impl ColumnNames {
    /// Parses `field=name` pairs with commas between them. A name with `,`, `=`, `+`, `@`, `/` or
    /// `"` in it is quoted. The case of letters in names does not matter.
    ///
    /// # Errors
    ///
    /// The text says what to write.
    pub fn parse(text: &str) -> Result<ColumnNames, String> {
        let mut columns = ColumnNames::default();
        if text.trim().is_empty() {
            return Ok(columns);
        }
        for item in lists::parse_items(text, RESERVED_SIGNS)? {
            columns.add_item(&item)?;
        }
        Ok(columns)
    }

    fn add_item(&mut self, item: &lists::ListItem) -> Result<(), String> {
        let Some((&(at, '='), signs)) = item.signs.split_first() else {
            return Err(format!("{:?} is not field=column, as in temperature=tmpf", item.text));
        };
        let (field_name, names) = item.text.split_at(at);
        let option = NAMEABLE_FIELDS.iter().find(|(name, _)| *name == field_name).copied();
        let (field_name, field) = option.ok_or_else(|| {
            let field_names: Vec<&str> = NAMEABLE_FIELDS.iter().map(|(name, _)| *name).collect();
            format!("{field_name:?} is no field of a reading: name one of {}", field_names.join(", "))
        })?;
        if self.names_field(field) {
            return Err(format!("{field_name} is there twice"));
        }
        match signs {
            [(start, '@')] if *start == at && field == Field::City => {
                self.city = Some(parse_constant_city(names)?);
                Ok(())
            }
            [(slash, '/')] if matches!(field, Field::Temperature | Field::Moisture | Field::WindSpeed) => {
                let (name, divisor) = item.text[at..].split_at(slash - at);
                let number = divisor.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
                let number = number.ok_or_else(|| format!("{divisor:?} is no divisor, as in TMP/10"))?;
                self.push_column(field, field_name, name, Some(number))
            }
            joined if joined.iter().all(|(_, sign)| *sign == '+') => {
                let ends: Vec<usize> = joined.iter().map(|(end, _)| end - at).chain([names.len()]).collect();
                self.name_joined_columns((field_name, field), names, &ends)
            }
            _ => Err(format!(
                "{field_name} is given by {names:?} with a sign that means nothing there: write names with one of {RESERVED_SIGNS} in quotes"
            )),
        }
    }

    /// Names the columns that end at `ends` in `names`; a time may have several.
    fn name_joined_columns(
        &mut self,
        (option, field): (&'static str, Field),
        names: &str,
        ends: &[usize],
    ) -> Result<(), String> {
        let parts: &[Field] = if field == Field::ReadingAt { &TIME_PARTS } else { &[field] };
        if ends.len() > parts.len() {
            return Err(format!(
                "{option} is joined of too many columns: only times can be joined, of at most 4"
            ));
        }
        let mut from = 0;
        for (part, end) in parts.iter().zip(ends) {
            self.push_column(*part, option, &names[from..*end], None)?;
            from = *end;
        }
        Ok(())
    }

    fn push_column(
        &mut self,
        field: Field,
        option: &'static str,
        name: &str,
        divisor: Option<f64>,
    ) -> Result<(), String> {
        if name.is_empty() {
            return Err("a name of a column is missing, as in temperature=tmpf".into());
        }
        if self.named.iter().any(|column| eq_ignoring_case(&column.name, name)) {
            return Err(format!("{name:?} is named for two fields"));
        }
        self.named.push(NamedColumn { field, option, name: name.to_owned(), divisor });
        Ok(())
    }

    fn names_field(&self, field: Field) -> bool {
        let is_city = |_: &ConstantCity| field == Field::City;
        self.named.iter().any(|column| column.field == field) || self.city.as_ref().is_some_and(is_city)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty() && self.city.is_none()
    }

    /// Whether only the time is named.
    pub(super) fn names_only_time(&self) -> bool {
        self.city.is_none() && self.named.iter().all(|column| TIME_PARTS.contains(&column.field))
    }

    /// Whether a column is named for the humidity though the source has dew points, or the other
    /// way round.
    pub(super) fn names_other_moisture(&self, moisture: Moisture) -> bool {
        let other = match moisture {
            Moisture::Humidity => "dew_point",
            Moisture::DewPoint => "humidity",
        };
        self.named.iter().any(|column| column.option == other)
    }

    /// Whether the city is the file's name.
    pub fn needs_file_name(&self) -> bool {
        matches!(self.city, Some(ConstantCity::FileName(_)))
    }

    pub(super) fn set_file_name(&mut self, file: &str) {
        if let Some(ConstantCity::FileName(city)) = &mut self.city {
            *city = file.split('.').find(|part| !part.is_empty()).unwrap_or_default().to_owned();
        }
    }

    /// The city of every record, if the records do not have it.
    pub(in super::super) fn city(&self) -> Option<&str> {
        self.city.as_ref().map(|(ConstantCity::Named(city) | ConstantCity::FileName(city))| city.as_str())
    }

    /// The fields whose numbers are divided, with the divisors.
    pub(super) fn divisors(&self) -> impl Iterator<Item = (Field, f64)> {
        self.named.iter().filter_map(|column| Some((column.field, column.divisor?)))
    }

    /// The fields of the columns that a time is joined from; one if it is in a single column.
    pub(in super::super) fn time_parts(&self) -> &'static [Field] {
        let count = self.named.iter().filter(|column| TIME_PARTS.contains(&column.field)).count();
        &TIME_PARTS[..count.max(1)]
    }

    /// The field of a column, or of a field of JSON, by its name.
    pub(in super::super) fn field(&self, name: &str, settings: &DecodeSettings) -> Option<Field> {
        if let Some(column) = self.named.iter().find(|column| eq_ignoring_case(&column.name, name)) {
            return Some(column.field);
        }
        let field = Field::from_name(name, settings)?;
        let is_named = self.named.iter().any(|column| column.field == field);
        let is_constant = field == Field::City && self.city.is_some();
        (!is_named && !is_constant).then_some(field)
    }

    /// The field of a header's column, regardless of the case of letters.
    pub(in super::super) fn header_column(&self, name: &str, settings: &DecodeSettings) -> Option<Field> {
        self.field(name, settings).or_else(|| self.field(&name.to_lowercase(), settings))
    }

    /// The part of a time that a column of a wide file has; the other columns are cities.
    pub(in super::super) fn time_part(&self, name: &str, settings: &DecodeSettings) -> Option<Field> {
        self.header_column(name, settings).filter(|field| TIME_PARTS.contains(field))
    }

    /// The names that were given, each with its field.
    pub(in super::super) fn explicit_names(&self) -> impl Iterator<Item = (&str, Field)> {
        self.named.iter().map(|column| (column.name.as_str(), column.field))
    }
}

/// Parses what follows `@`: a name, or nothing for the file's name.
fn parse_constant_city(name: &str) -> Result<ConstantCity, String> {
    if name.is_empty() {
        return Ok(ConstantCity::FileName(String::new()));
    }
    check_city_key(name).map_err(|refusal| refusal.detail)?;
    Ok(ConstantCity::Named(name.to_owned()))
}

/// Whether two names differ at most in the case of letters.
pub(in super::super) fn eq_ignoring_case(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || (!(a.is_ascii() && b.is_ascii()) && a.to_lowercase() == b.to_lowercase())
}

/// In the form that [`ColumnNames::parse`] reads.
impl fmt::Display for ColumnNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        if let Some(city) = self.city() {
            write!(f, "city=@{}", lists::quoted_if_needed(city, RESERVED_SIGNS))?;
            comma = ",";
        }
        for NamedColumn { field, option, name, divisor } in &self.named {
            let name = lists::quoted_if_needed(name, RESERVED_SIGNS);
            match TIME_PARTS[1..].contains(field) {
                true => write!(f, "+{name}")?,
                false => write!(f, "{comma}{}={name}", option)?,
            }
            if let Some(divisor) = divisor {
                write!(f, "/{divisor}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}
