//! Which errors of the operating system are transient, and what a person does about each.
//!
//! [`classify_fault`] is the only place that decides which errors are retried, and [`remedy_for`]
//! the only one that says what to do.

use std::error::Error;
use std::io;
use std::path::Path;

use rustix::io::Errno;

pub const REMEDY_OPEN_FILES: &str =
    "too many open files: raise `ulimit -n` (with systemd LimitNOFILE=), or close some";
const REMEDY_OPEN_FILES_OF_HOST: &str =
    "too many open files on this host: raise fs.file-max (sysctl), or end processes that hold them";
const REMEDY_MEMORY: &str = "free memory on this host, or allow this process more";

/// Whether an operation that failed may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// The error passes once a resource is free again: open files, memory, disk space. The
    /// operation waits and is retried.
    Transient,
    /// The error stays: the run ends.
    Permanent,
}

/// Classifies an error. Call it only if a retry is safe: a failed sync of a file loses the data
/// that it was to make durable, so such an error is always permanent.
pub fn classify_fault(error: &(dyn Error + 'static)) -> FaultClass {
    match find_errno(error) {
        Some(
            Errno::MFILE
            | Errno::NFILE
            | Errno::AGAIN
            | Errno::INTR
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::NOSPC
            | Errno::DQUOT
            | Errno::FBIG,
        ) => FaultClass::Transient,
        _ => FaultClass::Permanent,
    }
}

pub fn is_transient(error: &(dyn Error + 'static)) -> bool {
    classify_fault(error) == FaultClass::Transient
}

/// What a person does about an error of the file or folder at `path`. It always has a text.
pub fn remedy_for(error: &(dyn Error + 'static), path: &Path) -> String {
    let remedy = find_errno(error).and_then(|errno| remedy_for_errno(errno, path));
    remedy.unwrap_or_else(|| format!("check that {} is complete and can be read and written", path.display()))
}

/// The remedy, with `": "` in front; empty if no remedy is known and the error's own text has to
/// do.
pub fn remedy_suffix(error: &(dyn Error + 'static), path: &Path) -> String {
    let remedy_text = find_errno(error).and_then(|errno| remedy_for_errno(errno, path));
    remedy_text.map_or(String::new(), |remedy| format!(": {remedy}"))
}

/// What a person does if a limit of the process or of the host is reached; `None` for other errors.
pub fn limit_remedy(error: &(dyn Error + 'static)) -> Option<&'static str> {
    match find_errno(error)? {
        Errno::MFILE => Some(REMEDY_OPEN_FILES),
        Errno::NFILE => Some(REMEDY_OPEN_FILES_OF_HOST),
        Errno::NOMEM | Errno::NOBUFS => Some(REMEDY_MEMORY),
        _ => None,
    }
}

fn remedy_for_errno(errno: Errno, path: &Path) -> Option<String> {
    let path = path.display();
    Some(match errno {
        Errno::NOSPC => format!("free space on the disk of {path}"),
        Errno::DQUOT => {
            format!("free space within this user's quota on the disk of {path}, or raise the quota")
        }
        Errno::FBIG => {
            "larger files are not allowed: raise `ulimit -f` (with systemd LimitFSIZE=)".to_owned()
        }
        Errno::ACCESS | Errno::PERM => format!("make {path} readable and writable by this user"),
        Errno::ROFS => format!("the file system of {path} is read-only: mount it writable"),
        Errno::IO => {
            format!(
                "the disk of {path} fails: see the kernel's log, repair the disk, then restore from a backup"
            )
        }
        Errno::NOENT => format!("{path} is missing: restore it, also from a backup"),
        Errno::NOTDIR => format!("a part of the path {path} is not a folder: move that file away"),
        Errno::ISDIR | Errno::EXIST => {
            format!("something else is in the place of {path}: move that away")
        }
        Errno::NAMETOOLONG | Errno::LOOP => format!("{path} cannot be a path: choose another one"),
        _ => return limit_remedy(&io::Error::from(errno)).map(str::to_owned),
    })
}

/// The number of an error of the operating system, at whatever depth of a chain of errors it is.
pub fn find_errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    let mut next = Some(error);
    while let Some(error) = next {
        next = match error.downcast_ref::<io::Error>() {
            None => error.source(),
            Some(error) => match (Errno::from_io_error(error), error.get_ref()) {
                (Some(errno), _) => return Some(errno),
                (None, Some(inner)) => Some(inner as &(dyn Error + 'static)),
                (None, None) => return errno_of_kind(error.kind()),
            },
        };
    }
    None
}

fn errno_of_kind(kind: io::ErrorKind) -> Option<Errno> {
    use io::ErrorKind;
    match kind {
        ErrorKind::StorageFull => Some(Errno::NOSPC),
        ErrorKind::QuotaExceeded => Some(Errno::DQUOT),
        ErrorKind::FileTooLarge => Some(Errno::FBIG),
        ErrorKind::PermissionDenied => Some(Errno::ACCESS),
        ErrorKind::ReadOnlyFilesystem => Some(Errno::ROFS),
        ErrorKind::NotFound => Some(Errno::NOENT),
        ErrorKind::OutOfMemory => Some(Errno::NOMEM),
        ErrorKind::Interrupted => Some(Errno::INTR),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of a library that wraps one of the operating system.
    #[derive(Debug, thiserror::Error)]
    #[error("it does not work")]
    struct WrappedError(#[source] io::Error);

    fn with_wrappings(errno: Errno) -> [Box<dyn Error>; 3] {
        let error = || io::Error::from(errno);
        [
            Box::new(error()),
            Box::new(WrappedError(error())),
            Box::new(io::Error::other(WrappedError(error()))),
        ]
    }

    #[test]
    fn transient_errors_are_limits_and_disk_space() {
        use Errno as E;
        for errno in [E::MFILE, E::NFILE, E::AGAIN, E::INTR, E::NOMEM, E::NOBUFS, E::NOSPC, E::DQUOT, E::FBIG]
        {
            for error in with_wrappings(errno) {
                assert_eq!(classify_fault(&*error), FaultClass::Transient, "{error:?}");
            }
        }
        for errno in [E::IO, E::ROFS, E::NOENT, E::ACCESS, E::PERM, E::NOTDIR, E::BADF, E::INVAL, E::STALE] {
            for error in with_wrappings(errno) {
                assert_eq!(classify_fault(&*error), FaultClass::Permanent, "{error:?}");
            }
        }
        assert_eq!(classify_fault(&io::Error::other("of nothing known")), FaultClass::Permanent);
        assert_eq!(classify_fault(&io::Error::from(io::ErrorKind::StorageFull)), FaultClass::Transient);
    }

    #[test]
    fn remedies_match_error_and_name_path() {
        let path = Path::new("/data/x");
        for (errno, expected) in [
            (Errno::MFILE, "`ulimit -n`"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::NOSPC, "free space on the disk of /data/x"),
            (Errno::DQUOT, "quota on the disk of /data/x"),
            (Errno::FBIG, "`ulimit -f`"),
            (Errno::ACCESS, "make /data/x readable and writable by this user"),
            (Errno::ROFS, "/data/x is read-only"),
            (Errno::IO, "the disk of /data/x fails"),
            (Errno::NOENT, "/data/x is missing"),
            (Errno::NOMEM, "free memory"),
        ] {
            for error in with_wrappings(errno) {
                let remedy = remedy_for(&*error, path);
                assert!(remedy.contains(expected), "{errno:?}: {remedy}");
                assert!(errno == Errno::ACCESS || !remedy.contains("readable and writable"), "{remedy}");
                assert_eq!(remedy_suffix(&*error, path), format!(": {remedy}"));
            }
        }
        let unknown = io::Error::other("its folder is not there: make it first");
        assert_eq!(remedy_suffix(&unknown, path), "");
    }
}
