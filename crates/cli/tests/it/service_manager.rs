//! The notifications of `Type=notify` for systemd, received on a socket of the test.

#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::harness::{self, Talker, command, folder, free_address};
use rustix::process::Signal;

/// The socket of the service manager.
struct Manager(UnixDatagram);

impl Manager {
    /// The next message that is not about the watchdog.
    fn next(&self) -> String {
        loop {
            let message = self.any();
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }

    fn any(&self) -> String {
        let mut message = [0; 1024];
        let length = self.0.recv(&mut message).expect("a message in time");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }
}

#[test]
fn systemd_is_notified_when_the_server_is_ready_alive_reloading_and_stopping() {
    let folder = folder();
    let path = folder.path().join("notify");
    is_told_everything(Manager(UnixDatagram::bind(&path).unwrap()), path.as_os_str());
}

#[test]
fn a_manager_at_an_abstract_address_receives_the_same_notifications() {
    let name = format!("tgm-session-test/{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager(UnixDatagram::bind_addr(&address).unwrap());
    is_told_everything(manager, OsStr::new(&format!("@{name}")));
}

fn is_told_everything(manager: Manager, socket: &OsStr) {
    let folder = folder();
    manager.0.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let address = free_address();
    let policy = harness::file(&folder, "policy.toml", "[services.t1r]\n");
    let mut serve = command(["serve", "--store", "memory:", "--admin-listen", "127.0.0.1:0"]);
    serve.args(["--listen", &address, "--format", "json", "--log", "off", "--config"]).arg(policy);
    serve.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "300000");
    let mut serve = Talker::spawn(serve);

    let ready = manager.next();
    assert!(ready.starts_with("READY=1\n"), "{ready}");
    assert!(ready.contains(&format!("STATUS=gRPC on {address}")), "{ready}");
    TcpStream::connect(&address).expect("it accepts when it says that it is ready");
    for _ in 0..3 {
        assert_eq!(manager.any(), "WATCHDOG=1\n");
    }

    serve.process.signal(Signal::HUP);
    let reloading = manager.next();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
    assert!(since.trim_end().parse::<u64>().unwrap() > 0);
    assert!(manager.next().starts_with("READY=1\n"));

    serve.process.signal(Signal::TERM);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    assert_eq!(serve.process.wait().code(), Some(0));
}

#[test]
fn a_server_serves_without_its_service_manager() {
    let folder = folder();
    let mut serve = command(["serve", "--store", "memory:", "--listen", "127.0.0.1:0"]);
    serve.args(["--admin-listen", "127.0.0.1:0", "--format", "json"]);
    serve.env("NOTIFY_SOCKET", folder.path().join("nobody"));
    let mut serve = Talker::spawn(serve);
    serve.event("ready");
    assert_eq!(serve.end(Signal::TERM), Some(0));
}
