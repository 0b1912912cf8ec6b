//! One fleet, its clients and its database, and what goes wrong.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use crate::client::Client;
use crate::clock::{Clock, MILLISECOND, SECOND, Time};
use crate::database::Database;
use crate::event::{Answer, Event};
use crate::message::Connection;
use crate::server::Server;
use crate::sim::{CLIENTS, SERVERS, Sim};
use crate::truth::Counts;

/// How long the faults have been over when the fleet has to be well.
const RECOVERY: Time = 35 * SECOND;

/// How many of the last events are told when a promise is broken.
const TOLD: u64 = 40;

/// The most characters of an event that are told.
const MOST_TOLD: usize = 600;

/// A broken promise.
#[derive(Debug)]
pub struct Violation {
    /// The seed of the world.
    pub seed: u64,
    /// The step after which the promise was broken.
    pub step: u64,
    /// What is broken, in words.
    pub what: String,
    /// The last events.
    pub events: Vec<String>,
}

/// Plays the world of a seed up to a step, and tells the last events.
pub fn tell(seed: u64, step: u64) -> Vec<String> {
    let mut events = Vec::new();
    // A promise that is broken at that step is known.
    let _ = World::new(seed).play(step, Some(&mut events));
    events
}

/// How the world is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Faults,
    /// Everything is well again, and recovers.
    Calm,
    /// It has recovered: the next commit comes soon, after so many.
    Recovered {
        commits: u64,
    },
}

pub(crate) struct World {
    seed: u64,
    sim: Sim,
    database: Database,
    servers: Vec<Server>,
    clients: Vec<Client>,
    weather: Weather,
    steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut sim = Sim::new(seed);
        let database = Database::new(sim.settings.leader_ttl);
        let clock = |sim: &mut Sim, number: usize| {
            // Often as far off as it may be.
            let faster = match sim.random.random_range(0..3) {
                0 => -20_000,
                1 => 20_000,
                _ => sim.random.random_range(-20_000..=20_000),
            };
            Clock { offset: Duration::from_secs(number as u64 * 977), faster }
        };
        let mut servers = Vec::new();
        for index in 0..SERVERS {
            let clock = clock(&mut sim, index);
            let mut server = Server::new(&mut sim, index, clock);
            server.start(&mut sim);
            servers.push(server);
        }
        let (mut clients, start) = (Vec::new(), Instant::now());
        for index in 0..CLIENTS {
            let clock = clock(&mut sim, SERVERS + index);
            let mut client = Client::new(&mut sim, index, clock, start);
            client.restart(&mut sim);
            clients.push(client);
        }
        sim.after(SECOND, Event::Fault);
        sim.after(60 * SECOND, Event::Weather);
        Self { seed, sim, database, servers, clients, weather: Weather::Faults, steps: 0 }
    }

    /// Makes `steps` steps.
    pub(crate) fn run(&mut self, steps: u64) -> Result<Counts, Box<Violation>> {
        match self.play(steps, None) {
            Ok(()) => {
                self.sim.truth.finish();
                Ok(self.sim.truth.counts)
            }
            Err(what) => {
                let (seed, step) = (self.seed, self.steps);
                Err(Box::new(Violation { seed, step, what, events: tell(seed, step) }))
            }
        }
    }

    fn play(&mut self, steps: u64, mut told: Option<&mut Vec<String>>) -> Result<(), String> {
        while self.steps < steps {
            let Some(event) = self.sim.next() else { return Err("nothing happens".to_owned()) };
            self.steps += 1;
            if let Some(told) = &mut told
                && self.steps + TOLD > steps
            {
                let seconds = self.sim.time as f64 / SECOND as f64;
                let mut line = format!("{} {seconds:.6} {event:?}", self.steps);
                line.truncate(MOST_TOLD);
                told.push(line);
            }
            let is_reply = matches!(event, Event::Reply { .. });
            self.dispatch(event);
            if is_reply {
                self.check_leaders();
            }
            if let Some(what) = self.sim.truth.check(self.sim.time) {
                return Err(what);
            }
        }
        Ok(())
    }

    /// At most one server may act as the leader.
    fn check_leaders(&mut self) {
        let sim = &self.sim;
        let leaders: Vec<usize> =
            (0..SERVERS).filter(|index| self.servers[*index].is_valid_leader(sim)).collect();
        if leaders.len() > 1 {
            self.sim.truth.violate(|| format!("the servers {leaders:?} may all act as the leader"));
        }
    }

    fn dispatch(&mut self, event: Event) {
        if let Some((server, life)) = event.server() {
            let server = &mut self.servers[server];
            if life.is_some_and(|life| life != server.life) {
                return;
            }
            if !server.is_up {
                return self.refuse(event);
            }
            if server.is_paused {
                return server.inbox.push(event);
            }
            return self.at_server(event);
        }
        if let Some((client, life)) = event.client() {
            let client = &mut self.clients[client];
            if life != client.life {
                return;
            }
            if client.is_paused {
                return client.inbox.push(event);
            }
            return self.at_client(event);
        }
        self.elsewhere(event);
    }

    /// A connection to a server that does not run is refused.
    fn refuse(&mut self, event: Event) {
        let answer = Answer::NotLeader;
        let refused = match event {
            Event::Call { call, .. } => {
                let (client, life, call) = (call.client, call.life, call.number);
                Event::Answer { client, life, call, answer, is_ghost: false }
            }
            Event::Attach { client, life, stream, .. } => Event::Detached { client, life, stream },
            Event::Forward { server, hop, call, .. } => {
                let call = call.number;
                Event::Forwarded { hop, from: server, call, answer, is_ghost: false }
            }
            _ => return,
        };
        self.sim.send(&[], refused);
    }

    fn at_server(&mut self, event: Event) {
        let sim = &mut self.sim;
        let Some((index, _)) = event.server() else { return };
        let server = &mut self.servers[index];
        match event {
            Event::Reply { asker, reply } => match asker.connection {
                Connection::Elections => server.elected(sim, asker.number, *reply),
                Connection::Journal => server.committed(sim, asker.number, *reply),
            },
            Event::Lead { wake, .. } => server.wake(sim, wake),
            Event::Journal { wake, .. } => server.go_on_committing(sim, wake),
            Event::Serve { term, .. } => server.serve(sim, term),
            Event::Tick { .. } => server.tick(sim),
            Event::Call { call, .. } => server.receive(sim, call),
            Event::Cancel { call, .. } => server.cancel(call),
            Event::Hold { .. } => server.look_again(sim),
            Event::Forward { hop, term, call, .. } => {
                server.receive_forwarded(sim, hop, term, &call);
            }
            Event::Forwarded { hop, from, call, answer, is_ghost } => {
                server.receive_answer(sim, (hop, from), call, answer, is_ghost);
            }
            Event::HandedOn { hop, call, is_handed_on, .. } => {
                server.handed_on(sim, hop, call, is_handed_on);
            }
            Event::LinkLost { peer, .. } => server.link_lost(sim, peer),
            Event::Attach { client, life, stream, .. } => server.attach(sim, client, life, stream),
            _ => {}
        }
    }

    fn at_client(&mut self, event: Event) {
        let sim = &mut self.sim;
        let Some((index, _)) = event.client() else { return };
        let client = &mut self.clients[index];
        match event {
            Event::Answer { call, answer, is_ghost, .. } => {
                client.answer(sim, call, answer, is_ghost);
            }
            Event::Attached { stream, .. } => client.attached(sim, stream),
            Event::Detached { stream, .. } => client.detached(sim, stream),
            Event::Disconnected { server, .. } => client.disconnected(sim, server),
            Event::Wake { wake, .. } => client.wake(sim, wake),
            Event::Act { .. } => client.act(sim),
            Event::Deadline { call, .. } => client.late(sim, call),
            Event::Unopened { stream, .. } => client.unopened(sim, stream),
            Event::TryAgain { borrow, .. } => client.try_again(sim, borrow),
            _ => {}
        }
    }

    fn elsewhere(&mut self, event: Event) {
        let sim = &mut self.sim;
        match event {
            Event::Request { asker, incarnation, within, request } => {
                self.database.arrive(sim, asker, incarnation, within, *request);
            }
            Event::EndTransaction { number } => self.database.end_transaction(sim, number),
            Event::LockTimeout { number } => self.database.lock_timeout(sim, number),
            Event::Back => self.database.is_up = true,
            Event::ResumeServer { server, life } => {
                let server = &mut self.servers[server];
                if server.life == life && server.is_paused {
                    server.is_paused = false;
                    for event in std::mem::take(&mut server.inbox) {
                        sim.after(0, event);
                    }
                }
            }
            Event::StartServer { server } => {
                let server = &mut self.servers[server];
                if !server.is_up {
                    server.start(sim);
                }
            }
            Event::ResumeClient { client, life } => {
                let client = &mut self.clients[client];
                if client.life == life && client.is_paused {
                    client.is_paused = false;
                    for event in std::mem::take(&mut client.inbox) {
                        sim.after(0, event);
                    }
                }
            }
            Event::Fault => self.fault(),
            Event::Weather => self.change_weather(),
            _ => {}
        }
    }

    fn change_weather(&mut self) {
        let sim = &mut self.sim;
        let (weather, after) = match self.weather {
            Weather::Faults => {
                sim.faults = false;
                (sim.cut_off, sim.alone) = ([0; SERVERS], [0; SERVERS]);
                (Weather::Calm, RECOVERY)
            }
            Weather::Calm => {
                let commits = sim.truth.commits;
                let within = sim.settings.leader_ttl + Duration::from_secs(2);
                (Weather::Recovered { commits }, crate::clock::nanos(within))
            }
            Weather::Recovered { commits } => {
                if sim.truth.commits == commits {
                    sim.truth.violate(|| "nobody commits though all is well".to_owned());
                }
                sim.faults = true;
                (Weather::Faults, sim.random.random_range(60..240) * SECOND)
            }
        };
        self.weather = weather;
        self.sim.after(after, Event::Weather);
    }

    /// Something goes wrong.
    fn fault(&mut self) {
        let sim = &mut self.sim;
        let after = sim.up_to(8 * SECOND);
        sim.after(after, Event::Fault);
        if !sim.faults {
            return;
        }
        // Mostly the leader.
        let index = (0..SERVERS).find(|index| self.servers[*index].serves(sim));
        let any = sim.random.random_range(0..SERVERS);
        let index = index.filter(|_| sim.chance(0.6)).unwrap_or(any);
        let server = &mut self.servers[index];
        let long = sim.up_to(12 * SECOND);
        let chance = sim.random.random_range(0..100);
        match chance {
            0..18 if server.is_up => {
                server.is_paused = true;
                sim.after(long, Event::ResumeServer { server: index, life: server.life });
            }
            18..30 if server.is_up => {
                server.kill(sim);
                sim.after(long / 3, Event::StartServer { server: index });
            }
            30..40 if server.is_up && !server.is_paused => server.drain(sim, false),
            40..46 if server.is_up && !server.is_paused => server.drain(sim, true),
            46..52 if server.is_up && !server.is_paused => server.stick(sim, long),
            52..60 => self.stop_database(long, None),
            60..68 => {
                let commits = if sim.chance(0.5) { 4 } else { 40 };
                let commits = sim.random.random_range(0..=commits);
                self.stop_database(500 * MILLISECOND + long / 3, Some(commits));
            }
            68..78 => sim.cut_off[index] = sim.time + long,
            78..85 => sim.alone[index] = sim.time + long / 2,
            85..93 => {
                let index = sim.random.random_range(0..CLIENTS);
                let client = &mut self.clients[index];
                client.is_paused = true;
                sim.after(long * 2, Event::ResumeClient { client: index, life: client.life });
            }
            93.. => {
                let index = sim.random.random_range(0..CLIENTS);
                self.clients[index].restart(sim);
            }
            _ => {}
        }
    }

    fn stop_database(&mut self, time: Time, lost: Option<usize>) {
        if self.database.is_up {
            self.database.stop(&mut self.sim);
            if let Some(commits) = lost {
                self.database.lose(&mut self.sim, commits);
            }
            self.sim.after(time, Event::Back);
        }
    }
}
