//! The URL of a database in the configuration.

use std::net::IpAddr;

use tokio_postgres::config::{Config, Host, TargetSessionAttrs};

use super::passfile::read_password;
use super::plan::{DatabaseAccess, Password, PostgresDatabase, PostgresTls, TlsMode};

/// A database as its URL names it.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseUrl {
    pub config: Config,
    /// Hosts, ports and name, without the user.
    pub label: String,
    pub hosts: HostKinds,
}

/// Where the hosts of a URL are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKinds {
    /// All are Unix sockets, which have no TLS.
    UnixSockets,
    /// All are on this host.
    Local,
    /// Some are reached over a network.
    Remote,
}

/// Settings of a URL that are keys of the sink instead.
const OTHER_KEYS: [(&str, &str); 4] = [
    ("sslmode", "tls = { mode = \"verify-full\" } or { mode = \"disable\" }"),
    ("sslrootcert", "tls = { ca = \"..\" }"),
    ("sslnegotiation", "nothing: TLS is negotiated as libpq does by default"),
    ("passfile", "passfile = \"..\""),
];

/// Parses a URL. Problems never contain a part of it: it may hold a password.
///
/// # Errors
///
/// What to write instead.
pub fn parse_database_url(url: &str) -> Result<DatabaseUrl, String> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(
            "is not a URL of PostgreSQL: write it as in postgres://swelter@db.example:5432/weather".into()
        );
    }
    for (key, instead) in OTHER_KEYS {
        if url.contains(&format!("?{key}=")) || url.contains(&format!("&{key}=")) {
            return Err(format!("holds {key}: write {instead}"));
        }
    }
    // The parser's own text would show a part of the URL.
    let config: Config = url.parse().map_err(|_| {
        "is not a URL of PostgreSQL, or has a setting that is not known: write it as in \
         postgres://swelter@db.example:5432/weather?connect_timeout=5"
    })?;
    if config.get_password().is_some() {
        return Err("holds a password: write password or passfile instead, which are never shown".into());
    }
    if config.get_hosts().is_empty() {
        return Err("names no host: write it as in postgres://swelter@db.example:5432/weather, or \
                    postgres:///weather?host=/run/postgresql for a Unix socket"
            .into());
    }
    if config.get_user().is_none() || config.get_dbname().is_none() {
        return Err(
            "names no user or no database: write it as in postgres://swelter@db.example:5432/weather".into(),
        );
    }
    if !matches!(config.get_target_session_attrs(), TargetSessionAttrs::Any | TargetSessionAttrs::ReadWrite) {
        return Err("asks for a server that takes no writes: leave target_session_attrs out".into());
    }
    let ports = config.get_ports();
    if ports.len() > 1 && ports.len() != config.get_hosts().len() {
        return Err("has more ports than hosts, or fewer: write a port for each host, or one for all".into());
    }
    Ok(DatabaseUrl { label: label_of(&config), hosts: HostKinds::of(&config), config })
}

impl DatabaseAccess {
    /// The database of a URL. Problems never contain a part of the URL, or a password.
    ///
    /// # Errors
    ///
    /// If the URL, its password or its encryption cannot be used; the text says what to write.
    pub fn database(&self, url: &str) -> Result<PostgresDatabase, String> {
        let DatabaseUrl { config, label, hosts } = parse_database_url(url)?;
        let tls = match (self.tls, hosts) {
            (Some(TlsMode::VerifyFull), HostKinds::UnixSockets) => {
                return Err(
                    "is a Unix socket, which has no TLS: leave tls.mode out, or write tls.mode = \"disable\""
                        .into(),
                );
            }
            (Some(TlsMode::Disable), _) | (None, HostKinds::UnixSockets) => PostgresTls::Disable,
            (None, HostKinds::Local) if self.ca.is_none() => PostgresTls::Disable,
            (Some(TlsMode::VerifyFull), _) | (None, HostKinds::Local | HostKinds::Remote) => {
                PostgresTls::VerifyFull { ca: self.ca.clone() }
            }
        };
        if let Password::File(path) = &self.password {
            read_password(path, &config)?;
        }
        Ok(PostgresDatabase { config, password: self.password.clone(), tls, label })
    }
}

fn label_of(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(i, host)| {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp(name) => format!("{name}:{port}"),
            #[cfg(unix)]
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    format!("{}/{}", hosts.collect::<Vec<_>>().join(","), config.get_dbname().unwrap_or_default())
}

impl HostKinds {
    pub fn of(config: &Config) -> HostKinds {
        let is_socket = |host: &Host| !matches!(host, Host::Tcp(_));
        let is_local = |host: &Host| match host {
            Host::Tcp(name) => {
                name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
            #[cfg(unix)]
            Host::Unix(_) => true,
        };
        let hosts = config.get_hosts();
        let are_addresses_local = config.get_hostaddrs().iter().all(|ip| ip.to_canonical().is_loopback());
        if hosts.iter().all(is_socket) {
            HostKinds::UnixSockets
        } else if hosts.iter().all(is_local) && are_addresses_local {
            HostKinds::Local
        } else {
            HostKinds::Remote
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_urls_name_hosts_and_where_they_are() {
        let parsed = |url: &str| {
            let parsed = parse_database_url(url).unwrap();
            (parsed.label, parsed.hosts)
        };
        assert_eq!(parsed("postgres://u@db.example/w"), ("db.example:5432/w".into(), HostKinds::Remote));
        assert_eq!(parsed("postgresql://u@127.0.0.1:6432/w"), ("127.0.0.1:6432/w".into(), HostKinds::Local));
        assert_eq!(
            parsed("postgres://u@localhost,a:6000/w"),
            ("localhost:5432,a:6000/w".into(), HostKinds::Remote)
        );
        let socket = "postgres://u@/w?host=/run/postgresql";
        assert_eq!(parsed(socket), ("/run/postgresql:5432/w".into(), HostKinds::UnixSockets));
    }

    #[test]
    fn database_urls_that_cannot_be_used_are_refused_unseen() {
        for (url, expected) in [
            ("mysql://u:hunter2@a/b", "is not a URL of PostgreSQL"),
            ("host=a user=u password=hunter2", "is not a URL of PostgreSQL"),
            ("postgres://u:hunter2@a/b", "holds a password"),
            ("postgres://u@a/b?password=hunter2", "holds a password"),
            ("postgres://u:hunter2@a:port/b", "is not a URL of PostgreSQL"),
            ("postgres://u@a/b?sslmode=require", "holds sslmode"),
            ("postgres://u@a/b?target_session_attrs=read-only", "takes no writes"),
            ("postgres://u@a:1,b:2,c/b", "a URL of PostgreSQL"),
            ("postgres:///b", "names no host"),
            ("postgres://a/b", "names no user"),
            ("postgres://u@a", "names no user or no database"),
        ] {
            match parse_database_url(url) {
                Err(problem) => {
                    assert!(problem.contains(expected) && !problem.contains("hunter2"), "{url}: {problem}");
                }
                // A port that is left out is the default one.
                Ok(parsed) => assert_eq!(parsed.label, "a:1,b:2,c:5432/b", "{url}"),
            }
        }
    }
}
