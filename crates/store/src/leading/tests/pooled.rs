//! A fleet behind PgBouncer in transaction mode.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lease::KeptAlive;

use super::*;

/// A pooler with few connections to a database, which ends with this value.
struct Pooler {
    port: u16,
    process: Child,
    _folder: tempfile::TempDir,
}

fn program() -> Option<PathBuf> {
    // The PATH of an ordinary user has no /usr/sbin.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let found = path.split(':').map(|folder| Path::new(folder).join("pgbouncer"));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        let allowed = std::env::var_os("TGM_SESSION_ALLOW_MISSING").is_some();
        assert!(
            allowed,
            "PgBouncer is not installed: see scripts/test --install and --allow-missing"
        );
        eprintln!("left out: PgBouncer is not installed");
    }
    found
}

impl Pooler {
    fn start(database: u16) -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={database} user=tgm\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 2\n"
        );
        let path = folder.path().join("pgbouncer.ini");
        std::fs::write(&path, settings).unwrap();
        // It refuses to run as root.
        let mut command = if rustix::process::getuid().is_root() {
            let own = Command::new("chown").arg("-R").arg("postgres").arg(folder.path()).status();
            assert!(own.unwrap().success());
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let process = command.arg(&path).stderr(Stdio::null()).spawn().unwrap();
        Some(Self { port, process, _folder: folder })
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_works_behind_a_pooler_in_transaction_mode() {
    let Some(cluster) = Cluster::shared() else { return };
    let Some(pooler) = Pooler::start(cluster.port) else { return };
    let is_listening =
        async || tokio::net::TcpStream::connect(("127.0.0.1", pooler.port)).await.is_ok();
    eventually("the pooler listens", is_listening).await;
    let url = || url(pooler.port, "pooled");
    let first = open_url(url(), "10.0.0.1:9010").await;
    let early = borrow_soon(&first).await;
    // More servers than the pooler has connections, so each of them uses all.
    let second = open_url(url(), "10.0.0.2:9010").await;
    let third = open_url(url(), "10.0.0.3:9010").await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let store = first.clone();
        callers.spawn(async move {
            for _ in 0..50 {
                let id = borrow(&store).await.unwrap();
                store.release(id, None, Duration::ZERO).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    member_soon(&first, is_standby("10.0.0.2:9010")).await;
    member_soon(&first, is_standby("10.0.0.3:9010")).await;

    let successor = first.step_down(false).await.unwrap();
    let (next, last) =
        if &*successor.address == "10.0.0.2:9010" { (second, third) } else { (third, second) };
    borrow_soon(&next).await;
    let kept = next.keep_alive(early, None).await;
    assert!(matches!(kept, Ok(KeptAlive::Extended { .. })), "{kept:?}");
    assert_eq!(next.live().await.unwrap(), [("t1r".into(), 2)]);

    // The journal is written again through the pooler too.
    let client = connect(&cluster).await;
    let before = "SELECT epoch FROM pooled.fleet";
    let epoch: i64 = client.query_one(before, &[]).await.unwrap().get(0);
    client.batch_execute("BEGIN; UPDATE pooled.journal SET sequence = sequence - 1; DELETE FROM pooled.leases; COMMIT").await.unwrap();
    eventually("a new term", async || {
        client.query_one(before, &[]).await.unwrap().get::<_, i64>(0) > epoch
    })
    .await;
    first.close().unwrap();
    next.close().unwrap();
    borrow_soon(&last).await;
    assert_eq!(last.live().await.unwrap(), [("t1r".into(), 3)]);
    last.close().unwrap();
}
