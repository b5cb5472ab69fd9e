use super::*;

/// A cluster of two whose children are shell scripts: `$1` is the process.
fn supervisor(script: &str) -> (Supervisor, Sender<Event>, Receiver<Event>) {
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
fn a_stop_before_all_have_said_where_they_are_ends_well() {
    let (supervisor, events, happened) =
        supervisor(r#"if [ $1 = 0 ]; then echo cluster a; fi; read line; [ "$line" = stop ]"#);
    events.send(Event::Signal).unwrap();
    supervisor.run(&happened, |_| ()).unwrap();
}

#[test]
fn children_hear_where_all_are_and_stop_together() {
    let script = r#"echo cluster at-$1; read line; [ "$line" = "hosts at-0 at-1" ] || exit 1
        echo listening on http://127.0.0.1:$1; read line; [ "$line" = stop ]"#;
    let (supervisor, events, happened) = supervisor(script);
    let mut said = Vec::new();
    let announce = |line: &str| {
        said.push(line.to_owned());
        if said.len() == 2 {
            events.send(Event::Signal).unwrap();
        }
    };
    supervisor.run(&happened, announce).unwrap();
    assert_eq!(said, ["listening on http://127.0.0.1:0", "listening on http://127.0.0.1:1"]);
}

#[test]
fn one_that_has_stopped_stops_all() {
    let (supervisor, _events, happened) =
        supervisor(r#"[ $1 = 0 ] && exit 0; read line; [ "$line" = stop ]"#);
    supervisor.run(&happened, |_| ()).unwrap();
}

#[test]
fn a_signal_to_all_of_the_group_is_no_bad_end() {
    let (supervisor, events, happened) = supervisor(r#"kill -TERM $$; sleep 60"#);
    events.send(Event::Signal).unwrap();
    supervisor.run(&happened, |_| ()).unwrap();
}

#[test]
fn who_does_not_stop_is_killed_and_that_is_an_error() {
    let (mut supervisor, events, happened) = supervisor("echo cluster a; exec sleep 60");
    supervisor.patience = Wait::from_millis(200);
    events.send(Event::Signal).unwrap();
    let ended = supervisor.run(&happened, |_| ());
    assert!(matches!(ended, Err(SupervisorError::Killed(_))), "{ended:?}");
}

#[test]
fn who_waits_for_others_is_let_go() {
    let (mut supervisor, _events, happened) = supervisor("[ $1 = 0 ] && exit 1; read line; exit 5");
    supervisor.spawn().unwrap();
    let began = Instant::now();
    let ended = supervisor.watch(&happened, &mut |_: &str| ()).unwrap();
    assert_eq!(ended.map(|(process, status)| (process, status.code())), Some((0, Some(1))));
    let other = supervisor.children[1].child.id();
    assert!(!supervisor.end_all());
    assert!(began.elapsed() < Wait::from_secs(2), "it is killed later: {:?}", began.elapsed());
    assert!(!std::path::Path::new(&format!("/proc/{other}")).exists());
}

#[test]
fn a_takeover_that_any_of_them_notices_is_the_end() {
    let (supervisor, _events, happened) = supervisor("[ $1 = 0 ] && exit 1; exit 3");
    let ended = supervisor.run(&happened, |_| ());
    assert!(matches!(ended, Err(SupervisorError::TakenOver)), "{ended:?}");
}
