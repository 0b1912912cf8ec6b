//! Tries the servers of a list, and every address of each, in parallel, each a moment after the one
//! before (RFC 8305, Happy Eyeballs).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::unreached::Try;

/// How long an address or a resolver may be silent before the next step is made in parallel.
const STAGGER: Duration = Duration::from_millis(250);

/// The time in which all servers and addresses are tried, however many there are.
const ALL_WITHIN: Duration = Duration::from_secs(2);

/// How long a server that accepted the connection may be silent before the next address is tried in
/// parallel. Such a server is alive and may be busy.
const SILENCE_AFTER_CONNECT: Duration = Duration::from_secs(1);

/// The time kept for each server that was not tried yet, while those before it are silent.
const KEPT_PER_HOST: Duration = Duration::from_millis(100);

/// The most addresses that are tried. Each may hold a socket until the deadline.
const MOST_TRIED: usize = 128;

/// Whether there are other addresses, which are tried while one is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// There are others.
    Some,
    /// There are no others.
    None,
}

/// Orders addresses so that IPv6 and IPv4 alternate and the resolver's first choice stays first. Removes
/// duplicates, and what is beyond `most`.
fn interleave(addresses: &[SocketAddr], most: usize) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for address in addresses {
        let family = if address.is_ipv6() == first_is_v6 { &mut first } else { &mut second };
        if family.len() < most && !family.contains(address) {
            family.push(*address);
        }
    }
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    ordered.truncate(most);
    ordered
}

/// A step towards a server. Servers have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Look up the addresses of this server.
    Resolve(usize),
    /// Connect to an address of this server, and wait for its answer.
    Dial(usize, SocketAddr),
}

impl Step {
    /// Whether its server was not tried yet.
    fn is_new_host(&self) -> bool {
        matches!(self, Self::Resolve(_))
    }

    fn failed(self, error: io::Error) -> Try {
        match self {
            Self::Resolve(host) => Try { host, address: None, error },
            Self::Dial(host, address) => Try { host, address: Some(address), error },
        }
    }

    /// The error of a step that did not end, or did not begin, before the deadline.
    fn late(self, has_begun: bool) -> Try {
        let why = match self {
            _ if !has_begun => "not tried in time",
            Self::Resolve(_) => "it was not resolved in time",
            Self::Dial(..) => "no answer in time",
        };
        self.failed(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

fn count(steps: usize) -> u32 {
    u32::try_from(steps).unwrap_or(u32::MAX)
}

/// What a step found.
enum Found<T> {
    /// Addresses of this server.
    Addresses(usize, Vec<SocketAddr>),
    Server(T),
}

/// The steps that wait for their turn.
struct Waiting {
    steps: VecDeque<Step>,
    /// The most addresses that are tried of one server.
    most_of_host: usize,
}

impl Waiting {
    fn new(hosts: &[usize]) -> Self {
        let steps = hosts.iter().map(|host| Step::Resolve(*host)).collect();
        Self { steps, most_of_host: MOST_TRIED / hosts.len().max(1) }
    }

    /// Puts the addresses of a server before the servers that were not tried yet.
    fn put_first(&mut self, host: usize, addresses: &[SocketAddr]) {
        for address in interleave(addresses, self.most_of_host).into_iter().rev() {
            self.steps.push_front(Step::Dial(host, address));
        }
    }

    /// Returns how many servers were not tried yet.
    fn new_hosts(&self) -> usize {
        self.steps.iter().filter(|step| step.is_new_host()).count()
    }

    /// Puts servers that were not tried yet before further addresses of the others, and returns how
    /// many there are.
    fn prefer_new_hosts(&mut self) -> usize {
        self.steps.make_contiguous().sort_by_key(|step| !step.is_new_host());
        self.new_hosts()
    }

    /// Returns the pause before the next step, if `begun` steps were made and `left` remains of
    /// [`ALL_WITHIN`].
    fn pause(&self, begun: usize, left: Duration) -> Duration {
        let pause = STAGGER.min(ALL_WITHIN / count(begun + self.steps.len()));
        match self.new_hosts() {
            0 => pause,
            // How many addresses they have is not known yet.
            _ => pause.min(left / count(self.steps.len() + 1)),
        }
    }
}

/// Tries `hosts` in their order, and the addresses of each, in parallel. Returns the first server that
/// answers, with what `greet` makes of the stream. `greet` learns whether there are other addresses.
///
/// # Errors
///
/// The error of each address, when all have failed or the deadline has passed.
pub(crate) async fn race<S, T, R, D, G>(
    hosts: &[usize],
    deadline: Instant,
    resolve: impl Fn(usize) -> R,
    dial: impl Fn(SocketAddr) -> D,
    greet: impl Fn(usize, S, Others) -> G,
) -> Result<(usize, T), Vec<Try>>
where
    R: Future<Output = io::Result<Vec<SocketAddr>>>,
    D: Future<Output = io::Result<S>>,
    G: Future<Output = io::Result<T>>,
{
    let connected = Notify::new();
    let (resolve, dial, greet, connected) = (&resolve, &dial, &greet, &connected);
    let take = |step, others| async move {
        let found = async {
            match step {
                Step::Resolve(host) => Ok(Found::Addresses(host, resolve(host).await?)),
                Step::Dial(host, address) => {
                    let stream = dial(address).await?;
                    connected.notify_one();
                    Ok(Found::Server((host, greet(host, stream, others).await?)))
                }
            }
        };
        (step, found.await)
    };
    let mut waiting = Waiting::new(hosts);
    let mut running = Vec::new();
    let mut steps = FuturesUnordered::new();
    let mut failed: Vec<Try> = Vec::new();
    let mut next_at = Instant::now();
    let all_by = next_at + ALL_WITHIN;
    loop {
        if Instant::now() >= next_at
            && let Some(step) = waiting.steps.pop_front()
        {
            running.push(step);
            let begun = running.len() + failed.len();
            let others = begun + waiting.steps.len() > 1;
            steps.push(take(step, if others { Others::Some } else { Others::None }));
            let left = all_by.saturating_duration_since(Instant::now());
            next_at = Instant::now() + waiting.pause(begun, left);
        }
        if running.is_empty() && waiting.steps.is_empty() {
            return Err(failed);
        }
        tokio::select! {
            Some((step, found)) = steps.next(), if !steps.is_empty() => {
                running.retain(|one| *one != step);
                match found {
                    Ok(Found::Server(reached)) => return Ok(reached),
                    Ok(Found::Addresses(_, none)) if none.is_empty() => {
                        failed.push(step.failed(io::ErrorKind::NotFound.into()));
                    }
                    Ok(Found::Addresses(host, addresses)) => waiting.put_first(host, &addresses),
                    Err(error) => failed.push(step.failed(error)),
                }
                next_at = Instant::now();
            }
            () = connected.notified() => {
                let patient = Instant::now() + SILENCE_AFTER_CONNECT;
                next_at = match waiting.prefer_new_hosts() {
                    0 => patient,
                    hosts => patient.min(all_by - KEPT_PER_HOST * count(hosts)).max(next_at),
                };
            }
            () = sleep_until(next_at), if !waiting.steps.is_empty() => {}
            () = sleep_until(deadline) => {
                failed.extend(running.into_iter().map(|step| step.late(true)));
                failed.extend(waiting.steps.into_iter().map(|step| step.late(false)));
                return Err(failed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
