//! Sends one id through every output. Without escapes, the id would reverse, hide and colour the
//! text around it.

use std::fs::File;

use crate::harness::{Ran, Serve, Talker, command, file, folder, run};
use serde_json::Value;
use tgm_session_server::text::is_plain;

/// Has a right-to-left override, invisible characters, a line separator, and escape sequences that
/// clear and colour a terminal.
const HOSTILE: &str = "ac\u{202e}me\u{200b}\u{2028}x\u{9b}2J\u{e0041}\u{feff}\u{1b}[31m";

/// Checks that `text` has only plain characters and ends of lines.
fn assert_plain(what: &str, text: &str) {
    let odd: Vec<char> = text.chars().filter(|char| !is_plain(*char) && *char != '\n').collect();
    assert!(odd.is_empty(), "{what}: {odd:?} in {text}");
}

fn assert_shown(what: &[&str], ran: &Ran) {
    assert_plain(&format!("{what:?}"), &ran.stdout);
    assert_plain(&format!("{what:?}"), &ran.stderr);
    let told = format!("{}{}", ran.stdout, ran.stderr);
    let (text, json) = ("\\u{202e}", "\\u202e");
    assert!(told.contains(text) || told.contains(json), "{what:?} names it: {ran:?}");
}

/// Whether the value contains the id without escapes.
fn holds(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(HOSTILE),
        Value::Array(values) => values.iter().any(holds),
        Value::Object(values) => values.values().any(holds),
        _ => false,
    }
}

fn policy() -> String {
    let name = serde_json::to_string(HOSTILE).unwrap();
    format!(
        "[services.t1r]\nmax_per_organization = 2\n[services.{name}]\nmax_per_organization = 1\n\
         [organizations.{name}]\nplan = {name}\n[plans.{name}]\nlimits = {{ t1r = 1 }}\n"
    )
}

#[test]
fn every_output_escapes_an_id_that_would_change_the_text_around_it() {
    let folder = folder();
    let path = file(&folder, "policy.toml", &policy());
    let server = Serve::with_policy(&folder, &path);
    let (url, admin) = (server.url(), format!("http://{}", server.admin));
    let session = ["borrow", &*url, "--organization", HOSTILE];
    let mut holder = Talker::start(session);
    let granted = holder.event("granted");
    assert!(holds(&granted), "{granted}");

    let refused = run(session.into_iter().chain(["--for", "1s"]));
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert_plain("borrow", &(refused.stdout + &refused.stderr));
    let state = ["state", &*url, "--organization", HOSTILE];
    let asked: [&[&str]; 8] = [
        &["sessions"],
        &["organizations"],
        &["organizations", HOSTILE],
        &["refusals"],
        &["top"],
        &["policy"],
        &["limit", "organization", HOSTILE, "t1r", "1", "--note", HOSTILE],
        &["audit"],
    ];
    for format in ["text", "json"] {
        assert_shown(&state, &run(state.into_iter().chain(["--format", format])));
        for args in asked {
            let ran = run(args.iter().copied().chain(["--admin", &admin, "--format", format]));
            assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
            assert_shown(args, &ran);
            // JSON contains the id without escapes, except in the summary of a change.
            let in_words = matches!(args[0], "limit");
            assert!(
                format == "text" || in_words || ran.json().iter().any(holds),
                "{args:?}: {ran:?}"
            );
        }
    }
    let unknown = format!("{HOSTILE}?");
    let mistaken: [&[&str]; 5] = [
        &["organizations", &unknown],
        &["limit", "organization", "acme", &unknown, "3"],
        &["revoke", "--organization", HOSTILE],
        &["revoke", HOSTILE],
        &[HOSTILE],
    ];
    for args in mistaken {
        let admin = ["--admin", &*admin];
        let ran = run(args.iter().copied().chain(admin.into_iter().filter(|_| args.len() > 1)));
        assert_ne!(ran.code, Some(0), "{args:?}");
        assert_shown(args, &ran);
    }
    let ended = run(["revoke", "--organization", HOSTILE, "--yes", "--admin", &admin]);
    assert_plain("revoke", &ended.stdout);
    holder.event("ended");
}

#[test]
fn the_log_escapes_an_id_that_would_change_the_text_around_it() {
    for format in ["text", "json"] {
        let folder = folder();
        let log = folder.path().join("log");
        let name = format!("{HOSTILE}.toml");
        let path = file(&folder, &name, &policy());
        let mut command =
            command(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--store", "memory:", "--log", "info", "--log-format", format]);
        command.arg("--config").arg(&path).args(["--format", "json"]);
        command.stderr(File::create(&log).unwrap());
        let mut server = Talker::spawn(command);
        let ready = server.event("ready");
        let admin = format!("http://{}", ready["admin"].as_str().unwrap());
        let done = run(["disable", "organization", HOSTILE, "--note", HOSTILE, "--admin", &admin]);
        assert_eq!(done.code, Some(0), "{done:?}");
        std::fs::write(&path, format!("[services.t1r]\n{HOSTILE} = 1")).unwrap();
        let refused = run(["reload", "--admin", &admin]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert_plain("reload", &refused.stderr);
        server.process.signal(rustix::process::Signal::TERM);
        server.process.wait();
        let lines = std::fs::read_to_string(&log).unwrap();
        assert!(lines.contains("disabled organization") && lines.contains("202e"), "{lines}");
        assert_plain("the log", &lines);
        for line in lines.lines().filter(|_| format == "json") {
            serde_json::from_str::<Value>(line).expect(line);
        }
    }
}
