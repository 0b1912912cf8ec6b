//! Checks what is shipped with the binary against the binary: the files of `deploy/`, and every
//! flag, variable, metric, path and link that the documents name.

mod documents;
mod images;
mod restoring;
mod units;
mod watching;

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{leave_out, run};

/// The root folder of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The text of a file of the repository.
fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML file of the repository.
fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program of a Debian package with `input` on its standard input. Returns whether the
/// program succeeded, and its output. Returns `None` if the program is not installed and the test
/// may be skipped.
fn tool(mut program: Command, package: &str, input: &str) -> Option<(bool, String)> {
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = program.get_program().to_string_lossy().into_owned();
    let mut child = match program.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            leave_out(&format!("{name} is not installed (Debian: {package})"));
            return None;
        }
        Err(error) => panic!("{name} does not run: {error}"),
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&told).into_owned()))
}

/// The variables and the defaults that `serve --help` names.
struct Settings {
    help: String,
}

impl Settings {
    fn of_serve() -> Self {
        let help = run(["serve", "--help"]).stdout;
        // The help wraps long lines, so a default may span two lines.
        Self { help: help.split_whitespace().collect::<Vec<_>>().join(" ") }
    }

    #[track_caller]
    fn assert_variable(&self, name: &str) {
        assert!(self.help.contains(&format!("[env: {name}")), "{name} is no variable of serve");
    }

    /// The port that `flag` has by default.
    fn default_port(&self, flag: &str) -> String {
        let about = self.help.split_once(&format!("--{flag} ")).unwrap().1;
        let default = about.split_once("[default: ").unwrap().1.split_once(']').unwrap().0;
        default.rsplit_once(':').unwrap().1.to_owned()
    }
}

/// One GET of the admin port: the status and the body.
fn get(address: &str, path: &str) -> (u16, String) {
    send(address, "GET", path, "")
}

/// One request to the admin port, with JSON in it: the status and the body.
fn send(address: &str, method: &str, path: &str, json: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = json.len();
    let about = format!("content-type: application/json\r\ncontent-length: {length}");
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close");
    let request = format!("{head}\r\n{about}\r\n\r\n{json}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Every flag of every command.
fn flags() -> BTreeSet<String> {
    let help = run(["--help"]).stdout;
    let commands = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let commands = commands.lines().filter_map(|line| line.strip_prefix("  "));
    let commands = commands.filter_map(|line| line.split(' ').next()).filter(|it| !it.is_empty());
    let pages = commands.filter(|command| *command != "help");
    pages
        .map(|command| run([command, "--help"]).stdout)
        .chain([help.clone()])
        .flat_map(|page| named_flags(&page).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The words of `text` that look like long flags.
fn named_flags(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| char.is_whitespace() || "`'\"=,.()[]<>|:;".contains(char)).filter(
        |word| {
            word.strip_prefix("--").is_some_and(|name| {
                name.starts_with(|first: char| first.is_ascii_lowercase())
                    && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
            })
        },
    )
}
