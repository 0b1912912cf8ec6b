//! Policy files: what they say, and how they are refused.

use std::time::Duration;

use lease::{Limits, Reason, Request, WallTime};
use policy::overrides::{Override, OverrideKey, Overrides, Subject};
use policy::{Policy, Refused, Source, Unauthenticated};
use proptest::prelude::*;

/// The example of the contract, word for word but for the digest.
fn example() -> String {
    r#"
[services.default]                 # services without an entry of their own; leave it out to refuse unknown services
max_per_organization = 10
[services.t1r]
max_per_organization = 10
max_per_api_key = 5                # every ceiling: absent = none, 0 = nobody
max_total = 4000
ttl = "60s"
minimal_life = "5s"
observe = false
[services.t2w]
[plans.pro]
limits = { t1r = 30, t2w = 300 }
budgets = { egress_bytes = { amount = 1e12, per = "month" } }
[organizations.acme]
plan = "pro"
limits = { t1r = 40 }              # beats the plan, which beats the service
disabled = false
[api_keys.key-1]
disabled = true
[api_keys.key-2]
limits = { t1r = 2 }
[[indexers]]
name = "west"
key_sha256 = "DIGEST"              # or a list, for rotation; anything else is refused
services = ["t1r", "t2w"]          # absent: all
"#
    .replace("DIGEST", &"ab".repeat(32))
}

fn policy(text: &str) -> Policy {
    Policy::parse(text, "test.toml").unwrap().policy
}

fn limits(policy: &Policy, request: Request<'_>) -> Limits {
    policy.terms(None, &request, WallTime::default).unwrap().terms.limits
}

/// The one line that refuses `text`.
fn refusal(text: &str) -> String {
    let error = Policy::parse(text, "test.toml").map(drop).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn an_organizations_own_limit_beats_its_plan_which_beats_the_service() {
    let policy = policy(&example());
    for (request, organization) in [
        (Request::session("t1r", "acme"), Some(40)),
        (Request::session("t2w", "acme"), Some(300)),
        (Request::session("t1r", "other"), Some(10)),
        (Request::session("t2w", "other"), None),
        (Request::session("t9", "acme"), Some(10)),
    ] {
        assert_eq!(limits(&policy, request).organization, organization, "{request:?}");
    }
}

#[test]
fn an_api_keys_own_limit_beats_the_service() {
    let policy = policy(&example());
    let session = Request::session("t1r", "acme");
    assert_eq!(limits(&policy, session.api_key("key-2")).api_key, Some(2));
    assert_eq!(limits(&policy, session.api_key("other")).api_key, Some(5));
    assert_eq!(limits(&policy, session).service, Some(4000));
    assert_eq!(limits(&policy, Request::session("t2w", "acme").api_key("key-2")).api_key, None);
}

#[test]
fn a_named_service_inherits_nothing_from_the_default() {
    let text = "
        [services.default]
        max_per_organization = 1
        max_total = 1
        ttl = \"90s\"
        minimal_life = \"1s\"
        observe = true
        [services.t1r]
    ";
    let policy = policy(text);
    let terms =
        policy.terms(None, &Request::session("t1r", "acme"), WallTime::default).unwrap().terms;
    assert_eq!(terms.limits, Limits::default());
    assert_eq!((terms.ttl, terms.minimal_life), (Duration::from_secs(60), Duration::from_secs(5)));
    assert!(!terms.observe);
    let terms =
        policy.terms(None, &Request::session("t9", "acme"), WallTime::default).unwrap().terms;
    assert_eq!((terms.ttl, terms.limits.service), (Duration::from_secs(90), Some(1)));
    assert!(terms.observe);
}

#[test]
fn a_plans_budgets_apply_to_its_organizations_and_ask_for_the_wall_clock() {
    let policy = policy(&example());
    let noon = WallTime::from_unix(1_800_000_000);
    let terms = policy.terms(None, &Request::session("t1r", "acme"), || noon).unwrap().terms;
    assert_eq!((&*terms.budgets[0].metric, terms.budgets[0].amount), ("egress_bytes", 1e12));
    assert_eq!(terms.wall, noon);
    let never = || panic!("nobody needs the wall clock without budgets");
    policy.terms(None, &Request::session("t1r", "other"), never).unwrap();
}

#[test]
fn what_the_policy_refuses_is_refused_in_the_order_of_the_contract() {
    let text = format!(
        "{}\n[organizations.off]\ndisabled = true\n[services.secret]",
        example().replace("[services.default]", "[services.unused]")
    );
    let policy = policy(&text);
    let west = Policy::identify(&policy, Some(b"not the key"));
    assert_eq!(west.unwrap_err(), Unauthenticated::UnknownKey);
    let ask = |request| policy.terms(None, &request, WallTime::default).unwrap_err();
    let off = Request::session("t1r", "off").api_key("key-1");
    assert_eq!(ask(Request { service: "t9", ..off }), Refused::UnknownService("t9".into()));
    assert_eq!(ask(off), Refused::Disabled(Reason::OrganizationDisabled));
    let key = Request { organization: "acme", ..off };
    assert_eq!(ask(key), Refused::Disabled(Reason::ApiKeyDisabled));
}

#[test]
fn keys_of_indexers_are_known_by_their_digest() {
    use sha2::{Digest as _, Sha256};
    let digest = |key: &str| hex::encode(Sha256::digest(key));
    let text = format!(
        "[services.t1r]\n[services.t2w]\n[[indexers]]\nname = \"west\"\nkey_sha256 = [\"{}\", \"{}\"]\n\
         services = [\"t1r\"]\n[[indexers]]\nname = \"east\"\nkey_sha256 = \"{}\"",
        digest("old").to_uppercase(),
        digest("new"),
        digest("east")
    );
    let policy = policy(&text);
    for (key, name) in [("old", "west"), ("new", "west"), ("east", "east")] {
        assert_eq!(policy.identify(Some(key.as_bytes())).unwrap().unwrap().name(), name);
    }
    for no_key in [None, Some(&b""[..]), Some(b" "), Some(b" \t ")] {
        assert_eq!(policy.identify(no_key).unwrap_err(), Unauthenticated::NoKey, "{no_key:?}");
    }
    let west = policy.identify(Some(b"new")).unwrap();
    let refused =
        policy.terms(west, &Request::session("t2w", "acme"), WallTime::default).unwrap_err();
    assert_eq!(refused.to_string(), "indexer \"west\" may not use service \"t2w\"");
    let east = policy.identify(Some(b"east")).unwrap();
    policy.terms(east, &Request::session("t2w", "acme"), WallTime::default).unwrap();
}

#[test]
fn indexers_are_distinguished_by_name_and_by_key() {
    let indexer = |name: &str, digest: &str| {
        format!("[[indexers]]\nname = \"{name}\"\nkey_sha256 = \"{}\"\n", digest.repeat(32))
    };
    let error = refusal(&(indexer("west", "ab") + &indexer("west", "cd")));
    assert!(
        error.contains("4:2: a second indexer is named \"west\"") || error.contains("5:8"),
        "{error}"
    );
    let error = refusal(&(indexer("west", "ab") + &indexer("east", "ab")));
    assert!(error.contains("a key of indexer \"east\" is a key of \"west\" already"), "{error}");
}

#[test]
fn a_short_ttl_and_a_policy_without_services_are_warned_about() {
    let loaded = Policy::parse("[services.t1r]\nttl = \"59s\"", "test.toml").unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("test.toml:2:7: ttl of service \"t1r\""), "{warnings:?}");
    assert_eq!(Policy::parse("", "test.toml").unwrap().warnings.len(), 1);
    assert!(Policy::parse(&example(), "test.toml").unwrap().warnings.is_empty());
}

/// Overrides of organizations and API keys: a limit where a service is named, else a switch.
fn overrides(set: &[(Subject, &str, Option<&str>, u64)]) -> Overrides {
    let set = set.iter().map(|&(subject, id, service, value)| {
        let key = OverrideKey { subject, id: id.into(), service: service.map(Into::into) };
        (key, Override { value, set_at: WallTime::default(), note: "".into() })
    });
    set.collect()
}

#[test]
fn overrides_win_over_the_file_and_are_named_as_the_source() {
    use Subject::{ApiKey, Organization};
    let file = policy(&example());
    let policy = file.with_overrides(&overrides(&[
        (Organization, "acme", Some("t1r"), 7),
        (Organization, "new", None, 1),
        (Organization, "new", Some("default"), 0),
        (ApiKey, "key-1", None, 0),
        (ApiKey, "key-2", Some("t1r"), 9),
        (ApiKey, "new", Some("t2w"), 3),
    ]));
    for (organization, service, limit) in [
        ("acme", "t1r", (Some(7), Source::Override)),
        ("acme", "t2w", (Some(300), Source::Plan)),
        ("new", "t1r", (Some(10), Source::Service)),
        ("new", "t2w", (None, Source::Nothing)),
        ("new", "t9", (Some(0), Source::Override)),
        ("other", "t9", (Some(10), Source::Default)),
    ] {
        assert_eq!(policy.limit(organization, service), limit, "{organization} {service}");
    }
    for (api_key, service, limit) in [
        ("key-2", "t1r", (Some(9), Source::Override)),
        ("new", "t2w", (Some(3), Source::Override)),
        ("new", "t1r", (Some(5), Source::Service)),
        ("key-1", "t9", (None, Source::Nothing)),
    ] {
        assert_eq!(
            policy.limit_of(Subject::ApiKey, api_key, service),
            limit,
            "{api_key} {service}"
        );
    }
    assert_eq!(policy.disabled_by(Subject::Organization, "new"), (true, Source::Override));
    assert_eq!(policy.disabled_by(Subject::Organization, "acme"), (false, Source::Nothing));
    assert_eq!(file.disabled_by(Subject::ApiKey, "key-1"), (true, Source::Own));
    assert_eq!(policy.disabled_by(Subject::ApiKey, "key-1"), (false, Source::Override));
    assert_eq!(policy.disabled("acme", "key-1"), None);
    assert_eq!(policy.disabled("new", "key-1"), Some(Reason::OrganizationDisabled));

    // Calls get the same limits, and the policy of the file is unchanged.
    let session = Request::session("t1r", "acme").api_key("key-2");
    let of = |policy: &Policy| {
        let Limits { organization, api_key, .. } = limits(policy, session);
        (organization, api_key)
    };
    assert_eq!((of(&policy), of(&file)), ((Some(7), Some(9)), (Some(40), Some(2))));
    assert_eq!(policy.pool_limit(None, "t1r", "acme").unwrap(), Some(7));
    let refused = policy.terms(None, &Request::session("t1r", "new"), WallTime::default);
    assert_eq!(refused.unwrap_err(), Refused::Disabled(Reason::OrganizationDisabled));
    assert_eq!((policy.overrides(), file.overrides()), (6, 0));
}

#[test]
fn every_organization_and_api_key_of_the_file_or_an_override_is_known_once() {
    use Subject::{ApiKey, Organization};
    let set = [
        (Organization, "acme", None, 1),
        (Organization, "new", Some("t1r"), 1),
        (ApiKey, "key-1", Some("t1r"), 1),
        (ApiKey, "key-9", None, 1),
    ];
    let policy = policy(&example()).with_overrides(&overrides(&set));
    let mut organizations: Vec<_> = policy.subjects(Subject::Organization).collect();
    organizations.sort_unstable();
    assert_eq!(organizations, ["acme", "new"]);
    let mut api_keys: Vec<_> = policy.subjects(Subject::ApiKey).collect();
    api_keys.sort_unstable();
    assert_eq!(api_keys, ["key-1", "key-2", "key-9"]);
    assert!(
        policy.is_known(Subject::Organization, "new")
            && !policy.is_known(Subject::Organization, "other")
    );
    assert!(
        policy.is_known(Subject::ApiKey, "key-9") && !policy.is_known(Subject::ApiKey, "other")
    );
    assert_eq!((policy.plan_of("acme"), policy.plan_of("new")), (Some("pro"), None));
    assert_eq!(policy.indexers().collect::<Vec<_>>(), ["west"]);
    let plans: Vec<_> = policy.plans().collect();
    assert_eq!((plans.len(), plans[0].name), (1, "pro"));
    assert_eq!(plans[0].limits, [("t1r", 30), ("t2w", 300)]);
    assert_eq!(&*plans[0].budgets[0].metric, "egress_bytes");
}

#[test]
fn an_override_for_a_service_that_the_policy_lost_has_no_effect() {
    let set = overrides(&[(Subject::Organization, "acme", Some("t1r"), 7)]);
    let key = set.keys().next().unwrap();
    let with = policy("[services.t1r]\n[services.default]").with_overrides(&set);
    assert!(with.is_effective(key));
    let without = policy("[services.default]\nmax_per_organization = 2").with_overrides(&set);
    assert!(!without.is_effective(key));
    assert_eq!(without.limit("acme", "t1r"), (Some(2), Source::Default));
    assert_eq!(without.overrides(), 1, "it is kept");
}

/// A policy of so many organizations, each with a limit of its own.
fn of_many(organizations: usize) -> String {
    use std::fmt::Write as _;
    let mut text = example();
    for number in 0..organizations {
        write!(
            text,
            "[organizations.org-{number}]\nplan = \"pro\"\nlimits = {{ t1r = {number} }}\n"
        )
        .unwrap();
    }
    text
}

/// The CPU time of this thread, which does not depend on other work of the machine.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap()
}

#[test]
fn ten_thousand_organizations_load_in_less_than_a_second() {
    let text = of_many(10_000);
    let before = busy();
    let policy = policy(&text);
    let took = busy() - before;
    assert_eq!(limits(&policy, Request::session("t1r", "org-7777")).organization, Some(7777));
    // Optimized it takes 25 ms; not optimized, a quarter of a second.
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn an_override_over_ten_thousand_organizations_costs_what_it_costs_over_none() {
    let set = overrides(&[(Subject::Organization, "org-7", Some("t1r"), 1)]);
    let cost = |policy: &Policy| {
        let before = busy();
        for _ in 0..1_000 {
            assert_eq!(policy.with_overrides(&set).limit("org-7", "t1r").0, Some(1));
        }
        busy() - before
    };
    let (few, many) = (policy(&of_many(10)), policy(&of_many(10_000)));
    // If the organizations were copied, the cost would be a thousand times as high.
    let (few, many) = (cost(&few), cost(&many));
    assert!(many < few * 50 + Duration::from_millis(100), "{many:?} after {few:?}");
}

proptest! {
    #[test]
    fn no_text_makes_reading_a_policy_panic(text in ".{0,200}") {
        let _: Result<_, _> = Policy::parse(&text, "test.toml");
    }

    #[test]
    fn no_damaged_policy_makes_reading_it_panic(at in 0_usize..1_200, with in any::<char>()) {
        let mut text: Vec<char> = example().chars().collect();
        let at = at % text.len();
        text[at] = with;
        let text: String = text.into_iter().collect();
        if let Err(error) = Policy::parse(&text, "test.toml") {
            prop_assert!(error.place.line <= text.lines().count() + 1);
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
