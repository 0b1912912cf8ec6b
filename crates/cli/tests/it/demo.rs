//! The demo, as a newcomer runs it.

use crate::harness::{self, Talker, finish, folder};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn the_demo_plays_every_scene_checks_it_and_leaves_nothing_behind() {
    let home = folder();
    let mut command = harness::command(["demo", "--format", "json"]);
    command.env("TMPDIR", home.path());
    let ran = finish(command);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    let events = ran.json();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(of("scene"), 7);
    assert!(of("pool") >= 10 && of("refusal") == 2);
    let finished = events.last().unwrap();
    assert_eq!(finished["event"], "finished");
    assert_eq!(finished["checks"], of("check"));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn the_demo_of_a_fleet_kills_the_leader_and_leaves_nothing_behind() {
    if std::fs::read_dir("/usr/lib/postgresql").is_err() {
        return harness::leave_out("PostgreSQL is not installed");
    }
    let home = folder();
    // The user that runs the database has to reach its folder.
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut command = harness::command(["demo", "--fleet", "--format", "json"]);
    command.env("TMPDIR", home.path());
    let ran = finish(command);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events = ran.json();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(of("scene"), 5);
    let finished = events.last().unwrap();
    assert_eq!((&finished["event"], finished["checks"].as_u64()), (&"finished".into(), Some(13)));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn a_demo_that_is_stopped_leaves_no_process_and_no_folder() {
    let home = folder();
    let mut command = harness::command(["demo", "--format", "json"]);
    command.env("TMPDIR", home.path());
    let mut demo = Talker::spawn(command);
    // At this event a server runs, and a client may run too.
    let note = loop {
        let note = demo.event("note");
        if note["text"].as_str().unwrap().starts_with("gRPC on ") {
            break note;
        }
    };
    let address = note["text"].as_str().unwrap()["gRPC on ".len()..].split(',').next().unwrap();
    std::net::TcpStream::connect(address).unwrap();
    assert_eq!(demo.end(Signal::INT), Some(1));
    assert!(std::net::TcpStream::connect(address).is_err(), "the server still runs");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn a_demo_that_is_stopped_while_streams_run_says_one_line() {
    let home = folder();
    let errors = home.path().join("errors");
    let mut command = harness::command(["demo", "--format", "json"]);
    command.env("TMPDIR", home.path()).stderr(std::fs::File::create(&errors).unwrap());
    let mut demo = Talker::spawn(command);
    while demo.event("scene")["number"] != 3 {}
    assert_eq!(demo.end(Signal::INT), Some(1));
    assert_eq!(std::fs::read_to_string(errors).unwrap(), "error: stopped by SIGINT\n");
}

#[test]
fn a_demo_without_a_place_for_its_files_fails_in_one_line() {
    let mut command = harness::command(["demo"]);
    command.env("TMPDIR", "/proc");
    let ran = finish(command);
    assert_eq!((ran.code, &*ran.stdout), (Some(1), ""), "{ran:?}");
    assert!(ran.error().contains("/proc/tgm-session-demo-"), "{ran:?}");
}
