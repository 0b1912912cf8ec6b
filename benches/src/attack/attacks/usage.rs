//! Attacks by reports of usage, and on the tables of report keys and borrow ids, which keep a retry
//! from counting twice.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wire::framing::frame as message;
use wire::metering::Event;
use wire::payment::ReportRequest;
use wire::worker::ReturnWorkerRequest;

use crate::calls::{
    ATTACKER_KEY, BUDGET, BYSTANDER_KEY, LASTING, METERED, METRIC, borrow_request, usage_event,
};
use crate::connection::Reads;
use crate::load::{BORROW, REPORT, RETURN, keyed, spread};
use crate::stage::Stage;

/// Callers that report at once.
const CALLERS: usize = 16;

/// Different pairs of organization and metric in one report.
const METRICS: usize = 50_000;

/// Metrics of one event.
const METRICS_OF_EVENT: usize = 50;

/// Events of one report of the attack on the counters.
const EVENTS: u64 = 10_000;

/// How much the well-behaved client reports: half of the budget.
const USED: f64 = BUDGET / 2.0;

/// An event that says that `organization` used `value` of [`METRIC`].
fn used(organization: &str, value: f64) -> Event {
    usage_event(organization, [(METRIC.to_owned(), value)])
}

/// Reports that take long to count.
pub(super) async fn reports(stage: &mut Stage) -> anyhow::Result<()> {
    let events: Vec<Event> = (0..METRICS / METRICS_OF_EVENT)
        .map(|number| {
            let metrics = (0..METRICS_OF_EVENT).map(|metric| (format!("m{metric}"), 1.0));
            usage_event(&format!("reported-{number}"), metrics)
        })
        .collect();
    stage.begin()?;
    let over = Instant::now() + stage.span;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (mut caller, events) = (stage.caller(ATTACKER_KEY), events.clone());
        callers.spawn(async move {
            let (mut counted, mut refused) = (0_u64, None);
            while Instant::now() < over {
                match caller.report(events.clone(), None).await {
                    Ok(_) => counted += 1,
                    Err(error) => refused = Some(error),
                }
            }
            (counted, refused)
        });
    }
    let (mut counted, mut refused) = (0, None);
    while let Some(caller) = callers.join_next().await {
        let (ours, error) = caller?;
        counted += ours;
        refused = error.or(refused);
    }
    stage.note(format!("{counted} reports of {METRICS} metrics counted"));
    if let Some(error) = refused {
        stage.note(format!("the last that was refused: {error:#}"));
    }
    Ok(())
}

/// Sends so many report keys that the server might forget one of another indexer.
pub(super) async fn report_keys(stage: &mut Stage) -> anyhow::Result<()> {
    let reports = stage.pick(60_000, 1_000_001);
    let mut bystander = stage.caller(BYSTANDER_KEY);
    bystander.report(vec![used(METERED, USED)], Some("the-report")).await?;
    stage.begin()?;
    let (link, body) = (stage.link(), message(&ReportRequest::default()));
    let done = spread(&link, Reads::Everything, 8, reports, 256, move |number| {
        (keyed(REPORT).with("x-idempotency-key", &format!("attack-{number}")), body.clone())
    });
    let done = done.await?;
    stage.end().await?;
    stage.note(format!("{} of {reports} empty reports were taken", done.answered));
    let again = bystander.report(vec![used(METERED, USED)], Some("the-report")).await;
    again.context("the repeated report")?;
    // The answer to a report of 0 says whether the budget is spent.
    let spent = bystander.report(vec![used(METERED, 0.0)], None).await?;
    ensure!(!spent, "a report of {USED} that came twice under one key counted twice");
    Ok(())
}

/// Sends so many borrow ids that the server might forget one of another indexer.
pub(super) async fn borrow_ids(stage: &mut Stage) -> anyhow::Result<()> {
    let borrows = stage.pick(20_000, 100_000);
    let mut bystander = stage.caller(BYSTANDER_KEY);
    let borrow = || borrow_request(LASTING, "retried", "");
    let first = bystander.borrow_with(borrow(), Some(1)).await?;
    // The lease of the first borrow stays.
    stage.leases_after = Some(1);
    stage.begin()?;
    let link = stage.link();
    // Each borrow is returned before many others begin, so that few leases count at a time.
    let done = spread(&link, Reads::Everything, 4, borrows, 64, |number| {
        let id = format!("{:032x}", u128::from(number / 2) + 1_000);
        match number % 2 {
            0 => {
                let block = keyed(BORROW).with("x-borrow-id", &id);
                (block, message(&borrow_request(LASTING, "crowd", "")))
            }
            _ => {
                let block = keyed(RETURN).with("x-borrow-id", &id);
                (block, message(&ReturnWorkerRequest::default()))
            }
        }
    });
    let done = done.await?;
    stage.end().await?;
    stage.note(format!("{} of {borrows} borrows and returns were answered", done.answered));
    let again = bystander.borrow_with(borrow(), Some(1)).await.context("the retried borrow")?;
    ensure!(again == first, "a borrow that was retried under its id took a second slot");
    Ok(())
}

/// Creates so many counters that there might be no room for the counter of a budget.
pub(super) async fn counters(stage: &mut Stage, value: f64) -> anyhow::Result<()> {
    let organizations = stage.pick(200_000, 1_000_000);
    stage.begin()?;
    let mut callers = JoinSet::new();
    for part in 0..4 {
        let mut caller = stage.caller(ATTACKER_KEY);
        callers.spawn(async move {
            let mut refused = Vec::new();
            for report in (part..organizations / EVENTS).step_by(4) {
                let names = report * EVENTS..(report + 1) * EVENTS;
                let event = |number| used(&format!("nobody-{number}"), value);
                if let Err(error) = caller.report(names.map(event).collect(), None).await {
                    refused.push(format!("{error:#}"));
                }
            }
            refused
        });
    }
    let mut refused = Vec::new();
    while let Some(caller) = callers.join_next().await {
        refused.append(&mut caller?);
    }
    // The counters may still load the server after the reports.
    sleep(Duration::from_millis(200)).await;
    stage.end().await?;
    if let Some(last) = refused.last() {
        stage.note(format!("{} reports were refused, the last: {last}", refused.len()));
    }
    let mut bystander = stage.caller(BYSTANDER_KEY);
    let spent = bystander.report(vec![used(METERED, USED)], None).await;
    let spent = spent.context("a report of what has a budget")?;
    ensure!(!spent, "usage of {USED} spent a budget of {BUDGET}");
    // One report also contains a new organization, as real reports do.
    let events = vec![used("newcomer", USED), used(METERED, USED)];
    let spent = bystander.report(events, None).await;
    let spent = spent.context("a report of what has a budget and of a new organization")?;
    ensure!(spent, "twice a usage of {USED} did not spend a budget of {BUDGET}");
    Ok(())
}
