//! The whole configuration: loading it, its warnings, and its TOML output.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::build;
use super::cluster;
use super::config_reader::{ConfigReader, Setting};
use super::error::ConfigErrors;
use super::kafka;
use super::layers::{ConfigLayers, MergedLayers, TableItem};
use super::plan::{LoggingPlan, ServicePlan};
use super::postgres;
use super::value_origin::ValueOrigin;
use crate::model::printable::printable;

/// All keys, with their defaults.
pub(super) const SHIPPED_DEFAULTS: &str = include_str!("../../config/default.toml");

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Config {
    pub plan: ServicePlan,
    pub logging: LoggingPlan,
    pub(super) settings: BTreeMap<String, Setting>,
    items: Vec<TableItem>,
    /// Warnings about variables that nothing reads.
    variable_warnings: Vec<String>,
}

impl Config {
    /// Merges and checks the layers.
    ///
    /// # Errors
    ///
    /// All errors in all layers.
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

    /// Warnings about settings that are allowed, but rarely intended.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.variable_warnings.clone();
        warnings.extend(kafka::kafka_warnings(&self.plan));
        warnings.extend(postgres::postgres_warnings(&self.plan));
        warnings.extend(cluster::cluster_warnings(&self.plan));
        let serve = &self.plan.serve;
        let address = serve.listen;
        if address.ip().to_canonical().is_loopback() {
            return warnings;
        }
        if serve.tokens.is_empty() {
            warnings.push(format!(
                "{address} is not a loopback address and no tokens are set: everybody who reaches it can read everything and post readings; see serve.tokens_file"
            ));
        }
        if serve.tls.is_none() {
            warnings.push(format!(
                "{address} is not a loopback address and TLS is not set: others on the network can read and change the traffic, tokens included; see serve.tls, or use a proxy with TLS"
            ));
        }
        warnings
    }

    /// The values in use as a configuration file, each with its origin unless it is the default.
    /// Secrets are left out.
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

/// Prefixes of the keys that may differ between processes. The mode of the start may not: it
/// decides which messages the processes exchange.
const PROCESS_KEYS: [&str; 6] = ["serve.", "log.", "cluster.", "data_dir", "dead_letters.", "places"];
const COMMON_START_KEY: &str = "cluster.start";

/// The settings that all processes of a cluster must have in common. Secrets are left out.
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
