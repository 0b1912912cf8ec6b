//! The ledger alone: no server, no store, no journal. Beside it, in the same process, a bare hash map
//! and a counter do the same pairs.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use lease::{BorrowId, Config, KeptAlive, LeaseId, Ledger, Released, Request, Terms, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::{ORGANIZATIONS, SESSIONS, Traces, api_key, in_turn, organization};
use crate::process::thread_cpu;
use crate::report::median;

/// Different traces of the speed run; each is used again only after all the others.
const TRACES: usize = 1_100_000;

/// Rounds in which the ledger and the reference take turns, so that a slow moment of the machine
/// hits both.
const ROUNDS: u32 = 10;

/// Store time between two operations.
const STEP: Duration = Duration::from_nanos(200);

/// Operations per second of CPU time with so many sessions live.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Speed {
    /// Sessions that are live during the measurement.
    pub live: usize,
    /// Borrows, each with the return of the oldest session.
    pub pairs: f64,
    /// The same pairs of the reference.
    pub reference: f64,
    /// The median ratio of the ledger's pairs to those of the reference in the same round.
    pub of_reference: f64,
    /// Keep-alives of the live sessions; `None` if there are none.
    pub keep_alives: Option<f64>,
}

/// What a lease costs in memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bytes {
    /// Leases live.
    pub leases: usize,
    /// Bytes allocated for each, timer and counts included.
    pub each: f64,
    /// The same, if each borrow had a borrow id. The ledger keeps the id as long as a retry may
    /// arrive.
    pub with_borrow_id: f64,
}

/// A ledger in which every session has a trace of its own and nothing is collected for a journal.
struct Bench {
    ledger: Ledger,
    organizations: Vec<(String, String)>,
    now: Timestamp,
    turn: u64,
}

impl Bench {
    fn new(organizations: Vec<(String, String)>) -> Self {
        let ledger = Ledger::new(Config { seed: [7; 32], ..Config::default() });
        Self { ledger, organizations, now: Timestamp::ZERO, turn: 0 }
    }

    fn borrow(&mut self, trace: &str, borrow_id: Option<BorrowId>) -> anyhow::Result<LeaseId> {
        self.turn += 1;
        self.now = self.now + STEP;
        let (organization, api_key) = &self.organizations[in_turn(self.turn) as usize];
        let request = Request {
            borrow_id,
            ..Request::session(SESSIONS, organization).trace(trace).api_key(api_key)
        };
        let grant = self.ledger.borrow(&request, &Terms::default(), self.now);
        Ok(grant.context("a borrow was refused")?.id)
    }

    fn release(&mut self, id: LeaseId) -> anyhow::Result<()> {
        self.now = self.now + STEP;
        let released = self.ledger.release(id, None, Duration::ZERO, self.now);
        ensure!(released == Released::Returned, "a return was answered {released:?}");
        Ok(())
    }
}

/// The reference: which trace runs for which organization, and how many run for each. It looks at no
/// limit, keeps no time and makes no keys; it owns no text.
struct Bare<'a> {
    sessions: HashMap<&'a str, &'a str, FixedState>,
    counts: HashMap<&'a str, u64, FixedState>,
    organizations: &'a [(String, String)],
    turn: u64,
}

impl<'a> Bare<'a> {
    fn new(organizations: &'a [(String, String)]) -> Self {
        let hasher = FixedState::with_seed(7);
        let (sessions, counts) =
            (HashMap::with_hasher(hasher.clone()), HashMap::with_hasher(hasher));
        Self { sessions, counts, organizations, turn: 0 }
    }

    fn borrow(&mut self, trace: &'a str) {
        self.turn += 1;
        let (organization, _) = &self.organizations[in_turn(self.turn) as usize];
        self.sessions.insert(trace, organization);
        *self.counts.entry(organization).or_insert(0) += 1;
    }

    fn release(&mut self, trace: &str) -> anyhow::Result<()> {
        let organization = self.sessions.remove(trace).context("a trace is not there")?;
        let count = self.counts.get_mut(organization).context("an organization is not there")?;
        *count -= 1;
        if *count == 0 {
            self.counts.remove(organization);
        }
        Ok(())
    }
}

/// Every organization with its API key.
fn organizations() -> Vec<(String, String)> {
    (0..ORGANIZATIONS).map(|n| (organization(n), api_key(n))).collect()
}

/// `number` trace ids, one after another in memory, like the buffer of a request that was just read.
fn trace_ids(seed: u64, number: usize) -> String {
    let mut supply = Traces::new(seed);
    (0..number).map(|_| supply.next_id()).collect()
}

/// The ids that [`trace_ids`] wrote.
fn each(ids: &str) -> impl Iterator<Item = &str> + Clone {
    (0..ids.len() / 32).map(|n| &ids[n * 32..][..32])
}

/// Measures a ledger in which `live` sessions stay beside the reference with as many: pairs of both
/// for `span` each, and keep-alives of the ledger for `span`.
///
/// # Errors
///
/// The ledger gave a wrong answer.
pub fn speed(live: usize, span: Duration) -> anyhow::Result<Speed> {
    let (first, traces, organizations) =
        (trace_ids(2, live), trace_ids(1, TRACES), organizations());
    let mut bench = Bench::new(organizations.clone());
    let mut held = VecDeque::with_capacity(live + 1);
    let mut next_trace = each(&traces).cycle();
    let mut pair = |bench: &mut Bench, held: &mut VecDeque<LeaseId>| -> anyhow::Result<()> {
        held.push_back(bench.borrow(next_trace.next().context("a cycle ended")?, None)?);
        let oldest = held.pop_front().context("just filled")?;
        bench.release(oldest)
    };
    for trace in each(&first) {
        held.push_back(bench.borrow(trace, None)?);
    }
    let mut bare = Bare::new(&organizations);
    let mut running = VecDeque::with_capacity(live + 1);
    for trace in each(&first) {
        bare.borrow(trace);
        running.push_back(trace);
    }
    let mut next_trace = each(&traces).cycle();
    let mut reference = || -> anyhow::Result<()> {
        let trace = next_trace.next().context("a cycle ended")?;
        bare.borrow(trace);
        running.push_back(trace);
        bare.release(running.pop_front().context("just filled")?)
    };
    // Warm up until every table has its final size.
    for _ in 0..100_000 {
        pair(&mut bench, &mut held)?;
        reference()?;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let ours = per_second(span / ROUNDS, || pair(&mut bench, &mut held))?;
        rounds.push((ours, per_second(span / ROUNDS, &mut reference)?));
    }
    let middle = |value: fn(&(f64, f64)) -> f64| median(rounds.iter().map(value).collect());

    let mut turn = 0;
    let keep_alives = (live > 0).then(|| {
        per_second(span, || {
            turn = (turn + 7919) % held.len();
            bench.now = bench.now + STEP;
            let kept = bench.ledger.keep_alive(held[turn], None, bench.now);
            ensure!(matches!(kept, KeptAlive::Extended { .. }), "answered {kept:?}");
            Ok(())
        })
    });
    ensure!(bench.ledger.len() == live, "{} leases are live, not {live}", bench.ledger.len());
    Ok(Speed {
        live,
        pairs: middle(|(ours, _)| *ours),
        reference: middle(|(_, reference)| *reference),
        of_reference: middle(|(ours, reference)| ours / reference),
        keep_alives: keep_alives.transpose()?,
    })
}

/// Repeats `operation` for `span` of CPU time, and returns the operations per second of CPU time.
/// Other load on the machine hardly changes this figure.
fn per_second(
    span: Duration,
    mut operation: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    const BATCH: u64 = 10_000;
    let (mut done, started) = (0, thread_cpu());
    loop {
        for _ in 0..BATCH {
            operation()?;
        }
        done += BATCH;
        let took = thread_cpu().saturating_sub(started);
        if took >= span {
            return Ok(done as f64 / took.as_secs_f64());
        }
    }
}

/// Measures the memory of `leases` sessions; `allocated` returns how many bytes are allocated
/// now.
///
/// # Errors
///
/// The ledger gave a wrong answer.
pub fn memory(leases: usize, allocated: impl Fn() -> usize) -> anyhow::Result<Bytes> {
    let each = |with_borrow_id: bool| -> anyhow::Result<f64> {
        let mut traces = Traces::new(1);
        let organizations = organizations();
        let before = allocated();
        let mut bench = Bench::new(organizations);
        for _ in 0..leases {
            let borrow_id = with_borrow_id.then(|| BorrowId(traces.next_borrow_id()));
            bench.borrow(&traces.next_id(), borrow_id)?;
        }
        ensure!(bench.ledger.len() == leases, "some leases expired while others were borrowed");
        Ok((allocated() - before) as f64 / leases as f64)
    };
    Ok(Bytes { leases, each: each(false)?, with_borrow_id: each(true)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_of_each_part_answers() {
        let speed = speed(100, Duration::from_millis(10)).expect("the ledger answers");
        assert!(speed.pairs > 0.0 && speed.reference > 0.0 && speed.keep_alives.is_some());
        let bytes = memory(100, || 0).expect("the ledger answers");
        assert_eq!(bytes.each, 0.0);
    }
}
