//! The URL of a database, and what the environment adds to it, as libpq reads both.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::{Tls, Verify};

/// The schema where the URL names none.
const SCHEMA: &str = "tgm_session";

/// The longest name that PostgreSQL does not cut off.
const LONGEST_NAME: usize = 63;

/// How long an attempt to connect takes at most, where the URL does not say it.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Where a database is, and how it is reached. `Debug` shows no password.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) tls: Tls,
    /// The quoted name of the schema.
    pub(crate) schema: String,
    /// The place without secrets, for messages.
    pub(crate) shown: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("url", &self.shown).finish_non_exhaustive()
    }
}

/// The value of an environment variable.
type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// Reads `url`, and what the environment adds to it.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL. The text has no value of the URL, because it could be a secret.
    pub(crate) fn parse(url: &str, variable: Variable<'_>) -> Result<Self, String> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut authorities, mut schema) = (None, None, None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("a parameter has no value")?;
            let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
            let decoded = decoded.map_err(|_| format!("`{name}` is not UTF-8"))?.into_owned();
            match name {
                "sslmode" => mode = Some(decoded),
                "sslrootcert" => authorities = Some(PathBuf::from(decoded)),
                "schema" => schema = Some(decoded),
                _ => rest.push(pair),
            }
        }
        let rest = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
        // The message of the parser names the parameter that is unknown, and no value.
        let mut config: Config = format!("{place}{rest}")
            .parse()
            .map_err(|error: tokio_postgres::Error| super::failure::explain(&error))?;
        let mode = mode.or_else(|| variable("PGSSLMODE"));
        let authorities = authorities.or_else(|| variable("PGSSLROOTCERT").map(PathBuf::from));
        let tls = tls(mode.as_deref().unwrap_or("prefer"), authorities, &mut config)?;
        if config.get_hosts().is_empty() {
            return Err("it names no host".to_owned());
        }
        if config.get_password().is_none()
            && let Some(password) = password(&config, variable)?
        {
            config.password(password);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_WITHIN);
        }
        if config.get_application_name().is_none() {
            config.application_name("tgm-session");
        }
        // Of several hosts the primary is the one that can be written to.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let schema = schema.unwrap_or_else(|| SCHEMA.to_owned());
        if schema.is_empty() || schema.len() > LONGEST_NAME || schema.contains('\0') {
            return Err(format!("`schema` must have 1 to {LONGEST_NAME} bytes"));
        }
        let database = config.get_dbname().unwrap_or_default();
        let shown = format!("postgres://{}/{database}", hosts(&config));
        let schema = format!("\"{}\"", schema.replace('"', "\"\""));
        Ok(Self { config, tls, schema, shown })
    }
}

/// How the connection is encrypted and the server verified.
fn tls(mode: &str, authorities: Option<PathBuf>, config: &mut Config) -> Result<Tls, String> {
    let (mode, verify) = match mode {
        "disable" => (SslMode::Disable, Verify::Nothing),
        "allow" | "prefer" => (SslMode::Prefer, Verify::Nothing),
        // As libpq: with a file of authorities, the certificate is verified.
        "require" if authorities.is_some() => (SslMode::Require, Verify::Chain),
        "require" => (SslMode::Require, Verify::Nothing),
        "verify-ca" => (SslMode::Require, Verify::Chain),
        "verify-full" => (SslMode::Require, Verify::ChainAndName),
        _ => {
            return Err(
                "`sslmode` is disable, allow, prefer, require, verify-ca or verify-full".to_owned()
            );
        }
    };
    config.ssl_mode(mode);
    Tls::new(verify, authorities.as_deref())
}

/// The password from the environment: `PGPASSWORD`, or the file `PGPASSFILE`.
fn password(config: &Config, variable: Variable<'_>) -> Result<Option<String>, String> {
    if let Some(password) = variable("PGPASSWORD").filter(|password| !password.is_empty()) {
        return Ok(Some(password));
    }
    let named = variable("PGPASSFILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let is_named = named.is_some();
    let Some(path) = named.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".pgpass")))
    else {
        return Ok(None);
    };
    match std::fs::read_to_string(&path) {
        Ok(_) if !is_private(&path) => Err(format!(
            "others may read the password file {}: give it the mode 0600",
            path.display()
        )),
        Ok(text) => Ok(password_in(&text, config)),
        Err(error) if is_named => {
            Err(format!("the password file {} cannot be read: {error}", path.display()))
        }
        Err(_) => Ok(None),
    }
}

/// Whether only the owner of a file may read it.
fn is_private(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 == 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        true
    }
}

/// The password of the first line that fits: `host:port:database:user:password`, where `*` fits all.
fn password_in(text: &str, config: &Config) -> Option<String> {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.as_str(),
        _ => "localhost",
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    let database = config.get_dbname().unwrap_or(user);
    let mut lines = text.lines().filter(|line| !line.starts_with('#')).map(fields);
    let line = lines.find(|fields| {
        fields.len() == 5
            && [host, &port, database, user]
                .iter()
                .zip(fields)
                .all(|(is, wanted)| wanted == "*" || wanted == is)
    })?;
    line.into_iter().nth(4)
}

/// The fields of a line. A `\` takes the special meaning from the next character.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut rest) = (vec![String::new()], line.chars());
    while let Some(next) = rest.next() {
        let last = fields.last_mut();
        match next {
            ':' if last.is_some() => fields.push(String::new()),
            '\\' => last.into_iter().for_each(|field| field.extend(rest.next())),
            other => last.into_iter().for_each(|field| field.push(other)),
        }
    }
    fields
}

/// The hosts of a configuration, for messages.
fn hosts(config: &Config) -> String {
    let ports = config.get_ports();
    let host = |(place, host): (usize, &Host)| {
        let port = ports.get(place).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        }
    };
    let hosts: Vec<_> = config.get_hosts().iter().enumerate().map(host).collect();
    hosts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Settings, String> {
        Settings::parse(url, &|_| None)
    }

    #[test]
    fn a_url_names_the_place_the_schema_and_the_password() {
        let settings =
            parse("postgresql://tgm:a%40b@db.example:6432/sessions?schema=my%22fleet").unwrap();
        assert_eq!(settings.shown, "postgres://db.example:6432/sessions");
        assert_eq!(settings.schema, r#""my""fleet""#);
        assert_eq!(settings.config.get_password(), Some(&b"a@b"[..]));
        assert!(!format!("{settings:?}").contains("a@b"));
        assert_eq!(parse("postgres://db.example/x").unwrap().schema, "\"tgm_session\"");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_values() {
        for (url, problem) in [
            ("postgres://u:secret@h/x?sslmode=secret", "`sslmode` is disable"),
            ("postgres://u:secret@h/x?schema=", "`schema` must have"),
            ("postgres://u:secret@h/x?colour=secret", "colour"),
            ("postgres:///x", "it names no host"),
            ("postgres://h/x?sslmode=verify-ca&sslrootcert=/none", "/none"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(problem) && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_comes_from_the_environment_where_the_url_has_none() {
        let of = |url| {
            let settings = Settings::parse(url, &|name| {
                (name == "PGPASSWORD").then(|| "from the environment".to_owned())
            });
            settings.unwrap().config.get_password().map(<[u8]>::to_vec)
        };
        assert_eq!(of("postgres://u@h/x").as_deref(), Some(&b"from the environment"[..]));
        assert_eq!(of("postgres://u:own@h/x").as_deref(), Some(&b"own"[..]));
    }

    #[test]
    fn a_password_file_is_read_as_libpq_reads_it() {
        let text = "# a comment\nother:*:*:*:wrong\nh:5432:x:u:with\\:colon\\\\\n*:*:*:*:any\n";
        let password = |url: &str| password_in(text, &url.parse().unwrap());
        assert_eq!(password("postgres://u@h/x").as_deref(), Some("with:colon\\"));
        assert_eq!(password("postgres://u@h:6432/x").as_deref(), Some("any"));
        assert_eq!(password("postgres://u@other/x").as_deref(), Some("wrong"));
    }

    #[test]
    #[cfg(unix)]
    fn a_password_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwords");
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Settings::parse("postgres://u@h/x", &|name| {
                (name == "PGPASSFILE").then(|| path.display().to_string())
            })
        };
        assert!(mode(0o644).unwrap_err().contains("0600"));
        assert_eq!(mode(0o600).unwrap().config.get_password(), Some(&b"secret"[..]));
    }
}
