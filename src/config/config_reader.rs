//! The reader of configuration keys: each key is declared, with its type and range, by reading it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::ValueEnum;

use super::error::ConfigError;
use super::layers::{ConfigValue, LayerEntry, MergedLayers, TableItem};
use super::suggest;
use super::value_origin::ValueOrigin;
use crate::model::Millis;

/// The merged layers while they are read. An invalid key yields an arbitrary value of its type, and
/// an error.
#[derive(Debug)]
pub struct ConfigReader {
    layers: MergedLayers,
    /// The keys that were read, with their values as TOML.
    settings: BTreeMap<String, Setting>,
    errors: Vec<ConfigError>,
}

/// The value in use of a key, in TOML syntax.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub toml: String,
    pub origin: ValueOrigin,
    /// The value must not be shown.
    pub is_secret: bool,
}

impl ConfigReader {
    pub fn new(mut entries: MergedLayers) -> ConfigReader {
        let errors = std::mem::take(&mut entries.errors);
        ConfigReader { layers: entries, settings: BTreeMap::new(), errors }
    }

    /// Takes the warnings about variables that nothing reads.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.layers.warnings)
    }

    pub fn take_tokens(&mut self) -> Option<String> {
        self.layers.tokens.take()
    }

    /// The tables of a list, in the order of the configuration.
    pub fn list_items(&self, list: &str) -> Vec<TableItem> {
        self.layers.items.iter().filter(|item| item.list == list).cloned().collect()
    }

    /// Whether a layer sets the key.
    pub fn is_given(&self, key: &str) -> bool {
        self.layers.values.contains_key(key)
    }

    /// The keys directly under a table, as they are written there.
    pub fn keys_under(&self, table: &str) -> Vec<String> {
        let prefix = format!("{table}.");
        let below = self.layers.values.range(prefix.clone()..);
        below.map_while(|(key, _)| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// Sets the value of a key that no layer sets.
    pub fn set_default(&mut self, key: &str, value: ConfigValue) {
        self.layers
            .values
            .entry(key.to_owned())
            .or_insert(LayerEntry { value, origin: ValueOrigin::ShippedDefault });
    }

    /// Adds an error of a key, with the origin of its value.
    pub fn add_error(&mut self, key: &str, problem: impl Into<String>) {
        let value = self.layers.values.get(key).map(|entry| &entry.origin);
        let table = || self.layers.tables.get(key);
        let above = || self.layers.tables.get(key.rsplit_once('.')?.0);
        let origin = value.or_else(table).or_else(above).cloned();
        self.errors.push(ConfigError { key: Some(key.to_owned()), origin, problem: problem.into() });
    }

    /// Replaces the shown value of a key.
    pub fn set_shown(&mut self, key: &str, toml: String) {
        if let Some(setting) = self.settings.get_mut(key) {
            setting.toml = toml;
        }
    }

    /// Reads a key. `parse` returns the value and its TOML syntax, or the text of what is expected.
    fn read_value<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&ConfigValue) -> Result<(T, String), String>,
    ) -> Option<T> {
        let Some(LayerEntry { value, origin }) = self.layers.values.get(key).cloned() else {
            let toml = String::new();
            self.settings.insert(
                key.to_owned(),
                Setting { toml, origin: ValueOrigin::ShippedDefault, is_secret: false },
            );
            self.add_error(key, "is missing");
            return None;
        };
        let (value, toml) = match parse(&value) {
            Ok((value, toml)) => (Some(value), toml),
            Err(expected) => {
                self.add_error(key, format!("{value} is not {expected}"));
                (None, String::new())
            }
        };
        self.settings.insert(key.to_owned(), Setting { toml, origin, is_secret: false });
        value
    }

    pub fn read_text(&mut self, key: &str) -> String {
        self.read_value(key, |value| {
            Ok((expect_text(value, "a text")?.to_owned(), quoted(expect_text(value, "a text")?)))
        })
        .unwrap_or_default()
    }

    /// Reads a text; an empty one is `None`.
    pub fn read_optional_text(&mut self, key: &str) -> Option<String> {
        Some(self.read_text(key)).filter(|text| !text.is_empty())
    }

    /// Reads a text that is neither printed nor part of an error.
    pub fn read_secret(&mut self, key: &str) -> Option<String> {
        let entry = self.layers.values.get(key).cloned();
        let (value, origin) =
            entry.map_or((None, ValueOrigin::ShippedDefault), |entry| (Some(entry.value), entry.origin));
        self.settings.insert(key.to_owned(), Setting { toml: String::new(), origin, is_secret: true });
        match value.as_ref().map(scalar_to_text) {
            Some(Some(text)) => Some(text),
            Some(None) => {
                self.add_error(key, "is not a text");
                None
            }
            None => None,
        }
    }

    /// Reads a text, number or flag as a text.
    pub fn read_scalar(&mut self, key: &str) -> String {
        let read = self.read_value(key, |value| {
            let text = scalar_to_text(value).ok_or("a text, a number, true or false")?;
            Ok((text.clone(), quoted(&text)))
        });
        read.unwrap_or_default()
    }

    /// Reads a text with `parse`, which returns the value or the text of what is expected.
    pub fn read_parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.read_value(key, |value| {
            let text = match value {
                ConfigValue::Time(time) => time,
                value => expect_text(value, "a text")?,
            };
            Ok((parse(text)?, quoted(text)))
        })
    }

    pub fn read_bool(&mut self, key: &str) -> bool {
        let read = self.read_value(key, |value| {
            let flag = match value {
                ConfigValue::Bool(flag) => *flag,
                ConfigValue::Untyped(text) => text.trim().parse().map_err(|_| "true or false")?,
                _ => return Err("true or false".into()),
            };
            Ok((flag, flag.to_string()))
        });
        read.unwrap_or_default()
    }

    pub fn read_integer<T: TryFrom<i64> + Default>(&mut self, key: &str, range: RangeInclusive<i64>) -> T {
        let read = self.read_value(key, |value| {
            let number = match value {
                ConfigValue::Number(number) => Some(*number),
                ConfigValue::Untyped(text) => text.trim().parse().ok(),
                _ => None,
            };
            let expected = || format!("a whole number from {} to {}", range.start(), range.end());
            let number = number.filter(|number| range.contains(number)).ok_or_else(expected)?;
            Ok((T::try_from(number).map_err(|_| expected())?, number.to_string()))
        });
        read.unwrap_or_default()
    }

    /// Reads a number from 0 to 1.
    pub fn read_share(&mut self, key: &str) -> f64 {
        let read = self.read_value(key, |value| {
            let number = match value {
                ConfigValue::Number(number) => Some(*number as f64),
                ConfigValue::Decimal(number) => Some(*number),
                ConfigValue::Untyped(text) => text.trim().parse().ok(),
                _ => None,
            };
            let number = number.filter(|number| (0.0..=1.0).contains(number)).ok_or("a share from 0 to 1")?;
            Ok((number, format!("{number:?}")))
        });
        read.unwrap_or_default()
    }

    /// Reads a duration within a range.
    pub fn read_duration(&mut self, key: &str, from: &str, to: &str) -> Millis {
        let read = self.read_value(key, |value| {
            let expected = || format!("a duration from {from} to {to}, such as 90s, 15m, 6h or 1d");
            let limits = from.parse().ok().zip(to.parse().ok());
            let duration =
                expect_text(value, "a duration").ok().and_then(|text| text.trim().parse::<Millis>().ok());
            let inside = |duration: &Millis| limits.is_none_or(|(from, to)| (from..=to).contains(duration));
            let duration = duration.filter(inside).ok_or_else(expected)?;
            Ok((duration, quoted(&duration.to_string())))
        });
        read.unwrap_or_default()
    }

    /// Reads a duration of the wall clock, not of event time.
    pub fn read_wall_duration(&mut self, key: &str, from: &str, to: &str) -> std::time::Duration {
        std::time::Duration::from_millis(self.read_duration(key, from, to).millis().unsigned_abs())
    }

    /// Reads a number of bytes within a range.
    pub fn read_bytes<T: TryFrom<u64> + Default>(&mut self, key: &str, from: &str, to: &str) -> T {
        let read = self.read_value(key, |value| {
            let expected = || format!("a size from {from} to {to}, such as \"64 KiB\" or 65536");
            let bytes = match value {
                ConfigValue::Number(number) => u64::try_from(*number).ok(),
                ConfigValue::Untyped(text) | ConfigValue::Text(text) => parse_bytes(text),
                _ => None,
            };
            let limits = parse_bytes(from).zip(parse_bytes(to));
            let inside = |bytes: &u64| limits.is_none_or(|(from, to)| (from..=to).contains(bytes));
            let bytes = bytes.filter(inside).ok_or_else(expected)?;
            Ok((T::try_from(bytes).map_err(|_| expected())?, quoted(&format_bytes(bytes))))
        });
        read.unwrap_or_default()
    }

    pub fn read_list(&mut self, key: &str) -> Vec<String> {
        let read = self.read_value(key, |value| {
            let items: Vec<String> = match value {
                ConfigValue::List(items) => items.clone(),
                ConfigValue::Text(text) if text.is_empty() => Vec::new(),
                ConfigValue::Text(text) => vec![text.clone()],
                ConfigValue::Untyped(text) => text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
                _ => return Err("a text or a list of texts".into()),
            };
            let items_text: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            Ok((items, format!("[{}]", items_text.join(", "))))
        });
        read.unwrap_or_default()
    }

    /// Reads one of the names of an enum's values.
    pub fn read_choice<T: ValueEnum>(&mut self, key: &str) -> Option<T> {
        let all = T::value_variants();
        let names: Vec<_> = all.iter().filter_map(ValueEnum::to_possible_value).collect();
        let names: Vec<&str> = names.iter().map(clap::builder::PossibleValue::get_name).collect();
        self.read_one_of(key, &names).and_then(|name| T::from_str(&name, false).ok())
    }

    pub fn read_one_of(&mut self, key: &str, names: &[&str]) -> Option<String> {
        self.read_value(key, |value| {
            let text = expect_text(value, "a text").unwrap_or_default().trim();
            let name = names.iter().find(|name| **name == text).ok_or_else(|| join_names(names))?;
            Ok(((*name).to_owned(), quoted(name)))
        })
    }

    pub fn read_address(&mut self, key: &str) -> Option<SocketAddr> {
        let expected = "an address: write an IP address and a port, as in 127.0.0.1:8080 or [::1]:8080";
        self.read_value(key, |value| {
            let address = SocketAddr::from_str(expect_text(value, expected)?.trim()).map_err(|_| expected)?;
            Ok((address, quoted(&address.to_string())))
        })
    }

    /// Whether a key has no error so far.
    pub fn is_valid(&self, key: &str) -> bool {
        !self.errors.iter().any(|error| error.key.as_deref() == Some(key))
    }

    /// Returns all settings, if there is no error and no key is left unread.
    pub fn finish(mut self) -> Result<BTreeMap<String, Setting>, Vec<ConfigError>> {
        let keys: Vec<&str> = self.settings.keys().map(String::as_str).collect();
        let values = self.layers.values.iter().map(|(key, entry)| (key, &entry.origin));
        let tables = self.layers.tables.iter().filter(|(table, _)| {
            let prefix = format!("{table}.");
            let below = |key: &String| key.starts_with(&prefix);
            !keys.iter().any(|key| key.starts_with(&prefix)) && !self.layers.values.keys().any(below)
        });
        for (key, origin) in values.chain(tables) {
            if !self.settings.contains_key(key) && self.is_parent_valid(key) {
                let is_table = keys.iter().any(|other| other.starts_with(&format!("{key}.")));
                let problem = match origin {
                    ValueOrigin::Variable(_) if !is_table => suggest::unknown_variable_text(key, &keys),
                    _ => suggest::unknown_key_text(key, &keys),
                };
                self.errors.push(ConfigError {
                    key: Some(key.clone()),
                    origin: Some(origin.clone()),
                    problem,
                });
            }
        }
        if self.errors.is_empty() { Ok(self.settings) } else { Err(self.errors) }
    }

    /// Whether an unknown key should be reported. Not in a source without a valid type: its keys
    /// are never read.
    fn is_parent_valid(&self, key: &str) -> bool {
        let item = self.layers.items.iter().find(|item| item.field_name(key).is_some());
        item.is_none_or(|TableItem { list, key, .. }| {
            self.is_valid(list) && self.is_valid(key) && self.is_valid(&format!("{key}.type"))
        })
    }
}

fn expect_text<'a>(value: &'a ConfigValue, expected: &str) -> Result<&'a str, String> {
    match value {
        ConfigValue::Untyped(text) | ConfigValue::Text(text) => Ok(text),
        _ => Err(expected.to_owned()),
    }
}

fn scalar_to_text(value: &ConfigValue) -> Option<String> {
    match value {
        ConfigValue::Untyped(text) | ConfigValue::Text(text) => Some(text.clone()),
        ConfigValue::Number(number) => Some(number.to_string()),
        ConfigValue::Decimal(number) => Some(number.to_string()),
        ConfigValue::Bool(flag) => Some(flag.to_string()),
        ConfigValue::List(_) | ConfigValue::Time(_) | ConfigValue::Other(_) => None,
    }
}

pub fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// "a, b or c".
fn join_names(names: &[&str]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        _ => names.concat(),
    }
}

const BYTE_UNITS: [(&str, u64); 6] =
    [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = match text[digits..].trim_start() {
        "" => 1,
        unit => BYTE_UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

fn format_bytes(bytes: u64) -> String {
    let unit = BYTE_UNITS.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or("0 B".into(), |(name, size)| format!("{} {name}", bytes / size))
}
