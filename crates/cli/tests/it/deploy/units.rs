//! The unit for systemd.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{root, text, tool};
use crate::harness::{Process, command, file, finish, folder, run, store};

const UNIT: &str = "deploy/tgm-session.service";

/// The highest exposure of the unit that `systemd-analyze security` may report, out of 100.
const MOST_EXPOSURE: u32 = 15;

/// The values of a directive, in order.
fn directives<'u>(unit: &'u str, name: &str) -> Vec<&'u str> {
    let values = unit.lines().filter_map(|line| line.split_once('='));
    values.filter(|(key, _)| *key == name).map(|(_, value)| value).collect()
}

#[test]
fn the_unit_starts_the_server_with_flags_that_it_has() {
    let unit = text(UNIT);
    let [start] = directives(&unit, "ExecStart")[..] else { panic!("not one ExecStart") };
    let state = folder();
    let arguments: Vec<_> = start
        .split(' ')
        .skip(1)
        .map(|word| match word {
            "file:/var/lib/tgm-session/sessions.redb" => store(&state),
            word => word.to_owned(),
        })
        .collect();
    assert_eq!(arguments[0], "serve");
    let under = |configuration: &Path| {
        let mut serve = command(arguments.iter().map(String::as_str).chain(["--print-config"]));
        // As systemd does for a ConfigurationDirectory.
        serve.env("CONFIGURATION_DIRECTORY", configuration);
        let ran = finish(serve);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.contains("sessions.redb"), "{ran:?}");
        let config = ran.stdout.lines().find(|line| line.starts_with("config ")).unwrap();
        config.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // Without a policy, and with one.
    assert_eq!(under(state.path()), "config = none # default");
    let shipped = root().join("deploy/policy");
    let found = format!("config = \"{}/policy.toml\"", shipped.display());
    assert_eq!(under(&shipped), format!("{found} # variable CONFIGURATION_DIRECTORY"));

    // The store is in the state directory of the service, the policy in its configuration
    // directory.
    assert_eq!(directives(&unit, "StateDirectory"), ["tgm-session"]);
    assert_eq!(directives(&unit, "ConfigurationDirectory"), ["tgm-session"]);
    assert!(start.contains("file:/var/lib/tgm-session/") && !start.contains("--config"));
    assert_eq!(directives(&unit, "RestartPreventExitStatus"), ["2"]);
    assert_eq!(run(["serve", "--listen", "nowhere"]).code, Some(2));
}

#[test]
fn the_server_notifies_systemd_that_it_is_ready_and_alive() {
    let unit = text(UNIT);
    assert_eq!(directives(&unit, "Type"), ["notify"]);
    let seconds: u64 = directives(&unit, "WatchdogSec")[0].parse().unwrap();
    let folder = folder();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let mut serve = command(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    serve.args(["--store", &store(&folder)]).env("NOTIFY_SOCKET", &path);
    serve.env("WATCHDOG_USEC", (seconds * 1_000_000).to_string());
    let _process = Process::new(serve.spawn().unwrap());
    let mut told = String::new();
    while !(told.contains("READY=1") && told.contains("WATCHDOG=1")) {
        let mut datagram = [0; 4096];
        let length = socket.recv(&mut datagram).expect("it says that it is ready, and lives");
        told.push_str(std::str::from_utf8(&datagram[..length]).unwrap());
    }
}

/// Runs `systemd-analyze`, as [`tool`] does.
fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(arguments).env("SYSTEMD_COLORS", "0");
    tool(analyze, "systemd", "")
}

#[test]
fn systemd_finds_no_error_in_the_unit_and_a_low_exposure() {
    let folder = folder();
    let here = text(UNIT)
        .replace("/usr/local/bin/tgm-session", env!("CARGO_BIN_EXE_tgm-session"))
        .replace("Documentation=man:tgm-session(1)\n", "");
    let unit = file(&folder, "tgm-session.service", &here);
    let unit = unit.to_str().unwrap();
    let Some((valid, told)) = analyze(&["verify", "--man=no", unit]) else { return };
    let about_it: Vec<_> = told.lines().filter(|line| line.contains("tgm-session.")).collect();
    assert!(valid && about_it.is_empty(), "{told}");

    let threshold = format!("--threshold={MOST_EXPOSURE}");
    let security = ["security", "--offline=true", "--no-pager", &*threshold, unit];
    let (safe, told) = analyze(&security).expect("it was there a moment ago");
    assert!(safe, "{told}");
}
