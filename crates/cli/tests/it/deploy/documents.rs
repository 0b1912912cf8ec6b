//! The examples of the documents are valid, and everything that the documents name exists.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tgm_session_server::{Loaded, Policy};

use super::{Settings, flags, get, named_flags, root, text};
use crate::harness::{PATIENCE, Serve, folder, run, store};
use store::testing::cluster::Cluster;

/// The documents for those who run the server or use the library.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "docs/operations.md",
    "docs/fleet.md",
    "docs/policy.md",
    "docs/protocol.md",
    "docs/faults.md",
];

/// The fenced blocks of a language, each with the line it begins on.
fn blocks<'t>(document: &'t str, language: &str) -> Vec<(usize, &'t str)> {
    let fence = format!("```{language}\n");
    let starts = document.match_indices(&fence).map(|(place, _)| place + fence.len());
    let block = |start: usize| {
        let length = document[start..].find("```").expect("a block that ends");
        (document[..start].matches('\n').count() + 1, &document[start..start + length])
    };
    starts.map(block).collect()
}

/// The code in a document: lines of fenced blocks, and text between backticks.
fn code(document: &str) -> Vec<&str> {
    let mut code = Vec::new();
    let mut fenced = false;
    for line in document.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            code.push(line);
        } else {
            code.extend(line.split('`').skip(1).step_by(2));
        }
    }
    code
}

/// The anchors of the headings of a document, as links use them.
pub(crate) fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
        kept.map(|char| if char == ' ' { '-' } else { char }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_policy_in_the_manuals_is_valid() {
    let mut found = 0;
    for path in ["README.md", "docs/policy.md", "docs/operations.md"] {
        let text = text(path);
        // Some TOML blocks are not policies but dependencies of a crate.
        let policies =
            blocks(&text, "toml").into_iter().filter(|(_, it)| !it.contains("dependencies"));
        for (line, block) in policies {
            if let Err(error) = Loaded::parse(block, "block") {
                panic!("{path}, the block of line {line}: {error}");
            }
            found += 1;
        }
    }
    assert!(found > 6, "only {found} blocks");
}

#[test]
fn every_key_of_a_policy_is_in_its_manual() {
    let manual = text("docs/policy.md");
    // The error of an unknown key lists all known keys.
    for section in ["", "services.a", "plans.a", "organizations.a", "api_keys.a", "[indexers]"] {
        let table = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let error = Policy::parse(&format!("{table}unheard_of = 1\n"), "file").unwrap_err();
        let error = error.each().map(|error| error.problem).collect::<Vec<_>>().join("; ");
        let known = error.split_once("expected").unwrap_or_else(|| panic!("{error}")).1;
        let mut keys = 0;
        for key in known.split('`').skip(1).step_by(2) {
            let named =
                manual.contains(&format!("`{key}`")) || manual.contains(&format!("\n{key} ="));
            let named = named || manual.contains(&format!("[{key}"));
            assert!(named, "{section}: {key} is not in docs/policy.md");
            keys += 1;
        }
        assert!(keys > 1, "{section}: {error}");
    }
}

#[test]
fn every_flag_in_the_manuals_is_one_of_the_binary() {
    let known = flags();
    assert!(known.contains("--listen") && known.contains("--workers"), "{known:?}");
    // Other programs have flags of their own.
    let others = ["curl", "docker", "openssl", "cargo", "scripts/", "install ", "h2load", "etcd "];
    let mut found = 0;
    for path in DOCUMENTS {
        let document = text(path);
        for code in code(&document) {
            if others.iter().any(|other| code.contains(other)) || code.contains("--common-") {
                continue;
            }
            for flag in named_flags(code) {
                assert!(known.contains(flag), "{path}: there is no {flag}: {code}");
                found += 1;
            }
        }
    }
    assert!(found > 10, "only {found} flags");
}

#[test]
fn the_urls_for_firehose_name_the_default_port_of_the_server() {
    let folder = folder();
    let serve = Serve::start(["--store", &store(&folder)]);
    let port = Settings::of_serve().default_port("listen");
    let mut found = 0;
    for path in ["README.md", "docs/operations.md"] {
        let document = text(path);
        for line in document.lines().filter(|line| line.starts_with("firecore start ")) {
            let url = line.split_once("--common-session-plugin='").unwrap().1;
            let url = url.strip_suffix('\'').unwrap();
            assert!(url.contains(&format!("127.0.0.1:{port}?")), "{path}: {line}");
            let url = url.replace(&format!("127.0.0.1:{port}"), &serve.grpc);
            // With its default authentication, Firehose names no organization.
            let ran = run(["borrow", &url, "--organization", "", "--for", "1ms"]);
            assert_eq!(ran.code, Some(0), "{path}: {line}: {ran:?}");
            found += 1;
        }
    }
    assert!(found > 3, "only {found} lines");
}

#[test]
fn every_setting_in_the_table_of_bounds_exists() {
    let known = flags();
    let manual = text("docs/protocol.md");
    let table = manual.split_once("| | | setting |\n").unwrap().1;
    let mut found = 0;
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let settings = row.split('|').nth(3).unwrap();
        for name in settings.split('`').skip(1).step_by(2) {
            let flag = format!("--{}", name.replace('_', "-"));
            assert!(known.contains(&flag), "there is no setting {name}");
            found += 1;
        }
    }
    assert!(found > 5, "only {found} settings");
}

#[test]
fn every_command_in_the_manual_for_operators_is_valid() {
    let manual = text("docs/operations.md");
    let act = manual.split_once("\n## Act\n").unwrap().1.split_once("\n## ").unwrap().0;
    let mut found = 0;
    for line in act.lines().filter_map(|line| line.strip_prefix("tgm-session ")) {
        let command = line.split_once(" #").map_or(line, |(command, _)| command);
        let words = command.split_whitespace().map(|word| match word {
            "NUMBER" => "000000000000000000000000",
            word => word,
        });
        // The note is cut off, because splitting at white space does not keep its quoted words
        // together.
        let words: Vec<_> = words.take_while(|word| !word.starts_with('\'')).collect();
        let words = words.strip_suffix(&["--note"]).unwrap_or(&words);
        let nowhere = ["--admin", "http://127.0.0.1:1"];
        let ran = run(words.iter().chain(&nowhere));
        assert_eq!(ran.code, Some(4), "{command}: {ran:?}");
        found += 1;
    }
    assert!(found > 5, "only {found} commands");
}

#[test]
fn every_endpoint_in_the_manuals_is_served() {
    let folder = folder();
    let serve = Serve::start(["--store", &store(&folder)]);
    let (status, api) = get(&serve.admin, "/api/openapi.json");
    assert_eq!(status, 200);
    let api: Value = serde_json::from_str(&api).unwrap();
    let served: Vec<_> = api["paths"].as_object().unwrap().keys().cloned().collect();
    let is_served = |path: &str| {
        served.iter().any(|known| {
            let (known, path) = (known.split('/'), path.split('/'));
            known.clone().count() == path.clone().count()
                && known.zip(path).all(|(known, part)| known == part || known.starts_with('{'))
        })
    };
    let mut found = 0;
    for path in DOCUMENTS {
        let document = text(path);
        for code in code(&document) {
            let starts = code.match_indices("/api/").map(|(place, _)| &code[place..]);
            for endpoint in starts {
                let end = endpoint.find(|char: char| " '\"?`".contains(char));
                let endpoint = &endpoint[..end.unwrap_or(endpoint.len())];
                let mapped = endpoint == "/api/openapi.json" || is_served(endpoint);
                assert!(mapped, "{path}: nothing is served at {endpoint}");
                found += 1;
            }
        }
    }
    assert!(found > 4, "only {found} endpoints");
    for probe in ["/livez", "/healthz", "/readyz", "/metrics", "/"] {
        assert_eq!(get(&serve.admin, probe).0, 200, "{probe}");
    }
}

#[test]
fn every_link_between_the_documents_has_a_target() {
    let mut found = 0;
    for path in DOCUMENTS.iter().chain(&["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]) {
        let document = text(path);
        let folder = root().join(Path::new(path).parent().unwrap());
        for target in document.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let target = target.0;
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let linked = if file.is_empty() { root().join(path) } else { folder.join(file) };
            assert!(linked.exists(), "{path}: {target} leads nowhere");
            if !heading.is_empty() {
                let there = anchors(&std::fs::read_to_string(linked).unwrap());
                assert!(there.contains(heading), "{path}: {target} is no heading");
            }
            found += 1;
        }
    }
    assert!(found > 10, "only {found} links");
}

#[test]
fn every_step_of_the_architecture_is_a_function_of_that_file() {
    let mut found = 0;
    let document = text("ARCHITECTURE.md");
    for step in document.split('`').skip(1).step_by(2) {
        let Some((file, function)) = step.split_once(".rs: ") else { continue };
        let file = root().join(format!("crates/{file}.rs"));
        let code = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{step}: {error}"));
        let is_there =
            code.contains(&format!("fn {function}(")) || code.contains(&format!("fn {function}<"));
        assert!(is_there, "there is no function of the step {step}");
        found += 1;
    }
    assert!(found > 25, "only {found} steps");
}

/// The functions of the test files in a folder of the repository.
fn tests_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = std::fs::read_to_string(path).unwrap();
            let mut lines = code.lines();
            let is_test =
                |line: &str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            while lines.any(is_test) {
                let function = lines.find_map(|line| line.split_once("fn "));
                let name = function.and_then(|(_, rest)| rest.split_once('('));
                found.extend(name.map(|(name, _)| name.to_owned()));
            }
        }
    }
}

#[test]
fn every_fault_of_a_fleet_names_a_test_that_exists() {
    let manual = text("docs/fleet.md");
    let table = manual.split_once("| fault | outcome | test |\n").unwrap().1;
    let mut rows = 0;
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let (folder, test) = row.split('|').nth(3).unwrap().trim().split_once(": ").unwrap();
        let mut tests = BTreeSet::new();
        tests_in(&root().join("crates").join(folder), &mut tests);
        let test = test.trim_matches('`');
        assert!(tests.contains(test), "{folder} has no test {test}");
        rows += 1;
    }
    assert!(rows > 10, "only {rows} rows");
}

#[test]
fn two_servers_start_as_the_manual_for_a_fleet_says() {
    let Some(cluster) = Cluster::start() else { return };
    let manual = text("docs/fleet.md");
    let here = |command: &str| {
        command
            .replace("127.0.0.1:5432/sessions", &format!("127.0.0.1:{}/postgres", cluster.port))
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let commands: Vec<_> = blocks(&manual, "sh")
        .into_iter()
        .flat_map(|(_, block)| block.lines())
        .filter_map(|line| line.strip_prefix("tgm-session "))
        .collect();
    let serve = commands.iter().filter(|it| it.starts_with("serve ") && it.contains("127.0.0.1"));
    let mut servers = Vec::new();
    for command in serve {
        // The ports are free ones.
        let mut words = here(command);
        words.retain(|word| !word.starts_with("127.0.0.1:") && !word.ends_with("listen"));
        servers.push(Serve::start(&words[1..]));
    }
    assert_eq!(servers.len(), 2);
    let admin = format!("http://{}", servers[1].admin);
    let start = Instant::now();
    loop {
        let ran = run(["fleet", "--admin", &admin, "--format", "json"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let fleet = &ran.json()[0];
        if fleet["servers"].as_array().unwrap().len() == 2
            && fleet["warnings"] == Value::Array(vec![])
        {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{ran:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let inspect = commands.iter().find(|it| it.starts_with("store inspect ")).unwrap();
    let ran = run(here(inspect));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("leads its fleet in term 1"), "{ran:?}");
}
