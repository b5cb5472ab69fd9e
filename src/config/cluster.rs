//! The keys of a cluster: its processes, their addresses, TLS and the secret.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::cluster_secret::{ClusterSecretKind, cluster_secret_kind};
use super::config_reader::ConfigReader;
use super::layers::read_text_file;
use super::plan::{ClusterConfig, ClusterTlsPlan, ServicePlan, StartMode};

/// The maximum number of processes: the set of those that watch a city is one 64-bit word.
const MAX_PROCESSES: i64 = 64;
const MAX_HOSTS_BYTES: u64 = 64 * 1024;

pub(super) fn read_cluster(keys: &mut ConfigReader) -> ClusterConfig {
    let processes: usize = keys.read_integer("cluster.processes", 1..=MAX_PROCESSES);
    let key = "cluster.process";
    let process_text = Some(keys.read_scalar(key)).filter(|process_text| !process_text.is_empty());
    let process = process_text
        .as_ref()
        .and_then(|process_text| process_text.parse().ok())
        .filter(|process| *process < processes);
    if process_text.is_some() && process.is_none() && keys.is_valid("cluster.processes") {
        keys.add_error(key, format!("is not one of {processes} processes: they are counted from 0"));
    }
    let hosts = keys.read_optional_text("cluster.hosts").map(PathBuf::from);
    let hosts = hosts.map_or(Ok(Vec::new()), |path| read_hosts(&path, processes));
    let hosts = hosts.unwrap_or_else(|problem| {
        keys.add_error("cluster.hosts", problem);
        Vec::new()
    });
    let spans_hosts = process.is_some() && !hosts.iter().take(processes).all(|host| is_loopback(host));
    ClusterConfig {
        processes,
        process,
        hosts,
        spans_hosts,
        secret: read_cluster_secret(keys, spans_hosts),
        tls: read_cluster_tls(keys),
        start_mode: match keys.read_one_of("cluster.start", &["claim", "takeover", "standby"]).as_deref() {
            Some("takeover") => StartMode::Takeover,
            Some("standby") => StartMode::Standby,
            _ => StartMode::Claim,
        },
        standby_after: keys.read_wall_duration("cluster.standby_after", "3s", "10m"),
        connect_time: keys.read_wall_duration("cluster.connect_time", "1s", "10m"),
        peer_timeout: keys.read_wall_duration("cluster.peer_timeout", "1s", "10m"),
    }
}

/// Reads the secret of the cluster. Between hosts it must be a generated one, which cannot be
/// guessed.
fn read_cluster_secret(keys: &mut ConfigReader, spans_hosts: bool) -> Option<String> {
    const SECRET_HINT: &str =
        "run `swelter cluster secret` and give all processes what it prints as SWELTER_CLUSTER__SECRET";
    let key = "cluster.secret";
    let secret =
        keys.read_secret(key).map(|secret| secret.trim().to_owned()).filter(|secret| !secret.is_empty());
    match secret.as_deref().map(cluster_secret_kind) {
        Some(ClusterSecretKind::Mistyped) => {
            keys.add_error(
                key,
                "differs from what `swelter cluster secret` prints: part of it is missing or changed; copy it again",
            );
        }
        Some(ClusterSecretKind::Chosen) if spans_hosts => keys.add_error(
            key,
            format!("was not made by `swelter cluster secret`, so it may be guessed, and cluster.hosts are not all on this host: {SECRET_HINT}"),
        ),
        None if spans_hosts => keys.add_error(
            key,
            format!(
                "is empty, and cluster.hosts are not all on this host, so any process that reaches them could join: {SECRET_HINT}"
            ),
        ),
        Some(ClusterSecretKind::Chosen | ClusterSecretKind::Generated) | None => {}
    }
    secret
}

fn read_cluster_tls(keys: &mut ConfigReader) -> Option<ClusterTlsPlan> {
    let names = ["cluster.tls.certificate", "cluster.tls.key", "cluster.tls.ca"];
    let paths = names.map(|name| {
        let path = keys.read_optional_text(name).map(PathBuf::from);
        if let Some(path) = path.as_deref().filter(|path| !path.is_file()) {
            keys.add_error(name, format!("{} is not a file", path.display()));
        }
        path
    });
    let configured = names.iter().zip(&paths).find(|(_, path)| path.is_some()).map(|(name, _)| *name);
    for (name, _) in names.iter().zip(&paths).filter(|(_, path)| path.is_none()) {
        if let Some(configured) = configured {
            keys.add_error(
                name,
                format!("is empty, but {configured} is given: name all three files, or none"),
            );
        }
    }
    match paths {
        [Some(certificate), Some(key), Some(ca)] => Some(ClusterTlsPlan { certificate, key, ca }),
        _ => None,
    }
}

/// The host of a `host:port`, an IPv6 address without its brackets.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a `host:port` is a loopback address.
fn is_loopback(address: &str) -> bool {
    let host = host_of(address);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn read_hosts(path: &Path, processes: usize) -> Result<Vec<String>, String> {
    let text =
        read_text_file(path, MAX_HOSTS_BYTES).map_err(|problem| format!("{} {problem}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let hosts: Vec<String> = lines.map(str::to_owned).collect();
    let is_address = |host: &String| {
        host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
    };
    if let Some(invalid) = hosts.iter().find(|host| !is_address(host)) {
        return Err(format!("{} holds {invalid:?}: write host:port on each line", path.display()));
    }
    if hosts.len() < processes {
        let path = path.display();
        return Err(format!(
            "{path} names {} processes of {processes}: write host:port of each",
            hosts.len()
        ));
    }
    Ok(hosts)
}

/// Warnings about settings that are allowed between hosts, but are rarely intended.
pub(super) fn cluster_warnings(plan: &ServicePlan) -> Option<String> {
    let is_open = plan.cluster.spans_hosts && plan.cluster.tls.is_none();
    is_open.then(|| {
        "cluster.hosts are not all on this host and cluster.tls is not set: others on the network can read and change the traffic between the processes, unless it is encrypted as by WireGuard; see docs/cluster.md"
            .to_owned()
    })
}
