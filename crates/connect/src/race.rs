//! Tries every address of a name in parallel, each a moment after the one before (RFC 8305, Happy
//! Eyeballs).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::unreached::Try;

/// How long an address may be silent before the next one is tried in parallel.
const STAGGER: Duration = Duration::from_millis(250);

/// The time in which all addresses of a name are tried, however many there are.
const ALL_WITHIN: Duration = Duration::from_secs(2);

/// How long a server that accepted the connection may be silent before the next address is tried in
/// parallel. Such a server is alive and may be busy.
const SILENCE_AFTER_CONNECT: Duration = Duration::from_secs(1);

/// The most addresses of one name that are tried. Each may hold a socket until the deadline.
const MOST_TRIED: usize = 128;

/// Whether the server has other addresses, which are tried while one is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// There are others.
    Some,
    /// There are no others.
    None,
}

/// Orders addresses so that IPv6 and IPv4 alternate and the resolver's first choice stays first. Removes
/// duplicates, and what is beyond [`MOST_TRIED`].
fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for address in addresses {
        let family = if address.is_ipv6() == first_is_v6 { &mut first } else { &mut second };
        if family.len() < MOST_TRIED && !family.contains(address) {
            family.push(*address);
        }
    }
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    ordered.truncate(MOST_TRIED);
    ordered
}

/// Dials `addresses` in parallel and returns what `greet` makes of the first stream on which the server
/// answers it. `greet` learns whether there are other addresses.
///
/// # Errors
///
/// The error of each address, when all have failed or the deadline has passed.
pub(crate) async fn race<S, T, D, G>(
    addresses: Vec<SocketAddr>,
    deadline: Instant,
    dial: impl Fn(SocketAddr) -> D,
    greet: impl Fn(S, Others) -> G,
) -> Result<T, Vec<Try>>
where
    D: Future<Output = io::Result<S>>,
    G: Future<Output = io::Result<T>>,
{
    let addresses = interleave(&addresses);
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let stagger = STAGGER.min(ALL_WITHIN / count.max(1));
    let others = if count > 1 { Others::Some } else { Others::None };
    let connected = Notify::new();
    let attempt = |address| {
        let (dialed, greet, connected) = (dial(address), &greet, &connected);
        async move {
            let stream = dialed.await.map_err(|error| (address, error))?;
            connected.notify_one();
            greet(stream, others).await.map_err(|error| (address, error))
        }
    };
    let mut waiting = addresses.iter().copied().peekable();
    let mut attempts = FuturesUnordered::new();
    let mut failed: Vec<Try> = Vec::new();
    let mut next_at = Instant::now();
    loop {
        if Instant::now() >= next_at
            && let Some(address) = waiting.next()
        {
            attempts.push(attempt(address));
            next_at = Instant::now() + stagger;
        }
        if attempts.is_empty() && waiting.peek().is_none() {
            return Err(failed);
        }
        tokio::select! {
            Some(outcome) = attempts.next(), if !attempts.is_empty() => match outcome {
                Ok(reached) => return Ok(reached),
                Err((address, error)) => {
                    failed.push(Try { address, error });
                    next_at = Instant::now();
                }
            },
            () = connected.notified() => next_at = Instant::now() + SILENCE_AFTER_CONNECT,
            () = sleep_until(next_at), if waiting.peek().is_some() => {}
            () = sleep_until(deadline) => {
                let untried: Vec<_> = waiting.collect();
                for address in addresses {
                    let why = match untried.contains(&address) {
                        true => "not tried in time",
                        false if failed.iter().any(|one| one.address == address) => continue,
                        false => "no answer in time",
                    };
                    failed.push(Try { address, error: io::Error::new(io::ErrorKind::TimedOut, why) });
                }
                return Err(failed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
