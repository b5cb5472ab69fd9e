use super::*;

/// A cluster of two whose children are shell scripts: `$1` is the process.
fn supervisor(script: &str) -> (Supervisor, Sender<SupervisorEvent>, Receiver<SupervisorEvent>) {
    let plan = SupervisorPlan {
        processes: 2,
        program: "/bin/sh".into(),
        arguments: ["-c", script].map(OsString::from).into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        secret: String::new(),
    };
    let (events, happened) = mpsc::channel();
    (Supervisor::new(plan, events.clone()), events, happened)
}

#[test]
fn stop_before_all_addresses_are_known_succeeds() {
    let (supervisor, events, happened) =
        supervisor(r#"if [ $1 = 0 ]; then echo cluster a; fi; read line; [ "$line" = stop ]"#);
    events.send(SupervisorEvent::Signal).unwrap();
    supervisor.run(&happened, |_| ()).unwrap();
}

#[test]
fn children_receive_all_addresses_and_stop_together() {
    let script = r#"echo cluster at-$1; read line; [ "$line" = "hosts at-0 at-1" ] || exit 1
        echo listening on http://127.0.0.1:$1; read line; [ "$line" = stop ]"#;
    let (supervisor, events, happened) = supervisor(script);
    let mut said = Vec::new();
    let announce = |line: &str| {
        said.push(line.to_owned());
        if said.len() == 2 {
            events.send(SupervisorEvent::Signal).unwrap();
        }
    };
    supervisor.run(&happened, announce).unwrap();
    assert_eq!(said, ["listening on http://127.0.0.1:0", "listening on http://127.0.0.1:1"]);
}

#[test]
fn stopped_child_stops_all() {
    let (supervisor, _events, happened) =
        supervisor(r#"[ $1 = 0 ] && exit 0; read line; [ "$line" = stop ]"#);
    supervisor.run(&happened, |_| ()).unwrap();
}

#[test]
fn signal_to_process_group_is_no_error() {
    let (supervisor, events, happened) = supervisor(r#"kill -TERM $$; sleep 60"#);
    events.send(SupervisorEvent::Signal).unwrap();
    supervisor.run(&happened, |_| ()).unwrap();
}

#[test]
fn child_ignoring_stop_is_killed_with_error() {
    let (mut supervisor, events, happened) = supervisor("echo cluster a; exec sleep 60");
    supervisor.patience = Duration::from_millis(200);
    events.send(SupervisorEvent::Signal).unwrap();
    let ended = supervisor.run(&happened, |_| ());
    assert!(matches!(ended, Err(SupervisorError::Killed(_))), "{ended:?}");
}

#[test]
fn child_waiting_for_addresses_is_released_on_stop() {
    let (mut supervisor, _events, happened) = supervisor("[ $1 = 0 ] && exit 1; read line; exit 5");
    supervisor.spawn().unwrap();
    let began = Instant::now();
    let ended = supervisor.watch(&happened, &mut |_: &str| ()).unwrap();
    assert_eq!(ended.map(|(process, status)| (process, status.code())), Some((0, Some(1))));
    let other = supervisor.children[1].child.id();
    assert!(!supervisor.end_all());
    assert!(began.elapsed() < Duration::from_secs(2), "it is killed later: {:?}", began.elapsed());
    assert!(!std::path::Path::new(&format!("/proc/{other}")).exists());
}

#[test]
fn takeover_seen_by_one_child_ends_all() {
    let (supervisor, _events, happened) = supervisor("[ $1 = 0 ] && exit 1; exit 3");
    let ended = supervisor.run(&happened, |_| ());
    assert!(matches!(ended, Err(SupervisorError::TakenOver)), "{ended:?}");
}
