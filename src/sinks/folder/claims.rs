//! Claims of a folder: a numbered file for each claim says who may write.
//!
//! A claim is made by a hard link, which fails if its name exists, so each number has one owner,
//! and the next claim gets the next number. A claim holds as long as its file exists and the file
//! of the next number does not. There is no lock, because a lock that a suspended process holds
//! could not be taken over.

use std::fs::{self, File};
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::error::FolderError;
use super::layout::{FolderLayout, create_folder, file_names, sync_folder};
use crate::fault::read_small_file;
use crate::sinks::progress::Claim;

/// How many claims are kept before the newest one, for a user who inspects the folder.
const KEPT_CLAIMS: usize = 2;

/// A claim with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NumberedClaim {
    pub number: u64,
    pub claim: Claim,
}

/// The newest claim of a folder.
pub(super) fn newest_claim(layout: &FolderLayout) -> Result<Option<NumberedClaim>, FolderError> {
    loop {
        let Some(number) = numbers(layout)?.last().copied() else { return Ok(None) };
        let path = layout.claim(number);
        match read_small_file(&path) {
            Ok(bytes) => {
                let claim = serde_json::from_slice(&bytes)
                    .map_err(|error| FolderError::Damaged { path, problem: error.to_string() })?;
                return Ok(Some(NumberedClaim { number, claim }));
            }
            // A newer claim was made, and has removed this one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FolderError::at(&path)(error)),
        }
    }
}

/// Claims a folder, regardless of its present owner; the caller has checked that it may.
pub(super) fn add_claim(layout: &FolderLayout, claim: &Claim) -> Result<NumberedClaim, FolderError> {
    let folder = layout.claims();
    create_folder(&folder).map_err(FolderError::at(&folder))?;
    let new = folder.join(format!("new-{}-{}", claim.generation, claim.nonce));
    let write = || {
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, claim)?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(FolderError::at(&new))?;
    let number = loop {
        let number = numbers(layout)?.last().map_or(1, |last| last + 1);
        match fs::hard_link(&new, layout.claim(number)) {
            Ok(()) => break number,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(FolderError::at(&layout.claim(number))(error)),
        }
    };
    sync_folder(&folder).map_err(FolderError::sync_at(&folder))?;
    // A leftover does no harm.
    let _ = fs::remove_file(&new);
    let all = numbers(layout)?;
    for old in all.iter().rev().skip_while(|of| **of >= number).skip(KEPT_CLAIMS) {
        let _ = fs::remove_file(layout.claim(*old));
    }
    Ok(NumberedClaim { number, claim: claim.clone() })
}

/// Fails if another start has claimed the folder.
pub(super) fn check_claim(layout: &FolderLayout, own_claim: &NumberedClaim) -> Result<(), FolderError> {
    let exists = |number: u64| {
        let path = layout.claim(number);
        path.try_exists().map_err(FolderError::at(&path))
    };
    if exists(own_claim.number)? && !exists(own_claim.number + 1)? {
        return Ok(());
    }
    let path = layout.root().to_path_buf();
    match newest_claim(layout)? {
        Some(newest) if newest == *own_claim => Ok(()),
        Some(NumberedClaim { claim, .. }) if claim.generation > own_claim.claim.generation => {
            Err(FolderError::Fenced { path, generation: claim.generation })
        }
        Some(NumberedClaim { claim, .. }) => {
            Err(FolderError::SameGeneration { path, generation: claim.generation })
        }
        None => Err(FolderError::Damaged { path: layout.claims(), problem: "its claims are missing".into() }),
    }
}

/// Fails if the folder is not the one that was claimed.
pub(super) fn check_is_same_folder(
    layout: &FolderLayout,
    own_claim: &NumberedClaim,
) -> Result<(), FolderError> {
    let path = layout.claim(own_claim.number);
    let claim = read_small_file(&path).ok().and_then(|bytes| serde_json::from_slice::<Claim>(&bytes).ok());
    match claim {
        Some(claim) if claim == own_claim.claim => Ok(()),
        _ => Err(FolderError::AnotherFolder(layout.root().to_path_buf())),
    }
}

/// The numbers of the claims, ascending.
fn numbers(layout: &FolderLayout) -> Result<Vec<u64>, FolderError> {
    let folder = layout.claims();
    let names = file_names(&folder).map_err(FolderError::at(&folder))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn claim(generation: u64, nonce: &str) -> Claim {
        Claim { generation, nonce: nonce.into() }
    }

    #[test]
    fn claim_is_lost_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = FolderLayout::new(folder.path());
        assert_eq!(newest_claim(&layout).unwrap(), None);
        let mut claims: Vec<NumberedClaim> = Vec::new();
        for generation in 1..6 {
            claims.push(add_claim(&layout, &claim(generation, "a")).unwrap());
            assert_eq!(newest_claim(&layout).unwrap().as_ref(), claims.last());
        }
        for (own, claim) in (1..).zip(&claims) {
            let checked = check_claim(&layout, claim).map_err(|error| error.to_string());
            if own == 5 {
                checked.unwrap();
            } else {
                assert!(checked.unwrap_err().contains("generation 5 of the same results has taken over"));
            }
        }
    }

    #[test]
    fn same_generation_twice_ends_the_first_without_a_takeover() {
        let folder = tempfile::tempdir().unwrap();
        let layout = FolderLayout::new(folder.path());
        let first = add_claim(&layout, &claim(4, "a")).unwrap();
        let second = add_claim(&layout, &claim(4, "b")).unwrap();
        assert!(matches!(check_claim(&layout, &first), Err(FolderError::SameGeneration { .. })));
        check_claim(&layout, &second).unwrap();
    }

    #[test]
    fn claims_at_once_get_numbers_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let layout = FolderLayout::new(folder.path());
        let mut numbers: Vec<u64> = thread::scope(|scope| {
            let claim = |of: u64| {
                let layout = layout.clone();
                scope.spawn(move || add_claim(&layout, &claim(1, &of.to_string())).unwrap().number)
            };
            let all: Vec<_> = (0..8).map(claim).collect();
            all.into_iter().map(|claimed| claimed.join().unwrap()).collect()
        });
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
