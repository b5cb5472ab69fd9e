//! The handshake that authenticates both ends of a connection before any other message.
//!
//! ```text
//! caller                                                    listener
//!   Hello: version, topology, numbers, purpose, a nonce     ─▶
//!                                                          ◀─ Challenge: a nonce
//!   Proof: HMAC(secret, "caller", nonce, Hello)             ─▶
//!                                                          ◀─ Proven: HMAC(secret, "listener",
//!                                                                nonce, Hello); or a refusal
//!   the settings that all processes share                   ─▶
//!                                                          ◀─ Welcome; or a refusal
//! ```
//!
//! Each message is a line of JSON, so processes of different versions can report the difference.
//!
//! **Why this is secure.** A stranger that calls receives a random number and no HMAC, because the
//! caller proves itself first. One side must be first, and it is the caller: callers call only the
//! addresses in `cluster.hosts`, while anyone can call a listener. A stranger that listens at such
//! an address receives an HMAC by a secret of 32 random bytes, which cannot be guessed (`swelter
//! cluster secret` makes one; it is required between hosts).
//!
//! Both ends are authenticated. Each makes an HMAC over a fresh nonce of the other, the listener's
//! from the challenge and the caller's from its `Hello`, so no earlier message can be replayed. The
//! words `caller` and `listener` prevent a proof from being reflected. Every claim of the caller is
//! in the `Hello`, which is proved byte for byte: version, numbers of processes and workers, its
//! own number, the number of the process that it calls, and for the dataflow the generation.
//! Neither nonce nor `Hello` can contain a line feed, which separates them, so no two pairs of them
//! make the same bytes. A message received before the listener has proved itself decides only
//! whether to retry.
//!
//! With [TLS](super::tls) the handshake runs inside it, and both HMACs also cover keying material
//! exported from that TLS session. So a relay that has a certificate but not the secret cannot pass
//! on the messages of two others. Without TLS, an attacker on the path can do that, and can read
//! and change all later bytes, so the network must be a trusted one.
//!
//! A stranger is limited to 5 s and 4 KiB, and may be closed earlier to admit others
//! (`unproven_connections`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ClusterPlan;
use super::io_error::{handshake_timed_out, text};
use super::plan::host_of_process;
use super::stream::PeerStream;
use super::tls::{self, TlsFailure};
use crate::model::Topology;

/// The prefix of the protocol name in every version, and the name of this version.
const PROTOCOL: &str = "swelter cluster ";
const MAGIC: &str = "swelter cluster 2";
/// The timeout of a whole handshake, however slowly the peer sends.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest line of a peer that has not proved that it knows the secret.
const MAX_UNPROVEN_LINE: usize = 4 * 1024;
/// The longest line of a proven peer: it holds the whole configuration.
const MAX_LINE: usize = 1 << 20;
/// Bytes searched at once for the end of a line.
const READ_SIZE: usize = 4 * 1024;
/// Bytes of a nonce, which is written as hexadecimal digits.
const NONCE_BYTES: usize = 16;
/// Characters of an unproven peer's text that an error quotes.
const QUOTED_CHARS: usize = 200;

/// The purpose of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    #[serde(rename = "link")]
    Link,
    /// Dataflow connection of this generation.
    #[serde(rename = "data")]
    Data { generation: String },
}

/// The claims of a calling process about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    magic: String,
    version: String,
    topology: Topology,
    /// The process that the caller means to reach.
    to: usize,
    purpose: Purpose,
    nonce: String,
}

/// The field that every version has.
#[derive(Deserialize)]
struct Protocol {
    magic: String,
}

#[derive(Serialize, Deserialize)]
enum Reply {
    #[serde(rename = "challenge")]
    Challenge { nonce: String },
    #[serde(rename = "proven")]
    Proven { proof: String },
    #[serde(rename = "verdict")]
    Verdict(Verdict),
}

/// The listener's decision on a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    #[serde(rename = "welcome")]
    Welcome,
    /// Too early: the caller may retry.
    #[serde(rename = "not_yet")]
    NotYet(String),
    /// The place of this process is occupied by another connection, or by an old one whose end is
    /// not noticed yet.
    #[serde(rename = "taken")]
    Taken(String),
    #[serde(rename = "refused")]
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct Proof {
    proof: String,
}

/// A caller that has proved that it knows the secret and has the same settings as this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub process: usize,
    pub purpose: Purpose,
}

/// Why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// Permanent: a retry would be refused as well.
    Refused(String),
    /// Another connection occupies the place. A retry may succeed once that one has timed out.
    Taken(String),
    /// A retry may succeed.
    Broken(String),
    /// A retry may succeed: the peer that refused has proved nothing.
    Unproven(String),
}

impl From<String> for HandshakeFailure {
    fn from(why: String) -> HandshakeFailure {
        HandshakeFailure::Broken(why)
    }
}

impl From<TlsFailure> for HandshakeFailure {
    fn from(failure: TlsFailure) -> HandshakeFailure {
        match failure {
            TlsFailure::Refused(why) => HandshakeFailure::Refused(why),
            TlsFailure::Broken(why) => HandshakeFailure::Broken(why),
        }
    }
}

impl HandshakeFailure {
    fn into_text(self) -> String {
        match self {
            HandshakeFailure::Refused(why)
            | HandshakeFailure::Taken(why)
            | HandshakeFailure::Broken(why)
            | HandshakeFailure::Unproven(why) => why,
        }
    }
}

impl Hello {
    fn new(plan: &ClusterPlan, purpose: Purpose, to: usize) -> Result<Hello, String> {
        let (magic, version) = (MAGIC.into(), env!("CARGO_PKG_VERSION").into());
        Ok(Hello { magic, version, topology: plan.topology, to, purpose, nonce: nonce()? })
    }

    /// Why a process with this `Hello` does not belong to this cluster.
    fn mismatch(&self, plan: &ClusterPlan) -> Option<String> {
        let Hello { version, topology: their_topology, .. } = self;
        let (process, own_topology) = (their_topology.process, plan.topology);
        if version != env!("CARGO_PKG_VERSION") {
            return Some(format!(
                "process {process} has version {version}, and this one {}: use one version",
                env!("CARGO_PKG_VERSION")
            ));
        }
        if (own_topology.processes, own_topology.workers_per_process)
            != (their_topology.processes, their_topology.workers_per_process)
        {
            return Some(format!(
                "process {process} has {} processes of {} workers configured, and this one {} of {}: give all the same --processes and --workers",
                their_topology.processes,
                their_topology.workers_per_process,
                own_topology.processes,
                own_topology.workers_per_process
            ));
        }
        (self.to != own_topology.process).then(|| {
            format!(
                "process {process} calls process {} at the address of process {}: give all the same cluster.hosts",
                self.to, own_topology.process
            )
        })
    }
}

/// The first setting in which a process differs.
fn disagreement(
    process: usize,
    local: &BTreeMap<String, String>,
    remote: &BTreeMap<String, String>,
) -> Option<String> {
    let key = local.keys().chain(remote.keys()).find(|key| local.get(*key) != remote.get(*key))?;
    let text = |of: &BTreeMap<String, String>| of.get(key).map_or("nothing".to_owned(), String::clone);
    Some(format!(
        "process {process} has {key} = {}, this one has {}: give all the same configuration",
        text(remote),
        text(local)
    ))
}

/// Starts a handshake with the process that is expected to be `process`.
pub fn start_handshake(
    stream: &mut PeerStream,
    plan: &ClusterPlan,
    purpose: &Purpose,
    process: usize,
    deadline: Instant,
) -> Result<(), HandshakeFailure> {
    let binding = stream.channel_binding()?;
    let mut lines = HandshakeLines { stream, deadline };
    let hello_line = lines.send_line(&Hello::new(plan, purpose.clone(), process)?)?;
    let nonce = match lines.receive_line(MAX_UNPROVEN_LINE)?.0 {
        Reply::Challenge { nonce } if unhex(&nonce).is_some_and(|bytes| bytes.len() == NONCE_BYTES) => nonce,
        reply => return Err(unproven_failure(reply)),
    };
    lines.send_line(&Proof {
        proof: proof_of(&plan.secret, &proof_input(Side::Caller, &binding, &nonce, &hello_line)),
    })?;
    match lines.receive_line(MAX_UNPROVEN_LINE)?.0 {
        Reply::Proven { proof } => {
            let input = proof_input(Side::Listener { process }, &binding, &nonce, &hello_line);
            if !is_proof_of(&plan.secret, &input, &proof) {
                let why = "the listener at this address does not know the cluster secret: find out which program listens there";
                return Err(HandshakeFailure::Unproven(why.into()));
            }
        }
        reply => return Err(unproven_failure(reply)),
    }
    lines.send_line(&plan.agreement)?;
    match lines.receive_line(MAX_LINE)?.0 {
        Reply::Verdict(Verdict::Welcome) => Ok(()),
        reply => Err(verdict_failure(reply)),
    }
}

fn verdict_failure(reply: Reply) -> HandshakeFailure {
    match reply {
        Reply::Verdict(Verdict::Refused(why)) => HandshakeFailure::Refused(why),
        Reply::Verdict(Verdict::Taken(why)) => HandshakeFailure::Taken(why),
        Reply::Verdict(Verdict::NotYet(why)) => HandshakeFailure::Broken(why),
        Reply::Verdict(Verdict::Welcome) | Reply::Challenge { .. } | Reply::Proven { .. } => {
            HandshakeFailure::Broken("it violates the protocol of a cluster".into())
        }
    }
}

/// The refusal of an unproven peer, which may not belong to this cluster.
fn unproven_failure(reply: Reply) -> HandshakeFailure {
    match reply {
        Reply::Verdict(Verdict::Refused(why) | Verdict::Taken(why) | Verdict::NotYet(why)) => {
            let why: String = why.chars().take(QUOTED_CHARS).collect();
            HandshakeFailure::Unproven(format!(
                "the listener has not proved that it knows the cluster secret, and says {why:?}"
            ))
        }
        Reply::Proven { .. } | Reply::Challenge { .. } | Reply::Verdict(Verdict::Welcome) => {
            HandshakeFailure::Unproven("the listener has not proved that it knows the cluster secret".into())
        }
    }
}

/// Answers a handshake, and tells a mismatched caller the difference. `proven` is called once the
/// caller has proved that it knows the secret. The caller then waits for [`send_verdict`].
pub fn answer_handshake(
    stream: &mut PeerStream,
    plan: &ClusterPlan,
    proven: &AtomicBool,
    deadline: Instant,
) -> Result<Caller, String> {
    let binding = stream.channel_binding()?;
    let mut lines = HandshakeLines { stream, deadline };
    let answered = authenticate(&mut lines, plan, proven, &binding);
    answered.map_err(HandshakeFailure::into_text)
}

fn authenticate(
    lines: &mut HandshakeLines<'_>,
    plan: &ClusterPlan,
    proven: &AtomicBool,
    binding: &[u8],
) -> Result<Caller, HandshakeFailure> {
    let (Protocol { magic }, hello_line) = lines.receive_line(MAX_UNPROVEN_LINE)?;
    if magic != MAGIC {
        let why = "it uses another version of the cluster protocol: use one version of swelter";
        return if magic.starts_with(PROTOCOL) {
            lines.refuse(why.into())
        } else {
            Err(why.to_owned().into())
        };
    }
    let hello: Hello = serde_json::from_slice(&hello_line).map_err(|_| no_protocol(&hello_line))?;
    let (own_process, process) = (plan.topology.process, hello.topology.process);
    let challenge = nonce()?;
    lines.send_line(&Reply::Challenge { nonce: challenge.clone() })?;
    let (Proof { proof }, _) = lines.receive_line(MAX_UNPROVEN_LINE)?;
    if !is_proof_of(&plan.secret, &proof_input(Side::Caller, binding, &challenge, &hello_line), &proof) {
        return lines
            .refuse(format!("process {process} does not know the cluster secret of process {own_process}"));
    }
    proven.store(true, Ordering::Relaxed);
    let input = proof_input(Side::Listener { process: own_process }, binding, &challenge, &hello_line);
    lines.send_line(&Reply::Proven { proof: proof_of(&plan.secret, &input) })?;
    // Read everything before refusing: closing a socket with unread bytes resets the connection.
    let (agreement, _) = lines.receive_line(MAX_LINE)?;
    let differs = hello.mismatch(plan).or_else(|| disagreement(process, &plan.agreement, &agreement));
    if let Some(why) = differs {
        return lines.refuse(why);
    }
    if let Some(host) = host_of_process(plan, process)
        && let Err(why) = lines.stream.check_host(host)
    {
        return lines.refuse(format!(
            "cluster.hosts of process {own_process} has process {process} at {host}, and {why}"
        ));
    }
    Ok(Caller { process, purpose: hello.purpose })
}

/// Sends a caller the decision on its call.
pub fn send_verdict(stream: &mut PeerStream, verdict: &Verdict, deadline: Instant) -> Result<(), String> {
    let result = HandshakeLines { stream, deadline }.send_line(&Reply::Verdict(verdict.clone()));
    result.map(drop).map_err(HandshakeFailure::into_text)
}

/// The side that proves that it knows the secret.
#[derive(Clone, Copy)]
enum Side {
    Caller,
    Listener { process: usize },
}

/// The bytes that a side proves: the listener's nonce and the caller's `Hello`, which contains its
/// own nonce, as received.
fn proof_input(side: Side, binding: &[u8], nonce: &str, hello: &[u8]) -> Vec<u8> {
    let side = match side {
        Side::Caller => "caller".to_owned(),
        Side::Listener { process } => format!("listener {process}"),
    };
    [format!("{MAGIC}\n{side}\n{}\n{nonce}\n", hex(binding)).as_bytes(), hello].concat()
}

/// A random value that is fresh and cannot be guessed.
fn nonce() -> Result<String, String> {
    let mut bytes = [0u8; NONCE_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| "the operating system gives no random numbers".to_owned())?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    Some(digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn proof_of(secret: &[u8], input: &[u8]) -> String {
    hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), input).as_ref())
}

fn is_proof_of(secret: &[u8], input: &[u8], proof: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    unhex(proof).is_some_and(|proof| hmac::verify(&key, input, &proof).is_ok())
}

/// Sends and receives lines until a common deadline.
struct HandshakeLines<'a> {
    stream: &'a mut PeerStream,
    deadline: Instant,
}

impl HandshakeLines<'_> {
    fn time_left(&self) -> Result<Duration, HandshakeFailure> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(handshake_timed_out().into()) } else { Ok(remaining) }
    }

    /// Sends a line and returns it.
    fn send_line(&mut self, message: &impl Serialize) -> Result<Vec<u8>, HandshakeFailure> {
        let mut line = serde_json::to_vec(message).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.stream.socket().set_write_timeout(Some(self.time_left()?)).map_err(failed)?;
        self.stream.write_all(&line).map_err(failed)?;
        line.pop();
        Ok(line)
    }

    /// Reads a line and not a byte more, since the next bytes may be of another protocol.
    fn receive_line<T: DeserializeOwned>(
        &mut self,
        longest: usize,
    ) -> Result<(T, Vec<u8>), HandshakeFailure> {
        let (mut line, mut piece) = (Vec::new(), [0u8; READ_SIZE]);
        loop {
            self.stream.socket().set_read_timeout(Some(self.time_left()?)).map_err(failed)?;
            let available = match self.stream.peek(&mut piece) {
                // Interrupted by a signal, which can happen even if the socket has a timeout.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available.map_err(failed)?,
            };
            if available == 0 {
                let closed = || "the connection was closed".to_owned();
                return Err(tls_without(&line).unwrap_or_else(closed).into());
            }
            let end = piece[..available].iter().position(|byte| *byte == b'\n');
            let length = end.map_or(available, |end| end + 1);
            self.stream.read_exact(&mut piece[..length]).map_err(failed)?;
            line.extend_from_slice(&piece[..end.unwrap_or(available)]);
            if line.len() > longest {
                return Err("its line is longer than allowed".to_owned().into());
            }
            if end.is_some() {
                break;
            }
            if let Some(why) = tls_without(&line) {
                return Err(why.into());
            }
        }
        let parsed = serde_json::from_slice(&line);
        Ok((parsed.map_err(|_| no_protocol(&line))?, line))
    }

    fn refuse<T>(&mut self, why: String) -> Result<T, HandshakeFailure> {
        self.send_line(&Reply::Verdict(Verdict::Refused(why.clone())))?;
        Err(why.into())
    }
}

/// Whether any bytes are a line of a handshake; for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_line(line: &[u8]) -> bool {
    let _ = (tls_without(line), no_protocol(line));
    let is_hello = serde_json::from_slice::<Hello>(line).is_ok();
    assert!(!is_hello || serde_json::from_slice::<Protocol>(line).is_ok(), "each hello has its protocol");
    let reply = serde_json::from_slice::<Reply>(line);
    if let Ok(Reply::Proven { proof }) = &reply {
        let says = proof_input(Side::Listener { process: 0 }, &[], "", line);
        assert!(!is_proof_of(b"secret", &says, proof), "nobody knows the secret");
    }
    let is_proof = match serde_json::from_slice(line) {
        Ok(Proof { proof }) => !is_proof_of(b"secret", &proof_input(Side::Caller, &[], "", line), &proof),
        Err(_) => false,
    };
    is_hello || is_proof || reply.is_ok() || serde_json::from_slice::<BTreeMap<String, String>>(line).is_ok()
}

fn no_protocol(line: &[u8]) -> String {
    tls_without(line).unwrap_or_else(|| "it does not speak the protocol of a cluster".into())
}

/// Recognizes a TLS handshake or alert by its first byte, which no line of ours has.
fn tls_without(line: &[u8]) -> Option<String> {
    let is_tls = matches!(line, [0x15 | 0x16, 3, ..]);
    is_tls.then(|| {
        "it uses TLS, and this process has no cluster.tls: set cluster.tls for all processes".to_owned()
    })
}

fn failed(error: io::Error) -> HandshakeFailure {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    of_tls.map_or_else(|| HandshakeFailure::Broken(text(&error)), |of_tls| tls::failure(of_tls).into())
}

#[cfg(test)]
mod tests;
