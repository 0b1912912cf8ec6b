//! Random faults of all kinds: streams begin and end, the network fails in every way, and the
//! server is killed. Afterwards the server must count exactly the leases that clients hold.
//!
//! `scripts/soak` does the same in real time, with processes that are killed and a store on a disk.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::host::{Habits, Host};
use crate::proxy::Weather;
use crate::world::{POLICY, SECOND, TTL, World};

/// How many rounds the test runs.
const ROUNDS: u32 = 4;

/// How long faults occur in each round.
const TROUBLE: Duration = Duration::from_secs(200);

/// The limits of [`POLICY`].
const CEILINGS: (u64, u64) = (10, 50);

/// Serves streams until `end`.
async fn serve(mut host: Host, end: Instant) -> Host {
    while Instant::now() < end {
        host.act().await.unwrap();
    }
    host
}

/// A random time of less than `millis` milliseconds.
fn up_to(millis: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(0..millis))
}

/// Causes one random fault after another until `end`.
async fn trouble(world: &World, end: Instant) {
    while Instant::now() < end {
        sleep(up_to(10_000)).await;
        match rand::rng().random_range(0..5) {
            0 => world.proxy.cut(),
            1 => {
                world.kill_server();
                // The outage is rarely longer than the TTL.
                let long = rand::rng().random_bool(0.1);
                sleep(if long { TTL + 5 * SECOND } else { up_to(20_000) }).await;
                world.start_server(POLICY).await;
            }
            _ => world.proxy.set(Weather::any()),
        }
        sleep(up_to(15_000)).await;
        let (sessions, workers) = world.held().await;
        assert!(sessions <= CEILINGS.0 && workers <= CEILINGS.1, "{sessions} {workers}");
        if rand::rng().random_bool(0.7) {
            world.proxy.clear();
        }
    }
    world.proxy.clear();
}

/// How many leases the hosts hold, by trace.
fn held(hosts: &mut [Host]) -> BTreeMap<String, u64> {
    hosts.iter_mut().for_each(|host| host.stop_what_ended().unwrap());
    hosts.iter().flat_map(Host::holds).collect()
}

/// Waits until the server counts exactly the leases that the hosts hold. Returns their number, and
/// how long it took.
async fn agreed(world: &World, hosts: &mut [Host]) -> (u64, Duration) {
    let start = Instant::now();
    loop {
        let (held, counted) = (held(hosts), world.held_by_trace().await);
        if held == counted {
            return (counted.values().sum(), start.elapsed());
        }
        assert!(start.elapsed() < 2 * TTL, "held {held:#?}, counted {counted:#?}");
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_random_faults_the_server_counts_exactly_what_clients_hold() {
    for round in 1..=ROUNDS {
        // Every second round has no stream for keep-alives.
        let world = World::new(round % 2 == 1).await;
        let end = Instant::now() + TROUBLE;
        let mut running = JoinSet::new();
        for number in 0..3 {
            // One host fails open.
            let open = if number == 0 { "&on-unavailable=allow" } else { "" };
            let (pool, _) = world.pool(&format!("request-keep-alive-delay=5s{open}"));
            let habits = Habits {
                name: format!("host-{number}"),
                organizations: vec!["acme".to_owned()],
                pause: 2 * SECOND,
                streams: 5,
                workers: 5,
            };
            running.spawn(serve(Host::new(pool, habits), end));
        }
        trouble(&world, end).await;
        let mut hosts = running.join_all().await;

        let (slots, took) = agreed(&world, &mut hosts).await;
        println!("round {round}: {slots} slots, {took:?} after the last fault");
        // One TTL later, every lease that no host holds has expired, and every return was tried.
        // The counts must still agree.
        sleep(TTL).await;
        assert_eq!(held(&mut hosts), world.held_by_trace().await);
        for host in hosts {
            println!("round {round}: {:?}", host.tally());
            assert_eq!(host.pool().close(TTL).await.not_returned, 0);
        }
        assert_eq!(world.held().await, (0, 0));
    }
}
