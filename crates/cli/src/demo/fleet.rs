//! The scenes of `demo --fleet`.

use std::time::{Duration, Instant};

use serde_json::Value;
use tgm_session::{Dsn, Error, Pool, Session, SessionRequest, TgmPool};

use crate::demo::narrator::Narrator;
use crate::demo::pools::Pools;
use crate::demo::processes::{Listening, Processes};
use crate::failure::Failure;

/// The service and the organization of all streams, and how many there are.
const SERVICE: &str = "t1r";
const ORGANIZATION: &str = "acme";
const STREAMS: usize = 6;

/// The servers.
const SERVERS: usize = 3;

/// How often a server is asked while a scene waits.
const LOOK: Duration = Duration::from_millis(50);

/// The longest wait for a new leader. A busy machine is slow.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Everything that the scenes use.
struct Play<'a> {
    narrator: &'a mut Narrator,
    processes: &'a mut Processes,
    pools: &'a mut Pools,
    servers: Vec<Listening>,
    streams: Vec<(Pool, Session)>,
}

/// Plays every scene. The first check that fails ends the demo.
pub(super) async fn play(
    narrator: &mut Narrator,
    processes: &mut Processes,
    pools: &mut Pools,
) -> Result<(), Failure> {
    narrator.open()?;
    let mut play = Play { narrator, processes, pools, servers: Vec::new(), streams: Vec::new() };
    play.a_fleet_starts().await?;
    play.streams_at_every_server().await?;
    play.the_leader_is_killed().await?;
    play.a_server_comes_and_the_leader_goes().await?;
    play.a_clean_close().await
}

impl Play<'_> {
    async fn a_fleet_starts(&mut self) -> Result<(), Failure> {
        self.narrator.begin("A database and three servers start")?;
        self.narrator.note("a leader that is gone is replaced after 2 s (the default is 5 s)")?;
        self.narrator.live("PostgreSQL starts")?;
        self.processes.start_database().await?;
        for _ in 0..SERVERS {
            let server = self.processes.start_in_fleet().await?;
            self.narrator
                .note(format_args!("a server on {}, store {}", server.grpc, server.store))?;
            self.servers.push(server);
        }
        let leader = self.leader_after(None).await?;
        self.narrator.check(
            leader.is_some(),
            format_args!("{} leads, the others stand by", leader.as_deref().unwrap_or("nobody")),
            "no server leads",
        )
    }

    async fn streams_at_every_server(&mut self) -> Result<(), Failure> {
        self.narrator.begin("Streams at every server")?;
        for number in 0..STREAMS {
            let pool = self.pools.connect(&self.url(number)).await?;
            let session = pool.borrow(request(number)).await?;
            self.streams.push((pool, session));
        }
        for server in 0..SERVERS {
            let counted = self.counted(server).await?;
            let address = &self.servers[server].grpc;
            self.narrator.check(
                counted == STREAMS as u64,
                format_args!("{address} counts all {STREAMS} streams"),
                format_args!("it counts {counted}"),
            )?;
        }
        let pools = &self.streams[0].0;
        let mut more = Vec::new();
        for number in STREAMS..8 {
            more.push(pools.borrow(request(number)).await?);
        }
        let refused = self.streams[1].0.borrow(request(8)).await;
        for session in more {
            session.release_after(Duration::ZERO).await?;
        }
        self.narrator.check(
            matches!(refused, Err(Error::ConcurrentStreamLimitExceeded { max: 8, .. })),
            "one limit for all servers: the ninth stream is refused, at another server",
            "it was not refused by the limit",
        )
    }

    async fn the_leader_is_killed(&mut self) -> Result<(), Failure> {
        self.narrator.begin("The leader is killed")?;
        let leader = self.leader_after(None).await?.unwrap_or_default();
        let keys = self.keys();
        self.processes.kill_in_fleet(&leader).await?;
        let killed = Instant::now();
        self.servers.retain(|server| server.grpc != leader);
        self.narrator.note(format_args!("kill -9 of {leader}, which led"))?;
        let next = self.leader_after(Some(&leader)).await?;
        let granted = self.borrow_soon().await?;
        let took = killed.elapsed().as_secs_f64();
        self.narrator.check(
            next.is_some() && granted,
            format_args!(
                "{} leads; the next grant came {took:.1} s after the kill",
                next.as_deref().unwrap_or("nobody")
            ),
            "nobody leads",
        )?;
        let counted = self.counted(0).await?;
        self.narrator.check(
            counted == STREAMS as u64,
            format_args!("no lease is lost: it counts {counted}"),
            format_args!("it counts {counted} of {STREAMS}"),
        )?;
        self.check_streams(&keys)
    }

    async fn a_server_comes_and_the_leader_goes(&mut self) -> Result<(), Failure> {
        self.narrator.begin("A new server comes, and the leader is stopped")?;
        let server = self.processes.start_in_fleet().await?;
        self.narrator.note(format_args!("a server on {}", server.grpc))?;
        self.servers.push(server);
        let leader = self.leader_after(None).await?.unwrap_or_default();
        self.members_are(SERVERS).await?;
        let keys = self.keys();
        self.servers.retain(|server| server.grpc != leader);
        let url = self.url(0);
        let pool = self.pools.connect(&url).await?;
        let call = async || {
            let session = pool.borrow(request(7)).await?;
            session.release_after(Duration::ZERO).await
        };
        // The first one also connects.
        call().await?;
        let mut calls = 0;
        let status = {
            let mut stop = std::pin::pin!(self.processes.stop_in_fleet(&leader));
            loop {
                // A borrow and a return, again and again, while the leader changes.
                tokio::select! {
                    status = &mut stop => break status?,
                    called = call() => drop(called?),
                }
                calls += 1;
            }
        };
        call().await?;
        self.narrator.check(
            status.success(),
            format_args!(
                "on SIGTERM {leader} hands over and exits with 0; {calls} borrows meanwhile, none failed"
            ),
            status,
        )?;
        let next = self.leader_after(Some(&leader)).await?;
        self.narrator.check(
            next.is_some(),
            format_args!("{} leads", next.as_deref().unwrap_or("nobody")),
            "nobody leads",
        )?;
        self.check_streams(&keys)
    }

    async fn a_clean_close(&mut self) -> Result<(), Failure> {
        self.narrator.begin("A clean close")?;
        let mut returned = 0;
        for (pool, _) in &self.streams {
            returned += pool.close(Duration::from_secs(5)).await.returned;
        }
        self.narrator.check(
            returned == STREAMS as u64,
            format_args!("{returned} of {STREAMS} streams are returned"),
            format_args!("{returned} are returned"),
        )?;
        let counted = self.counted(0).await?;
        self.narrator.check(
            counted == 0,
            "the fleet counts no lease",
            format_args!("it counts {counted}"),
        )
    }

    /// The URL of a client that prefers one server and knows the others.
    fn url(&self, number: usize) -> String {
        let place = |at: usize| &*self.servers[(number + at) % self.servers.len()].grpc;
        let also: Vec<&str> = (1..self.servers.len()).map(place).collect();
        format!(
            "tgm://{}?plaintext=true&request-keep-alive-delay=600ms&also={}",
            place(0),
            also.join(",")
        )
    }

    /// The address of the leader, once it is another one than `before`.
    async fn leader_after(&mut self, before: Option<&str>) -> Result<Option<String>, Failure> {
        let started = Instant::now();
        while started.elapsed() < LONGEST_WAIT {
            let fleet = self.processes.show_fleet(&self.servers[0].admin).await?;
            if let Some(leader) = fleet["leader"]["address"].as_str()
                && Some(leader) != before
            {
                return Ok(Some(leader.to_owned()));
            }
            self.narrator.live(format_args!(
                "no new leader yet, {:.1} s",
                started.elapsed().as_secs_f64()
            ))?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(None)
    }

    /// Waits until so many servers can take over or lead.
    async fn members_are(&mut self, members: usize) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let fleet = self.processes.show_fleet(&self.servers[0].admin).await?;
            let live = |server: &&Value| server["seen_seconds_ago"].as_f64() < Some(3.0);
            let servers =
                fleet["servers"].as_array().map_or(0, |it| it.iter().filter(live).count());
            if servers == members || started.elapsed() > LONGEST_WAIT {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Borrows and returns one more stream, and tries again while no server leads.
    async fn borrow_soon(&self) -> Result<bool, Failure> {
        let started = Instant::now();
        while started.elapsed() < LONGEST_WAIT {
            match self.streams[0].0.borrow(request(7)).await {
                Ok(session) => {
                    session.release_after(Duration::ZERO).await?;
                    return Ok(true);
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
        Ok(false)
    }

    /// How many streams the server of that place counts.
    async fn counted(&self, server: usize) -> Result<u64, Failure> {
        let url = format!("tgm://{}?plaintext=true", self.servers[server].grpc);
        let pool = TgmPool::from_dsn(&Dsn::parse(&url)?)?;
        Ok(pool.state(SERVICE, ORGANIZATION).await?.borrowed)
    }

    fn keys(&self) -> Vec<std::sync::Arc<str>> {
        self.streams.iter().map(|(_, session)| session.key()).collect()
    }

    fn check_streams(&mut self, keys: &[std::sync::Arc<str>]) -> Result<(), Failure> {
        let ended = self.streams.iter().filter_map(|(_, session)| session.end_reason());
        let ended: Vec<String> = ended.map(Error::to_string).collect();
        let same = self.keys() == keys;
        self.narrator.check(
            ended.is_empty() && same,
            "all streams go on with the keys that they had",
            format_args!("{} ended: {}", ended.len(), ended.join("; ")),
        )
    }
}

/// What a stream asks for.
fn request(number: usize) -> SessionRequest {
    SessionRequest::new(SERVICE, ORGANIZATION).trace(format!("trace-{number}"))
}
