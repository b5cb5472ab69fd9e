use super::*;

const SINK: &str = "[[sinks]]\ntype = 'postgres'\nurl = 'postgres://swelter@127.0.0.1/weather'\nshards = 6\nschema = 'results'\n";

fn load(serve: &str, sinks: &str) -> Result<Config, Vec<String>> {
    let written = Written::new(&format!("[serve]\n{serve}\n{sinks}"));
    written.load().map_err(|errors| lines(&errors, &written))
}

#[test]
fn history_is_read_from_replicas_as_the_sink_writes_it() {
    assert!(load("", SINK).unwrap().plan.history.is_none());
    let serve = "history_urls = ['postgres://reader@localhost:6432/weather']\nhistory_connections = 3\nhistory_timeout = '2s'";
    let plan = load(serve, SINK).unwrap().plan.history.unwrap();
    assert_eq!(plan.databases[0].label, "localhost:6432/weather");
    assert_eq!((plan.schema.as_str(), plan.shards, plan.connections), ("results", 6, 3));
    assert_eq!(plan.timeout, Duration::from_secs(2));
}

#[test]
fn replicas_that_do_not_fit_the_sink_are_refused() {
    let one = "history_urls = ['postgres://reader@localhost/weather']";
    let two = "history_urls = ['postgres://reader@localhost/weather', 'postgres://reader@localhost/other']";
    let without_arrivals = format!("{SINK}tables = ['now', 'reading']\n");
    let second = SINK.replace("results", "others").replace("type =", "name = 'second'\ntype =");
    let several = format!("{SINK}{second}");
    for (serve, sinks, expected) in [
        (one, "", "there is no sink with type = \"postgres\""),
        (two, SINK, "has 2 URLs, and the sink writes to 1 databases"),
        (one, &*without_arrivals, "add arrival to its tables"),
        (one, &*several, "there are several"),
        ("history_urls = ['localhost']", SINK, "is not a URL of PostgreSQL"),
        ("history_urls = ['postgres://a:hunter2@localhost/weather']", SINK, "holds a password"),
    ] {
        let errors = load(serve, sinks).unwrap_err();
        assert!(errors.iter().any(|error| error.contains(expected)), "{serve}: {errors:?}");
        assert!(errors.iter().any(|error| error.contains("serve.history_urls")), "{errors:?}");
        assert!(!errors.iter().any(|error| error.contains("hunter2")));
    }
}
