//! Checks the image and the compose file against the binary, without building the image.

use std::process::Command;

use serde_json::Value;

use super::{Settings, root, text, yaml};
use crate::harness::{Serve, command, finish, folder, run, store};

/// The instructions of the Dockerfile, each on one line.
fn instructions() -> Vec<(String, String)> {
    let file = text("deploy/Dockerfile").replace("\\\n", " ");
    let lines = file.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.filter(|line| !line.starts_with('#'));
    let parted = lines.map(|line| line.split_once(' ').unwrap());
    parted.map(|(name, rest)| (name.to_owned(), rest.trim().to_owned())).collect()
}

fn all(name: &str) -> Vec<String> {
    let instructions = instructions().into_iter().filter(|(known, _)| known == name);
    instructions.map(|(_, rest)| rest).collect()
}

#[test]
fn the_image_copies_files_that_exist_and_uses_the_required_compiler() {
    for copy in all("COPY").iter().filter(|copy| !copy.starts_with("--from=")) {
        let from = copy.split(' ').next().unwrap();
        assert!(root().join(from).exists(), "{from} is not there");
    }
    let manifest = text("Cargo.toml");
    let version = manifest.split_once("rust-version = \"").unwrap().1.split_once('"').unwrap().0;
    assert!(all("FROM")[0].starts_with(&format!("rust:{version}-")), "not rust {version}");
    let [_, cargo] = &all("RUN")[..2] else { panic!("no build") };
    let package = text("crates/cli/Cargo.toml");
    for (flag, name) in [("--package", "tgm-session-cli"), ("--bin", "tgm-session")] {
        assert!(cargo.contains(&format!("{flag} {name}")), "{cargo}");
        assert!(package.contains(&format!("name = \"{name}\"")), "{name} is no name of the crate");
    }
}

#[test]
fn the_image_does_not_run_as_root_and_names_settings_that_exist() {
    let settings = Settings::of_serve();
    let variables = all("ENV").join(" ");
    let variables: Vec<_> = variables.split_whitespace().map(|it| it.split_once('=')).collect();
    for (name, _) in variables.iter().map(|variable| variable.unwrap()) {
        settings.assert_variable(name);
    }
    assert_eq!(all("EXPOSE"), [settings.default_port("listen")]);
    let account = &all("ARG")[0];
    let number: u32 = account.split_once('=').unwrap().1.parse().unwrap();
    assert!(number > 0);
    assert_eq!(all("USER"), ["${ACCOUNT}:${ACCOUNT}"]);
    assert_eq!(all("CMD"), [r#"["serve"]"#]);

    // The policy in the image is valid.
    let ran = run(["check".as_ref(), root().join("deploy/policy/policy.toml").as_os_str()]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
}

#[test]
fn the_health_check_of_the_image_passes_only_while_a_server_runs() {
    let health = all("HEALTHCHECK").remove(0);
    let command: Vec<String> =
        serde_json::from_str(health.split_once("CMD ").unwrap().1.trim()).unwrap();
    let port = Settings::of_serve().default_port("admin-listen");
    let check = |admin: &str| {
        let (_, free) = admin.rsplit_once(':').unwrap();
        let script = command[2].replace(&format!("/{port} "), &format!("/{free} "));
        assert_ne!(script, command[2], "it does not ask the admin port");
        let mut shell = Command::new(&command[0]);
        let ended = shell.arg(&command[1]).arg(script).output().unwrap();
        ended.status.success()
    };
    let folder = folder();
    let mut serve = Serve::start(["--store", &store(&folder)]);
    assert!(check(&serve.admin));
    assert_eq!(serve.stop(), Some(0));
    assert!(!check(&serve.admin));
}

#[test]
fn the_compose_file_names_settings_and_files_that_exist() {
    let settings = Settings::of_serve();
    let compose = yaml("deploy/compose.yaml");
    let session = &compose["services"]["session"];
    for (name, _) in session["environment"].as_object().unwrap() {
        settings.assert_variable(name);
    }
    let ports: Vec<_> = session["ports"].as_array().unwrap().iter().collect();
    let expected = ["listen", "admin-listen"].map(|flag| {
        let port = settings.default_port(flag);
        Value::from(format!("127.0.0.1:{port}:{port}"))
    });
    assert_eq!(ports, expected.iter().collect::<Vec<_>>());
    let folder = root().join("deploy");
    assert_builds(&session["build"]);
    assert_volumes(&compose);
    assert!(!text("deploy/compose.yaml").contains("redis"));
    assert!(folder.join("compose-fleet.yaml").is_file());
}

/// Asserts that a service is built from a file that exists.
fn assert_builds(build: &Value) {
    let context = root().join("deploy").join(build["context"].as_str().unwrap());
    assert!(context.join(build["dockerfile"].as_str().unwrap()).is_file());
}

/// Asserts that every volume of a service is a file that exists, or declared.
fn assert_volumes(compose: &Value) {
    let folder = root().join("deploy");
    for (name, service) in compose["services"].as_object().unwrap() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().unwrap().split_once(':').unwrap().0;
            let exists = match source.strip_prefix("./") {
                Some(path) => folder.join(path).exists(),
                None => compose["volumes"].get(source).is_some(),
            };
            assert!(exists, "{name}: there is no {source}");
        }
    }
}

/// Asserts that these variables are settings, or those of a client of PostgreSQL.
fn assert_variables<'v>(settings: &Settings, names: impl Iterator<Item = &'v str>) {
    let mut found = 0;
    for name in names.filter(|name| !matches!(*name, "<<" | "PGPASSWORD" | "POD")) {
        settings.assert_variable(name);
        found += 1;
    }
    assert!(found > 5, "only {found}");
}

#[test]
fn the_compose_file_of_a_fleet_starts_servers_that_reach_each_other_securely() {
    let settings = Settings::of_serve();
    let compose = yaml("deploy/compose-fleet.yaml");
    let shared = compose["x-environment"].as_object().unwrap();
    assert_builds(&compose["x-session"]["build"]);
    assert_volumes(&compose);
    let certificate = compose["services"]["certificate"]["command"][2].as_str().unwrap();
    for server in ["session-1", "session-2"] {
        let own = compose["services"][server]["environment"].as_object().unwrap();
        assert_variables(&settings, shared.keys().chain(own.keys()).map(String::as_str));
        let address = own["TGM_SESSION_ADVERTISE"].as_str().unwrap();
        assert_eq!(address, format!("{server}:{}", settings.default_port("listen")));
        assert!(certificate.contains(&format!("DNS:{server},")), "{certificate}");

        // The server would start with these settings, were the files of TLS there.
        let mut check = command(["check", "-"]);
        let values = shared.iter().chain(own).filter(|(name, _)| *name != "<<");
        check.envs(values.map(|(name, value)| (name, value.as_str().unwrap())));
        check.env("TGM_SESSION_LISTEN", "0.0.0.0:9010");
        let ran = finish(check);
        let told: Vec<_> = ran.stderr.lines().collect();
        assert_eq!((ran.code, told.len()), (Some(2), 3), "{ran:?}");
        assert!(told.iter().all(|line| line.contains("cannot use /certificate/")), "{ran:?}");
    }
    let account = all("ARG")[0].split_once('=').unwrap().1.to_owned();
    assert!(certificate.contains(&format!("chown {account}:{account} /certificate/server.key")));
}

#[test]
fn the_manifest_for_kubernetes_names_settings_ports_probes_and_secrets_that_exist() {
    let settings = Settings::of_serve();
    let manifest = text("deploy/kubernetes.yaml");
    let documents: Vec<Value> =
        manifest.split("\n---\n").map(|it| serde_saphyr::from_str(it).unwrap()).collect();
    let kinds: Vec<_> = documents.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["StatefulSet", "Service", "Service", "PodDisruptionBudget"]);
    let spec = &documents[0]["spec"];
    assert!(spec["replicas"].as_u64() >= Some(2));
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];
    let environment = container["env"].as_array().unwrap();
    assert_variables(&settings, environment.iter().map(|it| it["name"].as_str().unwrap()));
    let ports = container["ports"].as_array().unwrap();
    for (port, flag) in ports.iter().zip(["listen", "admin-listen"]) {
        assert_eq!(port["containerPort"].to_string(), settings.default_port(flag));
    }
    let folder = folder();
    let serve = Serve::start(["--store", &store(&folder)]);
    for probe in ["livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(super::get(&serve.admin, path).0, 200, "{path}");
    }
    // The names by which the servers reach each other are those of the headless service.
    let advertised = environment.iter().find(|it| it["name"] == "TGM_SESSION_ADVERTISE").unwrap();
    let headless = documents.iter().find(|it| it["spec"]["clusterIP"] == "None").unwrap();
    let name = headless["metadata"]["name"].as_str().unwrap();
    let port = settings.default_port("listen");
    assert_eq!(advertised["value"], format!("$(POD).{name}:{port}"));
    assert_eq!(spec["serviceName"], name);
    let volumes: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(volumes.contains(&&mount["name"]), "{mount}");
    }
    let account: u64 = all("ARG")[0].split_once('=').unwrap().1.parse().unwrap();
    assert_eq!(pod["securityContext"]["fsGroup"], account);
}
