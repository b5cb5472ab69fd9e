use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::AtomicBool;
use std::thread;

use rcgen::{CertificateParams, date_time_ymd};
use timely::communication::allocator::zero_copy::stream::Stream as _;

use super::super::ClusterPlan;
use super::super::handshake::{self, Purpose, Verdict};
use super::super::stream::PeerStream;
use super::*;
use crate::model::Topology;

#[path = "../../../tests/integration/cluster/authority.rs"]
mod authority;

use self::authority::CertificateAuthority;

const PATIENCE: Duration = Duration::from_secs(20);

fn plan_for(
    authority: &CertificateAuthority,
    host: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> ClusterTlsPlan {
    let files = authority.sign_certificate(host, change);
    ClusterTlsPlan { certificate: files.certificate, key: files.key, ca: authority.ca_file() }
}

fn tls_for(authority: &CertificateAuthority, host: &str) -> PeerTls {
    PeerTls::load(&plan_for(authority, host, |_| ())).unwrap()
}

/// A peer that does not check its own certificate first.
fn careless(plan: &ClusterTlsPlan) -> PeerTls {
    PeerCertificate::read(plan).unwrap().configure().unwrap()
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (caller, listener.accept().unwrap().0)
}

type Met = (Result<TlsStream, TlsFailure>, Result<TlsStream, TlsFailure>);

/// Connects a caller to a listener that must be at `host`.
fn meet(caller: PeerTls, listener: PeerTls, host: &'static str) -> Met {
    let (calling, listening) = sockets();
    let calling = thread::spawn(move || caller.connect(calling, host, soon()));
    let listening = listener.accept(listening, soon());
    (calling.join().unwrap(), listening)
}

fn met(authority: &CertificateAuthority) -> (TlsStream, TlsStream) {
    let tls = tls_for(authority, "127.0.0.1");
    let (caller, listener) = meet(tls.clone(), tls, "127.0.0.1");
    let (caller, listener) = (caller.map_err(TlsFailure::into_text), listener.map_err(TlsFailure::into_text));
    let streams = (caller.unwrap(), listener.unwrap());
    for stream in [&streams.0, &streams.1] {
        stream.socket().set_read_timeout(Some(PATIENCE)).unwrap();
        stream.socket().set_write_timeout(Some(PATIENCE)).unwrap();
    }
    streams
}

/// Pseudorandom bytes without repetition nearby.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn stream_is_full_duplex_and_accepts_key_updates() {
    const SIZE: usize = 3 << 20;
    let (caller, listener) = met(&CertificateAuthority::new("swelter"));
    let mut all = Vec::new();
    for (stream, seed, others) in [(caller, 1, 2), (listener, 2, 1)] {
        let (mut writer, mut reader) = (stream.clone(), stream);
        all.push(thread::spawn(move || {
            for (at, piece) in bytes(seed, SIZE).chunks(7_777).enumerate() {
                if at % 100 == 50 {
                    writer.refresh_keys().unwrap();
                }
                io::Write::write_all(&mut writer, piece).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        }));
        all.push(thread::spawn(move || {
            let mut heard = Vec::new();
            // A stream that was not closed cleanly is an error here.
            io::Read::read_to_end(&mut reader, &mut heard).unwrap();
            assert!(heard == bytes(others, SIZE), "{} bytes", heard.len());
        }));
    }
    all.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn truncated_stream_is_an_error() {
    let authority = CertificateAuthority::new("swelter");
    let mut buffer = [0; 10];
    let (caller, mut listener) = met(&authority);
    io::Write::write_all(&mut listener.clone(), b"x").unwrap();
    let mut reader = caller.clone();
    io::Read::read_exact(&mut reader, &mut buffer[..1]).unwrap();
    let waits = thread::spawn(move || io::Read::read(&mut reader, &mut [0; 10]).unwrap_err().kind());
    // The kernel does the same if a process is killed.
    listener.socket().shutdown(Shutdown::Both).unwrap();
    assert_eq!(waits.join().unwrap(), io::ErrorKind::UnexpectedEof);
    assert!(io::Read::read(&mut listener, &mut buffer).is_err());

    // An attacker on the path changes a bit, or inserts bytes.
    let (mut caller, listener) = met(&authority);
    io::Write::write_all(
        &mut listener.socket(),
        &[0x17, 3, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    .unwrap();
    assert_eq!(io::Read::read(&mut caller, &mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn stream_peek_does_not_consume() {
    let (caller, listener) = met(&CertificateAuthority::new("swelter"));
    let (mut caller, mut listener) = (PeerStream::Tls(caller), PeerStream::Tls(listener));
    io::Write::write_all(&mut caller, b"line\nrest").unwrap();
    let mut buffer = [0; 20];
    for _ in 0..2 {
        assert_eq!(listener.peek(&mut buffer).unwrap(), 9);
    }
    io::Read::read_exact(&mut listener, &mut buffer[..5]).unwrap();
    assert_eq!(listener.peek(&mut buffer[5..]).unwrap(), 4);
    assert_eq!(&buffer[..9], b"line\nrest");
    caller.shutdown(Shutdown::Write).unwrap();
    io::Read::read_exact(&mut listener, &mut buffer[..4]).unwrap();
    assert_eq!(listener.peek(&mut buffer).unwrap(), 0);
    let bindings = [&caller, &listener].map(|stream| stream.channel_binding().unwrap());
    assert!(bindings[0] == bindings[1] && bindings[0].len() == 32);
}

#[test]
fn both_ends_refuse_other_authorities_and_hosts() {
    let (ours, theirs) = (CertificateAuthority::new("swelter"), CertificateAuthority::new("swelter"));
    let own = tls_for(&ours, "127.0.0.1");
    let why = |failure: Result<TlsStream, TlsFailure>| failure.map(drop).unwrap_err().into_text();

    // Also a CA of another name than ours.
    for theirs in [&theirs, &CertificateAuthority::new("other")] {
        let (caller, _) = meet(own.clone(), tls_for(theirs, "127.0.0.1"), "127.0.0.1");
        assert!(why(caller).contains("not signed by the CA of cluster.tls.ca"));
    }
    let (caller, _) = meet(own.clone(), tls_for(&ours, "example.org"), "127.0.0.1");
    assert!(why(caller).contains("not valid for its host"));
    for host in ["a.example.org", "127.0.0.1"] {
        let (caller, listener) = meet(own.clone(), tls_for(&ours, "*.example.org"), host);
        assert_eq!(caller.is_ok(), host.starts_with('a'), "{host}");
        // The number of the calling process is not known yet here.
        drop(listener);
    }
    // The right CA, but a certificate of another one, which the process's own start would refuse.
    let mixed = ClusterTlsPlan { ca: ours.ca_file(), ..plan_for(&theirs, "127.0.0.1", |_| ()) };
    assert!(PeerTls::load(&mixed).map(drop).unwrap_err().to_string().contains("not signed by the CA"));
    let (caller, listener) = meet(careless(&mixed), own.clone(), "127.0.0.1");
    assert!(why(listener).contains("not signed by the CA of cluster.tls.ca"));
    let heard = io::Read::read(&mut caller.unwrap(), &mut [0; 10]).unwrap_err();
    let error: &Error = heard.get_ref().unwrap().downcast_ref().unwrap();
    let TlsFailure::Refused(heard) = failure(error) else { panic!("{error:?}") };
    assert!(heard.contains("refuses the certificate of this process"), "{heard}");

    let (caller, listener) = meet(own.clone(), own, "127.0.0.1");
    let (caller, listener) = (caller.unwrap(), listener.unwrap());
    for stream in [&caller, &listener] {
        assert_eq!(stream.check_host("127.0.0.1"), Ok(()));
        assert!(stream.check_host("127.0.0.2").unwrap_err().contains("not valid for its host"));
    }
}

/// A relay that has a certificate of the cluster but not the secret, between two that have both.
#[test]
fn relay_without_secret_is_refused() {
    let authority = CertificateAuthority::new("swelter");
    let tls = tls_for(&authority, "127.0.0.1");
    let plan = |process| ClusterPlan {
        topology: Topology { processes: 2, process, workers_per_process: 1 },
        hosts: vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()],
        secret: b"s3cr3t".to_vec(),
        tls: Some(tls.clone()),
        connect_time: PATIENCE,
        peer_timeout: PATIENCE,
        agreement: BTreeMap::new(),
    };
    for is_relayed in [false, true] {
        let ((caller, near), (far, listener)) = if is_relayed {
            let ((caller, near), (far, listener)) = (met(&authority), met(&authority));
            ((caller, Some(near)), (Some(far), listener))
        } else {
            let (caller, listener) = met(&authority);
            ((caller, None), (None, listener))
        };
        let answering = plan(0);
        let answer = thread::spawn(move || {
            let (mut stream, proven) = (PeerStream::Tls(listener), AtomicBool::new(false));
            let caller = handshake::answer_handshake(&mut stream, &answering, &proven, soon())?;
            handshake::send_verdict(&mut stream, &Verdict::Welcome, soon())?;
            Ok::<_, String>(caller)
        });
        if let (Some(near), Some(far)) = (near, far) {
            for (mut from, mut to) in [(near.clone(), far.clone()), (far, near)] {
                thread::spawn(move || {
                    let mut piece = [0; 4096];
                    while let Ok(length @ 1..) = io::Read::read(&mut from, &mut piece) {
                        let _ = io::Write::write_all(&mut to, &piece[..length]);
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
        let mut stream = PeerStream::Tls(caller);
        let called = handshake::start_handshake(&mut stream, &plan(1), &Purpose::Link, 0, soon());
        drop(stream);
        assert_eq!(called.is_ok(), !is_relayed, "{called:?}");
        let answered = answer.join().unwrap();
        assert_eq!(answered.is_ok(), !is_relayed, "{answered:?}");
        if is_relayed {
            assert!(answered.unwrap_err().contains("does not know the cluster secret"));
        }
    }
}

#[test]
fn expired_certificate_is_refused_at_start_and_by_peers() {
    let authority = CertificateAuthority::new("swelter");
    let own = tls_for(&authority, "localhost");
    type Change = fn(&mut CertificateParams);
    let expired: Change = |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2001, 2, 1);
    };
    let early: Change = |params| params.not_before = date_time_ymd(3001, 1, 1);
    let one_way: Change =
        |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    for (change, expected) in
        [(expired, "has expired"), (early, "is not valid yet"), (one_way, "certificate is refused")]
    {
        let plan = plan_for(&authority, "127.0.0.1", change);
        let loaded = PeerTls::load(&plan).map(drop).unwrap_err().to_string();
        assert!(loaded.starts_with("cluster.tls: ") && loaded.contains(expected), "{loaded}");
        let (_, listener) = meet(careless(&plan), own.clone(), "localhost");
        let Err(TlsFailure::Broken(why)) = listener.map(drop) else { panic!("it is taken") };
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn unusable_files_are_named() {
    let authority = CertificateAuthority::new("swelter");
    let plan = plan_for(&authority, "127.0.0.1", |_| ());
    let empty = authority.ca_file().with_file_name("empty");
    std::fs::write(&empty, "nothing").unwrap();
    let other = plan_for(&authority, "other", |_| ()).key;
    for (plan, named) in [
        (ClusterTlsPlan { certificate: empty.clone(), ..plan.clone() }, "empty"),
        (ClusterTlsPlan { key: empty.clone(), ..plan.clone() }, "empty"),
        (ClusterTlsPlan { ca: empty, ..plan.clone() }, "empty"),
        (ClusterTlsPlan { ca: "/no/such/file".into(), ..plan.clone() }, "/no/such/file"),
        (ClusterTlsPlan { key: other, ..plan }, "127.0.0.1.pem"),
    ] {
        let error = PeerTls::load(&plan).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("cluster.tls: ") && error.contains(named), "{named}: {error}");
    }
}

#[test]
fn trickling_handshake_times_out() {
    let authority = CertificateAuthority::new("swelter");
    let tls = tls_for(&authority, "127.0.0.1");
    let limit = Duration::from_millis(300);
    for calls in [true, false] {
        let (one, mut other) = sockets();
        // The head of a record that never comes, one byte at a time.
        let dribble = thread::spawn(move || {
            let mut bytes = [0x16, 3, 1, 0x3F, 0xFF].into_iter().chain(std::iter::repeat(1));
            while bytes.next().is_some_and(|byte| io::Write::write_all(&mut other, &[byte]).is_ok()) {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let began = Instant::now();
        let made = match calls {
            true => tls.connect(one, "127.0.0.1", began + limit),
            false => tls.accept(one, began + limit),
        };
        let Err(TlsFailure::Broken(why)) = made.map(drop) else { panic!("it is done") };
        assert!(began.elapsed() < limit * 10, "{:?}: {why}", began.elapsed());
        dribble.join().unwrap();
    }
}

#[test]
fn listener_refuses_plain_text_with_reason() {
    let tls = tls_for(&CertificateAuthority::new("swelter"), "127.0.0.1");
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{\"magic\":\"swelter cluster 2\"}\n"] {
        let (mut caller, listener) = sockets();
        io::Write::write_all(&mut caller, said).unwrap();
        let waits = thread::spawn(move || {
            let mut heard = Vec::new();
            io::Read::read_to_end(&mut caller, &mut heard).map(|_| heard)
        });
        let Err(TlsFailure::Broken(why)) = tls.accept(listener, soon()).map(drop) else {
            panic!("it is taken")
        };
        assert!(why.contains("does not use TLS"), "{why}");
        // An alert, which shows a process without TLS what is missing.
        assert_eq!(waits.join().unwrap().unwrap()[..2], [0x15, 3]);
    }
}
