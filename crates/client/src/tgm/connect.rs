//! The way to the server that a session URL names.

use std::io;
use std::sync::Arc;

use connect::{Bytestream, Identity, Mismatch, NamedFile, Protocol, TlsFiles, Verify, Way};
use http::Uri;

use super::config::TgmConfig;
use crate::dsn::GivenFile;
use crate::error::Error;
use crate::plugin::BoxFuture;

/// What makes connections to one server.
#[derive(Clone)]
pub(crate) enum Connect {
    /// By its name.
    Way(Arc<Way>),
    /// By means of the application.
    Own(Arc<dyn Fn() -> Connecting + Send + Sync>),
}

type Connecting = BoxFuture<'static, io::Result<Box<dyn Bytestream>>>;

/// Makes what reaches the server that `config` describes. Nothing is sent before the first call.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host, or a certificate file, cannot be used.
pub(crate) fn connect(config: &TgmConfig) -> Result<Connect, Error> {
    origin(config)?;
    let mut way = Way::new(config.host.text(), config.at_port(), Protocol::Http2);
    if config.shown_endpoint() != config.endpoint() {
        way = way.shown_as(config.host.to_string(), config.shown_endpoint());
    }
    if config.plaintext {
        return Ok(Connect::Way(Arc::new(way)));
    }
    let verify = match &config.ca_file {
        _ if config.insecure => Verify::Nothing,
        Some(file) => Verify::File(named(file)),
        None => Verify::System,
    };
    let identity = config.client_identity.as_ref();
    let identity = identity
        .map(|(certificate, key)| Identity { certificate: named(certificate), key: named(key) });
    let way = way.with_tls(TlsFiles { verify, identity }).map_err(unusable)?;
    if config.insecure {
        tracing::warn!(
            server = config.shown_endpoint(),
            "insecure=true: the certificate of the session server is not checked"
        );
    }
    Ok(Connect::Way(Arc::new(way)))
}

fn named(file: &GivenFile) -> NamedFile {
    NamedFile { path: file.path().to_owned(), shown: file.to_string() }
}

fn unusable(error: connect::Unusable) -> Error {
    let help = match error {
        connect::Unusable::NoAuthorities(_) => "; name one by `ca-file`",
        _ => "",
    };
    Error::invalid(format!("{error}{help}"))
}

impl Connect {
    /// What to change in the URL, when one end of `error` speaks TLS and the other does not.
    pub(crate) fn advice(&self, error: &io::Error) -> Option<String> {
        let Self::Way(way) = self else { return None };
        Some(match Mismatch::of(error)? {
            Mismatch::Tls => format!(
                "the server at {way} speaks TLS: take `plaintext=true` out of the session URL"
            ),
            Mismatch::Plaintext => format!(
                "the server at {way} does not speak TLS: the session URL needs `plaintext=true`"
            ),
        })
    }
}

/// What the server is called in requests.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host cannot be used.
pub(crate) fn origin(config: &TgmConfig) -> Result<Uri, Error> {
    let scheme = if config.plaintext { "http" } else { "https" };
    let origin = format!("{scheme}://{}", config.endpoint());
    origin.parse().map_err(|_| {
        Error::invalid(format!("`{}` is not a place on the network", config.shown_endpoint()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsn::Dsn;

    fn try_connect(url: &str) -> Result<Connect, Error> {
        connect(&TgmConfig::from_dsn(&Dsn::parse_with(url, |_| None)?)?)
    }

    #[test]
    fn a_way_is_made_before_anyone_listens() {
        for url in [
            "tgm://h?plaintext=true",
            "tgm://[::1]:1?plaintext=true",
            "tgm://h?insecure=true",
            "tgm://[::1]:1?insecure=true",
            "tgm://127.0.0.1?insecure=true",
        ] {
            assert!(try_connect(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_certificate_file_that_cannot_be_used_is_named() {
        let message = |url: &str| try_connect(url).err().unwrap().to_string();
        assert!(message("tgm://h?ca-file=/nowhere/ca.pem").contains("`ca-file=/nowhere/ca.pem`"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("not.pem");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
        let file = file.display();
        let named = format!("`ca-file={file}`: TLS cannot be set up");
        assert!(message(&format!("tgm://h?ca-file={file}")).contains(&named));
        let identity =
            format!("tgm://h?client-cert-file={file}&client-key-file={file}&insecure=true");
        let named = format!("`client-cert-file={file}`: TLS cannot be set up");
        assert!(message(&identity).contains(&named));
    }
}
