//! Watches the memory and the probes of the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::http;
use crate::server::memory;

/// The time between two reads of the memory.
const LOOK: Duration = Duration::from_millis(20);

/// The time between two probes.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// How long a probe may take.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A watch on a thread of its own. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    admin: SocketAddr,
    most_memory: u64,
    /// Signals that the process took too much memory.
    too_much: Notify,
    over: AtomicBool,
    figures: Mutex<Figures>,
}

#[derive(Debug, Default)]
struct Figures {
    process: u32,
    peak: u64,
    probes: Probes,
}

/// The answers of the probe `/healthz`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    pub(crate) asked: u64,
    pub(crate) failed: u64,
    pub(crate) worst: Duration,
    pub(crate) problem: Option<String>,
}

impl Watch {
    /// Watches `process` and its probes at `admin`, and signals when it uses more than
    /// `most_memory`.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub(crate) fn start(process: u32, admin: SocketAddr, most_memory: u64) -> anyhow::Result<Self> {
        let state = Arc::new(State {
            admin,
            most_memory,
            too_much: Notify::new(),
            over: AtomicBool::new(false),
            figures: Mutex::new(Figures { process, ..Figures::default() }),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ours = state.clone();
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            runtime.block_on(async {
                tokio::join!(ours.look(), ours.probe());
            });
        })?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// Discards the figures so far, and continues with `process`.
    pub(crate) fn begin(&self, process: u32) {
        *self.state.figures.lock() = Figures { process, ..Figures::default() };
    }

    /// The most resident memory that was seen, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.state.figures.lock().peak
    }

    /// The answers of the probe.
    pub(crate) fn probes(&self) -> Probes {
        self.state.figures.lock().probes.clone()
    }

    /// Waits until the first probe was answered or has failed: an attack may be shorter than a probe.
    pub(crate) async fn first_probe(&self) {
        let end = Instant::now() + PROBE_EVERY + PROBE_LIMIT;
        while self.probes().asked == 0 && Instant::now() < end {
            sleep(LOOK).await;
        }
    }

    /// Waits until the process takes more memory than it may.
    pub(crate) async fn too_much(&self) {
        self.state.too_much.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread itself.
            drop(thread.join());
        }
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    async fn look(&self) {
        while !self.is_over() {
            // An error means that the process is gone or restarts, and uses no memory.
            let process = self.figures.lock().process;
            if let Ok((resident, _)) = memory(process) {
                let mut figures = self.figures.lock();
                figures.peak = figures.peak.max(resident);
                if resident > self.most_memory {
                    self.too_much.notify_one();
                }
            }
            sleep(LOOK).await;
        }
    }

    async fn probe(&self) {
        while !self.is_over() {
            let asked = Instant::now();
            let answer = http::get(self.admin, "/healthz", PROBE_LIMIT).await;
            let problem = match answer {
                Ok((200, _)) => None,
                Ok((status, body)) => Some(format!("/healthz answered {status}: {body}")),
                Err(error) => Some(format!("{error:#}")),
            };
            {
                let probes = &mut self.figures.lock().probes;
                probes.asked += 1;
                probes.worst = probes.worst.max(asked.elapsed());
                if let Some(problem) = problem {
                    probes.failed += 1;
                    probes.problem.get_or_insert(problem);
                }
            }
            sleep(PROBE_EVERY).await;
        }
    }
}
