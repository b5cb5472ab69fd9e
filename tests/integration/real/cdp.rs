//! The Chrome DevTools Protocol, as far as the tests need it: commands with their responses, and
//! console messages.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

use crate::support::http;

/// For one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A session with one page and the workers that it starts.
pub struct CdpSession {
    socket: WebSocket<TcpStream>,
    commands: u64,
    /// Console messages of the page and its workers.
    pub console: Vec<String>,
    events: VecDeque<Value>,
}

impl CdpSession {
    /// With the first page of the browser that listens on `port`.
    pub fn open(port: u16) -> CdpSession {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let targets = http::get(address, "/json/list").unwrap().json();
        let page = targets.as_array().unwrap().iter().find(|target| target["type"] == "page");
        let url = page.unwrap()["webSocketDebuggerUrl"].as_str().unwrap().to_owned();
        let stream = http::connect(address).unwrap();
        stream.set_read_timeout(Some(COMMAND_TIMEOUT)).unwrap();
        // Screenshots are long.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, _) = client::client_with_config(url, stream, Some(config)).unwrap();
        let mut session = CdpSession { socket, commands: 0, console: Vec::new(), events: VecDeque::new() };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            session.command(&format!("{domain}.enable"), json!({}));
        }
        let workers = json!({"autoAttach": true, "waitForDebuggerOnStart": false, "flatten": true});
        session.command("Target.setAutoAttach", workers);
        session
    }

    /// The result of a command, which must have one.
    pub fn command(&mut self, method: &str, parameters: Value) -> Value {
        let answer = self.call_method(method, parameters);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// The value of an expression; the text of what it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value, String> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call_method("Runtime.evaluate", parameters);
        let result = &answer["result"];
        match (result.get("exceptionDetails"), answer.get("error")) {
            (None, None) => Ok(result["result"]["value"].clone()),
            (thrown, error) => Err(format!("{expression}: {thrown:?} {error:?}")),
        }
    }

    fn call_method(&mut self, method: &str, parameters: Value) -> Value {
        let id = self.send_command(method, parameters, None);
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        loop {
            assert!(Instant::now() < deadline, "no answer to {method}");
            let message = self.read_message();
            if message["id"] == id {
                self.handle_events();
                return message;
            }
        }
    }

    fn send_command(&mut self, method: &str, parameters: Value, session: Option<&str>) -> u64 {
        self.commands += 1;
        let mut command = json!({"id": self.commands, "method": method, "params": parameters});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        self.socket.send(Message::text(command.to_string())).unwrap();
        self.commands
    }

    fn read_message(&mut self) -> Value {
        let text = match self.socket.read() {
            Ok(Message::Text(text)) => text,
            Ok(_) => return Value::Null,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => return Value::Null,
            Err(error) => panic!("the browser says no more: {error}"),
        };
        let message: Value = serde_json::from_str(&text).unwrap();
        if message.get("method").is_some() {
            self.events.push_back(message);
            return Value::Null;
        }
        message
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let parameters = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                // Console messages of a worker count too.
                "Target.attachedToTarget" => {
                    let session = parameters["sessionId"].as_str().unwrap_or_default();
                    for method in ["Runtime.enable", "Log.enable"] {
                        self.send_command(method, json!({}), Some(session));
                    }
                }
                "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" => {
                    let from = if event.get("sessionId").is_some() { "worker" } else { "page" };
                    self.console.push(format!("{from}: {parameters}"));
                }
                _ => {}
            }
        }
    }
}
