//! Whether a server would start under a configuration.

use super::settings;
use super::start::Config;
use crate::config::token_file::TokenInForce;
use crate::error::Error;

impl Config {
    /// Everything for which a server refuses to start under this configuration.
    ///
    /// A start refuses for these and what it alone can know: whether a port can be had, and whether
    /// the store can be opened. Files of TLS and of the admin token are read.
    ///
    /// ```
    /// use tgm_session_server::store::StoreUrl;
    /// use tgm_session_server::{Config, Policy};
    ///
    /// let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
    /// assert!(config.judge().is_empty());
    /// config.listen = "0.0.0.0:9010".parse().unwrap();
    /// let wrong = config.judge();
    /// assert!(wrong[0].to_string().contains("not a loopback address"), "{wrong:?}");
    /// ```
    pub fn judge(&mut self) -> Vec<Error> {
        let mut wrong = self.judge_ports();
        wrong.extend(self.store.check().err().map(Error::from));
        wrong
    }

    /// As [`Config::judge`], without the store.
    pub(crate) fn judge_ports(&mut self) -> Vec<Error> {
        let mut wrong = settings::check(self);
        wrong.extend(self.is_open_to_everybody());
        let has_token = self.admin_token.is_some() || self.admin_token_file.is_some();
        if !self.admin_listen.ip().is_loopback() && !has_token {
            wrong.push(Error::AdminExposed { listen: self.admin_listen });
        }
        wrong.extend(self.tls.judge(self.clock.wall()));
        wrong.extend(TokenInForce::load(self).err());
        wrong
    }

    /// Refuses to serve everybody who can reach the machine unless that was asked for.
    pub(crate) fn is_open_to_everybody(&self) -> Option<Error> {
        let is_open = !self.listen.ip().is_loopback() && !self.policy.has_indexers();
        (is_open && !self.allow_anonymous).then_some(Error::Anonymous { listen: self.listen })
    }
}
