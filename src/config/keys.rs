//! Reads values by key: each key says its type and range where it is read, and what is read exists.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::ValueEnum;

use super::layers::{Entries, Entry, Item, Origin, Value};
use super::{ConfigError, suggest};
use crate::model::Duration;

/// The merged layers while they are read. A key that cannot be read gives some value of its type, and an error.
#[derive(Debug)]
pub struct Keys {
    entries: Entries,
    /// What was read, as TOML.
    read: BTreeMap<String, Setting>,
    errors: Vec<ConfigError>,
}

/// A key's value in use, as TOML writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub toml: String,
    pub origin: Origin,
    /// It must not be shown.
    pub is_secret: bool,
}

impl Keys {
    pub fn new(mut entries: Entries) -> Keys {
        let errors = std::mem::take(&mut entries.errors);
        Keys { entries, read: BTreeMap::new(), errors }
    }

    /// What is said of variables that nothing reads.
    pub fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.entries.warnings)
    }

    pub fn tokens(&mut self) -> Option<String> {
        self.entries.tokens.take()
    }

    /// The tables of a list, in the order in which they were written.
    pub fn items(&self, list: &str) -> Vec<Item> {
        self.entries.items.iter().filter(|item| item.list == list).cloned().collect()
    }

    /// Whether some layer has the key.
    pub fn is_given(&self, key: &str) -> bool {
        self.entries.values.contains_key(key)
    }

    /// The keys right under a table, as they are written there.
    pub fn under(&self, table: &str) -> Vec<String> {
        let prefix = format!("{table}.");
        let below = self.entries.values.range(prefix.clone()..);
        below.map_while(|(key, _)| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// Gives a key a value for where no layer has one.
    pub fn default(&mut self, key: &str, value: Value) {
        self.entries.values.entry(key.to_owned()).or_insert(Entry { value, origin: Origin::Default });
    }

    /// A problem of a key, where it was written.
    pub fn refuse(&mut self, key: &str, problem: impl Into<String>) {
        let value = self.entries.values.get(key).map(|entry| &entry.origin);
        let table = || self.entries.tables.get(key);
        let above = || self.entries.tables.get(key.rsplit_once('.')?.0);
        let origin = value.or_else(table).or_else(above).cloned();
        self.errors.push(ConfigError { key: Some(key.to_owned()), origin, problem: problem.into() });
    }

    /// Shows another value for a key than it was given.
    pub fn show(&mut self, key: &str, toml: String) {
        if let Some(setting) = self.read.get_mut(key) {
            setting.toml = toml;
        }
    }

    /// Reads a key; `parse` gives the value and how TOML writes it, or what is expected instead.
    fn read<T>(&mut self, key: &str, parse: impl FnOnce(&Value) -> Result<(T, String), String>) -> Option<T> {
        let Some(Entry { value, origin }) = self.entries.values.get(key).cloned() else {
            let toml = String::new();
            self.read.insert(key.to_owned(), Setting { toml, origin: Origin::Default, is_secret: false });
            self.refuse(key, "is missing");
            return None;
        };
        let (value, toml) = match parse(&value) {
            Ok((value, toml)) => (Some(value), toml),
            Err(expected) => {
                self.refuse(key, format!("{value} is not {expected}"));
                (None, String::new())
            }
        };
        self.read.insert(key.to_owned(), Setting { toml, origin, is_secret: false });
        value
    }

    pub fn text(&mut self, key: &str) -> String {
        self.read(key, |value| Ok((text(value, "a text")?.to_owned(), quoted(text(value, "a text")?))))
            .unwrap_or_default()
    }

    /// A text that may be empty, which is nothing.
    pub fn optional(&mut self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    /// A text that is neither printed nor part of an error.
    pub fn secret(&mut self, key: &str) -> Option<String> {
        let entry = self.entries.values.get(key).cloned();
        let (value, origin) =
            entry.map_or((None, Origin::Default), |entry| (Some(entry.value), entry.origin));
        self.read.insert(key.to_owned(), Setting { toml: String::new(), origin, is_secret: true });
        match value.as_ref().map(scalar) {
            Some(Some(text)) => Some(text),
            Some(None) => {
                self.refuse(key, "is not a text");
                None
            }
            None => None,
        }
    }

    /// A text, number or flag, as a text.
    pub fn scalar(&mut self, key: &str) -> String {
        let read = self.read(key, |value| {
            let text = scalar(value).ok_or("a text, a number, true or false")?;
            Ok((text.clone(), quoted(&text)))
        });
        read.unwrap_or_default()
    }

    /// A text that `parse` takes, or says what is expected instead.
    pub fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.read(key, |value| {
            let given = match value {
                Value::Time(time) => time,
                value => text(value, "a text")?,
            };
            Ok((parse(given)?, quoted(given)))
        })
    }

    pub fn flag(&mut self, key: &str) -> bool {
        let read = self.read(key, |value| {
            let flag = match value {
                Value::Bool(flag) => *flag,
                Value::Loose(text) => text.trim().parse().map_err(|_| "true or false")?,
                _ => return Err("true or false".into()),
            };
            Ok((flag, flag.to_string()))
        });
        read.unwrap_or_default()
    }

    pub fn whole<T: TryFrom<i64> + Default>(&mut self, key: &str, range: RangeInclusive<i64>) -> T {
        let read = self.read(key, |value| {
            let number = match value {
                Value::Number(number) => Some(*number),
                Value::Loose(text) => text.trim().parse().ok(),
                _ => None,
            };
            let expected = || format!("a whole number from {} to {}", range.start(), range.end());
            let number = number.filter(|number| range.contains(number)).ok_or_else(expected)?;
            Ok((T::try_from(number).map_err(|_| expected())?, number.to_string()))
        });
        read.unwrap_or_default()
    }

    /// From 0 to 1.
    pub fn share(&mut self, key: &str) -> f64 {
        let read = self.read(key, |value| {
            let number = match value {
                Value::Number(number) => Some(*number as f64),
                Value::Decimal(number) => Some(*number),
                Value::Loose(text) => text.trim().parse().ok(),
                _ => None,
            };
            let number = number.filter(|number| (0.0..=1.0).contains(number)).ok_or("a share from 0 to 1")?;
            Ok((number, format!("{number:?}")))
        });
        read.unwrap_or_default()
    }

    /// A duration between two others, in their own spelling.
    pub fn duration(&mut self, key: &str, from: &str, to: &str) -> Duration {
        let read = self.read(key, |value| {
            let expected = || format!("a duration from {from} to {to}, such as 90s, 15m, 6h or 1d");
            let limits = from.parse().ok().zip(to.parse().ok());
            let duration =
                text(value, "a duration").ok().and_then(|text| text.trim().parse::<Duration>().ok());
            let inside = |duration: &Duration| limits.is_none_or(|(from, to)| (from..=to).contains(duration));
            let duration = duration.filter(inside).ok_or_else(expected)?;
            Ok((duration, quoted(&duration.to_string())))
        });
        read.unwrap_or_default()
    }

    /// A wait: a duration of the clock, not of event time.
    pub fn wait(&mut self, key: &str, from: &str, to: &str) -> std::time::Duration {
        std::time::Duration::from_millis(self.duration(key, from, to).millis().unsigned_abs())
    }

    /// A number of bytes between two others, as texts.
    pub fn bytes<T: TryFrom<u64> + Default>(&mut self, key: &str, from: &str, to: &str) -> T {
        let read = self.read(key, |value| {
            let expected = || format!("a size from {from} to {to}, such as \"64 KiB\" or 65536");
            let bytes = match value {
                Value::Number(number) => u64::try_from(*number).ok(),
                Value::Loose(text) | Value::Text(text) => parse_bytes(text),
                _ => None,
            };
            let limits = parse_bytes(from).zip(parse_bytes(to));
            let inside = |bytes: &u64| limits.is_none_or(|(from, to)| (from..=to).contains(bytes));
            let bytes = bytes.filter(inside).ok_or_else(expected)?;
            Ok((T::try_from(bytes).map_err(|_| expected())?, quoted(&show_bytes(bytes))))
        });
        read.unwrap_or_default()
    }

    pub fn list(&mut self, key: &str) -> Vec<String> {
        let read = self.read(key, |value| {
            let items: Vec<String> = match value {
                Value::List(items) => items.clone(),
                Value::Text(text) if text.is_empty() => Vec::new(),
                Value::Text(text) => vec![text.clone()],
                Value::Loose(text) => text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
                _ => return Err("a text or a list of texts".into()),
            };
            let shown: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            Ok((items, format!("[{}]", shown.join(", "))))
        });
        read.unwrap_or_default()
    }

    /// One of the names that a type has.
    pub fn choice<T: ValueEnum>(&mut self, key: &str) -> Option<T> {
        let all = T::value_variants();
        let names: Vec<_> = all.iter().filter_map(ValueEnum::to_possible_value).collect();
        let names: Vec<&str> = names.iter().map(clap::builder::PossibleValue::get_name).collect();
        self.one_of(key, &names).and_then(|name| T::from_str(&name, false).ok())
    }

    pub fn one_of(&mut self, key: &str, names: &[&str]) -> Option<String> {
        self.read(key, |value| {
            let given = text(value, "a text").unwrap_or_default().trim();
            let name = names.iter().find(|name| **name == given).ok_or_else(|| any_of(names))?;
            Ok(((*name).to_owned(), quoted(name)))
        })
    }

    pub fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let expected = "an address: write an IP address and a port, as in 127.0.0.1:8080 or [::1]:8080";
        self.read(key, |value| {
            let address = SocketAddr::from_str(text(value, expected)?.trim()).map_err(|_| expected)?;
            Ok((address, quoted(&address.to_string())))
        })
    }

    /// Whether a key has been read without an error.
    pub fn is_right(&self, key: &str) -> bool {
        !self.errors.iter().any(|error| error.key.as_deref() == Some(key))
    }

    /// Everything that was read, if nothing was wrong and nothing is left unread.
    pub fn finish(mut self) -> Result<BTreeMap<String, Setting>, Vec<ConfigError>> {
        let known: Vec<&str> = self.read.keys().map(String::as_str).collect();
        let values = self.entries.values.iter().map(|(key, entry)| (key, &entry.origin));
        let tables = self.entries.tables.iter().filter(|(table, _)| {
            let prefix = format!("{table}.");
            let below = |key: &String| key.starts_with(&prefix);
            !known.iter().any(|key| key.starts_with(&prefix)) && !self.entries.values.keys().any(below)
        });
        for (key, origin) in values.chain(tables) {
            if !self.read.contains_key(key) && self.is_right_above(key) {
                let is_table = known.iter().any(|other| other.starts_with(&format!("{key}.")));
                let problem = match origin {
                    Origin::Variable(_) if !is_table => suggest::unknown_variable(key, &known),
                    _ => suggest::unknown(key, &known),
                };
                self.errors.push(ConfigError {
                    key: Some(key.clone()),
                    origin: Some(origin.clone()),
                    problem,
                });
            }
        }
        if self.errors.is_empty() { Ok(self.read) } else { Err(self.errors) }
    }

    /// Whether it makes sense to say that a key is unknown: in a source without a type it does not.
    fn is_right_above(&self, key: &str) -> bool {
        let item = self.entries.items.iter().find(|item| item.field(key).is_some());
        item.is_none_or(|Item { list, key, .. }| {
            self.is_right(list) && self.is_right(key) && self.is_right(&format!("{key}.type"))
        })
    }
}

fn text<'a>(value: &'a Value, expected: &str) -> Result<&'a str, String> {
    match value {
        Value::Loose(text) | Value::Text(text) => Ok(text),
        _ => Err(expected.to_owned()),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Loose(text) | Value::Text(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Decimal(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::List(_) | Value::Time(_) | Value::Other(_) => None,
    }
}

pub fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// "a, b or c".
fn any_of(names: &[&str]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        _ => names.concat(),
    }
}

const UNITS: [(&str, u64); 6] =
    [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = match text[digits..].trim_start() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

fn show_bytes(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or("0 B".into(), |(name, size)| format!("{} {name}", bytes / size))
}
