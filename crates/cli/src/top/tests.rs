//! Tests of the screen without a terminal. They press keys and read what is drawn.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use tgm_session_server::api::{
    BudgetRow, Ceiling, Disabled, Done, Fleet, FleetLeader, Organization, OrganizationOrder,
    OrganizationPage, OrganizationService, Overview, PolicyStatus, Refusal, Refusals, ServiceRow,
    Session, SessionPage, Source,
};

use super::draw::draw;
use super::fetch::{List, OrganizationLeases, Query, Update};
use super::keys::Action;
use super::state::App;
use crate::failure::Failure;
use crate::operator::admin::Fault;

const OLDEST: Duration = Duration::from_secs(5);

fn overview(revision: u64) -> Overview {
    Overview {
        version: "9.8.7".into(),
        started_at: 0,
        ready: true,
        problem: None,
        revision,
        store: "memory:".into(),
        sessions: 7,
        workers: 31,
        active_organizations: 2,
        organizations: 1000,
        attached_streams: 3,
        refusals: Refusals { organization: 4, ..Refusals::default() },
        services: ["t1r", "t2w", "default"].map(service_row).into(),
        policy: PolicyStatus {
            file: None,
            loaded_at: 0,
            refused: None,
            warnings: Vec::new(),
            overrides: 0,
        },
    }
}

fn service_row(service: &str) -> ServiceRow {
    ServiceRow {
        service: service.into(),
        active: 7,
        max_total: (service == "t1r").then_some(4000),
        max_per_organization: None,
        max_per_api_key: None,
        ttl_seconds: 60.0,
        minimal_life_seconds: 5.0,
        observe: false,
    }
}

fn organization(id: &str, active: u64, max: Option<u64>) -> Organization {
    let ceiling = Ceiling { max, source: Source::Plan };
    Organization {
        organization: id.into(),
        plan: Some("pro".into()),
        disabled: Disabled { disabled: id == "closed", source: Source::Override },
        services: vec![OrganizationService { service: "t1r".into(), active, ceiling }],
        budgets: vec![BudgetRow {
            metric: "egress_bytes".into(),
            used: 75.0,
            amount: 100.0,
            per: "month".into(),
            resets_at: 0,
            spent: false,
        }],
        refusals: Refusals { organization: 4, ..Refusals::default() },
    }
}

fn lease(number: u32, trace: &str) -> Session {
    Session {
        lease: format!("{number:024x}"),
        kind: "session".into(),
        service: "t1r".into(),
        organization: "acme".into(),
        api_key: "key-1".into(),
        trace: trace.into(),
        indexer: Some("west".into()),
        age_seconds: 100.0,
        ttl_seconds: 60.0,
        ends_in_seconds: 50.0,
        lingers: false,
        workers: 4,
    }
}

/// A screen, and the data that an imitated server answers.
struct Rig {
    app: App,
    now: Instant,
    /// The ids of the organizations, in the order of the server.
    ids: Vec<String>,
    leases: Vec<Session>,
    revision: u64,
}

impl Rig {
    fn new<I: ToString>(ids: impl IntoIterator<Item = I>) -> Self {
        let ids = ids.into_iter().map(|id| id.to_string()).collect();
        let app = App::new("http://h:9011");
        let mut rig = Self { app, now: Instant::now(), ids, leases: Vec::new(), revision: 0 };
        rig.fetch();
        rig
    }

    /// Answers the query of the screen.
    fn fetch(&mut self) {
        self.revision += 1;
        let want = self.app.query();
        let list = match &want {
            Query::Organizations { search, offset, .. } => {
                let ids = self.ids.iter().filter(|id| id.contains(search));
                let total = ids.clone().count() as u64;
                let rows = ids.skip(*offset as usize).take(300);
                let organizations = rows.map(|id| organization(id, 3, Some(5))).collect();
                List::Organizations(OrganizationPage { total, organizations })
            }
            Query::Leases { organization: id, .. } => {
                let (total, sessions) = (self.leases.len() as u64, self.leases.clone());
                List::Leases(Some(Box::new(OrganizationLeases {
                    organization: organization(id, 3, Some(5)),
                    page: SessionPage { total, sessions, next: None },
                    refusals: vec![Refusal {
                        at: 0,
                        organization: id.clone(),
                        service: "t1r".into(),
                        api_key: String::new(),
                        trace: String::new(),
                        scope: "organization".into(),
                        reason: "it holds 5 of 5".into(),
                        active: Some(5),
                        max: Some(5),
                        observed: false,
                    }],
                })))
            }
        };
        let news =
            Update { want, overview: overview(self.revision), fleet: None, list: Some(list) };
        self.app.update(news, self.now);
    }

    fn press(&mut self, code: KeyCode) -> Action {
        self.app.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    /// Presses keys one after another. After each key the query of the screen is answered.
    fn type_keys(&mut self, text: &str) {
        for char in text.chars() {
            assert_eq!(self.press(KeyCode::Char(char)), Action::Nothing);
            self.fetch();
        }
    }

    fn lines(&self, width: u16, height: u16) -> Vec<String> {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        draw(&self.app, self.now, area, &mut buffer);
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn picture(&self) -> String {
        self.lines(140, 30).join("\n")
    }

    /// The id in the row of the cursor.
    fn selected(&self) -> String {
        let list = &self.app.organizations;
        list.row(list.selected).map(|row| row.organization.clone()).unwrap_or_default()
    }
}

#[test]
fn the_screen_shows_totals_the_connection_and_a_row_per_organization() {
    let rig = Rig::new(["acme", "closed"]);
    let lines = rig.lines(140, 12);
    assert!(lines[0].starts_with("tgm-session 9.8.7  ● connected to http://h:9011"), "{lines:#?}");
    let totals = "sessions 7   workers 31   organizations 2 of 1000   refused (1 h) 4   attached 3";
    assert_eq!(lines[1], totals);
    assert_eq!(lines[2], "t1r 7/4000   t2w 7   default 7");
    assert!(lines[4].contains("1 of 2 organizations · fullest first"), "{lines:#?}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(&lines[5]),
        ["organization", "plan", "t1r", "t2w", "budget", "used", "refused"]
    );
    assert_eq!(
        words(&lines[6]),
        ["acme", "pro", "███░░", "3/5", "-", "████████░░", "egress_bytes", "75%", "used", "4"]
    );
    assert!(lines[7].starts_with("closed (disabled)"), "{lines:#?}");
}

#[test]
fn no_screen_is_too_small_to_draw_on() {
    let mut rig = Rig::new(0..1000);
    rig.leases = vec![lease(1, "one")];
    for _ in 0..2 {
        for (width, height) in [(0, 0), (1, 1), (10, 3), (20, 8), (40, 5), (80, 24), (500, 100)] {
            rig.lines(width, height);
        }
        rig.press(KeyCode::Enter);
        rig.fetch();
        rig.press(KeyCode::Char('r'));
    }
}

#[test]
fn the_cursor_moves_through_a_thousand_organizations_and_is_always_on_the_screen() {
    let mut rig = Rig::new((0..1000).map(|number| format!("org-{number:04}")));
    for (key, count, selected) in [
        (KeyCode::Down, 450, "org-0450"),
        (KeyCode::PageDown, 20, "org-0650"),
        (KeyCode::Up, 1, "org-0649"),
        (KeyCode::End, 1, "org-0999"),
        (KeyCode::Down, 1, "org-0999"),
        (KeyCode::Home, 1, "org-0000"),
        (KeyCode::Up, 1, "org-0000"),
    ] {
        for _ in 0..count {
            rig.press(key);
            if rig.app.needs_list() {
                rig.fetch();
            }
        }
        assert_eq!(rig.selected(), selected);
        assert!(rig.picture().contains(selected), "{}", rig.picture());
    }
}

#[test]
fn the_cursor_stays_on_an_organization_that_moves_and_on_the_top_when_nothing_was_chosen() {
    let mut rig = Rig::new(["a", "b", "c"]);
    rig.ids = ["c", "a", "b"].map(str::to_owned).into();
    rig.fetch();
    assert_eq!(rig.selected(), "c");
    rig.press(KeyCode::Down);
    assert_eq!(rig.selected(), "a");
    rig.ids = ["b", "c", "a"].map(str::to_owned).into();
    rig.fetch();
    assert_eq!(rig.selected(), "a");
    // If the organization is gone, the cursor keeps its row, or moves to the last row.
    rig.ids = ["b", "c"].map(str::to_owned).into();
    rig.fetch();
    assert_eq!(rig.selected(), "c");
}

#[test]
fn the_server_searches_while_the_text_is_typed_and_escape_clears_it() {
    let mut rig = Rig::new(["north", "west", "south-west"]);
    rig.type_keys("/wesx");
    assert!(rig.picture().contains("0 of 0 organizations"), "{}", rig.picture());
    rig.press(KeyCode::Backspace);
    rig.fetch();
    assert!(rig.picture().contains("1 of 2 organizations"), "{}", rig.picture());
    // In a search, `q` is a letter and does not quit.
    rig.type_keys("q");
    rig.press(KeyCode::Esc);
    assert!(rig.app.needs_list());
    rig.fetch();
    assert!(rig.picture().contains("1 of 3 organizations"), "{}", rig.picture());
    rig.type_keys("/south");
    rig.press(KeyCode::Enter);
    assert!(rig.picture().contains("search \"south\""), "{}", rig.picture());
    assert_eq!(rig.press(KeyCode::Char('q')), Action::Quit);
}

#[test]
fn the_keys_cycle_through_the_orders_in_both_directions() {
    let mut rig = Rig::new(["a"]);
    let mut forward = Vec::new();
    for _ in 0..4 {
        rig.press(KeyCode::Char('s'));
        assert!(rig.app.needs_list());
        rig.fetch();
        forward.push(rig.app.organizations.order);
    }
    use OrganizationOrder::{Active, Fullest, Name, Refused};
    assert_eq!(forward, [Active, Refused, Name, Fullest]);
    for order in [Name, Refused, Active, Fullest] {
        rig.press(KeyCode::Left);
        assert_eq!(rig.app.organizations.order, order);
    }
}

#[test]
fn enter_shows_the_sessions_of_an_organization_and_escape_goes_back() {
    let mut rig = Rig::new(["acme", "other"]);
    rig.leases = vec![lease(1, "trace-one"), lease(2, "trace-two")];
    rig.press(KeyCode::Enter);
    assert!(rig.app.needs_list());
    assert!(rig.picture().contains("asking the server…"));
    rig.fetch();
    rig.now += Duration::from_secs(20);
    let picture = rig.picture();
    for part in [
        "acme   plan pro",
        "███░░ 3/5   by its plan",
        "egress_bytes 75% used   per month, resets 1970-01-01 00:00:00 UTC",
        "organization 4",
        "it holds 5 of 5",
        "2 sessions · youngest first",
        "000000000000000000000001   2m00s t1r            4 trace-one",
    ] {
        assert!(picture.contains(part), "{part:?} is missing:\n{picture}");
    }
    rig.type_keys("/TWO");
    let picture = rig.picture();
    assert!(picture.contains("trace-two") && !picture.contains("trace-one"), "{picture}");
    rig.press(KeyCode::Enter);
    rig.press(KeyCode::Esc);
    assert!(rig.picture().contains("trace-one"));
    rig.press(KeyCode::Esc);
    rig.fetch();
    assert!(rig.picture().contains("1 of 2 organizations"), "{}", rig.picture());
}

#[test]
fn a_session_is_ended_only_after_a_yes_to_the_question_that_names_it() {
    let mut rig = Rig::new(["acme"]);
    rig.leases = vec![lease(1, "one"), lease(2, "two")];
    rig.press(KeyCode::Enter);
    rig.fetch();
    rig.press(KeyCode::Down);
    for no in [KeyCode::Char('n'), KeyCode::Esc, KeyCode::Char('q')] {
        assert_eq!(rig.press(KeyCode::Char('r')), Action::Nothing);
        assert_eq!(rig.press(KeyCode::Enter), Action::Nothing);
        assert!(rig.picture().contains("End this session of acme on t1r?"), "{}", rig.picture());
        assert_eq!(rig.press(no), Action::Nothing);
        assert!(!rig.picture().contains("End this session"));
    }
    rig.press(KeyCode::Char('r'));
    // The answer applies to the lease that the question names, even if the list changes meanwhile.
    rig.leases.remove(1);
    rig.fetch();
    let picture = rig.picture();
    assert!(picture.contains("000000000000000000000002") && picture.contains("4 workers"));
    assert_eq!(rig.press(KeyCode::Char('y')), Action::Revoke(lease(2, "").lease));

    rig.app.ended(Ok(Done { ended: 5, summary: "ended session 2".into() }));
    assert!(rig.picture().contains("ended session 2; 5 leases ended"));
    assert_eq!(rig.app.known_revision(rig.now, OLDEST), None);
    rig.app.ended(Err(Fault::NotFound("there is no lease 2".into())));
    assert!(rig.picture().contains("there is no lease 2"));
}

#[test]
fn a_lost_connection_is_shown_with_its_reason_above_the_last_known_list() {
    let mut rig = Rig::new(["acme"]);
    let lost = || Failure::Unavailable("nobody listens there".into());
    rig.app.mark_lost(lost(), rig.now);
    rig.now += Duration::from_secs(61);
    rig.app.mark_lost(lost(), rig.now);
    let picture = rig.picture();
    let told = "○ connection lost 1m01s ago, trying again: nobody listens there";
    assert!(picture.contains(told) && picture.contains("███░░ 3/5"), "{picture}");
    // The next answer may come from another server, whose revisions start again.
    assert_eq!(rig.app.known_revision(rig.now, OLDEST), None);
    rig.fetch();
    assert!(rig.picture().contains("● connected"), "{}", rig.picture());
}

#[test]
fn an_unchanged_revision_needs_no_new_list_until_the_list_is_old() {
    let mut rig = Rig::new(["acme"]);
    assert_eq!(rig.app.known_revision(rig.now, OLDEST), Some(1));
    assert_eq!(rig.app.known_revision(rig.now + OLDEST, OLDEST), None);
    rig.press(KeyCode::Char('s'));
    assert_eq!(rig.app.known_revision(rig.now, OLDEST), None);
}

#[test]
fn an_answer_to_an_older_query_is_not_shown() {
    let mut rig = Rig::new(["acme", "other"]);
    let late = Update {
        want: rig.app.query(),
        overview: overview(9),
        fleet: None,
        list: Some(List::Organizations(OrganizationPage {
            total: 1,
            organizations: vec![organization("late", 0, None)],
        })),
    };
    rig.type_keys("/oth");
    rig.app.update(late.clone(), rig.now);
    assert_eq!(rig.selected(), "other");
    rig.press(KeyCode::Enter);
    rig.press(KeyCode::Enter);
    rig.app.update(late, rig.now);
    assert!(rig.app.needs_list());
}

#[test]
fn a_problem_of_the_server_is_shown_above_the_list() {
    let mut rig = Rig::new(["acme"]);
    let mut tell = |change: fn(&mut Overview)| {
        let mut overview = overview(2);
        change(&mut overview);
        rig.app
            .update(Update { want: rig.app.query(), overview, fleet: None, list: None }, rig.now);
        rig.lines(140, 12)[3].clone()
    };
    assert_eq!(tell(|_| ()), "");
    assert_eq!(tell(|seen| seen.policy.overrides = 2), "2 overrides in force");
    let refused = tell(|seen| seen.policy.refused = Some("p.toml:2:1: no".into()));
    assert_eq!(refused, "the policy file is refused: p.toml:2:1: no");
    let failed = tell(|seen| {
        (seen.ready, seen.problem) = (false, Some("the disk is full".into()));
    });
    assert_eq!(failed, "the server refuses changes: the disk is full");
}

#[test]
fn the_servers_of_a_fleet_are_shown_with_what_an_operator_should_look_at() {
    let mut rig = Rig::new(["acme"]);
    let fleet = Fleet {
        shared: true,
        leader: Some(FleetLeader { address: "10.0.0.1:9010".into(), epoch: 7 }),
        servers: Vec::new(),
        warnings: vec!["no other server could take over".into()],
    };
    let mut tell = |fleet: Fleet| {
        let (want, overview) = (rig.app.query(), overview(2));
        rig.app.update(Update { want, overview, fleet: Some(fleet), list: None }, rig.now);
        let lines = rig.lines(140, 12);
        (lines[0].clone(), lines[3].clone())
    };
    let (first, state) = tell(fleet.clone());
    assert!(first.ends_with("0 servers, led by 10.0.0.1:9010 in term 7"), "{first}");
    assert_eq!(state, "no other server could take over");
    let (first, state) = tell(Fleet { leader: None, warnings: Vec::new(), ..fleet });
    assert!(first.ends_with("0 servers, nobody leads") && state.is_empty(), "{first} {state}");
}

#[test]
fn control_characters_in_ids_are_escaped() {
    let mut rig = Rig::new(["a\x1b[2Jb"]);
    assert!(rig.picture().contains("a\\u{1b}[2Jb"), "{}", rig.picture());
    rig.leases = vec![lease(1, "t\nrace")];
    rig.press(KeyCode::Enter);
    rig.fetch();
    assert!(rig.picture().contains("t\\nrace"), "{}", rig.picture());
}

#[test]
fn ctrl_c_quits_in_every_state() {
    for keys in ["", "/", "?"] {
        let mut rig = Rig::new(["acme"]);
        for key in keys.chars() {
            rig.press(KeyCode::Char(key));
        }
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(rig.app.press(key), Action::Quit, "after {keys:?}");
    }
}
