//! `swelter demo`: the service with generated weather, without a configuration.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;

use clap::Args;

use super::{CliError, logging, run};
use crate::config::Config;
use crate::config::layers::ConfigLayers;
use crate::directory::Directory;
use crate::model::EventTime;
use crate::run::membership::Membership;

/// Serve live cities with generated weather, without any set-up
///
/// A day of history is available at once; late, corrected, withdrawn and a few bad readings follow.
/// Open the printed address in a browser. Ctrl-C ends the demo and removes its data.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// The number of cities, the largest of the world first, at most 34,006
    #[arg(long, value_name = "N", default_value = "1000")]
    cities: String,
    /// The IP address and port to listen on [default: 127.0.0.1:8080, or a free port if that one is
    /// in use]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The heat index formula: nws, lu-romps or rothfusz
    #[arg(long, value_name = "NAME", default_value = "nws")]
    formula: String,
    /// The number of worker threads, 1 to 64
    #[arg(long, value_name = "N", default_value = "1")]
    workers: String,
    /// The seed of the weather: another number makes other weather
    #[arg(long, value_name = "N", default_value = "1")]
    seed: String,
}

const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// The settings of the demo beside its flags.
const DEMO_SETTINGS: [(&str, &str); 9] = [
    ("sources.demo.type", "generator"),
    ("sources.demo.interval", "1m"),
    ("sources.demo.history", "1d"),
    ("sources.demo.late", "0.02"),
    ("sources.demo.corrections", "0.01"),
    ("sources.demo.withdrawals", "0.001"),
    ("sources.demo.duplicates", "0.005"),
    ("sources.demo.invalid", "0.001"),
    ("sources.demo.weather", "plausible"),
];

impl DemoArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        // Removed when the demo ends.
        let folder = tempfile::Builder::new()
            .prefix("swelter-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir();
        let folder =
            folder.map_err(|error| CliError::Failed(format!("no temporary folder can be made: {error}")))?;
        let mut config = self.demo_config(&folder.path().display().to_string()).map_err(CliError::Config)?;
        logging::start_logging(&config.logging, None);
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        let listen = &mut config.plan.serve.listen;
        if self.listen.is_none() && is_address_in_use(*listen) {
            let _ = writeln!(io::stderr(), "{DEFAULT_ADDRESS} is in use: a free port is used instead");
            listen.set_port(0);
        }
        let membership = Membership::alone(&config.plan);
        run::run_service(config.plan, membership, |url| {
            // A failure to print the hint is ignored.
            let _ = io::stderr().write_all(usage_hint(url, current_time()).as_bytes());
        })
    }

    fn demo_config(&self, folder: &str) -> Result<Config, crate::config::ConfigErrors> {
        let flags = [
            ("sources.demo.cities", "--cities", self.cities.as_str()),
            ("serve.listen", "--listen", self.listen.as_deref().unwrap_or(DEFAULT_ADDRESS)),
            ("results.formula", "--formula", &self.formula),
            ("workers", "--workers", &self.workers),
            ("sources.demo.seed", "--seed", &self.seed),
            ("data_dir", "the temporary folder", folder),
        ];
        let settings = DEMO_SETTINGS.into_iter().map(|(key, value)| (key, "the demo", value));
        let flags = settings.chain(flags).map(|(key, flag, value)| (key.to_owned(), flag, value.to_owned()));
        // The demo ignores the configuration of a service, except for the user's logging settings.
        let of_log = |(name, _): &(OsString, OsString)| {
            name == "SWELTER_LOG" || name.to_str().is_some_and(|name| name.starts_with("SWELTER_LOG__"))
        };
        let environment = std::env::vars_os().filter(of_log).collect();
        Config::load(&ConfigLayers { file: None, environment, flags: flags.collect() })
    }
}

fn current_time() -> EventTime {
    EventTime::from_millis(jiff::Timestamp::now().as_millisecond()).unwrap_or(EventTime::MAX)
}

fn is_address_in_use(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Usage hints, with a correction of the first city's newest reading as of `now`.
fn usage_hint(url: &str, now: EventTime) -> String {
    const MINUTE: i64 = 60_000;
    let minute = now.millis() - now.millis().rem_euclid(MINUTE) - 10 * MINUTE;
    let at = EventTime::from_millis(minute).unwrap_or(now);
    let city = Directory::shipped().cities().first();
    let (id, name) = city.map_or((0, ""), |city| (city.id, city.name.as_ref()));
    format!(
        "\nOpen {url}/#city={id} in a browser: the chart of {name}. Then correct one of its readings, and watch it change:\n\n  \
         curl {url}/v1/readings -H 'Content-Type: application/json' \\\n    \
         -d '{{\"city\":\"{id}\",\"reading_at\":\"{at}\",\"temperature\":110,\"humidity\":50}}'\n\n\
         Ctrl-C ends the demo and removes its data.\n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceKind;
    use crate::dataflow::heat_index::Formula;

    fn demo(cities: &str) -> DemoArgs {
        let formula = "nws".into();
        DemoArgs { cities: cities.into(), listen: None, formula, workers: "1".into(), seed: "7".into() }
    }

    #[test]
    fn demo_config_has_expected_formula_and_generator() {
        let plan = demo("25").demo_config("/tmp/x").unwrap().plan;
        assert_eq!((plan.formula, plan.serve.listen.to_string()), (Formula::Nws, DEFAULT_ADDRESS.into()));
        assert!(plan.ingest.is_some());
        let [source] = plan.sources.as_slice() else { panic!("{:?}", plan.sources) };
        let SourceKind::Generator(generator) = &source.kind else { panic!("{source:?}") };
        assert_eq!((source.name.as_str(), generator.cities, generator.seed), ("demo", 25, 7));
        assert_eq!(
            [
                generator.late,
                generator.corrections,
                generator.withdrawals,
                generator.duplicates,
                generator.invalid
            ],
            [0.02, 0.01, 0.001, 0.005, 0.001]
        );
    }

    #[test]
    fn cities_flag_refuses_too_many_cities() {
        let errors = demo("40000").demo_config("/tmp/x").unwrap_err().to_string();
        assert!(
            errors.starts_with("sources.demo.cities (--cities): plausible weather has at most"),
            "{errors}"
        );
    }

    #[test]
    fn curl_hint_corrects_an_existing_reading() {
        let now = "2025-11-24T16:03:59.5Z".parse::<EventTime>().unwrap();
        let hint = usage_hint("http://127.0.0.1:8080", now);
        assert!(hint.contains("\"reading_at\":\"2025-11-24T15:53:00Z\""), "{hint}");
        assert!(hint.contains("curl http://127.0.0.1:8080/v1/readings"), "{hint}");
    }

    #[test]
    fn used_port_is_detected() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(is_address_in_use(address));
        drop(listener);
        assert!(!is_address_in_use(address));
    }
}
