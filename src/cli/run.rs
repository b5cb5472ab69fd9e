//! `swelter run`: the service.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{CliError, logging, unused_data_dir_error};
use crate::cluster::supervisor::{self, SupervisorError, SupervisorLink, SupervisorPlan};
use crate::config::layers::ConfigLayers;
use crate::config::{ClusterConfig, Config, ConfigError, ConfigErrors, ServicePlan, make_cluster_secret};
use crate::run::membership::Membership;
use crate::run::permissions::{restrict_new_files, share_with_group, warn_where_open};
use crate::run::process_limits::{LimitError, OpenFiles, check_threads_of, limit_connections};
use crate::run::shutdown::Shutdown;
use crate::run::{service, uses_data_dir};

/// Serve the rolling heat index of every city, live
///
/// Readings come from HTTP, WebSocket and the configured sources; results are served by REST,
/// WebSocket and a web page. Once readings are accepted, standard output has the line "listening on
/// http://ADDRESS". SIGTERM or Ctrl-C ends the service. A flag overrides the environment variable
/// (SWELTER_SERVE__LISTEN=...), and that overrides the configuration file.
///
/// --processes N starts a cluster of N processes on this host. Each serves everything, and prints a
/// line of its own, in the order of their numbers; if one ends, all are started again. With
/// --process I as well, this process is number I of the cluster, and finds the others by --hosts.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The configuration file, TOML; --print-config shows all keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The IP address and port to listen on [default: 127.0.0.1:8080]; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", overrides_with = "listen")]
    listen: Option<String>,
    /// The folder of the journal, checkpoints and dead letters [default: swelter-data]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// The heat index formula: nws, lu-romps or rothfusz [default: nws]. The state holds heat
    /// indexes, not measurements, so a change later needs the readings again (docs/rebuild.md)
    #[arg(long, value_name = "NAME")]
    formula: Option<String>,
    /// A CSV file of cities with the columns id, name, country, latitude, longitude, time_zone;
    /// they are added to the shipped cities, and replace those with the same id
    #[arg(long, value_name = "FILE")]
    places: Option<String>,
    /// The number of worker threads of each process, 1 to 64 [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// The number of processes of the cluster, 1 to 64 [default: 1]
    #[arg(long, value_name = "N")]
    processes: Option<String>,
    /// The number of this process, from 0; without it, all processes run on this host
    #[arg(long, value_name = "I")]
    process: Option<String>,
    /// A file with the address of each process, host:port, one a line in the order of their numbers
    #[arg(long, value_name = "FILE")]
    hosts: Option<String>,
    /// Catch up beside the running generation, then take over from it (Kafka sources only)
    #[arg(long, conflicts_with = "standby")]
    takeover: bool,
    /// Catch up beside the running generation, and take over when its heartbeats stop (Kafka
    /// sources only)
    #[arg(long)]
    standby: bool,
    /// Continue with logs that have another id than those that were read, if their records match,
    /// as for a restored journal or a mirrored topic
    #[arg(long)]
    adopt_logs: bool,
    /// This process is a child of a supervisor on this host
    #[arg(long, hide = true)]
    supervised: bool,
    /// Check the configuration, print "ok" or all errors, and exit
    #[arg(long, conflicts_with = "print_config")]
    check_config: bool,
    /// Print the effective configuration as TOML, without secrets, and exit
    #[arg(long)]
    print_config: bool,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut config = Config::load(&self.config_layers()).map_err(CliError::Config)?;
        config.plan.adopt_logs = self.adopt_logs;
        if let Some(dir) = self.data_dir.as_ref().filter(|_| !uses_data_dir(&config.plan)) {
            return Err(unused_data_dir_error(dir, "a journal"));
        }
        if self.check_config {
            return print_to_stdout("ok\n");
        }
        if self.print_config {
            return print_to_stdout(&config.to_toml());
        }
        let ClusterConfig { processes, process, .. } = config.plan.cluster;
        logging::start_logging(&config.logging, process);
        if process.is_none_or(|process| process == 0) && !self.supervised {
            for warning in config.warnings() {
                tracing::warn!("{warning}");
            }
        }
        match process {
            None if processes > 1 => run_supervisor(config.plan),
            process => match self.join_cluster(&config.plan, process.unwrap_or(0))? {
                Some(membership) => run_service(config.plan, membership, |_| ()),
                None => Ok(()),
            },
        }
    }

    /// Connects this process to the others; `None` if a stop was requested before that.
    fn join_cluster(&self, plan: &ServicePlan, process: usize) -> Result<Option<Membership>, CliError> {
        if plan.cluster.processes == 1 {
            return Ok(Some(Membership::alone(plan)));
        }
        if self.supervised {
            let shutdown = Shutdown::default();
            let failed =
                |error| CliError::Failed(format!("the connection to the supervisor cannot be used: {error}"));
            // Before everything else, so that a signal to the whole process group ends this process
            // in order.
            shutdown.catch_signals().map_err(failed)?;
            let stop_request = shutdown.clone();
            let supervised = supervisor::follow_supervisor(
                Arc::new(move || stop_request.request_stop()),
                &shutdown.flag(),
            )
            .map_err(failed)?;
            let Some(SupervisorLink { listener, hosts }) = supervised else { return Ok(None) };
            let membership = member_of_hosts(plan, process, hosts)?;
            return Ok(Some(Membership { listener: Some(listener), shutdown, ..membership }));
        }
        if plan.cluster.hosts.is_empty() {
            let problem = "cluster.hosts is empty: name a file with host:port of each process, one a line";
            return Err(CliError::Usage(problem.into()));
        }
        member_of_hosts(plan, process, plan.cluster.hosts.clone()).map(Some)
    }

    fn config_layers(&self) -> ConfigLayers {
        let start = match (self.takeover, self.standby) {
            (true, _) => Some("takeover".to_owned()),
            (_, true) => Some("standby".to_owned()),
            _ => None,
        };
        let flags = [
            ("cluster.start", if self.takeover { "--takeover" } else { "--standby" }, &start),
            ("serve.listen", "--listen", &self.listen),
            ("data_dir", "--data-dir", &self.data_dir),
            ("results.formula", "--formula", &self.formula),
            ("places", "--places", &self.places),
            ("workers", "--workers", &self.workers),
            ("cluster.processes", "--processes", &self.processes),
            ("cluster.process", "--process", &self.process),
            ("cluster.hosts", "--hosts", &self.hosts),
        ];
        let given_flag =
            |(key, flag, value): (&str, _, &Option<String>)| Some((key.to_owned(), flag, value.clone()?));
        ConfigLayers {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            flags: flags.into_iter().filter_map(given_flag).collect(),
        }
    }
}

/// Unusable files are an error of the configuration, so that a supervisor does not retry.
fn member_of_hosts(plan: &ServicePlan, process: usize, hosts: Vec<String>) -> Result<Membership, CliError> {
    Membership::one_of(plan, process, hosts).map_err(|error| {
        let error = ConfigError { key: None, origin: None, problem: error.to_string() };
        CliError::Config(ConfigErrors(vec![error]))
    })
}

/// Starts a cluster on this host: child processes with this program and its arguments.
fn run_supervisor(mut plan: ServicePlan) -> Result<(), CliError> {
    // The child processes have the same limits, and would refuse them one by one.
    limit_connections(&mut plan).map_err(|error| CliError::Failed(error.to_string()))?;
    let secret =
        plan.cluster.secret.clone().map_or_else(make_cluster_secret, Ok).map_err(CliError::Failed)?;
    let program = supervisor::this_program()
        .map_err(|error| CliError::Failed(format!("the path of this program is unknown: {error}")))?;
    let supervised = SupervisorPlan {
        program,
        processes: plan.cluster.processes,
        arguments: std::env::args_os().skip(1).collect(),
        listen: plan.serve.listen,
        secret,
    };
    let announce = |line: &str| drop(print_to_stdout(&format!("{line}\n")));
    supervisor::run_supervisor(supervised, announce).map_err(|error| match error {
        error @ SupervisorError::TakenOver => CliError::TakenOver(error.to_string()),
        error => CliError::Failed(error.to_string()),
    })
}

/// Runs the service. Prints its address to standard output, then calls `then` with it as a URL.
pub(super) fn run_service(
    mut plan: ServicePlan,
    membership: Membership,
    then: impl FnOnce(&str),
) -> Result<(), CliError> {
    let refused = |error: LimitError| CliError::Failed(error.to_string());
    let OpenFiles { limit, reserve, connections } = limit_connections(&mut plan).map_err(refused)?;
    check_threads_of(&plan).map_err(refused)?;
    tracing::info!(
        connections,
        open_files = limit,
        reserved = reserve,
        "the process serves at most this number of connections"
    );
    restrict_new_files(plan.data_dir_mode);
    warn_where_open(&plan.data_dir, plan.data_dir_mode);
    let _shared = share_with_group(&plan.data_dir, plan.data_dir_mode);
    let scheme = if plan.serve.tls.is_some() { "https" } else { "http" };
    let announce = |address: SocketAddr| {
        let url = format!("{scheme}://{address}");
        // A failure to print is ignored: the line is optional.
        let _ = print_to_stdout(&format!("listening on {url}\n"));
        then(&url);
    };
    service::run(plan, membership, announce).map_err(|error| match error {
        error if error.is_takeover() => CliError::TakenOver(error.to_string()),
        error => CliError::Failed(error.to_string()),
    })
}

fn print_to_stdout(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| CliError::write_error(None, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: RunArgs,
    }

    fn args(line: &str) -> Result<RunArgs, clap::Error> {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        <Command as clap::Parser>::try_parse_from(words).map(|command| command.args)
    }

    #[test]
    fn flags_override_other_config_layers() {
        let layers =
            args("--listen 127.0.0.1:0 --data-dir d --workers 2 --formula lu-romps").unwrap().config_layers();
        let config = Config::load(&ConfigLayers { environment: Vec::new(), ..layers }).unwrap();
        let plan = config.plan;
        assert_eq!(plan.serve.listen, "127.0.0.1:0".parse().unwrap());
        assert_eq!((plan.data_dir, plan.workers), (PathBuf::from("d"), 2));
        assert_eq!(plan.formula.name(), "lu-romps");
    }

    #[test]
    fn invalid_flags_are_config_errors() {
        let layers = args("--listen here --workers 0").unwrap().config_layers();
        let errors =
            Config::load(&ConfigLayers { environment: Vec::new(), ..layers }).unwrap_err().to_string();
        assert!(
            errors.contains("workers (--workers)") && errors.contains("serve.listen (--listen)"),
            "{errors}"
        );
        assert!(args("--check-config --print-config").is_err());
    }
}
