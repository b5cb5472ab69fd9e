//! The folder of results of a case, and a fault of it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Where the folder sink of a case writes.
pub fn results_folder(case: &Path) -> PathBuf {
    case.join("archive")
}

/// The table of the configuration. Its files are small, so a case finishes many.
pub fn folder_sink_table(case: &Path) -> String {
    format!(
        "[[sinks]]\ntype = \"folder\"\npath = {:?}\nshards = 2\ncommit_interval = \"30ms\"\nsegment_bytes = \"64 KiB\"\n",
        results_folder(case)
    )
}

/// Runs `act` while a file is in the place of the folder. There is no moment without either, in
/// which a start could make a new folder.
pub fn while_blocked(case: &Path, act: impl FnOnce()) {
    let (folder, away) = (results_folder(case), case.join("archive-away"));
    let exchange = || renameat_with(CWD, &folder, CWD, &away, RenameFlags::EXCHANGE).unwrap();
    fs::write(&away, "").unwrap();
    exchange();
    act();
    exchange();
    fs::remove_file(&away).unwrap();
}
