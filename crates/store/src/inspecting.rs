//! Looks into a store without changing it.

use crate::contents::Inspected;
use crate::error::Error;
use crate::journal::file::FileJournal;
use crate::journal::{etcd, postgres};
use crate::options::Options;
use crate::url::StoreUrl;

/// Looks into the store at `url`, which is not changed. A file must not be in use; a database may be.
/// Blocks.
///
/// # Errors
///
/// The store does not exist, cannot be read, is in use, or has an unknown version.
pub fn inspect(url: &StoreUrl) -> Result<Inspected, Error> {
    match url {
        StoreUrl::Memory => {
            Err(Error::Url { url: url.to_string(), problem: "memory: keeps nothing to look into" })
        }
        StoreUrl::File { path, .. } => FileJournal::open_existing(&StoreUrl::file(path))?.inspect(),
        StoreUrl::Postgres(url) => postgres::copying::inspect(url.postgres()?),
        StoreUrl::Etcd(url) => {
            let empty = Options::with_room_for_any().nothing_restored(true)?;
            etcd::copying::inspect(url.etcd()?, empty)
        }
    }
}
