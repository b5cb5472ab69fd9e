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

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::plan::FolderFormat;

const MANIFEST: &str = "folder.json";
const CLAIMS: &str = "claims";
const WRITING: &str = "writing";
const COMMITS: &str = "commits.log";
/// The prefixes of a working folder that is being built, and of one that is being removed.
const BUILDING: &str = "building";
const REMOVING: &str = "removing";

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
        Ok(names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect())
    }

    /// The path of a finished segment.
    pub fn segment(&self, name: &str) -> PathBuf {
        self.root.join(name)
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

/// The names in a folder; empty if the folder does not exist.
pub(super) fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect()
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
