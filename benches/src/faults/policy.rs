//! The limits that the callers compete for.

use std::time::Duration;

/// The service of sessions.
pub(crate) const SESSIONS: &str = "t1r";

/// The service of workers.
pub(crate) const JOBS: &str = "t2w";

/// The service of the sessions that are only held.
pub(crate) const ATTACHED: &str = "t3a";

/// Workers of one session.
pub(crate) const WORKERS: u32 = 3;

/// The organizations that callers borrow for, and how many callers each has.
pub(crate) const ORGANIZATIONS: u32 = 8;

/// The organization of a caller.
pub(crate) fn organization(caller: u32) -> String {
    format!("org-{}", caller % ORGANIZATIONS)
}

/// How many leases of `service` an organization may have. Eight callers want a session, and 24 workers.
pub(crate) fn limit(service: &str) -> u64 {
    match service {
        SESSIONS => 7,
        JOBS => 12,
        _ => 10_000,
    }
}

/// The policy of the servers.
pub(crate) fn policy(ttl: Duration) -> String {
    let service = |name: &str| {
        format!(
            "[services.{name}]\nmax_per_organization = {}\nttl = \"{}s\"\nminimal_life = \"0s\"\n",
            limit(name),
            ttl.as_secs()
        )
    };
    [SESSIONS, JOBS, ATTACHED].map(service).concat()
}
