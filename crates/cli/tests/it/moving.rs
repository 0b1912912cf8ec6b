//! `store copy` and `store inspect`: a store moves from a file to a database or etcd, and back.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{PATIENCE, Process, Ran, Serve, Talker, command, file, folder, run, store};
use store::testing::cluster::Cluster;
use store::testing::etcd::Etcd;

const POLICY: &str = "[services.t1r]\nttl = '5m'\nminimal_life = '0s'\n";

/// The URL of the database with a schema of its own.
fn database(cluster: &Cluster, schema: &str) -> String {
    format!("postgres://tgm:s3cret@127.0.0.1:{}/postgres?schema={schema}", cluster.port)
}

fn psql(cluster: &Cluster) -> Command {
    let mut psql = Command::new("psql");
    let port = cluster.port.to_string();
    psql.args(["-qAtX", "-h", "127.0.0.1", "-p", &port, "-U", "tgm", "postgres"]);
    psql
}

fn query(cluster: &Cluster, sql: &str) -> String {
    let answer = psql(cluster).args(["-c", sql]).output().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

/// Fills a store file: a session whose holder was killed, and an override.
fn fill(folder: &TempDir) {
    let policy = file(folder, "policy.toml", POLICY);
    let mut server = Serve::with_policy(folder, &policy);
    let url = server.url();
    let mut holder = Talker::start(["borrow", &url, "--organization", "acme"]);
    holder.event("holding");
    holder.process.kill();
    let admin = format!("http://{}", server.admin);
    let limited = run(["limit", "organization", "acme", "t1r", "40", "--admin", &admin]);
    assert_eq!(limited.code, Some(0), "{limited:?}");
    assert_eq!(server.stop(), Some(0));
}

fn json(args: &[&str]) -> Value {
    let ran = run(args.iter().copied().chain(["--format", "json"]));
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}: {ran:?}");
    ran.json().remove(0)
}

fn refused(args: &[&str], code: i32, part: &str) {
    let ran = run(args);
    assert_eq!((ran.code, &*ran.stdout), (Some(code), ""), "{args:?}: {ran:?}");
    assert!(ran.error().contains(part), "{ran:?}");
    assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
}

#[test]
fn a_store_moves_to_a_database_and_back_and_servers_go_on_from_it() {
    let Some(cluster) = Cluster::start() else { return };
    moves_there_and_back(&database(&cluster, "moved"));
}

#[test]
fn a_store_moves_to_etcd_and_back_and_servers_go_on_from_it() {
    let Some(etcd) = Etcd::start(1, &[]) else { return };
    moves_there_and_back(&etcd.url("moved"));
}

#[test]
fn a_store_moves_between_postgres_and_etcd() {
    let (Some(cluster), Some(etcd)) = (Cluster::start(), Etcd::start(1, &[])) else { return };
    let folder = folder();
    fill(&folder);
    let places =
        [store(&folder), database(&cluster, "one"), etcd.url("two"), database(&cluster, "three")];
    let copied: Vec<_> =
        places.windows(2).map(|pair| json(&["store", "copy", &pair[0], &pair[1]])).collect();
    for place in &places {
        let seen = json(&["store", "inspect", place]);
        for kind in ["leases", "lingering", "remembered", "usage", "overrides", "audit"] {
            assert_eq!(seen[kind], copied[0][kind], "{kind} in {place}");
        }
        assert_eq!(seen["leases"], 1);
    }
    refused(&["store", "copy", &places[0], &places[2]], 1, "rows already");
    let nothing = etcd.url("nothing");
    refused(&["store", "inspect", &nothing], 1, "it has no keys of a fleet");
    refused(&["store", "copy", &nothing, &etcd.url("new")], 1, "it has no keys of a fleet");
}

fn moves_there_and_back(between: &str) {
    let folder = folder();
    let from = store(&folder);
    let back = format!("file:{}", folder.path().join("back.redb").display());
    fill(&folder);

    let copied = json(&["store", "copy", &from, between]);
    let is_whole = |counts: &Value| {
        assert_eq!([&counts["leases"], &counts["overrides"], &counts["audit"]], [1, 1, 1]);
    };
    is_whole(&copied);
    assert!(!copied.to_string().contains("s3cret"), "{copied}");
    refused(&["store", "copy", &from, between], 1, "rows already");

    // A server of a fleet has the lease and the override.
    let mut server = Serve::start(["--store", between, "--leader-ttl", "1s"]);
    let admin = format!("http://{}", server.admin);
    let start = Instant::now();
    let sessions = loop {
        let ran = run(["sessions", "--admin", &admin, "--format", "json"]);
        if ran.code == Some(0) && !ran.json().is_empty() {
            break ran.json();
        }
        assert!(start.elapsed() < PATIENCE, "{ran:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(sessions[0]["organization"], "acme");
    let seen = json(&["store", "inspect", between]);
    is_whole(&seen);
    let fleet = &seen["fleet"];
    assert_eq!((&fleet["epoch"], &fleet["released"]), (&json!(1), &json!(false)));
    assert_eq!(fleet["address"], server.grpc);
    let servers = seen["servers"].as_array().unwrap();
    assert_eq!((servers.len(), &servers[0]["address"]), (1, &json!(server.grpc)));
    refused(&["store", "copy", between, &back], 1, "a server leads its fleet");
    assert_eq!(server.stop(), Some(0));
    assert_eq!(json(&["store", "inspect", between])["fleet"]["released"], true);

    let text = run(["store", "copy", between, &back]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("1 lease (0 lingering)"), "{text:?}");
    is_whole(&json(&["store", "inspect", &back]));
    let server = Serve::start(["--store", &back]);
    assert_eq!(server.ready["recovered_leases"], 1);
    refused(&["store", "inspect", &back], 1, "in use");
}

#[test]
fn what_is_no_store_is_refused() {
    let folder = folder();
    let from = store(&folder);
    refused(&["store", "inspect", &from], 1, "cannot open");
    refused(&["store", "inspect", "redis://u:s3cret@h"], 2, "the stores are");
    refused(&["store", "inspect", "memory:"], 2, "keeps nothing");
    refused(&["store", "copy", "memory:", &from], 1, "keeps nothing");
    refused(&["store", "inspect", "postgres://u:s3cret@127.0.0.1:1/x"], 1, "cannot be used");
    refused(&["store", "inspect", "postgres://u:s3cret@h/x?sslmode=s3cret"], 1, "`sslmode` is");
    refused(&["store", "inspect", "etcd://127.0.0.1:1/x"], 1, "etcd cannot be reached");
    refused(&["store", "inspect", "etcd://u:s3cret@h/x"], 1, "from ETCDCTL_USER");
}

/// A session of the database that keeps others from writing leases.
struct Lock(Child);

impl Lock {
    fn take(cluster: &Cluster, schema: &str) -> Self {
        let mut psql = psql(cluster);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lock = format!("BEGIN; LOCK TABLE {schema}.leases IN EXCLUSIVE MODE;\n\\echo locked\n");
        child.stdin.as_mut().unwrap().write_all(lock.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        assert_eq!(answer, "locked\n");
        Self(child)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_copy_that_is_killed_in_the_middle_leaves_nothing_and_can_be_made_again() {
    let Some(cluster) = Cluster::start() else { return };
    let folder = folder();
    let (from, to) = (store(&folder), database(&cluster, "killed"));
    fill(&folder);
    // A server makes the tables.
    assert_eq!(Serve::start(["--store", &to]).stop(), Some(0));
    let lock = Lock::take(&cluster, "killed");
    let mut copy = Process::new(command(["store", "copy", &from, &to]).spawn().unwrap());
    // The audit list is written, and the leases wait for the lock.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let start = Instant::now();
    while query(&cluster, waiting) != "1" {
        assert!(start.elapsed() < PATIENCE, "it does not come to the leases");
    }
    copy.signal(Signal::KILL);
    copy.wait();
    drop(lock);
    let counts = json(&["store", "inspect", &to]);
    assert_eq!([&counts["leases"], &counts["overrides"], &counts["audit"]], [0, 0, 0]);
    let again: Ran = run(["store", "copy", &from, &to]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(json(&["store", "inspect", &to])["leases"], 1);
}
