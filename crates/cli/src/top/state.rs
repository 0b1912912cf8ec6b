//! The state of the screen: data and cursors. Time is an argument; nothing here does I/O.

use std::time::{Duration, Instant};

use tgm_session_server::api::{
    AgeOrder, Done, Fleet, LeaseKinds, Organization, OrganizationOrder, OrganizationPage, Overview,
    Session,
};

use super::fetch::{List, OrganizationLeases, Query, Update, WINDOW};
use crate::failure::Failure;
use crate::operator::admin::Fault;
use crate::output::counted;

/// The whole screen.
#[derive(Debug)]
pub(super) struct App {
    /// The URL of the admin API.
    pub(super) place: String,
    pub(super) link: Link,
    pub(super) overview: Option<Overview>,
    pub(super) fleet: Option<Fleet>,
    pub(super) organizations: Organizations,
    /// The organization that was entered.
    pub(super) leases: Option<Leases>,
    pub(super) mode: Mode,
    /// The result of the last action.
    pub(super) notice: Option<Notice>,
    /// The query of the list on the screen, its revision, and when it came.
    seen: Option<(Query, u64, Instant)>,
}

/// Whether the server answers.
#[derive(Debug)]
pub(super) enum Link {
    /// The last call was answered.
    Connected,
    /// The last call failed.
    Lost {
        /// Since when.
        since: Instant,
        /// Why, in words.
        why: String,
    },
}

/// What keys do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// They move the cursor and start actions.
    Browse,
    /// They edit the search.
    Search,
    /// They confirm that this lease ends, or keep it.
    Confirm(Revocation),
    /// The next one closes the help.
    Help,
}

/// The lease of a revocation that is not yet confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Revocation {
    /// Its number.
    pub(super) lease: String,
    /// What it is, in words.
    pub(super) what: String,
    /// How many workers end with it.
    pub(super) workers: u64,
}

/// The result of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) text: String,
    pub(super) good: bool,
}

/// The list of organizations.
#[derive(Debug, Default)]
pub(super) struct Organizations {
    pub(super) order: OrganizationOrder,
    pub(super) search: String,
    /// The index among all organizations that match.
    pub(super) selected: usize,
    /// The selected organization, once a key has selected one: the cursor follows it when the order changes.
    chosen: Option<String>,
    pub(super) total: u64,
    pub(super) offset: usize,
    pub(super) rows: Vec<Organization>,
}

/// One organization and its leases.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) organization: String,
    pub(super) order: AgeOrder,
    pub(super) kinds: LeaseKinds,
    pub(super) search: String,
    /// The index among the leases that match the search.
    pub(super) selected: usize,
    chosen: Option<String>,
    /// The data of the last answer, and when it came; `None` before the first answer.
    pub(super) held: Option<(Box<OrganizationLeases>, Instant)>,
    /// Whether the server does not know this organization any more.
    pub(super) gone: bool,
}

/// A move of the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    By(isize),
    First,
    Last,
}

impl Move {
    /// The index after a move from `from` among `count` rows.
    fn from(self, from: usize, count: usize) -> usize {
        let last = count.saturating_sub(1);
        match self {
            Self::By(rows) => from.saturating_add_signed(rows).min(last),
            Self::First => 0,
            Self::Last => last,
        }
    }
}

impl App {
    /// An empty screen for the server at `place`.
    pub(super) fn new(place: &str) -> Self {
        Self {
            place: place.to_owned(),
            link: Link::Connected,
            overview: None,
            fleet: None,
            organizations: Organizations::default(),
            leases: None,
            mode: Mode::Browse,
            notice: None,
            seen: None,
        }
    }

    /// The query of the list that is shown.
    pub(super) fn query(&self) -> Query {
        match &self.leases {
            Some(leases) => Query::Leases {
                organization: leases.organization.clone(),
                order: leases.order,
                kinds: leases.kinds,
            },
            None => self.organizations.query(),
        }
    }

    /// Whether the list on the screen belongs to another query.
    pub(super) fn needs_list(&self) -> bool {
        self.seen.as_ref().is_none_or(|(want, ..)| *want != self.query())
    }

    /// Whether the last call was answered.
    pub(super) const fn is_connected(&self) -> bool {
        matches!(self.link, Link::Connected)
    }

    /// The revision of the list, unless the list belongs to another query or is older than `oldest`.
    pub(super) fn known_revision(&self, now: Instant, oldest: Duration) -> Option<u64> {
        let (want, revision, at) = self.seen.as_ref()?;
        (*want == self.query() && now.saturating_duration_since(*at) < oldest).then_some(*revision)
    }

    /// Takes an answer of the server.
    pub(super) fn update(&mut self, news: Update, now: Instant) {
        let Update { want, overview, fleet, list } = news;
        self.link = Link::Connected;
        let revision = overview.revision;
        (self.overview, self.fleet) = (Some(overview), fleet);
        let Some(list) = list else { return };
        let taken = match (list, &want, &mut self.leases) {
            (List::Organizations(page), Query::Organizations { offset, .. }, _) => {
                self.organizations.matches(&want) && {
                    self.organizations.take(page, *offset as usize);
                    true
                }
            }
            (List::Leases(held), _, Some(leases)) => {
                leases.matches(&want) && {
                    leases.take(held, now);
                    true
                }
            }
            _ => false,
        };
        if taken {
            self.seen = Some((want, revision, now));
        }
    }

    /// Records that the server did not answer.
    pub(super) fn mark_lost(&mut self, failure: Failure, now: Instant) {
        let why = failure.message().unwrap_or("no answer").to_owned();
        let since = match self.link {
            Link::Connected => now,
            Link::Lost { since, .. } => since,
        };
        self.link = Link::Lost { since, why };
        // A server that comes back may be another one, whose revisions begin anew.
        self.seen = None;
    }

    /// Records the result of a revocation.
    pub(super) fn ended(&mut self, outcome: Result<Done, Fault>) {
        self.notice = Some(match outcome {
            Ok(Done { ended, summary }) => {
                Notice { text: format!("{summary}; {} ended", counted(ended, "lease")), good: true }
            }
            Err(fault) => {
                let failure = Failure::from(fault);
                let why = failure.message().unwrap_or("no answer").to_owned();
                Notice { text: why, good: false }
            }
        });
        self.seen = None;
    }

    /// Says that the previous revocation is still in flight.
    pub(super) fn refuse_second_revocation(&mut self) {
        let text = "not yet: the server has not answered the previous revocation".to_owned();
        self.notice = Some(Notice { text, good: false });
    }

    /// Moves the cursor of the list on the screen.
    pub(super) fn move_cursor(&mut self, to: Move) {
        match &mut self.leases {
            Some(leases) => leases.move_cursor(to),
            None => self.organizations.move_cursor(to),
        }
    }

    /// Shows what the selected organization holds.
    pub(super) fn enter(&mut self) {
        if self.leases.is_none()
            && let Some(row) = self.organizations.selected_row()
        {
            let organization = row.organization.clone();
            self.organizations.chosen = Some(organization.clone());
            self.leases = Some(Leases::new(organization));
        }
    }

    /// Clears the search; without a search, leaves the list of leases.
    pub(super) fn back(&mut self) {
        let search = self.search_mut();
        if search.is_empty() {
            self.leases = None;
        } else {
            search.clear();
            self.select_first();
        }
    }

    /// The search of the list on the screen.
    pub(super) fn search(&self) -> &str {
        match &self.leases {
            Some(leases) => &leases.search,
            None => &self.organizations.search,
        }
    }

    /// The search, to be changed. Call [`App::select_first`] after a change.
    pub(super) fn search_mut(&mut self) -> &mut String {
        match &mut self.leases {
            Some(leases) => &mut leases.search,
            None => &mut self.organizations.search,
        }
    }

    /// Selects the first row, after a change of search or order.
    pub(super) fn select_first(&mut self) {
        match &mut self.leases {
            Some(leases) => (leases.selected, leases.chosen) = (0, None),
            None => (self.organizations.selected, self.organizations.chosen) = (0, None),
        }
    }

    /// Switches to the next order of the list, or to the previous one.
    pub(super) fn sort(&mut self, forward: bool) {
        match &mut self.leases {
            Some(leases) => {
                leases.order = match leases.order {
                    AgeOrder::Newest => AgeOrder::Oldest,
                    AgeOrder::Oldest => AgeOrder::Newest,
                };
            }
            None => self.organizations.order = next_order(self.organizations.order, forward),
        }
        self.select_first();
    }

    /// Asks for a confirmation that the selected lease ends.
    pub(super) fn ask_to_revoke(&mut self) {
        let Some(leases) = &self.leases else {
            let text =
                "Enter shows the sessions of an organization; r ends the selected one".into();
            self.notice = Some(Notice { text, good: true });
            return;
        };
        if let Some(lease) = leases.visible().get(leases.selected) {
            self.mode = Mode::Confirm(Revocation {
                lease: lease.lease.clone(),
                what: format!("{} of {} on {}", lease.kind, lease.organization, lease.service),
                workers: lease.workers,
            });
        }
    }
}

/// The next or previous order; after the last comes the first.
const fn next_order(order: OrganizationOrder, forward: bool) -> OrganizationOrder {
    use OrganizationOrder::{Active, Fullest, Name, Refused};
    match (order, forward) {
        (Fullest, true) | (Refused, false) => Active,
        (Active, true) | (Name, false) => Refused,
        (Refused, true) | (Fullest, false) => Name,
        (Name, true) | (Active, false) => Fullest,
    }
}

impl Organizations {
    /// A window around the cursor that moves in steps, so that most moves need no call.
    fn query(&self) -> Query {
        let step = WINDOW as usize / 3;
        let offset = (self.selected / step).saturating_sub(1) * step;
        Query::Organizations {
            search: self.search.clone(),
            order: self.order,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
        }
    }

    fn matches(&self, want: &Query) -> bool {
        matches!(want, Query::Organizations { search, order, .. }
            if *search == self.search && *order == self.order)
    }

    fn take(&mut self, page: OrganizationPage, offset: usize) {
        self.total = page.total;
        self.rows = page.organizations;
        self.offset = offset;
        let place = self
            .chosen
            .as_ref()
            .and_then(|chosen| self.rows.iter().position(|row| row.organization == *chosen));
        match place {
            Some(place) => self.selected = offset + place,
            None => self.selected = self.selected.min(self.count().saturating_sub(1)),
        }
    }

    /// How many match.
    pub(super) fn count(&self) -> usize {
        usize::try_from(self.total).unwrap_or(usize::MAX)
    }

    /// The row at `index`, where it is known.
    pub(super) fn row(&self, index: usize) -> Option<&Organization> {
        self.rows.get(index.checked_sub(self.offset)?)
    }

    fn selected_row(&self) -> Option<&Organization> {
        self.row(self.selected)
    }

    fn move_cursor(&mut self, to: Move) {
        self.selected = to.from(self.selected, self.count());
        self.chosen = self.selected_row().map(|row| row.organization.clone());
        if to == Move::First {
            // The cursor stays on the first row, also when another organization comes first.
            self.chosen = None;
        }
    }
}

impl Leases {
    fn new(organization: String) -> Self {
        Self {
            organization,
            order: AgeOrder::default(),
            kinds: LeaseKinds::default(),
            search: String::new(),
            selected: 0,
            chosen: None,
            held: None,
            gone: false,
        }
    }

    fn matches(&self, want: &Query) -> bool {
        matches!(want, Query::Leases { organization, order, kinds }
            if *organization == self.organization && *order == self.order && *kinds == self.kinds)
    }

    fn take(&mut self, held: Option<Box<OrganizationLeases>>, now: Instant) {
        self.gone = held.is_none();
        self.held = held.map(|held| (held, now));
        let visible = self.visible();
        let place = self
            .chosen
            .as_ref()
            .and_then(|chosen| visible.iter().position(|row| row.lease == *chosen));
        let last = visible.len().saturating_sub(1);
        match place {
            Some(place) => self.selected = place,
            None => self.selected = self.selected.min(last),
        }
    }

    /// The leases that match the search.
    pub(super) fn visible(&self) -> Vec<&Session> {
        let Some((held, _)) = &self.held else { return Vec::new() };
        let search = self.search.to_ascii_lowercase();
        let passes = |text: &str| text.to_ascii_lowercase().contains(&search);
        let rows = held.page.sessions.iter();
        rows.filter(|lease| {
            let indexer = lease.indexer.as_deref().unwrap_or_default();
            [&*lease.lease, &lease.service, &lease.api_key, &lease.trace, indexer]
                .into_iter()
                .any(passes)
        })
        .collect()
    }

    /// Switches to the next kind of leases.
    pub(super) fn next_kinds(&mut self) {
        self.kinds = match self.kinds {
            LeaseKinds::Session => LeaseKinds::Worker,
            LeaseKinds::Worker => LeaseKinds::Any,
            LeaseKinds::Any => LeaseKinds::Session,
        };
        (self.selected, self.chosen) = (0, None);
    }

    fn move_cursor(&mut self, to: Move) {
        let visible = self.visible();
        let selected = to.from(self.selected, visible.len());
        let chosen = visible.get(selected).map(|row| row.lease.clone());
        self.selected = selected;
        self.chosen = if to == Move::First { None } else { chosen };
    }
}
