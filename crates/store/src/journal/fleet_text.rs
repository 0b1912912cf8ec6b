//! The rows of a fleet as text, for an engine that keeps values without columns. Equal rows have equal
//! texts, so an engine can compare them.

use std::str::FromStr;
use std::time::Duration;

use lease::Timestamp;

use crate::fleet::{JournalRow, LeaderId, LeadershipRow, Member, MemberId, MemberRole, Sightings};
use crate::journal::Stamp;
use crate::journal::engine::Facts;

/// The fields of a row in order, separated by one character.
struct Fields<'a>(std::str::SplitN<'a, char>);

impl<'a> Fields<'a> {
    fn of(row: &'a [u8], separator: char, count: usize) -> Option<Self> {
        Some(Self(std::str::from_utf8(row).ok()?.splitn(count, separator)))
    }

    fn text(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn value<T: FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    fn id(&mut self) -> Option<u128> {
        id(self.text()?)
    }
}

/// Reads the id of a term or of a member.
pub(crate) fn id(text: &str) -> Option<u128> {
    u128::from_str_radix(text, 16).ok()
}

pub(crate) fn stamp_text(Stamp { time, next_serial }: Stamp) -> Vec<u8> {
    format!("{} {next_serial}", time.as_nanos()).into()
}

pub(crate) fn stamp(row: &[u8]) -> Option<Stamp> {
    let mut fields = Fields::of(row, ' ', 2)?;
    Some(Stamp { time: Timestamp::from_nanos(fields.value()?), next_serial: fields.value()? })
}

pub(crate) fn journal_text(JournalRow { leader, sequence, attempt }: JournalRow) -> Vec<u8> {
    format!("{leader} {sequence} {attempt}").into()
}

pub(crate) fn journal_row(row: &[u8]) -> Option<JournalRow> {
    let mut fields = Fields::of(row, ' ', 3)?;
    Some(JournalRow {
        leader: LeaderId(fields.id()?),
        sequence: fields.value()?,
        attempt: fields.value()?,
    })
}

pub(crate) fn leadership_text(row: &LeadershipRow) -> Vec<u8> {
    let LeadershipRow { epoch, leader, renewals, leader_ttl, address, released, successor } = row;
    let ttl = leader_ttl.as_millis();
    let successor = successor.map_or_else(|| "-".to_owned(), |id| id.to_string());
    format!("{epoch} {leader} {renewals} {ttl} {released} {successor} {address}").into()
}

pub(crate) fn leadership_row(row: &[u8]) -> Option<LeadershipRow> {
    let mut fields = Fields::of(row, ' ', 7)?;
    Some(LeadershipRow {
        epoch: fields.value()?,
        leader: LeaderId(fields.id()?),
        renewals: fields.value()?,
        leader_ttl: Duration::from_millis(fields.value()?),
        released: fields.value()?,
        successor: match fields.text()? {
            "-" => None,
            text => Some(MemberId(id(text)?)),
        },
        address: fields.text()?.into(),
    })
}

/// The row of a member of this version: a line for each field. `tables` is the version of the tables
/// that it knows.
pub(crate) fn member_text(facts: &Facts<'_>, tables: i32) -> Vec<u8> {
    let Facts { id: _, address, policy_hash, role, role_since, led } = facts;
    let (role, since, version) = (role.as_str(), role_since.as_unix(), env!("CARGO_PKG_VERSION"));
    let led = led.map_or_else(String::new, |epoch| epoch.to_string());
    format!("{address}\n{version}\n{tables}\n{policy_hash}\n{role}\n{since}\n{led}").into()
}

/// Reads the row of a member. A later version may add lines.
fn member(id: MemberId, row: &[u8], seen_ago: Duration) -> Option<Member> {
    let mut fields = Fields::of(row, '\n', usize::MAX)?;
    Some(Member {
        id,
        address: fields.text()?.into(),
        version: fields.text()?.into(),
        tables: fields.value()?,
        policy_hash: fields.text()?.into(),
        role: MemberRole::from_text(fields.text()?),
        role_since: fields.value()?,
        led: fields.value(),
        seen_ago,
    })
}

/// The members of a fleet by their rows, ordered by address: the text of each id, the revision of the row, and
/// the row. [`Sightings::observe`] says what the others are.
pub(crate) fn members<'a>(
    rows: impl Iterator<Item = (&'a [u8], i64, &'a [u8])>,
    sightings: &mut Sightings,
    own: Option<MemberId>,
    now: Duration,
) -> Vec<Member> {
    let id_of = |text| id(std::str::from_utf8(text).ok()?).map(MemberId);
    let (revisions, rows): (Vec<_>, Vec<_>) =
        rows.filter_map(|(id, revision, row)| Some(((id_of(id)?, revision), row))).unzip();
    let ages = sightings.observe(&revisions, own, now);
    let read = |(((id, _), row), age): ((&(MemberId, i64), &'a [u8]), _)| member(*id, row, age);
    let mut members: Vec<_> = revisions.iter().zip(rows).zip(ages).filter_map(read).collect();
    members.sort_by(|one, other| (&one.address, one.id).cmp(&(&other.address, other.id)));
    members
}

#[cfg(test)]
mod tests {
    use lease::WallTime;

    use super::*;

    #[test]
    fn rows_of_a_fleet_become_text_and_come_back() {
        let journal = JournalRow { leader: LeaderId(u128::MAX), sequence: u64::MAX, attempt: 3 };
        assert_eq!(journal_row(&journal_text(journal)), Some(journal));
        let stamped = Stamp { time: Timestamp::from_nanos(u64::MAX), next_serial: 7 };
        assert_eq!(stamp(&stamp_text(stamped)), Some(stamped));
        let row = LeadershipRow {
            epoch: 9,
            leader: LeaderId(1),
            renewals: u64::MAX,
            leader_ttl: Duration::from_millis(5_001),
            address: "[::1]:9010".into(),
            released: false,
            successor: Some(MemberId(2)),
        };
        assert_eq!(leadership_row(&leadership_text(&row)), Some(row.clone()));
        let new = LeadershipRow { address: "".into(), successor: None, released: true, ..row };
        assert_eq!(leadership_row(&leadership_text(&new)), Some(new));
        let facts = Facts {
            id: MemberId(5),
            address: "10.0.0.1:9010",
            policy_hash: "",
            role: MemberRole::Standby,
            role_since: WallTime::from_unix(1_700_000_000),
            led: None,
        };
        let read = member(MemberId(5), &member_text(&facts, 4), Duration::from_secs(1)).unwrap();
        assert_eq!((&*read.address, &*read.policy_hash, read.tables), ("10.0.0.1:9010", "", 4));
        assert_eq!((read.role, read.role_since, read.led), (facts.role, 1_700_000_000, None));
    }

    #[test]
    fn what_is_no_row_of_a_fleet_is_none() {
        for text in ["", "x", "1 2", "\u{ff}", "0 0 0 0 perhaps - a"] {
            assert_eq!(leadership_row(text.as_bytes()), None, "{text:?}");
            assert_eq!(journal_row(text.as_bytes()), None, "{text:?}");
            assert_eq!(member(MemberId(1), text.as_bytes(), Duration::ZERO), None, "{text:?}");
        }
        assert_eq!(stamp(b"1 2 3"), None);
        assert_eq!(journal_row(&[0xff]), None);
    }
}
