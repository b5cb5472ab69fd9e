//! What is configured: from the shipped defaults, a file, the environment and flags.
//!
//! The layers are merged by key, with where each value was written ([`layers`]); each key's type and range stand where it
//! is read (`build`), and what is never read does not exist (`keys`). So all errors are found at once, and name their
//! place.

mod build;
mod cluster;
mod cluster_secret;
mod config_reader;
mod kafka;
pub mod layers;
mod plan;
mod read_options;
mod sinks;
mod sources;
mod suggest;
mod tokens;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

pub use self::cluster::host_of;
pub use self::cluster_secret::make_cluster_secret;
use self::config_reader::{ConfigReader, Setting};
use self::layers::{ConfigLayers, MergedLayers, TableItem, ValueOrigin};
pub use self::plan::{
    CheckpointPlan, ClusterConfig, ClusterTlsPlan, DataDirMode, FileSourcePlan, GeneratorSourcePlan,
    IngestPlan, LoggingFormat, LoggingPlan, PipelineLimits, ServicePlan, SinkKind, SinkPlan, SourceKind,
    SourcePlan, StartMode,
};
#[cfg(any(test, fuzzing))]
pub(crate) use self::tokens::tokens_from_variable;
use crate::model::printable::printable;

/// All keys, with their defaults.
const SHIPPED_DEFAULTS: &str = include_str!("../../config/default.toml");

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Config {
    pub plan: ServicePlan,
    pub logging: LoggingPlan,
    settings: BTreeMap<String, Setting>,
    items: Vec<TableItem>,
    /// Of variables that nothing reads.
    variable_warnings: Vec<String>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ConfigError::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConfigError {
    /// Unless it is about all of a place.
    pub key: Option<String>,
    /// Unless it was written nowhere.
    pub origin: Option<ValueOrigin>,
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, &self.origin) {
            (Some(key), Some(origin)) => write!(f, "{key} ({origin}): {}", self.problem),
            (Some(key), None) => write!(f, "{key}: {}", self.problem),
            (None, Some(origin)) => write!(f, "{origin}: {}", self.problem),
            (None, None) => f.write_str(&self.problem),
        }
    }
}

impl Config {
    /// Merges and checks.
    ///
    /// # Errors
    ///
    /// All that is wrong, in every layer.
    pub fn load(layers: &ConfigLayers) -> Result<Config, ConfigErrors> {
        let mut keys = ConfigReader::new(MergedLayers::merge_layers(SHIPPED_DEFAULTS, layers));
        let (plan, log) = build::build_plan(&mut keys);
        let variable_warnings = keys.take_warnings();
        let items = ["sources", "sinks"].into_iter().flat_map(|list| keys.list_items(list)).collect();
        let settings = keys.finish().map_err(ConfigErrors)?;
        match plan {
            Some(mut plan) => {
                plan.common_settings = common_settings(&settings);
                Ok(Config { plan, logging: log, settings, items, variable_warnings })
            }
            None => Err(ConfigErrors(Vec::new())),
        }
    }

    /// What is allowed and yet rarely meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.variable_warnings.clone();
        warnings.extend(kafka::kafka_warnings(&self.plan));
        warnings.extend(cluster::cluster_warnings(&self.plan));
        let serve = &self.plan.serve;
        let address = serve.listen;
        if address.ip().to_canonical().is_loopback() {
            return warnings;
        }
        if serve.tokens.is_empty() {
            warnings.push(format!(
                "{address} is not a loopback address and there are no tokens: everybody who reaches it can read everything \
                 and post readings; see serve.tokens_file"
            ));
        }
        if serve.tls.is_none() {
            warnings.push(format!(
                "{address} is not a loopback address and there is no TLS: what is sent can be read and changed on its \
                 way, tokens too; see serve.tls, or let a proxy do it"
            ));
        }
        warnings
    }

    /// The values in use, as a configuration file; each that is not the default says where it comes from. Secrets are left out.
    pub fn to_toml(&self) -> String {
        let (mut top, mut tables) = (String::new(), BTreeMap::<&str, String>::new());
        let in_item = |key: &str| self.items.iter().any(|item| item.field_name(key).is_some());
        for (key, setting) in self.settings.iter().filter(|(key, _)| !in_item(key)) {
            let (text, name) = match key.rsplit_once('.') {
                Some((table, name)) => (tables.entry(table).or_default(), name),
                None => (&mut top, key.as_str()),
            };
            setting.write_toml(name, text);
        }
        for (table, text) in tables {
            let _ = write!(top, "\n[{table}]\n{text}");
        }
        for item in &self.items {
            let _ = writeln!(top, "\n[[{}]]", item.list);
            let fields =
                self.settings.iter().filter_map(|(key, setting)| Some((item.field_name(key)?, setting)));
            let (first, rest): (Vec<_>, Vec<_>) =
                fields.partition(|(name, _)| ["name", "type"].contains(name));
            for (name, setting) in first.into_iter().chain(rest) {
                setting.write_toml(name, &mut top);
            }
        }
        top
    }
}

/// Keys of what is a process's own; but for how a cluster starts, which decides what its processes tell each other.
const PROCESS_KEYS: [&str; 6] = ["serve.", "log.", "cluster.", "data_dir", "dead_letters.", "places"];
const COMMON_START_KEY: &str = "cluster.start";

/// What the processes of a cluster must have in common. Secrets are left out.
fn common_settings(settings: &BTreeMap<String, Setting>) -> BTreeMap<String, String> {
    let is_own = |key: &str| key != COMMON_START_KEY && PROCESS_KEYS.iter().any(|own| key.starts_with(own));
    let common = settings.iter().filter(|(key, _)| !is_own(key));
    common.map(|(key, setting)| (key.clone(), setting.toml.clone())).collect()
}

impl Setting {
    fn write_toml(&self, name: &str, text: &mut String) {
        let Setting { toml, origin, is_secret } = self;
        let _ = match (origin, is_secret) {
            (ValueOrigin::ShippedDefault, true) => Ok(()),
            (origin, true) => {
                writeln!(text, "# {name} is secret and not shown: {}", printable(&origin.to_string()))
            }
            (ValueOrigin::ShippedDefault, false) => writeln!(text, "{name} = {toml}"),
            (origin, false) => writeln!(text, "{name} = {toml}  # {}", printable(&origin.to_string())),
        };
    }
}
