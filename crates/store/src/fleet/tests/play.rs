//! A fleet played in virtual time: servers whose clocks run at different rates, a database that loses
//! requests and answers, restarts and delays, servers that are stopped and killed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::super::*;
use super::{Database, TTL};

const SERVERS: usize = 3;

/// How often a server acts.
const STEP: Duration = Duration::from_millis(20);

/// What happens at some time.
#[derive(Debug)]
enum Happening {
    /// A server polls, and its leader commits what it can.
    Step { server: usize },
    /// A request reaches the database.
    Request { server: usize, life: u64, number: u64, request: Request },
    /// An answer reaches the server.
    Answer { server: usize, life: u64, number: u64, answer: Answer },
    /// A commit reaches the database.
    Commit { server: usize, life: u64, number: u64, seen: JournalRow, new: JournalRow },
    /// The raised attempt of a commit reaches the database.
    Resolve { server: usize, life: u64, number: u64, leader: LeaderId },
    /// The answer to one of the last two reaches the server; `None` is a failure.
    Committed { server: usize, life: u64, number: u64, row: Option<(bool, JournalRow)> },
    /// Something goes wrong or gets well again.
    Fault,
}

/// The commits of a leader.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Commits {
    Idle,
    InFlight,
    Unknown,
}

struct Server {
    member: MemberId,
    leadership: Leadership,
    /// Its clock per true time.
    rate: f64,
    offset: Duration,
    /// Raised when the process is killed: answers of an earlier life reach nobody.
    life: u64,
    number: u64,
    commit_number: u64,
    stopped_until: Duration,
    fence: Option<Fence>,
    commits: Commits,
}

impl Server {
    fn now(&self, time: Duration) -> Duration {
        self.offset + time.mul_f64(self.rate)
    }

    fn is_valid(&self, time: Duration) -> bool {
        self.leadership.valid_until(self.now(time)).is_some()
    }
}

struct Play {
    random: ChaCha8Rng,
    time: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    count: u64,
    servers: Vec<Server>,
    database: Database,
    database_down_until: Duration,
    faults: bool,
    /// Which leader committed in an epoch.
    epochs: BTreeMap<u64, LeaderId>,
    /// How many batches the database has.
    sequence: u64,
    /// The highest sequence that was acknowledged to callers.
    acknowledged: u64,
}

impl Play {
    fn new(seed: u64) -> Self {
        let mut play = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            time: Duration::from_secs(1_000),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            count: 0,
            servers: Vec::new(),
            database: Database::new(),
            database_down_until: Duration::ZERO,
            faults: true,
            epochs: BTreeMap::new(),
            sequence: 0,
            acknowledged: 0,
        };
        for server in 0..SERVERS {
            let (rate, offset) =
                (0.98 + 0.04 * play.chance(), Duration::from_secs(server as u64 * 500));
            let now = offset + play.time.mul_f64(rate);
            let member = MemberId(play.random.next_u64().into());
            let leadership = play.leadership(member, now);
            play.servers.push(Server {
                member,
                leadership,
                rate,
                offset,
                life: 0,
                number: 0,
                commit_number: 0,
                stopped_until: Duration::ZERO,
                fence: None,
                commits: Commits::Idle,
            });
            play.happens(Duration::ZERO, Happening::Step { server });
        }
        play.happens(Duration::from_secs(1), Happening::Fault);
        play
    }

    fn leadership(&mut self, member: MemberId, now: Duration) -> Leadership {
        let mut seed = [0; 32];
        self.random.fill_bytes(&mut seed);
        Leadership::new(Config { leader_ttl: TTL, address: "".into(), member, seed }, now)
    }

    /// A number from 0 to 1.
    fn chance(&mut self) -> f64 {
        f64::from(self.random.next_u32()) / f64::from(u32::MAX)
    }

    fn happens(&mut self, after: Duration, happening: Happening) {
        self.count += 1;
        self.queue.push(Reverse((self.time + after, self.count)));
        self.happenings.insert(self.count, happening);
    }

    /// How long a message takes: mostly milliseconds, now and then seconds; `None` loses it.
    fn delay(&mut self) -> Option<Duration> {
        let chance = self.chance();
        let slow = if self.faults && chance < 0.03 { 12.0 } else { 0.01 };
        (!self.faults || chance > 0.01).then(|| Duration::from_secs_f64(slow * self.chance()))
    }

    fn play_until(&mut self, until: Duration) {
        while let Some(&Reverse((time, number))) = self.queue.peek() {
            if time > until {
                break;
            }
            self.queue.pop();
            self.time = time;
            let happening = self.happenings.remove(&number).unwrap();
            self.carry_out(happening);
            let valid = self.servers.iter().filter(|server| server.is_valid(time)).count();
            assert!(valid <= 1, "{valid} leaders at {time:?}");
        }
        self.time = until;
    }

    fn carry_out(&mut self, happening: Happening) {
        match happening {
            Happening::Step { server } => self.step(server),
            Happening::Request { server, life, number, request } => {
                if self.time < self.database_down_until {
                    return;
                }
                let answer = self.database.answer(&request);
                if let Some(delay) = self.delay() {
                    self.happens(delay, Happening::Answer { server, life, number, answer });
                }
            }
            Happening::Answer { server, life, number, answer } => {
                if self.time < self.servers[server].stopped_until {
                    // It waits in the socket.
                    self.happens(STEP, Happening::Answer { server, life, number, answer });
                } else {
                    self.answered(server, life, number, answer);
                }
            }
            Happening::Commit { server, life, number, seen, new } => {
                if self.time < self.database_down_until {
                    return;
                }
                let is_done = self.database.rows.journal == seen;
                if is_done {
                    self.database.rows.journal = new;
                    let epoch = self.database.rows.leadership.epoch;
                    let leader = *self.epochs.entry(epoch).or_insert(new.leader);
                    assert_eq!(leader, new.leader, "two leaders committed in epoch {epoch}");
                    assert_eq!(
                        leader, self.database.rows.leadership.leader,
                        "a deposed one commits"
                    );
                    self.sequence += 1;
                    assert_eq!(new.sequence, self.sequence, "a batch was written over another");
                }
                let row = Some((is_done, self.database.rows.journal));
                if let Some(delay) = self.delay() {
                    self.happens(delay, Happening::Committed { server, life, number, row });
                }
            }
            Happening::Resolve { server, life, number, leader } => {
                if self.time < self.database_down_until {
                    return;
                }
                if self.database.rows.journal.leader == leader {
                    self.database.rows.journal.attempt += 1;
                }
                let row = Some((false, self.database.rows.journal));
                if let Some(delay) = self.delay() {
                    self.happens(delay, Happening::Committed { server, life, number, row });
                }
            }
            Happening::Committed { server, life, number, row } => {
                if self.time < self.servers[server].stopped_until {
                    self.happens(STEP, Happening::Committed { server, life, number, row });
                } else {
                    self.committed(server, life, number, row);
                }
            }
            Happening::Fault => self.fault(),
        }
    }

    fn step(&mut self, index: usize) {
        let time = self.time;
        self.happens(STEP, Happening::Step { server: index });
        let server = &mut self.servers[index];
        if time < server.stopped_until {
            return;
        }
        let now = server.now(time);
        server.leadership.ledger_answered(now);
        let life = server.life;
        if let Some(request) = server.leadership.poll(now) {
            server.number += 1;
            let number = server.number;
            if let Some(delay) = self.delay() {
                self.happens(delay, Happening::Request { server: index, life, number, request });
            }
            // The request has a deadline.
            let answer = Answer::Failed;
            self.happens(TTL / 4, Happening::Answer { server: index, life, number, answer });
        }
        self.commit(index);
    }

    fn answered(&mut self, index: usize, life: u64, number: u64, answer: Answer) {
        let time = self.time;
        let server = &mut self.servers[index];
        if server.life != life || server.number != number {
            return;
        }
        server.number += 1;
        let now = server.now(time);
        match server.leadership.handle_answer(answer, now) {
            Some(Event::Elected(row)) => {
                assert!(row.sequence >= self.acknowledged, "acknowledged batches are missing");
                (server.fence, server.commits) = (Some(Fence::new(row)), Commits::Idle);
                // Answers to commits of an earlier term mean nothing.
                server.commit_number += 1;
            }
            Some(Event::Deposed) => server.fence = None,
            Some(Event::ValidUntil(_)) | None => {}
            Some(event) => panic!("{event:?}: this database loses nothing"),
        }
    }

    /// Sends the next batch of a leader that may act, or asks what became of the last one.
    fn commit(&mut self, index: usize) {
        let is_valid = self.servers[index].is_valid(self.time);
        let server = &mut self.servers[index];
        let (Some(fence), life) = (server.fence, server.life) else { return };
        let number = server.commit_number + 1;
        let happening = match server.commits {
            Commits::Idle if is_valid => {
                let (seen, new) = (fence.seen(), fence.next());
                Happening::Commit { server: index, life, number, seen, new }
            }
            Commits::Unknown => {
                let leader = fence.seen().leader;
                Happening::Resolve { server: index, life, number, leader }
            }
            _ => return,
        };
        (server.commits, server.commit_number) = (Commits::InFlight, number);
        if let Some(delay) = self.delay() {
            self.happens(delay, happening);
        }
        let row = None;
        self.happens(TTL / 4, Happening::Committed { server: index, life, number, row });
    }

    fn committed(&mut self, index: usize, life: u64, number: u64, row: Option<(bool, JournalRow)>) {
        let server = &mut self.servers[index];
        let Some(fence) = &mut server.fence else { return };
        if server.life != life || server.commit_number != number {
            return;
        }
        server.commit_number += 1;
        server.commits = Commits::Unknown;
        let is_committed = match row {
            None => return,
            Some((true, _)) => {
                fence.committed();
                true
            }
            Some((false, row)) => match fence.resolve(row) {
                Resolved::Committed => true,
                Resolved::NotCommitted => {
                    server.commits = Commits::Idle;
                    false
                }
                Resolved::OtherLeader => false,
                Resolved::Lost => panic!("this database loses nothing"),
            },
        };
        if is_committed {
            server.commits = Commits::Idle;
            server.leadership.committed(fence.sequence());
            self.acknowledged = self.acknowledged.max(fence.sequence());
            assert!(self.database.rows.journal.sequence >= self.acknowledged);
        }
    }

    fn fault(&mut self) {
        let after = Duration::from_secs_f64(10.0 * self.chance());
        self.happens(after, Happening::Fault);
        if !self.faults {
            return;
        }
        let index = (self.chance() * 2.99) as usize;
        let long = Duration::from_secs_f64(20.0 * self.chance());
        let (chance, time) = (self.chance(), self.time);
        if chance < 0.4 {
            self.servers[index].stopped_until = time + long;
        } else if chance < 0.6 {
            self.database_down_until = time + long;
        } else if chance < 0.8 {
            let now = self.servers[index].now(time);
            let member = MemberId(self.random.next_u64().into());
            let leadership = self.leadership(member, now);
            let server = &mut self.servers[index];
            server.member = member;
            (server.leadership, server.fence) = (leadership, None);
            (server.life, server.stopped_until) = (server.life + 1, time);
        } else {
            // Now and then to a successor that may be gone.
            let successor = (self.chance() < 0.7).then(|| {
                let other = (self.chance() * 2.99) as usize;
                self.servers[other].member
            });
            let server = &mut self.servers[index];
            server.leadership.release_to(successor, server.now(time));
            server.fence = None;
        }
    }
}

#[test]
fn at_most_one_server_acts_and_no_acknowledged_batch_is_lost() {
    for seed in 0..20 {
        let mut play = Play::new(seed);
        for _ in 0..5 {
            play.faults = true;
            play.play_until(play.time + Duration::from_secs(60));
            // When everything is well again, a leader commits within the promised time.
            play.faults = false;
            play.database_down_until = play.time;
            play.servers.iter_mut().for_each(|server| server.stopped_until = play.time);
            play.play_until(play.time + Duration::from_secs(12));
            let before = play.acknowledged;
            play.play_until(play.time + TTL + Duration::from_secs(2));
            assert!(play.acknowledged > before, "seed {seed}: nobody commits at {:?}", play.time);
        }
    }
}
