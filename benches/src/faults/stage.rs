//! A fleet, its callers and their history.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use benches::fleet::{Fleet, Setup};
use parking_lot::Mutex;
use store::testing::cluster::Cluster;
use tokio::runtime::Handle;

use crate::history::{History, Time};
use crate::policy::{ATTACHED, JOBS, ORGANIZATIONS, SESSIONS, limit, organization};

/// The longest fault, in leader TTLs.
pub(crate) const FAULT: u32 = 3;

/// How long callers may take until all of them have what they want.
const READY: Duration = Duration::from_secs(60);

/// How long the next grant may take at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// How late an event may be read.
const LATE: Duration = Duration::from_millis(200);

/// The most returns that are checked after a fault.
const CHECKED: usize = 200;

/// Between two looks at the history.
const LOOK: Duration = Duration::from_millis(2);

/// The callers of a stage, and the times of its fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) callers: u32,
    pub(crate) attached: u32,
    pub(crate) ttl: Duration,
    pub(crate) leader_ttl: Duration,
}

/// What faults are played on.
pub(crate) struct Stage {
    pub(crate) fleet: Fleet,
    pub(crate) cluster: Cluster,
    pub(crate) runtime: Handle,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) scale: Scale,
    callers: Child,
}

impl Stage {
    /// Starts a fleet and callers, and waits until all callers have a session.
    ///
    /// # Errors
    ///
    /// Something does not start.
    pub(crate) fn start(
        setup: Setup,
        cluster: Cluster,
        scale: Scale,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let fleet = Fleet::start(setup, runtime)?;
        let log = std::fs::File::create(fleet.folder().join("callers.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["callers", "--servers", &fleet.addresses().join(",")]);
        if let Some(file) = fleet.authorities() {
            command.arg("--authorities").arg(file);
        }
        let mut callers = command
            .args(["--callers", &scale.callers.to_string()])
            .args(["--attached", &scale.attached.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("the callers cannot be started")?;
        let events = callers.stdout.take().context("standard output was piped")?;
        // The answer to a keep-alive may take as long as a fault, and a lease lives from its sending on.
        let answer_within = FAULT * scale.leader_ttl + Duration::from_secs(2);
        let believed_for = scale.ttl.mul_f64(0.95).saturating_sub(answer_within);
        let believed_for = u64::try_from(believed_for.as_micros())?;
        let history = Arc::new(Mutex::new(History::new(believed_for)));
        let kept = history.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(events).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    kept.lock().add(event);
                }
            }
        });
        let stage = Self { fleet, cluster, runtime: runtime.clone(), history, scale, callers };
        let start = Instant::now();
        let sessions = u64::from(ORGANIZATIONS) * limit(SESSIONS);
        loop {
            let history = stage.history.lock();
            if history.believed_of(ATTACHED) >= u64::from(scale.attached)
                && history.believed_of(SESSIONS) + 4 >= sessions.min(scale.callers.into())
                && history.believed_of(JOBS) > 0
            {
                break;
            }
            drop(history);
            ensure!(start.elapsed() < READY, "the callers do not get their sessions");
            std::thread::sleep(LOOK);
        }
        Ok(stage)
    }

    /// How long it takes until a lease is granted that was asked for after `start`.
    ///
    /// # Errors
    ///
    /// This takes too long, whatever the fault was.
    pub(crate) fn wait_for_grant(&self, start: Time) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.history.lock().first_grant_after(start) {
                return Ok(Duration::from_micros(at - start));
            }
            ensure!(begun.elapsed() < PATIENCE, "nothing is granted any more");
            std::thread::sleep(LOOK);
        }
    }

    /// Checks that every lease that callers believe in is there, and that none is whose return was
    /// acknowledged after `start`.
    ///
    /// # Errors
    ///
    /// The servers do not answer.
    pub(crate) fn check(&self, start: Time) -> anyhow::Result<()> {
        let (live, returned): (Vec<_>, Vec<_>) = {
            let history = self.history.lock();
            let named = |(number, borrow): (u64, &crate::history::Borrow)| {
                Some((number, borrow.key.clone()?))
            };
            let live = history.live().filter_map(named).collect();
            (live, history.returned_since(start).filter_map(named).take(CHECKED).collect())
        };
        let keys = |of: &[(u64, String)]| of.iter().map(|(_, key)| key.clone()).collect::<Vec<_>>();
        let kept = self.fleet.keep_alive(&keys(&live))?;
        let back = self.fleet.keep_alive(&keys(&returned))?;
        std::thread::sleep(LATE);
        let mut history = self.history.lock();
        for ((number, _), (is_there, answered)) in live.iter().zip(kept) {
            let over = history.borrow(*number).and_then(|borrow| borrow.over);
            if !is_there && over.is_none_or(|over| over > answered) {
                history.violate("a granted lease is not there", &[*number]);
            }
        }
        for ((number, _), (is_there, _)) in returned.iter().zip(back) {
            if is_there {
                history.violate("a lease came back after its return", &[*number]);
            }
        }
        Ok(())
    }

    /// Kills the callers, and checks that nothing is left one TTL and a second later.
    ///
    /// # Errors
    ///
    /// The servers do not answer.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<String>> {
        self.stop_callers();
        std::thread::sleep(self.scale.ttl + Duration::from_secs(1));
        let mut left = Vec::new();
        let mut look = |service: &str, organization: &str| {
            let count = self.fleet.count(service, organization)?;
            if count != 0 {
                left.push(format!(
                    "violation: {count} leases of {service} of {organization} are left\n"
                ));
            }
            anyhow::Ok(())
        };
        for number in 0..ORGANIZATIONS {
            look(SESSIONS, &organization(number))?;
            look(JOBS, &organization(number))?;
        }
        look(ATTACHED, "attached")?;
        Ok(left)
    }

    fn stop_callers(&mut self) {
        // It may have ended.
        let _ = self.callers.kill();
        let _ = self.callers.wait();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop_callers();
    }
}
