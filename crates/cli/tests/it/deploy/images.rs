//! Checks the image and the compose file against the binary, without building the image.

use std::process::Command;

use serde_json::Value;

use super::{Settings, root, text, yaml};
use crate::harness::{Serve, folder, run, store};

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
    let context = folder.join(session["build"]["context"].as_str().unwrap());
    assert!(context.join(session["build"]["dockerfile"].as_str().unwrap()).is_file());
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
