//! The scenes.

use std::time::{Duration, Instant};

use tgm_session::{Dsn, Error, Pool, PoolState, Scope, Session, SessionRequest, TgmPool, Worker};

use crate::bar::Bar;
use crate::demo::narrator::Narrator;
use crate::demo::pools::Pools;
use crate::demo::processes::{Processes, TTL};
use crate::failure::Failure;

/// The service whose leases are sessions, as real services call it.
const SESSIONS: &str = "t1r";
/// The service whose leases are workers.
const WORKERS: &str = "t2w";

/// The organizations, and how many streams each of them runs. The limits are 8, 4 and 3.
const STREAMS: [(&str, usize); 3] = [("acme", 6), ("borealis", 2), ("cirrus", 2)];

/// How often the server is asked while a scene waits.
const LOOK: Duration = Duration::from_millis(50);
/// The pause after a line, so that people can read it.
const BEAT: Duration = Duration::from_millis(120);
/// The rest after a TTL until a lease that its client lost has certainly expired.
const SLACK: Duration = Duration::from_millis(700);
/// The longest wait for slots that come back after a TTL. A busy machine is slow.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// One streaming service of one organization, with a pool of its own as in a process of its own.
struct Streamer {
    organization: &'static str,
    pool: Pool,
    sessions: Vec<Session>,
    workers: Vec<Worker>,
}

/// Everything that the scenes use.
struct Play<'a> {
    narrator: &'a mut Narrator,
    processes: &'a mut Processes,
    pools: &'a mut Pools,
    /// Asks the server what it counts.
    counter: TgmPool,
    url: String,
    address: String,
    streamers: Vec<Streamer>,
}

/// Plays every scene. The first check that fails ends the demo.
pub(super) async fn play(
    narrator: &mut Narrator,
    processes: &mut Processes,
    pools: &mut Pools,
) -> Result<(), Failure> {
    narrator.open()?;
    narrator.begin("A server starts")?;
    let started = Instant::now();
    let server = processes.start_server("127.0.0.1:0").await?;
    narrator.note(format_args!("gRPC on {}, durable store {}", server.grpc, server.store))?;
    narrator.note(format_args!(
        "a lease without keep-alives expires after {} s (the default TTL is 60 s)",
        TTL.as_secs()
    ))?;
    let took = started.elapsed().as_millis();
    narrator.check(true, format_args!("it accepts calls after {took} ms"), "")?;

    let url = format!("tgm://{}?plaintext=true&request-keep-alive-delay=600ms", server.grpc);
    let counter = TgmPool::from_dsn(&Dsn::parse(&url)?)?;
    let mut play = Play {
        narrator,
        processes,
        pools,
        counter,
        url,
        address: server.grpc,
        streamers: Vec::new(),
    };
    play.organizations_stream().await?;
    play.workers_under_a_session().await?;
    play.a_full_organization_is_refused().await?;
    play.a_client_is_killed().await?;
    play.the_server_is_killed().await?;
    play.a_clean_close().await
}

impl Play<'_> {
    async fn organizations_stream(&mut self) -> Result<(), Failure> {
        self.narrator.begin("Three organizations stream")?;
        for (organization, streams) in STREAMS {
            let pool = self.pools.connect(&self.url).await?;
            let mut sessions = Vec::new();
            for number in 0..streams {
                sessions.push(pool.borrow(request(organization, number)).await?);
                let active = sessions.len();
                self.narrator.live(format_args!("{organization} starts stream {active}"))?;
                self.narrator.pause(BEAT / 2).await;
            }
            self.streamers.push(Streamer { organization, pool, sessions, workers: Vec::new() });
            self.show_pool(organization, SESSIONS).await?;
        }
        let held: usize = STREAMS.iter().map(|(_, streams)| streams).sum();
        let counted = self.counted(SESSIONS).await?;
        self.narrator.check(
            counted == held as u64,
            format_args!("{held} streams run, and the server counts {counted}"),
            format_args!("it counts {counted}"),
        )
    }

    async fn workers_under_a_session(&mut self) -> Result<(), Failure> {
        self.narrator.begin("Workers under a session")?;
        self.narrator.note("one stream of acme uses 4 workers, which is its limit")?;
        let acme = &mut self.streamers[0];
        let session = &acme.sessions[0];
        for _ in 0..4 {
            acme.workers.push(session.borrow_worker(WORKERS, 4).await?);
        }
        let fifth = session.borrow_worker(WORKERS, 4).await;
        self.show_pool("acme", WORKERS).await?;
        let refused = match &fifth {
            Ok(_) => "it was granted".to_owned(),
            Err(error) => {
                self.show_refusal("acme", error)?;
                error.to_string()
            }
        };
        let expected = Error::WorkersLimitExceeded { active: 4, max: 4, scope: Scope::Trace };
        self.narrator.check(
            fifth.is_err_and(|error| error == expected),
            "a fifth worker is refused by the limit of the session",
            refused,
        )?;
        let counted = self.counted(WORKERS).await?;
        self.narrator.check(
            counted == 4,
            "workers and streams are counted separately",
            format_args!("the server counts {counted} workers"),
        )
    }

    async fn a_full_organization_is_refused(&mut self) -> Result<(), Failure> {
        self.narrator.begin("A full organization is refused")?;
        let cirrus = &mut self.streamers[2];
        let third = cirrus.pool.borrow(request("cirrus", 2)).await?;
        cirrus.sessions.push(third);
        let fourth = cirrus.pool.borrow(request("cirrus", 3)).await;
        self.show_pool("cirrus", SESSIONS).await?;
        let refused = match &fourth {
            Ok(_) => "it was granted".to_owned(),
            Err(error) => {
                self.show_refusal("cirrus", error)?;
                error.to_string()
            }
        };
        let scope = Scope::Organization;
        let expected = Error::ConcurrentStreamLimitExceeded { active: 3, max: 3, scope };
        self.narrator.check(
            fourth.is_err_and(|error| error == expected),
            "a fourth stream is refused with the count, the limit and its scope",
            refused,
        )?;
        let neighbour = self.streamers[1].pool.borrow(request("borealis", 2)).await;
        let said = neighbour.as_ref().err().map_or_else(String::new, Error::to_string);
        let granted = match neighbour {
            Ok(session) => session.release_after(Duration::ZERO).await.is_ok(),
            Err(_) => false,
        };
        self.narrator.check(granted, "its neighbour borealis is served as before", said)
    }

    async fn a_client_is_killed(&mut self) -> Result<(), Failure> {
        self.narrator.begin("A client is killed")?;
        self.narrator.note("another process holds a stream of borealis with 2 workers")?;
        let before = self.count("borealis", SESSIONS).await?.borrowed;
        self.processes.start_client(&self.url, "borealis", 2).await?;
        self.show_pool("borealis", SESSIONS).await?;
        self.show_pool("borealis", WORKERS).await?;

        self.processes.kill_client().await?;
        let killed = Instant::now();
        let streams = self.count("borealis", SESSIONS).await?.borrowed;
        let workers = self.count("borealis", WORKERS).await?.borrowed;
        self.narrator.note("kill -9: the client returns nothing")?;
        self.narrator.check(
            streams == before + 1 && workers == 2,
            "its slots stay in use at first: the client might only be slow",
            format_args!("{streams} streams and {workers} workers"),
        )?;
        let mut left = (streams, workers);
        while left != (before, 0) && killed.elapsed() < LONGEST_WAIT {
            let shown = TTL.saturating_sub(killed.elapsed());
            self.narrator.live(format_args!(
                "{} until its leases end, {:.1} s",
                Bar::cells_of(shown.as_millis(), TTL.as_millis()),
                shown.as_secs_f64()
            ))?;
            tokio::time::sleep(LOOK).await;
            left.0 = self.count("borealis", SESSIONS).await?.borrowed;
            left.1 = self.count("borealis", WORKERS).await?.borrowed;
        }
        let took = killed.elapsed().as_secs_f64();
        self.show_pool("borealis", SESSIONS).await?;
        self.narrator.check(
            left == (before, 0),
            format_args!("its leases expired after {took:.1} s"),
            format_args!("{} streams and {} workers after {took:.1} s", left.0, left.1),
        )?;
        self.check_none_ended("all other streams continue")
    }

    async fn the_server_is_killed(&mut self) -> Result<(), Failure> {
        self.narrator.begin("The server is killed and comes back")?;
        let before = (self.counted(SESSIONS).await?, self.counted(WORKERS).await?);
        let keys = self.keys();
        self.processes.kill_server().await?;
        self.narrator.note(format_args!(
            "kill -9 while {} sessions and {} workers are held",
            before.0, before.1
        ))?;
        self.narrator.live("the server is down; the streams continue")?;
        tokio::time::sleep(Duration::from_millis(400)).await;

        let restarted = Instant::now();
        self.processes.start_server(&self.address).await?;
        let took = restarted.elapsed().as_millis();
        self.narrator.note(format_args!("restarted on the same store, ready after {took} ms"))?;
        let after = (self.counted(SESSIONS).await?, self.counted(WORKERS).await?);
        for (organization, _) in STREAMS {
            self.show_pool(organization, SESSIONS).await?;
        }
        self.narrator.check(
            after == before,
            format_args!("every lease is still there: {} sessions, {} workers", after.0, after.1),
            format_args!("{} sessions and {} workers", after.0, after.1),
        )?;
        // A lease that its client did not find again is gone after one TTL.
        let accepted = Instant::now();
        while let Some(rest) = (TTL + SLACK).checked_sub(accepted.elapsed()) {
            self.narrator.live(format_args!(
                "{} waiting for one TTL, {:.1} s",
                Bar::cells_of(rest.as_millis(), (TTL + SLACK).as_millis()),
                rest.as_secs_f64()
            ))?;
            tokio::time::sleep(rest.min(LOOK)).await;
        }
        let later = (self.counted(SESSIONS).await?, self.counted(WORKERS).await?);
        self.narrator.check(
            later == before,
            "one TTL later all are alive: the clients have reconnected",
            format_args!("{} sessions and {} workers", later.0, later.1),
        )?;
        self.narrator.check(
            self.keys() == keys,
            "all have the same keys: nothing was borrowed again",
            "some key changed",
        )?;
        self.check_none_ended("no stream ended")
    }

    async fn a_clean_close(&mut self) -> Result<(), Failure> {
        self.narrator.begin("A clean close")?;
        for streamer in &self.streamers {
            let held = (streamer.sessions.len() + streamer.workers.len()) as u64;
            let report = streamer.pool.close(Duration::from_secs(5)).await;
            let organization = streamer.organization;
            self.narrator.check(
                report.returned == held && report.not_returned == 0,
                format_args!("{organization} returned {held} of {held}"),
                format_args!("{} returned, {} not", report.returned, report.not_returned),
            )?;
        }
        for (organization, _) in STREAMS {
            self.show_pool(organization, SESSIONS).await?;
        }
        let left = (self.counted(SESSIONS).await?, self.counted(WORKERS).await?);
        self.narrator.check(
            left == (0, 0),
            "the server counts no lease",
            format_args!("{} sessions and {} workers are left", left.0, left.1),
        )?;
        let status = self.processes.stop_server().await?;
        self.narrator.check(status.success(), "on SIGTERM the server exits with 0", status)
    }

    /// Asks how many leases `organization` holds of `service`, and how many it may hold.
    async fn count(&self, organization: &str, service: &str) -> Result<PoolState, Failure> {
        Ok(self.counter.state(service, organization).await?)
    }

    async fn show_pool(&mut self, organization: &str, service: &str) -> Result<(), Failure> {
        let pool = self.count(organization, service).await?;
        self.narrator.pool(organization, service, pool.borrowed, pool.max)?;
        self.narrator.pause(BEAT).await;
        Ok(())
    }

    fn show_refusal(&mut self, organization: &str, error: &Error) -> Result<(), Failure> {
        let scope = match error {
            Error::ConcurrentStreamLimitExceeded { scope, .. }
            | Error::WorkersLimitExceeded { scope, .. } => scope.as_str(),
            _ => "none",
        };
        self.narrator.refusal(organization, scope, &error.to_string())
    }

    /// How many leases of `service` the server counts for all organizations of the demo.
    async fn counted(&mut self, service: &str) -> Result<u64, Failure> {
        let mut sum = 0;
        for (organization, _) in STREAMS {
            sum += self.count(organization, service).await?.borrowed;
        }
        Ok(sum)
    }

    /// The keys of all leases that are held now.
    fn keys(&self) -> Vec<std::sync::Arc<str>> {
        let all = self.streamers.iter();
        all.flat_map(|streamer| {
            let sessions = streamer.sessions.iter().map(|session| session.key());
            sessions.chain(streamer.workers.iter().map(|worker| worker.key()))
        })
        .collect()
    }

    fn check_none_ended(&mut self, what: &str) -> Result<(), Failure> {
        let ended: Vec<String> = self
            .streamers
            .iter()
            .flat_map(|streamer| {
                let sessions = streamer.sessions.iter().filter_map(|session| session.end_reason());
                sessions.chain(streamer.workers.iter().filter_map(|worker| worker.end_reason()))
            })
            .map(Error::to_string)
            .collect();
        let seen = format!("{} ended: {}", ended.len(), ended.join("; "));
        self.narrator.check(ended.is_empty(), what, seen)
    }
}

/// What the stream `number` of `organization` asks for.
fn request(organization: &str, number: usize) -> SessionRequest {
    SessionRequest::new(SESSIONS, organization)
        .api_key(format!("{organization}-key"))
        .trace(format!("{organization}-trace-{number}"))
}
