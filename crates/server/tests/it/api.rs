//! The admin API: what it shows. The tests of changes are in `api_changes`.

use std::time::Duration;

use serde_json::{Value, json};
use tgm_session_server::api::Source;
use tgm_session_server::api::{
    ApiKey, Done, EffectivePolicy, Organization, OrganizationPage, Overview, Refusal, RefusalPage,
    Session, SessionPage,
};
use tonic::Code;

use crate::admin_client::AdminClient;
use crate::harness::{ROOMY, TestServer, eventually, get, session, worker};

/// A policy in which the numbers have different sources.
const SOLD: &str = "
    [services.default]
    max_per_organization = 7
    [services.t1r]
    max_per_organization = 4
    max_per_api_key = 2
    max_total = 6
    ttl = \"90s\"
    minimal_life = \"1500ms\"
    [services.t2w]
    [services.watched]
    max_per_organization = 0
    observe = true
    [plans.pro]
    limits = { t1r = 5 }
    budgets = { egress_bytes = { amount = 100.0, per = \"month\" } }
    [organizations.acme]
    plan = \"pro\"
    [organizations.globex]
    limits = { t1r = 3 }
    [organizations.closed]
    disabled = true
    [api_keys.key-1]
    limits = { t1r = 1 }
";

async fn start(policy: &str) -> (TestServer, AdminClient) {
    let server = TestServer::memory(policy).await;
    let admin = AdminClient::of(&server).await;
    (server, admin)
}

/// The overview, once it shows these numbers of sessions and workers.
async fn overview(admin: &AdminClient, sessions: u64, workers: u64) -> Overview {
    eventually("the overview shows what was borrowed", || async {
        let overview: Overview = admin.get("/api/overview").await;
        (overview.sessions, overview.workers) == (sessions, workers)
    })
    .await;
    admin.get("/api/overview").await
}

fn names(page: &OrganizationPage) -> Vec<&str> {
    page.organizations.iter().map(|organization| &*organization.organization).collect()
}

#[tokio::test]
async fn the_overview_tells_what_is_held_refused_and_in_force() {
    let (server, admin) = start(SOLD).await;
    let first: Overview = admin.get("/api/overview").await;
    let mut client = server.client();
    for _ in 0..3 {
        client.borrow(session("globex").trace("a1")).await;
    }
    client.borrow(worker("globex", "a1", 3)).await;
    client.borrow(session("new").service("t9")).await;
    client.refused(session("globex")).await;
    let now = overview(&admin, 4, 1).await;
    assert_eq!((now.ready, now.problem, &*now.store), (true, None, "memory:"));
    assert_eq!((now.active_organizations, now.organizations), (2, 4));
    assert_eq!((now.refusals.organization, now.refusals.total()), (1, 1));
    assert_eq!((now.started_at, now.policy.file), (1_800_000_000, None));
    assert!(now.revision > first.revision);
    let services: Vec<_> =
        now.services.iter().map(|row| (&*row.service, row.active, row.max_total)).collect();
    assert_eq!(
        services,
        [("default", 1, None), ("t1r", 3, Some(6)), ("t2w", 1, None), ("watched", 0, None)]
    );
    let t1r = &now.services[1];
    assert_eq!((t1r.max_per_organization, t1r.max_per_api_key), (Some(4), Some(2)));
    assert_eq!((t1r.ttl_seconds, t1r.minimal_life_seconds, t1r.observe), (90.0, 1.5, false));
    // Nothing changed, so the revision is the same.
    assert_eq!(admin.get::<Overview>("/api/overview").await.revision, now.revision);
}

#[tokio::test]
async fn an_organization_is_told_with_the_source_of_each_number_its_usage_and_refusals() {
    let (server, admin) = start(SOLD).await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    client.borrow(session("acme").service("t9")).await;
    let usages = [lease::Usage { organization: "acme", metric: "egress_bytes", value: 25.0 }];
    server.running.report(None, None, &usages).await.unwrap();
    let limit = json!({ "max": 9 });
    let _: Done = admin.put("/api/organizations/acme/limits/t2w", &limit).await;
    let acme: Organization = admin.get("/api/organizations/acme").await;
    let services: Vec<_> = acme
        .services
        .iter()
        .map(|row| (&*row.service, row.active, row.ceiling.max, row.ceiling.source))
        .collect();
    assert_eq!(
        services,
        [
            ("t1r", 1, Some(5), Source::Plan),
            ("t2w", 0, Some(9), Source::Override),
            ("watched", 0, Some(0), Source::Service),
            ("t9", 1, Some(7), Source::Default),
        ]
    );
    assert_eq!(acme.plan.as_deref(), Some("pro"));
    assert!(!acme.disabled.disabled && acme.disabled.source == Source::Nothing);
    let [budget] = &acme.budgets[..] else { panic!("{acme:?}") };
    assert_eq!((&*budget.metric, budget.used, budget.amount), ("egress_bytes", 25.0, 100.0));
    // The manual clock starts at 1,800,000,000, in January 2027. The budget resets on February 1.
    assert_eq!((&*budget.per, budget.resets_at, budget.spent), ("month", 1_801_440_000, false));

    let globex: Organization = admin.get("/api/organizations/globex").await;
    let ceiling = globex.services[0].ceiling;
    assert_eq!((ceiling.max, ceiling.source), (Some(3), Source::Own));
    let closed: Organization = admin.get("/api/organizations/closed").await;
    assert!(closed.disabled.disabled && closed.disabled.source == Source::Own);

    let key: ApiKey = admin.get("/api/api-keys/key-1").await;
    let limits: Vec<_> = key.limits.iter().map(|l| (&*l.service, l.ceiling.max)).collect();
    assert_eq!(limits, [("default", None), ("t1r", Some(1)), ("t2w", None), ("watched", None)]);
    assert_eq!(key.limits[1].ceiling.source, Source::Own);
}

#[tokio::test]
async fn an_unknown_id_is_not_found_until_a_lease_or_an_override_names_it() {
    let (server, admin) = start(ROOMY).await;
    let problem = admin.ask("GET", "/api/organizations/nobody", "").await.problem(404);
    assert_eq!(problem, "the organization \"nobody\" is unknown");
    let problem = admin.ask("GET", "/api/api-keys/nobody", "").await.problem(404);
    assert!(problem.contains("nobody"), "{problem}");
    server.client().borrow(session("a lease/of ours")).await;
    eventually("a lease makes its organization known", || async {
        admin.ask("GET", "/api/organizations/a%20lease%2Fof%20ours", "").await.status == 200
    })
    .await;
    for path in ["/api/organizations/nobody", "/api/api-keys/nobody"] {
        let _: Done = admin.put(&format!("{path}/disabled"), &json!({ "disabled": false })).await;
        assert_eq!(admin.get::<Value>(path).await["disabled"]["source"], "override");
    }
}

#[tokio::test]
async fn organizations_are_searched_sorted_and_paged() {
    let mut policy = String::from(ROOMY);
    for number in 0..120 {
        let limit = if number == 77 { 0 } else { 4 };
        policy += &format!("[organizations.\"Org-{number:03}\"]\nlimits = {{ t1r = {limit} }}\n");
    }
    let (server, admin) = start(&policy).await;
    let mut client = server.client();
    for _ in 0..4 {
        client.borrow(session("Org-007")).await;
    }
    for _ in 0..9 {
        client.borrow(worker("Org-070", "a1", 9)).await;
    }
    for _ in 0..3 {
        client.refused(session("Org-077")).await;
    }
    client.refused(session("Org-007")).await;
    overview(&admin, 4, 9).await;
    let list = async |query: &str| {
        admin.get::<OrganizationPage>(&format!("/api/organizations?{query}")).await
    };
    let page = list("").await;
    assert_eq!((page.total, page.organizations.len()), (120, 50));
    // By utilization: 4 of 4 sessions come before 9 of 100 workers. Equal ones are sorted by name.
    assert_eq!(names(&page)[..4], ["Org-007", "Org-070", "Org-000", "Org-001"]);
    assert_eq!(names(&list("sort=active&limit=3").await), ["Org-070", "Org-007", "Org-000"]);
    assert_eq!(names(&list("sort=refused&limit=3").await), ["Org-077", "Org-007", "Org-000"]);
    let page = list("search=oRG-07&sort=name&offset=7&limit=500").await;
    assert_eq!((page.total, names(&page)), (10, vec!["Org-077", "Org-078", "Org-079"]));
    assert_eq!(page.organizations[0].refusals.organization, 3);

    let mut walked = Vec::new();
    loop {
        let page = list(&format!("sort=name&limit=7&offset={}", walked.len())).await;
        walked.extend(page.organizations.into_iter().map(|shown| shown.organization));
        if walked.len() as u64 == page.total {
            break;
        }
    }
    assert_eq!(walked, (0..120).map(|number| format!("Org-{number:03}")).collect::<Vec<_>>());
    let page = list("offset=120").await;
    assert_eq!((page.total, page.organizations.len()), (120, 0));
}

#[tokio::test]
async fn sessions_are_filtered_and_a_walk_through_their_pages_meets_each_once() {
    let (server, admin) = start(ROOMY).await;
    let mut client = server.client();
    for _ in 0..9 {
        client.borrow(session("acme")).await;
    }
    server.pass(Duration::from_secs(3));
    client.borrow(session("other").api_key("key-1").trace("a1")).await;
    for _ in 0..2 {
        client.borrow(worker("other", "a1", 9)).await;
    }
    let list =
        async |query: &str| admin.get::<SessionPage>(&format!("/api/sessions?{query}")).await;
    for (query, total) in [
        ("", 10),
        ("kind=worker", 2),
        ("kind=any", 12),
        ("organization=acme", 9),
        ("organization=acme&kind=worker", 0),
        ("service=t2w&kind=any", 2),
        ("trace=a1&kind=any", 3),
        ("api_key=key-1", 1),
        ("indexer=west", 0),
    ] {
        let page = list(query).await;
        assert_eq!((page.total, page.sessions.len() as u64), (total, total), "{query}");
    }
    let newest = &list("").await.sessions[0];
    assert_eq!((&*newest.organization, &*newest.api_key, &*newest.trace), ("other", "key-1", "a1"));
    assert_eq!((newest.workers, newest.age_seconds, newest.indexer.as_ref()), (2, 0.0, None));
    let oldest = &list("order=oldest&limit=1").await.sessions[0];
    assert_eq!((oldest.age_seconds, oldest.ends_in_seconds, oldest.lingers), (3.0, 57.0, false));
    assert_eq!(admin.get::<Session>(&format!("/api/sessions/{}", oldest.lease)).await, *oldest);

    let (mut walked, mut next) = (Vec::new(), String::new());
    loop {
        let page = list(&format!("order=oldest&kind=any&limit=5{next}")).await;
        assert_eq!(page.total, 12);
        walked.extend(page.sessions.into_iter().map(|session| session.lease));
        let Some(after) = page.next else { break };
        next = format!("&after={after}");
    }
    let mut all: Vec<_> = list("kind=any").await.sessions.into_iter().map(|s| s.lease).collect();
    all.reverse();
    assert_eq!(walked, all);
}

#[tokio::test]
async fn refusals_are_listed_with_their_reason_the_latest_first() {
    let (server, admin) = start(SOLD).await;
    let mut client = server.client();
    client.borrow(session("acme").api_key("key-1")).await;
    client.refused(session("acme").api_key("key-1").trace("a1")).await;
    for _ in 0..3 {
        client.borrow(session("globex")).await;
    }
    client.refused(session("globex")).await;
    for organization in ["one", "two"] {
        client.borrow(session(organization)).await;
    }
    client.refused(session("three")).await;
    client.borrow(worker("acme", "a7", 1)).await;
    client.refused(worker("acme", "a7", 1)).await;
    client.borrow(session("acme").service("watched")).await;
    let denied = client.ask(session("closed")).await.unwrap_err();
    let usages = [lease::Usage { organization: "acme", metric: "egress_bytes", value: 100.0 }];
    server.running.report(None, None, &usages).await.unwrap();
    let spent = client.ask(session("acme")).await.unwrap_err();
    assert_eq!((denied.code(), spent.code()), (Code::PermissionDenied, Code::ResourceExhausted));
    client.ask(session("acme").service("")).await.unwrap_err();

    let RefusalPage { refusals } = admin.get("/api/refusals").await;
    let told: Vec<_> = refusals.iter().map(|r| (&*r.scope, &*r.reason, r.active, r.max)).collect();
    assert_eq!(
        told,
        [
            ("budget", &*format!("organization acme: {}", spent.message()), None, None),
            ("disabled", denied.message(), None, None),
            ("organization", "organization acme is at 0 of 0 on watched", Some(0), Some(0)),
            ("trace", "trace a7 is at 1 of 1 workers on t2w", Some(1), Some(1)),
            ("service", "service t1r is at 6 of 6 leases", Some(6), Some(6)),
            ("organization", "organization globex is at 3 of 3 on t1r", Some(3), Some(3)),
            (
                "api_key",
                "organization acme is at 1 of 1 on t1r with API key key-1",
                Some(1),
                Some(1)
            ),
        ]
    );
    let observed: Vec<_> = refusals.iter().map(|refusal| refusal.observed).collect();
    assert_eq!(observed, [false, false, true, false, false, false, false]);
    let Refusal { at, organization, service, api_key, trace, .. } = &refusals[6];
    assert_eq!((*at, &**organization, &**service), (1_800_000_000, "acme", "t1r"));
    assert_eq!((&**api_key, &**trace), ("key-1", "a1"));
    let page: RefusalPage = admin.get("/api/refusals?organization=acme&limit=3").await;
    assert_eq!(page.refusals, [&refusals[0], &refusals[2], &refusals[3]].map(Clone::clone));

    // A borrow that was only observed is granted, and does not count as a refusal.
    eventually("the counts show the refusals", || async {
        let overview: Overview = admin.get("/api/overview").await;
        let counts = overview.refusals;
        let counts = [
            counts.service,
            counts.organization,
            counts.api_key,
            counts.trace,
            counts.budget,
            counts.disabled,
        ];
        counts == [1; 6]
    })
    .await;
    let three: Organization = admin.get("/api/organizations/three").await;
    assert_eq!(three.refusals.service, 1);
}

#[tokio::test]
async fn the_policy_in_force_is_told_with_its_plans_and_overrides() {
    let (_server, admin) = start(SOLD).await;
    let limit = json!({ "max": 40.0, "note": "a fair" });
    let _: Done = admin.put("/api/organizations/acme/limits/t1r", &limit).await;
    let _: Done = admin.put("/api/api-keys/key-2/disabled", &json!({ "disabled": true })).await;
    let policy: EffectivePolicy = admin.get("/api/policy").await;
    assert_eq!((policy.status.file, policy.status.overrides), (None, 2));
    assert_eq!(policy.services.len(), 4);
    let [plan] = &policy.plans[..] else { panic!("{:?}", policy.plans) };
    assert_eq!((&*plan.plan, &*plan.limits[0].service, plan.limits[0].max), ("pro", "t1r", 5));
    assert_eq!((&*plan.budgets[0].metric, plan.budgets[0].amount), ("egress_bytes", 100.0));
    let [limit, disabled] = &policy.overrides[..] else { panic!("{:?}", policy.overrides) };
    assert_eq!((&*limit.subject, &*limit.id, limit.max), ("organization", "acme", Some(40)));
    assert_eq!((limit.service.as_deref(), limit.disabled), (Some("t1r"), None));
    assert_eq!((&*limit.note, limit.set_at, limit.effective), ("a fair", 1_800_000_000, true));
    assert_eq!((&*disabled.subject, &*disabled.id), ("api_key", "key-2"));
    assert_eq!((disabled.disabled, disabled.max, &disabled.service), (Some(true), None, &None));
}

#[tokio::test]
async fn an_invalid_request_is_refused_with_a_reason() {
    let (_server, admin) = start(ROOMY).await;
    let long = "x".repeat(257);
    let (body, note) = (r#"{"disabled":true}"#, "n".repeat(513));
    let noted = format!(r#"{{"disabled":true,"note":"{note}"}}"#);
    for (method, path, body, status, says) in [
        ("GET", "/api/organizations?limit=0", "", 400, "may be 1 to 500"),
        ("GET", "/api/organizations?limit=501", "", 400, "may be 1 to 500"),
        ("GET", "/api/organizations?offset=10000001", "", 400, "offset is above"),
        ("GET", "/api/organizations?sort=size", "", 400, "unknown variant `size`"),
        ("GET", "/api/organizations?serach=a", "", 400, "unknown field `serach`"),
        ("GET", &format!("/api/organizations?search={long}"), "", 400, "longer than 256 bytes"),
        ("GET", &format!("/api/organizations/{long}"), "", 400, "longer than 256 bytes"),
        ("GET", "/api/organizations/%FF", "", 400, "Invalid UTF-8"),
        ("GET", "/api/sessions?after=1", "", 400, "24 hex digits"),
        ("GET", "/api/sessions?limit=1001", "", 400, "may be 1 to 1000"),
        ("GET", &format!("/api/sessions?trace={long}"), "", 400, "trace is longer"),
        ("GET", "/api/sessions/1", "", 400, "24 hex digits"),
        ("GET", "/api/sessions/ffffffffffffffffffffffff", "", 404, "there is no lease"),
        ("DELETE", "/api/sessions/1", "", 400, "24 hex digits"),
        ("DELETE", "/api/sessions/ffffffffffffffffffffffff", "", 404, "there is no lease"),
        ("GET", "/api/audit?before=-1", "", 400, "invalid digit"),
        ("GET", "/api/audit?before=9007199254740992", "", 400, "before is above"),
        ("GET", "/api/refusals?limit=0", "", 400, "may be 1 to 1000"),
        ("PUT", &format!("/api/organizations/{long}/disabled"), body, 400, "longer than 256"),
        ("PUT", "/api/organizations/acme/disabled", &noted, 400, "longer than 512 characters"),
        ("PUT", "/api/organizations/acme/disabled", "{", 400, "EOF"),
        ("PUT", "/api/organizations/acme/disabled", "{}", 400, "missing field `disabled`"),
        ("PUT", "/api/organizations/acme/disabled", r#"{"disabled":1}"#, 400, "boolean"),
        ("PUT", "/api/organizations/acme/disabled", r#"{"disabled":true,"a":1}"#, 400, "field `a`"),
        ("PUT", "/api/organizations/acme/disabled", "", 415, "application/json"),
        ("PUT", "/api/organizations/acme/disabled", &" ".repeat(65_537), 413, "length limit"),
        ("PUT", "/api/organizations/acme/limits/t1r", r#"{"max":-1}"#, 400, "no whole number"),
        ("PUT", "/api/organizations/acme/limits/t1r", r#"{"max":1.5}"#, 400, "no whole number"),
        ("PUT", "/api/organizations/acme/limits/t1r", r#"{"max":1e13}"#, 400, "above"),
        ("PUT", "/api/organizations/acme/limits/t9", r#"{"max":1}"#, 404, "are: t1r, t2w"),
        ("PUT", "/api/api-keys/key-1/limits/t9", r#"{"max":1}"#, 404, "are: t1r, t2w"),
        ("DELETE", "/api/organizations/acme/disabled", "", 404, "no operator has"),
        ("DELETE", "/api/organizations/acme/limits/t1r", "", 404, "no operator has"),
        ("DELETE", "/api/api-keys/key-1/disabled", "", 404, "no operator has"),
        ("DELETE", "/api/api-keys/key-1/limits/t1r", "", 404, "no operator has"),
        ("DELETE", &format!("/api/api-keys/k/disabled?note={note}"), "", 400, "longer than 512"),
        ("POST", "/api/policy/reload", "", 409, "there is no policy file"),
    ] {
        let problem = admin.ask(method, path, body).await.problem(status);
        assert!(problem.contains(says), "{method} {path}: {problem}");
    }
    // The refused requests left no audit entry and no override.
    assert_eq!(admin.get::<Value>("/api/audit").await["entries"], json!([]));
    assert_eq!(admin.get::<EffectivePolicy>("/api/policy").await.overrides, []);
}

#[tokio::test]
async fn the_document_has_every_endpoint_and_no_other_methods_are_served() {
    let (_server, admin) = start(ROOMY).await;
    let paths = admin.document["paths"].as_object().unwrap();
    let documented: Vec<_> = paths
        .iter()
        .map(|(path, methods)| {
            let mut methods: Vec<_> =
                methods.as_object().unwrap().keys().map(String::as_str).collect();
            methods.sort_unstable();
            format!("{path} {}", methods.join(" "))
        })
        .collect();
    assert_eq!(
        documented,
        [
            "/api/api-keys/{api_key} get",
            "/api/api-keys/{api_key}/disabled delete put",
            "/api/api-keys/{api_key}/limits/{service} delete put",
            "/api/audit get",
            "/api/events get",
            "/api/fleet get",
            "/api/fleet/step-down post",
            "/api/openapi.json get",
            "/api/organizations get",
            "/api/organizations/{organization} get",
            "/api/organizations/{organization}/disabled delete put",
            "/api/organizations/{organization}/limits/{service} delete put",
            "/api/overview get",
            "/api/policy get",
            "/api/policy/reload post",
            "/api/refusals get",
            "/api/sessions get",
            "/api/sessions/{lease} delete get",
        ]
    );
    assert_eq!(admin.document["info"]["title"], "tgm-session admin API");
    let host = admin.address.to_string();
    for (path, methods) in paths {
        let path = path.replace(['{', '}'], "");
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            if methods.get(method.to_ascii_lowercase()).is_none() {
                let headers = [("host", &*host)];
                let answer =
                    crate::admin_client::raw(admin.address, method, &path, &headers, "").await;
                assert!(answer.problem(405).contains(method), "{path}");
                let allowed = answer.header("allow").unwrap().to_ascii_lowercase();
                for method in methods.as_object().unwrap().keys() {
                    assert!(allowed.contains(method), "{path}: {allowed}");
                }
            }
        }
    }
}

#[tokio::test]
async fn no_answer_and_no_status_has_characters_that_change_how_other_text_is_shown() {
    use tgm_session_server::text::is_plain;

    const HOSTILE: &str = "ac\u{202e}me\u{200b}\u{2028}\u{9b}2J\u{e0041}\n";
    let file = "[services.t1r]\nmax_per_organization = 1";
    let server = TestServer::memory(file).await;
    let mut client = server.client();
    client.borrow(session(HOSTILE).trace(HOSTILE).api_key(HOSTILE)).await;
    client.refused(session(HOSTILE).trace(HOSTILE)).await;
    for service in [HOSTILE, "\u{202e}"] {
        let status = client.ask(session("acme").service(service)).await.unwrap_err();
        assert!(status.message().contains("202e") && status.message().chars().all(is_plain));
    }
    let by = tgm_session_server::operator::By { from: "test", note: HOSTILE };
    let organization = tgm_session_server::policy::overrides::Subject::Organization;
    let done = server.running.operator().set_disabled(organization, HOSTILE, Some(true), by).await;
    assert!(done.unwrap().summary.chars().all(is_plain));
    let encoded: String = HOSTILE.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for path in [
        "/api/overview".to_owned(),
        "/api/organizations".to_owned(),
        format!("/api/organizations/{encoded}"),
        format!("/api/organizations/{encoded}x"),
        format!("/api/api-keys/{encoded}x"),
        format!("/api/sessions?organization={encoded}"),
        format!("/api/sessions?after={encoded}"),
        "/api/refusals".to_owned(),
        "/api/audit".to_owned(),
        "/api/policy".to_owned(),
    ] {
        let (_, body) = get(server.running.admin_address(), &path, "").await;
        assert!(body.chars().all(is_plain), "{path}: {body:?}");
    }
    let (_, told) = get(server.running.admin_address(), "/api/refusals", "").await;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["refusals"][0]["organization"], HOSTILE);
}
