//! `check` and `serve` refuse the same files, with the same errors.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::harness::{self, Ran, Serve, command, file, finish, folder, run};
use serde_json::Value;
use tempfile::TempDir;

/// The errors on standard error, each without its prefix.
fn errors(ran: &Ran) -> Vec<String> {
    let errors = ran.stderr.lines().filter_map(|line| line.strip_prefix("error: "));
    errors.map(str::to_owned).collect()
}

/// The commands `check` and `serve` for `policy`, both with these flags and variables.
fn both(policy: &str, flags: &[&str], variables: &[(&str, &str)]) -> [Command; 2] {
    let with = |mut command: Command| {
        command.args(flags).envs(variables.iter().copied());
        command
    };
    let serve = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let is_given = |flag: &&str| {
        let named = flag.trim_start_matches("--").replace('-', "_");
        flags.contains(flag) || std::fs::read_to_string(policy).unwrap().contains(&named)
    };
    // Listen on free ports, unless the case sets the addresses.
    let mut serving = vec![serve[0]];
    for pair in serve[1..].chunks(2).filter(|pair| !is_given(&pair[0])) {
        serving.extend(pair);
    }
    [
        with(command(["check", policy])),
        with(command([&serving[..], &["--config", policy]].concat())),
    ]
}

/// Asserts that `check` and `serve` refuse a policy with this code, and with these errors.
fn assert_refused(
    folder: &TempDir,
    text: &str,
    flags: &[&str],
    variables: &[(&str, &str)],
    code: i32,
    parts: &[String],
) {
    let policy = file(folder, "policy.toml", text).display().to_string();
    let [check, serve] = both(&policy, flags, variables).map(finish);
    assert_eq!((check.code, serve.code), (Some(code), Some(code)), "{text}{check:?}{serve:?}");
    let told = errors(&check);
    assert_eq!(told, errors(&serve), "{text}{flags:?}");
    assert_eq!(told.len(), parts.len(), "{text}{told:?}");
    for (told, part) in told.iter().zip(parts) {
        assert!(told.contains(part.as_str()), "{part:?} is not in {told:?}");
    }
    assert_eq!((&*check.stdout, &*serve.stdout), ("", ""), "{text}");
    assert!(!format!("{check:?}{serve:?}").contains("s3cret"), "{text}");
}

#[test]
fn check_refuses_whatever_serve_refuses_with_the_same_errors() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    file(&folder, "over.pem", &params.self_signed(&key).unwrap().pem());
    file(&folder, "over.key", &key.serialize_pem());
    file(&folder, "token", "s3cret \n");
    let missing = path("missing");
    let tls = |certificate: &str, key: &str| {
        let (certificate, key) = (path(certificate), path(key));
        format!("[server]\ntls_cert = '{certificate}'\ntls_key = '{key}'\n[services.t1r]\n")
    };
    let server = |line: &str| format!("[server]\n{line}\n[services.t1r]\n");
    let valid = "[services.t1r]\n".to_owned();
    type Case<'a> = (String, Vec<&'a str>, Vec<(&'a str, &'a str)>, i32, Vec<String>);
    let told = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let token_file = format!("admin_token_file = '{}'", path("token"));
    let both_tokens = format!("admin_token = 't'\n{token_file}");
    let store = format!("store = 'file:{missing}/deeper/sessions.redb'");
    let keys = "[services.t1r]\n[[indexers]]\nname = 'west'\nkey_sha256_file = 'missing'\n";
    let cases: Vec<Case<'_>> = vec![
        (server("listen = '0.0.0.0:0'"), vec![], vec![], 2, told(&["has no indexers"])),
        (valid.clone(), vec!["--listen", "0.0.0.0:0"], vec![], 2, told(&["has no indexers"])),
        (
            valid.clone(),
            vec![],
            vec![("TGM_SESSION_GRPC_WEB_ORIGINS", "*")],
            2,
            told(&["TGM_SESSION_GRPC_WEB_ORIGINS: \"*\" is no origin"]),
        ),
        (server("admin_listen = '0.0.0.0:0'"), vec![], vec![], 2, told(&["no admin token"])),
        (
            server("listen = '0.0.0.0:0'\nadmin_listen = '0.0.0.0:0'"),
            vec![],
            vec![],
            2,
            told(&["has no indexers", "no admin token"]),
        ),
        (
            tls("gone.pem", "gone.key"),
            vec![],
            vec![],
            2,
            told(&["gone.pem for TLS", "gone.key for TLS"]),
        ),
        (tls("over.pem", "over.key"), vec![], vec![], 2, told(&["expired at 2020-01-01"])),
        (server("tls_cert = 'x'"), vec![], vec![], 2, told(&["needs its key"])),
        (server("store = 'redis://h'"), vec![], vec![], 2, told(&["redis://h"])),
        (server("store = 'etcd://u:s3cret@h'"), vec![], vec![], 1, told(&["ETCDCTL_PASSWORD"])),
        (server("store = 'etcd://h:x/a'"), vec![], vec![], 1, told(&["a port is no number"])),
        (
            server("store = 'etcd://h/a'"),
            vec![],
            vec![("ETCDCTL_CACERT", "/gone.pem")],
            1,
            told(&["`ETCDCTL_CACERT=/gone.pem`"]),
        ),
        (server("grpc_web_origins = ['a']"), vec![], vec![], 2, told(&["\"a\" is no origin"])),
        (server(&token_file), vec![], vec![], 2, told(&["ends with a space"])),
        (server(&both_tokens), vec![], vec![], 2, told(&["give one of them"])),
        // A store that cannot be opened is not a usage error.
        (server(&store), vec![], vec![], 1, told(&["does not exist"])),
        (server("idle_timeout = '4m'"), vec![], vec![], 2, told(&["between 5m and 1day"])),
        (
            server("idle_timeout = '4m'"),
            vec!["--threads", "0", "--max-streams", "x"],
            vec![("TGM_SESSION_PING_TIMEOUT", "never")],
            2,
            told(&["--max-streams", "--threads", "TGM_SESSION_PING_TIMEOUT", "idle_timeout"]),
        ),
        // An invalid setting is not reported as missing too.
        (
            server("admin_listen = '0.0.0.0:0'"),
            vec!["--admin-token="],
            vec![],
            2,
            told(&["an empty token"]),
        ),
        (
            server("admin_listen = '0.0.0.0:0'\nadmin_token = ''"),
            vec![],
            vec![],
            2,
            told(&["an empty token"]),
        ),
        (
            server("listen = '0.0.0.0:0'"),
            vec!["--allow-anonymous=maybe"],
            vec![],
            2,
            told(&["--allow-anonymous"]),
        ),
        (valid.clone(), vec!["--tls-cert=", "--tls-key=x"], vec![], 2, told(&["--tls-cert"])),
        (
            valid.clone(),
            vec!["--listen", "0.0.0.0:0", "--max-streams", "x"],
            vec![],
            2,
            told(&["--max-streams", "has no indexers"]),
        ),
        // An invalid flag does not hide the errors of other settings.
        (
            tls("gone.pem", "gone.key"),
            vec!["--threads", "0", "--admin-listen", "0.0.0.0:0"],
            vec![],
            2,
            told(&["--threads", "no admin token", "gone.pem for TLS", "gone.key for TLS"]),
        ),
        (keys.to_owned(), vec![], vec![], 2, told(&["key_sha256_file"])),
        // Errors of the policy do not hide errors of settings. Missing indexers are not reported,
        // because the indexers of an invalid policy are unknown.
        (
            tls("gone.pem", "gone.key").replace(
                "[server]",
                "[server]\nstore = 'redis://h'\nlisten = '0.0.0.0:0'\nadmin_listen = '0.0.0.0:0'",
            ) + "ttl = 5\n",
            vec![],
            vec![],
            2,
            told(&["redis://h", ":8:", "no admin token", "gone.pem for TLS", "gone.key for TLS"]),
        ),
        ("[services.t1r\n".to_owned(), vec![], vec![], 2, told(&[":1:"])),
        (
            "[services.t1r]\nttl = 5\nmax_total = -1\n".to_owned(),
            vec![],
            vec![],
            2,
            told(&[":2:", ":3:"]),
        ),
        ("\u{0}".to_owned(), vec![], vec![], 2, told(&[":1:"])),
    ];
    for (text, flags, variables, code, parts) in cases {
        assert_refused(&folder, &text, &flags, &variables, code, &parts);
    }
    let gone = path("gone.toml");
    let check = run(["check", &gone]);
    let serve = run(["serve", "--config", &gone]);
    assert_eq!((check.code, errors(&check)), (serve.code, errors(&serve)));
    assert_eq!(check.code, Some(2));
}

#[test]
fn a_fleet_that_is_not_reached_or_not_securely_is_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut certificates = Vec::new();
    for name in ["own", "other"] {
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        file(&folder, &format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        file(&folder, &format!("{name}.key"), &key.serialize_pem());
        certificates.push((path(&format!("{name}.pem")), path(&format!("{name}.key"))));
    }
    let (own, key) = &certificates[0];
    let store = "store = 'postgres://tgm:s3cret@127.0.0.1:1/x'\nallow_anonymous = true\n";
    let tls = format!("{store}tls_cert = '{own}'\ntls_key = '{key}'\n");
    let away = "advertise = 'a.example:9010'\n";
    let other = &certificates[1].1;
    let cases = [
        // Where the others reach this server.
        (format!("{store}listen = '0.0.0.0:0'\n"), vec!["--advertise HOST:PORT"]),
        (format!("{store}{away}"), vec!["a.example:9010, which is not loopback"]),
        (format!("{store}advertise = '0.0.0.0:1'\n"), vec!["every address of a machine"]),
        (format!("{store}advertise = 'a.example'\n"), vec!["write a host and a port"]),
        // How they are verified, and what they show.
        (format!("{tls}{away}"), vec!["fleet_ca: the servers of the fleet connect"]),
        (tls.clone(), vec!["fleet_ca: the servers of the fleet connect"]),
        (format!("{store}fleet_ca = '{own}'\n"), vec!["fleet_ca: the gRPC port of each server"]),
        (format!("{tls}{away}fleet_ca = '/gone.pem'\n"), vec!["cannot use /gone.pem for TLS"]),
        (format!("{tls}fleet_ca = '{key}'\n"), vec!["there is no certificate in it"]),
        (format!("{tls}fleet_ca = '{own}'\nfleet_cert = '{own}'\n"), vec!["its key: fleet_key"]),
        (
            format!("{tls}fleet_ca = '{own}'\nfleet_key = '{key}'\n"),
            vec!["certificate: fleet_cert"],
        ),
        (
            format!("{tls}fleet_ca = '{own}'\nfleet_cert = '{own}'\nfleet_key = '{other}'\n"),
            vec!["it is not the key of the certificate"],
        ),
        (
            format!("{tls}tls_client_ca = '{own}'\nfleet_ca = '{own}'\n"),
            vec!["fleet_cert: the gRPC ports of the fleet ask"],
        ),
        (
            format!("{store}fleet_cert = '{own}'\nfleet_key = '{key}'\n"),
            vec!["shown under TLS only"],
        ),
        (format!("{store}leader_ttl = '900ms'\n"), vec!["between 1s and 1m"]),
        // What only a fleet needs.
        (
            format!("store = 'memory:'\n{away}leader_ttl = '6s'\nfleet_ca = '{own}'\n"),
            vec!["advertise: servers", "leader_ttl: servers", "fleet_ca: servers"],
        ),
    ];
    for (server, parts) in cases {
        let text = format!("[server]\n{server}[services.t1r]\n");
        let parts: Vec<_> = parts.into_iter().map(str::to_owned).collect();
        assert_refused(&folder, &text, &[], &[], 2, &parts);
    }
    let valid = format!(
        "[server]\n{tls}{away}tls_client_ca = '{own}'\nfleet_ca = '{own}'\nfleet_cert = '{own}'\n\
         fleet_key = '{key}'\nlisten = '0.0.0.0:0'\n[services.t1r]\n"
    );
    let policy = file(&folder, "policy.toml", &valid);
    let ran = run(["check".as_ref(), policy.as_os_str()]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
}

#[test]
fn serve_starts_with_what_check_finds_valid() {
    let folder = folder();
    let text = "[server]\ndefault_organization = 'nobody'\n[services.t1r]\nttl = '30s'\n";
    let policy = file(&folder, "policy.toml", text);
    let check = run(["check".as_ref(), policy.as_os_str()]);
    assert_eq!((check.code, &*check.stderr), (Some(0), ""), "{check:?}");
    Serve::with_policy(&folder, &policy);
}

#[test]
fn all_errors_of_a_file_are_reported_at_once_with_their_lines() {
    let folder = folder();
    let text = "[server]
lissten = '127.0.0.1:1'
max_streams = 0
[services.t1r]
ttl = 5
max_totl = 3
[services.t2w]
max_total = -1
minimal_life = '11m'
[plans.pro]
limits = { t1 = 3 }
budgets = { egress_bytes = { amount = 'x', per = 'day' } }
[organizations.acme]
plan = 'pri'
[[indexers]]
key_sha256 = '00'
[services.t3x]
observe = 'no'
";
    let policy = file(&folder, "policy.toml", text);
    let ran = run(["check".as_ref(), policy.as_os_str()]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let line = |error: &String| {
        let place = error.strip_prefix(&format!("{}:", policy.display())).unwrap();
        place.split_once(':').unwrap().0.parse::<usize>().unwrap()
    };
    let told = errors(&ran);
    let lines: Vec<_> = told.iter().map(line).collect();
    assert_eq!(lines, [2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 16, 18], "{told:#?}");
    for (at, nearest) in [(0, "\"listen\""), (6, "\"t1r\""), (8, "\"pro\"")] {
        assert!(told[at].contains(&format!("did you mean {nearest}?")), "{}", told[at]);
    }
    let json = run(["check".as_ref(), policy.as_os_str(), "--format".as_ref(), "json".as_ref()]);
    let [invalid] = &json.json()[..] else { panic!("{json:?}") };
    let listed: Vec<_> = invalid["errors"].as_array().unwrap().iter().map(|e| &e["line"]).collect();
    assert_eq!(listed, lines.iter().collect::<Vec<_>>());
    assert_eq!((&invalid["line"], &invalid["ok"]), (&Value::from(2), &Value::from(false)));
}

#[test]
fn a_policy_is_read_from_standard_input() {
    let check = |text: &str| {
        let mut command = command(["check", "-"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        harness::Process::new(child).finish()
    };
    let valid = check("[services.t1r]\n");
    assert_eq!((valid.code, &*valid.stderr), (Some(0), ""), "{valid:?}");
    assert!(valid.stdout.contains("valid"), "{valid:?}");
    let wrong = check("[services.t1r]\nttl = 5\n");
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.error().starts_with("-:2:7: "), "{wrong:?}");
}

#[test]
fn a_ttl_is_shown_as_it_is_granted() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\nttl = '1500us'\n");
    let ran = run(["check".as_ref(), policy.as_os_str(), "--format".as_ref(), "json".as_ref()]);
    assert_eq!(ran.json()[0]["services"][0]["ttl_ms"], 2, "{ran:?}");
    let ran = run(["check".as_ref(), policy.as_os_str()]);
    assert!(ran.stdout.contains(" 2ms "), "{ran:?}");
}

#[test]
fn a_budget_on_an_unknown_metric_causes_a_warning() {
    let folder = folder();
    let text = "[services.t1r]\n[plans.pro.budgets]\n\
                egres_bytes = { amount = 1.0, per = 'day' }\n\
                egress_bytes = { amount = 1.0, per = 'day' }\n";
    let policy = file(&folder, "policy.toml", text);
    let ran = run(["check".as_ref(), policy.as_os_str(), "--format".as_ref(), "json".as_ref()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let valid = ran.json().remove(0);
    let [warning] = &valid["warnings"].as_array().unwrap()[..] else { panic!("{valid}") };
    assert_eq!(warning["line"], 3);
    let problem = warning["problem"].as_str().unwrap();
    assert!(problem.contains("did you mean \"egress_bytes\"?"), "{problem}");
    assert!(problem.contains("known to report"), "{problem}");
}

#[test]
fn a_default_organization_that_looks_misspelled_causes_a_warning() {
    let folder = folder();
    let text = "[server]\ndefault_organization = 'anonymus'\n[services.t1r]\n\
                [organizations.anonymous]\n";
    let policy = file(&folder, "policy.toml", text);
    let ran = run(["check".as_ref(), policy.as_os_str()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("policy.toml:2:1: default_organization: "), "{ran:?}");
    assert!(ran.stdout.contains("did you mean \"anonymous\"?"), "{ran:?}");
}
