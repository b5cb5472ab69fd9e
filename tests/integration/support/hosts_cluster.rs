//! Processes of a cluster that find each other by a hosts file. A test starts each by itself.

use std::net::TcpStream;
use std::path::PathBuf;

use tempfile::TempDir;

use super::ports::free_ports;
use super::process::{ServiceBuilder, ServiceProcess};
use super::wait::wait_for;

/// The variable of the secret of a cluster.
pub const CLUSTER_SECRET: &str = "SWELTER_CLUSTER__SECRET";

/// A hosts file in a folder of its own.
pub struct HostsFile {
    folder: TempDir,
    processes: usize,
}

impl HostsFile {
    /// With the address of each process.
    pub fn new(addresses: &[String]) -> HostsFile {
        let hosts = HostsFile { folder: tempfile::tempdir().unwrap(), processes: addresses.len() };
        std::fs::write(hosts.path(), format!("# by process\n{}\n", addresses.join("\n"))).unwrap();
        hosts
    }

    /// With processes on this host.
    pub fn on_ports(ports: &[u16]) -> HostsFile {
        let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        HostsFile::new(&addresses)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// The service as one process of the cluster.
    pub fn process(&self, service: ServiceBuilder, process: usize) -> ServiceBuilder {
        let (processes, process, path) = (self.processes.to_string(), process.to_string(), self.path());
        let file = path.to_str().unwrap();
        service.args(&["--processes", &processes, "--process", &process, "--hosts", file])
    }
}

/// A cluster whose processes have one folder for their data.
pub struct HostsCluster {
    pub data: TempDir,
    /// The cluster port of each process, free when the cluster was made.
    pub ports: Vec<u16>,
    hosts: HostsFile,
    secret: Option<&'static str>,
}

impl HostsCluster {
    pub fn new(processes: usize) -> HostsCluster {
        let ports = free_ports(processes);
        let hosts = HostsFile::on_ports(&ports);
        HostsCluster { data: tempfile::tempdir().unwrap(), ports, hosts, secret: None }
    }

    /// A cluster of two processes that have a secret.
    pub fn with_secret(secret: &'static str) -> HostsCluster {
        HostsCluster { secret: Some(secret), ..HostsCluster::new(2) }
    }

    /// A process that is not started yet.
    pub fn process(&self, process: usize, config: &str) -> ServiceBuilder {
        self.process_by(&self.hosts, process, config)
    }

    /// A process with a hosts file of its own, for example with the ports of proxies.
    pub fn process_by(&self, hosts: &HostsFile, process: usize, config: &str) -> ServiceBuilder {
        let service = hosts.process(ServiceBuilder::new(config).data(self.data.path()), process);
        match self.secret {
            Some(secret) => service.env(CLUSTER_SECRET, secret),
            None => service,
        }
    }

    /// Starts a process and waits for nothing.
    pub fn start(&self, process: usize, config: &str) -> ServiceProcess {
        self.process(process, config).spawn()
    }

    /// A connection to a process, once it listens for the others.
    pub fn connect_to(&self, process: usize) -> TcpStream {
        wait_for("its port", || TcpStream::connect(("127.0.0.1", self.ports[process])).ok())
    }
}

/// Sends SIGTERM to the first process; both end with 0.
pub fn terminate_together([mut asked, mut other]: [ServiceProcess; 2]) {
    asked.send_terminate();
    let codes = [&mut asked, &mut other].map(|process| process.wait_for_exit().code());
    assert_eq!(codes, [Some(0); 2], "{}", asked.log());
}
