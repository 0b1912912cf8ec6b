//! Usage is counted once, within bounds, and in the right window.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use lease::{
    Budget, Change, Config, Ledger, Period, Policy, RECORDS_PER_HOLD, Remembers, Report,
    ReportRefusal, Reported, Reporting, Request, Submission, Terms, Timestamp, Uncountable, Used,
    WallTime,
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_nanos(1 << 60);
const WALL: WallTime = WallTime::from_unix(1_800_000_000);

/// A policy that knows the organizations that begin with "known", and gives those that begin with
/// "known-paid" a budget.
#[derive(Debug)]
struct Known([Budget; 1]);

impl Known {
    fn new(amount: f64) -> Self {
        Self([Budget { metric: "egress_bytes".into(), amount, per: Period::Month }])
    }
}

impl Policy for Known {
    fn knows(&self, organization: &str) -> bool {
        organization.starts_with("known")
    }

    fn budgets(&self, organization: &str) -> &[Budget] {
        if organization.starts_with("known-paid") { &self.0 } else { &[] }
    }
}

fn ledger(config: Config) -> Ledger {
    let mut ledger = Ledger::new(Config { journal: true, ..config });
    ledger.expire(NOW);
    ledger
}

fn built(events: &[(&str, &str, f64)]) -> Report {
    let mut report = Report::builder();
    for &(organization, metric, value) in events {
        report.add(organization, "", &[(metric, value)]).expect("it can be counted");
    }
    report.build()
}

/// A report in progress. Its answer says whether "known-paid" has spent a budget.
fn reporting(caller: &str, key: Option<&str>, report: &Report) -> Reporting {
    let submission = Submission {
        caller: Some(caller.into()),
        idempotency_key: key.map(Into::into),
        report: report.clone(),
        organizations: vec!["known-paid".into()],
    };
    Reporting::new(submission, WALL)
}

/// Counts all parts of a report.
fn count(
    ledger: &mut Ledger,
    caller: &str,
    key: Option<&str>,
    report: &Report,
    now: Timestamp,
) -> Result<Reported, ReportRefusal> {
    let mut reporting = reporting(caller, key, report);
    while !reporting.is_done() {
        assert!(reporting.amounts() <= RECORDS_PER_HOLD);
        ledger.report(&Known::new(100.0), WALL, &mut reporting, now)?;
    }
    Ok(reporting.finish())
}

fn used(ledger: &Ledger, organization: &str) -> f64 {
    ledger.used(organization).map(|(_, used)| used.month.1).sum()
}

fn skipped(counted: &Reported, why: Uncountable) -> u64 {
    counted.skipped[why as usize]
}

fn repeated(reported: Result<Reported, ReportRefusal>) -> bool {
    !reported.expect("a sound report").counted
}

#[test]
fn an_event_that_cannot_be_counted_is_left_out_and_says_why() {
    let mut report = Report::builder();
    let (long, many) = ("o".repeat(257), vec![("m", 1.0); 65]);
    for (organization, metrics, why) in [
        ("", &[("m", 1.0)][..], Uncountable::Organization),
        (&long, &[("m", 1.0)], Uncountable::Organization),
        ("acme", &[("m", 1.0), ("", 1.0)], Uncountable::Metric),
        ("acme", &[(&long, 1.0)], Uncountable::Metric),
        ("acme", &[("m", 1.0), ("n", f64::NAN)], Uncountable::Value),
        ("acme", &[("m", f64::INFINITY)], Uncountable::Value),
        ("acme", &[("m", -1.0)], Uncountable::Value),
        ("acme", &many, Uncountable::TooManyMetrics),
    ] {
        assert_eq!(report.add(organization, "", metrics), Err(why));
    }
    assert_eq!(report.add("acme", &long, &[("m", 1.0)]), Err(Uncountable::ApiKey));
    assert!(report.clone().build().is_empty(), "not even a part of one is counted");
    report.add("acme", "", &many[..64]).expect("64 metrics are few enough");
    assert_eq!(report.build().len(), 1);
}

#[test]
fn a_report_has_so_many_amounts_and_goes_on_counting_those_it_has() {
    let mut report = Report::builder();
    for number in 0..lease::MAX_AMOUNTS / 64 {
        let metrics: Vec<_> = (0..64).map(|metric| format!("metric-{metric}")).collect();
        let metrics: Vec<_> = metrics.iter().map(|metric| (&**metric, 1.0)).collect();
        report.add(&format!("o{number}"), "", &metrics).expect("there is room");
    }
    assert_eq!(report.add("one-more", "", &[("m", 1.0)]), Err(Uncountable::NoRoom));
    assert_eq!(report.add("o7", "", &[("metric-1", 1.0), ("n", 1.0)]), Err(Uncountable::NoRoom));
    assert_eq!(report.add("o7", "", &[("metric-1", 1.0)]), Ok(()));
    assert_eq!(report.build().len(), lease::MAX_AMOUNTS);
}

#[test]
fn a_report_is_the_same_in_whatever_order_its_events_come_and_another_with_other_amounts() {
    let events = [("b", "m", 1.0), ("a", "n", 2.0), ("a", "m", 3.0)];
    let one = built(&events);
    let other = built(&[events[2], events[0], events[1]]);
    assert_eq!(one.fingerprint(), other.fingerprint());
    for change in [("b", "m", 0.5), ("c", "m", 1.0), ("a", "o", 1.0)] {
        let more: Vec<_> = events.into_iter().chain([change]).collect();
        assert_ne!(built(&more).fingerprint(), one.fingerprint());
    }
    // Stores keep fingerprints, so the fingerprint of a report never changes.
    assert_eq!(built(&[("acme", "egress_bytes", 1.0)]).fingerprint(), 0x84a3_9d5c_56fb_b3d3);
}

#[test]
fn a_zero_makes_no_count_and_a_report_of_nothing_is_not_remembered() {
    let mut ledger = ledger(Config { max_report_keys: 1, ..Config::default() });
    let nothing = built(&[("acme", "egress_bytes", 0.0)]);
    for key in ["a", "b", "a"] {
        assert!(!repeated(count(&mut ledger, "west", Some(key), &nothing, NOW)));
    }
    assert_eq!(ledger.drain_changes().count(), 0);
    assert!(ledger.usage(0).is_none_or(|mut counts| counts.next().is_none()));
    let report = built(&[("acme", "egress_bytes", 1.0)]);
    assert!(!repeated(count(&mut ledger, "west", Some("a"), &report, NOW)));
}

#[test]
fn a_report_counts_once_in_ten_minutes_for_one_indexer() {
    let mut ledger = ledger(Config::default());
    let report = built(&[("acme", "egress_bytes", 10.0)]);
    let mut report = |by, later| {
        let at = NOW + Duration::from_secs(later);
        repeated(count(&mut ledger, by, Some("r1"), &report, at))
    };
    assert!(!report("west", 0));
    assert!(report("west", 599));
    assert!(!report("east", 599));
    assert!(!report("west", 600));
    assert_eq!(used(&ledger, "acme"), 30.0);
}

#[test]
fn a_key_that_names_another_report_is_refused_and_an_invalid_one_too() {
    let mut ledger = ledger(Config::default());
    let (one, other) = (built(&[("acme", "m", 1.0)]), built(&[("acme", "m", 2.0)]));
    count(&mut ledger, "west", Some("r1"), &one, NOW).expect("counted");
    let refused = count(&mut ledger, "west", Some("r1"), &other, NOW);
    assert_eq!(refused, Err(ReportRefusal::KeyReused));
    for key in ["", &"k".repeat(257)] {
        let refused = count(&mut ledger, "west", Some(key), &one, NOW).unwrap_err();
        assert!(matches!(refused, ReportRefusal::Invalid(_)), "{refused}");
    }
    assert_eq!(used(&ledger, "acme"), 1.0);
}

#[test]
fn a_full_memory_of_keys_refuses_its_indexer_and_no_report_counts_twice() {
    let mut ledger = ledger(Config { max_report_keys: 100, ..Config::default() });
    let report = built(&[("acme", "m", 1.0)]);
    count(&mut ledger, "west", Some("mine"), &report, NOW).expect("counted");
    for number in 0..100 {
        count(&mut ledger, "east", Some(&number.to_string()), &report, NOW).expect("counted");
    }
    for number in 100..5_000 {
        let key = number.to_string();
        match count(&mut ledger, "east", Some(&key), &report, NOW) {
            Err(ReportRefusal::MemoryFull(full)) => {
                assert_eq!((full.memory, full.most), (Remembers::IdempotencyKeys, 100));
                assert_eq!(full.indexer.as_deref(), Some("east"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(repeated(count(&mut ledger, "east", Some("7"), &report, NOW)), "it is known still");
    assert!(repeated(count(&mut ledger, "west", Some("mine"), &report, NOW)));
    assert!(!repeated(count(&mut ledger, "west", Some("other"), &report, NOW)));
    assert_eq!(used(&ledger, "acme"), 102.0);
    let later = NOW + Duration::from_secs(600);
    assert!(!repeated(count(&mut ledger, "east", Some("new"), &report, later)));
}

#[test]
fn a_report_that_stopped_half_way_goes_on_there_after_a_restart() {
    let names: Vec<String> = (0..3 * RECORDS_PER_HOLD).map(|number| format!("o{number}")).collect();
    let events: Vec<_> = names.iter().map(|name| (&**name, "m", 1.0)).collect();
    let report = built(&events);
    let mut first = ledger(Config::default());
    let mut begun = reporting("west", Some("r1"), &report);
    first.report(&(), WALL, &mut begun, NOW).expect("counted");
    assert_eq!(names.iter().map(|name| used(&first, name)).sum::<f64>(), RECORDS_PER_HOLD as f64);
    let mut second = Ledger::new(Config::default());
    first.drain_changes().for_each(|change| second.restore(change).expect("it restores"));
    second.resume(NOW, 1, NOW);
    let refused = count(&mut second, "west", Some("r1"), &built(&events[1..]), NOW);
    assert_eq!(refused, Err(ReportRefusal::KeyReused));
    assert!(!repeated(count(&mut second, "west", Some("r1"), &report, NOW)), "it goes on");
    assert!(names.iter().all(|name| used(&second, name) == 1.0));
    assert!(repeated(count(&mut second, "west", Some("r1"), &report, NOW)));
    assert!(names.iter().all(|name| used(&second, name) == 1.0));
}

#[test]
fn one_report_that_is_sent_twice_at_once_counts_once() {
    let names: Vec<String> = (0..3 * RECORDS_PER_HOLD).map(|number| format!("o{number}")).collect();
    let report = built(&names.iter().map(|name| (&**name, "m", 1.0)).collect::<Vec<_>>());
    let mut ledger = ledger(Config::default());
    // Both reports take turns, and each keeps its own position.
    let mut both = [0, 1].map(|_| reporting("west", Some("r1"), &report));
    while !both.iter().all(Reporting::is_done) {
        for reporting in &mut both {
            ledger.report(&(), WALL, reporting, NOW).expect("counted");
        }
    }
    assert!(names.iter().all(|name| used(&ledger, name) == 1.0));
}

#[test]
fn a_key_kept_by_an_earlier_version_names_a_report_that_was_counted_whole() {
    let mut ledger = Ledger::new(Config::default());
    let until = NOW + Duration::from_secs(60);
    let (indexer, key) = (Some("west".into()), "r1".into());
    let kept = Change::Reported { indexer, key, until, fingerprint: None, applied: 0 };
    ledger.restore(kept).expect("it restores");
    ledger.resume(NOW, 1, NOW);
    let report = built(&[("acme", "m", 1.0)]);
    assert!(repeated(count(&mut ledger, "west", Some("r1"), &report, NOW)));
}

#[test]
fn the_report_that_spends_a_budget_ends_leases_and_all_later_reports_say_that_it_is_spent() {
    let mut ledger = ledger(Config::default());
    let report = built(&[("known-paid", "egress_bytes", 60.0), ("other", "egress_bytes", 900.0)]);
    let mut ended_and_told = || {
        for organization in ["known-paid", "other"] {
            let request = Request::session("t1r", organization);
            ledger.borrow(&request, &Terms::default(), NOW).expect("no limit");
        }
        let reported = count(&mut ledger, "west", None, &report, NOW).expect("counted");
        (reported.revoked, reported.spent.len())
    };
    assert_eq!(ended_and_told(), (0, 0));
    assert_eq!(ended_and_told(), (2, 1), "both leases that the organization has by now");
    assert_eq!(ended_and_told(), (0, 1), "it was spent before");
}

#[test]
fn unknown_organizations_are_bounded_for_each_indexer_and_a_budget_always_counts() {
    let config = Config { max_counts: 25, max_unknown_counts: 10, ..Config::default() };
    let mut ledger = ledger(config);
    let names: Vec<String> = (0..50).map(|number| format!("o{number}")).collect();
    let many = built(&names.iter().map(|name| (&**name, "m", 1.0)).collect::<Vec<_>>());
    let counted = count(&mut ledger, "east", None, &many, NOW).expect("the rest counts");
    assert_eq!(skipped(&counted, Uncountable::NoRoom), 40);
    let counted = count(&mut ledger, "east", None, &many, NOW).expect("the rest counts");
    assert_eq!(skipped(&counted, Uncountable::NoRoom), 40, "what has a count goes on counting");
    // Another indexer has room of its own.
    let own = built(&[("mine", "m", 1.0)]);
    assert_eq!(
        count(&mut ledger, "west", None, &own, NOW).expect("counted").skipped,
        [0; Uncountable::ALL.len()]
    );
    // Known organizations take the room of unknown ones, and the count of a budget needs no room.
    let known: Vec<String> = (0..25).map(|number| format!("known-{number}")).collect();
    let known = built(&known.iter().map(|name| (&**name, "m", 1.0)).collect::<Vec<_>>());
    assert_eq!(
        count(&mut ledger, "west", None, &known, NOW).expect("counted").skipped,
        [0; Uncountable::ALL.len()]
    );
    let more = built(&[
        ("known-more", "m", 1.0),
        ("known-paid", "egress_bytes", 100.0),
        ("known-paid", "m", 1.0),
    ]);
    let counted = count(&mut ledger, "east", None, &more, NOW).expect("counted");
    assert_eq!(skipped(&counted, Uncountable::NoRoom), 2);
    assert_eq!(counted.spent.len(), 1);
    assert_eq!(names.iter().map(|name| used(&ledger, name)).sum::<f64>(), 0.0);
}

#[test]
fn an_organization_that_holds_a_lease_takes_the_room_of_one_that_holds_none() {
    let mut ledger = ledger(Config { max_unknown_counts: 3, ..Config::default() });
    let report = built(&[("a", "m", 1.0), ("b", "m", 1.0), ("c", "m", 1.0)]);
    count(&mut ledger, "west", None, &report, NOW).expect("counted");
    for organization in ["b", "d"] {
        let request = Request::session("t1r", organization);
        ledger.borrow(&request, &Terms::default(), NOW).expect("no limit");
    }
    ledger.drain_changes().for_each(drop);
    let counted = count(&mut ledger, "west", None, &built(&[("d", "m", 1.0)]), NOW);
    assert_eq!(counted.expect("counted").skipped, [0; Uncountable::ALL.len()]);
    let changes: Vec<Change> = ledger.drain_changes().collect();
    assert!(matches!(changes[..], [Change::Unused { .. }, Change::Used { .. }]), "{changes:?}");
    assert_eq!((used(&ledger, "b"), used(&ledger, "d")), (1.0, 1.0));
    let counted = count(&mut ledger, "west", None, &built(&[("e", "m", 1.0)]), NOW);
    assert_eq!(skipped(&counted.expect("counted"), Uncountable::NoRoom), 1);
}

#[test]
fn the_metrics_of_one_organization_are_bounded_but_for_those_of_its_budgets() {
    let mut ledger = ledger(Config::default());
    let names: Vec<String> = (0..70).map(|number| format!("metric-{number:02}")).collect();
    for metric in &names {
        let counted = count(&mut ledger, "west", None, &built(&[("known-paid", metric, 1.0)]), NOW);
        let over = u64::from(&**metric >= "metric-64");
        assert_eq!(skipped(&counted.expect("counted"), Uncountable::TooManyMetrics), over);
    }
    let paid = built(&[("known-paid", "egress_bytes", 100.0)]);
    assert_eq!(count(&mut ledger, "west", None, &paid, NOW).expect("counted").spent.len(), 1);
}

/// The numbers of the day and of the month, from the text of the date.
fn windows(at: WallTime) -> [i64; 2] {
    let date = at.to_string();
    let number = |text: &str| text.parse::<i64>().expect("a number");
    [at.as_unix() / 86_400, number(&date[..4]) * 12 + number(&date[5..7])]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_window_at_most_one_ahead_goes_on_and_one_further_ahead_starts_anew(
        steps in prop::collection::vec(
            (prop_oneof![6 => -3..4i64, 2 => -70..70i64, 1 => -30_000..30_000i64], 0..9u32),
            1..40,
        ),
    ) {
        let (mut used, mut wall) = (Used::default(), 1_800_000_000);
        let mut kept = [(0, 0.0); 2];
        for (days, value) in steps {
            wall = (wall + days * 86_400).clamp(100 * 86_400, 200_000_000_000);
            let at = WallTime::from_unix(wall);
            used.add(value.into(), at);
            for (kept, now) in kept.iter_mut().zip(windows(at)) {
                if kept.0 != now && kept.0 != now + 1 {
                    *kept = (now, 0.0);
                }
                kept.1 += f64::from(value);
            }
            let [day, month] = kept;
            prop_assert_eq!(used.in_window(Period::Day, at).1, day.1);
            prop_assert_eq!(used.in_window(Period::Month, at).1, month.1);
            // Once the clock is set back by 40 days, the amounts of the later window do not count.
            let (_, later) = used.in_window(Period::Day, WallTime::from_unix(wall - 40 * 86_400));
            prop_assert_eq!(later, 0.0);
        }
    }

    #[test]
    fn counts_are_bounded_for_any_reports_and_budgets_are_exact(
        reports in prop::collection::vec(
            (
                0..3usize,
                prop::option::of(0..6u32),
                prop::collection::vec((0..12u32, 0..3u32, 0..3u32), 1..12),
            ),
            1..30,
        ),
        held in prop::collection::vec(0..12u32, 0..4),
    ) {
        const CALLERS: [&str; 3] = ["east", "west", "north"];
        let name = |number: u32| match number {
            0..2 => format!("known-paid-{number}"),
            2..5 => format!("known-{number}"),
            _ => format!("o{number}"),
        };
        let metrics = ["egress_bytes", "m", "n"];
        let bounds = Config { max_counts: 12, max_unknown_counts: 4, ..Config::default() };
        let mut ledger = ledger(bounds);
        for organization in &held {
            let organization = name(*organization);
            let request = Request::session("t1r", &organization);
            ledger.borrow(&request, &Terms::default(), NOW).expect("no limit");
        }
        let mut paid: BTreeMap<String, f64> = BTreeMap::new();
        let mut sent: BTreeMap<(usize, u32), u64> = BTreeMap::new();
        let mut kept: HashSet<(String, String)> = HashSet::new();
        for (caller, key, events) in reports {
            let names: Vec<String> = events.iter().map(|(number, ..)| name(*number)).collect();
            let events: Vec<_> = events
                .iter()
                .zip(&names)
                .map(|((_, metric, value), name)| (&**name, metrics[*metric as usize], f64::from(*value)))
                .collect();
            let report = built(&events);
            let text = key.map(|key| key.to_string());
            let known = key.and_then(|key| sent.get(&(caller, key)).copied());
            let answer = count(&mut ledger, CALLERS[caller], text.as_deref(), &report, NOW);
            match (known, &answer) {
                (Some(fingerprint), _) if fingerprint != report.fingerprint() => {
                    prop_assert_eq!(&answer, &Err(ReportRefusal::KeyReused));
                    continue;
                }
                (Some(_), Ok(reported)) => prop_assert!(!reported.counted),
                (_, Ok(reported)) => {
                    prop_assert!(reported.counted);
                    for (organization, metric, value) in &events {
                        if organization.starts_with("known-paid") && *metric == "egress_bytes" {
                            *paid.entry((*organization).to_owned()).or_default() += value;
                        }
                    }
                    if let Some(key) = key.filter(|_| !report.is_empty()) {
                        sent.insert((caller, key), report.fingerprint());
                    }
                }
                (_, Err(refused)) => prop_assert!(false, "{}", refused),
            }
            for change in ledger.drain_changes() {
                match change {
                    Change::Used { organization, metric, .. } => {
                        kept.insert((organization.into(), metric.into()));
                    }
                    Change::Unused { organization, metric } => {
                        kept.remove(&(organization.into(), metric.into()));
                    }
                    _ => {}
                }
            }
            let counts: Vec<(String, String)> = ledger
                .usage(0)
                .into_iter()
                .flatten()
                .map(|(organization, metric, _)| (organization.to_owned(), metric.to_owned()))
                .collect();
            // The changes give exactly the counts that the ledger has.
            prop_assert_eq!(&counts.iter().cloned().collect::<HashSet<_>>(), &kept);
            let of_budgets = counts
                .iter()
                .filter(|(organization, metric)| {
                    organization.starts_with("known-paid") && metric == "egress_bytes"
                })
                .count();
            prop_assert!(counts.len() - of_budgets <= 12);
            let unknown = counts.iter().filter(|(name, _)| !name.starts_with("known")).count();
            prop_assert!(unknown <= 4 * CALLERS.len());
            for (organization, expected) in &paid {
                let counted = ledger.used(organization).find(|(metric, _)| *metric == "egress_bytes");
                prop_assert_eq!(counted.map_or(0.0, |(_, used)| used.month.1), *expected);
            }
        }
    }
}
