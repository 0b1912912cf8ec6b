//! TLS with certificates that are read again before every handshake, for they are replaced while
//! a pool lives.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::protocol::Protocol;
use crate::trust::{Anybody, Trusted};

/// Whom to believe that it is the server, and what to show it.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Whom to believe.
    pub verify: Verify,
    /// What this client shows, if anything.
    pub identity: Option<Identity>,
}

/// Whom to believe that it is the server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verify {
    /// Whom the system trusts.
    System,
    /// A file of authorities, or of certificates that servers show themselves.
    File(NamedFile),
    /// Anybody.
    Nothing,
}

/// The certificate that a client shows.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The file of the certificate, and of those that vouch for it.
    pub certificate: NamedFile,
    /// The file of its key.
    pub key: NamedFile,
}

/// A file, and how messages write it.
#[derive(Clone)]
pub struct NamedFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What messages show.
    pub shown: String,
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

/// What a way cannot be made of. Files are named by the parameters of a session URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// The host is no name that a certificate could have.
    #[error("`{0}` is not a place on the network")]
    Host(String),
    /// A file cannot be read, or holds something else.
    #[error("`{parameter}={file}`: {problem}")]
    File {
        /// The parameter that names it.
        parameter: &'static str,
        /// The file, as messages write it.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The system trusts nobody, and why if that is known.
    #[error("TLS cannot be set up: the system has no certificate authorities{0}")]
    NoAuthorities(String),
    /// The files are sound, and do not go together.
    #[error("TLS cannot be set up: {0}")]
    Together(String),
}

impl Unusable {
    fn file(parameter: &'static str, file: &NamedFile, problem: &str) -> Self {
        let problem = format!("TLS cannot be set up: {problem}");
        Self::File { parameter, file: file.to_string(), problem }
    }
}

impl From<rustls::Error> for Unusable {
    fn from(error: rustls::Error) -> Self {
        Self::Together(error.to_string())
    }
}

/// How to speak TLS, by the files as they were when they were last sound.
pub(crate) struct Tls {
    files: TlsFiles,
    protocol: Protocol,
    sound: Mutex<Sound>,
}

struct Sound {
    contents: Contents,
    config: Arc<ClientConfig>,
    /// What is wrong with the files by now, as far as it was told.
    told: Option<Unusable>,
}

impl Tls {
    /// Reads the files, which have to be sound this time.
    pub(crate) fn new(files: TlsFiles, protocol: Protocol) -> Result<Self, Unusable> {
        let contents = Contents::read(&files)?;
        let config = Arc::new(contents.configure(protocol)?);
        Ok(Self { files, protocol, sound: Mutex::new(Sound { contents, config, told: None }) })
    }

    /// How to speak TLS by the files as they are, or as they were when they were last sound.
    pub(crate) async fn present(&self) -> Arc<ClientConfig> {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || Contents::read(&files)).await;
        // A runtime that shuts down reads nothing more, and shakes no hands.
        let Ok(read) = read else { return self.sound.lock().config.clone() };
        self.take(read)
    }

    fn take(&self, read: Result<Contents, Unusable>) -> Arc<ClientConfig> {
        let mut sound = self.sound.lock();
        let news = match read {
            Ok(contents) if contents == sound.contents => Ok(None),
            Ok(contents) => match contents.configure(self.protocol) {
                Ok(config) => Ok(Some((contents, config))),
                Err(problem) => Err(problem),
            },
            Err(problem) => Err(problem),
        };
        match news {
            Ok(news) => {
                sound.told = None;
                // Whoever has spoken TLS by them before goes on where it was.
                if let Some((contents, config)) = news {
                    tracing::info!("the TLS files have changed and are in use");
                    (sound.contents, sound.config) = (contents, Arc::new(config));
                }
            }
            Err(problem) if sound.told.as_ref() == Some(&problem) => {}
            Err(problem) => {
                tracing::warn!(%problem, "the TLS files cannot be used; those before them stay");
                sound.told = Some(problem);
            }
        }
        sound.config.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What stood in the files.
#[derive(PartialEq)]
struct Contents {
    /// Nothing when anybody is believed.
    trusted: Option<Vec<CertificateDer<'static>>>,
    identity: Option<Shown>,
}

/// A certificate to show and its key, as a file each.
#[derive(PartialEq)]
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Shown {
    fn read(Identity { certificate, key }: &Identity) -> Result<Self, Unusable> {
        let chain = certificates("client-cert-file", certificate)?;
        let pem = read("client-key-file", key)?;
        // The reason of the parser would repeat a line of what may be a key.
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
        let identity = files.identity.as_ref().map(Shown::read).transpose()?;
        Ok(Self { trusted, identity })
    }

    fn configure(&self, protocol: Protocol) -> Result<ClientConfig, Unusable> {
        // A library takes the provider it was built with and never installs one for the process.
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous();
        let builder = match &self.trusted {
            None => builder.with_custom_certificate_verifier(Arc::new(Anybody(provider))),
            Some(trusted) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(trusted.iter().cloned());
                let trusted = Trusted::new(roots, trusted.clone(), provider);
                let trusted = trusted.map_err(|error| Unusable::Together(error.to_string()))?;
                builder.with_custom_certificate_verifier(Arc::new(trusted))
            }
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Shown { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key())?
            }
        };
        config.alpn_protocols = vec![protocol.name().to_vec()];
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

/// The certificates in a file, of which there has to be one at least.
fn certificates(
    parameter: &'static str,
    file: &NamedFile,
) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = read(parameter, file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| Unusable::file(parameter, file, "it is not sound PEM"))?;
    if certificates.is_empty() {
        return Err(Unusable::file(parameter, file, "there is no certificate in it, as PEM"));
    }
    Ok(certificates)
}

fn read(parameter: &'static str, file: &NamedFile) -> Result<Vec<u8>, Unusable> {
    std::fs::read(&file.path).map_err(|error| Unusable::File {
        parameter,
        file: file.to_string(),
        problem: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
