//! A network whose cables can be cut, so that packets vanish and no connection is reset.
//!
//! The program runs in a network namespace of its own, with the database and the callers. Each server has
//! another one, with two cables to it: one leads to the database, and one to the callers and the other
//! servers. Nothing of it is seen outside, and it is gone with its last process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};

/// How many servers there are.
pub const SERVERS: usize = 3;

/// Set in a program that has a network namespace of its own.
const INSIDE: &str = "TGM_SESSION_FAULTS_INSIDE";

/// Where the database is, for the servers.
pub const DATABASE: &str = "10.0.0.254";

/// What a network of this kind needs.
const NEEDED: &str = "the network can be cut only with network namespaces: run this as root on Linux, with \
                      `ip` (iproute2), and `unshare` and `nsenter` (util-linux)";

/// What a cable leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// The database.
    Database,
    /// The callers and the other servers.
    Callers,
}

impl Cable {
    const ALL: [Self; 2] = [Self::Database, Self::Callers];

    /// The name of its network interface at a server, and of the bridge that it leads to.
    const fn name(self) -> &'static str {
        match self {
            Self::Database => "data",
            Self::Callers => "calls",
        }
    }

    /// The address of the host with this number.
    fn address(self, host: usize) -> String {
        let network = match self {
            Self::Database => 0,
            Self::Callers => 1,
        };
        format!("10.0.{network}.{host}")
    }
}

/// Starts this program again in a network namespace of its own, unless it is in one.
///
/// # Errors
///
/// It cannot have one.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return ip(None, &["link set lo up".to_owned()]);
    }
    for (program, arguments) in
        [("ip", ["-V"].as_slice()), ("nsenter", &["--version"]), ("unshare", &["--net", "true"])]
    {
        let tried = Command::new(program).args(arguments).output().context(NEEDED)?;
        let said = String::from_utf8_lossy(&tried.stderr);
        ensure!(tried.status.success(), "{NEEDED} ({})", said.trim());
    }
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    Err(inside.env(INSIDE, "1").exec()).context("this program cannot be started again")
}

/// The network of a fleet.
#[derive(Debug)]
pub struct Network {
    /// A process in the namespace of each server, which exists as long as this one runs.
    holders: Vec<Child>,
    /// The certificate of all servers, which is its own authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Network {
    /// Makes the network, and a certificate of its servers in `folder`.
    ///
    /// # Errors
    ///
    /// Something of it cannot be made.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        let addresses: Vec<String> = (0..SERVERS).map(Self::address).collect();
        let signed = rcgen::generate_simple_self_signed(addresses)?;
        let (certificate, key) = (folder.join("servers.pem"), folder.join("servers.key"));
        std::fs::write(&certificate, signed.cert.pem())?;
        std::fs::write(&key, signed.signing_key.serialize_pem())?;
        let mut network = Self { holders: Vec::new(), certificate, key };
        for cable in Cable::ALL {
            let name = cable.name();
            ip(
                None,
                &[
                    format!("link add {name} type bridge"),
                    format!("address add {}/24 dev {name}", cable.address(254)),
                    format!("link set {name} up"),
                ],
            )?;
        }
        for server in 0..SERVERS {
            network.add(server)?;
        }
        Ok(network)
    }

    /// Makes the namespace of a server, and connects it.
    fn add(&mut self, server: usize) -> anyhow::Result<()> {
        let mut holder = Command::new("unshare")
            // It ends when its standard input is closed, also if this program is killed.
            .args(["--net", "--", "sh", "-c", "echo && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(NEEDED)?;
        let (namespace, ready) = (holder.id(), holder.stdout.take());
        self.holders.push(holder);
        let mut line = String::new();
        BufReader::new(ready.context("standard output was piped")?).read_line(&mut line)?;
        ensure!(!line.is_empty(), NEEDED);
        for cable in Cable::ALL {
            let (name, end) = (cable.name(), end(cable, server));
            ip(
                None,
                &[
                    format!("link add {end} type veth peer name {name} netns {namespace}"),
                    format!("link set {end} master {name} up"),
                ],
            )?;
            ip(
                Some(namespace),
                &[
                    format!("address add {}/24 dev {name}", cable.address(server + 1)),
                    format!("link set {name} up"),
                ],
            )?;
        }
        ip(Some(namespace), &["link set lo up".to_owned()])
    }

    /// The address at which callers and servers reach a server.
    pub fn address(server: usize) -> String {
        Cable::Callers.address(server + 1)
    }

    /// A command that runs `program` in the namespace of a server.
    pub fn command(&self, server: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        // nsenter becomes the program, so the process id stays the one that was started.
        command.arg(inside(self.holders[server].id())).arg("--").arg(program);
        command
    }

    /// Cuts a cable of a server, or mends it.
    ///
    /// # Errors
    ///
    /// This is not possible.
    pub fn cut(&self, server: usize, cable: Cable, is_cut: bool) -> anyhow::Result<()> {
        let state = if is_cut { "down" } else { "up" };
        ip(None, &[format!("link set {} {state}", end(cable, server))])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            // It may have ended.
            let _ = holder.kill();
            let _ = holder.wait();
        }
        // The other cables are gone with the namespaces, once nothing runs there.
        let bridges = Cable::ALL.map(|cable| format!("link delete {}", cable.name()));
        let _ = ip(None, &bridges);
    }
}

/// The end of a cable that is at the bridge.
fn end(cable: Cable, server: usize) -> String {
    format!("{}{server}", cable.name())
}

/// The option of `nsenter` for the network namespace of a process.
fn inside(process: u32) -> String {
    format!("--net=/proc/{process}/ns/net")
}

/// Carries out commands of `ip`, in the namespace of a process.
fn ip(namespace: Option<u32>, commands: &[String]) -> anyhow::Result<()> {
    let mut ip = match namespace {
        None => Command::new("ip"),
        Some(process) => {
            let mut command = Command::new("nsenter");
            command.arg(inside(process)).args(["--", "ip"]);
            command
        }
    };
    ip.args(["-batch", "-"]);
    let mut run = ip.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context(NEEDED)?;
    let mut input = run.stdin.take().context("standard input was piped")?;
    input.write_all((commands.join("\n") + "\n").as_bytes())?;
    drop(input);
    let done = run.wait_with_output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("ip cannot {}: {}", commands.join("; "), said.trim());
    }
    Ok(())
}
