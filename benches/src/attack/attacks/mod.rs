//! The attacks, in the order in which they are made.

mod admin;
mod before_key;
mod floods;
mod leases;
mod places;
mod services;
mod usage;

use crate::options::Store;
use crate::stage::{Attack, Stage};

/// An attack on a server with its usual flags.
const PLAIN: Attack = Attack {
    name: "calm",
    about: "No attack: the figures of this machine",
    flags: &[],
    indexers: true,
    unread_log: false,
    quick_on: Some(Store::Memory),
    on_memory: true,
    play: |stage| Box::pin(calm(stage)),
};

/// Few places for connections, so that they can be taken.
const FEW_PLACES: &[&str] = &["--max-connections", "400"];

/// Every attack.
pub(crate) const ATTACKS: &[Attack] = &[
    PLAIN,
    Attack {
        name: "references",
        about: "100 connections × 1,024 calls without a key, each with 900 one-byte references to one header and no end",
        play: |stage| Box::pin(before_key::references(stage, None)),
        ..PLAIN
    },
    Attack {
        name: "references-wrong-key",
        about: "The same with a key that nobody has",
        quick_on: None,
        play: |stage| Box::pin(before_key::references(stage, Some(crate::calls::WRONG_KEY))),
        ..PLAIN
    },
    Attack {
        name: "references-with-key",
        about: "The same with the key of another indexer",
        play: |stage| Box::pin(before_key::references(stage, Some(crate::calls::ATTACKER_KEY))),
        ..PLAIN
    },
    Attack {
        name: "references-no-keys",
        about: "The same where no indexers are configured; the well-behaved client has another address",
        indexers: false,
        play: |stage| Box::pin(before_key::references(stage, None)),
        ..PLAIN
    },
    Attack {
        name: "streams",
        about: "100 connections that open 4,096 calls each without a key, whatever limit the server announces",
        play: |stage| Box::pin(before_key::streams(stage)),
        ..PLAIN
    },
    Attack {
        name: "bodies",
        about: "100 connections whose calls without a key send bodies as far as the windows go and never end them",
        play: |stage| Box::pin(before_key::bodies(stage, None)),
        ..PLAIN
    },
    Attack {
        name: "bodies-wrong-key",
        about: "The same with a key that nobody has",
        quick_on: None,
        play: |stage| Box::pin(before_key::bodies(stage, Some(crate::calls::WRONG_KEY))),
        ..PLAIN
    },
    Attack {
        name: "bodies-with-key",
        about: "The same with the key of another indexer",
        play: |stage| Box::pin(before_key::bodies(stage, Some(crate::calls::ATTACKER_KEY))),
        ..PLAIN
    },
    Attack {
        name: "pinned",
        about: "Bodies of one byte each, every one in a read buffer of its own",
        play: |stage| Box::pin(before_key::pinned(stage)),
        ..PLAIN
    },
    Attack {
        name: "health",
        about: "100 connections full of health watches whose answers are never read",
        play: |stage| Box::pin(before_key::health(stage)),
        ..PLAIN
    },
    Attack {
        name: "reflection",
        about: "100 connections full of reflection streams that ask again and again and read nothing",
        play: |stage| Box::pin(before_key::reflection(stage)),
        ..PLAIN
    },
    Attack {
        name: "silent",
        about: "600 connections that open and say nothing, on a server with 400 places",
        flags: FEW_PLACES,
        play: |stage| Box::pin(places::silent(stage)),
        ..PLAIN
    },
    Attack {
        name: "places",
        about: "600 connections that make one call without a key and stay, on a server with 400 places",
        flags: FEW_PLACES,
        play: |stage| Box::pin(places::idle(stage, None)),
        ..PLAIN
    },
    Attack {
        name: "places-wrong-key",
        about: "The same with a key that nobody has",
        flags: FEW_PLACES,
        quick_on: None,
        play: |stage| Box::pin(places::idle(stage, Some(crate::calls::WRONG_KEY))),
        ..PLAIN
    },
    Attack {
        name: "places-with-key",
        about: "The same with the key of another indexer",
        flags: FEW_PLACES,
        play: |stage| Box::pin(places::idle(stage, Some(crate::calls::ATTACKER_KEY))),
        ..PLAIN
    },
    Attack {
        name: "places-no-keys",
        about: "The same where no indexers are configured; the well-behaved client has another address",
        flags: FEW_PLACES,
        indexers: false,
        quick_on: None,
        play: |stage| Box::pin(places::idle(stage, None)),
        ..PLAIN
    },
    Attack {
        name: "slow-headers",
        about: "600 requests of HTTP/1.1 whose headers come slowly and never end, on a server with 400 places",
        flags: FEW_PLACES,
        quick_on: None,
        play: |stage| Box::pin(places::slow_headers(stage)),
        ..PLAIN
    },
    Attack {
        name: "rapid-reset",
        about: "20 connections that begin calls and reset them at once",
        play: |stage| Box::pin(floods::rapid_reset(stage)),
        ..PLAIN
    },
    Attack {
        name: "continuation",
        about: "50 connections whose headers go on in CONTINUATION frames for ever",
        play: |stage| Box::pin(floods::continuation(stage)),
        ..PLAIN
    },
    Attack {
        name: "pings",
        about: "20 connections that send PING without a pause and read no answer",
        play: |stage| Box::pin(floods::pings(stage)),
        ..PLAIN
    },
    Attack {
        name: "settings",
        about: "20 connections that send SETTINGS without a pause and read no answer",
        quick_on: None,
        play: |stage| Box::pin(floods::settings_of(stage)),
        ..PLAIN
    },
    Attack {
        name: "attach",
        about: "100 connections full of streams of session control, by an indexer, that read no answer",
        play: |stage| Box::pin(leases::attach(stage)),
        ..PLAIN
    },
    Attack {
        name: "state-unread",
        about: "WorkersState of a pool with 50,000 leases, asked on many streams whose answers are not read",
        play: |stage| Box::pin(leases::state_unread(stage)),
        ..PLAIN
    },
    Attack {
        name: "state-again",
        about: "WorkersState of a pool with 50,000 leases, asked again and again on 8 connections",
        quick_on: None,
        play: |stage| Box::pin(leases::state_again(stage)),
        ..PLAIN
    },
    Attack {
        name: "expiry",
        about: "1,000,000 leases, 300,000 of them on a disk, that expire at one moment",
        play: |stage| Box::pin(leases::expiry(stage)),
        ..PLAIN
    },
    Attack {
        name: "expiry-restart",
        about: "The same after kill -9: all of them get their TTL at the start",
        on_memory: false,
        quick_on: Some(Store::File),
        play: |stage| Box::pin(leases::expiry_after_restart(stage)),
        ..PLAIN
    },
    Attack {
        name: "disable",
        about: "An organization with 100,000 leases is disabled over the admin API",
        quick_on: Some(Store::File),
        play: |stage| Box::pin(leases::disable(stage)),
        ..PLAIN
    },
    Attack {
        name: "full-speed",
        about: "100 connections × 1,024 calls of borrows, returns and keep-alives as fast as they are answered",
        quick_on: Some(Store::File),
        play: |stage| Box::pin(leases::full_speed(stage)),
        ..PLAIN
    },
    Attack {
        name: "full-speed-no-keys",
        about: "The same where no indexers are configured; the well-behaved client has another address",
        indexers: false,
        quick_on: None,
        play: |stage| Box::pin(leases::full_speed(stage)),
        ..PLAIN
    },
    Attack {
        name: "reports",
        about: "16 callers that send reports of 50,000 metrics each, one after another",
        quick_on: Some(Store::File),
        play: |stage| Box::pin(usage::reports(stage)),
        ..PLAIN
    },
    Attack {
        name: "report-keys",
        about: "1,000,001 empty reports with idempotency keys; then another indexer's report comes again and must count once",
        play: |stage| Box::pin(usage::report_keys(stage)),
        ..PLAIN
    },
    Attack {
        name: "borrow-ids",
        about: "Borrows and returns with ever new borrow ids under a small max_leases; then another indexer's borrow comes again and must be the same lease",
        flags: &["--max-leases", "1000"],
        play: |stage| Box::pin(usage::borrow_ids(stage)),
        ..PLAIN
    },
    Attack {
        name: "zero-counters",
        about: "1,000,000 organizations with usage of 0 are reported; then that of an organization with a budget must count",
        play: |stage| Box::pin(usage::counters(stage, 0.0)),
        ..PLAIN
    },
    Attack {
        name: "unknown-counters",
        about: "The same with usage of 1 of organizations that nobody knows",
        quick_on: None,
        play: |stage| Box::pin(usage::counters(stage, 1.0)),
        ..PLAIN
    },
    Attack {
        name: "services",
        about: "Leases of thousands of services that nobody configured, each with a limit of its own",
        play: |stage| Box::pin(services::invented(stage)),
        ..PLAIN
    },
    Attack {
        name: "admin-silent",
        about: "300 connections to the admin port that say nothing",
        play: |stage| Box::pin(admin::silent(stage)),
        ..PLAIN
    },
    Attack {
        name: "admin-idle",
        about: "300 connections to the admin port that asked once and stay",
        quick_on: None,
        play: |stage| Box::pin(admin::idle(stage)),
        ..PLAIN
    },
    Attack {
        name: "admin-readers",
        about: "300 connections to the admin port that ask for metrics and events and read nothing",
        play: |stage| Box::pin(admin::readers(stage)),
        ..PLAIN
    },
    Attack {
        name: "log-unread",
        about: "The log goes into a pipe that nobody reads, and 2,000 broken connections are logged",
        flags: &["--log", "debug"],
        unread_log: true,
        play: |stage| Box::pin(floods::broken(stage)),
        ..PLAIN
    },
];

async fn calm(stage: &mut Stage) -> anyhow::Result<()> {
    stage.begin()?;
    tokio::time::sleep(stage.span).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_attack_has_a_name_of_its_own_that_fits_its_column() {
        let names: HashSet<_> = ATTACKS.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), ATTACKS.len());
        assert!(names.iter().all(|name| name.len() <= 22));
    }

    #[test]
    fn an_attack_is_made_on_a_store_that_it_can_be_made_on() {
        let can = |attack: &&Attack| attack.on_memory || attack.quick_on == Some(Store::File);
        assert!(ATTACKS.iter().all(|attack| can(&attack)));
    }
}
