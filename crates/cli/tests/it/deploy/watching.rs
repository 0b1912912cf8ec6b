//! Checks the dashboard, the alert rules and the table of metrics against the metrics of a busy
//! server.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tonic::Request;
use tonic::transport::Endpoint;
use wire::metering::{Event, Metric};
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{BorrowWorkerRequest, KeepAliveRequest, ReturnWorkerRequest};

use super::{Settings, get, root, text, tool, yaml};
use crate::harness::{PATIENCE, Serve, file, folder};
use store::testing::cluster::Cluster;

const POLICY: &str = "
[services.t1r]
max_per_organization = 1
max_per_api_key = 5
max_total = 100
";

/// The metrics of a server: for each sample name its labels, and for each label its values.
struct Page(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Page {
    /// `None` where the test is skipped, because there is no database for a fleet.
    fn of_a_busy_server() -> Option<Self> {
        let [busy, others @ ..] = pages()?;
        let mut page = Self::read(&busy);
        // A server with TLS and one of a fleet have additional metrics.
        for other in others {
            page.0
                .extend(Self::read(&other).0.into_iter().filter(|(name, _)| !busy.contains(name)));
        }
        Some(page)
    }

    fn read(page: &str) -> Self {
        let mut samples = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (name, labels) = match line.split_once('{') {
                Some((name, rest)) => (name, rest.rsplit_once('}').unwrap().0),
                None => (line.split_once(' ').unwrap().0, ""),
            };
            let known = samples.entry(name.to_owned()).or_default();
            for (label, value) in matchers(labels).map(|(label, _, value)| (label, value)) {
                known.entry(label.to_owned()).or_default().insert(value.to_owned());
            }
        }
        Self(samples)
    }

    /// Whether the page has samples of this name.
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Fails if `expression` names a metric, a label or a value that the page does not have.
    fn check(&self, place: &str, expression: &str) {
        let mut selectors = 0;
        for (name, labels) in selectors_of(expression) {
            selectors += 1;
            if name == "up" {
                continue; // Prometheus's own
            }
            let known = self.0.get(name);
            let known = known.unwrap_or_else(|| panic!("{place}: there is no {name}"));
            for (label, operator, value) in matchers(labels) {
                if matches!(label, "instance" | "job") {
                    continue; // Prometheus adds them
                }
                let values = known.get(label);
                let values = values.unwrap_or_else(|| panic!("{place}: {name} has no {label}"));
                // This test does not produce every code.
                if label != "code" {
                    for value in value.split('|').filter(|_| operator.len() <= 2) {
                        assert!(values.contains(value), "{place}: {name} has no {label}={value}");
                    }
                }
            }
        }
        assert!(selectors > 0, "{place}: {expression:?} asks for nothing");
    }
}

/// The default pages of `/metrics` of three servers: one that has handled calls of every kind, one with
/// TLS, and one that leads a fleet. `None` where the test is skipped.
fn pages() -> Option<[String; 3]> {
    let cluster = Cluster::start()?;
    let folder = folder();
    let policy = file(&folder, "policy.toml", POLICY);
    let serve = Serve::with_policy(&folder, &policy);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(keep_busy(&serve.grpc));
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = file(&folder, "server.pem", &signed.cert.pem());
    let key = file(&folder, "server.key", &signed.signing_key.serialize_pem());
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let with_tls =
        Serve::start(["--store", "memory:", "--tls-cert", certificate, "--tls-key", key]);
    let store = format!("postgres://tgm@127.0.0.1:{}/postgres", cluster.port);
    let of_a_fleet = Serve::start(["--store", &store]);
    let page = |serve: &Serve| {
        let (status, page) = get(&serve.admin, "/metrics");
        assert_eq!(status, 200, "{page}");
        page
    };
    let start = Instant::now();
    while !page(&of_a_fleet).contains("tgm_session_leader_changes_total ") {
        assert!(start.elapsed() < PATIENCE, "nobody leads");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some([page(&serve), page(&with_tls), page(&of_a_fleet)])
}

/// Runs `promtool`, as [`tool`] does.
fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(root());
    tool(promtool, "prometheus", input)
}

async fn keep_busy(address: &str) {
    let channel =
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut pool = WorkerPoolClient::new(channel.clone());
    let (service, organization_id) = ("t1r".to_owned(), "acme".to_owned());
    let borrow = BorrowWorkerRequest { service, organization_id, ..Default::default() };
    let granted = pool.borrow_worker(borrow.clone()).await.unwrap().into_inner();
    let worker_key = granted.worker_key;
    assert!(!worker_key.is_empty());
    let denied = pool.borrow_worker(borrow).await.unwrap();
    assert_eq!(denied.metadata().get("x-denied-scope").unwrap(), "organization");
    let kept = KeepAliveRequest { worker_key: worker_key.clone(), ..Default::default() };
    pool.keep_alive(kept).await.unwrap();
    let back = ReturnWorkerRequest { worker_key, ..Default::default() };
    pool.return_worker(back).await.unwrap();
    pool.borrow_worker(BorrowWorkerRequest::default()).await.unwrap_err();
    let metrics = vec![Metric { key: "egress_bytes".to_owned(), value: 1.0 }];
    let event = Event { organization_id: "acme".to_owned(), metrics, ..Default::default() };
    let report = Request::new(ReportRequest { events: vec![event] });
    UsageServiceClient::new(channel).report(report).await.unwrap();
}

/// The metrics of an expression of PromQL, each with the text between its braces.
fn selectors_of(expression: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_name = |char: char| char.is_ascii_alphanumeric() || "_:".contains(char);
    let mut rest = expression;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(is_name)?;
            let word = &rest[start..];
            let (word, after) = word.split_at(word.find(|c| !is_name(c)).unwrap_or(word.len()));
            rest = after;
            // The labels after `by` and `without`, and durations in brackets, are not metrics.
            if matches!(word, "by" | "without") {
                rest = after.split_once(')')?.1;
            } else if expression[..expression.len() - after.len() - word.len()].ends_with('[') {
                rest = after.split_once(']')?.1;
            } else if let Some(labels) = after.strip_prefix('{') {
                let (labels, after) = labels.split_once('}')?;
                rest = after;
                return Some((word, labels));
            } else if word == "up" || word.starts_with("tgm_session_") {
                return Some((word, ""));
            }
        }
    })
}

/// The matchers of a selector: each label, its operator and its value.
fn matchers(labels: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    labels.split("\",").filter(|it| !it.is_empty()).map(|matcher| {
        let matcher = matcher.strip_suffix('"').unwrap_or(matcher);
        let (label, value) = matcher.split_once('"').unwrap();
        let operator = label.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        (&label[..label.len() - operator.len()], operator, value)
    })
}

/// The rules of `deploy/alerts.yml`.
fn rules() -> Vec<Value> {
    let rules = yaml("deploy/alerts.yml");
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The panels of the dashboard.
fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana-dashboard.json")).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

#[test]
fn a_busy_server_has_every_metric_of_the_dashboard_and_the_alerts() {
    let Some(page) = Page::of_a_busy_server() else { return };
    for rule in rules() {
        page.check(rule["alert"].as_str().unwrap(), rule["expr"].as_str().unwrap());
    }
    let mut asked = 0;
    for panel in panels() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "5m");
            page.check(title, &expression.replace("$instance", ".*"));
            asked += 1;
        }
        assert!(panel["type"] == "row" || !panel["description"].as_str().unwrap().is_empty());
    }
    assert!(asked > 20, "only {asked} queries");
    let instances = text("deploy/grafana-dashboard.json");
    assert!(instances.contains("label_values(tgm_session_store_ready, instance)"));
    assert!(page.has("tgm_session_store_ready"));
}

#[test]
fn the_table_of_the_manual_lists_exactly_the_metrics_of_the_server() {
    let Some(page) = Page::of_a_busy_server() else { return };
    let manual = text("docs/operations.md");
    let table = manual.split_once("| metric (`tgm_session_…`) | |\n").unwrap().1;
    let mut documented = BTreeSet::new();
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let names = row.split('|').nth(1).unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let name = format!("tgm_session_{name}");
            let sample = if page.has(&name) { name.clone() } else { format!("{name}_count") };
            let known = page.0.get(&sample).unwrap_or_else(|| panic!("there is no {name}"));
            let labels = labels.trim_end_matches('}').split(',').filter(|it| !it.is_empty());
            let expected: BTreeSet<_> = labels.map(str::to_owned).collect();
            assert_eq!(known.keys().cloned().collect::<BTreeSet<_>>(), expected, "{name}");
            documented.insert(name);
        }
    }
    for name in page.0.keys() {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let base = base.filter(|base| documented.contains(*base)).unwrap_or(name);
        assert!(documented.contains(base), "{name} is in no table");
    }
}

#[test]
fn every_alert_has_a_description_a_severity_and_a_runbook() {
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap().to_owned();
        let annotation = |key: &str| {
            let text = rule["annotations"][key].as_str();
            text.filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("{name} has no {key}"))
        };
        annotation("summary");
        annotation("description");
        let (path, heading) = annotation("runbook_url").split_once('#').unwrap();
        assert_eq!(path, "docs/operations.md", "{name}");
        assert!(
            super::documents::anchors(&text(path)).contains(heading),
            "{name}: {path} has no heading #{heading}"
        );
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("page" | "ticket")), "{name}: {severity:?}");
        assert!(names.insert(name.clone()), "two alerts are called {name}");
    }
    assert!(names.len() > 7, "only {names:?}");
}

#[test]
fn promtool_finds_no_error_in_the_metrics_and_the_rules() {
    let Some(pages) = pages() else { return };
    for page in pages {
        let Some((valid, told)) = promtool(&["check", "metrics"], &page) else { return };
        assert!(valid && told.is_empty(), "{told}\n{page}");
    }
    let rules = promtool(&["check", "rules", "deploy/alerts.yml"], "");
    let (valid, told) = rules.expect("it was there a moment ago");
    assert!(valid && told.contains("SUCCESS"), "{told}");
}

#[test]
fn prometheus_scrapes_the_admin_port_under_the_job_name_of_the_alerts() {
    let settings = Settings::of_serve();
    let prometheus = yaml("deploy/prometheus.yml");
    let job = &prometheus["scrape_configs"][0];
    assert_eq!(prometheus["rule_files"][0], "alerts.yml");
    let target = job["static_configs"][0]["targets"][0].as_str().unwrap();
    let (host, port) = target.split_once(':').unwrap();
    assert_eq!(port, settings.default_port("admin-listen"));
    assert!(yaml("deploy/compose.yaml")["services"].get(host).is_some(), "nobody is called {host}");
    let named = format!("job=\"{}\"", job["job_name"].as_str().unwrap());
    assert!(rules().iter().any(|rule| rule["expr"].as_str().unwrap().contains(&named)));
}

#[test]
fn pages_and_expressions_are_parsed_as_prometheus_parses_them() {
    let page = Page::read("# TYPE a counter\na_total{x=\"1,2\",y=\"\"} 3\nb 4\n# EOF\n");
    assert_eq!(page.0["a_total"]["x"], BTreeSet::from(["1,2".to_owned()]));
    assert!(page.has("b") && page.0["b"].is_empty());
    let found: Vec<_> = selectors_of(
        "sum by (tgm_session_x) (rate(tgm_session_a{i=~\"v|w\"}[5m])) > 2 * up and tgm_session_b",
    )
    .collect();
    assert_eq!(found, [("tgm_session_a", "i=~\"v|w\""), ("up", ""), ("tgm_session_b", "")]);
    assert_eq!(
        matchers("i=~\"v|w\",j=\"k\"").collect::<Vec<_>>(),
        [("i", "=~", "v|w"), ("j", "=", "k"),]
    );
}
