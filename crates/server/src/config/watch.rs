//! Watches files for changes by polling.
//!
//! Polling needs no service of the operating system and works on every file system. It notices a file
//! that was written in place, a file that was renamed into place, and a link that now leads to another
//! file, as in Kubernetes volumes.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::blocking::blocking;

/// How often files are checked.
pub(crate) const CHECK_EVERY: Duration = Duration::from_millis(500);

/// The most bytes of a file that is watched.
const MAX_BYTES: u64 = 64 << 20;

/// The SHA-256 of the contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(contents: &[u8]) -> Self {
        Self(Sha256::digest(contents).into())
    }

    pub(super) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Files that were read, each with the digest of its contents if it could be read.
pub(crate) type FileDigests = Vec<(PathBuf, Option<Digest>)>;

/// The result of reading a file: its contents, or why they cannot be read.
type Found = Result<Digest, io::ErrorKind>;

fn found(contents: &io::Result<Vec<u8>>) -> Found {
    contents.as_ref().map(|contents| Digest::of(contents)).map_err(io::Error::kind)
}

/// Metadata that changes when a file is written, replaced or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[cfg(unix)]
impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;

        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(not(unix))]
impl From<Metadata> for Stamp {
    /// Here the identity of a file cannot be read without opening it.
    fn from(metadata: Metadata) -> Self {
        let since_1970 = |time: io::Result<std::time::SystemTime>| {
            let since = time.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            let since = since.unwrap_or_default();
            (since.as_secs().cast_signed(), i64::from(since.subsec_nanos()))
        };
        Self {
            file: (0, 0),
            length: metadata.len(),
            modified: since_1970(metadata.modified()),
            changed: since_1970(metadata.created()),
        }
    }
}

/// A set of files that belong together, such as a certificate and its key.
#[derive(Debug)]
pub(crate) struct Watched {
    paths: Vec<PathBuf>,
    /// The contents that the owner of the files knows.
    known: Vec<Option<Found>>,
    /// What the last check found of each file: the metadata before the contents were read, `None` if
    /// they cannot be read, and the contents.
    last: Vec<(Option<Stamp>, Found)>,
    /// Whether two checks in a row read the same contents. Until then the stamps are not sufficient:
    /// two writes may have the same stamp, and a file may be written in part.
    settled: bool,
}

impl Watched {
    /// Watches files. A digest is that of the contents that the owner has read. For a file without a
    /// digest any contents are a change.
    pub(crate) fn new<D: Into<Option<Digest>>>(
        files: impl IntoIterator<Item = (PathBuf, D)>,
    ) -> Self {
        let known = |(path, digest): (PathBuf, D)| (path, digest.into().map(Ok));
        let (paths, known) = files.into_iter().map(known).unzip();
        Self { paths, known, last: Vec::new(), settled: false }
    }

    /// The files, in the order of the contents in [`Watched::changed`].
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Checks the files. Returns the contents of all of them when they differ from those returned
    /// before and two checks in a row read the same. That a file is gone or cannot be read is a change
    /// too.
    ///
    /// It blocks while it reads, which it does only after the metadata changed.
    pub(crate) fn changed(&mut self) -> Option<Vec<io::Result<Vec<u8>>>> {
        let stamps: Vec<_> =
            self.paths.iter().map(|path| std::fs::metadata(path).ok().map(Stamp::from)).collect();
        if self.settled && stamps.iter().eq(self.last.iter().map(|(stamp, _)| stamp)) {
            return None;
        }
        let contents: Vec<_> = self.paths.iter().map(|path| read(path)).collect();
        let check: Vec<_> = stamps.into_iter().zip(contents.iter().map(found)).collect();
        self.settled = check == self.last;
        self.last = check;
        let found: Vec<_> = self.last.iter().map(|(_, found)| Some(*found)).collect();
        if !self.settled || found == self.known {
            return None;
        }
        self.known = found;
        Some(contents)
    }

    /// As [`Watched::changed`], on a thread that may block.
    pub(crate) async fn check(mut self) -> (Self, Option<Vec<io::Result<Vec<u8>>>>) {
        blocking(move || {
            let changed = self.changed();
            (self, changed)
        })
        .await
    }

    /// Checks the files periodically, and calls `reload` with their contents when they changed; never
    /// returns.
    pub(crate) async fn follow(mut self, reload: impl Fn(Vec<io::Result<Vec<u8>>>)) {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            let changed;
            (self, changed) = self.check().await;
            changed.map(&reload);
        }
    }
}

/// Reads a whole file.
///
/// # Errors
///
/// It is no regular file (reading a pipe would block), is larger than 64 MiB, or cannot be read.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    read_once(path)
}

/// As [`read`], also from a pipe.
pub(crate) fn read_once(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > MAX_BYTES {
        let problem = format!("it is larger than {} MiB", MAX_BYTES >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with one watched file, which contains `one`.
    fn watched() -> (tempfile::TempDir, PathBuf, Watched) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "one").unwrap();
        let watched = Watched::new([(path.clone(), Digest::of(b"one"))]);
        (folder, path, watched)
    }

    /// The result of one check, as text.
    fn look(watched: &mut Watched) -> Option<String> {
        let mut contents = watched.changed()?;
        assert_eq!(contents.len(), 1);
        Some(match contents.remove(0) {
            Ok(contents) => String::from_utf8(contents).unwrap(),
            Err(error) => format!("{:?}", error.kind()),
        })
    }

    fn looks<const N: usize>(watched: &mut Watched) -> [Option<String>; N] {
        std::array::from_fn(|_| look(watched))
    }

    #[test]
    fn a_file_that_stays_as_it_is_is_never_reported() {
        let (_folder, path, mut watched) = watched();
        assert_eq!(looks(&mut watched), [None, None, None]);
        // Written again with the same contents.
        fs::write(&path, "one").unwrap();
        assert_eq!(looks(&mut watched), [None, None, None]);
    }

    #[test]
    fn a_change_is_reported_once_two_checks_read_the_same() {
        let (_folder, path, mut watched) = watched();
        assert_eq!(looks(&mut watched), [None, None]);
        fs::write(&path, "two").unwrap();
        assert_eq!(looks(&mut watched), [None, Some("two".into()), None, None]);
    }

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let (_folder, path, mut watched) = watched();
        for half in ["", "t", "tw"] {
            fs::write(&path, half).unwrap();
            assert_eq!(look(&mut watched), None, "{half:?}");
        }
        fs::write(&path, "two").unwrap();
        assert_eq!(looks(&mut watched), [None, Some("two".into()), None]);
    }

    #[test]
    fn a_change_between_reading_and_watching_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "two").unwrap();
        let mut watched = Watched::new([(path, Digest::of(b"one"))]);
        assert_eq!(looks(&mut watched), [None, Some("two".into()), None]);
    }

    #[test]
    fn two_writes_that_share_a_stamp_are_both_seen() {
        let (_folder, path, mut watched) = watched();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        assert_eq!(look(&mut watched), None);
        write("two");
        // The change time cannot be set, but a coarse clock shows the same for both writes.
        watched.last[0].0 = Some(Stamp::from(fs::metadata(&path).unwrap()));
        assert_eq!(looks(&mut watched), [None, Some("two".into()), None]);
    }

    #[test]
    fn a_file_renamed_into_place_is_reported_even_with_the_length_and_times_of_the_old_one() {
        let (folder, path, mut watched) = watched();
        assert_eq!(looks(&mut watched), [None, None]);
        let other = folder.path().join("other");
        fs::write(&other, "two").unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(looks(&mut watched), [None, Some("two".into()), None]);
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_reported_as_kubernetes_swaps_them() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("policy.toml"), text).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/policy.toml", at("policy.toml")).unwrap();
        let mut watched = Watched::new([(at("policy.toml"), Digest::of(b"one"))]);
        assert_eq!(looks(&mut watched), [None, None]);
        symlink("v2", at("..next")).unwrap();
        fs::rename(at("..next"), at("..data")).unwrap();
        fs::remove_dir_all(at("v1")).unwrap();
        assert_eq!(looks(&mut watched), [None, Some("two".into()), None]);
    }

    #[test]
    fn a_file_that_vanishes_is_reported_and_so_is_its_return() {
        let (_folder, path, mut watched) = watched();
        assert_eq!(looks(&mut watched), [None, None]);
        fs::remove_file(&path).unwrap();
        assert_eq!(looks(&mut watched), [None, Some("NotFound".into()), None]);
        fs::write(&path, "one").unwrap();
        assert_eq!(looks(&mut watched), [None, Some("one".into()), None]);
    }

    #[test]
    fn files_that_belong_together_are_reported_together() {
        let (folder, path, _) = watched();
        let key = folder.path().join("key");
        fs::write(&key, "one").unwrap();
        let one = Digest::of(b"one");
        let mut watched = Watched::new([(path.clone(), one), (key.clone(), one)]);
        assert!(watched.changed().is_none() && watched.changed().is_none());
        fs::write(&path, "two").unwrap();
        assert!(watched.changed().is_none());
        fs::write(&key, "two").unwrap();
        assert!(watched.changed().is_none(), "the other one is not settled");
        let contents: Vec<_> = watched.changed().unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(contents, [b"two", b"two"]);
    }

    #[test]
    fn a_path_that_is_no_file_or_too_large_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let large = folder.path().join("large");
        File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(read(&large).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
