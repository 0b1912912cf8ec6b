//! Reads a policy file, and the files of keys that it names.

use std::io;
use std::path::{Path, PathBuf};

use policy::{Outside, Place, Policy, SettingError, Warning};

use super::given::Given;
use super::watch::{self, Digest, FileDigests};
use crate::error::Error;

/// Stands for the hash of a policy without a file.
pub(crate) const NO_FILE: &str = "no file";

/// A policy file that was read: the policy, the settings of the server, and warnings.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// The `[server]` section.
    pub server: Given,
    /// Entries that are allowed but probably mistakes.
    pub warnings: Vec<Warning>,
    /// The state that a server needs to watch the file; `None` if the policy cannot be read again, as
    /// from a pipe.
    pub file: Option<PolicyFile>,
}

/// The content of a policy file when it was loaded. A server compares it to notice changes.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    /// The policy file, and then the files that it names.
    files: FileDigests,
    hash: Box<str>,
    server: Given,
    warnings: Vec<Warning>,
}

/// Why a policy file was not loaded, and its settings, as far as they are valid.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotLoaded {
    /// The error: [`Error::PolicyUnreadable`] or [`Error::Policy`].
    pub error: Box<Error>,
    /// The settings of the `[server]` section that are valid.
    pub server: Given,
    /// The names of the settings of that section that are invalid.
    pub invalid: Vec<String>,
}

impl From<NotLoaded> for Error {
    fn from(not_loaded: NotLoaded) -> Self {
        *not_loaded.error
    }
}

impl Loaded {
    /// Reads the policy file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyUnreadable`] when the file cannot be read, and [`Error::Policy`] with the
    /// place and the reason when it is not a valid policy.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, NotLoaded> {
        let path = path.as_ref();
        let mut loaded = Self::from_contents(path, watch::read_once(path), &mut watch::read).1?;
        if !path.is_file() {
            // A pipe can be read only once.
            loaded.file = None;
        }
        Ok(loaded)
    }

    /// Reads a policy and the settings of the server from `text`; `name` is the name of the file in
    /// errors. Files of keys that the text names are read too; a relative path starts at the folder of
    /// `name`.
    ///
    /// # Errors
    ///
    /// As [`policy::parse`].
    pub fn parse(text: &str, name: impl AsRef<Path>) -> Result<Self, NotLoaded> {
        Files::new(&mut watch::read).parse(text, name.as_ref())
    }

    /// Reads a policy from the `contents` of the file at `path`, and the files that it names by `read`.
    ///
    /// Also returns the files that it names, also after an error: each with the digest of its contents
    /// if it could be read.
    pub(crate) fn from_contents(
        path: &Path,
        contents: io::Result<Vec<u8>>,
        read: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
    ) -> (FileDigests, Result<Self, NotLoaded>) {
        let mut files = Files::new(read);
        let loaded = files.load(path, contents);
        (files.seen, loaded)
    }
}

/// Reads the files that a policy file names, and collects its settings.
struct Files<'a> {
    read: &'a mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
    /// Every file that was requested, with the digest of its contents if it could be read.
    seen: FileDigests,
    server: Given,
    /// The names of the settings that are invalid.
    invalid: Vec<String>,
}

impl Outside for Files<'_> {
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let contents = (self.read)(path);
        if !self.seen.iter().any(|(seen, _)| seen == path) {
            let digest = contents.as_ref().ok().map(|contents| Digest::of(contents));
            self.seen.push((path.to_owned(), digest));
        }
        contents
    }

    fn set(&mut self, name: &str, value: toml::Value, place: Place) -> Result<(), SettingError> {
        let set = self.server.set_in_file(name, value, place);
        if let Err(SettingError::Invalid(_)) = &set {
            self.invalid.push(name.replace('-', "_"));
        }
        set
    }
}

impl<'a> Files<'a> {
    fn new(read: &'a mut dyn FnMut(&Path) -> io::Result<Vec<u8>>) -> Self {
        Self { read, seen: Vec::new(), server: Given::default(), invalid: Vec::new() }
    }

    fn load(&mut self, path: &Path, contents: io::Result<Vec<u8>>) -> Result<Loaded, NotLoaded> {
        let unreadable = |source| NotLoaded {
            error: Box::new(Error::PolicyUnreadable { path: path.to_owned(), source }),
            server: Given::default(),
            invalid: Vec::new(),
        };
        let contents = contents.map_err(unreadable)?;
        let text = std::str::from_utf8(&contents)
            .map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let mut loaded = self.parse(text, path)?;
        let own = (path.to_owned(), Some(Digest::of(&contents)));
        let files = std::iter::once(own).chain(self.seen.iter().cloned()).collect();
        let (server, warnings) = (loaded.server.clone(), loaded.warnings.clone());
        let hash = hash_of(text, &self.seen);
        loaded.file = Some(PolicyFile { files, hash, server, warnings });
        Ok(loaded)
    }

    fn parse(&mut self, text: &str, name: &Path) -> Result<Loaded, NotLoaded> {
        let parsed = policy::parse(text, name, self);
        let server = std::mem::take(&mut self.server);
        match parsed {
            Ok(parsed) => {
                let policy::Parsed { policy, warnings } = parsed;
                Ok(Loaded { policy, server, warnings, file: None })
            }
            Err(error) => {
                let invalid = std::mem::take(&mut self.invalid);
                Err(NotLoaded { error: Box::new(Error::Policy(error)), server, invalid })
            }
        }
    }
}

/// Returns the hash of a valid policy file and the files that it names, as text.
fn hash_of(text: &str, named: &[(PathBuf, Option<Digest>)]) -> Box<str> {
    let mut policy: toml::Table = text.parse().unwrap_or_default();
    policy.remove("server");
    let mut whole = policy.to_string().into_bytes();
    for (_, digest) in named {
        whole.extend(digest.iter().flat_map(|digest| digest.as_bytes()));
    }
    let digest = Digest::of(&whole);
    // Enough to tell policies apart, and short enough to compare by eye.
    digest.as_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

impl PolicyFile {
    /// The path of the policy file.
    pub fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// A hash of the policy: of the file without its `[server]` section and its comments, and of the files
    /// that it names.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// Its `[server]` section.
    pub fn server(&self) -> &Given {
        &self.server
    }

    /// Entries that are allowed but probably mistakes.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The policy file and then the files that it names, each with the digest of its contents.
    pub(crate) fn files(&self) -> &[(PathBuf, Option<Digest>)] {
        &self.files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_equal_hashes_if_only_comments_and_settings_of_the_server_differ() {
        let hash = |text| hash_of(text, &[]);
        let first =
            hash("[server]\nlisten = '[::1]:1'\n[services.t1r]\nttl = '60s'\nmax_total = 1\n");
        assert_eq!(first.len(), 16);
        assert_eq!(first, hash("# a\n[services]\nt1r = { max_total = 1, ttl = \"60s\" }\n"));
        assert_ne!(first, hash("[services.t1r]\nttl = '60s'\nmax_total = 2\n"));
        let (text, key) = ("[services.t1r]\n", |text: &[u8]| ("k".into(), Some(Digest::of(text))));
        assert_ne!(hash_of(text, &[key(b"one")]), hash_of(text, &[key(b"two")]));
    }
}
