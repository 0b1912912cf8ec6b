//! One run of h2load against a unary method.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use crate::process::{LOAD_CORE, pinned};

/// Connections of a run with many callers.
pub const CONNECTIONS: u32 = 8;

/// What h2load is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The address of the server.
    pub address: SocketAddr,
    /// The method of the WorkerPool service.
    pub method: &'a str,
    /// The file with the framed request.
    pub body: &'a Path,
    /// How many requests in all.
    pub requests: u64,
    /// Connections.
    pub connections: u32,
    /// Streams at once on each connection.
    pub streams: u32,
}

impl Load<'_> {
    /// Runs h2load on the load core and returns the answered requests per second.
    ///
    /// h2load checks the HTTP status only; the caller checks that the calls had an effect.
    ///
    /// # Errors
    ///
    /// h2load is not installed or fails, or one request did not succeed.
    pub fn run(&self) -> anyhow::Result<f64> {
        let output = pinned(LOAD_CORE, Path::new("h2load"))
            .args(["-t", "1", "-c", &self.connections.to_string()])
            .args(["-m", &self.streams.to_string(), "-n", &self.requests.to_string()])
            .arg("-d")
            .arg(self.body)
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
            .arg(format!("http://{}/sf.worker.v1.WorkerPool/{}", self.address, self.method))
            .output()
            .context("cannot start taskset h2load")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("h2load failed: {}{text}", String::from_utf8_lossy(&output.stderr));
        }
        let (rate, succeeded) = summary(&text)
            .with_context(|| format!("h2load answered in an unknown form:\n{text}"))?;
        ensure!(
            succeeded == self.requests,
            "{succeeded} of {} requests succeeded:\n{text}",
            self.requests
        );
        Ok(rate)
    }
}

/// Requests per second and requests with a 2xx answer, from what h2load prints.
fn summary(text: &str) -> Option<(f64, u64)> {
    let finished = text.lines().find(|line| line.starts_with("finished in "))?;
    let rate = finished.split(", ").find_map(|part| part.strip_suffix(" req/s"))?.parse().ok()?;
    let codes = text.lines().find_map(|line| line.strip_prefix("status codes: "))?;
    let succeeded = codes.split(", ").find_map(|part| part.strip_suffix(" 2xx"))?.parse().ok()?;
    Some((rate, succeeded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_h2load_is_read() {
        let text = "finished in 1.41s, 212345.67 req/s, 12.34MB/s\n\
                    requests: 300 total, 300 started, 300 done, 299 succeeded, 1 failed\n\
                    status codes: 299 2xx, 0 3xx, 1 4xx, 0 5xx\n";
        assert_eq!(summary(text), Some((212_345.67, 299)));
        assert_eq!(summary("finished in 0us, 0.00 req/s"), None);
    }
}
