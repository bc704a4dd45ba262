//! A folder of an engine's own, in which processes that were killed leave what nobody removes any more: shared memory.

use std::{fs, io, path::Path};

/// Removes whatever lies in a folder, and not the folder. Links are removed and not followed.
///
/// # Errors
/// The first that occurs, once everything that can be removed is.
pub(crate) fn empty(folder: &Path) -> io::Result<()> {
    let mut outcome = Ok(());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            Ok(_) => fs::remove_file(entry.path()),
            Err(error) => Err(error),
        };
        outcome = outcome.and(removed);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_is_empty_and_what_its_links_lead_to_stays() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(elsewhere.path().join("kept"), "").unwrap();
        fs::write(folder.path().join("psm_1234"), "").unwrap();
        fs::create_dir_all(folder.path().join("deep/deeper")).unwrap();
        fs::write(folder.path().join("deep/deeper/file"), "").unwrap();
        symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        empty(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(elsewhere.path().join("kept").exists());
        assert!(empty(&folder.path().join("missing")).is_err());
    }
}
