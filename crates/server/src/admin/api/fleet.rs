//! The servers of the fleet, and handing the leadership over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use store::Store;
use store::fleet::{Member, MemberId, MemberRole};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Peer;
use super::edge::{Failure, Json, Query, answer_change};
use super::model::{Done, Fleet, FleetLeader, FleetServer, Problem, StepDownQuery};
use crate::admin::state::Admin;
use crate::operator::By;

/// A server that has not written for longer than this is taken for dead.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(fleet)).routes(routes!(step_down))
}

/// The servers that share the store. Every server answers for itself.
#[utoipa::path(
    get,
    path = "/api/fleet",
    tag = "fleet",
    responses((status = 200, description = "The servers, about a second old", body = Fleet)),
)]
async fn fleet(State(admin): State<Arc<Admin>>) -> Json<Fleet> {
    Json(fleet_of(&admin.store))
}

/// Hands the leadership over to another server. No call fails, and no session ends.
#[utoipa::path(
    post,
    path = "/api/fleet/step-down",
    tag = "fleet",
    params(StepDownQuery),
    responses(
        (status = 200, description = "Another server leads, or would", body = Done),
        (status = 409, description = "There is no fleet, this server does not lead it, or no other server \
                                      is ready with the same policy", body = Problem),
        (status = 503, description = "The database does not answer", body = Problem),
    ),
)]
async fn step_down(
    State(admin): State<Arc<Admin>>,
    Peer(peer): Peer,
    Query(StepDownQuery { force, dry_run, note }): Query<StepDownQuery>,
) -> Result<Json<Done>, Failure> {
    let by = By { from: &peer.to_string(), note: &note };
    if dry_run {
        return Ok(Json(admin.operator.plan_step_down(force).await?));
    }
    answer_change(&admin, admin.operator.step_down(force, by).await)
}

/// The fleet of `store`.
fn fleet_of(store: &Store) -> Fleet {
    let Some((_, leader)) = store.fleet() else {
        return Fleet { shared: false, leader: None, servers: Vec::new(), warnings: Vec::new() };
    };
    let leader = leader
        .borrow()
        .as_ref()
        .map(|leader| FleetLeader { address: leader.address.to_string(), epoch: leader.epoch });
    let members = store.members();
    let warnings = warnings(leader.is_some(), &members);
    let servers = members.into_iter().map(|member| server(member, store.member())).collect();
    Fleet { shared: true, leader, servers, warnings }
}

fn server(member: Member, own: Option<MemberId>) -> FleetServer {
    FleetServer {
        id: member.id.to_string(),
        address: member.address.into(),
        role: member.role.as_str().to_owned(),
        role_since: member.role_since,
        epoch: member.led,
        version: member.version.into(),
        policy_hash: member.policy_hash.into(),
        seen_seconds_ago: member.seen_ago.as_secs_f64(),
        is_self: Some(member.id) == own,
    }
}

/// The servers that are not taken for dead.
pub(crate) fn alive(members: &[Member]) -> impl Iterator<Item = &Member> {
    members.iter().filter(|member| member.seen_ago <= ALIVE_WITHIN)
}

/// What an operator should look at.
fn warnings(is_led: bool, members: &[Member]) -> Vec<String> {
    let alive: Vec<_> = alive(members).collect();
    let mut warnings = Vec::new();
    if !is_led {
        warnings.push("no server leads the fleet, or none is known to".to_owned());
    }
    if !alive.iter().any(|member| member.role == MemberRole::Standby) {
        warnings.push("no other server could take over: start one more".to_owned());
    }
    let mut warn_of_different = |what: &str, of: fn(&Member) -> &str, then: &str| {
        let mut by_value = BTreeMap::<&str, Vec<&str>>::new();
        // A server that has just started has not said yet what policy it has.
        for member in alive.iter().filter(|member| !of(member).is_empty()) {
            by_value.entry(of(member)).or_default().push(&member.address);
        }
        if by_value.len() > 1 {
            let listed: Vec<_> = by_value
                .iter()
                .map(|(value, servers)| format!("{value} at {}", servers.join(" and ")))
                .collect();
            warnings
                .push(format!("the servers have different {what}: {}{then}", listed.join(", ")));
        }
    };
    let leader_counts = "; that of the leader counts";
    warn_of_different("policies", |member| &member.policy_hash, leader_counts);
    warn_of_different("versions", |member| &member.version, "");
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u128, role: MemberRole, policy: &str) -> Member {
        Member {
            id: MemberId(number),
            address: format!("10.0.0.{number}:9010").into(),
            version: "1.0.0".into(),
            tables: 1,
            policy_hash: policy.into(),
            role,
            role_since: 0,
            led: None,
            seen_ago: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_fleet_whose_servers_agree_has_no_warnings() {
        let members = [member(1, MemberRole::Leader, "a"), member(2, MemberRole::Standby, "a")];
        assert_eq!(warnings(true, &members), [""; 0]);
    }

    #[test]
    fn an_operator_is_warned_of_what_a_takeover_would_change_or_lack() {
        let (leader, other) =
            (member(1, MemberRole::Leader, "a"), member(2, MemberRole::Standby, "b"));
        let different = "the servers have different policies: a at 10.0.0.1:9010, b at 10.0.0.2:9010; \
                         that of the leader counts";
        assert_eq!(warnings(true, &[leader.clone(), other.clone()]), [different]);
        let dead = Member { seen_ago: Duration::from_secs(11), ..other };
        let [alone] = &warnings(true, &[leader.clone(), dead])[..] else { panic!() };
        assert!(alone.contains("could take over"), "{alone}");
        let newer = Member {
            version: "1.1.0".into(),
            policy_hash: "a".into(),
            ..member(3, MemberRole::Standby, "a")
        };
        let [versions] = &warnings(true, &[leader, newer.clone()])[..] else { panic!() };
        assert!(versions.contains("1.0.0 at 10.0.0.1:9010, 1.1.0 at 10.0.0.3:9010"), "{versions}");
        let [nobody] = &warnings(false, &[newer])[..] else { panic!() };
        assert!(nobody.contains("no server leads"), "{nobody}");
    }
}
