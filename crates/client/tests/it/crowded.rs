//! A proxy in front of the server that allows only few concurrent calls on a connection, by the
//! HTTP/2 setting `SETTINGS_MAX_CONCURRENT_STREAMS`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tgm_session::{Error, Released};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex, split,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::scripted::{Script, stream};

const SECOND: Duration = Duration::from_secs(1);

const PREFACE: usize = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

const SETTINGS: u8 = 4;
const ACK: u8 = 1;

/// A proxy that forwards connections unchanged, except for the limit on concurrent calls. The limit
/// may change.
#[derive(Clone)]
struct Proxy(watch::Sender<u32>);

impl Proxy {
    fn with_room_for(calls: u32) -> Self {
        Self(watch::Sender::new(calls))
    }

    fn set_room(&self, calls: u32) {
        self.0.send_replace(calls);
    }

    /// Returns a connection that leads through the proxy to `server`.
    fn carry(&self, server: DuplexStream) -> DuplexStream {
        let (near, client) = duplex(64 * 1024);
        let (client_says, to_client) = split(client);
        let (server_says, to_server) = split(server);
        let settings = Arc::new(Mutex::new(VecDeque::new()));
        tokio::spawn(requests(client_says, to_server, settings.clone()));
        tokio::spawn(answers(server_says, to_client, self.0.subscribe(), settings));
        near
    }
}

/// For each settings frame that the client has not acknowledged: whether the server sent it. Only
/// the acknowledgements of these are forwarded to the server.
type Unacknowledged = Arc<Mutex<VecDeque<bool>>>;

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut frame = vec![0; 9];
    from.read_exact(&mut frame).await.ok()?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    frame.resize(9 + length, 0);
    from.read_exact(&mut frame[9..]).await.ok()?;
    Some(frame)
}

async fn requests(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    settings: Unacknowledged,
) {
    let mut preface = [0; PREFACE];
    if from.read_exact(&mut preface).await.is_err() || to.write_all(&preface).await.is_err() {
        return;
    }
    while let Some(frame) = frame(&mut from).await {
        let is_ack = frame[3] == SETTINGS && frame[4] == ACK;
        if is_ack && !settings.lock().pop_front().unwrap() {
            continue;
        }
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn answers(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    mut room: watch::Receiver<u32>,
    settings: Unacknowledged,
) {
    let (frames, mut framed) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(frame) = frame(&mut from).await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    // The first settings frame must come from the server. After that, the proxy may send its own.
    let mut begun = false;
    loop {
        let of_server = tokio::select! {
            frame = framed.recv() => match frame {
                Some(frame) => Some(frame),
                None => return,
            },
            Ok(()) = room.changed(), if begun => None,
        };
        let is_settings =
            of_server.as_ref().is_none_or(|frame| frame[3] == SETTINGS && frame[4] != ACK);
        let is_of_server = of_server.is_some();
        let mut frame = of_server.unwrap_or_else(|| vec![0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]);
        if is_settings {
            begun = true;
            settings.lock().push_back(is_of_server);
            frame.extend([0, 3]);
            frame.extend(room.borrow_and_update().to_be_bytes());
            let length = u32::try_from(frame.len() - 9).unwrap();
            frame[..3].copy_from_slice(&length.to_be_bytes()[1..]);
        }
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_is_room_for_two_calls_one_of_them_is_the_stream() {
    let (mut script, mut streams) = Script::attachable();
    let proxy = Proxy::with_room_for(2);
    let pool = script.pool_past("", move |server| proxy.carry(server));
    let session = script.session(&pool, "s").await;
    let mut stream = timeout(SECOND, streams.recv()).await.unwrap().unwrap();
    let batch = stream.batch().await.unwrap();
    stream.extend(&batch);
    assert_eq!(&*script.worker(&session, "w").await.key(), "w");
}

#[tokio::test(start_paused = true)]
async fn where_there_is_room_for_one_call_it_is_never_the_stream() {
    let (mut script, mut streams) = Script::attachable();
    let proxy = Proxy::with_room_for(1);
    let pool = script.pool_past("", move |server| proxy.carry(server));
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    while start.elapsed() < 3600 * SECOND {
        script.keep_alive().await.extend();
    }
    assert!(streams.try_recv().is_err() && session.end_reason().is_none());
    let (released, ()) = tokio::join!(session.release(), async { script.give_back().await.take() });
    assert_eq!(released, Ok(Released::Returned));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_there_is_no_room_beside_it_any_more_and_no_call_waits_for_it() {
    let (mut script, mut streams) = Script::attachable();
    let proxy = Proxy::with_room_for(100);
    let through = proxy.clone();
    let pool = script.pool_past("", move |server| through.carry(server));
    let mut held = vec![script.session(&pool, "s").await];
    let mut stream = timeout(SECOND, streams.recv()).await.unwrap().unwrap();
    let batch = stream.batch().await.unwrap();
    stream.extend(&batch);
    for room in [1, 0] {
        proxy.set_room(room);
        assert_eq!(timeout(SECOND, stream.batch()).await.unwrap(), None);
        proxy.set_room(1);
        // Every borrow goes by a call, one after another and without delay.
        let start = Instant::now();
        let borrows =
            async { tokio::join!(pool.borrow(self::stream()), pool.borrow(self::stream())) };
        let grants = async {
            for key in ["one", "two"] {
                script.borrow_amid_beats().await.grant(key);
            }
        };
        let ((one, two), ()) = tokio::join!(borrows, grants);
        held.extend([one.unwrap(), two.unwrap()]);
        assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
        while start.elapsed() < 120 * SECOND {
            script.keep_alive().await.extend();
        }
        assert!(streams.try_recv().is_err());
        // The limit allows a stream again, so the client opens one.
        proxy.set_room(100);
        stream = loop {
            tokio::select! {
                opened = streams.recv() => break opened.unwrap(),
                beat = script.keep_alive() => beat.extend(),
            }
        };
        let batch = stream.batch().await.unwrap();
        stream.extend(&batch);
        assert!(held.iter().all(|session| session.end_reason().is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_is_room_for_no_call_each_waits_for_its_deadline() {
    let (mut script, mut streams) = Script::attachable();
    let proxy = Proxy::with_room_for(0);
    let through = proxy.clone();
    let pool = script.pool_past("borrow-timeout=7s", move |server| through.carry(server));
    let start = Instant::now();
    let error = pool.borrow(stream()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(start.elapsed().as_secs(), 7);
    let borrow = async {
        let room = async {
            tokio::time::sleep(SECOND).await;
            proxy.set_room(1);
        };
        tokio::join!(pool.borrow(stream()), room).0
    };
    let answer = async {
        loop {
            match script.call().await {
                crate::scripted::Call::Borrow(borrow) => break borrow.grant("s"),
                // The client returns the first borrow, because it does not know that it was not
                // granted.
                crate::scripted::Call::Return(lost) => lost.take(),
                crate::scripted::Call::KeepAlive(_) => panic!("nothing is held"),
            }
        }
    };
    let (session, ()) = tokio::join!(borrow, answer);
    assert_eq!(&*session.unwrap().key(), "s");
    assert!(streams.try_recv().is_err());
}
