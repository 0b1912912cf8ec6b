//! The faults by name, and how a round of each is played.

use std::thread::sleep;
use std::time::{Duration, Instant};

use benches::fleet::SERVERS;
use benches::fleet::network::Cable;
use benches::process::now;
use rustix::process::Signal;

use crate::history::{Strictness, Time};
use crate::report::Report;
use crate::stage::{FAULT, Stage};
use crate::transactions::Transactions;

/// A fault that is played in rounds.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) strictness: Strictness,
    /// The most rounds that are played.
    pub(crate) most: u32,
    /// Whether many more sessions are held meanwhile.
    pub(crate) attached: bool,
    /// Whether the network is cut, which needs root.
    pub(crate) cuts: bool,
    pub(crate) round: fn(&mut Stage, &mut Report) -> anyhow::Result<()>,
}

/// All faults.
pub(crate) const FAULTS: &[Fault] = &[
    Fault {
        name: "kill",
        about: "the leader, a standby and the database are killed by SIGKILL, in turn",
        strictness: Strictness::Unplanned,
        most: u32::MAX,
        attached: false,
        cuts: false,
        round: kill,
    },
    Fault {
        name: "freeze",
        about: "the leader is stopped by SIGSTOP for 3 × leader-ttl, inside a transaction",
        strictness: Strictness::Unplanned,
        most: u32::MAX,
        attached: false,
        cuts: false,
        round: freeze,
    },
    Fault {
        name: "roll",
        about: "each server is restarted in turn by SIGTERM; no call may fail (ten rounds at most)",
        strictness: Strictness::Planned,
        most: 10,
        attached: true,
        cuts: false,
        round: roll,
    },
    Fault {
        name: "step-down",
        about: "the leader hands over when it is asked to; no call may fail",
        strictness: Strictness::Planned,
        most: u32::MAX,
        attached: false,
        cuts: false,
        round: step_down,
    },
    Fault {
        name: "outage",
        about: "the database is away for longer than leader-ttl",
        strictness: Strictness::Unplanned,
        most: u32::MAX,
        attached: false,
        cuts: false,
        round: outage,
    },
    Fault {
        name: "cut",
        about: "the leader is cut from the database, from callers and servers, and from all (as root)",
        strictness: Strictness::Unplanned,
        most: u32::MAX,
        attached: false,
        cuts: true,
        round: cut,
    },
];

/// How long a fleet is left alone after a fault, so that keep-alives that failed have succeeded. Each fault is
/// one for itself: clients cannot believe through several without a pause.
const RECOVERY: Duration = Duration::from_secs(2);

/// Leases that were returned so long before a fault are checked too, in microseconds.
const BEFORE: Time = 2_000_000;

/// How often the leader is stopped until one of its transactions is open.
const STOPS: u32 = 2_000;

/// How long the leader runs between two such stops.
const BETWEEN_STOPS: Duration = Duration::from_millis(7);

/// How long the next grant may take after an unplanned change of the leader: leader-ttl and this.
const TAKEOVER: Duration = Duration::from_secs(2);

/// Waits for the next grant after `start`, and notes how long it took. Where there is a bound, a longer
/// time is a violation.
fn expect_grant(
    stage: &Stage,
    report: &mut Report,
    what: &'static str,
    start: Time,
    bound: Option<Duration>,
) -> anyhow::Result<()> {
    let took = stage.wait_for_grant(start)?;
    report.grants.entry(what).or_default().push(took);
    if let Some(bound) = bound.filter(|bound| took > *bound) {
        let what = format!(
            "{what}: the next grant came after {} ms, and {} ms are allowed",
            took.as_millis(),
            bound.as_millis()
        );
        stage.history.lock().violate(&what, &[]);
    }
    Ok(())
}

fn takeover(stage: &Stage) -> Option<Duration> {
    Some(stage.scale.leader_ttl + TAKEOVER)
}

/// Waits until the fleet is complete, and counts changes of the leader since `term`.
fn settle(stage: &Stage, report: &mut Report, term: u64) -> anyhow::Result<()> {
    let (_, now) = stage.fleet.settle()?;
    report.failovers += now - term;
    Ok(())
}

/// Waits until so much time has passed since `start`.
fn sleep_until(start: Instant, passed: Duration) {
    sleep(passed.saturating_sub(start.elapsed()));
}

fn kill(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let (leader, term) = stage.fleet.settle()?;
    kill_server(stage, report, "leader", leader, takeover(stage))?;
    let (leader, _) = stage.fleet.settle()?;
    kill_server(stage, report, "standby", (leader + 1) % SERVERS, None)?;
    let start = now();
    stage.cluster.kill_processes();
    stage.cluster.resume();
    expect_grant(stage, report, "database", now(), takeover(stage))?;
    settle(stage, report, term)?;
    stage.check(start - BEFORE)
}

fn kill_server(
    stage: &mut Stage,
    report: &mut Report,
    what: &'static str,
    server: usize,
    bound: Option<Duration>,
) -> anyhow::Result<()> {
    let start = now();
    stage.fleet.kill_server(server);
    expect_grant(stage, report, what, start, bound)?;
    stage.check(start - BEFORE)?;
    stage.fleet.start_server(server)
}

fn freeze(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let (leader, term) = stage.fleet.settle()?;
    let (start, began) = stop_in_transaction(stage, report, leader)?;
    let played = expect_grant(stage, report, "frozen", start, takeover(stage));
    sleep_until(began, FAULT * stage.scale.leader_ttl);
    stage.fleet.signal(leader, Signal::CONT)?;
    played?;
    settle(stage, report, term)?;
    sleep(RECOVERY);
    stage.check(start - BEFORE)
}

/// Stops the leader while one of its transactions has locked the journal row. Returns when.
fn stop_in_transaction(
    stage: &Stage,
    report: &mut Report,
    leader: usize,
) -> anyhow::Result<(Time, Instant)> {
    let transactions = Transactions::connect(stage.cluster.port, &stage.runtime)?;
    for _ in 0..STOPS {
        let (start, began) = (now(), Instant::now());
        stage.fleet.signal(leader, Signal::STOP)?;
        if transactions.locked()?.all > 0 {
            *report.counts.entry("stopped in a transaction").or_default() += 1;
            // By now the database has done all that it was told to.
            sleep(stage.scale.leader_ttl / 10);
            if transactions.locked()?.waiting > 0 {
                *report.counts.entry("which went on to hold its lock").or_default() += 1;
            }
            return Ok((start, began));
        }
        stage.fleet.signal(leader, Signal::CONT)?;
        sleep(BETWEEN_STOPS);
    }
    anyhow::bail!("the leader was not caught in a transaction in {STOPS} stops")
}

fn roll(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    for server in 0..SERVERS {
        let (leader, term) = stage.fleet.settle()?;
        let start = now();
        stage.fleet.stop_server(server)?;
        let what = if server == leader { "leader" } else { "standby" };
        expect_grant(stage, report, what, start, None)?;
        stage.fleet.start_server(server)?;
        settle(stage, report, term)?;
        stage.check(start - BEFORE)?;
    }
    Ok(())
}

fn step_down(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let (leader, term) = stage.fleet.settle()?;
    let start = now();
    stage.fleet.step_down(leader)?;
    expect_grant(stage, report, "leader", start, None)?;
    settle(stage, report, term)?;
    stage.check(start - BEFORE)
}

fn outage(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let (_, term) = stage.fleet.settle()?;
    let start = now();
    stage.cluster.kill();
    sleep(stage.scale.leader_ttl + Duration::from_secs(1));
    stage.cluster.resume();
    expect_grant(stage, report, "database", now(), takeover(stage))?;
    settle(stage, report, term)?;
    stage.check(start - BEFORE)
}

fn cut(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    use Cable::{Callers, Database};

    cut_cables(stage, report, "database", &[Database])?;
    cut_cables(stage, report, "callers", &[Callers])?;
    cut_cables(stage, report, "all", &[Database, Callers])
}

/// Cuts cables of the leader for 3 × leader-ttl.
fn cut_cables(
    stage: &mut Stage,
    report: &mut Report,
    what: &'static str,
    cables: &[Cable],
) -> anyhow::Result<()> {
    let (leader, term) = stage.fleet.settle()?;
    let (start, began) = (now(), Instant::now());
    cables.iter().try_for_each(|cable| stage.fleet.cut(leader, *cable, true))?;
    // A leader that reaches the database leads on, and nobody reaches it.
    let is_replaced = cables.contains(&Cable::Database);
    let played = match is_replaced {
        true => expect_grant(stage, report, what, start, takeover(stage)),
        false => Ok(()),
    };
    sleep_until(began, FAULT * stage.scale.leader_ttl);
    let mended = now();
    cables.iter().try_for_each(|cable| stage.fleet.cut(leader, *cable, false))?;
    played?;
    if !is_replaced {
        expect_grant(stage, report, what, mended, takeover(stage))?;
    }
    settle(stage, report, term)?;
    sleep(RECOVERY);
    stage.check(start - BEFORE)
}
