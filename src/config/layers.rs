//! Where values are written down: the shipped defaults, a file, the environment, flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::suggest;

/// What lies over the shipped defaults.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    pub file: Option<PathBuf>,
    /// Variables of other programs among them do not matter.
    pub environment: Vec<(OsString, OsString)>,
    /// A key, the flag as the user gives it, and its value; later ones win.
    pub flags: Vec<(String, &'static str, String)>,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a variable or flag: it has the type that its key asks for.
    Loose(String),
    Text(String),
    Number(i64),
    Decimal(f64),
    Bool(bool),
    List(Vec<String>),
    /// Of a type, named here, that no key has.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Loose(text) | Value::Text(text) => write!(f, "{text:?}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Decimal(number) => write!(f, "{number}"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::List(_) => f.write_str("a list"),
            Value::Other(what) => f.write_str(what),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub value: Value,
    pub origin: Origin,
}

/// All layers, merged: values by their dotted keys, and the tables that were named.
#[derive(Debug, Default)]
pub struct Entries {
    pub values: BTreeMap<String, Entry>,
    pub tables: BTreeMap<String, Origin>,
    /// What `SWELTER_TOKENS` holds. It is no key, so that it is never shown.
    pub tokens: Option<String>,
    pub errors: Vec<ConfigError>,
}

/// The largest configuration file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

const PREFIX: &str = "SWELTER_";

/// What the variables that are meant for the service begin with.
const TOP: [&str; 10] =
    ["DATA_DIR", "WORKERS", "TOKENS", "LOG", "RESULTS", "DECODE", "INGEST", "SERVE", "LIMITS", "SOURCES"];

impl Entries {
    pub fn merge(shipped: &str, layers: &Layers) -> Entries {
        let mut entries = Entries::default();
        entries.add_toml(shipped, &|_| Origin::Default);
        if let Some(path) = &layers.file {
            entries.add_file(path);
        }
        for (name, value) in &layers.environment {
            entries.add_variable(name, value);
        }
        for (key, flag, value) in &layers.flags {
            entries.add_loose(key, value, Origin::Flag(flag));
        }
        entries
    }

    fn add_file(&mut self, path: &Path) {
        match read_text(path, MAX_FILE_BYTES) {
            Ok(text) => self.add_toml(&text, &|line| Origin::File { path: path.to_path_buf(), line }),
            Err(problem) => self.errors.push(ConfigError {
                key: None,
                origin: Some(Origin::Flag("--config")),
                problem: format!("{} {problem}", path.display()),
            }),
        }
    }

    fn add_toml(&mut self, text: &str, origin: &dyn Fn(usize) -> Origin) {
        let line =
            |at: usize| 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count();
        let at = |at: usize| origin(line(at));
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let origin = error.span().map_or_else(|| origin(1), |span| at(span.start));
            self.errors.push(ConfigError {
                key: None,
                origin: Some(origin),
                problem: format!("is not TOML: {}", error.message()),
            });
        }
        self.add_table("", document.get_ref(), &at);
    }

    fn add_table(&mut self, above: &str, table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) {
        for (name, value) in table {
            let key = format!("{above}{}", segment(name.get_ref()));
            let origin_here = origin(name.span().start);
            if let DeValue::Table(table) = value.get_ref() {
                self.add_table(&format!("{key}."), table, origin);
                self.tables.insert(key, origin_here);
            } else {
                self.values.insert(key, Entry { value: plain(value.get_ref()), origin: origin_here });
            }
        }
    }

    fn add_variable(&mut self, name: &OsString, value: &OsString) {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { return };
        let rest = &name[PREFIX.len()..];
        // Other programs use the prefix too: Kubernetes for a service of this name, the tests for the parts that they need.
        let is_meant = |known: &&str| {
            suggest::is_alike(rest, known) || rest.strip_prefix(*known).is_some_and(|r| r.starts_with('_'))
        };
        let of_kubernetes = rest.ends_with("_PORT") || rest.contains("_PORT_") || rest.contains("_SERVICE_");
        if !rest.contains("__") && (of_kubernetes || !TOP.iter().any(is_meant)) {
            return;
        }
        let origin = Origin::Variable(name.to_owned());
        let Some(value) = value.to_str() else {
            let problem = "is not UTF-8".into();
            return self.errors.push(ConfigError { key: None, origin: Some(origin), problem });
        };
        match rest {
            "TOKENS" => self.tokens = Some(value.to_owned()),
            "LOG" => self.add_loose("log.level", value, origin),
            _ => self.add_loose(&rest.to_ascii_lowercase().replace("__", "."), value, origin),
        }
    }

    fn add_loose(&mut self, key: &str, value: &str, origin: Origin) {
        self.values.insert(key.to_owned(), Entry { value: Value::Loose(value.to_owned()), origin });
    }
}

/// A name as a part of a dotted key, quoted where TOML would ask for it.
fn segment(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if bare { name.to_owned() } else { format!("{name:?}") }
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Number(number),
            Err(_) => Value::Other("a number of more than 64 bits"),
        },
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Value::Other("a number that is not one"), Value::Decimal)
        }
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            texts
                .collect::<Option<_>>()
                .map_or(Value::Other("a list of other things than texts"), Value::List)
        }
        DeValue::Table(_) => Value::Other("a table"),
    }
}

/// A file's text, or what is wrong with the file.
pub fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("is longer than {limit} bytes: is it the right file?"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".into())
}
