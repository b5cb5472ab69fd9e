//! Processes that speak TLS to each other, with certificates of a CA of the test.

use rcgen::{CertificateParams, date_time_ymd};

use super::authority::CertificateAuthority;
use super::strangers::ConnectionFlood;
use super::*;
use crate::support::{HostsFile, WAIT_TIMEOUT, wait_for};
use crate::trial::proxy::Proxy;

/// A configuration with a certificate for a host, which trusts `ca`.
fn tls_config_for_host(
    authority: &CertificateAuthority,
    host: &str,
    ca: &Path,
    change: impl FnOnce(&mut CertificateParams),
) -> String {
    let files = authority.sign_certificate(host, change);
    tls_config(&files.certificate, &files.key, ca)
}

/// A valid configuration with TLS.
fn valid_tls_config(authority: &CertificateAuthority) -> String {
    tls_config_for_host(authority, "127.0.0.1", &authority.ca_file(), |_| ())
}

fn tls_config(certificate: &Path, key: &Path, ca: &Path) -> String {
    format!("{CONFIG}[cluster.tls]\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n")
}

#[test]
fn tls_cluster_has_same_results_as_plain_one() {
    let authority = CertificateAuthority::new("ours");
    for (processes, workers) in [(2, "1"), (2, "2"), (3, "1")] {
        let said = [CONFIG.to_owned(), valid_tls_config(&authority)].map(|config| {
            let (data, count) = (tempfile::tempdir().unwrap(), processes.to_string());
            let arguments = ["--processes", &count, "--workers", workers];
            let mut program = start_cluster(data.path(), &config, &arguments);
            let addresses = ready_addresses(&mut program, processes);
            for minute in 0..5 {
                post_readings(&addresses, minute);
            }
            let said = wait_for_equal_responses(&addresses, 5 * processes);
            program.terminate();
            said
        });
        assert_eq!(said[0], said[1], "{processes} processes of {workers} workers");
    }
}

/// Process 1 calls process 0 through a proxy, for its link and for the dataflow.
#[test]
fn tls_leaves_no_plain_text_on_either_link() {
    let authority = CertificateAuthority::new("ours");
    for (config, is_plain) in [(CONFIG.to_owned(), true), (valid_tls_config(&authority), false)] {
        let cluster = HostsCluster::with_secret("s3cr3t");
        let proxy = Proxy::recording(cluster.ports[0]);
        let behind_proxy = HostsFile::on_ports(&[proxy.port, cluster.ports[1]]);
        let mut first = cluster.start(0, &config);
        let mut second = cluster.process_by(&behind_proxy, 1, &config).spawn();
        check_results(&both_ready_addresses(&mut first, &mut second));
        let records = proxy.captured_bytes();
        let has =
            |record: &Vec<u8>, text: &str| record.windows(text.len()).any(|part| part == text.as_bytes());
        // Two directions a connection; a connection with only a handshake has no cities.
        let with_cities = records.chunks(2).filter(|ways| ways.iter().any(|way| has(way, "city 7"))).count();
        let with_hello = records.iter().filter(|way| has(way, "swelter cluster")).count();
        let busy = records.chunks(2).filter(|ways| ways.iter().map(Vec::len).sum::<usize>() > 2_000).count();
        assert!(busy >= 2, "both links: {:?}", records.iter().map(Vec::len).collect::<Vec<_>>());
        assert_eq!((with_cities >= 2, with_hello >= 2), (is_plain, is_plain), "{with_cities} {with_hello}");
        terminate_together([first, second]);
    }
}

#[test]
fn tls_refuses_other_certificates_and_plain_text() {
    let (ours, theirs) = (CertificateAuthority::new("ours"), CertificateAuthority::new("theirs"));
    let cluster = HostsCluster::with_secret("s3cr3t");
    let mut first = cluster.start(0, &valid_tls_config(&ours));
    let mut plain = cluster.connect_to(0);
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    std::io::Read::read_to_end(&mut plain, &mut Vec::new()).unwrap();
    drop(plain);
    let plain = "it does not use TLS, and this process has cluster.tls";
    wait_for("the line of the first stranger", || first.log().contains(plain).then_some(()));
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2001, 2, 1);
    };
    for (config, code, expected) in [
        (valid_tls_config(&theirs), 1, "its certificate is not signed by the CA of cluster.tls.ca"),
        (
            tls_config_for_host(&theirs, "127.0.0.1", &ours.ca_file(), |_| ()),
            2,
            "not signed by the CA of cluster.tls.ca",
        ),
        (tls_config_for_host(&ours, "127.0.0.1", &ours.ca_file(), expired), 2, "its certificate has expired"),
        (
            tls_config_for_host(&ours, "example.org", &ours.ca_file(), |_| ()),
            1,
            "its certificate is not valid for its host",
        ),
        (CONFIG.to_owned(), 1, "it uses TLS, and this process has no cluster.tls"),
    ] {
        let (exit_code, log) = cluster.process(1, &config.replace("20s", "2s")).run_to_end();
        assert_eq!(exit_code, Some(code), "{log}");
        assert!(log.lines().last().unwrap().contains(expected), "{expected}: {log}");
    }
    let log = first.log();
    assert!(log.contains("cluster.hosts of process 0 has process 1 at 127.0.0.1"), "{log}");
    let mut second = cluster.start(1, &valid_tls_config(&ours));
    check_results(&both_ready_addresses(&mut first, &mut second));
    terminate_together([second, first]);
}

#[test]
fn tls_caller_of_plain_listener_names_missing_setting() {
    let authority = CertificateAuthority::new("ours");
    let cluster = HostsCluster::new(2);
    let first = cluster.start(0, CONFIG);
    // Not by a connection: of its refusal the log would tell, and then of the next ones only later.
    let listens = format!(":{:04X} 00000000:0000 0A", cluster.ports[0]);
    wait_for("its port", || {
        std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&listens).then_some(())
    });
    let config = valid_tls_config(&authority).replace("20s", "4s");
    let (code, log) = cluster.process(1, &config).run_to_end();
    assert_eq!(code, Some(1));
    assert!(first.log().contains("it uses TLS, and this process has no cluster.tls"), "{}", first.log());
    assert!(log.lines().last().unwrap().contains("in the TLS handshake"), "{log}");
}

#[test]
fn lost_tls_peer_ends_all_soon() {
    let authority = CertificateAuthority::new("ours");
    for (lost, how, expected) in [
        (0, Signal::KILL, "its connection is lost"),
        (1, Signal::KILL, "its connection is lost"),
        (1, Signal::STOP, "it has sent no heartbeat"),
    ] {
        let config = valid_tls_config(&authority);
        // Only the process that is stopped is lost by its silence.
        let config = if how == Signal::STOP { config.replace("5m", "2s") } else { config };
        check_lost_peer(&config, lost, how, expected);
    }
}

#[test]
fn stalled_tls_handshakes_do_not_delay_start_and_time_out() {
    let authority = CertificateAuthority::new("ours");
    let cluster = HostsCluster::new(2);
    let mut first = cluster.start(0, &valid_tls_config(&authority));
    let mut stalled = cluster.connect_to(0);
    // The head of a hello whose rest does not come.
    stalled.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).unwrap();
    stalled.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    while std::io::Read::read(&mut stalled, &mut [0; 100]).expect("the process closes the connection") > 0 {}

    let flood = ConnectionFlood::of(cluster.ports[0]);
    flood.wait_for_calls(200);
    let mut second = cluster.start(1, &valid_tls_config(&authority));
    let addresses = both_ready_addresses(&mut first, &mut second);
    drop(flood);
    check_results(&addresses);
    terminate_together([second, first]);
}

/// The commands of docs/cluster.md, as they are written but for the hosts.
#[test]
fn documented_commands_create_usable_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cluster.md")).unwrap();
    let commands = page.split("```sh\n").find(|block| block.contains("openssl req -x509")).unwrap();
    let commands = commands.split("```").next().unwrap().replace("10.0.0.1 10.0.0.2", "127.0.0.1");
    let made = Command::new("bash").args(["-euc", &commands]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let path = |name: &str| folder.path().join(name);
    let config = tls_config(&path("127.0.0.1.pem"), &path("127.0.0.1.key"), &path("ca.pem"));
    let data = folder.path().join("data");
    let mut program = start_cluster(&data, &config, &["--processes", "2"]);
    check_results(&ready_addresses(&mut program, 2));
    program.terminate();
}
