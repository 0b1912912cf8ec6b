//! The admin API of a server process.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::{Serve, Talker, command, file, finish, folder};
use serde_json::{Value, json};

/// The status and the body of an answer of the admin port.
fn ask(address: &str, method: &str, path: &str, token: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         authorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[test]
fn disabling_an_organization_ends_its_session_at_once_and_survives_a_kill() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\nmax_per_organization = 3\n");
    let mut server = Serve::with_policy(&folder, &policy);
    // The first keep-alive is due in an hour, so only a push can end the session in time.
    let url = format!("tgm://{}?plaintext=true&request-keep-alive-delay=1h", server.grpc);
    let mut held = Talker::start(["borrow", &url, "--organization", "acme"]);
    held.event("holding");
    let (status, page) = ask(&server.admin, "GET", "/api/sessions?organization=acme", "", "");
    assert_eq!((status, &page["total"]), (200, &json!(1)));

    let disable = r#"{"disabled":true,"note":"unpaid"}"#;
    let path = "/api/organizations/acme/disabled";
    let (status, done) = ask(&server.admin, "PUT", path, "", disable);
    let summary = "disabled organization acme";
    assert_eq!((status, done), (200, json!({ "ended": 1, "summary": summary })));
    held.event("ended");
    server.kill();

    let mut server = Serve::with_policy(&folder, &policy);
    let (_, acme) = ask(&server.admin, "GET", "/api/organizations/acme", "", "");
    assert_eq!(acme["disabled"], json!({ "disabled": true, "source": "override" }));
    let (_, audit) = ask(&server.admin, "GET", "/api/audit", "", "");
    let entry = &audit["entries"][0];
    assert_eq!((&entry["action"], &entry["note"]), (&json!(summary), &json!("unpaid")));
    assert_eq!(ask(&server.admin, "DELETE", path, "", "").0, 200);
    assert_eq!(server.active("acme", "t1r"), 0);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn an_invalid_policy_file_is_refused_with_its_place_and_the_old_policy_stays() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\nmax_per_organization = 3\n");
    let server = Serve::with_policy(&folder, &policy);
    let reload = || ask(&server.admin, "POST", "/api/policy/reload", "", "");
    std::fs::write(&policy, "[services.t1r]\nmax_per_organization = \"many\"\n").unwrap();
    let (status, problem) = reload();
    let error = problem["error"].as_str().unwrap();
    assert_eq!(status, 409, "{problem}");
    assert!(error.contains(&format!("{}:2:", policy.display())), "{error}");
    let (_, told) = ask(&server.admin, "GET", "/api/policy", "", "");
    assert_eq!(told["services"][0]["max_per_organization"], 3);
    assert!(told["status"]["refused"].as_str().unwrap().contains(":2:"), "{told}");

    std::fs::write(&policy, "[services.t1r]\nmax_per_organization = 4\n").unwrap();
    assert_eq!(reload().0, 200);
    let (_, told) = ask(&server.admin, "GET", "/api/policy", "", "");
    assert_eq!(told["services"][0]["max_per_organization"], 4);
    assert_eq!(told["status"]["refused"], Value::Null);
}

#[test]
fn a_token_is_required_off_loopback_and_checked_wherever_one_is_set() {
    let open = ["serve", "--store", "memory:", "--listen", "127.0.0.1:0"];
    let refused = finish(command(open.into_iter().chain(["--admin-listen", "0.0.0.0:0"])));
    assert!(refused.code != Some(0) && refused.error().contains("token"), "{refused:?}");

    let server = Serve::start(["--store", "memory:", "--admin-token", "sesame"]);
    let overview = |token| ask(&server.admin, "GET", "/api/overview", token, "").0;
    assert_eq!((overview("sesame"), overview("Sesame"), overview("")), (200, 401, 401));
}
