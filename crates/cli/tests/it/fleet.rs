//! Servers on one database: who leads, and handing over.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{PATIENCE, Ran, Serve, file, folder, run};
use store::testing::cluster::Cluster;
use tgm_session::{Released, SessionRequest, connect};

/// Starts a server of the fleet in this schema.
fn serve(cluster: &Cluster, schema: &str, args: &[&str]) -> Serve {
    let store = format!("postgres://tgm@127.0.0.1:{}/postgres?schema={schema}", cluster.port);
    Serve::start(["--store", &store, "--leader-ttl", "1s"].iter().chain(args))
}

fn ask(server: &Serve, args: &[&str]) -> Ran {
    let admin = format!("http://{}", server.admin);
    run(args.iter().copied().chain(["--admin", &admin]))
}

/// The answer of `fleet`, once it is as the test waits for.
fn fleet_soon(server: &Serve, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let ran = ask(server, &["fleet", "--format", "json"]);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
        let fleet = ran.json().remove(0);
        if is_so(&fleet) {
            return fleet;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {fleet}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_led_by(fleet: &Value, server: &Serve) -> bool {
    fleet["leader"]["address"] == *server.grpc
}

fn has_servers(fleet: &Value, roles: &[&str]) -> bool {
    let mut found: Vec<_> = fleet["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["role"].as_str().unwrap())
        .collect();
    found.sort_unstable();
    found == roles
}

#[test]
fn every_server_shows_the_fleet_and_the_leader_hands_over_when_it_is_asked_to() {
    let Some(cluster) = Cluster::start() else { return };
    let first = serve(&cluster, "shown", &[]);
    let alone = fleet_soon(&first, "it leads", |fleet| is_led_by(fleet, &first));
    assert!(alone["warnings"][0].as_str().unwrap().contains("no other server"), "{alone}");
    let refused = ask(&first, &["step-down"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.error().contains("no other server"), "{refused:?}");

    let second = serve(&cluster, "shown", &[]);
    for server in [&first, &second] {
        let seen = fleet_soon(server, "both are listed", |fleet| {
            is_led_by(fleet, &first) && has_servers(fleet, &["leader", "standby"])
        });
        assert_eq!(
            (&seen["leader"]["epoch"], &seen["warnings"]),
            (&1.into(), &Vec::<Value>::new().into())
        );
        let own: Vec<_> =
            seen["servers"].as_array().unwrap().iter().filter(|it| it["is_self"] == true).collect();
        assert_eq!(own.len(), 1, "{seen}");
        assert_eq!(own[0]["address"], server.grpc);
        assert_eq!(own[0]["version"], env!("CARGO_PKG_VERSION"));
    }
    let text = ask(&first, &["fleet"]);
    assert!(text.stdout.contains(&format!("{} leads in term 1", first.grpc)), "{text:?}");

    let planned = ask(&first, &["step-down", "--dry-run"]);
    assert_eq!(planned.code, Some(0), "{planned:?}");
    assert!(planned.stdout.contains(&format!("would hand the leadership over to {}", second.grpc)));
    assert!(is_led_by(&fleet_soon(&second, "nothing changed", |_| true), &first));
    let done = ask(&first, &["step-down", "--note", "a new kernel"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains(&format!("handed the leadership over to {}", second.grpc)));
    for server in [&first, &second] {
        let seen = fleet_soon(server, "the other leads", |fleet| {
            is_led_by(fleet, &second) && has_servers(fleet, &["leader", "standby"])
        });
        assert_eq!(seen["leader"]["epoch"], 2);
    }
}

#[test]
fn a_leader_hands_over_to_another_policy_only_if_that_is_forced() {
    let Some(cluster) = Cluster::start() else { return };
    let folder = folder();
    let policy = |name: &str, text: &str| file(&folder, name, text).display().to_string();
    let one = policy("one.toml", "[services.t1r]\nmax_total = 1\n");
    let two = policy("two.toml", "[services.t1r]\nmax_total = 2\n");
    let first = serve(&cluster, "policies", &["--config", &one]);
    fleet_soon(&first, "it leads", |fleet| is_led_by(fleet, &first));
    let second = serve(&cluster, "policies", &["--config", &two]);
    // A server says which policy it has when it writes for the second time.
    let seen = fleet_soon(&first, "both have said their policy", |fleet| {
        has_servers(fleet, &["leader", "standby"]) && fleet["warnings"] != Value::Array(vec![])
    });
    let warning = seen["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("the servers have different policies: "), "{seen}");
    let refused = ask(&first, &["step-down"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.error().contains("policy"), "{refused:?}");
    assert!(is_led_by(&fleet_soon(&first, "it leads on", |_| true), &first));
    let top = ask(&first, &["top"]);
    assert!(top.stdout.contains("different policies"), "{top:?}");

    // The file is loaded again, and then both have the same policy.
    std::fs::write(&two, "# The same.\n[services]\nt1r = { max_total = 1 }\n").unwrap();
    let seen = fleet_soon(&first, "they agree", |fleet| fleet["warnings"] == Value::Array(vec![]));
    let hashes: Vec<_> =
        seen["servers"].as_array().unwrap().iter().map(|it| &it["policy_hash"]).collect();
    assert_eq!(hashes[0], hashes[1]);
    std::fs::write(&two, "[services.t1r]\nmax_total = 3\n").unwrap();
    fleet_soon(&first, "they differ", |fleet| fleet["warnings"] != Value::Array(vec![]));
    let forced = ask(&first, &["step-down", "--force"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    fleet_soon(&second, "the other leads", |fleet| is_led_by(fleet, &second));
}

#[test]
fn a_pool_that_knows_two_servers_goes_on_at_the_other_one_when_the_first_is_killed() {
    let Some(cluster) = Cluster::start() else { return };
    let mut first = serve(&cluster, "also", &[]);
    fleet_soon(&first, "it leads", |fleet| is_led_by(fleet, &first));
    let second = serve(&cluster, "also", &[]);
    fleet_soon(&second, "both are listed", |fleet| has_servers(fleet, &["leader", "standby"]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = connect(&format!("{}&also={}", first.url(), second.grpc)).await.unwrap();
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(pool.borrow(SessionRequest::new("t1r", "acme")).await.unwrap());
        }
        let seen: Vec<_> = sessions.iter().map(|it| (it.key(), it.keep_alives())).collect();
        // Its successor learns of this only by the silence of its row.
        first.kill();
        let begun = Instant::now();
        let later = loop {
            match pool.borrow(SessionRequest::new("t1r", "acme")).await {
                Ok(session) => break session,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            assert!(begun.elapsed() < PATIENCE, "the other server grants nothing");
        };
        let were_kept =
            || sessions.iter().zip(&seen).all(|(it, (_, before))| it.keep_alives() > *before);
        while !were_kept() {
            assert!(begun.elapsed() < PATIENCE, "the sessions are not kept alive");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (session, (key, _)) in sessions.into_iter().zip(seen) {
            assert_eq!((session.end_reason(), session.key()), (None, key));
            let released = session.release().await;
            assert!(matches!(released, Ok(Released::Returned | Released::Lingers)), "{released:?}");
        }
        drop(later);
    });
    fleet_soon(&second, "it leads", |fleet| is_led_by(fleet, &second));
}

#[test]
fn a_server_alone_has_no_fleet() {
    let server = Serve::start(["--store", "memory:"]);
    let shown = ask(&server, &["fleet"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("there is no fleet"), "{shown:?}");
    let refused = ask(&server, &["step-down"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.error().contains("there is no fleet"), "{refused:?}");
}
