//! The content of a backup: its manifest and objects, and how they are written and read.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::error::{BackupError, BlockHandler};
use crate::checkpoint::{
    BlobStore, CheckpointLocation, CheckpointName, Checkpoints, DEFAULT_FOLDER, FetchResult,
};
use crate::sources::journal::BlockSequence;

pub(super) const FORMAT: u32 = 1;
pub(super) const MANIFEST: &str = "backup.json";
/// The limit of a backup's manifest, larger than any.
const MANIFEST_BYTES: u64 = 64 << 20;
/// Journal blocks in one object, in bytes before compression; the last block may exceed it.
pub(super) const CHUNK_BYTES: usize = 16 << 20;
/// The limit of a chunk, larger than any.
const MAX_CHUNK_BYTES: u64 = 64 << 20;
const ZSTD_LEVEL: i32 = 1;
/// Bytes of a block's key, and of its length.
const KEY_BYTES: usize = 12;

/// An object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ArchiveEntry {
    /// Relative to the backup.
    pub path: String,
    pub bytes: u64,
    /// In hexadecimal.
    pub xxh3_128: String,
}

impl ArchiveEntry {
    fn of(path: String, content: &[u8]) -> ArchiveEntry {
        ArchiveEntry { path, bytes: content.len() as u64, xxh3_128: format!("{:032x}", xxh3_128(content)) }
    }
}

/// An object of journal blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalChunk {
    pub object: ArchiveEntry,
    /// Bytes after decompression.
    pub plain_bytes: u64,
}

/// A piece of a file of the data directory; the pieces of a file follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePiece {
    /// Relative to the data directory.
    pub file: String,
    pub object: ArchiveEntry,
}

/// The journal, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalPart {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub begins: Vec<u64>,
    pub ends: Vec<u64>,
    pub chunks: Vec<JournalChunk>,
}

impl JournalPart {
    pub(super) fn records(&self) -> u64 {
        self.begins.iter().zip(&self.ends).map(|(begin, end)| end.saturating_sub(*begin)).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupManifest {
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    pub created_at: String,
    pub journal: JournalPart,
    /// Names of the checkpoints, oldest first.
    pub checkpoints: Vec<String>,
    pub checkpoint_objects: Vec<ArchiveEntry>,
    pub files: Vec<FilePiece>,
}

impl BackupManifest {
    pub(super) fn objects(&self) -> impl Iterator<Item = &ArchiveEntry> {
        let chunks = self.journal.chunks.iter().map(|chunk| &chunk.object);
        chunks.chain(&self.checkpoint_objects).chain(self.files.iter().map(|piece| &piece.object))
    }

    /// Encodes the manifest as a line of JSON and its checksum.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, BackupError> {
        let json = serde_json::to_string(self).map_err(|error| BackupError::Refused(error.to_string()))?;
        Ok(format!("{json}\n{:016x}\n", xxh3_64(json.as_bytes())).into_bytes())
    }
}

/// A backup that is being written. Records the objects that were put.
pub(super) struct ArchiveWriter {
    store: BlobStore,
    paths: Vec<String>,
}

impl ArchiveWriter {
    pub(super) fn create(location: &CheckpointLocation) -> Result<ArchiveWriter, BackupError> {
        if let CheckpointLocation::Folder(folder) = location {
            // A backup has all readings: only its owner may read them.
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(BackupError::io(folder))?;
        }
        let store = BlobStore::open(location)?;
        // Detects a store that does not answer within a minute, before anything is read and
        // compressed for it.
        store.get_object(MANIFEST, MANIFEST_BYTES)?;
        Ok(ArchiveWriter { store, paths: Vec::new() })
    }

    pub(super) fn write_object(&mut self, path: String, content: Bytes) -> Result<ArchiveEntry, BackupError> {
        self.paths.push(path.clone());
        let entry = ArchiveEntry::of(path.clone(), &content);
        self.store.put_object(path, content)?;
        Ok(entry)
    }

    pub(super) fn put_chunk(&mut self, number: usize, plain: &[u8]) -> Result<JournalChunk, BackupError> {
        let path = format!("journal/{number:06}.blocks");
        let packed = zstd::bulk::compress(plain, ZSTD_LEVEL).map_err(BackupError::io(&path))?;
        Ok(JournalChunk { object: self.write_object(path, packed.into())?, plain_bytes: plain.len() as u64 })
    }

    /// Writes the manifest. The backup is complete when this returns.
    pub(super) fn publish(&mut self, manifest: &BackupManifest) -> Result<(), BackupError> {
        Ok(self.store.put_object(MANIFEST.into(), manifest.to_bytes()?.into())?)
    }

    /// Removes the objects of a backup that failed.
    pub(super) fn discard(&self) {
        let manifest = [MANIFEST.to_owned()];
        if let Err(error) =
            self.store.delete_objects(manifest.into_iter().chain(self.paths.iter().cloned()).collect())
        {
            tracing::warn!(
                "the files of an unfinished backup cannot be removed: {error}; remove them by hand, since no later backup does"
            );
        }
        if let CheckpointLocation::Folder(folder) = self.store.location() {
            remove_empty_folders(folder);
        }
    }
}

/// Keeps folders that are not empty.
fn remove_empty_folders(folder: &std::path::Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .for_each(|path| remove_empty_folders(&path));
    let _ = std::fs::remove_dir(folder);
}

/// Appends a block to a chunk.
pub(super) fn push_block(chunk: &mut Vec<u8>, key: &[u8], stored: &[u8]) {
    chunk.extend_from_slice(key);
    chunk.extend_from_slice(&(stored.len() as u32).to_le_bytes());
    chunk.extend_from_slice(stored);
}

/// A complete backup.
pub(super) struct ArchiveReader {
    place: CheckpointLocation,
    store: BlobStore,
    pub manifest: BackupManifest,
}

impl ArchiveReader {
    /// Opens the backup at a location, or else the newest one below it.
    pub(super) fn open(location: &CheckpointLocation) -> Result<ArchiveReader, BackupError> {
        if let CheckpointLocation::Folder(folder) = location
            && !folder.is_dir()
        {
            return Err(BackupError::Refused(format!(
                "{location} is not a folder: name a backup, or the folder that holds the backups"
            )));
        }
        let store = BlobStore::open(location)?;
        if let Some(manifest) = read_manifest(&store)? {
            return Ok(ArchiveReader { place: location.clone(), store, manifest });
        }
        let below = store.list_objects("")?;
        let names = below.keys().filter_map(|path| path.strip_suffix(MANIFEST)?.strip_suffix('/'));
        let newest = names.filter(|name| !name.contains('/')).max();
        let newest =
            newest.ok_or_else(|| BackupError::Refused(format!("there is no backup at {location}")))?;
        let location = location.join(newest);
        let store = BlobStore::open(&location)?;
        match read_manifest(&store)? {
            Some(manifest) => Ok(ArchiveReader { place: location, store, manifest }),
            None => Err(BackupError::Refused(format!("there is no backup at {location}"))),
        }
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> BackupError {
        BackupError::Damaged { place: self.place.to_string(), what: what.into() }
    }

    /// The content of an object, as it was written.
    pub(super) fn read(&self, entry: &ArchiveEntry) -> Result<Bytes, BackupError> {
        let damaged_entry = |what: String| self.damaged(format!("{} {what}", entry.path));
        let fetch_result = self.store.get_object_of_size(&entry.path, entry.bytes)?;
        let content = fetch_result.into_content(&entry.bytes.to_string()).map_err(damaged_entry)?;
        match ArchiveEntry::of(entry.path.clone(), &content) == *entry {
            true => Ok(content),
            false => Err(damaged_entry("does not match its digest".into())),
        }
    }

    /// Passes all blocks of the journal to `each`, whole, and in the order in which they were
    /// copied.
    pub(super) fn each_block(&self, each: &mut BlockHandler<'_, BackupError>) -> Result<(), BackupError> {
        let JournalPart { begins, ends, chunks, .. } = &self.manifest.journal;
        let mut sequence = BlockSequence::new(begins).map_err(BackupError::io("the journal"))?;
        for chunk in chunks {
            let plain = self.decompress_chunk(chunk)?;
            let mut rest = &plain[..];
            while !rest.is_empty() {
                let (key, stored) = split_block(&mut rest)
                    .ok_or_else(|| self.damaged(format!("{} is truncated", chunk.object.path)))?;
                sequence.push_block(key, stored).map_err(|what| self.damaged(what))?;
                each(key, stored)?;
            }
        }
        sequence.check_ends(ends).map_err(|what| self.damaged(what))
    }

    fn decompress_chunk(&self, chunk: &JournalChunk) -> Result<Vec<u8>, BackupError> {
        let damaged_chunk = |what: &str| self.damaged(format!("{} {what}", chunk.object.path));
        if chunk.plain_bytes > MAX_CHUNK_BYTES {
            return Err(damaged_chunk("is larger than the greatest chunk"));
        }
        let plain = zstd::bulk::decompress(&self.read(&chunk.object)?, chunk.plain_bytes as usize);
        let plain = plain.map_err(|error| damaged_chunk(&format!("cannot be decompressed: {error}")))?;
        match plain.len() as u64 == chunk.plain_bytes {
            true => Ok(plain),
            false => Err(damaged_chunk("does not have the length that the manifest gives")),
        }
    }

    pub(super) fn checkpoints(&self) -> Result<Checkpoints, BackupError> {
        Ok(Checkpoints::open(&self.place.join(DEFAULT_FOLDER))?)
    }

    pub(super) fn checkpoint_names(&self) -> Result<Vec<CheckpointName>, BackupError> {
        let parse = |name: &String| name.parse::<CheckpointName>().map_err(|what| self.damaged(what));
        self.manifest.checkpoints.iter().map(parse).collect()
    }
}

fn split_block<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (key, after) = rest.split_at_checked(KEY_BYTES)?;
    let (length, after) = after.split_first_chunk::<4>()?;
    let (stored, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    Some((key, stored))
}

fn read_manifest(store: &BlobStore) -> Result<Option<BackupManifest>, BackupError> {
    let location = || store.location().to_string();
    let damaged = |what: &str| BackupError::Damaged { place: location(), what: format!("{MANIFEST} {what}") };
    let content = match store.get_object(MANIFEST, MANIFEST_BYTES)? {
        FetchResult::Missing => return Ok(None),
        found => found.into_content("less").map_err(|what| damaged(&what))?,
    };
    let lines = std::str::from_utf8(&content).ok().and_then(|text| text.strip_suffix('\n')?.split_once('\n'));
    let (json, sum) = lines.ok_or_else(|| damaged("is truncated"))?;
    if sum != format!("{:016x}", xxh3_64(json.as_bytes())) {
        return Err(damaged("does not match its checksum"));
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| damaged(&format!("is not a manifest ({error})"));
    let Format { format } = serde_json::from_str(json).map_err(unreadable)?;
    if format != FORMAT {
        return Err(BackupError::Format { place: location(), found: format, known: FORMAT });
    }
    let manifest: BackupManifest = serde_json::from_str(json).map_err(unreadable)?;
    let JournalPart { begins, ends, .. } = &manifest.journal;
    match !begins.is_empty() && begins.len() == ends.len() && begins.iter().zip(ends).all(|(b, e)| b <= e) {
        true => Ok(Some(manifest)),
        false => Err(damaged("does not list the partitions of a journal")),
    }
}

/// The content of a backup that was verified.
#[derive(Clone, Debug, Serialize)]
pub struct BackupSummary {
    /// Path or URL of the backup.
    pub backup: String,
    pub created_at: String,
    /// Records of the journal.
    pub records: u64,
    pub checkpoints: usize,
    /// Other files of the data directory.
    pub files: usize,
    pub bytes: u64,
}

/// Verifies a backup, or the newest one below a location, by reading all of it.
pub fn verify_backup(location: &CheckpointLocation) -> Result<BackupSummary, BackupError> {
    verify_archive(&ArchiveReader::open(location)?)
}

pub(super) fn verify_archive(archive: &ArchiveReader) -> Result<BackupSummary, BackupError> {
    archive.each_block(&mut |_, _| Ok(()))?;
    let manifest = &archive.manifest;
    for entry in manifest.checkpoint_objects.iter().chain(manifest.files.iter().map(|piece| &piece.object)) {
        archive.read(entry)?;
    }
    let names = archive.checkpoint_names()?;
    if let Some(newest) = names.last() {
        let checkpoints = archive.checkpoints()?;
        checkpoints.verify_contents(&checkpoints.read_manifest(*newest)?)?;
    }
    let files: BTreeSet<&String> = manifest.files.iter().map(|piece| &piece.file).collect();
    Ok(BackupSummary {
        backup: archive.place.to_string(),
        created_at: manifest.created_at.clone(),
        records: manifest.journal.records(),
        checkpoints: names.len(),
        files: files.len(),
        bytes: manifest.objects().map(|object| object.bytes).sum(),
    })
}
