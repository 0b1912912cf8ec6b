//! Chooses the next fault of the network.

use std::time::Duration;

use rand::RngExt as _;

use crate::proxy::{Flow, Weather};

/// A random fault of the network, and its name.
pub(crate) fn next() -> (&'static str, Weather) {
    let mut random = rand::rng();
    match random.random_range(0..9) {
        0 => ("refused", Weather::refusing()),
        1 => ("half open", Weather::half_open()),
        2 => {
            let delay = Duration::from_millis(random.random_range(1..3_000));
            ("slow", Weather::slow(delay))
        }
        3 => ("lossy", Weather::lossy(0.4)),
        4 => ("throttled", Weather::throttled(4_096)),
        5 => ("answers lost", Weather::answers(Flow::BlackHole)),
        6 => ("requests held", Weather::requests(Flow::Held)),
        7 => ("answers garbled", Weather::answers(Flow::Garbled)),
        _ => ("anything", Weather::any()),
    }
}
