//! `store inspect`: looks into a store.

use std::fmt;

use serde::Serialize;
use tgm_session_server::store::fleet::{LeadershipRow, Member};
use tgm_session_server::store::{self, Inspected};

use super::{Records, failure, parse};
use crate::failure::Failure;
use crate::operator::words::{moment, span};
use crate::output::{NAME, Output, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session store inspect file:/var/lib/tgm-session/sessions.redb
  tgm-session store inspect postgres://tgm@db.example/sessions --format json
  tgm-session store inspect etcd://10.0.0.1,10.0.0.2,10.0.0.3/sessions

Nothing is changed. A file must not be in use; a database may be.";

/// Look into a store: its version, how much it keeps, and who leads its fleet.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Args {
    /// The URL of the store.
    #[arg(value_name = "URL")]
    url: String,
}

/// What is in a store.
#[derive(Debug, Serialize)]
struct Seen {
    store: String,
    version: u64,
    /// The number of the last batch of changes.
    sequence: u64,
    next_serial: u64,
    #[serde(flatten)]
    records: Records,
    /// Who leads the fleet; absent for the store of one server.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<Leadership>,
    /// The servers of the fleet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    servers: Vec<Server>,
}

/// A server of a fleet.
#[derive(Debug, Serialize)]
struct Server {
    address: String,
    role: &'static str,
    role_since: i64,
    epoch: Option<u64>,
    version: String,
    policy_hash: String,
    seen_seconds_ago: f64,
}

impl From<Member> for Server {
    fn from(member: Member) -> Self {
        Self {
            address: member.address.into(),
            role: member.role.as_str(),
            role_since: member.role_since,
            epoch: member.led,
            version: member.version.into(),
            policy_hash: member.policy_hash.into(),
            seen_seconds_ago: member.seen_ago.as_secs_f64(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, role, role_since, seen_seconds_ago, .. } = self;
        let (since, seen) = (moment(*role_since), span(*seen_seconds_ago));
        write!(f, "{} is {role} since {since}, seen {seen} ago", plain(address))
    }
}

/// The leadership row of a fleet.
#[derive(Debug, Serialize)]
struct Leadership {
    epoch: u64,
    leader: String,
    address: String,
    /// Whether the leader has given its term up.
    released: bool,
    renewals: u64,
    leader_ttl_ms: u128,
}

impl From<LeadershipRow> for Leadership {
    fn from(row: LeadershipRow) -> Self {
        let LeadershipRow { epoch, leader, renewals, leader_ttl, address, released, .. } = row;
        let leader_ttl_ms = leader_ttl.as_millis();
        let (leader, address) = (leader.to_string(), address.into());
        Self { epoch, leader, address, released, renewals, leader_ttl_ms }
    }
}

impl fmt::Display for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, address, released, renewals, leader_ttl_ms, .. } = self;
        if *epoch == 0 {
            return f.write_str("no server has led its fleet yet");
        }
        let address = styled(NAME, plain(address));
        if *released {
            return write!(f, "nobody leads its fleet; {address} has given up term {epoch}");
        }
        write!(
            f,
            "{address} leads its fleet in term {epoch}, unless it has stopped renewing: \
             {renewals} renewals, each valid for {leader_ttl_ms} ms"
        )
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, version, sequence, records, fleet, servers, .. } = self;
        let store = styled(NAME, plain(store));
        writeln!(f, "{store}, format {version}, {sequence} batches of changes")?;
        if let Some(fleet) = fleet {
            writeln!(f, "  {fleet}")?;
        }
        for server in servers {
            writeln!(f, "  {server}")?;
        }
        f.write_str(&records.lines())
    }
}

/// Runs the command.
pub(super) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let url = parse(&args.url)?;
    output.show_live(&format!("reading {url}…"))?;
    let inspected = store::inspect(&url).map_err(failure);
    output.clear_live()?;
    let Inspected { version, records, sequence, next_serial, fleet, members } = inspected?;
    output.show(&Seen {
        store: url.to_string(),
        version,
        sequence,
        next_serial,
        records: records.into(),
        fleet: fleet.map(|rows| rows.leadership.into()),
        servers: members.into_iter().map(Server::from).collect(),
    })
}
