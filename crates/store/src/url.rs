//! The URLs of stores.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;
use crate::journal::{etcd, postgres};

/// The name of the store file where a store URL names a folder.
const FILE_NAME: &str = "sessions.redb";

/// The URL of a store.
///
/// ```
/// use store::StoreUrl;
///
/// assert_eq!("memory:".parse::<StoreUrl>().unwrap(), StoreUrl::Memory);
/// assert!("file:/var/lib/sessions.redb".parse::<StoreUrl>().is_ok());
/// let error = "redis://host".parse::<StoreUrl>().unwrap_err();
/// assert!(error.to_string().ends_with("the stores are memory:, file:PATH, postgres://… and etcd://…"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreUrl {
    /// `memory:`, without a journal: leases end with the process.
    Memory,
    /// `file:PATH`, durable, for one server.
    File {
        /// The file; an existing folder, or a path that ends in `/`, gets a file within.
        path: PathBuf,
        /// Whether missing parent folders are created. Otherwise the parent has to exist.
        make_folders: bool,
    },
    /// `postgres://…`, durable, for the servers of a fleet.
    Postgres(DatabaseUrl),
    /// `etcd://HOST:PORT,HOST:PORT/PREFIX`, durable, for the servers of a fleet.
    Etcd(DatabaseUrl),
}

/// The URL of a database, which may contain a password. `Debug` and `Display` show none.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(Box<str>);

impl DatabaseUrl {
    /// Reads the URL and what the environment adds to it.
    pub(crate) fn postgres(&self) -> Result<postgres::Settings, Error> {
        self.parsed(postgres::Settings::parse)
    }

    /// Reads the URL and what the environment adds to it.
    pub(crate) fn etcd(&self) -> Result<etcd::Settings, Error> {
        self.parsed(etcd::Settings::parse)
    }

    fn parsed<T>(
        &self,
        parse: impl Fn(&str, &dyn Fn(&str) -> Option<String>) -> Result<T, String>,
    ) -> Result<T, Error> {
        parse(&self.0, &|name| std::env::var(name).ok())
            .map_err(|problem| Error::Database { url: self.to_string(), problem })
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.0.split('?').next().unwrap_or_default();
        f.write_str(&without_secrets(place))
    }
}

impl StoreUrl {
    /// The default store: a file in the state folder of the user. Missing folders are created.
    ///
    /// That is `$XDG_STATE_HOME/tgm-session`, else `$HOME/.local/state/tgm-session`; `None` when
    /// neither is set to an absolute path.
    pub fn in_state_folder() -> Option<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let state = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
        Some(Self::File { path: state.join("tgm-session").join(FILE_NAME), make_folders: true })
    }

    /// Whether several servers can share the store: they are a fleet.
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_) | Self::Etcd(_))
    }

    /// Checks that a store can be at this URL. Creates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::FolderMissing`].
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Memory => Ok(()),
            Self::Postgres(url) => url.postgres().map(drop),
            Self::Etcd(url) => url.etcd().map(drop),
            Self::File { path, make_folders } => Self::resolve(path, *make_folders).map(drop),
        }
    }

    /// Returns the file that `path` means, and creates its folder where that is allowed.
    pub(crate) fn prepare(path: &Path, make_folders: bool) -> Result<PathBuf, Error> {
        let (file, folder) = Self::resolve(path, make_folders)?;
        if let Some(folder) = folder {
            crate::journal::file::make_folders(&folder).map_err(|source| Error::File {
                action: "make the folder of",
                path: file.clone(),
                source,
            })?;
        }
        Ok(file)
    }

    /// Returns the file that `path` means.
    pub(crate) fn file(path: &Path) -> PathBuf {
        let names_a_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if names_a_folder || path.is_dir() { path.join(FILE_NAME) } else { path.into() }
    }

    /// Returns the file that `path` means, and the folder that has to be created for it.
    fn resolve(path: &Path, make_folders: bool) -> Result<(PathBuf, Option<PathBuf>), Error> {
        let names_a_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let file = Self::file(path);
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => folder.to_owned(),
            _ => return Ok((file, None)),
        };
        let is_allowed = make_folders
            || names_a_folder
                && folder
                    .parent()
                    .is_some_and(|above| above.as_os_str().is_empty() || above.is_dir());
        if is_allowed {
            Ok((file, Some(folder)))
        } else {
            Err(Error::FolderMissing { path: file, parent: folder })
        }
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let invalid = |problem| Error::Url { url: without_secrets(url), problem };
        match url.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("memory", _)) => Err(invalid("memory: takes nothing after the colon")),
            Some(("file", "")) => Err(invalid("the path is empty")),
            Some(("file", path)) => {
                // file:///PATH is the long form of file:/PATH.
                let path = match path.strip_prefix("//") {
                    Some(path) if path.starts_with('/') => path,
                    Some(_) => return Err(invalid("file: takes a path, not a host")),
                    None => path,
                };
                Ok(Self::File { path: path.into(), make_folders: false })
            }
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(DatabaseUrl(url.into()))),
            Some(("etcd", _)) => Ok(Self::Etcd(DatabaseUrl(url.into()))),
            Some(_) => Err(invalid("its scheme is unknown")),
            None => Err(invalid("it has no scheme")),
        }
    }
}

/// Returns the URL without the name and password of `scheme://name:password@host`.
fn without_secrets(url: &str) -> String {
    match (url.split_once("//"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}//…@{host}"),
        _ => url.to_owned(),
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Postgres(url) | Self::Etcd(url) => fmt::Display::fmt(url, f),
            Self::File { path, .. } => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_store_url_is_refused_with_the_known_ones() {
        for url in ["", "redis", "sled:x", "file:", "memory:x", "file://host/x"] {
            let error = url.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(
                error.contains("the stores are memory:, file:PATH, postgres://… and etcd://…"),
                "{error}"
            );
            assert!(error.contains(&format!("{url:?}")), "{error}");
        }
    }

    #[test]
    fn a_password_in_a_store_url_is_not_shown() {
        let error = "sledge://admin:hunter2@host/x".parse::<StoreUrl>().unwrap_err().to_string();
        assert!(error.contains("sledge://…@host/x") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_folder_gets_a_file_within_and_a_missing_parent_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join(FILE_NAME);
        assert_eq!(StoreUrl::prepare(root.path(), false).unwrap(), inside);

        let made = PathBuf::from(format!("{}/new/", root.path().display()));
        assert_eq!(
            StoreUrl::prepare(&made, false).unwrap(),
            root.path().join("new").join(FILE_NAME)
        );
        assert!(root.path().join("new").is_dir());

        let orphan = root.path().join("a/b/c.redb");
        let error = StoreUrl::prepare(&orphan, false).unwrap_err();
        assert!(matches!(error, Error::FolderMissing { .. }), "{error}");
        assert!(!root.path().join("a").exists());
        assert_eq!(StoreUrl::prepare(&orphan, true).unwrap(), orphan);
    }
}
