use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;

fn plan(process: usize) -> ClusterPlan {
    ClusterPlan {
        topology: Topology { processes: 3, process, workers_per_process: 2 },
        hosts: Vec::new(),
        secret: b"s3cr3t".to_vec(),
        tls: None,
        connect_time: HANDSHAKE_TIMEOUT,
        peer_timeout: HANDSHAKE_TIMEOUT,
        agreement: BTreeMap::from([("results.formula".to_owned(), "\"nws\"".to_owned())]),
    }
}

fn pair() -> (PeerStream, PeerStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (PeerStream::Plain(caller), PeerStream::Plain(listener.accept().unwrap().0))
}

fn soon() -> Instant {
    Instant::now() + HANDSHAKE_TIMEOUT
}

/// Runs a handshake between a caller with this plan, which is process 1, and process 0.
fn meet(caller: ClusterPlan, verdict: Verdict) -> (Result<(), HandshakeFailure>, Result<Caller, String>) {
    let (mut calling, mut listening) = pair();
    let listener = thread::spawn(move || {
        let caller = answer_handshake(&mut listening, &plan(0), &AtomicBool::new(false), soon())?;
        send_verdict(&mut listening, &verdict, soon())?;
        Ok(caller)
    });
    let called = start_handshake(&mut calling, &caller, &Purpose::Link, 0, soon());
    drop(calling);
    (called, listener.join().unwrap())
}

#[test]
fn matching_peer_learns_acceptance() {
    let (called, answered) = meet(plan(1), Verdict::Welcome);
    assert_eq!((called, answered), (Ok(()), Ok(Caller { process: 1, purpose: Purpose::Link })));
    for (verdict, failure) in [
        (Verdict::NotYet("a".into()), HandshakeFailure::Broken("a".into())),
        (Verdict::Taken("b".into()), HandshakeFailure::Taken("b".into())),
        (Verdict::Refused("c".into()), HandshakeFailure::Refused("c".into())),
    ] {
        assert_eq!(meet(plan(1), verdict).0, Err(failure));
    }
}

#[test]
fn mismatched_peer_learns_the_difference() {
    let of = plan(1);
    let other = BTreeMap::from([("results.formula".to_owned(), "\"rothfusz\"".to_owned())]);
    for (caller, expected) in [
        (
            ClusterPlan { agreement: other, ..of.clone() },
            "results.formula = \"rothfusz\", this one has \"nws\"",
        ),
        (ClusterPlan { agreement: BTreeMap::new(), ..of.clone() }, "results.formula = nothing"),
        (
            ClusterPlan { topology: Topology { workers_per_process: 3, ..of.topology }, ..of.clone() },
            "--workers",
        ),
        (ClusterPlan { topology: Topology { processes: 2, ..of.topology }, ..of.clone() }, "--processes"),
    ] {
        let (called, answered) = meet(caller, Verdict::Welcome);
        let Err(HandshakeFailure::Refused(why)) = called else { panic!("{called:?}") };
        assert!(why.contains(expected), "{why}");
        assert!(answered.is_err());
    }
}

/// A caller whose messages a test chooses, and a process 0 that follows the protocol.
struct Impostor {
    stream: PeerStream,
    listener: thread::JoinHandle<Result<Caller, String>>,
}

impl Impostor {
    fn new() -> Impostor {
        let (stream, mut listening) = pair();
        let answer = move || answer_handshake(&mut listening, &plan(0), &AtomicBool::new(false), soon());
        Impostor { stream, listener: thread::spawn(answer) }
    }

    fn talk(&mut self) -> HandshakeLines<'_> {
        HandshakeLines { stream: &mut self.stream, deadline: soon() }
    }

    /// All remaining bytes of the listener.
    fn rest(mut self) -> (String, Result<Caller, String>) {
        let mut rest = Vec::new();
        let _ = self.stream.socket().shutdown(std::net::Shutdown::Write);
        let _ = self.stream.read_to_end(&mut rest);
        (String::from_utf8(rest).unwrap(), self.listener.join().unwrap())
    }
}

fn hello() -> Hello {
    Hello::new(&plan(1), Purpose::Link, 0).unwrap()
}

#[test]
fn other_build_version_is_refused_by_name() {
    let mut impostor = Impostor::new();
    let mut talk = impostor.talk();
    let said = talk.send_line(&Hello { version: "0.0.0".into(), ..hello() }).unwrap();
    let (Reply::Challenge { nonce, .. }, _) = talk.receive_line(MAX_LINE).unwrap() else {
        panic!("no challenge")
    };
    talk.send_line(&Proof { proof: proof_of(b"s3cr3t", &proof_input(Side::Caller, &[], &nonce, &said)) })
        .unwrap();
    let (Reply::Proven { .. }, _) = talk.receive_line(MAX_LINE).unwrap() else { panic!("not proven") };
    talk.send_line(&plan(1).agreement).unwrap();
    let (Reply::Verdict(Verdict::Refused(why)), _) = talk.receive_line(MAX_LINE).unwrap() else {
        panic!("not refused")
    };
    assert!(why.contains("process 1 has version 0.0.0"), "{why}");
    assert_eq!(impostor.listener.join().unwrap(), Err(why));
}

#[test]
fn other_protocol_version_is_refused_with_remedy() {
    let mut impostor = Impostor::new();
    impostor
        .talk()
        .send_line(&serde_json::json!({"magic": "swelter cluster 1", "anything": [1, 2]}))
        .unwrap();
    let (said, answered) = impostor.rest();
    assert!(said.contains("use one version"), "{said}");
    assert!(answered.is_err());
    // Other purposes get no answer.
    let mut impostor = Impostor::new();
    impostor.talk().send_line(&serde_json::json!({"magic": "something else"})).unwrap();
    assert_eq!(impostor.rest().0, "");
}

/// Answers to an unproven caller would let it test guesses of the secret offline.
#[test]
fn unauthenticated_caller_gets_no_hmac() {
    let mut impostor = Impostor::new();
    let mut talk = impostor.talk();
    talk.send_line(&hello()).unwrap();
    let (challenge, line) = talk.receive_line::<serde_json::Value>(MAX_LINE).unwrap();
    let nonce = challenge["challenge"]["nonce"].as_str().unwrap();
    assert_eq!(nonce.len(), 2 * NONCE_BYTES);
    assert_eq!(line.len(), format!(r#"{{"challenge":{{"nonce":"{nonce}"}}}}"#).len(), "and nothing else");
    talk.send_line(&Proof { proof: "00".repeat(32) }).unwrap();
    let (said, answered) = impostor.rest();
    let digits = |text: &&str| text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(!said.split('"').any(|text| digits(&text)), "{said}");
    assert!(said.contains("does not know the cluster secret"), "{said}");
    assert!(answered.is_err());
}

#[test]
fn replayed_proof_is_refused() {
    let mut impostor = Impostor::new();
    let mut talk = impostor.talk();
    let said = talk.send_line(&hello()).unwrap();
    let (Reply::Challenge { nonce, .. }, _) = talk.receive_line(MAX_LINE).unwrap() else {
        panic!("no challenge")
    };
    let proof = proof_of(b"s3cr3t", &proof_input(Side::Caller, &[], &nonce, &said));
    talk.send_line(&Proof { proof: proof.clone() }).unwrap();
    let (Reply::Proven { proof: of_listener }, _) = talk.receive_line(MAX_LINE).unwrap() else {
        panic!("not proven")
    };
    drop(impostor);

    for recorded in [proof, of_listener] {
        let mut impostor = Impostor::new();
        impostor.stream.write_all(&[&said[..], b"\n"].concat()).unwrap();
        let mut talk = impostor.talk();
        talk.receive_line::<Reply>(MAX_LINE).unwrap();
        talk.send_line(&Proof { proof: recorded }).unwrap();
        let (said, _) = impostor.rest();
        assert!(said.contains("does not know the cluster secret"), "{said}");
    }
}

/// A listener that poses as a process learns nothing that it could replay, and is not trusted.
#[test]
fn listener_must_prove_secret() {
    for reflects in [true, false] {
        let (mut calling, mut listening) = pair();
        let listener = thread::spawn(move || {
            let mut talk = HandshakeLines { stream: &mut listening, deadline: soon() };
            talk.receive_line::<Hello>(MAX_LINE).unwrap();
            talk.send_line(&Reply::Challenge { nonce: nonce().unwrap() }).unwrap();
            let (Proof { proof }, _) = talk.receive_line(MAX_LINE).unwrap();
            let proof = if reflects { proof } else { "00".repeat(32) };
            talk.send_line(&Reply::Proven { proof }).unwrap();
            talk.receive_line::<serde_json::Value>(MAX_LINE).err()
        });
        let called = start_handshake(&mut calling, &plan(1), &Purpose::Link, 0, soon());
        assert!(
            matches!(&called, Err(HandshakeFailure::Unproven(why)) if why.contains("secret")),
            "{called:?}"
        );
        drop(calling);
        assert!(listener.join().unwrap().is_some(), "it hears nothing of the configuration");
    }
    // A nonce in another format, which could contain other bytes, is not proved.
    let (mut calling, mut listening) = pair();
    let crafted = Reply::Challenge { nonce: format!("{}\n{{}}", "0".repeat(27)) };
    HandshakeLines { stream: &mut listening, deadline: soon() }.send_line(&crafted).unwrap();
    let called = start_handshake(&mut calling, &plan(1), &Purpose::Link, 0, soon());
    assert!(matches!(called, Err(HandshakeFailure::Unproven(_))), "{called:?}");
}

#[test]
fn wrong_secret_is_reported_and_may_be_retried() {
    let (called, answered) = meet(ClusterPlan { secret: b"other".to_vec(), ..plan(1) }, Verdict::Welcome);
    assert!(
        matches!(&called, Err(HandshakeFailure::Unproven(why)) if why.contains("cluster secret")),
        "{called:?}"
    );
    assert!(answered.unwrap_err().contains("process 1 does not know"));
}

#[test]
fn call_to_wrong_process_index_is_reported() {
    let (mut calling, mut listening) = pair();
    let listener =
        thread::spawn(move || answer_handshake(&mut listening, &plan(0), &AtomicBool::new(false), soon()));
    // The listener is process 0, so its proof is not that of process 2.
    let called = start_handshake(&mut calling, &plan(1), &Purpose::Link, 2, soon());
    assert!(matches!(called, Err(HandshakeFailure::Unproven(_))), "{called:?}");
    drop((calling, listener));

    let mut impostor = Impostor::new();
    let mut talk = impostor.talk();
    let said = talk.send_line(&Hello { to: 2, ..hello() }).unwrap();
    let (Reply::Challenge { nonce, .. }, _) = talk.receive_line(MAX_LINE).unwrap() else {
        panic!("no challenge")
    };
    talk.send_line(&Proof { proof: proof_of(b"s3cr3t", &proof_input(Side::Caller, &[], &nonce, &said)) })
        .unwrap();
    talk.receive_line::<Reply>(MAX_LINE).unwrap();
    talk.send_line(&plan(1).agreement).unwrap();
    let (said, _) = impostor.rest();
    assert!(said.contains("calls process 2 at the address of process 0"), "{said}");
}

#[test]
fn other_protocols_are_refused_with_reason() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], "it does not speak the protocol"),
        (b"\x16\x03\x01\x02\x00\x01", "it uses TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "it uses TLS"),
        (b"[[[[[[[[", "the connection was closed"),
        (b"", "the connection was closed"),
        (&[b"[".repeat(MAX_UNPROVEN_LINE - 1), b"\n".to_vec()].concat(), "it does not speak the protocol"),
    ] {
        let mut impostor = Impostor::new();
        impostor.stream.write_all(bytes).unwrap();
        let (said, answered) = impostor.rest();
        assert_eq!(said, "");
        assert!(answered.as_ref().unwrap_err().contains(expected), "{expected}: {answered:?}");
    }
}

#[test]
fn unauthenticated_caller_has_no_effect() {
    for said in [Verdict::Refused("go away".into()), Verdict::Taken("go away".into()), Verdict::Welcome] {
        let (mut calling, mut listening) = pair();
        send_verdict(&mut listening, &said, soon()).unwrap();
        let called = start_handshake(&mut calling, &plan(1), &Purpose::Link, 0, soon());
        let Err(HandshakeFailure::Unproven(why)) = called else { panic!("{called:?}") };
        assert!(why.contains("has not proved that it knows the cluster secret"), "{why}");
        assert_eq!(why.contains("\"go away\""), said != Verdict::Welcome, "quoted: {why}");
    }
}

#[test]
fn trickling_handshake_times_out() {
    let (mut calling, mut listening) = pair();
    let dribble = thread::spawn(move || {
        while calling.write_all(b"{").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let began = Instant::now();
    let answered = answer_handshake(
        &mut listening,
        &plan(0),
        &AtomicBool::new(false),
        began + Duration::from_millis(200),
    );
    assert_eq!(answered, Err(handshake_timed_out()));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(listening);
    dribble.join().unwrap();
}

#[test]
fn overlong_unproven_line_is_refused() {
    let (mut calling, mut listening) = pair();
    calling.write_all(&[b'x'; MAX_UNPROVEN_LINE + 1]).unwrap();
    let answered = answer_handshake(&mut listening, &plan(0), &AtomicBool::new(false), soon());
    assert_eq!(answered, Err("its line is longer than allowed".into()));
}

#[test]
fn bytes_after_verdict_are_not_consumed() {
    let (mut calling, mut listening) = pair();
    let line = serde_json::to_string(&Verdict::Welcome).unwrap();
    listening.write_all(format!("{line}\nrest").as_bytes()).unwrap();
    let (reply, _) =
        HandshakeLines { stream: &mut calling, deadline: soon() }.receive_line::<Verdict>(MAX_LINE).unwrap();
    assert_eq!(reply, Verdict::Welcome);
    let mut rest = [0; 4];
    calling.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"rest");
}

/// The lines of commit 868f70f, with its proofs. Processes of different versions must still be able
/// to report the difference.
#[test]
fn handshake_lines_are_those_of_868f70f() {
    fn line(said: &impl Serialize) -> String {
        serde_json::to_string(said).unwrap()
    }
    let hello = |purpose| Hello {
        magic: MAGIC.into(),
        version: "0.1.0".into(),
        topology: Topology { processes: 3, process: 1, workers_per_process: 2 },
        to: 0,
        purpose,
        nonce: "00112233445566778899aabbccddeeff".into(),
    };
    let link = line(&hello(Purpose::Link));
    let says = |side| proof_input(side, &[0xAB], "ffeeddccbbaa99887766554433221100", link.as_bytes());
    let verdict = |verdict| line(&Reply::Verdict(verdict));
    let found = [
        link.clone(),
        line(&hello(Purpose::Data { generation: "17-9f2c41d06b3e8a55".into() })),
        line(&Reply::Challenge { nonce: "ffeeddccbbaa99887766554433221100".into() }),
        line(&Proof { proof: proof_of(b"s3cr3t", &says(Side::Caller)) }),
        line(&Reply::Proven { proof: proof_of(b"s3cr3t", &says(Side::Listener { process: 0 })) }),
        line(&plan(1).agreement),
        verdict(Verdict::Welcome),
        verdict(Verdict::NotYet("a".into())),
        verdict(Verdict::Taken("b".into())),
        verdict(Verdict::Refused("c".into())),
    ];
    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), golden);
}
