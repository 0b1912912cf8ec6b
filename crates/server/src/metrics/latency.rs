//! A histogram of the durations of calls.
//!
//! The histogram of the metrics library takes a lock for each observation. This one is for a hundred
//! thousand observations a second on every core: each thread counts on its own cache lines, which are
//! added up when the metrics are read.

use std::array;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use store::lane::{self, LANES};

/// The upper bounds of the buckets, in microseconds.
const BOUNDS: [u64; 13] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000,
];

/// The durations of one kind of call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latency(Arc<[Lane; LANES]>);

/// The counts of one thread. It takes two cache lines, because the CPU fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    /// By bucket. The last bucket is above every bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Latency {
    /// Counts one call.
    pub(crate) fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| bound * 1_000 < nanos);
        let lane = &self.0[lane::current()];
        lane.counts[bucket].fetch_add(1, Ordering::Relaxed);
        lane.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns the sum in seconds, and the count of each bucket.
    fn read(&self) -> (f64, [u64; BOUNDS.len() + 1]) {
        let nanos: u64 = self.0.iter().map(|lane| lane.nanos.load(Ordering::Relaxed)).sum();
        let count = |bucket: usize| {
            self.0.iter().map(|lane| lane.counts[bucket].load(Ordering::Relaxed)).sum()
        };
        (Duration::from_nanos(nanos).as_secs_f64(), array::from_fn(count))
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let (seconds, counts) = self.read();
        let bounds = BOUNDS.iter().map(|bound| Duration::from_micros(*bound).as_secs_f64());
        let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        // The count is the sum of the buckets, so that it always agrees with them.
        encoder.encode_histogram::<NoLabelSet>(seconds, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn durations_of_all_threads_are_in_cumulative_buckets() {
        let latency = Latency::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * LANES {
                scope.spawn(|| {
                    latency.observe(Duration::from_micros(50)); // a bound is within its bucket
                    latency.observe(Duration::from_nanos(50_001));
                    latency.observe(Duration::from_secs(20));
                });
            }
        });
        let mut registry = Registry::default();
        registry.register_with_unit("taken", "Times", Unit::Seconds, latency);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "# TYPE taken_seconds histogram",
            "taken_seconds_bucket{le=\"0.00005\"} 32",
            "taken_seconds_bucket{le=\"0.0001\"} 64",
            "taken_seconds_bucket{le=\"10.0\"} 64",
            "taken_seconds_bucket{le=\"+Inf\"} 96",
            "taken_seconds_count 96",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        let sum = page.lines().find_map(|line| line.strip_prefix("taken_seconds_sum ")).unwrap();
        let expected = 32.0 * (20.0 + 100_001e-9);
        assert!((sum.parse::<f64>().unwrap() - expected).abs() < 1e-6, "{sum}");
    }
}
