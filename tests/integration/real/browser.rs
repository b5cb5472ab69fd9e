//! Headless Chromium.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::{Pid, Signal, getuid, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cdp::CdpSession;
use crate::support::{WAIT_TIMEOUT, wait_for};

/// A browser with one page, and a profile of its own. Both end with it.
pub struct Browser {
    child: Child,
    session: CdpSession,
    _profile: TempDir,
}

impl Browser {
    pub fn start(program: &OsStr) -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command
            .args(["--headless=new", "--remote-debugging-port=0", "--disable-gpu", "--hide-scrollbars"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            // The shared memory of a container is too small.
            .arg("--disable-dev-shm-usage")
            .arg(format!("--user-data-dir={}", profile.path().display()));
        if getuid().is_root() {
            // Chromium's sandbox does not work for root.
            command.arg("--no-sandbox");
        }
        command.arg("about:blank").stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(profile.path().join("stderr")).unwrap();
        // A group of its own, so that its helpers end with it.
        let child = command.stderr(log).process_group(0).spawn().unwrap();
        let mut started = ChildGuard(Some(child));
        let port = wait_for_port(profile.path(), started.0.as_mut().unwrap());
        let session = CdpSession::open(port);
        Browser { child: started.0.take().unwrap(), session, _profile: profile }
    }

    pub fn open(&mut self, url: &str) {
        self.session.command("Page.navigate", json!({"url": url}));
    }

    pub fn evaluate(&mut self, expression: &str) -> Value {
        self.session.evaluate(expression).unwrap()
    }

    /// Waits until an expression is true. One that throws is not true yet.
    pub fn wait_for(&mut self, expression: &str) {
        self.wait_for_value(expression, &json!(true));
    }

    pub fn wait_for_value(&mut self, expression: &str, wanted: &Value) {
        let deadline = std::time::Instant::now() + WAIT_TIMEOUT;
        loop {
            let found = self.session.evaluate(expression);
            if found.as_ref() == Ok(wanted) {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{expression} is not {wanted} but {found:?}; the console: {:?}",
                self.session.console
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// In CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32, phone: bool) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.session.command("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// The colour scheme of the system: "light" or "dark".
    pub fn set_color_scheme(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.session.command("Emulation.setEmulatedMedia", features);
    }

    /// A PNG of the visible part, or of the whole page.
    pub fn screenshot(&mut self, path: &Path, whole: bool) {
        let parameters = json!({"format": "png", "captureBeyondViewport": whole});
        let shot = self.session.command("Page.captureScreenshot", parameters);
        fs::write(path, BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// All console messages so far.
    pub fn console_messages(&mut self) -> &[String] {
        // Messages before this response have been read.
        self.evaluate("0");
        &self.session.console
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        kill_and_wait(&mut self.child);
    }
}

/// Ends the browser where its start fails.
struct ChildGuard(Option<Child>);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            kill_and_wait(child);
        }
    }
}

fn kill_and_wait(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

/// Chromium writes it there once it listens.
fn wait_for_port(profile: &Path, child: &mut Child) -> u16 {
    wait_for("the browser listens", || {
        if let Some(status) = child.try_wait().unwrap() {
            let said = fs::read_to_string(profile.join("stderr")).unwrap_or_default();
            panic!("the browser has ended: {status}\n{said}");
        }
        let written = fs::read_to_string(profile.join("DevToolsActivePort")).ok()?;
        // The second line is written with the first.
        let (port, _) = written.split_once('\n')?;
        port.parse().ok()
    })
}
