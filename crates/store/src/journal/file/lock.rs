//! The lock of the path of a store file, and the check whether the path still leads to the file.
//!
//! redb locks the file that it has open. That does not protect the path: after the file was removed or
//! replaced, the path leads to a file without a lock. So the path has a lock of its own, a file beside
//! the store. The kernel releases the lock when the process ends, also after a kill.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::answers::Unavailable;
use crate::error::Error;
use crate::journal::Watch;

/// How often to try to lock a lock file that other servers remove at the same time.
const TRIES: usize = 100;

/// The identity of a file, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    /// The device and the inode.
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self(metadata.dev(), metadata.ino())
    }

    /// Other systems do not let an open file be removed or replaced.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Self {
        Self(0, 0)
    }

    /// Whether `path` leads to the open `file`.
    fn is_at(path: &Path, file: &File) -> bool {
        let at = |metadata: io::Result<Metadata>| metadata.map(|metadata| Self::of(&metadata)).ok();
        let found = at(std::fs::metadata(path));
        found.is_some() && found == at(file.metadata())
    }
}

/// The folder of `path`.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The lock of a path. Dropping it releases the lock and removes the lock file.
#[derive(Debug)]
pub(crate) struct PathLock {
    path: PathBuf,
    file: File,
}

impl PathLock {
    /// Locks the path of `store`; `None` when another server has locked it.
    fn take(store: &Path) -> io::Result<Option<Self>> {
        let path = Self::path(store)?;
        for _ in 0..TRIES {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let file = options.open(&path)?;
            // Set whatever the umask is, so that the next server can open a file that was left behind.
            #[cfg(unix)]
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The server that had the lock before may have removed the file after it was opened here.
            if Identity::is_at(&path, &file) {
                return Ok(Some(Self { path, file }));
            }
        }
        Err(io::Error::other("its lock file is removed again and again"))
    }

    /// The lock file is beside the store file itself, not beside a link to it.
    fn path(store: &Path) -> io::Result<PathBuf> {
        let mut path = match std::fs::canonicalize(store) {
            Ok(path) => path,
            Err(_) => std::fs::canonicalize(folder_of(store))?
                .join(store.file_name().ok_or(io::ErrorKind::InvalidFilename)?),
        }
        .into_os_string();
        path.push(".lock");
        Ok(path.into())
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // The lock is still held, so that this does not remove the lock file of another server. A
        // lock file that cannot be removed does not keep the next server from locking it.
        if Identity::is_at(&self.path, &self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Locks `path` for one store.
///
/// Where no lock file can be created, in a read-only folder or on a full disk, the path is not
/// locked: a process that cannot write there cannot replace the store file either.
///
/// # Errors
///
/// [`Error::InUse`] when another server has locked it.
pub(crate) fn lock_path(path: &Path) -> Result<Option<PathLock>, Error> {
    match PathLock::take(path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Error::InUse { path: path.to_owned() }),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "there is no lock file");
            Ok(None)
        }
    }
}

/// An open store file and its path, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct FileWatch {
    path: PathBuf,
    lock: Mutex<Option<PathLock>>,
    file: Identity,
}

impl FileWatch {
    /// Remembers which file is at the path.
    pub(crate) fn of(path: &Path, lock: Option<PathLock>, file: &File) -> io::Result<Self> {
        let (path, file) = (path.to_owned(), Identity::of(&file.metadata()?));
        Ok(Self { path, lock: Mutex::new(lock), file })
    }

    /// Locks the path again if the lock file was removed, as when a folder is emptied.
    fn renew(&self) {
        let mut lock = self.lock.lock();
        if lock.as_ref().is_some_and(|lock| Identity::is_at(&lock.path, &lock.file)) {
            return;
        }
        // This fails when another server has locked the path, or the folder is gone. The check of the
        // store file notices both.
        if let Ok(Some(taken)) = PathLock::take(&self.path) {
            *lock = Some(taken);
        }
    }

    /// Whether the path still leads to the file: `false` when the file is gone from there, or
    /// another one is there.
    fn is_in_place(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Identity::of(&metadata) == self.file,
            // After any other error the file may still be there.
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::StaleNetworkFileHandle
            ),
        }
    }
}

impl Watch for FileWatch {
    /// Checks that the path still leads to the file, and keeps the path locked.
    fn check(&self) -> Result<(), Unavailable> {
        self.renew();
        if self.is_in_place() { Ok(()) } else { Err(Unavailable::FileLost) }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        std::fs::write(&path, "x").unwrap();
        (folder, path)
    }

    fn watch(path: &Path) -> FileWatch {
        FileWatch::of(path, lock_path(path).unwrap(), &File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn one_path_is_locked_once_and_other_paths_beside_it_are_free() {
        let (folder, path) = store();
        let lock = lock_path(&path).unwrap();
        assert!(lock.is_some());
        assert!(matches!(lock_path(&path), Err(Error::InUse { .. })));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(lock_path(&link), Err(Error::InUse { .. })));
        assert!(lock_path(&folder.path().join("t.redb")).unwrap().is_some());
        drop(lock);
        assert!(lock_path(&path).unwrap().is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no lock file is left");
    }

    #[test]
    fn a_lock_file_that_a_killed_server_left_is_taken() {
        let (folder, path) = store();
        std::fs::write(folder.path().join("s.redb.lock"), "").unwrap();
        assert!(lock_path(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_removed_replaced_or_put_back_is_told_from_the_one_that_is_open() {
        let (folder, path) = store();
        let watch = watch(&path);
        assert!(watch.check().is_ok());
        let aside = folder.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        assert!(watch.check().is_err());
        std::fs::write(&path, "another").unwrap();
        assert!(watch.check().is_err());
        std::fs::rename(&aside, &path).unwrap();
        assert!(watch.check().is_ok());
        drop(folder);
        assert!(watch.check().is_err());
    }

    #[test]
    fn a_path_stays_locked_when_its_folder_is_emptied() {
        let (folder, path) = store();
        let watch = watch(&path);
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert!(watch.check().is_err());
        assert!(matches!(lock_path(&path), Err(Error::InUse { .. })));
    }
}
