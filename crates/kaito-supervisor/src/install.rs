//! Copies this program to where a container of another image runs it.

use std::{env, fs, io, os::unix::fs::PermissionsExt, path::Path};

use crate::Error;

/// Copies the running program to `path`, whose folder must be there, and makes it executable for everybody. Whatever was there is
/// replaced at once, also where it runs.
///
/// # Errors
/// [`Error::Install`].
pub fn install(path: &Path) -> Result<(), Error> {
    let copied = || -> io::Result<()> {
        let program = env::current_exe()?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut beside = name.to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = path.with_file_name(beside);
        let written = fs::copy(program, &beside)
            .and_then(|_| fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&beside, path));
        if written.is_err() {
            // What a full disk left of it.
            let _ = fs::remove_file(&beside);
        }
        written
    };
    copied().map_err(|source| Error::Install { path: path.to_owned(), source })
}
