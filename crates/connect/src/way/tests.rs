use std::net::{Ipv4Addr, SocketAddr};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout_at;

use super::*;
use crate::tls::Verify;

/// A server that does not answer attempts to connect, because its accept queue is full.
struct Full {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Full {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        let in_no_time = Duration::from_millis(250);
        while let Ok(taken) = tokio::time::timeout(in_no_time, TcpStream::connect(address)).await {
            queued.push(taken.unwrap());
        }
        Self { address, _listener: listener, _queued: queued }
    }
}

fn resolved(host: Host, addresses: &[SocketAddr]) -> Way {
    let addresses = addresses.to_vec();
    Way::new(host, [], Protocol::Http2).resolved_by(Arc::new(move |host, port| {
        assert_eq!((&*host, port), ("sessions.example", 443));
        let addresses = addresses.clone();
        Box::pin(async { Ok(addresses) })
    }))
}

/// A way to a name that has these addresses.
fn way(addresses: &[SocketAddr]) -> Way {
    resolved(Host::new("sessions.example", 443), addresses)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// An address that refuses connections.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_server_at_the_second_address_is_reached_if_the_first_never_answers() {
    let (full, listener) = (Full::new().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let way = way(&[full.address, listener.local_addr().unwrap()]);
    let greet = async |mut stream: Box<dyn Bytestream>, _| {
        stream.write_all(b"hello").await?;
        Ok(())
    };
    let serve = async {
        let mut heard = Vec::new();
        listener.accept().await.unwrap().0.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let (reached, heard) = tokio::join!(way.connect(soon(), greet), timeout_at(soon(), serve));
    reached.unwrap();
    assert_eq!(heard.unwrap(), b"hello");
}

#[tokio::test]
async fn every_address_where_nobody_listens_is_named() {
    let (one, two) = (nobody().await, nobody().await);
    let error = way(&[one, two]).connect(soon(), async |_, _| Ok(())).await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_refused() && text.matches("Connection refused").count() == 2, "{text}");
    assert!(text.contains(&one.to_string()) && text.contains(&two.to_string()), "{text}");
}

#[tokio::test]
async fn no_message_shows_a_hidden_address() {
    let address = nobody().await;
    let host = Host::new("sessions.example", 443);
    let host = host.shown_as("$HOST".into(), "$HOST:$PORT".into());
    let way = resolved(host, &[address, address]);
    let error = way.connect(soon(), async |_, _| Ok(())).await.unwrap_err();
    assert!(error.to_string().starts_with("address 1: Connection refused"), "{error}");
    let way = way.with_tls(TlsFiles { verify: Verify::Nothing, identity: None }).unwrap();
    let told = handshake_error(
        &way.hosts[0],
        &io::Error::other("not valid for name \"sessions.example\""),
    );
    assert!(told.to_string().ends_with("not valid for name \"$HOST\""), "{told}");
    for shown in [format!("{way}"), format!("{way:?}"), error.to_string(), told.to_string()] {
        assert!(!shown.contains("127.0.0.1") && !shown.contains("sessions.example"), "{shown}");
    }
}

#[tokio::test]
async fn a_name_without_addresses_says_so_and_a_resolver_that_hangs_is_not_waited_for() {
    let error = way(&[]).connect(soon(), async |_, _| Ok(())).await.unwrap_err();
    assert!(error.no_address().is_some() && !error.is_refused(), "{error}");
    let hanging = way(&[]).resolved_by(Arc::new(|_, _| Box::pin(std::future::pending())));
    let error = hanging.connect(Instant::now(), async |_, _| Ok(())).await.unwrap_err();
    assert!(error.is_late(), "{error}");
}

#[tokio::test]
async fn a_host_that_no_certificate_can_name_is_refused_for_tls() {
    let files = || TlsFiles { verify: Verify::Nothing, identity: None };
    for host in ["h", "[::1]", "127.0.0.1", "sessions.example"] {
        assert!(
            Way::new(Host::new(host, 443), [], Protocol::Http2).with_tls(files()).is_ok(),
            "{host}"
        );
    }
    let error = Way::new(Host::new("a b", 443), [], Protocol::Http2).with_tls(files()).unwrap_err();
    assert_eq!(error, Unusable::Host("a b:443".into()));
    for (host, place) in [("h", "h:7"), ("[::1]", "[::1]:7"), ("::1", "[::1]:7")] {
        assert_eq!(Host::new(host, 7).to_string(), place);
    }
}

/// The error of a TLS client whose server sends `said`.
async fn shake_hands(said: &[u8]) -> Unreached {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = way(&[listener.local_addr().unwrap()]);
    let way = way.with_tls(TlsFiles { verify: Verify::Nothing, identity: None }).unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        // If bytes of the client stayed unread, TCP would reset the connection and `said` could be
        // lost.
        assert!(stream.read(&mut [0; 16 * 1024]).await.unwrap() > 0);
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(way.connect(soon(), async |_, _| Ok(())), serve).0.unwrap_err()
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart_from_one_that_hangs_up_or_refuses() {
    let error = shake_hands(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(Mismatch::of(&error), Some(Mismatch::Plaintext), "{error}");
    assert!(error.to_string().contains("the server does not speak TLS"), "{error}");
    for said in [&b""[..], b"\x15\x03\x03\0\x02\x02\x28"] {
        let error = shake_hands(said).await;
        assert_eq!(Mismatch::of(&error), None, "{error}");
        assert!(error.to_string().contains("the TLS handshake failed"), "{error}");
    }
}

/// Hosts `h0`, `h1` and so on with one address each, and the names that were looked up.
fn list(addresses: &[SocketAddr]) -> (Way, Arc<Mutex<Vec<String>>>) {
    let mut hosts = (0..addresses.len()).map(|host| Host::new(&format!("h{host}"), 443));
    let way = Way::new(hosts.next().unwrap(), hosts, Protocol::Http2);
    let (addresses, looked_up) = (addresses.to_vec(), Arc::<Mutex<Vec<_>>>::default());
    let seen = looked_up.clone();
    let way = way.resolved_by(Arc::new(move |host, _| {
        let address = addresses[host[1..].parse::<usize>().unwrap()];
        seen.lock().push(host);
        Box::pin(async move { Ok(vec![address]) })
    }));
    (way, looked_up)
}

/// Connects, and returns which host was reached.
async fn reached(way: &Way) -> Result<String, Unreached> {
    let ((), host) = way.connect(soon(), async |_, _| Ok(())).await?;
    Ok(way.hosts[host].name.clone())
}

#[tokio::test]
async fn the_host_that_answered_last_is_tried_first_and_its_name_is_looked_up_again() {
    let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        listeners.push(Some(listener));
    }
    let (way, looked_up) = list(&addresses);
    assert_eq!(reached(&way).await.unwrap(), "h0");
    listeners[0] = None;
    assert_eq!(reached(&way).await.unwrap(), "h1");
    listeners[0] = Some(TcpListener::bind(addresses[0]).await.unwrap());
    assert_eq!(reached(&way).await.unwrap(), "h1");
    listeners[1] = None;
    assert_eq!(reached(&way).await.unwrap(), "h0");
    assert_eq!(*looked_up.lock(), ["h0", "h0", "h1", "h1", "h1", "h0"]);
    (listeners[0], listeners[2]) = (None, None);
    let error = reached(&way).await.unwrap_err();
    assert!(error.is_refused() && error.tries.len() == 3, "{error}");
}

#[tokio::test]
async fn a_host_that_fell_silent_is_not_tried_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (way, _) = list(&[listener.local_addr().unwrap(); 3]);
    for (silent, next) in [(0, "h1"), (0, "h1"), (1, "h2"), (2, "h0")] {
        way.silent(silent);
        assert_eq!(reached(&way).await.unwrap(), next);
    }
}

#[tokio::test]
async fn a_list_is_written_with_commas_and_ends_after_sixteen_hosts() {
    let nobody = nobody().await;
    let (way, looked_up) = list(&[nobody; 20]);
    assert!(format!("{way} {way:?}").starts_with("h0:443,h1:443,h2:443"), "{way}");
    assert!(reached(&way).await.unwrap_err().to_string().ends_with(", and 8 more"));
    assert_eq!(looked_up.lock().len(), MOST_HOSTS);
}

/// Sends `said` to whoever connects.
async fn speaking(said: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 16 * 1024]).await;
            let _ = stream.write_all(said).await;
        }
    });
    address
}

#[tokio::test]
async fn a_list_is_mismatched_if_every_host_of_it_is() {
    let (plain, gone) = (speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n").await, nobody().await);
    let files = || TlsFiles { verify: Verify::Nothing, identity: None };
    for (addresses, expected) in
        [([plain, plain], Some(Mismatch::Plaintext)), ([plain, gone], None), ([gone, plain], None)]
    {
        let (way, _) = list(&addresses);
        let error = reached(&way.with_tls(files()).unwrap()).await.unwrap_err();
        assert_eq!(Mismatch::of(&error), expected, "{error}");
        assert!(error.to_string().contains("the server does not speak TLS"), "{error}");
    }
}
