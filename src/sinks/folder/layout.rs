//! The files of a folder sink and their names.
//!
//! ```text
//! archive/
//!   folder.json                       the identity of the results
//!   claims/000007                     claims: the highest number may write
//!   writing/shard-00.7/commits.log    durable transactions of shard 0
//!   writing/shard-00.7/rows-00-0001764000000123.jsonl    its open segment
//!   rows-00-0001763990000000.jsonl    finished segments: shard and first epoch
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::plan::FolderFormat;

const MANIFEST: &str = "folder.json";
const CLAIMS: &str = "claims";
const WRITING: &str = "writing";
const COMMITS: &str = "commits.log";
/// The prefixes of a working folder that is being built, and of one that is being removed.
const BUILDING: &str = "building";
const REMOVING: &str = "removing";

/// The first epoch and the name of the newest finished segment, by shard.
pub(super) type FinishedSegments = BTreeMap<u16, (u64, String)>;

/// The paths of the files of a folder sink.
#[derive(Clone, Debug)]
pub(super) struct FolderLayout {
    root: PathBuf,
}

impl FolderLayout {
    pub fn new(root: &Path) -> FolderLayout {
        FolderLayout { root: root.to_path_buf() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn manifest(&self) -> PathBuf {
        self.root.join(MANIFEST)
    }

    pub fn claims(&self) -> PathBuf {
        self.root.join(CLAIMS)
    }

    /// The file of a claim, by its number.
    pub fn claim(&self, number: u64) -> PathBuf {
        self.claims().join(format!("{number:06}"))
    }

    pub fn writing(&self) -> PathBuf {
        self.root.join(WRITING)
    }

    /// The working folder of a shard under a claim.
    pub fn working_folder(&self, shard: u16, claim: u64) -> WorkingFolder {
        WorkingFolder { path: self.writing().join(format!("shard-{shard:02}.{claim}")) }
    }

    /// The path at which the working folder of a claim is built, before it is renamed.
    pub fn building(&self, shard: u16, claim: u64) -> WorkingFolder {
        WorkingFolder { path: self.writing().join(format!("{BUILDING}-{shard:02}.{claim}")) }
    }

    /// The name of a working folder while it is removed.
    pub fn removing(&self, shard: u16, claim: u64) -> PathBuf {
        self.writing().join(format!("{REMOVING}-{shard:02}.{claim}"))
    }

    /// The claims with a working folder of the shard, newest first.
    pub fn working_claims(&self, shard: u16) -> io::Result<Vec<u64>> {
        let mut claims = self.numbers(&format!("shard-{shard:02}."))?;
        claims.sort_unstable_by(|a, b| b.cmp(a));
        Ok(claims)
    }

    /// The half built or half removed working folders of a shard that earlier starts have left.
    pub fn leftovers(&self, shard: u16) -> io::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for prefix in [BUILDING, REMOVING] {
            let prefix = format!("{prefix}-{shard:02}.");
            let numbers = self.numbers(&prefix)?;
            folders.extend(numbers.into_iter().map(|claim| self.writing().join(format!("{prefix}{claim}"))));
        }
        Ok(folders)
    }

    /// The numbers after `prefix` in the names of working folders.
    fn numbers(&self, prefix: &str) -> io::Result<Vec<u64>> {
        let names = file_names(&self.writing())?;
        let number = |name: &String| {
            let number: u64 = name.strip_prefix(prefix)?.parse().ok()?;
            // Other spellings of a number are no names of ours.
            (*name == format!("{prefix}{number}")).then_some(number)
        };
        Ok(names.iter().filter_map(number).collect())
    }

    /// The greatest claim that any shard has a working folder of.
    pub fn newest_working_claim(&self) -> io::Result<Option<u64>> {
        let names = file_names(&self.writing())?;
        let number = |name: &String| name.strip_prefix("shard-")?.split_once('.')?.1.parse().ok();
        Ok(names.iter().filter_map(number).max())
    }

    /// The path of a finished segment.
    pub fn segment(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The newest finished segment of each shard that has any.
    pub fn newest_segments(&self) -> io::Result<FinishedSegments> {
        let mut newest = FinishedSegments::new();
        for name in file_names(&self.root)? {
            let Some((shard, epoch)) = parse_segment_name(&name) else { continue };
            let segment = newest.entry(shard).or_default();
            if segment.0 <= epoch {
                *segment = (epoch, name);
            }
        }
        Ok(newest)
    }

    /// Whether the folder has only the files that an interrupted first start leaves.
    pub fn is_unused(&self) -> io::Result<bool> {
        let ours = [CLAIMS, WRITING, &format!("{MANIFEST}.new")].map(str::to_owned);
        Ok(file_names(&self.root)?.iter().all(|name| ours.contains(name)))
    }
}

/// The folder in which one generation writes one shard.
#[derive(Clone, Debug)]
pub(super) struct WorkingFolder {
    pub path: PathBuf,
}

impl WorkingFolder {
    pub fn commits(&self) -> PathBuf {
        self.path.join(COMMITS)
    }

    pub fn segment(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// The name of the segment of a shard that begins with an epoch. Names sort by epoch.
pub(super) fn segment_name(shard: u16, epoch: u64, format: FolderFormat) -> String {
    format!("rows-{shard:02}-{epoch:016}.{}", format.extension())
}

/// The shard and the first epoch of a segment, which may be compressed, as in
/// `rows-00-0001763990000000.jsonl.gz`.
fn parse_segment_name(name: &str) -> Option<(u16, u64)> {
    let (numbers, _) = name.strip_prefix("rows-")?.split_once('.')?;
    let (shard, epoch) = numbers.split_once('-')?;
    Some((shard.parse().ok()?, epoch.parse().ok()?))
}

/// The names in a folder; empty if the folder does not exist.
pub(super) fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect()
}

/// Whether the path still names the open file, which has not been moved, removed or replaced.
pub(super) fn is_in_place(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates a folder and its missing parents, durably.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    sync_folder(parent.unwrap_or(Path::new(".")))
}
