//! Single requests to the admin port.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Gets `path` on a connection of its own, and returns the status and the body.
///
/// # Errors
///
/// There is no complete answer within `limit`.
pub async fn get(admin: SocketAddr, path: &str, limit: Duration) -> anyhow::Result<(u16, String)> {
    ask(admin, "GET", path, "", limit).await
}

/// As [`ask_with`], without a token.
///
/// # Errors
///
/// There is no complete answer within `limit`.
pub async fn ask(
    admin: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> anyhow::Result<(u16, String)> {
    ask_with(None, admin, method, path, body, limit).await
}

/// Sends `body` with `method` to `path`, with a token if one is given, and returns the status and the body of the answer.
///
/// # Errors
///
/// There is no complete answer within `limit`.
pub async fn ask_with(
    token: Option<&str>,
    admin: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> anyhow::Result<(u16, String)> {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let asked = async {
        let mut stream = TcpStream::connect(admin).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(limit, asked)
        .await
        .with_context(|| format!("{path} did not answer within {} ms", limit.as_millis()))?
        .with_context(|| format!("{path} did not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer has no status")?, body.to_owned()))
}

/// The sum of all values of the metric `name` on the page of metrics.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let values: Vec<f64> = page
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let ours = rest.starts_with('{') || rest.starts_with(' ');
            ours.then(|| line.rsplit(' ').next()?.parse().ok())?
        })
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_over_others() {
        let page = "# TYPE a gauge\na{s=\"x\"} 2\na{s=\"y z\"} 3\na_b 100\nc 7\n";
        assert_eq!(metric(page, "a"), Some(5.0));
        assert_eq!(metric(page, "c"), Some(7.0));
        assert_eq!(metric(page, "b"), None);
    }
}
