//! The two keys that say who leads, and the keys of the members.

use std::time::{Duration, Instant};

use super::client::{Client, change, equals, found, get, get_all, is_missing, put, value};
use super::messages::{Compare, RequestOp, TxnResponse};
use super::settings::Settings;
use super::{EtcdJournal, counters, staged};
use crate::error::Error;
use crate::fleet::{
    Answer, FORGOTTEN_AFTER, FleetSecret, Member, MemberId, Request, Rows as Seen, Sightings,
    UNKNOWN_AGE,
};
use crate::journal::Snapshot;
use crate::journal::engine::{Elections, Facts, FleetJournal, Meeting, Unanswered};
use crate::journal::fleet_text::{
    journal_row, journal_text, leadership_row, leadership_text, member_text, members,
};
use crate::journal::keys::{self, KeyChange, TABLES};
use crate::options::random_bytes;

/// The version of the keys.
pub(super) const VERSION: i32 = 1;

/// The beginning of the keys of the members.
const MEMBERS: &str = "members/";

/// The connection of a server for the keys that say who leads, and for those of the members.
#[derive(Debug)]
pub(crate) struct EtcdElections {
    client: Client,
    secret: FleetSecret,
    sightings: Sightings,
    began: Instant,
}

impl EtcdElections {
    /// Connects, and creates the keys if there are none. `secret` is that of a new fleet.
    pub(crate) fn open(
        settings: Settings,
        leader_ttl: Duration,
        secret: FleetSecret,
        within: Duration,
    ) -> Result<Self, Error> {
        let mut client = Client::new(settings)?;
        let mut prepare = || {
            if look(&mut client, within)?.is_none() {
                let (new, empty) = (Seen::new(leader_ttl), Snapshot::default());
                // Two servers may start at once: one of them creates the keys.
                write_all(&mut client, None, &new, Some(secret), empty, within)?;
            }
            let read = client.read(vec![get(client.key("secret"))], within)?;
            let secret = text(&read, 0).and_then(FleetSecret::from_text);
            secret.ok_or_else(|| Unanswered::Failed("its secret cannot be read".to_owned()))
        };
        let secret = prepare().map_err(|error| client.error(error))?;
        let sightings = Sightings::new(UNKNOWN_AGE);
        Ok(Self { client, secret, sightings, began: Instant::now() })
    }
}

/// Both rows; `None` if there are no keys of a fleet.
pub(super) fn look(client: &mut Client, within: Duration) -> Result<Option<Seen>, Unanswered> {
    seen(&client.read(reading(client), within)?, 0)
}

/// The operations that read both rows, for [`seen`].
fn reading(client: &Client) -> Vec<RequestOp> {
    ["version", "leadership", "journal"].map(|name| get(client.key(name))).into()
}

/// Both rows, from the answers from number `at` on; `None` if there are no keys of a fleet.
fn seen(answer: &TxnResponse, at: usize) -> Result<Option<Seen>, Unanswered> {
    let Some(version) = text(answer, at) else { return Ok(None) };
    if version != VERSION.to_string() {
        let known = format!("and this program knows version {VERSION}");
        return Err(Unanswered::Failed(format!("its keys have version {version}, {known}")));
    }
    let leadership = value(answer, at + 1).and_then(leadership_row);
    let rows = leadership.zip(value(answer, at + 2).and_then(journal_row));
    let rows = rows.map(|(leadership, journal)| Some(Seen { leadership, journal }));
    rows.ok_or_else(|| Unanswered::Failed("the rows of its fleet cannot be read".to_owned()))
}

fn text(answer: &TxnResponse, at: usize) -> Option<&str> {
    std::str::from_utf8(value(answer, at)?).ok()
}

/// The comparison of both rows.
fn both(client: &Client, seen: &Seen) -> Vec<Compare> {
    vec![
        equals(client.key("leadership"), leadership_text(&seen.leadership)),
        equals(client.key("journal"), journal_text(seen.journal)),
    ]
}

/// Replaces both rows and all content, as one change, if both rows equal `before`, or if there are no keys
/// for `None`. Returns whether it did. `secret` is that of a new fleet.
pub(super) fn write_all(
    client: &mut Client,
    before: Option<&Seen>,
    new: &Seen,
    secret: Option<FleetSecret>,
    Snapshot { rows, stamp }: Snapshot,
    within: Duration,
) -> Result<bool, Unanswered> {
    staged::finish(client, within)?;
    let compare = match before {
        Some(before) => both(client, before),
        None => vec![is_missing(client.key("version"))],
    };
    let mut head = counters(client, new.journal, stamp);
    head.push(put(client.key("leadership"), leadership_text(&new.leadership)));
    head.push(put(client.key("version"), VERSION.to_string().into()));
    head.extend(secret.map(|secret| put(client.key("secret"), secret.to_text().into())));
    // A part of its own: one transaction cannot write a key that it removes.
    let clear = TABLES.map(|table| change(KeyChange::remove_all(client.key(table))));
    let mut parts = vec![clear.into()];
    parts.extend(staged::parts(keys::changes(&client.key(""), &rows, stamp.time)));
    let id: [u8; 16] = random_bytes().map_err(|error| Unanswered::Failed(error.to_string()))?;
    let id = format!("{:032x}", u128::from_be_bytes(id));
    let written = staged::write(client, &id, compare, head, parts, within)?;
    staged::finish(client, within)?;
    Ok(written.is_some())
}

/// Reads the members, and first writes the row of this server, if it is one. `sightings` has what it saw
/// since `began`.
pub(super) fn meet(
    client: &mut Client,
    own: Option<&Facts<'_>>,
    sightings: &mut Sightings,
    began: Instant,
    within: Duration,
) -> Result<Vec<Member>, Unanswered> {
    let write = own.map(|facts| put(member_key(client, facts.id), member_text(facts, VERSION)));
    let at = usize::from(write.is_some());
    let read = get_all(client.key(MEMBERS));
    let answer = client.read(write.into_iter().chain([read]).collect(), within)?;
    let prefix = client.key(MEMBERS).len();
    let rows = found(&answer, at).iter();
    let rows = rows.map(|row| (&row.key[prefix..], row.mod_revision, &*row.value));
    Ok(members(rows, sightings, own.map(|facts| facts.id), began.elapsed()))
}

fn member_key(client: &Client, id: MemberId) -> Vec<u8> {
    client.key(&format!("{MEMBERS}{id}"))
}

impl Elections for EtcdElections {
    fn secret(&self) -> FleetSecret {
        self.secret
    }

    fn newest_version(&self) -> i32 {
        VERSION
    }

    fn carry_out(&mut self, request: &Request, within: Duration) -> Result<Answer, Unanswered> {
        let client = &mut self.client;
        let key = client.key("leadership");
        let (compare, mut change) = match request {
            Request::Replace { seen, new } => {
                let is_same = equals(key.clone(), leadership_text(seen));
                (vec![is_same], vec![put(key, leadership_text(new))])
            }
            // Nothing holds a lock in etcd.
            Request::TakeOver { seen, new, end_blocker: _ } => {
                let journal = put(client.key("journal"), journal_text(new.journal));
                (both(client, seen), vec![put(key, leadership_text(&new.leadership)), journal])
            }
            Request::Read | Request::Rewrite { .. } => (vec![], vec![]),
        };
        let (changes, read) = (change.len(), reading(client));
        change.extend(read.clone());
        let answer = client.transact(compare, change, read, within)?;
        let rows =
            seen(&answer, if answer.succeeded { changes } else { 0 })?.ok_or_else(no_keys)?;
        Ok(match (answer.succeeded, changes) {
            (true, 0) => Answer::Read(rows),
            (true, _) => Answer::Replaced(rows),
            (false, _) => Answer::Differ(rows),
        })
    }

    fn rewrite(
        &mut self,
        seen: &Seen,
        new: &Seen,
        content: Snapshot,
        within: Duration,
    ) -> Result<Answer, Unanswered> {
        if write_all(&mut self.client, Some(seen), new, None, content, within)? {
            return Ok(Answer::Replaced(new.clone()));
        }
        Ok(Answer::Differ(look(&mut self.client, within)?.ok_or_else(no_keys)?))
    }

    fn meet(&mut self, facts: &Facts<'_>, within: Duration) -> Result<Meeting, Unanswered> {
        let Self { client, sightings, began, .. } = self;
        let mut members = meet(client, Some(facts), sightings, *began, within)?;
        for forgotten in members.extract_if(.., |member| member.seen_ago > FORGOTTEN_AFTER) {
            self.leave(forgotten.id, within)?;
        }
        Ok(Meeting { members, tables: VERSION })
    }

    fn leave(&mut self, id: MemberId, within: Duration) -> Result<(), Unanswered> {
        let remove = change(KeyChange::remove_all(member_key(&self.client, id)));
        self.client.transact(vec![], vec![remove], vec![], within).map(drop)
    }

    fn journal(&self) -> Result<Box<dyn FleetJournal>, Error> {
        Ok(Box::new(EtcdJournal::new(self.client.settings().clone())?))
    }
}

pub(super) fn no_keys() -> Unanswered {
    Unanswered::Failed("it has no keys of a fleet".to_owned())
}
