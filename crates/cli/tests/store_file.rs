//! What the server makes of a store: who may read it, and how it stops when the disk hangs.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use harness::{Talker, command, folder};
use rustix::process::Signal;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The binary, started under this umask, over a store in the state folder `state`.
fn serve_under(umask: &str, state: &Path) -> Talker {
    let mut serve = command(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    serve.args(["--format", "json", "--log", "error"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("umask {umask} && exec \"$0\" \"$@\"")]);
    shell.arg(serve.get_program()).args(serve.get_args());
    shell.env("XDG_STATE_HOME", state).stdout(std::process::Stdio::piped());
    Talker::spawn(shell)
}

#[test]
fn a_store_and_the_folders_made_for_it_are_for_their_owner_whatever_the_umask() {
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
fn a_killed_server_leaves_a_path_that_the_next_one_takes() {
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
