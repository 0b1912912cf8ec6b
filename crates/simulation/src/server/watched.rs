//! The leadership row as one server has seen it, apart from the count of its state machine.

use std::collections::BTreeMap;
use std::time::Duration;

use store::fleet::{Answer, LeaderId, LeadershipRow, MemberId, Rows};

#[derive(Debug)]
struct Seen {
    row: LeadershipRow,
    /// Since when it is unchanged, without a failure and without a gap between answers.
    since: Duration,
    last_answer: Duration,
}

/// What one server has seen of the leadership row.
#[derive(Debug, Default)]
pub(super) struct Watched {
    seen: Option<Seen>,
    /// The row that the last answer to a standby showed, and who led earlier terms.
    last: Option<LeadershipRow>,
    terms: BTreeMap<u64, (LeaderId, u64)>,
    /// The row was followed by a later term, which the database has lost.
    is_set_back: bool,
}

impl Watched {
    /// Notes an answer; `leads` tells whether the server leads. Returns what the rows are.
    pub(super) fn observe<'a>(
        &mut self,
        answer: &'a Answer,
        leads: bool,
        now: Duration,
    ) -> Option<&'a Rows> {
        let rows = match answer {
            Answer::Read(rows) | Answer::Replaced(rows) | Answer::Differ(rows) => rows,
            Answer::Failed => {
                self.seen = None;
                return None;
            }
            Answer::Blocked => {
                // The row cannot have changed.
                if let Some(seen) = &mut self.seen {
                    seen.last_answer = now;
                }
                return None;
            }
        };
        let row = &rows.leadership;
        let unchanged = self.seen.take().filter(|seen| {
            seen.row == *row && now.saturating_sub(seen.last_answer) <= row.leader_ttl / 4
        });
        let since = unchanged.map_or(now, |seen| seen.since);
        self.seen = Some(Seen { row: row.clone(), since, last_answer: now });
        if !leads {
            self.compare_with_earlier(row);
        }
        Some(rows)
    }

    fn compare_with_earlier(&mut self, row: &LeadershipRow) {
        if self.last.as_ref() != Some(row) {
            let is_earlier = self.last.as_ref().is_some_and(|last| last.epoch > row.epoch);
            let known = self.terms.get(&row.epoch);
            self.is_set_back = is_earlier
                && known.is_some_and(|(leader, renewals)| {
                    *leader == row.leader && row.renewals <= *renewals
                });
            self.last = Some(row.clone());
        }
        self.terms.insert(row.epoch, (row.leader, row.renewals));
    }

    /// Whether the server `member` may take this row over now.
    pub(super) fn is_due(&self, row: &LeadershipRow, member: MemberId, now: Duration) -> bool {
        self.seen.as_ref().is_some_and(|seen| {
            let is_for_me = row.successor.is_none_or(|successor| successor == member);
            let at_once = row.released && is_for_me && !self.is_set_back;
            seen.row == *row
                && now.saturating_sub(seen.last_answer) <= row.leader_ttl / 4
                && (at_once || now >= seen.since + row.leader_ttl * 11 / 10)
        })
    }
}
