//! Checks whether a server would start with a configuration.

use super::fleet::FleetConfig;
use super::settings;
use super::start::Config;
use super::tls;
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
        wrong.extend(self.find_fleet_errors());
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

impl Config {
    /// Returns all errors because of which the other servers of the fleet could not reach this one, or
    /// not securely.
    fn find_fleet_errors(&self) -> Vec<Error> {
        if !self.store.is_shared() {
            let needs =
                "servers are a fleet on a store that they share: --store postgres://… or etcd://…";
            return self.fleet.given().map(|name| wrong(name, needs)).collect();
        }
        let mut errors: Vec<_> = self.find_missing_tls().into_iter().collect();
        let FleetConfig { ca, cert, key, .. } = &self.fleet;
        match (cert, key) {
            (Some(_), None) => {
                errors.push(wrong("fleet_cert", "the certificate needs its key: fleet_key"));
            }
            (None, Some(_)) => {
                errors.push(wrong("fleet_key", "the key needs its certificate: fleet_cert"));
            }
            _ => {}
        }
        let identity = cert.as_deref().zip(key.as_deref());
        errors.extend(tls::check_client(ca.as_deref(), identity, self.clock.wall()));
        errors
    }

    /// Returns what the servers of the fleet lack to connect to each other.
    fn find_missing_tls(&self) -> Option<Error> {
        let FleetConfig { ca, cert, .. } = &self.fleet;
        let Some(address) = self.fleet.address(self.listen) else {
            let problem = format!(
                "the other servers of the fleet cannot reach this one at {}: say where they can, \
                 --advertise HOST:PORT",
                self.listen
            );
            return Some(wrong("advertise", problem));
        };
        let has_tls = self.tls.certificate.is_some() || self.tls.key.is_some();
        if !address.is_loopback() && !has_tls {
            let problem = format!(
                "the other servers of the fleet reach this one at {address}, which is not loopback: \
                 its gRPC port needs TLS, tls_cert and tls_key"
            );
            return Some(wrong("tls_cert", problem));
        }
        if has_tls && ca.is_none() {
            let problem = "the servers of the fleet connect to each other by TLS: give the \
                           authorities of their certificates";
            return Some(wrong("fleet_ca", problem));
        }
        if !has_tls && ca.is_some() {
            let problem =
                "the gRPC port of each server of the fleet needs TLS: tls_cert and tls_key";
            return Some(wrong("fleet_ca", problem));
        }
        if cert.is_some() && ca.is_none() {
            return Some(wrong("fleet_cert", "a certificate is shown under TLS only: fleet_ca"));
        }
        if self.tls.client_ca.is_some() && cert.is_none() {
            let problem = "the gRPC ports of the fleet ask for client certificates (tls_client_ca), \
                           and the servers need one too";
            return Some(wrong("fleet_cert", problem));
        }
        None
    }
}

fn wrong(name: &'static str, problem: impl Into<String>) -> Error {
    Error::Setting { name, problem: problem.into() }
}
