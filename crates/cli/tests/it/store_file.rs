//! The file of a store: its permissions, and how the server stops when the disk hangs.

#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{self, PATIENCE, Talker, command, folder, run};
use rustix::process::Signal;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Starts a server under this umask, with its store in the state folder `state`.
fn serve_under(umask: &str, state: &Path) -> Talker {
    let mut serve = command(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    serve.args(["--format", "json", "--log", "error"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("umask {umask} && exec \"$0\" \"$@\"")]);
    shell.arg(serve.get_program()).args(serve.get_args());
    shell.env("XDG_STATE_HOME", state).stdout(Stdio::piped());
    Talker::spawn(shell)
}

#[test]
fn a_new_store_and_its_folders_are_private_whatever_the_umask() {
    for umask in ["000", "022", "277"] {
        let folder = folder();
        let state = folder.path().join("one/two");
        let mut server = serve_under(umask, &state);
        server.event("ready");
        let store = state.join("tgm-session/sessions.redb");
        for made in [&folder.path().join("one"), &state, store.parent().unwrap()] {
            assert_eq!(mode(made), 0o700, "umask {umask}: {}", made.display());
        }
        assert_eq!(mode(&store), 0o600, "umask {umask}");
        assert_eq!(mode(&store.with_extension("redb.lock")), 0o600, "umask {umask}");
        assert_eq!(server.end(Signal::TERM), Some(0));
        assert_eq!(std::fs::read_dir(store.parent().unwrap()).unwrap().count(), 1);
    }
}

#[test]
fn a_server_opens_the_store_of_a_killed_server_and_removes_leftover_files() {
    let folder = folder();
    let mut server = serve_under("022", folder.path());
    server.event("ready");
    server.process.kill();
    let store = folder.path().join("tgm-session/sessions.redb");
    std::fs::write(store.with_extension("redb.unfinished-x1.new"), "half a file").unwrap();
    let mut server = serve_under("022", folder.path());
    server.event("ready");
    assert_eq!(server.end(Signal::TERM), Some(0));
    assert_eq!(std::fs::read_dir(store.parent().unwrap()).unwrap().count(), 1);
}

/// The variable with the mount point of the file system, for the test inside the namespace.
const MOUNTED: &str = "TGM_TEST_MOUNTED";

#[test]
fn a_server_whose_disk_hangs_says_so_and_stops_with_1() {
    let folder = folder();
    let namespace = |script: &str| {
        let mut command = Command::new("unshare");
        let mounted = folder.path().join("mounted");
        command.args(["--mount", "sh", "-c", script]).current_dir(folder.path());
        command.env(MOUNTED, mounted);
        command
    };
    let mount = "mkdir -p mounted && truncate -s 32M disk && mkfs.ext4 -q -F disk && \
                 mount -o loop disk mounted && fsfreeze -f mounted && fsfreeze -u mounted";
    let tried = namespace(mount).output();
    if !tried.as_ref().is_ok_and(|tried| tried.status.success()) {
        harness::leave_out(&format!("nobody may mount and freeze a file system here ({tried:?})"));
        return;
    }
    // Always unfreeze the file system, so that no process waits for it for ever.
    let mut inner =
        namespace(&format!("{mount} && \"$0\" \"$@\"; code=$?; fsfreeze -u mounted; exit $code"));
    inner.arg(std::env::current_exe().unwrap());
    inner.args(["--exact", "store_file::server_whose_disk_hangs", "--ignored", "--nocapture"]);
    let ran = inner.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("1 passed"), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
}

/// A frozen file system: every write to it blocks. It is unfrozen when this value is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(path: PathBuf) -> Self {
        assert!(Command::new("fsfreeze").arg("-f").arg(&path).status().unwrap().success());
        Self(path)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

fn readyz(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[ignore = "runs within a_server_whose_disk_hangs_says_so_and_stops_with_1"]
fn server_whose_disk_hangs() {
    let mounted = PathBuf::from(std::env::var_os(MOUNTED).expect("a mounted file system"));
    let store = format!("file:{}", mounted.join("s.redb").display());
    let mut serve = command(["serve", "--store", &store, "--drain-timeout", "1s"]);
    serve.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    serve.args(["--format", "json", "--log", "error"]);
    let (errors, writer) = std::io::pipe().unwrap();
    serve.stderr(writer);
    let mut server = Talker::spawn(serve);
    let ready = server.event("ready");
    let text = |name: &str| ready[name].as_str().unwrap().to_owned();
    let (grpc, admin) = (text("grpc"), text("admin"));
    assert!(readyz(&admin).starts_with("HTTP/1.1 200"));

    let frozen = Frozen::new(mounted);
    let url = format!("tgm://{grpc}?plaintext=true&borrow-timeout=5s");
    let borrow = std::thread::spawn(move || {
        run(["borrow", &url, "--organization", "acme", "--for", "1ms"]).code
    });
    let start = Instant::now();
    while !readyz(&admin).contains("the disk takes too long") {
        assert!(start.elapsed() < PATIENCE, "it stays ready");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.process.signal(Signal::TERM);
    let mut said = String::new();
    let mut errors = BufReader::new(errors);
    while !said.contains("has not confirmed") {
        assert_ne!(errors.read_line(&mut said).unwrap(), 0, "it says nothing of it: {said}");
    }
    assert!(said.contains("s.redb") && said.contains(" changes that the disk"), "{said}");
    // A thread that writes to the disk cannot end before the disk answers, and neither can its
    // process.
    drop(frozen);
    assert_eq!(server.process.wait().code(), Some(1));
    assert_eq!(borrow.join().unwrap(), Some(4));
}
