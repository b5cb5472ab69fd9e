//! The layers of the configuration: shipped defaults, a file, the environment, flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::suggest;
use super::value_origin::ValueOrigin;

/// The layers above the shipped defaults.
#[derive(Clone, Debug, Default)]
pub struct ConfigLayers {
    pub file: Option<PathBuf>,
    /// Variables of other programs in it are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// A key, the flag as the user writes it, and its value; later ones win.
    pub flags: Vec<(String, &'static str, String)>,
}

/// An unparsed value of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigValue {
    /// Of a variable or flag: it takes the type of its key.
    Untyped(String),
    Text(String),
    Number(i64),
    Decimal(f64),
    Bool(bool),
    List(Vec<String>),
    /// A date or time without quotes.
    Time(String),
    /// A type that no key has, by its name.
    Other(&'static str),
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigValue::Untyped(text) | ConfigValue::Text(text) => write!(f, "{text:?}"),
            ConfigValue::Number(number) => write!(f, "{number}"),
            ConfigValue::Decimal(number) => write!(f, "{number}"),
            ConfigValue::Bool(value) => write!(f, "{value}"),
            ConfigValue::List(_) => f.write_str("a list"),
            ConfigValue::Time(text) => f.write_str(text),
            ConfigValue::Other(what) => f.write_str(what),
        }
    }
}

#[derive(Clone, Debug)]
pub struct LayerEntry {
    pub value: ConfigValue,
    pub origin: ValueOrigin,
}

/// A table of a list of tables.
#[derive(Clone, Debug)]
pub struct TableItem {
    pub list: &'static str,
    /// Its `name`, or the default: the topic or the type of a source.
    pub name: String,
    /// The prefix of its keys, such as `sources.readings`.
    pub key: String,
}

impl TableItem {
    /// The name of a key within this table.
    pub fn field_name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.key)?.strip_prefix('.')
    }
}

/// All layers, merged: values by their dotted keys, and the named tables.
#[derive(Debug, Default)]
pub struct MergedLayers {
    pub values: BTreeMap<String, LayerEntry>,
    pub tables: BTreeMap<String, ValueOrigin>,
    /// In the order of the configuration.
    pub items: Vec<TableItem>,
    /// Warnings about variables that nothing reads.
    pub warnings: Vec<String>,
    /// The value of `SWELTER_TOKENS`. It is not a key, so that it is never shown.
    pub tokens: Option<String>,
    pub errors: Vec<ConfigError>,
}

/// The maximum size of a configuration file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

const VARIABLE_PREFIX: &str = "SWELTER_";

/// The keys that are lists of tables.
const LIST_TABLES: [&str; 2] = ["sources", "sinks"];

/// A table in an item whose keys are not swelter's, and contain dots.
const PROPERTIES_TABLE: &str = "properties";

/// The prefixes of variables beside the keys of the shipped defaults.
const OTHER_VARIABLE_PREFIXES: [&str; 4] = ["TOKENS", "LOG", "SOURCES", "SINKS"];

/// Variables of tests and tools, which the service ignores. Those that end with `_` are prefixes.
const TOOL_VARIABLES: [&str; 10] = [
    "KAFKA",
    "KAFKA_LIB",
    "KAFKA_JAVA",
    "PANIC_POINT",
    "KILLS",
    "KILLS_SEED",
    "TEST_",
    "TRIAL_",
    "RECOVERY_",
    "FUZZ_",
];

/// The program that a variable belongs to.
enum VariableOwner {
    Swelter,
    /// Another program that uses the same prefix.
    OtherProgram,
    /// No known program.
    Unknown,
}

impl MergedLayers {
    pub fn merge_layers(shipped: &str, layers: &ConfigLayers) -> MergedLayers {
        let mut entries = MergedLayers::default();
        entries.add_toml(shipped, &|_| ValueOrigin::ShippedDefault);
        if let Some(path) = &layers.file {
            entries.add_file(path);
        }
        for (name, value) in &layers.environment {
            entries.add_variable(name, value);
        }
        for (key, flag, value) in &layers.flags {
            entries.add_untyped(key, value, ValueOrigin::Flag(flag));
        }
        entries
    }

    fn add_file(&mut self, path: &Path) {
        match read_text_file(path, MAX_FILE_BYTES) {
            Ok(text) => self.add_toml(&text, &|line| ValueOrigin::File { path: path.to_path_buf(), line }),
            Err(problem) => self.errors.push(ConfigError {
                key: None,
                origin: Some(ValueOrigin::Flag("--config")),
                problem: format!("{} {problem}", path.display()),
            }),
        }
    }

    fn add_toml(&mut self, text: &str, origin: &dyn Fn(usize) -> ValueOrigin) {
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
        for (name, value) in document.get_ref() {
            match LIST_TABLES.into_iter().find(|list| *list == name.get_ref()) {
                Some(list) => self.add_list(list, value.get_ref(), at(name.span().start), &at),
                None => {
                    self.add_value(key_segment(name.get_ref()), value.get_ref(), at(name.span().start), &at)
                }
            }
        }
    }

    fn add_value(
        &mut self,
        key: String,
        value: &DeValue<'_>,
        origin: ValueOrigin,
        at: &dyn Fn(usize) -> ValueOrigin,
    ) {
        if let DeValue::Table(table) = value {
            for (name, value) in table {
                let key = format!("{key}.{}", key_segment(name.get_ref()));
                self.add_value(key, value.get_ref(), at(name.span().start), at);
            }
            self.tables.insert(key, origin);
        } else {
            self.values.insert(key, LayerEntry { value: to_config_value(value), origin });
        }
    }

    fn add_list(
        &mut self,
        list: &'static str,
        value: &DeValue<'_>,
        origin: ValueOrigin,
        at: &dyn Fn(usize) -> ValueOrigin,
    ) {
        let DeValue::Array(items) = value else {
            let problem = format!("is a list of tables: write [[{list}]] above the keys of each");
            return self.errors.push(ConfigError { key: Some(list.into()), origin: Some(origin), problem });
        };
        for (i, item) in items.iter().enumerate() {
            let origin = at(item.span().start);
            match item.get_ref() {
                DeValue::Table(table) => self.add_item(list, i + 1, table, origin, at),
                _ => {
                    let problem =
                        format!("holds a value that is not a table: write [[{list}]] and keys below");
                    self.errors.push(ConfigError { key: Some(list.into()), origin: Some(origin), problem });
                }
            }
        }
    }

    fn add_item(
        &mut self,
        list: &'static str,
        number: usize,
        table: &DeTable<'_>,
        origin: ValueOrigin,
        at: &dyn Fn(usize) -> ValueOrigin,
    ) {
        let text = |key: &str| table.get(key).and_then(|value| value.get_ref().as_str()).map(str::to_owned);
        let topic =
            || text("topic").filter(|_| list == "sources" && text("type").as_deref() == Some("kafka"));
        let name = text("name").or_else(topic).or_else(|| text("type")).unwrap_or_else(|| number.to_string());
        let key = format!("{list}.{}", key_segment(&name));
        if self.tables.contains_key(&key) {
            let problem = "is used twice: give one another name, as in name = \"second\"".into();
            return self.errors.push(ConfigError { key: Some(key), origin: Some(origin), problem });
        }
        for (name, value) in table {
            let (name, origin) = (name.get_ref(), at(name.span().start));
            match value.get_ref() {
                DeValue::Table(properties) if name == PROPERTIES_TABLE => {
                    self.add_properties(&key, "", properties, at)
                }
                value => self.add_value(format!("{key}.{}", key_segment(name)), value, origin, at),
            }
        }
        self.tables.insert(key.clone(), origin);
        self.items.push(TableItem { list, name, key });
    }

    /// TOML parses the dots of an unquoted name as nested tables.
    fn add_properties(
        &mut self,
        item: &str,
        above: &str,
        table: &DeTable<'_>,
        at: &dyn Fn(usize) -> ValueOrigin,
    ) {
        for (name, value) in table {
            let (full, origin) = (format!("{above}{}", name.get_ref()), at(name.span().start));
            match value.get_ref() {
                DeValue::Table(table) => self.add_properties(item, &format!("{full}."), table, at),
                value => {
                    let value = to_config_value(value);
                    self.values.insert(property_key(item, &full), LayerEntry { value, origin });
                }
            }
        }
    }

    fn add_variable(&mut self, name: &OsString, value: &OsString) {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else { return };
        let rest = &name[VARIABLE_PREFIX.len()..];
        match self.variable_owner(rest, value) {
            VariableOwner::Swelter => {}
            VariableOwner::OtherProgram => return,
            VariableOwner::Unknown => {
                return self.warnings.push(format!(
                    "{name} is not a variable of swelter and is ignored: variables are named after the keys of --print-config, as in SWELTER_SERVE__LISTEN"
                ));
            }
        }
        let origin = ValueOrigin::Variable(name.to_owned());
        let Some(value) = value.to_str() else {
            let problem = "is not UTF-8".into();
            return self.errors.push(ConfigError { key: None, origin: Some(origin), problem });
        };
        match rest {
            "TOKENS" => self.tokens = Some(value.to_owned()),
            "LOG" => self.add_untyped("log.level", value, origin),
            _ => self.add_untyped(&rest.to_ascii_lowercase().replace("__", "."), value, origin),
        }
    }

    /// The owner of a variable, by its name without the prefix. A name similar to a key is
    /// swelter's, and is then reported as unknown.
    fn variable_owner(&self, rest: &str, value: &OsString) -> VariableOwner {
        if rest.contains("__") {
            return VariableOwner::Swelter;
        }
        // Kubernetes sets such variables for each service, also for one named swelter.
        let is_address = value.to_str().is_some_and(|value| value.contains("://"));
        let of_kubernetes = rest.ends_with("_PORT") || rest.contains("PORT_") || rest.contains("SERVICE_");
        let is_tool = |tool: &&str| rest == *tool || (tool.ends_with('_') && rest.starts_with(*tool));
        if of_kubernetes || (rest == "PORT" && is_address) || TOOL_VARIABLES.iter().any(is_tool) {
            return VariableOwner::OtherProgram;
        }
        let tops = self.values.keys().filter_map(|key| key.split('.').next()).map(str::to_ascii_uppercase);
        let mut tops = tops.chain(OTHER_VARIABLE_PREFIXES.map(str::to_owned));
        let is_below = |top: &str| rest.strip_prefix(top).is_some_and(|r| r.starts_with('_'));
        let is_of_table = tops.any(|top| suggest::may_be_misspelling(rest, &top) || is_below(&top));
        let name = rest.to_ascii_lowercase();
        let of_key =
            |key: &String| suggest::is_one_slip_away(&name, key.rsplit('.').next().unwrap_or_default());
        match is_of_table || name == "port" || self.values.keys().any(of_key) {
            true => VariableOwner::Swelter,
            false => VariableOwner::Unknown,
        }
    }

    fn add_untyped(&mut self, key: &str, value: &str, origin: ValueOrigin) {
        let list =
            LIST_TABLES.into_iter().find(|list| key.strip_prefix(list).is_some_and(|r| r.starts_with('.')));
        let in_item = list.and_then(|list| Some((list, key[list.len() + 1..].split_once('.')?)));
        let key = match in_item {
            Some((list, (name, field))) => {
                let item = self.find_or_add_item(list, name, &origin);
                match field.strip_prefix(PROPERTIES_TABLE).and_then(|rest| rest.strip_prefix('.')) {
                    Some(name) => property_key(&item, &name.replace('_', ".")),
                    None => format!("{item}.{field}"),
                }
            }
            None => key.to_owned(),
        };
        self.values.insert(key, LayerEntry { value: ConfigValue::Untyped(value.to_owned()), origin });
    }

    /// Returns the key of the item that a variable or flag names. Adds the item if it does not
    /// exist.
    fn find_or_add_item(&mut self, list: &'static str, name: &str, origin: &ValueOrigin) -> String {
        let spelled = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
        let existing =
            self.items.iter().find(|item| item.list == list && spelled(&item.name) == spelled(name));
        if let Some(item) = existing {
            return item.key.clone();
        }
        let key = format!("{list}.{}", key_segment(name));
        self.tables.insert(key.clone(), origin.clone());
        self.items.push(TableItem { list, name: name.to_owned(), key: key.clone() });
        key
    }
}

/// The key of a property, whose name contains dots.
fn property_key(item: &str, name: &str) -> String {
    format!("{item}.{PROPERTIES_TABLE}.{}", key_segment(name))
}

/// A name as a segment of a dotted key, quoted if TOML requires it.
fn key_segment(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if bare { name.to_owned() } else { format!("{name:?}") }
}

fn to_config_value(value: &DeValue<'_>) -> ConfigValue {
    match value {
        DeValue::String(text) => ConfigValue::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => ConfigValue::Number(number),
            Err(_) => ConfigValue::Other("a number of more than 64 bits"),
        },
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(ConfigValue::Other("a number in an unknown notation"), ConfigValue::Decimal),
        DeValue::Boolean(value) => ConfigValue::Bool(*value),
        DeValue::Datetime(time) => ConfigValue::Time(time.to_string()),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            texts
                .collect::<Option<_>>()
                .map_or(ConfigValue::Other("a list that holds other values than texts"), ConfigValue::List)
        }
        DeValue::Table(_) => ConfigValue::Other("a table"),
    }
}

/// Reads a text file up to a size limit; the error says what is wrong with it.
pub fn read_text_file(path: &Path, limit: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("is longer than {limit} bytes: is it the right file?"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".into())
}
