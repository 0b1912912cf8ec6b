//! TLS whose certificate files are read again before every handshake, because they may be replaced
//! while a pool lives.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::protocol::Protocol;
use crate::trust::Verifier;

/// How the server is verified, and which certificate the client shows.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// How the server is verified.
    pub verify: Verify,
    /// The certificate that the client shows, if any.
    pub identity: Option<Identity>,
}

/// How the server is verified.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verify {
    /// By the certificate authorities of the system.
    System,
    /// By a file of certificate authorities, or of server certificates.
    File(NamedFile),
    /// Not at all: every certificate is accepted.
    Nothing,
}

/// The certificate that a client shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The file with the certificate and its chain.
    pub certificate: NamedFile,
    /// The file with its private key.
    pub key: NamedFile,
}

/// A file, and the name that messages show for it.
#[derive(Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The path of the file.
    pub path: PathBuf,
    /// The name in messages.
    pub shown: String,
    /// The setting that names the file, where it is no parameter of a session URL.
    pub setting: Option<&'static str>,
}

impl NamedFile {
    /// The file at `path`, which `setting` names.
    pub fn of_setting(setting: &'static str, path: PathBuf) -> Self {
        Self { setting: Some(setting), ..path.into() }
    }
}

impl From<PathBuf> for NamedFile {
    fn from(path: PathBuf) -> Self {
        Self { shown: path.display().to_string(), path, setting: None }
    }
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown.fmt(f)
    }
}

/// Why TLS cannot be set up. Files are named by the parameters of a session URL, or by their setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// No certificate can be for this host name.
    #[error("`{0}` is not a place on the network")]
    Host(String),
    /// A file cannot be read, or its contents are invalid.
    #[error("`{parameter}={file}`: {problem}")]
    File {
        /// The parameter or setting that names it.
        parameter: &'static str,
        /// The name of the file in messages.
        file: String,
        /// What is wrong with the file.
        problem: String,
    },
    /// The system has no certificate authorities. The text is the reason, if it is known.
    #[error("TLS cannot be set up: the system has no certificate authorities{0}")]
    NoAuthorities(String),
    /// Each file is valid, but they do not match.
    #[error("TLS cannot be set up: {0}")]
    Together(String),
}

impl Unusable {
    fn file(parameter: &'static str, file: &NamedFile, problem: &str) -> Self {
        let problem = format!("TLS cannot be set up: {problem}");
        Self::File { parameter: file.setting.unwrap_or(parameter), file: file.to_string(), problem }
    }
}

impl From<rustls::Error> for Unusable {
    fn from(error: rustls::Error) -> Self {
        Self::Together(error.to_string())
    }
}

/// The TLS configuration, made from the last valid contents of the files.
pub(crate) struct Tls {
    files: TlsFiles,
    protocol: Protocol,
    in_use: Mutex<InUse>,
}

struct InUse {
    contents: Contents,
    config: Arc<ClientConfig>,
    /// The problem of the files that was logged last, while it lasts.
    warned: Option<Unusable>,
}

impl Tls {
    /// Reads the files, which must be valid now.
    pub(crate) fn new(files: TlsFiles, protocol: Protocol) -> Result<Self, Unusable> {
        let contents = Contents::read(&files)?;
        let config = Arc::new(contents.configure(protocol)?);
        Ok(Self { files, protocol, in_use: Mutex::new(InUse { contents, config, warned: None }) })
    }

    /// Reads the files again and returns the configuration to use: the new one, or the last valid one.
    pub(crate) async fn refresh(&self) -> Arc<ClientConfig> {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || Contents::read(&files)).await;
        // The runtime shuts down: there will be no handshake.
        let Ok(read) = read else { return self.in_use.lock().config.clone() };
        self.update(read)
    }

    fn update(&self, read: Result<Contents, Unusable>) -> Arc<ClientConfig> {
        let mut in_use = self.in_use.lock();
        let news = read.and_then(|contents| {
            if contents == in_use.contents {
                return Ok(None);
            }
            let config = contents.configure(self.protocol)?;
            Ok(Some((contents, config)))
        });
        match news {
            Ok(news) => {
                in_use.warned = None;
                // Unchanged files keep the old configuration, which can resume TLS sessions.
                if let Some((contents, config)) = news {
                    tracing::info!("the TLS files have changed and are in use");
                    (in_use.contents, in_use.config) = (contents, Arc::new(config));
                }
            }
            Err(problem) if in_use.warned.as_ref() == Some(&problem) => {}
            Err(problem) => {
                tracing::warn!(%problem, "the TLS files are invalid; the last valid ones stay in use");
                in_use.warned = Some(problem);
            }
        }
        in_use.config.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The contents of the files.
#[derive(PartialEq)]
struct Contents {
    /// The trusted certificates; `None` when every certificate is accepted.
    trusted: Option<Vec<CertificateDer<'static>>>,
    identity: Option<ClientKey>,
}

/// The contents of [`Identity`].
#[derive(PartialEq)]
struct ClientKey {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ClientKey {
    fn read(Identity { certificate, key }: &Identity) -> Result<Self, Unusable> {
        let chain = certificates("client-cert-file", certificate)?;
        let pem = read("client-key-file", key)?;
        // The parser's message could repeat a line of the key.
        let none = |_| Unusable::file("client-key-file", key, "there is no private key in it");
        Ok(Self { chain, key: PrivateKeyDer::from_pem_slice(&pem).map_err(none)? })
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, Unusable> {
        let trusted = match &files.verify {
            Verify::System => Some(authorities_of_the_system()?),
            Verify::File(file) => {
                let certificates = certificates("ca-file", file)?;
                for certificate in &certificates {
                    let added = RootCertStore::empty().add(certificate.clone());
                    added.map_err(|error| Unusable::file("ca-file", file, &error.to_string()))?;
                }
                Some(certificates)
            }
            Verify::Nothing => None,
        };
        let identity = files.identity.as_ref().map(ClientKey::read).transpose()?;
        Ok(Self { trusted, identity })
    }

    fn configure(&self, protocol: Protocol) -> Result<ClientConfig, Unusable> {
        // A library never installs a crypto provider for the whole process.
        let provider = Arc::new(ring::default_provider());
        let verifier = match &self.trusted {
            None => Verifier::accept_any(&provider),
            Some(trusted) => Verifier::trust(trusted.clone(), provider.clone())
                .map_err(|error| Unusable::Together(error.to_string()))?,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(ClientKey { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key())?
            }
        };
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        Ok(config)
    }
}

fn authorities_of_the_system() -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let loaded = rustls_native_certs::load_native_certs();
    let (added, _) = RootCertStore::empty().add_parsable_certificates(loaded.certs.iter().cloned());
    if added == 0 {
        let reason = loaded.errors.first().map(|error| format!(" ({error})"));
        return Err(Unusable::NoAuthorities(reason.unwrap_or_default()));
    }
    if !loaded.errors.is_empty() {
        tracing::debug!(errors = ?loaded.errors, "some of the system's certificates are left out");
    }
    Ok(loaded.certs)
}

/// Reads the certificates of a file, which must have at least one.
fn certificates(
    parameter: &'static str,
    file: &NamedFile,
) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = read(parameter, file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| Unusable::file(parameter, file, "it is not valid PEM"))?;
    if certificates.is_empty() {
        return Err(Unusable::file(parameter, file, "there is no certificate in it, as PEM"));
    }
    Ok(certificates)
}

fn read(parameter: &'static str, file: &NamedFile) -> Result<Vec<u8>, Unusable> {
    std::fs::read(&file.path).map_err(|error| Unusable::File {
        parameter: file.setting.unwrap_or(parameter),
        file: file.to_string(),
        problem: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
