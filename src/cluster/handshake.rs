//! Who is at the other end of a connection, before anything else is said.
//!
//! ```text
//! caller                                      listener
//!   Hello: who, of what, what for, a nonce   ─▶
//!                                           ◀─ Challenge: a nonce, and proof of the secret
//!   Proof of the secret                      ─▶
//!                                           ◀─ Proven; or why not
//!   the configuration that all have          ─▶
//!                                           ◀─ Welcome; or why not
//! ```
//!
//! Each is a line of JSON, so that versions that differ understand that they do. The secret keeps strangers out, who are listened to
//! neither long nor much; nothing is encrypted, so the network must be one that is trusted.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration as Wait, Instant};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ClusterPlan;
use crate::model::Topology;

const MAGIC: &str = "swelter cluster 1";
/// All of a handshake, however little is said at a time.
pub const TIME: Wait = Wait::from_secs(5);
/// The longest line of one that has not proved that it knows the secret.
const UNPROVEN_LINE: usize = 4 * 1024;
/// A line holds the whole configuration.
const LINE: usize = 1 << 20;
/// Bytes looked at for a line's end at once.
const PIECE: usize = 4 * 1024;

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Link,
    /// The dataflow of this generation.
    Data {
        generation: String,
    },
}

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    magic: String,
    version: String,
    topology: Topology,
    purpose: Purpose,
    nonce: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Challenge { nonce: String, proof: String },
    Proven,
    Verdict(Verdict),
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Welcome,
    /// It is too early.
    NotYet(String),
    /// Another process has come in its place, or so it seems as long as the end of that one is not noticed.
    Taken(String),
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct Proof {
    proof: String,
}

/// A process that has proved that it knows the secret, and is configured as this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub process: usize,
    pub purpose: Purpose,
}

/// Why a call came to nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is of no use to call again.
    Refused(String),
    /// It is, until whoever was there before counts as gone.
    Taken(String),
    /// It may be.
    Broken(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure::Broken(why)
    }
}

impl Hello {
    fn new(plan: &ClusterPlan, purpose: Purpose) -> Result<Hello, String> {
        let (magic, version) = (MAGIC.into(), env!("CARGO_PKG_VERSION").into());
        Ok(Hello { magic, version, topology: plan.topology, purpose, nonce: nonce()? })
    }

    /// Why a process that says this is not one of ours.
    fn mismatch(&self, plan: &ClusterPlan) -> Option<String> {
        let Hello { version, topology: theirs, .. } = self;
        let (who, ours) = (theirs.process, plan.topology);
        if version != env!("CARGO_PKG_VERSION") {
            return Some(format!(
                "process {who} is version {version}, this one is {}: use one version",
                env!("CARGO_PKG_VERSION")
            ));
        }
        ((ours.processes, ours.workers) != (theirs.processes, theirs.workers)).then(|| {
            format!(
                "process {who} counts {} processes of {} workers, this one {} of {}: give all the same --processes and --workers",
                theirs.processes, theirs.workers, ours.processes, ours.workers
            )
        })
    }
}

/// The first setting that a process has otherwise.
fn disagreement(
    who: usize,
    ours: &BTreeMap<String, String>,
    theirs: &BTreeMap<String, String>,
) -> Option<String> {
    let key = ours.keys().chain(theirs.keys()).find(|key| ours.get(*key) != theirs.get(*key))?;
    let text = |of: &BTreeMap<String, String>| of.get(key).map_or("nothing".to_owned(), String::clone);
    Some(format!(
        "process {who} has {key} = {}, this one has {}: give all the same configuration",
        text(theirs),
        text(ours)
    ))
}

/// Says who we are, to a process that is expected to be `process`.
pub fn call(
    socket: &mut TcpStream,
    plan: &ClusterPlan,
    purpose: &Purpose,
    process: usize,
    deadline: Instant,
) -> Result<(), Failure> {
    let mut talk = Talk { socket, deadline };
    let hello = Hello::new(plan, purpose.clone())?;
    let said = talk.say(&hello)?;
    let (reply, _) = talk.hear(UNPROVEN_LINE)?;
    let nonce = match reply {
        Reply::Challenge { nonce, proof } => {
            if !proves(&plan.secret, &listener_says(process, &hello.nonce, &nonce), &proof) {
                return Err(Failure::Refused(format!(
                    "process {process} does not know this process's cluster secret: give all the same"
                )));
            }
            nonce
        }
        // Whoever that is: it may not even be one of ours.
        Reply::Verdict(Verdict::Refused(why) | Verdict::Taken(why) | Verdict::NotYet(why)) => {
            return Err(Failure::Broken(format!("who listens there has proved nothing, and says {why:?}")));
        }
        Reply::Proven | Reply::Verdict(Verdict::Welcome) => {
            return Err(Failure::Broken("who listens there has proved nothing".into()));
        }
    };
    talk.say(&Proof { proof: prove(&plan.secret, &caller_says(&nonce, &said)) })?;
    match talk.hear(LINE)?.0 {
        Reply::Proven => {}
        reply => return Err(failure(reply)),
    }
    talk.say(&plan.agreement)?;
    match talk.hear(LINE)?.0 {
        Reply::Verdict(Verdict::Welcome) => Ok(()),
        reply => Err(failure(reply)),
    }
}

fn failure(reply: Reply) -> Failure {
    match reply {
        Reply::Verdict(Verdict::Refused(why)) => Failure::Refused(why),
        Reply::Verdict(Verdict::Taken(why)) => Failure::Taken(why),
        Reply::Verdict(Verdict::NotYet(why)) => Failure::Broken(why),
        Reply::Verdict(Verdict::Welcome) | Reply::Challenge { .. } | Reply::Proven => {
            Failure::Broken("it does not keep to the protocol of a cluster".into())
        }
    }
}

/// Finds out who calls, and tells those that differ in what; `proven` says once it knows the secret. The caller waits for a
/// [`reply`].
pub fn answer(
    socket: &mut TcpStream,
    plan: &ClusterPlan,
    proven: &AtomicBool,
    deadline: Instant,
) -> Result<Caller, String> {
    let mut talk = Talk { socket, deadline };
    let (hello, said): (Hello, _) = talk.hear(UNPROVEN_LINE)?;
    if hello.magic != MAGIC {
        return Err("it is no process of a cluster of this protocol".into());
    }
    let (ours, process) = (plan.topology.process, hello.topology.process);
    let fresh = nonce()?;
    let proof = prove(&plan.secret, &listener_says(ours, &hello.nonce, &fresh));
    talk.say(&Reply::Challenge { nonce: fresh.clone(), proof })?;
    let (Proof { proof }, _) = talk.hear(UNPROVEN_LINE)?;
    if !proves(&plan.secret, &caller_says(&fresh, &said), &proof) {
        return talk.refuse(format!("process {process} does not know the cluster secret of process {ours}"));
    }
    proven.store(true, Ordering::Relaxed);
    if let Some(why) = hello.mismatch(plan) {
        return talk.refuse(why);
    }
    talk.say(&Reply::Proven)?;
    let (theirs, _) = talk.hear(LINE)?;
    match disagreement(process, &plan.agreement, &theirs) {
        Some(why) => talk.refuse(why),
        None => Ok(Caller { process, purpose: hello.purpose }),
    }
}

/// Tells a caller what becomes of its call.
pub fn reply(socket: &mut TcpStream, verdict: &Verdict, deadline: Instant) -> Result<(), String> {
    Talk { socket, deadline }.say(&Reply::Verdict(verdict.clone())).map(drop)
}

fn listener_says(process: usize, theirs: &str, fresh: &str) -> Vec<u8> {
    format!("listener {process} {theirs} {fresh}").into_bytes()
}

/// All that the caller has said is proved with the secret, just as it came.
fn caller_says(nonce: &str, hello: &[u8]) -> Vec<u8> {
    [format!("caller {nonce} ").as_bytes(), hello].concat()
}

/// Something that nobody has said before, or can guess.
pub fn nonce() -> Result<String, String> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random numbers".to_owned())?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    Some(digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn prove(secret: &[u8], said: &[u8]) -> String {
    hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), said).as_ref())
}

fn proves(secret: &[u8], said: &[u8], proof: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    unhex(proof).is_some_and(|proof| hmac::verify(&key, said, &proof).is_ok())
}

/// Lines to and from the other end, until the deadline of all of them.
struct Talk<'a> {
    socket: &'a mut TcpStream,
    deadline: Instant,
}

impl Talk<'_> {
    fn left(&self) -> Result<Wait, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(too_slow()) } else { Ok(left) }
    }

    /// Gives the line that it has written.
    fn say(&mut self, said: &impl Serialize) -> Result<Vec<u8>, String> {
        let mut line = serde_json::to_vec(said).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.socket.set_write_timeout(Some(self.left()?)).map_err(text)?;
        self.socket.write_all(&line).map_err(text)?;
        line.pop();
        Ok(line)
    }

    /// Reads a line and not a byte more: what follows may be of another protocol.
    fn hear<T: DeserializeOwned>(&mut self, longest: usize) -> Result<(T, Vec<u8>), String> {
        let (mut line, mut piece) = (Vec::new(), [0u8; PIECE]);
        loop {
            self.socket.set_read_timeout(Some(self.left()?)).map_err(text)?;
            let there = match self.socket.peek(&mut piece) {
                // By a signal, which a socket with a timeout does not hide.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                there => there.map_err(text)?,
            };
            if there == 0 {
                return Err("the connection was closed".into());
            }
            let end = piece[..there].iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(there, |end| end + 1);
            self.socket.read_exact(&mut piece[..taken]).map_err(text)?;
            line.extend_from_slice(&piece[..end.unwrap_or(there)]);
            if line.len() > longest {
                return Err("it says too much".into());
            }
            if end.is_some() {
                break;
            }
        }
        let said = serde_json::from_slice(&line);
        Ok((said.map_err(|_| "it does not speak the protocol of a cluster".to_owned())?, line))
    }

    fn refuse<T>(&mut self, why: String) -> Result<T, String> {
        self.say(&Reply::Verdict(Verdict::Refused(why.clone())))?;
        Err(why)
    }
}

/// A line of a handshake of any bytes: whether it is one of the lines that are said.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_line(line: &[u8]) -> bool {
    let is_hello = serde_json::from_slice::<Hello>(line).is_ok();
    if let Ok(Reply::Challenge { nonce, proof }) = serde_json::from_slice(line) {
        assert!(!proves(b"secret", &listener_says(0, "", &nonce), &proof), "nobody knows the secret");
    }
    let is_proof = match serde_json::from_slice(line) {
        Ok(Proof { proof }) => !proves(b"secret", b"", &proof),
        Err(_) => false,
    };
    let is_reply = serde_json::from_slice::<Reply>(line).is_ok();
    is_hello || is_proof || is_reply || serde_json::from_slice::<BTreeMap<String, String>>(line).is_ok()
}

fn too_slow() -> String {
    "it takes too long to say who it is".into()
}

fn text(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => too_slow(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
