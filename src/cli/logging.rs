//! The program's log on standard error, and the panic hook.

use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format;

use crate::config::{LoggingFormat, LoggingPlan};
use crate::model::printable::{printable, printable_json};
use crate::panics;
use crate::sources::journal;

/// The exit code after a panic.
const PANIC_EXIT_CODE: i32 = 101;

/// Starts the log of this process, with the process number of a cluster on each line. Ends the
/// process with 101 if a thread panics: the rest of the process would continue with wrong results.
/// A panic in state that only one client uses does not end the process ([`panics`]).
pub fn start_logging(plan: &LoggingPlan, process: Option<usize>) {
    let human = match plan.format {
        LoggingFormat::Auto => io::stderr().is_terminal(),
        LoggingFormat::Human => true,
        LoggingFormat::Json => false,
    };
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // An existing log, as in a test, stays installed.
    let tag = process.map_or(String::new(), |process| match human {
        true => format!("[{process}] "),
        false => format!("{{\"process\":{process},"),
    });
    let writer = move || TaggedWriter { tag: tag.clone(), is_json: !human, to: io::stderr() };
    let _ = tracing::subscriber::set_global_default(new_subscriber(&plan.filter, human, colours, writer));
    std::panic::set_hook(Box::new(|panic| {
        if journal::is_catching_store_panics() {
            // The journal turns it into an error with a remedy.
            return;
        }
        if let Some(scope) = panics::scope_ended_by(panic) {
            return log_caught_panic(panic, scope);
        }
        if is_lost_peer(panic) {
            // The dataflow's connection to another process is lost. The short wait lets another
            // thread log which process it is.
            std::thread::sleep(std::time::Duration::from_millis(200));
            tracing::error!(
                "a connection of the dataflow to another process of the cluster is lost, so all processes end"
            );
            std::process::exit(1);
        }
        log_panic(panic);
        std::process::exit(PANIC_EXIT_CODE);
    }));
}

/// Writes a tag at the beginning of each line. If the line is a JSON object, the tag replaces its
/// first byte.
struct TaggedWriter<W> {
    tag: String,
    is_json: bool,
    to: W,
}

impl<W: io::Write> io::Write for TaggedWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let instead = if self.tag.is_empty() { 0 } else { usize::from(self.is_json) };
        let rest = line.get(instead..).unwrap_or_default();
        let text = str::from_utf8(rest).ok().filter(|_| self.is_json).map(printable_json);
        let rest = text.as_deref().map_or(rest, str::as_bytes);
        // In one call, so that the lines of several processes do not mix.
        self.to.write_all(&[self.tag.as_bytes(), rest].concat()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Whether the panic is timely's report of a lost connection to another process.
fn is_lost_peer(panic: &PanicHookInfo<'_>) -> bool {
    let text = panic.payload().downcast_ref::<String>();
    text.is_some_and(|text| text.starts_with("timely communication error:"))
}

/// Creates the subscriber; times are RFC 3339 in UTC.
fn new_subscriber<W>(
    filter: &str,
    human: bool,
    colours: bool,
    writer: W,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(writer)
        // They would be printed to the same standard error, by a call that panics if it cannot be
        // written.
        .log_internal_errors(false)
        .with_ansi(colours);
    // Escape the values, so that a line stays one line and contains no control sequences of a
    // terminal.
    let fields = format::debug_fn(|writer, field, value| {
        let text = format!("{value:?}");
        let text = printable(&text);
        if field.name() == "message" {
            write!(writer, "{text}")
        } else {
            write!(writer, "{}={text}", field.name())
        }
    });
    match human {
        true => Box::new(builder.fmt_fields(fields.delimited(" ")).finish()),
        false => Box::new(builder.json().flatten_event(true).finish()),
    }
}

/// Logs a panic that ended one client, at a limited rate: a client may be able to repeat it.
fn log_caught_panic(panic: &PanicHookInfo<'_>, scope: panics::PanicScope) {
    let Some(location) = panic.location() else { return };
    let Some(unreported) = panics::unreported_count_if_due(location) else { return };
    let (scope, location, backtrace) = (scope.name(), location.to_string(), capture_backtrace());
    let what = panics::panic_message(panic).unwrap_or(UNKNOWN_CAUSE);
    tracing::error!(
        scope,
        place = location,
        unreported,
        backtrace,
        "a bug in swelter ended one {scope}, and nothing else; please report it: panicked: {what}"
    );
}

const UNKNOWN_CAUSE: &str = "of unknown cause";

/// `None` unless RUST_BACKTRACE enables it.
fn capture_backtrace() -> Option<String> {
    let backtrace = std::backtrace::Backtrace::capture();
    (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| backtrace.to_string())
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let what = panics::panic_message(panic).unwrap_or(UNKNOWN_CAUSE);
    let place = panic.location().map_or("unknown".into(), ToString::to_string);
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let backtrace = capture_backtrace();
    tracing::error!(
        place,
        thread,
        backtrace,
        "a bug in swelter ended it, please report it: panicked: {what}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use crate::child_tests::{assert_ran_one_test, child_test};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(human: bool) -> String {
        let written = Written::default();
        let to = written.clone();
        let subscriber = new_subscriber("warn,swelter::cli=info", human, false, move || to.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(cities = 3, "begins");
            tracing::debug!("not said");
            tracing::info!(target: "other", "not said");
        });
        let bytes = written.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_have_utc_time() {
        let text = log(false);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["message"], &line["cities"], &line["level"]),
            (&"begins".into(), &3.into(), &"INFO".into())
        );
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }

    #[test]
    fn text_lines_begin_with_utc_time() {
        let text = log(true);
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{text}");
        assert!(
            rest.contains("INFO") && rest.contains("begins cities=3") && text.lines().count() == 1,
            "{text}"
        );
    }

    /// Values from clients must not be able to imitate log lines.
    #[test]
    fn field_values_are_escaped() {
        let hostile = "a\x1b]52;c;aGk=\x07\n2026-01-01T00:00:00Z ERROR swelter: all is lost\u{9b}2J\u{202e}";
        for human in [true, false] {
            for colours in [true, false] {
                let written = Written::default();
                let to = written.clone();
                let writer = move || TaggedWriter { tag: String::new(), is_json: !human, to: to.clone() };
                tracing::subscriber::with_default(
                    new_subscriber("info", human, colours && human, writer),
                    || {
                        tracing::info!(shown = %hostile, debugged = ?hostile, plain = hostile, "said {hostile}");
                    },
                );
                let text = String::from_utf8(written.0.lock().clone()).unwrap();
                assert_eq!(text.lines().count(), 1, "{text:?}");
                for command in ["\x1b]", "\x07", "\u{9b}", "\u{202e}"] {
                    assert!(!text.contains(command), "{text:?}");
                }
                assert!(text.contains("all is lost"));
            }
        }
    }

    const CHILD: &str = "SWELTER_TEST_PANICS";

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("as asked, in a destructor");
        }
    }

    /// Panics in the child process, in the named way.
    fn panic_as(name: &str) {
        let scope = panics::PanicScope::Session;
        match name {
            "thread" => panic!("as asked"),
            "caught" => {
                (0..3).for_each(|_| assert!(panics::catch_panic(scope, || panic!("as asked")).is_err()))
            }
            "destructor" => drop(panics::catch_panic(scope, || {
                let _dropped = PanicsWhenDropped;
                panic!("as asked");
            })),
            // Dependencies have such locks.
            "poisoned" => {
                #[expect(clippy::disallowed_types, reason = "the lock must poison")]
                let lock = std::sync::Mutex::new(());
                let poison = || panics::catch_panic(scope, || panic!("as asked: {:?}", lock.lock().unwrap()));
                assert!(poison().is_err());
                let _ = panics::catch_panic(scope, || drop(lock.lock().unwrap()));
            }
            "shared" => {
                let lock = panics::locks::SharedMutex::new(());
                let _ = panics::catch_panic(scope, || panic!("as asked: {:?}", *lock.lock()));
            }
            _ => unreachable!("{name}"),
        }
    }

    #[test]
    #[ignore = "child process of `panic_in_any_thread_is_logged_and_ends_process` and the two tests below it"]
    fn child_process_panics_in_a_thread() {
        let name = std::env::var(CHILD).unwrap();
        start_logging(&LoggingPlan { format: LoggingFormat::Auto, filter: "info".into() }, None);
        let thread = std::thread::Builder::new().name("a worker".into());
        let _ = thread.spawn(move || panic_as(&name)).unwrap().join();
        std::process::exit(0);
    }

    /// The child's exit code and log.
    fn child(name: &str) -> (Option<i32>, Vec<serde_json::Value>) {
        let child = child_test("cli::logging::tests::child_process_panics_in_a_thread")
            .env(CHILD, name)
            .output()
            .unwrap();
        assert_ran_one_test(&child.stdout);
        let log = String::from_utf8(child.stderr).unwrap();
        (child.status.code(), log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    #[test]
    fn panic_in_any_thread_is_logged_and_ends_process() {
        let (code, log) = child("thread");
        let [line] = &log[..] else { panic!("{log:?}") };
        assert_eq!(code, Some(PANIC_EXIT_CODE), "{line}");
        assert_eq!((&line["level"], &line["thread"]), (&"ERROR".into(), &"a worker".into()));
        assert!(line["message"].as_str().unwrap().ends_with("panicked: as asked"), "{line}");
        assert!(line["place"].as_str().unwrap().contains("logging.rs"), "{line}");
    }

    #[test]
    fn caught_panic_is_logged_once_per_location_and_ends_nothing() {
        let (code, log) = child("caught");
        assert_eq!((code, log.len()), (Some(0), 1), "{log:?}");
        assert_eq!((&log[0]["level"], &log[0]["scope"]), (&"ERROR".into(), &"session".into()));
        assert!(log[0]["place"].as_str().unwrap().contains("logging.rs"), "{log:?}");
    }

    #[test]
    fn panic_inside_shared_state_ends_process() {
        for name in ["shared", "poisoned", "destructor"] {
            let (code, log) = child(name);
            assert_eq!(code, Some(PANIC_EXIT_CODE), "{name}: {log:?}");
        }
    }
}
