use std::net::TcpListener;
use std::thread;

use super::*;

fn plan(process: usize) -> ClusterPlan {
    ClusterPlan {
        topology: Topology { processes: 3, process, workers: 2 },
        hosts: Vec::new(),
        secret: b"s3cr3t".to_vec(),
        tls: None,
        connect_time: TIME,
        peer_timeout: TIME,
        agreement: BTreeMap::from([("results.formula".to_owned(), "\"nws\"".to_owned())]),
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (caller, listener.accept().unwrap().0)
}

fn soon() -> Instant {
    Instant::now() + TIME
}

/// Has a caller of `plan`, which is process 1, meet process 0.
fn meet(caller: ClusterPlan, verdict: Verdict) -> (Result<(), Failure>, Result<Caller, String>) {
    let (mut calling, mut listening) = pair();
    let listener = thread::spawn(move || {
        let caller = answer(&mut listening, &plan(0), &AtomicBool::new(false), soon())?;
        reply(&mut listening, &verdict, soon())?;
        Ok(caller)
    });
    let called = call(&mut calling, &caller, &Purpose::Link, 0, soon());
    drop(calling);
    (called, listener.join().unwrap())
}

#[test]
fn one_of_ours_is_told_what_becomes_of_it() {
    let (called, answered) = meet(plan(1), Verdict::Welcome);
    assert_eq!((called, answered), (Ok(()), Ok(Caller { process: 1, purpose: Purpose::Link })));
    for (verdict, failure) in [
        (Verdict::NotYet("a".into()), Failure::Broken("a".into())),
        (Verdict::Taken("b".into()), Failure::Taken("b".into())),
        (Verdict::Refused("c".into()), Failure::Refused("c".into())),
    ] {
        assert_eq!(meet(plan(1), verdict).0, Err(failure));
    }
}

#[test]
fn who_differs_hears_in_what() {
    let of = plan(1);
    let other = BTreeMap::from([("results.formula".to_owned(), "\"rothfusz\"".to_owned())]);
    for (caller, expected) in [
        (
            ClusterPlan { agreement: other, ..of.clone() },
            "results.formula = \"rothfusz\", this one has \"nws\"",
        ),
        (ClusterPlan { agreement: BTreeMap::new(), ..of.clone() }, "results.formula = nothing"),
        (ClusterPlan { topology: Topology { workers: 3, ..of.topology }, ..of.clone() }, "--workers"),
        (ClusterPlan { topology: Topology { processes: 2, ..of.topology }, ..of.clone() }, "--processes"),
        (ClusterPlan { secret: b"other".to_vec(), ..of.clone() }, "cluster secret"),
    ] {
        let (called, answered) = meet(caller, Verdict::Welcome);
        let Err(Failure::Refused(why)) = called else { panic!("{called:?}") };
        assert!(why.contains(expected), "{why}");
        assert!(answered.is_err());
    }
}

#[test]
fn another_version_is_refused_by_name() {
    let (mut calling, mut listening) = pair();
    let listener = thread::spawn(move || answer(&mut listening, &plan(0), &AtomicBool::new(false), soon()));
    let mut talk = Talk { socket: &mut calling, deadline: soon() };
    let hello = Hello { version: "0.0.0".into(), ..Hello::new(&plan(1), Purpose::Link).unwrap() };
    let said = talk.say(&hello).unwrap();
    let (Reply::Challenge { nonce, .. }, _) = talk.hear(LINE).unwrap() else { panic!("no challenge") };
    talk.say(&Proof { proof: prove(b"s3cr3t", &caller_says(&nonce, &said)) }).unwrap();
    let (Reply::Verdict(Verdict::Refused(why)), _) = talk.hear(LINE).unwrap() else { panic!("not refused") };
    assert!(why.contains("process 1 is version 0.0.0"), "{why}");
    assert_eq!(listener.join().unwrap(), Err(why));
}

#[test]
fn who_has_proved_nothing_decides_nothing() {
    for said in [Verdict::Refused("go away".into()), Verdict::Taken("go away".into()), Verdict::Welcome] {
        let (mut calling, mut listening) = pair();
        reply(&mut listening, &said, soon()).unwrap();
        let called = call(&mut calling, &plan(1), &Purpose::Link, 0, soon());
        let Err(Failure::Broken(why)) = called else { panic!("{called:?}") };
        assert!(why.contains("has proved nothing"), "{why}");
        assert_eq!(why.contains("\"go away\""), said != Verdict::Welcome, "quoted: {why}");
    }
}

#[test]
fn a_handshake_ends_however_little_is_said_at_a_time() {
    let (mut calling, mut listening) = pair();
    let dribble = thread::spawn(move || {
        while calling.write_all(b"{").is_ok() {
            thread::sleep(Wait::from_millis(10));
        }
    });
    let began = Instant::now();
    let answered = answer(&mut listening, &plan(0), &AtomicBool::new(false), began + Wait::from_millis(200));
    assert_eq!(answered, Err(too_slow()));
    assert!(began.elapsed() < Wait::from_secs(2), "{:?}", began.elapsed());
    drop(listening);
    dribble.join().unwrap();
}

#[test]
fn a_stranger_is_not_listened_to_for_long() {
    let (mut calling, mut listening) = pair();
    calling.write_all(&[b'x'; UNPROVEN_LINE + 1]).unwrap();
    let answered = answer(&mut listening, &plan(0), &AtomicBool::new(false), soon());
    assert_eq!(answered, Err("it says too much".into()));
}

#[test]
fn what_follows_is_left_alone() {
    let (mut calling, mut listening) = pair();
    let line = serde_json::to_string(&Reply::Proven).unwrap();
    listening.write_all(format!("{line}\nrest").as_bytes()).unwrap();
    let (reply, _) = Talk { socket: &mut calling, deadline: soon() }.hear::<Reply>(LINE).unwrap();
    assert!(matches!(reply, Reply::Proven));
    let mut rest = [0; 4];
    calling.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"rest");
}
