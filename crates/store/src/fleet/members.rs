//! The servers of a fleet, and which of them can take over.

use std::time::Duration;

use super::rows::MemberId;

/// A server that was not seen for this long is not asked to take over. Each writes its row about once a
/// second.
const LIVE_WITHIN: Duration = Duration::from_secs(4);

/// A server that was not seen for this long is no member any more.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// How old a row counts of which a server does not know when it was written: too old for a successor.
pub(crate) const UNKNOWN_AGE: Duration = Duration::from_secs(10);

/// A server of a fleet, as its row in the database describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The id of the process.
    pub id: MemberId,
    /// Where the other servers reach it.
    pub address: Box<str>,
    /// The version of its program.
    pub version: Box<str>,
    /// The highest version of the tables that it knows.
    pub tables: u32,
    /// The hash of its policy file.
    pub policy_hash: Box<str>,
    /// Its part in the fleet.
    pub role: MemberRole,
    /// Since when it has this part: seconds since 1970 by the clock of the database.
    pub role_since: i64,
    /// The epoch of the last term that it led.
    pub led: Option<u64>,
    /// How long ago it wrote its row, by the clock of the database.
    pub seen_ago: Duration,
}

/// The part of a member of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// It leads.
    Leader,
    /// It stands by, and can take over.
    Standby,
    /// It is stopping, and takes nothing over.
    Stopping,
}

impl MemberRole {
    /// `leader`, `standby` or `stopping`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Standby => "standby",
            Self::Stopping => "stopping",
        }
    }

    /// The role of this text. One that a later version may have is none to which this version hands over.
    pub(crate) fn from_text(text: &str) -> Self {
        let all = [Self::Leader, Self::Standby];
        all.into_iter().find(|role| role.as_str() == text).unwrap_or(Self::Stopping)
    }
}

/// Why a leader does not hand over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepDownError {
    /// The store belongs to one server alone.
    #[error("the store belongs to this server alone: there is no fleet")]
    Alone,
    /// Another server leads, or none does.
    #[error("this server does not lead its fleet")]
    NotLeader,
    /// Another handover is under way.
    #[error("this server hands over already")]
    UnderWay,
    /// No other server can take over. Nothing changed.
    #[error("no other server of the fleet is ready to take over: this server leads on")]
    NoSuccessor,
    /// The servers that could take over have another policy. Nothing changed.
    #[error(
        "{others} other servers could take over, and none has the policy of this one: load the same \
         policy there, or force it; this server leads on"
    )]
    OtherPolicy {
        /// How many servers could take over.
        others: usize,
    },
    /// The members of the fleet cannot be read. Nothing changed.
    #[error("the database of the fleet does not answer: this server leads on")]
    NoAnswer,
    /// The changes that were made could not be committed in time. The leader goes on.
    #[error("the database does not confirm the last changes: this server leads on")]
    Unconfirmed,
    /// The term ended before the handover.
    #[error("another server took over before the handover")]
    Deposed,
    /// The server is stopping.
    #[error("the server is stopping")]
    Closing,
}

/// Chooses the server that takes over from `own`: a live standby with the same policy, or with any policy
/// if `force` is set. `age` is how old the list is.
pub(crate) fn successor<'m>(
    members: &'m [Member],
    own: MemberId,
    policy_hash: &str,
    force: bool,
    age: Duration,
) -> Result<&'m Member, StepDownError> {
    let ready = members.iter().filter(|member| {
        member.id != own
            && member.role == MemberRole::Standby
            && member.seen_ago + age <= LIVE_WITHIN
    });
    let has_policy = |member: &&Member| *member.policy_hash == *policy_hash;
    let others = ready.clone().count();
    let chosen = ready
        .filter(|member| force || has_policy(member))
        .min_by_key(|member| (!has_policy(member), member.seen_ago, member.id));
    chosen.ok_or(match others {
        0 => StepDownError::NoSuccessor,
        others => StepDownError::OtherPolicy { others },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MemberId = MemberId(1);

    fn member(id: u128, policy_hash: &str) -> Member {
        Member {
            id: MemberId(id),
            address: "10.0.0.2:9010".into(),
            version: "1.0.0".into(),
            tables: 1,
            policy_hash: policy_hash.into(),
            role: MemberRole::Standby,
            role_since: 0,
            led: None,
            seen_ago: Duration::from_secs(1),
        }
    }

    fn choose(members: &[Member], force: bool) -> Result<u128, StepDownError> {
        successor(members, OWN, "same", force, Duration::ZERO).map(|member| member.id.0)
    }

    #[test]
    fn a_live_standby_with_the_same_policy_takes_over() {
        let own = member(1, "same");
        assert_eq!(choose(std::slice::from_ref(&own), true), Err(StepDownError::NoSuccessor));
        assert_eq!(choose(&[own.clone(), member(2, "other"), member(3, "same")], false), Ok(3));
        let old = Member { seen_ago: LIVE_WITHIN + Duration::from_millis(1), ..member(2, "same") };
        let stopping = Member { role: MemberRole::Stopping, ..member(3, "same") };
        let leading = Member { role: MemberRole::Leader, ..member(4, "same") };
        assert_eq!(choose(&[old, stopping, leading], true), Err(StepDownError::NoSuccessor));
        let members = [own, member(2, "same")];
        let aged = successor(&members, OWN, "same", true, LIVE_WITHIN);
        assert_eq!(aged, Err(StepDownError::NoSuccessor), "the list is old");
    }

    #[test]
    fn a_server_with_another_policy_takes_over_only_if_forced() {
        let members = [member(2, "other"), member(3, "else")];
        assert_eq!(choose(&members, false), Err(StepDownError::OtherPolicy { others: 2 }));
        assert_eq!(choose(&members, true), Ok(2));
        let members = [member(2, "other"), member(3, "same")];
        assert_eq!(choose(&members, true), Ok(3), "the same policy comes first");
    }
}
