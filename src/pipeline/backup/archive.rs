//! What a backup is made of, and how it is read.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{BackupError, TakeBlock};
use crate::checkpoint::{Checkpoints, FOLDER, Fetched, Name, Place, Store};
use crate::sources::journal::BlockSequence;

pub(super) const FORMAT: u32 = 1;
pub(super) const MANIFEST: &str = "backup.json";
/// More than any manifest of a backup has.
const MANIFEST_BYTES: u64 = 64 << 20;
/// Blocks of the journal that are one object, in bytes before they are compressed; the last block may go beyond.
pub(super) const CHUNK_BYTES: usize = 16 << 20;
/// More than any chunk has.
const MOST_CHUNK_BYTES: u64 = 64 << 20;
const ZSTD_LEVEL: i32 = 1;
/// Of a block's key, and of its length.
const KEY_BYTES: usize = 12;

/// An object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// From where the backup is.
    pub path: String,
    pub bytes: u64,
    /// In hexadecimal.
    pub xxh3_128: String,
}

impl Entry {
    fn of(path: String, content: &[u8]) -> Entry {
        Entry { path, bytes: content.len() as u64, xxh3_128: format!("{:032x}", xxh3_128(content)) }
    }
}

/// Blocks of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chunk {
    pub object: Entry,
    /// Once it is no longer compressed.
    pub plain_bytes: u64,
}

/// A piece of a file of the data directory; those of a file follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// From the data directory.
    pub file: String,
    pub object: Entry,
}

/// The journal, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalPart {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub begins: Vec<u64>,
    pub ends: Vec<u64>,
    pub chunks: Vec<Chunk>,
}

impl JournalPart {
    pub(super) fn records(&self) -> u64 {
        self.begins.iter().zip(&self.ends).map(|(begin, end)| end.saturating_sub(*begin)).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    pub created_at: String,
    pub journal: JournalPart,
    /// Names of the checkpoints, the oldest first.
    pub checkpoints: Vec<String>,
    pub checkpoint_objects: Vec<Entry>,
    pub files: Vec<Piece>,
}

impl Manifest {
    pub(super) fn objects(&self) -> impl Iterator<Item = &Entry> {
        let chunks = self.journal.chunks.iter().map(|chunk| &chunk.object);
        chunks.chain(&self.checkpoint_objects).chain(self.files.iter().map(|piece| &piece.object))
    }

    /// A line of JSON and its checksum.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, BackupError> {
        let json = serde_json::to_string(self).map_err(|error| BackupError::Refused(error.to_string()))?;
        Ok(format!("{json}\n{:016x}\n", xxh3_64(json.as_bytes())).into_bytes())
    }
}

/// A backup that is being written. What was put is noted.
pub(super) struct Archive {
    store: Store,
    put: Vec<String>,
}

impl Archive {
    pub(super) fn create(place: &Place) -> Result<Archive, BackupError> {
        if let Place::Folder(folder) = place {
            // It has all readings: nobody else is to read them.
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(BackupError::io(folder))?;
        }
        let store = Store::open(place)?;
        // A store that does not answer is found now, in a minute, before anything is read and packed for it.
        store.get(MANIFEST, MANIFEST_BYTES)?;
        Ok(Archive { store, put: Vec::new() })
    }

    pub(super) fn put(&mut self, path: String, content: Bytes) -> Result<Entry, BackupError> {
        self.put.push(path.clone());
        let entry = Entry::of(path.clone(), &content);
        self.store.put(path, content)?;
        Ok(entry)
    }

    pub(super) fn put_chunk(&mut self, number: usize, plain: &[u8]) -> Result<Chunk, BackupError> {
        let path = format!("journal/{number:06}.blocks");
        let packed = zstd::bulk::compress(plain, ZSTD_LEVEL).map_err(BackupError::io(&path))?;
        Ok(Chunk { object: self.put(path, packed.into())?, plain_bytes: plain.len() as u64 })
    }

    /// The backup is there when this returns.
    pub(super) fn publish(&mut self, manifest: &Manifest) -> Result<(), BackupError> {
        Ok(self.store.put(MANIFEST.into(), manifest.to_bytes()?.into())?)
    }

    /// Removes what was put of a backup that will not be.
    pub(super) fn discard(&self) {
        let manifest = [MANIFEST.to_owned()];
        if let Err(error) = self.store.delete(manifest.into_iter().chain(self.put.iter().cloned()).collect())
        {
            tracing::warn!("what was written of a backup cannot be removed: {error}");
        }
        if let Place::Folder(folder) = self.store.place() {
            remove_empty_folders(folder);
        }
    }
}

/// Where it is not empty it is left.
fn remove_empty_folders(folder: &std::path::Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .for_each(|path| remove_empty_folders(&path));
    let _ = std::fs::remove_dir(folder);
}

/// Adds a block to a chunk.
pub(super) fn push_block(chunk: &mut Vec<u8>, key: &[u8], stored: &[u8]) {
    chunk.extend_from_slice(key);
    chunk.extend_from_slice(&(stored.len() as u32).to_le_bytes());
    chunk.extend_from_slice(stored);
}

/// A backup that is there.
pub(super) struct Found {
    place: Place,
    store: Store,
    pub manifest: Manifest,
}

impl Found {
    /// The backup at a place, or else the newest of those below it.
    pub(super) fn open(place: &Place) -> Result<Found, BackupError> {
        if let Place::Folder(folder) = place
            && !folder.is_dir()
        {
            return Err(BackupError::Refused(format!(
                "{place} is not a folder: name a backup, or the place of many"
            )));
        }
        let store = Store::open(place)?;
        if let Some(manifest) = read_manifest(&store)? {
            return Ok(Found { place: place.clone(), store, manifest });
        }
        let below = store.list("")?;
        let names = below.keys().filter_map(|path| path.strip_suffix(MANIFEST)?.strip_suffix('/'));
        let newest = names.filter(|name| !name.contains('/')).max();
        let newest = newest.ok_or_else(|| BackupError::Refused(format!("there is no backup at {place}")))?;
        let place = place.join(newest);
        let store = Store::open(&place)?;
        match read_manifest(&store)? {
            Some(manifest) => Ok(Found { place, store, manifest }),
            None => Err(BackupError::Refused(format!("there is no backup at {place}"))),
        }
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> BackupError {
        BackupError::Damaged { place: self.place.to_string(), what: what.into() }
    }

    /// The content of an object, as it was written.
    pub(super) fn read(&self, entry: &Entry) -> Result<Bytes, BackupError> {
        let wrong = |what: String| self.damaged(format!("{} {what}", entry.path));
        let found = self.store.get_sized(&entry.path, entry.bytes)?;
        let content = found.content(&entry.bytes.to_string()).map_err(wrong)?;
        match Entry::of(entry.path.clone(), &content) == *entry {
            true => Ok(content),
            false => Err(wrong("does not have its digest".into())),
        }
    }

    /// Gives all blocks of the journal, in the order in which they were copied: whole, and one behind the other.
    pub(super) fn each_block(&self, each: &mut TakeBlock<'_, BackupError>) -> Result<(), BackupError> {
        let JournalPart { begins, ends, chunks, .. } = &self.manifest.journal;
        let mut sequence = BlockSequence::new(begins).map_err(BackupError::io("the journal"))?;
        for chunk in chunks {
            let plain = self.plain(chunk)?;
            let mut rest = &plain[..];
            while !rest.is_empty() {
                let (key, stored) = take_block(&mut rest)
                    .ok_or_else(|| self.damaged(format!("{} is cut off", chunk.object.path)))?;
                sequence.push(key, stored).map_err(|what| self.damaged(what))?;
                each(key, stored)?;
            }
        }
        sequence.check_ends(ends).map_err(|what| self.damaged(what))
    }

    fn plain(&self, chunk: &Chunk) -> Result<Vec<u8>, BackupError> {
        let wrong = |what: &str| self.damaged(format!("{} {what}", chunk.object.path));
        if chunk.plain_bytes > MOST_CHUNK_BYTES {
            return Err(wrong("is larger than any chunk"));
        }
        let plain = zstd::bulk::decompress(&self.read(&chunk.object)?, chunk.plain_bytes as usize);
        let plain = plain.map_err(|error| wrong(&format!("cannot be unpacked: {error}")))?;
        match plain.len() as u64 == chunk.plain_bytes {
            true => Ok(plain),
            false => Err(wrong("does not have its length")),
        }
    }

    pub(super) fn checkpoints(&self) -> Result<Checkpoints, BackupError> {
        Ok(Checkpoints::open(&self.place.join(FOLDER))?)
    }

    pub(super) fn checkpoint_names(&self) -> Result<Vec<Name>, BackupError> {
        let parse = |name: &String| name.parse::<Name>().map_err(|what| self.damaged(what));
        self.manifest.checkpoints.iter().map(parse).collect()
    }
}

fn take_block<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (key, after) = rest.split_at_checked(KEY_BYTES)?;
    let (length, after) = after.split_first_chunk::<4>()?;
    let (stored, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    Some((key, stored))
}

fn read_manifest(store: &Store) -> Result<Option<Manifest>, BackupError> {
    let place = || store.place().to_string();
    let damaged = |what: &str| BackupError::Damaged { place: place(), what: format!("{MANIFEST} {what}") };
    let content = match store.get(MANIFEST, MANIFEST_BYTES)? {
        Fetched::Missing => return Ok(None),
        found => found.content("less").map_err(|what| damaged(&what))?,
    };
    let lines = std::str::from_utf8(&content).ok().and_then(|text| text.strip_suffix('\n')?.split_once('\n'));
    let (json, sum) = lines.ok_or_else(|| damaged("is cut off"))?;
    if sum != format!("{:016x}", xxh3_64(json.as_bytes())) {
        return Err(damaged("does not have its checksum"));
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| damaged(&format!("is none ({error})"));
    let Format { format } = serde_json::from_str(json).map_err(unreadable)?;
    if format != FORMAT {
        return Err(BackupError::Format { place: place(), found: format, known: FORMAT });
    }
    let manifest: Manifest = serde_json::from_str(json).map_err(unreadable)?;
    let JournalPart { begins, ends, .. } = &manifest.journal;
    match !begins.is_empty() && begins.len() == ends.len() && begins.iter().zip(ends).all(|(b, e)| b <= e) {
        true => Ok(Some(manifest)),
        false => Err(damaged("does not have the partitions of a journal")),
    }
}

/// What a backup that is whole has.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Where it is.
    pub backup: String,
    pub created_at: String,
    /// Of the journal.
    pub records: u64,
    pub checkpoints: usize,
    /// Other files of the data directory.
    pub files: usize,
    pub bytes: u64,
}

/// Reads all of a backup, or of the newest one below a place.
pub fn verify(place: &Place) -> Result<Checked, BackupError> {
    verify_found(&Found::open(place)?)
}

pub(super) fn verify_found(found: &Found) -> Result<Checked, BackupError> {
    found.each_block(&mut |_, _| Ok(()))?;
    let manifest = &found.manifest;
    for entry in manifest.checkpoint_objects.iter().chain(manifest.files.iter().map(|piece| &piece.object)) {
        found.read(entry)?;
    }
    let names = found.checkpoint_names()?;
    if let Some(newest) = names.last() {
        let checkpoints = found.checkpoints()?;
        checkpoints.verify(&checkpoints.read(*newest)?)?;
    }
    let files: BTreeSet<&String> = manifest.files.iter().map(|piece| &piece.file).collect();
    Ok(Checked {
        backup: found.place.to_string(),
        created_at: manifest.created_at.clone(),
        records: manifest.journal.records(),
        checkpoints: names.len(),
        files: files.len(),
        bytes: manifest.objects().map(|object| object.bytes).sum(),
    })
}
