//! Who is at the other end of a connection, before anything else is said.
//!
//! ```text
//! caller                                    listener
//!   Hello: who, of what, what for, a nonce ─▶
//!                                         ◀─ Challenge: a nonce, and proof of the secret; or why not
//!   Proof of the secret                    ─▶
//!                                         ◀─ Welcome; or why not
//! ```
//!
//! Each is a line of JSON, so that versions that differ understand that they do. The secret keeps strangers out; nothing is
//! encrypted, so the network must be one that is trusted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::ClusterPlan;
use crate::model::Topology;

const MAGIC: &str = "swelter cluster 1";
/// A line holds the whole configuration.
const MAX_LINE: usize = 1 << 20;

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
pub struct Hello {
    magic: String,
    version: String,
    topology: Topology,
    purpose: Purpose,
    agreement: BTreeMap<String, String>,
    #[serde(default)]
    nonce: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Challenge { nonce: String, proof: String },
    Welcome,
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct Proof {
    proof: String,
}

/// Why a call came to nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is of no use to call again.
    Refused(String),
    /// It may be.
    Broken(String),
}

impl Hello {
    pub fn new(plan: &ClusterPlan, purpose: Purpose) -> Hello {
        Hello {
            magic: MAGIC.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            topology: plan.topology,
            purpose,
            agreement: plan.agreement.clone(),
            nonce: String::new(),
        }
    }

    /// Why a process that says this is not one of ours.
    fn mismatch(&self, theirs: &Hello) -> Option<String> {
        let Hello { version, topology, purpose, agreement, .. } = theirs;
        let who = topology.process;
        if *version != self.version {
            return Some(format!(
                "process {who} is version {version}, this one is {}: use one version",
                self.version
            ));
        }
        let (ours, theirs) = (self.topology, *topology);
        if (ours.processes, ours.workers) != (theirs.processes, theirs.workers) {
            return Some(format!(
                "process {who} counts {} processes of {} workers, this one {} of {}: give all the same --processes and --workers",
                theirs.processes, theirs.workers, ours.processes, ours.workers
            ));
        }
        for key in self.agreement.keys().chain(agreement.keys()) {
            let (ours, theirs) = (self.agreement.get(key), agreement.get(key));
            if ours != theirs {
                let text = |value: Option<&String>| value.map_or("nothing".to_owned(), String::clone);
                return Some(format!(
                    "process {who} has {key} = {}, this one has {}: give all the same configuration",
                    text(theirs),
                    text(ours)
                ));
            }
        }
        match (&self.purpose, purpose) {
            (Purpose::Data { generation: ours }, Purpose::Data { generation: theirs }) if ours != theirs => {
                Some(format!("process {who} is of generation {theirs}, this is {ours}"))
            }
            (ours, theirs) if std::mem::discriminant(ours) != std::mem::discriminant(theirs) => {
                Some(format!("process {who} is at another point of its start"))
            }
            _ => None,
        }
    }
}

/// Says who we are, to a process that is expected to be `process`.
pub fn call(
    socket: &mut TcpStream,
    plan: &ClusterPlan,
    hello: &Hello,
    process: usize,
) -> Result<(), Failure> {
    let broken = |why: String| Failure::Broken(why);
    let hello = Hello { nonce: nonce().map_err(broken)?, ..hello.clone() };
    write(socket, &hello).map_err(broken)?;
    let nonce = match read(socket).map_err(broken)? {
        Reply::Challenge { nonce, proof } => {
            let said = format!("listener {process} {} {nonce}", hello.nonce);
            if !proves(&plan.secret, &said, &proof) {
                let why = format!(
                    "process {process} does not know this process's cluster secret: give all the same"
                );
                return Err(Failure::Refused(why));
            }
            nonce
        }
        Reply::Refused(why) => return Err(Failure::Refused(why)),
        Reply::Welcome => return Err(Failure::Broken("it welcomes without a challenge".into())),
    };
    let proof = prove(&plan.secret, &caller_says(&hello, &nonce));
    write(socket, &Proof { proof }).map_err(broken)?;
    match read(socket).map_err(broken)? {
        Reply::Welcome => Ok(()),
        Reply::Refused(why) => Err(Failure::Refused(why)),
        Reply::Challenge { .. } => Err(Failure::Broken("it challenges twice".into())),
    }
}

/// Finds out who calls: the number of its process, `first` or greater.
pub fn answer(
    socket: &mut TcpStream,
    plan: &ClusterPlan,
    ours: &Hello,
    first: usize,
) -> Result<usize, String> {
    let theirs: Hello = read(socket)?;
    if theirs.magic != MAGIC {
        return Err("it is no process of a cluster of this protocol".into());
    }
    let fresh = nonce()?;
    let said = format!("listener {} {} {fresh}", plan.topology.process, theirs.nonce);
    write(socket, &Reply::Challenge { nonce: fresh.clone(), proof: prove(&plan.secret, &said) })?;
    let Proof { proof } = read(socket)?;
    let process = theirs.topology.process;
    let expected = (first..plan.topology.processes).contains(&process);
    let refusal = if !proves(&plan.secret, &caller_says(&theirs, &fresh), &proof) {
        Some(format!(
            "process {process} does not know the cluster secret of process {}",
            plan.topology.process
        ))
    } else if let Some(why) = ours.mismatch(&theirs) {
        Some(why)
    } else {
        (!expected).then(|| format!("process {process} is not expected by process {}", plan.topology.process))
    };
    match refusal {
        Some(why) => {
            write(socket, &Reply::Refused(why.clone()))?;
            Err(why)
        }
        None => write(socket, &Reply::Welcome).map(|()| process),
    }
}

/// All that the caller has said is proved with the secret.
fn caller_says(hello: &Hello, nonce: &str) -> String {
    format!("caller {nonce} {}", serde_json::to_string(hello).unwrap_or_default())
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

fn prove(secret: &[u8], said: &str) -> String {
    hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), said.as_bytes()).as_ref())
}

fn proves(secret: &[u8], said: &str, proof: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    unhex(proof).is_some_and(|proof| hmac::verify(&key, said.as_bytes(), &proof).is_ok())
}

fn write(socket: &mut TcpStream, said: &impl Serialize) -> Result<(), String> {
    let mut line = serde_json::to_vec(said).map_err(|error| error.to_string())?;
    line.push(b'\n');
    socket.write_all(&line).map_err(|error| error.to_string())
}

/// Reads a line and not a byte more: what follows is of another protocol.
fn read<T: for<'a> Deserialize<'a>>(socket: &mut TcpStream) -> Result<T, String> {
    let (mut line, mut byte) = (Vec::new(), [0u8]);
    loop {
        match socket.read(&mut byte) {
            Ok(0) => return Err("the connection was closed".into()),
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(error) => return Err(error.to_string()),
        }
        if line.len() > MAX_LINE {
            return Err("it says too much".into());
        }
    }
    serde_json::from_slice(&line).map_err(|_| "it does not speak the protocol of a cluster".into())
}
