//! Copies and restores the store as the manual describes.

use std::fs;

use serde_json::Value;

use super::get;
use crate::harness::{Serve, Talker, file, folder};

const POLICY: &str = "
[services.t1r]
max_per_organization = 10
";

fn put(admin: &str, path: &str, body: &str) {
    let (status, answer) = super::send(admin, "PUT", path, body);
    assert_eq!(status, 200, "{answer}");
}

/// How many leases of the organization the server counts.
fn active(serve: &Serve) -> u64 {
    serve.active("acme", "t1r")
}

#[test]
fn a_restored_copy_has_exactly_the_state_at_the_time_of_the_copy() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", POLICY);
    let (path, copy) = (folder.path().join("sessions.redb"), folder.path().join("copy"));
    let mut serve = Serve::with_policy(&folder, &policy);
    put(&serve.admin, "/api/organizations/acme/limits/t1r", r#"{"max": 7, "note": "before"}"#);
    let borrow = |serve: &Serve| {
        let url = serve.url();
        let mut talker = Talker::start(["borrow", &*url, "--organization", "acme"]);
        talker.event("holding");
        talker
    };
    let mut before = borrow(&serve);
    assert_eq!(serve.stop(), Some(0));
    before.process.kill();
    fs::copy(&path, &copy).unwrap();

    let mut serve = Serve::with_policy(&folder, &policy);
    put(&serve.admin, "/api/organizations/acme/limits/t1r", r#"{"max": 8, "note": "after"}"#);
    let mut after = borrow(&serve);
    assert_eq!(active(&serve), 2);
    assert_eq!(serve.stop(), Some(0));
    after.process.kill();

    fs::copy(&copy, &path).unwrap();
    let serve = Serve::with_policy(&folder, &policy);
    assert_eq!(serve.ready["recovered_leases"], 1);
    assert_eq!(active(&serve), 1, "what was borrowed after the copy is unknown to it");
    let (status, policy) = get(&serve.admin, "/api/policy");
    assert_eq!(status, 200, "{policy}");
    let policy: Value = serde_json::from_str(&policy).unwrap();
    assert_eq!(policy["overrides"][0]["max"], 7, "{policy}");
}
