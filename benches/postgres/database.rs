//! A server with an empty schema.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use swelter::internals::sinks::postgres::schema::{SchemaName, SchemaState, run_migration};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

const SETTINGS: [&str; 8] = [
    "--set",
    "fsync=on",
    "--set",
    "shared_buffers=1GB",
    "--set",
    "max_wal_size=4GB",
    "--set",
    "wal_compression=lz4",
];

/// Ends with the bench, its data too.
pub struct Database {
    pub runtime: Runtime,
    pub client: Client,
    pub schema: SchemaName,
    server: Child,
    folder: TempDir,
}

impl Database {
    pub fn start() -> Database {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/postgres");
        let mut command = Command::new(script);
        command.arg("run").arg(folder.path()).args(SETTINGS).stdin(Stdio::null());
        let mut server = command.spawn().unwrap();
        let (log, address) = (folder.path().join("log"), folder.path().join("address"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(&log).is_ok_and(|said| said.contains("ready to accept")) {
            assert_eq!(server.try_wait().unwrap(), None, "the server has ended: see scripts/postgres");
            assert!(Instant::now() < deadline, "the server does not start");
            thread::sleep(Duration::from_millis(100));
        }
        let url = fs::read_to_string(address).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let schema = SchemaName::new("swelter").unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url.trim(), NoTls).await.unwrap();
            tokio::spawn(connection);
            let migration = SchemaState::Missing.migration(&schema).unwrap().unwrap();
            run_migration(&client, &migration).await.unwrap();
            let shard = "set search_path to swelter; insert into shard (shard, generation, nonce) values (0, 1, 'bench')";
            client.batch_execute(shard).await.unwrap();
            client
        });
        Database { runtime, client, schema, server, folder }
    }

    /// CPU time that the server's processes have taken, those that have ended too.
    pub fn cpu_time(&self) -> Duration {
        let parent = self.server.id();
        let [own, _] = cpu_ticks(parent, true).unwrap();
        let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let [ticks, of] = cpu_ticks(pid, false)?;
            (of == u64::from(parent)).then_some(ticks)
        });
        // In hundredths of a second, everywhere on Linux.
        Duration::from_millis((own + children.sum::<u64>()) * 10)
    }

    /// Bytes of WAL that were written.
    pub fn wal_bytes(&self) -> f64 {
        let query = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8";
        self.runtime.block_on(self.client.query_one(query, &[])).unwrap().get(0)
    }
}

/// CPU time of a process in ticks, with its children that have ended or without, and its parent.
fn cpu_ticks(pid: u32, with_children: bool) -> Option<[u64; 2]> {
    let text = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    // The name, in parentheses, may hold spaces.
    let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
    let number = |at: usize| fields[at].parse::<u64>().unwrap();
    let times = if with_children { 11..15 } else { 11..13 };
    Some([times.map(number).sum(), number(1)])
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        // The folder is removed once no process writes to it any more.
        let _ = &self.folder;
    }
}
