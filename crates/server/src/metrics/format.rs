//! The two text formats of metrics: OpenMetrics for requests that accept it, and otherwise the older
//! format of Prometheus, which every tool reads.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    OpenMetrics,
    Prometheus,
}

impl Format {
    /// The format that a request accepts.
    pub(crate) fn accepted(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut ranges = accepts.flat_map(|value| value.split(','));
        let accepts_open_metrics = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let is_open_metrics =
                parts.next().is_some_and(|name| name == "application/openmetrics-text");
            let has_zero_quality = |part: &str| {
                let quality = part.strip_prefix("q=").and_then(|quality| quality.parse().ok());
                quality == Some(0.0)
            };
            is_open_metrics && !parts.any(has_zero_quality)
        };
        if ranges.any(accepts_open_metrics) { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts a page of OpenMetrics into this format.
    pub(crate) fn convert(self, page: String) -> String {
        match self {
            Self::OpenMetrics => page,
            Self::Prometheus => prometheus_of(&page),
        }
    }
}

/// Converts a page of OpenMetrics into the older format. It names a family as its samples, and has
/// neither `UNIT` lines nor an `EOF` line.
fn prometheus_of(page: &str) -> String {
    let mut written = String::with_capacity(page.len());
    let mut help = None;
    for line in page.split_inclusive('\n') {
        let Some(comment) = line.strip_prefix("# ") else {
            written.push_str(line);
            continue;
        };
        if let Some(about) = comment.strip_prefix("HELP ") {
            help = about.split_once(' ').map(|(_, text)| text);
        } else if let Some((name, kind)) =
            comment.strip_prefix("TYPE ").and_then(|family| family.trim_end().split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(text) = help.take() {
                written.push_str(&format!("# HELP {name}{suffix} {text}"));
            }
            written.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_the_older_format_unless_open_metrics_is_accepted() {
        let accepted = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            Format::accepted(&headers)
        };
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(accepted(prometheus), Format::OpenMetrics);
        assert_eq!(accepted("text/plain, application/openmetrics-text"), Format::OpenMetrics);
        for other in ["*/*", "text/plain", "application/openmetrics-text;q=0", ""] {
            assert_eq!(accepted(other), Format::Prometheus, "{other}");
        }
        assert_eq!(Format::accepted(&HeaderMap::new()), Format::Prometheus);
    }

    #[test]
    fn the_older_format_names_families_as_their_samples() {
        let page = "# HELP a_b Some of them.\n# TYPE a_b counter\na_b_total{x=\"# y\"} 1\n\
                    # HELP c_seconds How long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
                    c_seconds_sum 0.5\n# HELP d What.\n# TYPE d info\nd_info{v=\"1\"} 1\n# EOF\n";
        let older = "# HELP a_b_total Some of them.\n# TYPE a_b_total counter\na_b_total{x=\"# y\"} 1\n\
                     # HELP c_seconds How long.\n# TYPE c_seconds histogram\nc_seconds_sum 0.5\n\
                     # HELP d_info What.\n# TYPE d_info gauge\nd_info{v=\"1\"} 1\n";
        assert_eq!(Format::Prometheus.convert(page.to_owned()), older);
        assert_eq!(Format::OpenMetrics.convert(page.to_owned()), page);
    }
}
