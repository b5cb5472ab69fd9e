//! `swelter run`: the service.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{Stop, logging};
use crate::config::layers::Layers;
use crate::config::{Config, Plan};
use crate::pipeline::live;

/// Serve the rolling heat index of every city, live
///
/// Readings come from HTTP, WebSocket and the sources of the configuration; results leave by REST, WebSocket and a page. The
/// line "listening on http://ADDRESS" on standard output says where, once readings are accepted. SIGTERM or Ctrl-C ends it.
/// Flags count before environment variables (SWELTER_SERVE__LISTEN=...), these before the file.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The configuration, TOML; --print-config shows all that it can hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address and port to listen on, as in 127.0.0.1:8080; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The folder of the journal and of what must outlive a restart
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Worker threads
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Say "ok", or all that is wrong with the configuration, and end
    #[arg(long, conflicts_with = "print_config")]
    check_config: bool,
    /// Write the configuration in use as TOML, without secrets, and end
    #[arg(long)]
    print_config: bool,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<(), Stop> {
        let config = Config::load(&self.layers()).map_err(Stop::Config)?;
        if self.check_config {
            return print("ok\n");
        }
        if self.print_config {
            return print(&config.to_toml());
        }
        logging::start(&config.log);
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        serve(config.plan, |_| ())
    }

    fn layers(&self) -> Layers {
        let flags = [
            ("serve.listen", "--listen", &self.listen),
            ("data_dir", "--data-dir", &self.data_dir),
            ("workers", "--workers", &self.workers),
        ];
        let given =
            |(key, flag, value): (&str, _, &Option<String>)| Some((key.to_owned(), flag, value.clone()?));
        Layers {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            flags: flags.into_iter().filter_map(given).collect(),
        }
    }
}

/// Runs the service, and says on standard output where; `then` hears the address as a URL after that.
pub(super) fn serve(plan: Plan, then: impl FnOnce(&str)) -> Result<(), Stop> {
    let scheme = if plan.serve.tls.is_some() { "https" } else { "http" };
    let announce = |address: SocketAddr| {
        let url = format!("{scheme}://{address}");
        // Nobody has to read it.
        let _ = print(&format!("listening on {url}\n"));
        then(&url);
    };
    live::run(plan, announce).map_err(|error| Stop::Failed(error.to_string()))
}

fn print(text: &str) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Stop::writing(None, &error))
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
    fn flags_are_the_last_layer() {
        let layers = args("--listen 127.0.0.1:0 --data-dir d --workers 2").unwrap().layers();
        let config = Config::load(&Layers { environment: Vec::new(), ..layers }).unwrap();
        let plan = config.plan;
        assert_eq!(plan.serve.listen, "127.0.0.1:0".parse().unwrap());
        assert_eq!((plan.data_dir, plan.workers), (PathBuf::from("d"), 2));
    }

    #[test]
    fn wrong_flags_are_errors_of_the_configuration() {
        let layers = args("--listen here --workers 0").unwrap().layers();
        let errors = Config::load(&Layers { environment: Vec::new(), ..layers }).unwrap_err().to_string();
        assert!(
            errors.contains("workers (--workers)") && errors.contains("serve.listen (--listen)"),
            "{errors}"
        );
        assert!(args("--check-config --print-config").is_err());
    }
}
