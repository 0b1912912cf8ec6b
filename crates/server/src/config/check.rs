//! Checks whether a server would start with a configuration.

use super::settings;
use super::start::Config;
use super::token::TokenInForce;
use super::watch::Watched;
use crate::error::Error;

impl Config {
    /// Returns all errors because of which a server refuses to start with this configuration.
    ///
    /// A start may also fail because a port is in use or the store cannot be opened; this is not
    /// checked here. The TLS files and the file of the admin token are read.
    ///
    /// ```
    /// use tgm_session_server::store::StoreUrl;
    /// use tgm_session_server::{Config, Policy};
    ///
    /// let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
    /// assert!(config.find_errors().is_empty());
    /// config.listen = "0.0.0.0:9010".parse().unwrap();
    /// let wrong = config.find_errors();
    /// assert!(wrong[0].to_string().contains("not a loopback address"), "{wrong:?}");
    /// ```
    pub fn find_errors(&mut self) -> Vec<Error> {
        let mut wrong = self.find_port_errors();
        wrong.extend(self.store.check().err().map(Error::from));
        wrong
    }

    /// As [`Config::find_errors`], without the store.
    pub(crate) fn find_port_errors(&mut self) -> Vec<Error> {
        let mut wrong = settings::check(self);
        wrong.extend(self.check_open_port());
        let has_token = self.admin_token.is_some() || self.admin_token_file.is_some();
        if !self.admin_listen.ip().is_loopback() && !has_token {
            wrong.push(Error::AdminExposed { listen: self.admin_listen });
        }
        wrong.extend(self.tls.check(self.clock.wall()));
        wrong.extend(self.token_in_force().err());
        wrong
    }

    /// The admin token, with the watch of its file if it is in one; `None` without a token.
    pub(crate) fn token_in_force(&self) -> Result<Option<(TokenInForce, Option<Watched>)>, Error> {
        TokenInForce::load(self.admin_token.as_ref(), self.admin_token_file.as_deref())
    }

    /// Refuses to serve callers from other machines without a key, unless that is allowed.
    pub(crate) fn check_open_port(&self) -> Option<Error> {
        let is_open = !self.listen.ip().is_loopback() && !self.policy.has_indexers();
        (is_open && !self.allow_anonymous).then_some(Error::Anonymous { listen: self.listen })
    }
}
