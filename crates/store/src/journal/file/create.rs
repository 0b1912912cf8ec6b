//! Creating a store file: it is complete before it gets its name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;

use super::backend::Backend;
use super::lock::folder_of;
use crate::error::Error;

/// The part of an unfinished file's name between the name of the store and the random characters.
const UNFINISHED: &str = ".unfinished-";

/// The end of the name of an unfinished file.
const NEW: &str = ".new";

/// Creates a store file without leases. It is complete before it gets its name.
///
/// `fill` writes the content of a new file, and closes it. A crash leaves no file at `path`, so an
/// empty file there is always damage. An error leaves no file at all.
pub(crate) fn create(
    path: &Path,
    fill: impl FnOnce(Backend) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |source| Error::File { action: "make", path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(UNFINISHED);
    // Dropping it removes the file.
    let unfinished = tempfile::Builder::new()
        .prefix(&name)
        .suffix(NEW)
        .tempfile_in(folder_of(path))
        .map_err(failed)?;
    set_mode(unfinished.path(), 0o600).map_err(failed)?;
    let file = unfinished.reopen().map_err(failed)?;
    let backend = FileBackend::new(file).map_err(|error| failed(io::Error::other(error)))?;
    fill(Backend::of_file(backend)).map_err(|error| match error {
        Error::File { source, .. } => failed(source),
        other => other,
    })?;
    // Never replaces a file that was created there in the meantime: that one is opened then.
    match unfinished.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error.error)),
    }
    File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Removes unfinished files beside `store`, left by servers that were killed while they created them.
///
/// The path has to be locked. A file that another server has open is left alone.
pub(crate) fn remove_unfinished(store: &Path) {
    let Ok(entries) = std::fs::read_dir(folder_of(store)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !is_unfinished(store, &name.to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        let unused = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if unused && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            match std::fs::remove_file(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed an unfinished store"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an unfinished store stays");
                }
            }
        }
    }
}

/// Whether a file of that name is an unfinished store of `path`. The first version put the process id
/// in the middle of the name; later versions put random characters there.
fn is_unfinished(path: &Path, name: &str) -> bool {
    let store = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(middle) = name.strip_prefix(&*store).and_then(|rest| rest.strip_suffix(NEW)) else {
        return false;
    };
    let (mark, is_known): (_, fn(char) -> bool) = match middle.strip_prefix(UNFINISHED) {
        Some(random) => (random, |char| char.is_ascii_alphanumeric()),
        None => (middle.strip_prefix('.').unwrap_or_default(), |char| char.is_ascii_digit()),
    };
    !mark.is_empty() && mark.chars().all(is_known)
}

/// Creates `folder` and its missing parents, with access for the owner only.
///
/// # Errors
///
/// A folder cannot be created.
pub(crate) fn make_folders(folder: &Path) -> io::Result<()> {
    let missing: Vec<PathBuf> = folder
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        .map(Path::to_owned)
        .collect();
    for folder in missing.iter().rev() {
        #[cfg_attr(not(unix), expect(unused_mut, reason = "there are no modes"))]
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(folder) {
            Ok(()) => set_mode(folder, 0o700)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sets exactly this mode on a new file or folder, whatever the umask is.
#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_a_server_did_not_finish_are_taken_for_unfinished() {
        let path = Path::new("/var/lib/s.redb");
        for name in ["s.redb.unfinished-aB3.new", "s.redb.4711.new"] {
            assert!(is_unfinished(path, name), "{name}");
        }
        for name in [
            "s.redb",
            "s.redb.new",
            "s.redb..new",
            "s.redb.old.new",
            "s.redb.unfinished-.new",
            "s.redb.unfinished-a.b.new",
            "t.redb.4711.new",
            "s.redb.4711",
        ] {
            assert!(!is_unfinished(path, name), "{name}");
        }
    }

    #[test]
    fn what_a_killed_server_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let names = ["s.redb.1.new", "s.redb.unfinished-x.new", "s.redb.unfinished-y.new", "mine"];
        for name in names {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        // Another server uses this file. Its version takes no lock file beside the store.
        let open = File::open(folder.path().join(names[2])).unwrap();
        open.lock().unwrap();
        remove_unfinished(&path);
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [names[3], names[2]]);
    }
}
