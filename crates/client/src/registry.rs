//! The plugin of each URL scheme.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::dsn::Dsn;
use crate::error::Error;
use crate::local::LocalPool;
use crate::plugin::{BoxFuture, SessionPool};
use crate::pool::Pool;
#[cfg(feature = "tgm")]
use crate::tgm::TgmPool;

type Factory = dyn Fn(Dsn) -> BoxFuture<'static, Result<Arc<dyn SessionPool>, Error>> + Send + Sync;

/// The plugins an application can choose from by URL scheme.
///
/// A registry is a value and not global: two parts of a program may know different schemes.
/// [`Registry::default`] knows `tgm` and `local`.
///
/// ```
/// # async fn example() -> Result<(), tgm_session::Error> {
/// use std::sync::Arc;
/// use tgm_session::{LocalPool, Registry, SessionPool};
///
/// let mut registry = Registry::default();
/// registry.register("staging", |dsn| async move {
///     let pool = LocalPool::from_dsn(&dsn)?;
///     Ok(Arc::new(pool) as Arc<dyn SessionPool>)
/// });
/// let pool = registry.connect("staging://?max_sessions=3").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Registry {
    factories: BTreeMap<String, Arc<Factory>>,
}

impl Registry {
    /// Makes a registry that knows no scheme.
    pub fn empty() -> Self {
        Self { factories: BTreeMap::new() }
    }

    /// Sets the factory for the pools of `scheme`, in upper or lower case. Returns whether it replaces
    /// another one.
    pub fn register<F, R>(&mut self, scheme: &str, factory: F) -> bool
    where
        F: Fn(Dsn) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Arc<dyn SessionPool>, Error>> + Send + 'static,
    {
        let factory: Arc<Factory> = Arc::new(move |dsn| Box::pin(factory(dsn)));
        self.factories.insert(scheme.to_ascii_lowercase(), factory).is_some()
    }

    /// Returns the known schemes, sorted.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }

    /// Makes the pool that `url` describes; the empty text means `tgm://`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the URL is invalid, or when no plugin knows its scheme. The
    /// message names the known schemes. A server that cannot be reached is no error here, but of the
    /// first borrow.
    pub async fn connect(&self, url: &str) -> Result<Pool, Error> {
        self.open(Dsn::parse(url)?).await
    }

    /// Makes the pool that a parsed URL describes.
    ///
    /// # Errors
    ///
    /// As [`Registry::connect`].
    pub async fn open(&self, dsn: Dsn) -> Result<Pool, Error> {
        let Some(factory) = self.factories.get(dsn.scheme()) else {
            let known: Vec<&str> = self.schemes().collect();
            return Err(Error::invalid(format!(
                "no session plugin is known for `{}://`; known: {}",
                dsn.given_scheme(),
                if known.is_empty() { "none".into() } else { known.join(", ") }
            )));
        };
        Ok(Pool::new(factory(dsn).await?))
    }
}

impl Default for Registry {
    /// Makes a registry that knows `local`, and `tgm` where its feature is on.
    fn default() -> Self {
        let mut registry = Self::empty();
        #[cfg(feature = "tgm")]
        registry.register("tgm", |dsn| async move {
            Ok(Arc::new(TgmPool::from_dsn(&dsn)?) as Arc<dyn SessionPool>)
        });
        registry.register("local", |dsn| async move {
            Ok(Arc::new(LocalPool::from_dsn(&dsn)?) as Arc<dyn SessionPool>)
        });
        registry
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("schemes", &self.schemes().collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_scheme_names_the_known_ones() {
        let error = Registry::default().connect("redis://h").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid argument: no session plugin is known for `redis://`; known: local, tgm"
        );
        let error = Registry::empty().connect("tgm://h").await.unwrap_err();
        assert!(error.to_string().ends_with("known: none"));
    }

    #[tokio::test]
    async fn an_application_adds_a_scheme_of_its_own_and_gets_its_parameters() {
        let mut registry = Registry::default();
        let replaced = registry.register("Counting", |dsn: Dsn| async move {
            assert_eq!(dsn.parameters().count(&["max_sessions"]), Ok(Some(1)));
            Ok(Arc::new(LocalPool::from_dsn(&dsn)?) as Arc<dyn SessionPool>)
        });
        assert!(!replaced);
        assert!(registry.connect("counting://?max_sessions=1").await.is_ok());
        assert_eq!(registry.schemes().collect::<Vec<_>>(), ["counting", "local", "tgm"]);
    }

    #[tokio::test]
    async fn a_registry_without_a_plugin_does_not_see_the_plugins_of_another() {
        let mut registry = Registry::empty();
        assert_eq!(registry.schemes().count(), 0);
        registry.register("tgm", |_| async { Err(Error::Closed) });
        assert_eq!(registry.connect("").await.unwrap_err(), Error::Closed);
        assert!(Registry::default().connect("").await.is_ok());
    }
}
