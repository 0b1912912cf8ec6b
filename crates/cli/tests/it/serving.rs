//! `serve`: what it needs, what it refuses, and how it stops.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::{self, PATIENCE, Serve, Talker, command, file, finish, folder, run, store};
use rustix::process::Signal;

/// The answer of the admin port to a GET.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_prints_where_it_listens_once_it_accepts_and_stops_with_0() {
    let mut server = Serve::start(["--store", "memory:"]);
    assert_ne!(server.grpc, "127.0.0.1:0");
    assert_eq!(server.ready["store"], "memory:");
    TcpStream::connect(&server.grpc).unwrap();
    assert!(get(&server.admin, "/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(server.stop(), Some(0));
    assert!(TcpStream::connect(&server.grpc).is_err());
}

#[test]
fn ctrl_c_stops_a_server_as_sigterm_does() {
    let mut server = Serve::start(["--store", "memory:"]);
    assert_eq!(server.talker.end(Signal::INT), Some(0));
}

/// Opens a call and never finishes it. No client library does that, so the HTTP/2 frames are
/// written by hand.
fn open_a_call(address: &str) -> TcpStream {
    let path = "/sf.worker.v1.WorkerPool/BorrowWorker";
    let mut headers = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, value) in [(0x04, path), (0x01, address), (0x0f, "application/grpc")] {
        headers.push(name); // :path, :authority, content-type, by their number in the table
        if name == 0x0f {
            headers.push(16);
        }
        headers.push(u8::try_from(value.len()).unwrap());
        headers.extend_from_slice(value.as_bytes());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]); // SETTINGS
    let length = u8::try_from(headers.len()).unwrap();
    bytes.extend_from_slice(&[0, 0, length, 1, 4, 0, 0, 0, 1]); // HEADERS, all of them, stream 1
    bytes.extend_from_slice(&headers);
    bytes.extend_from_slice(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]); // PING
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&bytes).unwrap();
    // The answer to the ping comes after the server has seen the call.
    let mut seen = Vec::new();
    while !seen.ends_with(&[6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    stream
}

#[test]
fn a_second_signal_stops_a_server_that_waits_for_a_call_at_once() {
    // The drain timeout is longer than the test waits for the process to end.
    let mut server = Serve::start(["--store", "memory:", "--drain-timeout", "10m"]);
    let call = open_a_call(&server.grpc);
    let start = Instant::now();
    server.talker.process.signal(Signal::TERM);
    // A server that no longer accepts connections is draining.
    while TcpStream::connect(&server.grpc).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it accepts on");
    }
    assert_eq!(server.talker.end(Signal::TERM), Some(1));
    drop(call);
}

#[test]
fn the_default_store_is_a_file_in_the_state_folder_and_the_server_names_it() {
    let folder = folder();
    let state = folder.path().join("not/there/yet");
    let mut command =
        command(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.env("XDG_STATE_HOME", &state).args(["--format", "json"]);
    let mut server = Talker::spawn(command);
    let ready = server.event("ready");
    let path = ready["store"].as_str().unwrap().strip_prefix("file:").unwrap();
    assert!(std::path::Path::new(path).starts_with(state.join("tgm-session")), "{ready}");
    assert!(std::fs::metadata(path).unwrap().is_file());
    assert!(ready["policy"].as_str().unwrap().starts_with("built in"), "{ready}");
    assert_eq!(server.end(Signal::TERM), Some(0));
}

#[test]
fn the_text_output_says_how_to_reach_the_server() {
    let mut child = command(["serve", "--store", "memory:", "--listen", "127.0.0.1:0"]);
    child.args(["--admin-listen", "127.0.0.1:0"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    child.stdout(writer);
    let mut process = harness::Process::new(child.spawn().unwrap());
    drop(child);
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("Ctrl-C") {
        let count = reader.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "it ended: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(text.contains("tgm://127.0.0.1:") && text.contains("?plaintext=true"), "{text}");
    assert!(!text.contains('\u{1b}'), "colours reach a pipe: {text}");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_taken_port_is_refused_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let ran = run(["serve", "--store", "memory:", flag, &address, other, "127.0.0.1:0"]);
        assert_eq!((ran.code, &*ran.stdout), (Some(1), ""), "{ran:?}");
        assert!(ran.error().contains(&address), "{ran:?}");
    }
}

#[test]
fn a_second_server_on_the_same_port_or_the_same_store_is_refused() {
    let folder = folder();
    let store = store(&folder);
    let mut first = Serve::start(["--store", &store]);
    let port = run(["serve", "--store", "memory:", "--listen", &first.grpc]);
    assert_eq!(port.code, Some(1));
    assert!(port.error().contains(&first.grpc), "{port:?}");

    let free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let second = run(["serve", "--store", &store].into_iter().chain(free));
    assert_eq!(second.code, Some(1));
    assert!(second.error().contains("sessions.redb"), "{second:?}");
    assert!(second.error().contains("in use"), "{second:?}");

    assert_eq!(first.stop(), Some(0));
    assert_eq!(Serve::start(["--store", &store]).stop(), Some(0));
}

#[test]
fn a_store_that_cannot_be_opened_is_refused_and_no_file_is_created() {
    let folder = folder();
    let free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let missing = folder.path().join("missing/sessions.redb");
    let garbage = file(&folder, "garbage.redb", "this is no store, and nobody may overwrite it");
    for (path, code) in [
        (missing.to_str().unwrap(), 1),
        ("/proc/sessions.redb", 1),
        (garbage.to_str().unwrap(), 1),
        ("", 2),
    ] {
        let ran = run(["serve", "--store", &format!("file:{path}")].into_iter().chain(free));
        assert_eq!((ran.code, &*ran.stdout), (Some(code), ""), "{path}: {ran:?}");
        assert!(ran.error().contains(path), "{path}: {ran:?}");
    }
    assert!(!missing.parent().unwrap().exists());
    assert!(std::fs::read_to_string(garbage).unwrap().starts_with("this is no store"));
}

#[test]
fn off_loopback_a_server_without_keys_or_token_is_refused_by_default() {
    let args = ["serve", "--store", "memory:", "--listen", "0.0.0.0:0"];
    let ran = run(args.into_iter().chain(["--admin-listen", "127.0.0.1:0"]));
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("--allow-anonymous"), "{ran:?}");

    let mut open = Serve::start_on("0.0.0.0:0", ["--store", "memory:", "--allow-anonymous"]);
    assert_eq!(open.stop(), Some(0));

    let admin = ["serve", "--store", "memory:", "--listen", "127.0.0.1:0"];
    let ran = run(admin.into_iter().chain(["--admin-listen", "0.0.0.0:0"]));
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("token"), "{ran:?}");
}

#[test]
fn the_policy_file_can_carry_the_settings_of_the_server() {
    let folder = folder();
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:0'\nstore = '{}'\n\
         [services.t1r]\nmax_per_organization = 1\n",
        store(&folder)
    );
    let policy = file(&folder, "policy.toml", &text);
    let mut child = command(["serve".as_ref(), "--config".as_ref(), policy.as_os_str()]);
    child.args(["--format", "json", "--log", "off"]);
    let mut server = Talker::spawn(child);
    let ready = server.event("ready");
    assert_eq!(ready["store"].as_str().unwrap(), store(&folder));
    assert_eq!(server.end(Signal::TERM), Some(0));
}

#[test]
fn a_server_continues_when_its_output_is_closed() {
    let mut child = command(["serve", "--store", "memory:", "--listen", &harness::free_address()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let errors = writer.try_clone().unwrap();
    child.args(["--admin-listen", "127.0.0.1:0"]).stdout(writer).stderr(errors);
    let address = child.get_args().nth(4).and_then(OsStr::to_str).unwrap().to_owned();
    let mut process = harness::Process::new(child.spawn().unwrap());
    let url = format!("tgm://{address}?plaintext=true&borrow-timeout=10s");
    let ran = run(["borrow", &url, "--organization", "acme", "--for", "1ms"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_store_url_in_the_environment_is_used() {
    let mut child = command(["serve", "--listen", "127.0.0.1:0"]);
    child.env("TGM_SESSION_STORE", "memory:").env("TGM_SESSION_ADMIN_LISTEN", "nowhere");
    let ran = finish(child);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("nowhere"), "{ran:?}");
}

#[test]
fn a_server_whose_log_and_output_block_still_answers_and_stops() {
    let (grpc, admin) = (harness::free_address(), harness::free_address());
    let mut child = command(["serve", "--store", "memory:", "--listen", &grpc]);
    child.args(["--admin-listen", &admin, "--log", "debug,h2=trace"]);
    // The pipe is full before the server starts.
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    child.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut process = harness::Process::new(child.spawn().unwrap());
    drop(child);
    let start = Instant::now();
    while TcpStream::connect(&admin).is_err() {
        assert!(start.elapsed() < PATIENCE, "it does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Borrow until the pipe and the queue are full and the server drops a line.
    let url = format!("tgm://{grpc}?plaintext=true&borrow-timeout=10s");
    let metric = || {
        let page = get(&admin, "/metrics");
        let name = "tgm_session_log_lines_dropped_total ";
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{page}"));
        value.parse::<u64>().unwrap()
    };
    while metric() == 0 {
        let ran = run(["borrow", &url, "--organization", "acme", "--for", "1ms"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(start.elapsed() < 3 * PATIENCE, "no line is dropped");
    }
    assert!(get(&admin, "/livez").starts_with("HTTP/1.1 200"));
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    drop(reader);
}

#[test]
fn a_server_raises_its_limit_of_open_files_and_warns_when_that_is_not_enough() {
    let open_files = |soft: u64, args: &[&str]| {
        // The server inherits the limits of the shell that starts it.
        let mut shell = std::process::Command::new("sh");
        let limit = format!("ulimit -Sn {soft} && ulimit -Hn 4096 && exec \"$@\"");
        shell.args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_tgm-session"), "serve"]);
        shell.args(["--store", "memory:", "--listen", "127.0.0.1:0", "--format", "json"]);
        shell.args(["--admin-listen", "127.0.0.1:0", "--threads", "1"]).args(args);
        shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        shell
    };
    let mut few = Talker::spawn(open_files(256, &["--max-connections", "2000", "--log", "warn"]));
    few.event("ready");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", few.process.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["4096", "4096"], "{line}");
    few.process.signal(Signal::TERM);
    let ran = few.process.finish();
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");

    let mut many = Talker::spawn(open_files(256, &["--max-connections", "4000", "--log", "warn"]));
    many.event("ready");
    many.process.signal(Signal::TERM);
    let ran = many.process.finish();
    assert!(ran.stderr.contains("max_connections (4000) needs more open files"), "{ran:?}");
}
