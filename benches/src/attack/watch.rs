//! What is looked at all the time from outside of the server: its memory and its probes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::http;
use crate::server::memory;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How often the probe is asked.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// How long a probe may take.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Looks on a thread of its own. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Watch {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    process: AtomicU32,
    admin: SocketAddr,
    most_memory: u64,
    peak: AtomicU64,
    too_much: AtomicBool,
    told: Notify,
    over: AtomicBool,
    probes: Mutex<Probes>,
}

/// What the probe `/healthz` answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    pub(crate) asked: u64,
    pub(crate) failed: u64,
    pub(crate) worst: Duration,
    pub(crate) problem: Option<String>,
}

impl Watch {
    /// Watches `process`, and its probes at `admin`; tells when it takes more than `most_memory`.
    ///
    /// # Errors
    ///
    /// No thread can be had.
    pub(crate) fn start(process: u32, admin: SocketAddr, most_memory: u64) -> anyhow::Result<Self> {
        let state = Arc::new(State {
            process: AtomicU32::new(process),
            admin,
            most_memory,
            peak: AtomicU64::new(0),
            too_much: AtomicBool::new(false),
            told: Notify::new(),
            over: AtomicBool::new(false),
            probes: Mutex::default(),
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

    /// Forgets what was seen so far, and goes on with `process`.
    pub(crate) fn begin(&self, process: u32) {
        self.state.process.store(process, Ordering::Relaxed);
        self.state.peak.store(0, Ordering::Relaxed);
        *self.state.probes.lock() = Probes::default();
    }

    /// The most resident memory that was seen, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.state.peak.load(Ordering::Relaxed)
    }

    /// What the probes answered.
    pub(crate) fn probes(&self) -> Probes {
        self.state.probes.lock().clone()
    }

    /// Waits until the first probe was answered or failed, which a short attack may have outrun.
    pub(crate) async fn first_probe(&self) {
        let end = Instant::now() + PROBE_EVERY + PROBE_LIMIT;
        while self.probes().asked == 0 && Instant::now() < end {
            sleep(LOOK).await;
        }
    }

    /// Waits until the process takes more memory than it may.
    pub(crate) async fn too_much(&self) {
        let told = self.state.told.notified();
        if !self.state.too_much.load(Ordering::Acquire) {
            told.await;
        }
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
            // A process that is gone, or about to be started again, takes none.
            if let Ok((resident, _)) = memory(self.process.load(Ordering::Relaxed)) {
                self.peak.fetch_max(resident, Ordering::Relaxed);
                if resident > self.most_memory {
                    self.too_much.store(true, Ordering::Release);
                    self.told.notify_waiters();
                }
            }
            sleep(LOOK).await;
        }
    }

    async fn probe(&self) {
        while !self.is_over() {
            let asked = Instant::now();
            let answer = http::get(self.admin, "/healthz", PROBE_LIMIT).await;
            {
                let mut probes = self.probes.lock();
                probes.asked += 1;
                probes.worst = probes.worst.max(asked.elapsed());
                let problem = match answer {
                    Ok((200, _)) => None,
                    Ok((status, body)) => Some(format!("/healthz answered {status}: {body}")),
                    Err(error) => Some(format!("{error:#}")),
                };
                if let Some(problem) = problem {
                    probes.failed += 1;
                    probes.problem.get_or_insert(problem);
                }
            }
            sleep(PROBE_EVERY).await;
        }
    }
}
