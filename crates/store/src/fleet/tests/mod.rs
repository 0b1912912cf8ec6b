//! The rules of leadership, one by one. `crates/simulation` plays whole fleets.

use std::time::Duration;

use super::*;

const TTL: Duration = Duration::from_secs(5);

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(100_000 + milliseconds)
}

fn member(number: u8) -> MemberId {
    MemberId(number.into())
}

fn server(number: u8) -> Leadership {
    let config = Config {
        leader_ttl: TTL,
        address: "10.0.0.1:9010".into(),
        member: member(number),
        seed: [number; 32],
    };
    Leadership::new(config, at(0))
}

/// A database with one row of each kind, which answers at once.
#[derive(Debug)]
struct Database {
    rows: Rows,
}

impl Database {
    fn new() -> Self {
        Self { rows: Rows::new(TTL) }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Read => Answer::Read(self.rows.clone()),
            Request::Replace { seen, new } if *seen == self.rows.leadership => {
                self.rows.leadership = new.clone();
                Answer::Replaced(self.rows.clone())
            }
            Request::TakeOver { seen, new, .. } | Request::Rewrite { seen, new }
                if *seen == self.rows =>
            {
                self.rows = new.clone();
                Answer::Replaced(self.rows.clone())
            }
            _ => Answer::Differ(self.rows.clone()),
        }
    }

    /// Sends what the server has to send now, until it waits. Returns the events.
    fn serve(&mut self, server: &mut Leadership, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(request) = server.poll(now) {
            events.extend(server.handle_answer(self.answer(&request), now));
        }
        events
    }

    /// Serves until `until`, at each time at which the server wants to be polled.
    fn serve_until(&mut self, server: &mut Leadership, until: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(due) = server.poll_timeout().filter(|due| *due <= until) {
            events.extend(self.serve(server, due));
        }
        events
    }
}

/// A database and the leader that took it over at 0.
fn led() -> (Database, Leadership) {
    let (mut database, mut leader) = (Database::new(), server(1));
    let events = database.serve(&mut leader, at(0));
    assert!(matches!(events[..], [Event::Elected(_), Event::ValidUntil(_)]), "{events:?}");
    (database, leader)
}

#[test]
fn the_first_server_of_a_new_database_leads_at_once() {
    let (database, leader) = led();
    assert_eq!(leader.term(), Some(&database.rows.leadership));
    assert_eq!(database.rows.leadership.epoch, 1);
    assert_eq!(database.rows.journal.leader, database.rows.leadership.leader);
    assert_eq!(leader.valid_until(at(0)), Some(at(5_000)));
}

#[test]
fn a_leader_is_valid_from_the_sending_of_a_renewal_and_not_from_its_answer() {
    let (mut database, mut leader) = led();
    let request = leader.poll(at(1_000)).unwrap();
    let answer = database.answer(&request);
    let event = leader.handle_answer(answer, at(3_000));
    assert_eq!(event, Some(Event::ValidUntil(at(6_000))));
    assert_eq!(leader.valid_until(at(5_999)), Some(at(6_000)));
    assert_eq!(leader.valid_until(at(6_000)), None);
}

#[test]
fn a_renewal_whose_answer_was_lost_makes_nobody_valid() {
    let (mut database, mut leader) = led();
    let request = leader.poll(at(1_000)).unwrap();
    database.answer(&request);
    leader.handle_answer(Answer::Failed, at(2_000));
    assert_eq!(leader.valid_until(at(2_000)), Some(at(5_000)));
    // The next one finds the row that the lost one left, which says nothing about its own time.
    leader.ledger_answered(at(4_000));
    let request = leader.poll(at(4_000)).unwrap();
    assert_eq!(leader.handle_answer(database.answer(&request), at(4_000)), None);
    assert_eq!(leader.valid_until(at(4_000)), Some(at(5_000)));
    let events = database.serve(&mut leader, at(4_100));
    assert_eq!(events, [Event::ValidUntil(at(9_100))]);
}

#[test]
fn a_standby_takes_over_after_the_ttl_and_a_tenth_of_an_unchanged_row() {
    let (mut database, leader) = led();
    let mut standby = server(2);
    assert!(database.serve_until(&mut standby, at(5_499)).is_empty());
    assert_eq!(standby.leader(), leader.term());
    let events = database.serve_until(&mut standby, at(5_500));
    assert!(matches!(events[..], [Event::Elected(_), Event::ValidUntil(_)]), "{events:?}");
    assert_eq!(database.rows.leadership.epoch, 2);
}

#[test]
fn a_standby_reads_four_times_a_second_however_long_the_ttl_is() {
    let (mut database, _leader) = led();
    database.rows.leadership.leader_ttl = Duration::from_secs(60);
    let mut standby = server(2);
    database.serve(&mut standby, at(1_000));
    assert_eq!(standby.poll_timeout(), Some(at(1_250)));
}

#[test]
fn a_standby_counts_from_the_arrival_of_an_answer() {
    let (mut database, _) = led();
    let mut standby = server(2);
    let request = standby.poll(at(0)).unwrap();
    standby.handle_answer(database.answer(&request), at(1_000));
    assert!(database.serve_until(&mut standby, at(6_499)).is_empty());
    assert!(!database.serve_until(&mut standby, at(6_500)).is_empty());
}

#[test]
fn a_failed_read_starts_the_count_anew() {
    let (mut database, _) = led();
    let mut standby = server(2);
    database.serve_until(&mut standby, at(4_000));
    assert_eq!(standby.poll(at(4_250)), Some(Request::Read));
    standby.handle_answer(Answer::Failed, at(4_250));
    assert!(database.serve_until(&mut standby, at(9_999)).is_empty());
    assert!(!database.serve_until(&mut standby, at(10_000)).is_empty());
}

#[test]
fn a_gap_between_answers_starts_the_count_anew() {
    let (mut database, _) = led();
    let mut standby = server(2);
    database.serve_until(&mut standby, at(4_000));
    // The process was stopped: nothing failed, and nothing was seen.
    assert!(database.serve(&mut standby, at(5_600)).is_empty());
    assert!(database.serve_until(&mut standby, at(11_099)).is_empty());
    assert!(!database.serve_until(&mut standby, at(11_100)).is_empty());
}

#[test]
fn a_takeover_compares_everything_that_was_seen() {
    type Change = fn(&mut Rows);
    let changes: [Change; 10] = [
        |rows| rows.leadership.epoch += 1,
        |rows| rows.leadership.leader = LeaderId(7),
        |rows| rows.leadership.renewals += 1,
        |rows| rows.leadership.leader_ttl *= 2,
        |rows| rows.leadership.address = "10.0.0.9:9010".into(),
        |rows| rows.leadership.released = true,
        |rows| rows.leadership.successor = Some(member(7)),
        |rows| rows.journal.leader = LeaderId(7),
        |rows| rows.journal.sequence += 1,
        |rows| rows.journal.attempt += 1,
    ];
    for change in changes {
        let (mut database, _) = led();
        let mut standby = server(2);
        database.serve_until(&mut standby, at(5_400));
        let Some(request @ Request::TakeOver { .. }) = standby.poll(at(5_500)) else { panic!() };
        change(&mut database.rows);
        assert!(matches!(database.answer(&request), Answer::Differ(_)));
    }
}

#[test]
fn the_ttl_in_the_row_counts_and_not_that_of_the_standby() {
    let (mut database, _) = led();
    database.rows.leadership.leader_ttl = TTL * 2;
    let mut standby = server(2);
    assert!(database.serve_until(&mut standby, at(10_999)).is_empty());
    assert!(!database.serve_until(&mut standby, at(11_000)).is_empty());
    assert_eq!(database.rows.leadership.leader_ttl, TTL);
}

#[test]
fn a_takeover_that_a_lock_blocks_ends_its_holder_the_next_time() {
    let (mut database, _) = led();
    let mut standby = server(2);
    database.serve_until(&mut standby, at(5_400));
    let Some(Request::TakeOver { end_blocker: false, .. }) = standby.poll(at(5_500)) else {
        panic!()
    };
    standby.handle_answer(Answer::Blocked, at(10_500));
    let Some(request @ Request::TakeOver { end_blocker: true, .. }) = standby.poll(at(10_500))
    else {
        panic!()
    };
    let event = standby.handle_answer(database.answer(&request), at(10_500));
    assert!(matches!(event, Some(Event::Elected(_))));
}

#[test]
fn a_takeover_whose_answer_was_lost_is_found_by_the_next_read() {
    let (mut database, _) = led();
    let mut standby = server(2);
    database.serve_until(&mut standby, at(5_400));
    let request = standby.poll(at(5_500)).unwrap();
    database.answer(&request);
    standby.handle_answer(Answer::Failed, at(6_000));
    let events = database.serve_until(&mut standby, at(6_250));
    assert!(matches!(events[..], [Event::Elected(_), Event::ValidUntil(_)]), "{events:?}");
}

#[test]
fn a_deposed_leader_sees_it_at_its_next_renewal() {
    let (mut database, mut leader) = led();
    let mut standby = server(2);
    database.serve_until(&mut standby, at(5_500));
    assert_eq!(leader.valid_until(at(5_500)), None);
    leader.ledger_answered(at(5_500));
    assert_eq!(database.serve(&mut leader, at(5_500)), [Event::Deposed]);
    assert_eq!(leader.leader(), standby.term());
}

#[test]
fn a_leader_whose_validity_lapsed_gets_it_back_if_nobody_took_over() {
    let (mut database, mut leader) = led();
    leader.ledger_answered(at(60_000));
    assert_eq!(leader.valid_until(at(60_000)), None);
    assert_eq!(database.serve(&mut leader, at(60_000)), [Event::ValidUntil(at(65_000))]);
}

#[test]
fn a_leader_whose_ledger_does_not_answer_does_not_renew() {
    let (mut database, mut leader) = led();
    assert_eq!(database.serve_until(&mut leader, at(10_000)), [Event::ValidUntil(at(6_000))]);
    leader.ledger_answered(at(10_000));
    assert_eq!(database.serve_until(&mut leader, at(10_250)).len(), 1);
}

#[test]
fn a_released_term_is_taken_over_at_once_and_not_by_its_own_server() {
    let (mut database, mut leader) = led();
    let mut standby = server(2);
    database.serve(&mut standby, at(0));
    leader.release(at(100));
    assert_eq!(leader.valid_until(at(100)), None);
    assert!(database.serve(&mut leader, at(100)).is_empty());
    assert!(database.rows.leadership.released);
    assert!(database.serve_until(&mut leader, at(2_000)).is_empty());
    assert!(!database.serve_until(&mut standby, at(250)).is_empty());
}

#[test]
fn a_named_successor_takes_over_at_once_and_the_others_wait() {
    let (mut database, mut leader) = led();
    let (mut second, mut third) = (server(2), server(3));
    leader.release_to(Some(member(3)), at(100));
    assert!(database.serve(&mut leader, at(100)).is_empty());
    assert_eq!(database.rows.leadership.successor, Some(member(3)));
    let before = database.rows.clone();
    // The ordinary wait counts from the first answer that shows the row, which is at 0 here.
    assert!(database.serve_until(&mut second, at(5_499)).is_empty());
    assert_eq!(database.rows, before);
    let events = database.serve(&mut third, at(5_499));
    assert!(matches!(events[..], [Event::Elected(_), Event::ValidUntil(_)]), "{events:?}");
    assert_eq!(database.rows.leadership.successor, None);
    // A successor that is gone keeps nobody out for longer.
    database.rows = before;
    database.serve_until(&mut second, at(5_600));
    assert!(!database.serve_until(&mut second, at(12_000)).is_empty());
}

/// A leader that waits for a slow last commit goes on to renew. If that fails for so long that it lapses, the
/// release compares the row as a renewal does.
#[test]
fn a_leader_that_lapsed_before_its_release_releases_its_own_row_only() {
    let (mut database, mut leader) = led();
    assert_eq!(database.serve(&mut leader, at(1_000)), [Event::ValidUntil(at(6_000))]);
    assert_eq!(leader.valid_until(at(8_000)), None);
    let before = database.rows.clone();
    leader.release_to(Some(member(2)), at(8_000));
    assert_eq!(database.serve(&mut leader, at(8_000)), []);
    let LeadershipRow { released, successor, .. } = database.rows.leadership;
    assert_eq!((released, successor, leader.has_row()), (true, Some(member(2)), false));

    // Another server has taken the row over meanwhile, and keeps it.
    let (_, mut leader) = led();
    let mut other = server(2);
    database.rows = before;
    let events = database.serve_until(&mut other, at(8_000));
    assert!(matches!(events[0], Event::Elected(_)), "{events:?}");
    leader.release_to(Some(member(2)), at(8_000));
    assert_eq!(database.serve(&mut leader, at(8_000)), []);
    assert!(!database.rows.leadership.released && !leader.has_row());
    assert_eq!(other.term(), Some(&database.rows.leadership));
}

#[test]
fn a_server_that_stepped_down_may_lead_again_later() {
    let (mut database, mut leader) = led();
    let mut second = server(2);
    leader.release_to(Some(member(2)), at(100));
    database.serve(&mut leader, at(100));
    assert!(!database.serve(&mut second, at(200)).is_empty());
    database.serve(&mut leader, at(400));
    assert_eq!(leader.leader(), second.term());
    second.release_to(Some(member(1)), at(500));
    database.serve(&mut second, at(500));
    assert!(!database.serve_until(&mut leader, at(700)).is_empty());
    assert_eq!(database.rows.leadership.epoch, 3);
}

#[test]
fn a_release_that_an_earlier_state_of_the_database_shows_is_not_taken_over_at_once() {
    let (mut database, mut leader) = led();
    leader.release(at(100));
    database.serve(&mut leader, at(100));
    let stale = database.rows.clone();
    let (mut second, mut third) = (server(2), server(3));
    database.serve(&mut second, at(200));
    database.serve(&mut third, at(200));
    assert_eq!(third.leader(), second.term());
    // The takeover is lost. The leader whose takeover it was lives, and comes first.
    database.rows = stale;
    assert!(database.serve_until(&mut third, at(5_000)).is_empty());
    second.ledger_answered(at(5_000));
    let events = database.serve(&mut second, at(5_000));
    assert!(
        matches!(events[..], [Event::WritesLost, Event::Rewritten(_), Event::ValidUntil(_)]),
        "{events:?}"
    );
    assert!(database.serve_until(&mut third, at(10_000)).is_empty());
}

#[test]
fn a_leader_that_lapsed_rewrites_only_a_row_that_nobody_has_used_since() {
    let (database, mut first) = led();
    let earlier = database.rows;
    // Two takeovers follow, which the database loses.
    let mut database = Database { rows: earlier.clone() };
    let mut second = server(2);
    let mut later = server(3);
    database.serve_until(&mut second, at(5_500));
    database.serve_until(&mut later, at(11_000));
    assert_eq!(later.term().map(|row| row.epoch), Some(3));
    let lapsed = at(60_000);
    later.ledger_answered(lapsed);
    assert_eq!(later.valid_until(lapsed), None);

    // The first leader finds its own row again, and leads: it may have granted what the lapsed one has
    // not heard of.
    let mut renewed = Database { rows: earlier.clone() };
    first.ledger_answered(lapsed);
    assert!(!renewed.serve(&mut first, lapsed).is_empty());
    let read = later.poll(lapsed).unwrap();
    assert_eq!(later.handle_answer(renewed.answer(&read), lapsed), Some(Event::Deposed));
}

#[test]
fn a_leader_that_lapsed_yields_to_the_earlier_one_that_leads_again() {
    let (mut database, mut first) = led();
    let earlier = database.rows.clone();
    let mut second = server(2);
    database.serve_until(&mut second, at(5_500));
    // The takeover is lost, and the first leader, which was stopped all the time, finds its row.
    database.rows = earlier;
    first.ledger_answered(at(60_000));
    assert_eq!(database.serve(&mut first, at(60_000)), [Event::ValidUntil(at(65_000))]);
    second.ledger_answered(at(60_100));
    assert_eq!(database.serve(&mut second, at(60_100)), [Event::Deposed]);
    assert_eq!(first.valid_until(at(60_100)), Some(at(65_000)));
}

#[test]
fn a_leader_that_is_valid_rewrites_any_row_of_a_lower_epoch() {
    let (mut database, _) = led();
    let mut later = server(2);
    database.rows.leadership.epoch = 7;
    database.serve_until(&mut later, at(5_500));
    assert_eq!(later.term().map(|row| row.epoch), Some(8));
    // It has never seen this term. Nobody can have taken it over while this leader was valid.
    database.rows.leadership.epoch = 3;
    database.rows.leadership.leader = LeaderId(9);
    let events = database.serve_until(&mut later, at(6_500));
    assert!(matches!(events[..], [Event::WritesLost, Event::Rewritten(_), ..]), "{events:?}");
    assert_eq!(database.rows.leadership.epoch, 9);
}

#[test]
fn a_leader_that_lapsed_long_ago_rewrites_the_row_that_it_took_over_itself() {
    let (mut database, _) = led();
    let earlier = database.rows.clone();
    let mut second = server(2);
    database.serve_until(&mut second, at(5_500));
    database.rows = earlier.clone();
    second.ledger_answered(at(60_000));
    let events = database.serve(&mut second, at(60_000));
    assert!(
        matches!(events[..], [Event::WritesLost, Event::Rewritten(_), Event::ValidUntil(_)]),
        "{events:?}"
    );

    // Another one took over from there and granted: nothing of that is undone.
    let mut database = Database { rows: earlier };
    let (mut second, mut third) = (server(2), server(3));
    let mut lost = Database { rows: database.rows.clone() };
    lost.rows.leadership.epoch = 7;
    lost.serve_until(&mut second, at(5_500));
    database.serve_until(&mut third, at(50_000));
    second.ledger_answered(at(60_000));
    assert!(third.term().is_some_and(|row| row.epoch == 2));
    assert_eq!(database.serve(&mut second, at(60_000)), [Event::Deposed]);
}

#[test]
fn a_server_is_a_standby_from_the_sending_of_a_release_whatever_the_answer() {
    let (mut database, mut leader) = led();
    let renewal = leader.poll(at(1_000)).unwrap();
    leader.release(at(1_100));
    assert_eq!((leader.term(), leader.valid_until(at(1_100))), (None, None));
    // The renewal was under way. Its success makes nobody valid, and the release goes on from it.
    assert_eq!(leader.handle_answer(database.answer(&renewal), at(1_200)), None);
    assert_eq!(leader.valid_until(at(1_200)), None);
    let release = leader.poll(at(1_200)).unwrap();
    leader.handle_answer(Answer::Failed, at(1_300));
    assert_eq!(leader.term(), None);
    assert!(matches!(database.answer(&release), Answer::Replaced(_)));
    database.serve_until(&mut leader, at(1_600));
    assert!(database.rows.leadership.released);
    // Nobody else is there: after the ordinary wait it takes the term back.
    assert!(!database.serve_until(&mut leader, at(7_200)).is_empty());
}

#[test]
fn a_server_that_is_no_candidate_takes_over_nothing() {
    let mut database = Database::new();
    let mut server = server(1);
    server.set_candidate(false);
    assert!(database.serve_until(&mut server, at(60_000)).is_empty());
    // A takeover that was under way is given back.
    server.set_candidate(true);
    let Some(request @ Request::TakeOver { .. }) = server.poll(at(60_000)) else { panic!() };
    server.set_candidate(false);
    assert_eq!(server.handle_answer(database.answer(&request), at(60_000)), None);
    database.serve(&mut server, at(60_000));
    assert!(database.rows.leadership.released);
}

#[test]
fn lost_writes_are_written_again_under_a_new_term() {
    type Loss = fn(&mut Rows);
    let losses: [(&str, Loss); 2] = [
        ("a batch", |rows| rows.journal.sequence -= 1),
        ("the takeover", |rows| *rows = Rows::new(TTL)),
    ];
    for (what, lose) in losses {
        let (mut database, mut leader) = led();
        let mut fence = Fence::new(database.rows.journal);
        for _ in 0..3 {
            database.rows.journal = fence.next();
            fence.committed();
        }
        leader.committed(fence.sequence());
        let (epoch, id) = (database.rows.leadership.epoch, database.rows.leadership.leader);
        lose(&mut database.rows);
        let events = database.serve(&mut leader, at(1_000));
        let [Event::WritesLost, Event::Rewritten(row), Event::ValidUntil(_)] = events[..] else {
            panic!("{what}: {events:?}")
        };
        assert_eq!((row, row.sequence), (database.rows.journal, 3), "{what}");
        assert!(database.rows.leadership.epoch > epoch, "{what}");
        assert_ne!(database.rows.leadership.leader, id, "{what}");
    }
}

#[test]
fn a_leader_acts_no_more_between_lost_writes_and_their_rewriting() {
    let (mut database, mut leader) = led();
    leader.committed(3);
    let renewal = leader.poll(at(1_000)).unwrap();
    let event = leader.handle_answer(database.answer(&renewal), at(1_000));
    assert_eq!((event, leader.valid_until(at(1_000))), (Some(Event::WritesLost), None));
    let rewriting = leader.poll(at(1_000)).unwrap();
    assert!(matches!(rewriting, Request::Rewrite { .. }));
    // It happens, and its answer is lost.
    database.answer(&rewriting);
    leader.handle_answer(Answer::Failed, at(1_100));
    leader.ledger_answered(at(1_350));
    let events = database.serve_until(&mut leader, at(1_350));
    assert!(matches!(events[..], [Event::Rewritten(_), Event::ValidUntil(_)]), "{events:?}");
}

#[test]
fn another_term_at_the_same_or_a_higher_epoch_deposes() {
    for epoch in [1, 2] {
        let (mut database, mut leader) = led();
        database.rows.leadership.epoch = epoch;
        database.rows.leadership.leader = LeaderId(7);
        assert_eq!(database.serve(&mut leader, at(1_000)), [Event::Deposed]);
    }
}

#[test]
fn an_unknown_commit_is_resolved_by_the_row_under_its_lock() {
    let row = JournalRow { leader: LeaderId(1), sequence: 5, attempt: 0 };
    let raised = |sequence| JournalRow { sequence, attempt: 1, ..row };
    let mut fence = Fence::new(row);
    assert_eq!(fence.resolve(raised(6)), Resolved::Committed);
    assert_eq!(fence.seen(), raised(6));
    let mut fence = Fence::new(row);
    assert_eq!(fence.resolve(raised(5)), Resolved::NotCommitted);
    assert_eq!((fence.seen(), fence.next()), (raised(5), raised(6)));
    let mut fence = Fence::new(row);
    assert_eq!(fence.resolve(raised(4)), Resolved::Lost);
    let other = JournalRow { leader: LeaderId(2), ..raised(6) };
    assert_eq!(fence.resolve(other), Resolved::OtherLeader);
    assert_eq!(fence.seen(), row);
}
