//! What the pool adds to a call: borrows and returns through the pool, and bare calls of the generated client.
//! Both have the same ids, metadata and deadline, one thread and one channel.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tgm_session::{Pool, Session};
use tonic::transport::Channel;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::return_worker_response::Status;
use wire::worker::worker_pool_client::WorkerPoolClient;

use super::{on_one_thread, request};
use crate::ids::Traces;
use crate::pairs::{self, connect};
use crate::process::thread_cpu;

/// The longest latency of the histogram, in nanoseconds: one minute.
const LONGEST: u64 = 60_000_000_000;

/// How long all returns together may take.
const RETURNED: Duration = Duration::from_secs(60);

/// The timeout of a bare borrow, as every caller of a server sets one.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often the count of returns is read.
const LOOK: Duration = Duration::from_millis(1);

/// The options of one run.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The address of the server
    #[arg(long)]
    address: SocketAddr,
    /// Sessions that are borrowed, and returned when all of them are there
    #[arg(long)]
    count: u64,
    /// Callers, each with one call in flight
    #[arg(long)]
    callers: u64,
    /// Make the bare calls of the generated client instead
    #[arg(long)]
    bare: bool,
}

/// The results of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of one borrow, in microseconds.
    pub borrow: f64,
    /// The median of how long a borrow took, in microseconds.
    pub p50: f64,
    /// 99 of 100 took at most this.
    pub p99: f64,
    /// CPU time of one return, in microseconds.
    pub give_back: f64,
}

/// How sessions are borrowed: with the library, or without it.
#[derive(Clone)]
enum Way {
    Pool(Pool),
    Bare(WorkerPoolClient<Channel>),
}

/// Something that was borrowed.
enum Lease {
    Session(#[expect(dead_code, reason = "held until it is dropped")] Session),
    Key(String),
}

impl Plan {
    /// Runs the plan.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or one call was not answered as it should be.
    pub fn run(&self) -> anyhow::Result<Cost> {
        ensure!(self.callers > 0 && self.count > 0, "nothing to do");
        on_one_thread(self.play())
    }

    async fn play(&self) -> anyhow::Result<Cost> {
        let way = if self.bare {
            Way::Bare(WorkerPoolClient::new(connect(self.address).await?))
        } else {
            // No keep-alive comes due during the run, but the pool still names new leases to the
            // server.
            Way::Pool(super::connect(self.address, "request-keep-alive-delay=1h")?)
        };
        // One round is not measured, so that tables reach their final size and the allocator has
        // its pages.
        let leases = self.borrow(&way, 1, None).await?;
        self.give_back(&way, leases).await?;
        let latencies = Rc::new(RefCell::new(Histogram::new_with_bounds(1, LONGEST, 3)?));
        let before = thread_cpu();
        let leases = self.borrow(&way, 2, Some(latencies.clone())).await?;
        let borrow = thread_cpu().saturating_sub(before);

        let before = thread_cpu();
        self.give_back(&way, leases).await?;
        let give_back = thread_cpu().saturating_sub(before);
        let latencies = latencies.borrow();
        let micros = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Cost {
            borrow: borrow.as_secs_f64() * 1e6 / self.count as f64,
            p50: micros(0.5),
            p99: micros(0.99),
            give_back: give_back.as_secs_f64() * 1e6 / self.count as f64,
        })
    }

    async fn borrow(
        &self,
        way: &Way,
        run: u64,
        latencies: Option<Rc<RefCell<Histogram<u64>>>>,
    ) -> anyhow::Result<Vec<Lease>> {
        let callers: Vec<_> = (0..self.callers)
            .map(|caller| {
                let (way, latencies) = (way.clone(), latencies.clone());
                let numbers = (caller..self.count).step_by(self.callers as usize);
                tokio::task::spawn_local(async move {
                    let mut traces = Traces::new(caller + (run << 32));
                    let mut leases = Vec::new();
                    for number in numbers {
                        let begun = Instant::now();
                        leases.push(way.borrow(number, &mut traces).await?);
                        if let Some(latencies) = &latencies {
                            let nanos = begun.elapsed().as_nanos() as u64;
                            latencies.borrow_mut().saturating_record(nanos.max(1));
                        }
                    }
                    anyhow::Ok(leases)
                })
            })
            .collect();
        let mut leases = Vec::with_capacity(self.count as usize);
        for caller in callers {
            leases.extend(caller.await.context("a caller panicked")??);
        }
        Ok(leases)
    }

    /// Returns all leases. The pool makes as many calls at a time as its limit allows; each bare
    /// caller makes one call after another.
    async fn give_back(&self, way: &Way, leases: Vec<Lease>) -> anyhow::Result<()> {
        match way {
            Way::Pool(pool) => {
                let wanted = pool.stats().returned + leases.len() as u64;
                // Dropping a guard queues its return.
                drop(leases);
                let returned = async {
                    while pool.stats().returned < wanted {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                tokio::time::timeout(RETURNED, returned).await.context("returns take too long")?;
                ensure!(pool.stats().not_returned == 0, "some were not returned");
            }
            Way::Bare(client) => {
                let leases = Rc::new(RefCell::new(leases));
                let callers: Vec<_> = (0..self.callers)
                    .map(|_| tokio::task::spawn_local(give_back(client.clone(), leases.clone())))
                    .collect();
                for caller in callers {
                    caller.await.context("a caller panicked")??;
                }
            }
        }
        Ok(())
    }
}

async fn give_back(
    mut client: WorkerPoolClient<Channel>,
    leases: Rc<RefCell<Vec<Lease>>>,
) -> anyhow::Result<()> {
    loop {
        let next = leases.borrow_mut().pop();
        let Some(Lease::Key(worker_key)) = next else { return Ok(()) };
        let status = pairs::give_back(&mut client, worker_key).await?;
        ensure!(status == Status::Returned, "a return was answered {status:?}");
    }
}

impl Way {
    async fn borrow(&self, number: u64, traces: &mut Traces) -> anyhow::Result<Lease> {
        match self {
            Self::Pool(pool) => Ok(Lease::Session(pool.borrow(request(number, traces)).await?)),
            Self::Bare(client) => {
                // A call needs a client of its own. The clones share one channel, as callers share
                // one pool.
                let mut client = client.clone();
                let borrow = pairs::borrow(&mut client, number, traces);
                let answer = tokio::time::timeout(DEADLINE, borrow).await;
                let answer = answer.context("a borrow took too long")??;
                ensure!(answer.status() == BorrowStatus::Borrowed, "not granted: {answer:?}");
                Ok(Lease::Key(answer.worker_key))
            }
        }
    }
}
