//! The manifest of a folder: it marks the folder as swelter's, and records the identity of its
//! results.

use std::fs::{self, File};
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::error::FolderError;
use super::layout::{FolderLayout, sync_folder};
use crate::fault::read_small_file;
use crate::sinks::progress::SinkIdentity;

/// The version of the layout and of the files' content.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    identity: SinkIdentity,
}

/// The identity of the results in a folder; `None` if the folder was not written yet.
pub(super) fn read_identity(layout: &FolderLayout) -> Result<Option<SinkIdentity>, FolderError> {
    let path = layout.manifest();
    let bytes = match read_small_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match layout.is_unused().map_err(FolderError::at(layout.root()))? {
                true => Ok(None),
                false => Err(FolderError::NotOurs(layout.root().to_path_buf())),
            };
        }
        read => read.map_err(FolderError::at(&path))?,
    };
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| FolderError::Damaged { path: path.clone(), problem: error.to_string() })?;
    if manifest.format != FORMAT {
        let problem = format!("it has format {}, and this swelter writes {FORMAT}", manifest.format);
        return Err(FolderError::Damaged { path, problem });
    }
    Ok(Some(manifest.identity))
}

/// Makes the identity of the results durable.
pub(super) fn write_identity(layout: &FolderLayout, identity: &SinkIdentity) -> Result<(), FolderError> {
    let (path, new) = (layout.manifest(), layout.manifest().with_extension("json.new"));
    let manifest = Manifest { format: FORMAT, identity: identity.clone() };
    let write = || {
        let mut file = File::create(&new)?;
        serde_json::to_writer_pretty(&mut file, &manifest)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_folder(layout.root())
    };
    write().map_err(FolderError::at(&path))
}
