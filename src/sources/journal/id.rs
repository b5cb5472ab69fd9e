//! The random id of a journal, by which a checkpoint identifies the journal that it was made from.
//!
//! The file `id` is next to `marks`. It is one line of JSON: `{"id":"<32 hexadecimal digits>"}`,
//! and in a restored copy `{"id":"..","parent":{"id":"..","ends":[..]}}`. `marks` repeats the id,
//! so that the loss of the file is detected. A journal from a version without ids gets one after a
//! run has verified the state that was made from it
//! ([`Journal::save_id`](super::Journal::save_id)).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{JournalError, id_to_hex};
use crate::fault;
use crate::model::random_u64;

pub const FILE_NAME: &str = "id";

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalId {
    /// Written as 32 hexadecimal digits.
    #[serde(serialize_with = "write_id", deserialize_with = "read_id")]
    pub id: u128,
    /// The journal that this one was copied from, if it is a restored copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentJournal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentJournal {
    #[serde(serialize_with = "write_id", deserialize_with = "read_id")]
    pub id: u128,
    /// By partition, the end at the time of the copy.
    pub ends: Vec<u64>,
}

impl JournalId {
    /// Creates an id for a new journal or a copy.
    pub fn random(parent: Option<ParentJournal>) -> JournalId {
        JournalId { id: u128::from(random_u64()) << 64 | u128::from(random_u64()), parent }
    }

    /// Parses the form that [`JournalId::to_hex`] returns.
    pub fn parse(text: &str) -> Option<u128> {
        let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u128::from_str_radix(text, 16).ok().filter(|_| is_id)
    }

    /// The form in manifests and log lines.
    pub fn to_hex(&self) -> String {
        id_to_hex(self.id)
    }

    /// Reads the id of the journal in a directory; `None` if it has none. `known` is the id in
    /// `marks`.
    pub(super) fn read_file(
        dir: &Path,
        recorded_id: Option<u128>,
    ) -> Result<Option<JournalId>, JournalError> {
        let unknown = |what: &'static str| JournalError::Id { dir: dir.into(), what, known: recorded_id };
        let bytes = match fault::read_small_file(&dir.join(FILE_NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return recorded_id.map_or(Ok(None), |_| Err(unknown("is missing")));
            }
            Err(source) => return Err(JournalError::Io { path: dir.join(FILE_NAME), source }),
        };
        let read: JournalId = serde_json::from_slice(&bytes).map_err(|_| unknown("cannot be read"))?;
        let parent = read.parent.as_ref().map(|parent| parent.id);
        match recorded_id.is_none_or(|recorded_id| recorded_id == read.id || Some(recorded_id) == parent) {
            true => Ok(Some(read)),
            false => Err(unknown("belongs to another journal")),
        }
    }

    /// Writes the file atomically and makes it durable.
    pub fn write_file(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("id.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE_NAME))?;
        sync_folder(dir)
    }
}

fn write_id<S: serde::Serializer>(id: &u128, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{id:032x}"))
}

fn read_id<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
    let text = String::deserialize(from)?;
    JournalId::parse(&text).ok_or_else(|| serde::de::Error::custom("an id has 32 hexadecimal digits"))
}

/// Makes the entries of a directory durable.
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
